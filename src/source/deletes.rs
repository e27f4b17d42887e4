//! What the ledger knows about deletes of a sync: how many keys it has, and whether a person approved.
//!
//! Owns one query, asked at the start of a session and then with the gauges, and one note: that
//! deletes are held, for people who ask the database and not the process that leads, and for whoever
//! leads next.

use std::time::Duration;

use tokio_postgres::Row;

use super::{ExpirySql, SyncSource};
use crate::change::SyncId;
use crate::ledger::DeleteFacts;

/// A backfill counts the keys exactly; in between, the number grows with the statistics of the table
/// and never falls: a TRUNCATE resets them at once. With a filter, an end or many rows in one document
/// the rows of a table say nothing about the number of keys, so `$1`, the syncs without one, are the only ones to grow. They are
/// stored in steps, not with each estimate.
pub(crate) const FACTS: &str = "\
    with grown as (
      update pg2kv.sync as s set keys_estimate = n.rows
      from (
        select s.name, sum(c.reltuples)::int8 as rows from pg2kv.sync as s
        cross join lateral pg2kv.tables_of(s.relation) as r(oid)
        join pg_class as c on c.oid = r.oid
        where s.name = any($1::text[]) and c.reltuples > 0 and c.relkind <> 'p'
        group by s.name
      ) as n
      where s.name = n.name and n.rows > (s.keys_estimate * 1.1)
      returning s.name, s.keys_estimate
    )
    select s.name, coalesce(g.keys_estimate, s.keys_estimate),
      extract(epoch from s.deletes_approved_until - clock_timestamp())::float8,
      s.deletes_held is not null,
      extract(epoch from clock_timestamp())::float8 - (s.deletes_lately->>'at')::float8,
      s.deletes_lately->>'pairs'
    from pg2kv.sync as s left join grown as g on g.name = s.name";

/// `$2`, `$3`: syncs, and how many keys wait for approval; null where none do.
pub(crate) const NOTE_HELD: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share)
    update pg2kv.sync as s set deletes_held = h.keys
    from unnest($2::text[], $3::int8[]) as h(name, keys)
    where s.name = h.name and (s.deletes_held = h.keys or (s.deletes_held is null and h.keys is null)) is not true
      and exists (select from fence)";

/// Names of the syncs whose keys are all rows of their tables.
pub(crate) fn unfiltered<'a>(syncs: impl Iterator<Item = &'a SyncSource>) -> Vec<&'a str> {
    syncs
        .filter(|sync| {
            let ends = matches!(sync.attributes.expiry, Some(ExpirySql::At(_)));
            sync.filter.is_none() && sync.collect.is_none() && !ends
        })
        .map(|sync| sync.name.as_str())
        .collect()
}

/// The facts of the syncs that are configured.
pub(crate) fn facts(rows: &[Row], sync_of: impl Fn(&str) -> Option<SyncId>) -> Vec<DeleteFacts> {
    rows.iter()
        .filter_map(|row| {
            Some(DeleteFacts {
                sync: sync_of(row.get(0))?,
                keys: row
                    .get::<_, Option<i64>>(1)
                    .and_then(|keys| u64::try_from(keys).ok()),
                // What is over has no such span.
                approved_for: row
                    .get::<_, Option<f64>>(2)
                    .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
                held: row.get(3),
                lately: lately(row.get(4), row.get(5)),
            })
        })
        .collect()
}

/// What was deleted lately, as the ledger takes it: `[[seconds ago, pairs], ...]`.
pub(crate) fn lately_json(lately: &[(Duration, u64)]) -> String {
    let lately = lately.iter();
    let lately: Vec<_> = lately
        .map(|(age, pairs)| serde_json::json!([age.as_secs_f64(), pairs]))
        .collect();
    serde_json::Value::from(lately).to_string()
}

/// The same as it is read again so many seconds later.
fn lately(later: Option<f64>, json: Option<&str>) -> Vec<(Duration, u64)> {
    let Some(json) = json else { return Vec::new() };
    let lately: Vec<(f64, u64)> = serde_json::from_str(json).unwrap_or_default();
    lately
        .into_iter()
        .map(|(age, pairs)| {
            // Negative if the server's clock was set back.
            let age = age + later.unwrap_or_default().max(0.0);
            (Duration::try_from_secs_f64(age).unwrap_or_default(), pairs)
        })
        .collect()
}
