//! What a new leader loads: claims, backfills, and whether this is still the same database.
//!
//! Owns the identity guard. Keeps nothing itself.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::configured;
use super::deletes::{self, FACTS};
use super::error::{Error, Place};
use super::link::Link;
use super::session::{Identity, Recovered};
use super::{Settings, SyncSource, installation};
use crate::change::{ClaimId, Epoch, Key, SyncId};
use crate::ledger::{AuditFacts, Backfill, BackfillPhase};

/// The timeline of the log that is being written, not of the last checkpoint, which comes later.
const IDENTITY: &str = "\
    select (select system_identifier::text from pg_control_system()),
      ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int4,
      oid::int8
    from pg_database where datname = current_database()";

/// Stores who we are, and, where that changed, begins a walk of each configured sync, after which it
/// is compared with KV; all others count as never walked, for when they are configured again. One
/// transaction: either all or none.
const ADOPT: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    before as (select identity from pg2kv.meta),
    verdict as (
      select identity is not null and identity <> $2::text::jsonb as changed from before
    ),
    stored as (
      update pg2kv.meta set identity = $2::text::jsonb
      where (identity = $2::text::jsonb) is not true and exists (select from fence)
    ),
    begun as (
      insert into pg2kv.backfill as b (sync, reason, phase)
      select s.name, 'identity', 'rows' from fence, verdict, unnest($3::text[]) as s(name)
      where verdict.changed
      on conflict (sync) do update set reason = excluded.reason, phase = 'rows', position = null,
        cursor = null, done = 0, rows = null, started_at = clock_timestamp(), updated_at = clock_timestamp()
    ),
    forgotten as (
      update pg2kv.sync set audit_owed = 'identity',
        backfilled_at = case when backfilled_at = '-infinity' then backfilled_at end
      where (select changed from verdict) and exists (select from fence)
    )
    select exists (select from fence), (select changed from verdict)";

const CLAIMS: &str = "select id, sync, keys from pg2kv.claim order by id";

const BACKFILLS: &str = "\
    select sync, reason, phase, position::text, cursor, done, estimate from pg2kv.backfill \
    order by started_at";

const DEAD: &str = "select sync, count(*) from pg2kv.dead_letter group by sync";

const NEW: &str = "\
    select name from pg2kv.sync as s where backfilled_at is null
      and not exists (select from pg2kv.backfill as b where b.sync = s.name)";

/// A sync that was never compared counts from when it was watched.
const AUDITS: &str = "\
    select name, extract(epoch from clock_timestamp() - coalesce(audited_at, created_at))::float8,
      audit_owed
    from pg2kv.sync";

/// See `Session::open`.
pub(crate) async fn load(
    settings: &Settings,
    link: &Link,
    syncs: &[SyncSource],
    epoch: Epoch,
) -> Result<Recovered, Error> {
    let identity = identity(link).await?;
    let identity_changed = adopt(settings, link, syncs, epoch, &identity).await?;
    // Before the rest: it may make a comparison owed.
    let adopted = configured::adopt(settings, link, syncs, epoch).await?;

    let not_looked_at = installation::not_looked_at(settings, link, syncs).await?;
    let doing = "loading what the leader before left";
    let ids: HashMap<&str, SyncId> = syncs
        .iter()
        .map(|sync| (sync.name.as_str(), sync.id))
        .collect();
    let (claims, backfills) = (settings.sql(CLAIMS), settings.sql(BACKFILLS));
    let (dead, new) = (settings.sql(DEAD), settings.sql(NEW));
    let (facts, unfiltered) = (settings.sql(FACTS), deletes::unfiltered(syncs.iter()));
    let unfiltered: [&(dyn ToSql + Sync); 1] = [&unfiltered];
    let client = link.client();
    let audits = settings.sql(AUDITS);
    let (claims, backfills, dead, new, facts, audits) = link
        .call(doing, 12, Place::Own, async {
            tokio::try_join!(
                client.query(&claims, &[]),
                client.query(&backfills, &[]),
                client.query(&dead, &[]),
                client.query(&new, &[]),
                client.query(&facts, &unfiltered),
                client.query(&audits, &[]),
            )
        })
        .await?;
    // Rows of syncs that are not configured stay where they are.
    let sync_of = |name: &str| ids.get(name).copied();
    Ok(Recovered {
        claims: claims
            .iter()
            .filter_map(|row| {
                let keys = row
                    .get::<_, Vec<&str>>(2)
                    .into_iter()
                    .map(Key::new)
                    .collect();
                Some((ClaimId(row.get(0)), sync_of(row.get(1))?, keys))
            })
            .collect(),
        backfills: backfills
            .iter()
            .filter_map(|row| {
                Some(Backfill {
                    sync: sync_of(row.get(0))?,
                    reason: row.get(1),
                    phase: if row.get::<_, &str>(2) == "rows" {
                        BackfillPhase::Rows
                    } else {
                        BackfillPhase::Keys
                    },
                    position: row.get(3),
                    cursor: row.get(4),
                    done: u64::try_from(row.get::<_, i64>(5)).unwrap_or(0),
                    estimate: row
                        .get::<_, Option<i64>>(6)
                        .and_then(|estimate| u64::try_from(estimate).ok()),
                })
            })
            .collect(),
        dead: dead
            .iter()
            .filter_map(|row| {
                Some((
                    sync_of(row.get(0))?,
                    u64::try_from(row.get::<_, i64>(1)).unwrap_or(0),
                ))
            })
            .collect(),
        identity,
        identity_changed,
        changed: adopted.changed,
        retired: adopted.retired,
        unsure: adopted.unsure,
        not_looked_at,
        new_syncs: new.iter().filter_map(|row| sync_of(row.get(0))).collect(),
        deletes: deletes::facts(&facts, sync_of),
        audits: audits
            .iter()
            .filter_map(|row| {
                Some(AuditFacts {
                    sync: sync_of(row.get(0))?,
                    // Negative where the server's clock was set back.
                    age: Duration::try_from_secs_f64(row.get(1)).unwrap_or_default(),
                    owed: row.get(2),
                })
            })
            .collect(),
    })
}

async fn identity(link: &Link) -> Result<Identity, Error> {
    let doing = "asking which database this is";
    let row = link
        .call(doing, 2, Place::Own, link.client().query_one(IDENTITY, &[]))
        .await?;
    Ok(Identity {
        system_identifier: row.get(0),
        timeline: row.get::<_, i32>(1).cast_unsigned(),
        database: u32::try_from(row.get::<_, i64>(2)).unwrap_or(0),
    })
}

async fn adopt(
    settings: &Settings,
    link: &Link,
    syncs: &[SyncSource],
    epoch: Epoch,
    identity: &Identity,
) -> Result<bool, Error> {
    let doing = "storing which database this is";
    let names: Vec<&str> = syncs.iter().map(|sync| sync.name.as_str()).collect();
    let text = serde_json::json!({
        "system_identifier": identity.system_identifier,
        "timeline": identity.timeline,
        "database": identity.database,
    })
    .to_string();
    let sql = settings.sql(ADOPT);
    let row = link
        .call(
            doing,
            2,
            Place::Own,
            link.client().query_one(&sql, &[&epoch.0, &text, &names]),
        )
        .await?;
    if row.get(0) {
        Ok(row.get::<_, Option<bool>>(1).unwrap_or(false))
    } else {
        Err(Error::fenced(doing))
    }
}
