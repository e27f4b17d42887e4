//! The statements that are given keys, or the texts of names: documents by key, keys of names.

use super::super::SyncSource;
use super::super::error::Error;
use super::table::{KeyColumn, Table};
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
        let alias = &self.alias;
        let each = |part: &dyn Fn(usize, &KeyColumn) -> String, between: &str| {
            let parts: Vec<String> = self
                .columns
                .iter()
                .enumerate()
                .map(|(at, column)| part(at, column))
                .collect();
            parts.join(between)
        };
        let texts = each(&|at, _| format!("pg2kv_key.c{at}::text"), ", ");
        let typed = each(
            &|at, column| format!("{} as c{at}", column.typed("u.key", at)),
            ", ",
        );
        // The index finds what is equal; what is equal but reads otherwise is another key, and its
        // document has another name.
        let own_key = self.key_of_row();
        let matches = each(
            &|at, column| {
                let equal = format!("{alias}.{} {} pg2kv_key.c{at}", column.name, column.equal);
                if column.exact {
                    return equal;
                }
                let own = column.typed(&own_key, at);
                format!("{equal} and ({own})::text = pg2kv_key.c{at}::text")
            },
            " and ",
        );
        let value = value_sql(&sync.value, binary, alias, doing)?;
        let attributes = attributes_sql(sync);
        let filter = filter_sql(sync.filter.as_deref());
        let name = &self.name;
        // A value over the limit is refused anyway, so only its size travels.
        let max = KV_VALUE_MAX_BYTES;
        Ok(format!(
            "select pg2kv_key.ord, {texts}, \
             case when pg2kv_document.bytes <= {max} then pg2kv_document.value end, \
             pg2kv_document.bytes, pg2kv_document.content_type, pg2kv_document.metadata, \
             ceil(extract(epoch from pg2kv_document.expires_at))::int8, \
             ceil(extract(epoch from pg2kv_document.expires_at - statement_timestamp()))::int8 \
             from (select u.ord, {typed} from (select k.ord, k.key::jsonb as key \
             from unnest($1::text[]) with ordinality as k(key, ord)) as u) as pg2kv_key \
             left join lateral (select pg2kv_row.*, octet_length(pg2kv_row.value)::int8 as bytes \
             from (select {value} as value, {attributes} from {name} as {alias} \
             where {matches} {filter} offset 0) as pg2kv_row \
             where coalesce(pg2kv_row.expires_at > statement_timestamp(), true) offset 0) \
             as pg2kv_document on true"
        ))
    }

    /// Keys of the texts that stand in names, in their order.
    pub(super) fn keys(&self) -> String {
        let typed: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| format!("(u.names->>{at})::{} as {}", column.cast, column.name))
            .collect();
        let key: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.to_key("pg2kv_key"))
            .collect();
        format!(
            "select jsonb_build_array({})::text from (select u.ord, {} from (select k.ord, \
             k.names::jsonb as names from unnest($1::text[]) with ordinality as k(names, ord)) as u) \
             as pg2kv_key order by pg2kv_key.ord",
            key.join(", "),
            typed.join(", ")
        )
    }
}
