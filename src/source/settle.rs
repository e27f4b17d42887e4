//! Settling claims, and beginning backfills.
//!
//! Each is one statement that begins with the fence, as in `claim`. What a key's end was is decided
//! elsewhere; here it is only written down.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Statement;

use super::deletes;
use super::error::{Error, Place};
use super::link::Link;
use super::triggers::{JUDGED, key_json, related_json};
use super::{Settings, SyncSource};
use crate::change::{Epoch, KvName, OutboxId, SyncId};
use crate::ledger::{Backfill, BackfillPhase, SettleRequest};

const SETTLE: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    gone as (
      delete from pg2kv.claim as c using unnest($2::int8[]) as u(id)
      where c.id = u.id and exists (select from fence)
    ),
    cleared as (
      delete from pg2kv.dead_letter as d using unnest($3::text[], $4::text[]) as u(sync, key)
      where d.sync = u.sync and md5(d.key::text) = md5(u.key::jsonb::text)
        and exists (select from fence)
    ),
    dead as (
      insert into pg2kv.dead_letter as d (sync, key, kv_key, reason, detail)
      select u.sync, u.key::jsonb, u.kv_key, u.reason, u.detail
      from fence, unnest($5::text[], $6::text[], $7::text[], $8::text[], $9::text[])
        as u(sync, key, kv_key, reason, detail)
      on conflict (sync, (md5(key::text))) do update set kv_key = excluded.kv_key,
        reason = excluded.reason, detail = excluded.detail, at = clock_timestamp()
    ),
    deleted as (
      update pg2kv.sync as s set deletes_lately = jsonb_build_object(
        'at', extract(epoch from clock_timestamp()), 'pairs', u.pairs::jsonb)
      from unnest($10::text[], $11::text[]) as u(sync, pairs)
      where s.name = u.sync and exists (select from fence)
    )
    select exists (select from fence)";

/// Partitions are summed up: the estimate of a partitioned table itself is often missing.
///
/// It goes on after `wanted` and `judged`. What was owed after a fault of the triggers is paid only
/// by a walk that begins after the fault.
const START_BACKFILL: &str = "\
    fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    gone as materialized (select pg2kv.take($4::int8[], $4::int8[]) as at from fence),
    begun as (
      insert into pg2kv.backfill as b (sync, reason, phase, estimate)
      select $2::text, $3::text, 'rows', (
        select sum(c.reltuples)::int8 from pg2kv.sync as s
        cross join lateral pg2kv.tables_of(s.relation) as r(oid)
        join pg_class as c on c.oid = r.oid
        where s.name = $2 and c.reltuples > 0 and c.relkind <> 'p')
      from fence
      on conflict (sync) do update set reason = excluded.reason, phase = 'rows', position = null,
        cursor = null, done = 0, rows = null, estimate = excluded.estimate,
        started_at = clock_timestamp(), updated_at = clock_timestamp()
      returning estimate
    ),
    paid as (
      update pg2kv.sync as s set backfilled_at = null from judged as j
      where s.name = j.name and s.backfilled_at = '-infinity' and j.fault is null
        and exists (select from fence)
    )
    select exists (select from fence), (select estimate from begun), (select at from gone)";

/// The statements that end claims and begin backfills, on the control connection.
pub(crate) struct Settler {
    settle: Statement,
    start_backfill: Statement,
}

impl Settler {
    pub(crate) async fn open(settings: &Settings, link: &Link) -> Result<Self, Error> {
        let wanted = "wanted(name, relation, key, related) as (select $2::text, $5::text, $6::text, $7::text)";
        let start = format!("with {wanted}, judged as materialized ({JUDGED}), {START_BACKFILL}");
        let (settle, start) = (settings.sql(SETTLE), settings.sql(&start));
        let client = link.client();
        let (settle, start_backfill) = link
            .call("preparing to settle", 4, Place::Own, async {
                tokio::try_join!(client.prepare(&settle), client.prepare(&start))
            })
            .await?;
        Ok(Self {
            settle,
            start_backfill,
        })
    }

    /// See `Session::settle`.
    pub(crate) async fn settle(
        &self,
        link: &Link,
        epoch: Epoch,
        request: &SettleRequest,
        syncs: &HashMap<SyncId, SyncSource>,
    ) -> Result<(), Error> {
        let doing = "settling claims";
        let name = |id: &SyncId| syncs.get(id).map(|sync| sync.name.as_str());
        let claims: Vec<i64> = request.claims.iter().map(|claim| claim.0).collect();

        // One statement may touch a row once only: the last word on a key counts.
        let mut told = HashSet::new();
        let mut dead: [Vec<&str>; 4] = Default::default();
        let mut kv_names: Vec<Option<&str>> = Vec::new();
        let details: Vec<String> =
            // Text in Postgres holds no NUL.
            request.dead.iter().map(|letter| letter.poison.detail.replace('\0', "")).collect();
        for (letter, detail) in request.dead.iter().zip(&details).rev() {
            let Some(sync) = name(&letter.sync) else {
                continue;
            };
            if told.insert((letter.sync, &letter.key)) {
                dead[0].push(sync);
                dead[1].push(letter.key.as_str());
                dead[2].push(letter.poison.reason.as_str());
                dead[3].push(detail);
                kv_names.push(letter.poison.name.as_ref().map(KvName::as_str));
            }
        }
        let (cleared_syncs, cleared_keys): (Vec<&str>, Vec<&str>) = request
            .cleared
            .iter()
            .filter(|(sync, key)| !told.contains(&(*sync, key)))
            .filter_map(|(sync, key)| Some((name(sync)?, key.as_str())))
            .unzip();
        let (deleted_syncs, deleted): (Vec<&str>, Vec<String>) = request
            .deleted
            .iter()
            .filter_map(|(sync, lately)| Some((name(sync)?, deletes::lately_json(lately))))
            .unzip();
        let [dead_syncs, dead_keys, reasons, details] = dead;
        let row = link
            .call(
                doing,
                1,
                Place::Own,
                link.client().query_one(
                    &self.settle,
                    &[
                        &epoch.0,
                        &claims,
                        &cleared_syncs,
                        &cleared_keys,
                        &dead_syncs,
                        &dead_keys,
                        &kv_names,
                        &reasons,
                        &details,
                        &deleted_syncs,
                        &deleted,
                    ],
                ),
            )
            .await?;
        if row.get(0) {
            Ok(())
        } else {
            Err(Error::fenced(doing))
        }
    }

    /// See `Session::start_backfill`.
    pub(crate) async fn start_backfill(
        &self,
        link: &Link,
        epoch: Epoch,
        sync: &SyncSource,
        reason: &str,
        markers: &[OutboxId],
    ) -> Result<Backfill, Error> {
        let doing = "beginning a backfill";
        let markers: Vec<i64> = markers.iter().map(|id| id.0).collect();
        let row = link
            .call(
                doing,
                1,
                Place::Own,
                link.client().query_one(
                    &self.start_backfill,
                    &[
                        &epoch.0,
                        &sync.name,
                        &reason,
                        &markers,
                        &sync.table,
                        &key_json(sync),
                        &related_json(sync),
                    ],
                ),
            )
            .await?;
        if !row.get::<_, bool>(0) {
            return Err(Error::fenced(doing));
        }
        let estimate: Option<i64> = row.get(1);
        Ok(Backfill {
            sync: sync.id,
            reason: reason.to_owned(),
            phase: BackfillPhase::Rows,
            position: None,
            cursor: None,
            done: 0,
            estimate: estimate.and_then(|estimate| u64::try_from(estimate).ok()),
        })
    }
}
