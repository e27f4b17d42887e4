//! The doctor: are the triggers what the configuration says, and what follows if they were not.
//!
//! A fault means that changes were missed, so the sync has to be walked once it is over. That debt
//! is noted in the statement that finds the fault, as `backfilled_at = -infinity`. Only a backfill
//! that begins while all is well clears it (`settle`), and none that runs to its end over it does
//! (`claim`): whatever dies in between, the next look finds the debt.

use std::collections::HashMap;

use serde_json::json;

use super::error::{Error, Place};
use super::link::Link;
use super::{Settings, SyncSource};
use crate::change::{Epoch, SyncId};
use crate::ledger::Examined;

/// The verdict on each of `wanted(name, relation, key, related)`: a sync, its table, what [`key_json`]
/// says of its key and what [`related_json`] says of its related tables, as configured. `fault` is
/// null where all is well.
///
/// The table is looked up without `to_regclass`, which fails for all where one schema is barred.
pub(crate) const JUDGED: &str = "\
    select w.name, case
      when s.name is null then 'the table is not watched'
      when c.oid is null then 'there is no such table'
      when c.oid <> s.relation::oid
        then 'another table is watched under this name (was it swapped by a rename?)'
      when to_jsonb(s.key_columns) <> (w.key::jsonb->'columns')
        then 'other key columns are watched than configured'
      when to_jsonb(s.collect) <> (w.key::jsonb->'collect')
        then 'collect is not as configured: one row or many in a document'
      when to_jsonb(coalesce(s.shards, 0)) <> (w.key::jsonb->'shards')
        then 'another number of shards is watched than configured'
      else coalesce((
        select string_agg(format('related table %s: %s', told.name, told.fault), '; ' order by told.name)
        from (
          select e.name, case
            when r.name is null then 'it is not watched'
            when rc.oid is null then 'there is no such table'
            when rc.oid <> r.relation::oid
              then 'another table is watched under this name (was it swapped by a rename?)'
            when jsonb_object(r.match_from, r.match_to) <> (e.spec->'match')
              then 'other columns are matched than configured'
            when r.columns is not null and not to_jsonb(r.columns) @> (e.spec->'watch')
              then 'fewer columns are watched than configured'
            end as fault
          from jsonb_each(w.related::jsonb) as e(name, spec)
          left join pg2kv.related as r on r.sync = s.name and r.name = e.name
          left join pg_namespace as rn on rn.nspname = (parse_ident(e.spec->>'table'))[1]
          left join pg_class as rc
            on rc.relnamespace = rn.oid and rc.relname = (parse_ident(e.spec->>'table'))[2]
        ) as told where told.fault is not null
      ), pg2kv.trigger_faults(s.name)) end as fault,
      coalesce(s.backfilled_at = '-infinity', false) as owed, s.audit_owed
    from wanted as w
    left join pg2kv.sync as s on s.name = w.name
    left join pg_namespace as n on n.nspname = (parse_ident(w.relation))[1]
    left join pg_class as c
      on c.relnamespace = n.oid and c.relname = (parse_ident(w.relation))[2]";

/// One sync, for [`fault`].
const ONE: &str =
    "wanted(name, relation, key, related) as (select $1::text, $2::text, $3::text, $4::text)";

/// What makes the keys of a sync, as [`JUDGED`] compares it.
pub(crate) fn key_json(sync: &SyncSource) -> String {
    let shards = sync.collect.as_ref().and_then(|collect| collect.shards);
    json!({
        "columns": sync.key_columns,
        "collect": sync.collect.is_some(),
        "shards": shards.unwrap_or(0),
    })
    .to_string()
}

/// The related tables of a sync as [`JUDGED`] compares them: by name, with table, match and watch.
pub(crate) fn related_json(sync: &SyncSource) -> String {
    let related: serde_json::Map<_, _> = sync
        .related
        .iter()
        .map(|related| {
            let spec = serde_json::json!({
                "table": related.table,
                "match": related.match_object(),
                "watch": related.columns,
            });
            (related.name.clone(), spec)
        })
        .collect();
    serde_json::Value::from(related).to_string()
}

/// What is wrong with the triggers of one sync. Changes nothing.
pub(crate) async fn fault(
    settings: &Settings,
    link: &Link,
    sync: &SyncSource,
) -> Result<Option<String>, Error> {
    let sql = settings.sql(&format!("with {ONE} {JUDGED}"));
    let (key, related) = (key_json(sync), related_json(sync));
    let row = link
        .call(
            "looking at triggers",
            2,
            Place::Own,
            link.client()
                .query_one(&sql, &[&sync.name, &sync.table, &key, &related]),
        )
        .await?;
    Ok(row.get(1))
}

/// Looks at all syncs, and notes what is owed.
pub(crate) struct Examiner {
    sql: String,
}

impl Examiner {
    pub(crate) fn open(settings: &Settings) -> Self {
        let sql = format!(
            "with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
             wanted as (
               select * from unnest($2::text[], $3::text[], $4::text[], $5::text[])
                 as w(name, relation, key, related)
             ),
             judged as materialized ({JUDGED}),
             noted as (
               update pg2kv.sync as s set backfilled_at = '-infinity' from judged as j
               where s.name = j.name and j.fault is not null and not j.owed
                 and exists (select from fence)
             )
             select exists (select from fence), j.name, j.fault, j.owed, j.audit_owed from judged as j"
        );
        Self {
            sql: settings.sql(&sql),
        }
    }

    /// See `Session::examine`.
    pub(crate) async fn examine(
        &self,
        link: &Link,
        epoch: Epoch,
        syncs: &HashMap<SyncId, SyncSource>,
    ) -> Result<Vec<Examined>, Error> {
        let doing = "looking at triggers";
        let syncs: Vec<&SyncSource> = syncs.values().collect();
        let names: Vec<&str> = syncs.iter().map(|sync| sync.name.as_str()).collect();
        let tables: Vec<&str> = syncs.iter().map(|sync| sync.table.as_str()).collect();
        let keys: Vec<String> = syncs.iter().map(|sync| key_json(sync)).collect();
        let related: Vec<String> = syncs.iter().map(|sync| related_json(sync)).collect();
        let rows = link
            .call(
                doing,
                2,
                Place::Own,
                link.client()
                    .query(&self.sql, &[&epoch.0, &names, &tables, &keys, &related]),
            )
            .await?;
        if rows.iter().any(|row| !row.get::<_, bool>(0)) {
            return Err(Error::fenced(doing));
        }
        Ok(rows
            .iter()
            .filter_map(|row| {
                let name: &str = row.get(1);
                let sync = syncs.iter().find(|sync| sync.name == name)?;
                Some(Examined {
                    sync: sync.id,
                    fault: row.get(2),
                    owed: row.get(3),
                    audit_owed: row.get(4),
                })
            })
            .collect())
    }
}
