//! Numbers about the database for metrics: cheap to get, mostly estimates.
//!
//! Owns the queries, and the note of what is held. Nothing here decides anything.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::deletes;
use super::error::{Error, Place};
use super::link::Link;
use super::session::Gauges;
use super::{Settings, SyncSource};
use crate::change::{Epoch, SyncId};

/// The oldest row is looked for from where it was last time: what is below is dead and would be
/// waded through on each look.
const NUMBERS: &str = "\
    select
      coalesce(s.n_live_tup, 0), coalesce(s.n_dead_tup, 0), o.id, o.age,
      (select count(*) from pg2kv.claim), pg_notification_queue_usage(),
      (select extract(epoch from max(clock_timestamp() - t.at))::float8 from (
         select min(xact_start) as at from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid()
         union all select min(prepared) from pg_prepared_xacts where database = current_database()
       ) as t),
      (select schema_version from pg2kv.meta)
    from (select 'pg2kv.outbox'::regclass as outbox) as r
    left join pg_stat_all_tables as s on s.relid = r.outbox
    left join lateral (
      select id, extract(epoch from clock_timestamp() - at)::float8 as age
      from pg2kv.outbox where id >= $1 order by id limit 1
    ) as o on true";

const DEAD: &str = "select sync, reason, count(*) from pg2kv.dead_letter group by sync, reason";

const AUDITED: &str = "\
    select name, extract(epoch from audited_at)::float8 from pg2kv.sync where audited_at is not null";

/// What is remembered between two looks.
pub(crate) struct Watch {
    numbers: String,
    dead: String,
    deletes: String,
    held: String,
    audited: String,
    oldest: AtomicI64,
}

impl Watch {
    pub(crate) fn open(settings: &Settings) -> Self {
        Self {
            numbers: settings.sql(NUMBERS),
            dead: settings.sql(DEAD),
            deletes: settings.sql(deletes::FACTS),
            held: settings.sql(deletes::NOTE_HELD),
            audited: settings.sql(AUDITED),
            oldest: AtomicI64::new(0),
        }
    }

    /// See `Session::note_held`.
    pub(crate) async fn note_held(
        &self,
        link: &Link,
        epoch: Epoch,
        held: &[(SyncId, Option<u64>)],
        syncs: &HashMap<SyncId, SyncSource>,
    ) -> Result<(), Error> {
        let (names, keys): (Vec<&str>, Vec<Option<i64>>) = held
            .iter()
            .filter_map(|(id, keys)| {
                let keys = keys.map(|keys| i64::try_from(keys).unwrap_or(i64::MAX));
                Some((syncs.get(id)?.name.as_str(), keys))
            })
            .unzip();
        let parameters: [&(dyn ToSql + Sync); 3] = [&epoch.0, &names, &keys];
        let noted = link.client().execute(&self.held, &parameters);
        link.call("noting held deletes", 2, Place::Own, noted)
            .await
            .map(drop)
    }

    /// See `Session::gauges`.
    pub(crate) async fn gauges(
        &self,
        link: &Link,
        syncs: &HashMap<SyncId, SyncSource>,
    ) -> Result<Gauges, Error> {
        let client = link.client();
        let oldest = self.oldest.load(Ordering::Relaxed);
        let parameters: [&(dyn ToSql + Sync); 1] = [&oldest];
        let unfiltered = deletes::unfiltered(syncs.values());
        let asked: [&(dyn ToSql + Sync); 1] = [&unfiltered];
        let (row, dead, deletes, audited) = link
            .call("counting for metrics", 8, Place::Own, async {
                tokio::try_join!(
                    client.query_one(&self.numbers, &parameters),
                    client.query(&self.dead, &[]),
                    client.query(&self.deletes, &asked),
                    client.query(&self.audited, &[])
                )
            })
            .await?;
        if let Some(id) = row.get(2) {
            self.oldest.store(id, Ordering::Relaxed);
        }
        let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
        let age = |at: usize| {
            row.get::<_, Option<f64>>(at)
                .map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default())
        };
        let by_name: HashMap<&str, SyncId> = syncs
            .values()
            .map(|sync| (sync.name.as_str(), sync.id))
            .collect();
        Ok(Gauges {
            schema_version: row.get::<_, Option<i32>>(7).unwrap_or_default(),
            outbox_rows: count(0),
            outbox_dead_rows: count(1),
            oldest_age: age(3),
            claims: count(4),
            notify_queue_usage: row.get(5),
            deletes: deletes::facts(&deletes, |name| by_name.get(name).copied()),
            audited: audited
                .iter()
                .filter_map(|row| Some((*by_name.get(row.get::<_, &str>(0))?, row.get(1))))
                .collect(),
            oldest_transaction_age: age(6),
            dead_letters: dead
                .iter()
                .filter_map(|row| {
                    let sync = *by_name.get(row.get::<_, &str>(0))?;
                    Some((
                        sync,
                        row.get(1),
                        u64::try_from(row.get::<_, i64>(2)).unwrap_or(0),
                    ))
                })
                .collect(),
        })
    }
}
