//! The statements that are given keys, or the texts of names: documents by key, keys of names.

use super::super::SyncSource;
use super::super::error::Error;
use super::table::Table;
use super::value::{attributes_sql, filter_sql, value_sql};
use crate::change::KV_VALUE_MAX_BYTES;

impl Table {
    /// What the value of the operator is, told when it is prepared.
    pub(super) fn probe(&self, expression: &str) -> String {
        format!(
            "select (\n{expression}\n) from {} as {}",
            self.name, self.alias
        )
    }

    /// Documents by key.
    ///
    /// `offset 0` keeps the subquery whole: keys drive a nested loop, so rows come in the order of
    /// the keys without a sort that would hold all values, and each expression is evaluated once,
    /// for rows that match only.
    pub(super) fn rows(
        &self,
        sync: &SyncSource,
        binary: bool,
        doing: &str,
    ) -> Result<String, Error> {
        let typed = self.parts(
            |at, column| format!("{} as c{at}", column.typed("u.key", at)),
            |at| format!("((u.key)->>{at})::int4 as c{at}"),
        );
        let texts = self.parts(
            |at, _| format!("pg2kv_key.c{at}::text"),
            |at| format!("pg2kv_key.c{at}::text"),
        );
        let matches = self.matches();
        let document = match &sync.collect {
            None => self.single(sync, binary, &matches, doing)?,
            Some(collect) => format!(
                "select pg2kv_one.*, {NO_ATTRIBUTES} from ({}) as pg2kv_one",
                self.collected(sync, collect, &matches, doing)?
            ),
        };
        // A value over the limit is refused anyway, so only its size travels.
        let max = KV_VALUE_MAX_BYTES;
        Ok(format!(
            "select {keys}, \
             case when pg2kv_document.bytes <= {max} then pg2kv_document.value end, \
             pg2kv_document.bytes, pg2kv_document.content_type, pg2kv_document.metadata, \
             ceil(extract(epoch from pg2kv_document.expires_at))::int8, \
             ceil(extract(epoch from pg2kv_document.expires_at - statement_timestamp()))::int8, \
             pg2kv_document.twice \
             from (select {typed} from (select k.ord, k.key::jsonb as key \
             from unnest($1::text[]) with ordinality as k(key, ord)) as u) as pg2kv_key \
             left join lateral ({document}) as pg2kv_document on true",
            keys = listed("pg2kv_key.ord", texts),
            typed = listed("u.ord", typed),
        ))
    }

    /// The rows of a key. The index finds what is equal; what is equal but reads otherwise is
    /// another key, and its document has another name.
    fn matches(&self) -> String {
        let alias = &self.alias;
        let own_key = self.key_of_row();
        let matches = self.parts(
            |at, column| {
                let equal = format!("{alias}.{} {} pg2kv_key.c{at}", column.name, column.equal);
                if column.exact {
                    return equal;
                }
                let own = column.typed(&own_key, at);
                format!("{equal} and ({own})::text = pg2kv_key.c{at}::text")
            },
            |at| format!("{} = pg2kv_key.c{at}", self.shard_sql()),
        );
        if matches.is_empty() {
            "true".to_owned()
        } else {
            matches.join(" and ")
        }
    }

    /// The document of one row, with what a pair has beside its value.
    fn single(
        &self,
        sync: &SyncSource,
        binary: bool,
        matches: &str,
        doing: &str,
    ) -> Result<String, Error> {
        let value = value_sql(&sync.value, binary, &self.alias, doing)?;
        let attributes = attributes_sql(sync);
        let filter = filter_sql(sync.filter.as_deref());
        let (name, alias) = (&self.name, &self.alias);
        Ok(format!(
            "select pg2kv_row.*, octet_length(pg2kv_row.value)::int8 as bytes, false as twice \
             from (select {value} as value, {attributes} from {name} as {alias} \
             where {matches} {filter} offset 0) as pg2kv_row \
             where coalesce(pg2kv_row.expires_at > statement_timestamp(), true) offset 0"
        ))
    }

    /// Keys of the texts that stand in names, in their order.
    pub(super) fn keys(&self) -> String {
        let typed = self.parts(
            |at, column| format!("(u.names->>{at})::{} as {}", column.cast, column.name),
            |at| format!("(u.names->>{at})::int4 as pg2kv_shard"),
        );
        let key = self.parts(
            |_, column| column.to_key("pg2kv_key"),
            |_| "pg2kv_key.pg2kv_shard".to_owned(),
        );
        format!(
            "select jsonb_build_array({})::text from (select {} from (select k.ord, \
             k.names::jsonb as names from unnest($1::text[]) with ordinality as k(names, ord)) as u) \
             as pg2kv_key order by pg2kv_key.pg2kv_ord",
            key.join(", "),
            listed("u.ord as pg2kv_ord", typed)
        )
    }
}

/// What a document of many rows has beside its value.
const NO_ATTRIBUTES: &str = "null::text as content_type, null::text as metadata, \
                             null::timestamptz as expires_at";

/// A select list.
fn listed(first: &str, rest: Vec<String>) -> String {
    std::iter::once(first.to_owned())
        .chain(rest)
        .collect::<Vec<_>>()
        .join(", ")
}
