//! A sync in one JSON object: everything that decides which pairs its rows make.
//!
//! By it a daemon notices that it runs with another configuration than the one before, and
//! `pg2kv check` says what has changed.

use serde_json::{Value, json};

use super::{Sync, ValueSource};
use crate::source::configured::{KEY, KEY_VALUES, NAMESPACE};
use crate::sql_kit::WatchSpec;

impl Sync {
    /// Everything that decides which pairs the rows make. Holds no secret and no row.
    pub fn described(&self) -> Value {
        // Without `..`: an option that is added here must be described too.
        let Self {
            watch,
            template,
            value,
            filter,
            namespace_id,
        } = self;
        let WatchSpec {
            sync: _,
            table,
            key_columns,
            columns,
        } = watch;
        let mut described = json!({
            "table": table,
            "key_columns": key_columns,
            "watch": columns,
            "where": filter,
        });
        described[KEY] = json!(template.to_string());
        described[KEY_VALUES] = json!(template.columns());
        described[NAMESPACE] = json!(namespace_id.as_str());
        match value {
            // A list: the order of the members is part of the document.
            ValueSource::Columns(columns) => described["columns"] = json!(columns),
            ValueSource::Expression(sql) => described["value"] = json!(sql),
        }
        described
    }
}
