//! A sync in one JSON object: everything that decides which pairs its rows make.
//!
//! By it a daemon notices that it runs with another configuration than the one before, and
//! `pg2kv check` says what has changed.

use serde_json::{Value, json};

use super::{Sync, ValueSource};
use crate::source::configured::{KEY, KEY_VALUES, NAMESPACE};
use crate::source::{Attributes, Collect, CollectInto, ExpirySql};
use crate::sql_kit::{RelatedSpec, WatchSpec};

impl Sync {
    /// Everything that decides which pairs the rows make. Holds no secret and no row.
    pub fn described(&self) -> Value {
        // Without `..`: an option that is added here must be described too.
        let Self {
            watch,
            template,
            value,
            filter,
            attributes,
            collect,
            namespace_id,
        } = self;
        let WatchSpec {
            sync: _,
            table,
            key_columns,
            columns,
            collect: _, // it follows from the sync's own
            shards: _,
            related,
        } = watch;
        let Attributes {
            content_type,
            metadata,
            expiry,
        } = attributes;
        let mut described = json!({
            "table": table,
            "key_columns": key_columns,
            "watch": columns,
            "where": filter,
            "content_type": content_type,
            "metadata": metadata,
        });
        described[KEY] = json!(template.to_string());
        described[KEY_VALUES] = json!(template.columns());
        described[NAMESPACE] = json!(namespace_id.as_str());
        match value {
            // A list: the order of the members is part of the document.
            ValueSource::Columns(columns) => described["columns"] = json!(columns),
            ValueSource::Expression(sql) => described["value"] = json!(sql),
        }
        match expiry {
            None => {}
            Some(ExpirySql::At(sql)) => described["expires_at"] = json!(sql),
            Some(ExpirySql::After(seconds)) => described["ttl"] = json!(seconds),
        }
        if let Some(Collect {
            into,
            order_by,
            shards,
        }) = collect
        {
            match into {
                CollectInto::List => described["collect"] = json!("list"),
                CollectInto::Object { member } => {
                    described["collect"] = json!("object");
                    described["member"] = json!(member);
                }
            }
            described["order_by"] = json!(order_by);
            described["shards"] = json!(shards);
        }
        for RelatedSpec {
            name,
            table,
            matches,
            columns,
        } in related
        {
            described["related"][name] = json!({
                "table": table,
                "match": matches,
                "watch": columns,
            });
        }
        described
    }
}
