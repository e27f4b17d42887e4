//! The statement that reads documents of many rows: all rows of a key become one JSON object or
//! list.
//!
//! **The text of a document does not depend on the order in which rows come.** Entries are sorted by
//! what the operator says, and where that leaves a choice by their member or their own text, byte by
//! byte. So an audit, or another server, makes the same document of the same rows.
//!
//! **What is over the limit of KV is never put together.** Entries behind the limit are counted and
//! dropped, so a document of a gigabyte costs the server a sort on disk, not its memory.

use super::super::error::Error;
use super::super::names::verbatim;
use super::super::{Collect, CollectInto, SyncSource, ValueSql};
use super::table::Table;
use super::value::{expression, filter_sql, object_sql, quote};
use crate::change::KV_VALUE_MAX_BYTES;

impl Table {
    /// `value`, `bytes` and `twice` of the rows that match; no row where there is none.
    pub(super) fn collected(
        &self,
        sync: &SyncSource,
        collect: &Collect,
        matches: &str,
        doing: &str,
    ) -> Result<String, Error> {
        let (name, alias) = (&self.name, &self.alias);
        let content = match &sync.value {
            ValueSql::Columns(columns) => object_sql(columns, alias, doing)?,
            ValueSql::Expression(sql) => expression(sql),
        };
        let filter = filter_sql(sync.filter.as_deref());
        let place = match &collect.order_by {
            None => "1".to_owned(),
            Some(order) => format!(
                "rank() over (order by {})",
                verbatim(&format!("\n{order}\n"))
            ),
        };
        // The last key of the order is a text of its own for each entry, or makes no difference.
        let (member, entry, last, open, close) = match &collect.into {
            CollectInto::Object { member } => (
                format!("{alias}.{}::text", quote(member)),
                "to_json(pg2kv_row.member)::text || ':' || to_json(pg2kv_row.content)::text",
                "pg2kv_entry.member",
                '{',
                '}',
            ),
            CollectInto::List => (
                "''".to_owned(),
                "to_json(pg2kv_row.content)::text",
                "pg2kv_entry.entry",
                '[',
                ']',
            ),
        };
        // Equal members stand side by side; by the order of the document that is one sort less.
        let twice = match (&collect.into, &collect.order_by) {
            (CollectInto::Object { .. }, None) => {
                "coalesce(pg2kv_entry.member = lag(pg2kv_entry.member) over pg2kv_order, false)"
            }
            (CollectInto::Object { .. }, Some(_)) => {
                "coalesce(pg2kv_entry.member = lag(pg2kv_entry.member) \
                 over (order by pg2kv_entry.member collate \"C\"), false)"
            }
            (CollectInto::List, _) => "false",
        };
        // Each entry counts with a comma; the last one's, and the brackets, make one byte more.
        let max = KV_VALUE_MAX_BYTES;
        Ok(format!(
            "select pg2kv_all.bytes, pg2kv_all.twice, pg2kv_all.value from (\
             select sum(pg2kv_place.size)::int8 + 1 as bytes, bool_or(pg2kv_place.twice) as twice, \
             '{open}' || string_agg(pg2kv_place.entry, ',' order by pg2kv_place.n) \
             filter (where pg2kv_place.upto < {max}) || '{close}' as value from (\
             select pg2kv_entry.entry, octet_length(pg2kv_entry.entry) + 1 as size, \
             {twice} as twice, row_number() over pg2kv_order as n, \
             sum(octet_length(pg2kv_entry.entry) + 1) \
             over (pg2kv_order rows unbounded preceding) as upto from (\
             select {entry} as entry, pg2kv_row.member, pg2kv_row.place from (\
             select {content} as content, {member} as member, {place} as place \
             from {name} as {alias} where {matches} {filter} offset 0) as pg2kv_row \
             where pg2kv_row.content is not null and pg2kv_row.member is not null offset 0) \
             as pg2kv_entry \
             window pg2kv_order as (order by pg2kv_entry.place, {last} collate \"C\")) \
             as pg2kv_place) as pg2kv_all where pg2kv_all.bytes is not null offset 0"
        ))
    }
}
