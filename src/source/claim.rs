//! Claims, and the read that follows each.
//!
//! **Invariant:** rows are read in a snapshot that is taken after the fetch which brought their keys,
//! and a claim takes away those rows of the outbox only that this fetch has seen. So a change that the
//! read does not see has an outbox row of its own, whichever of claim and read ends first. Nothing is
//! sent to KV before both have.
//!
//! They go over two connections at the same time. One that has read tables of users writes nothing
//! ([`ReadLink`]), and a claim that waits for the disk does not keep the read waiting.
//!
//! The claim is one statement that begins with the fence: it holds the lease's row against a takeover
//! while it runs, and does nothing where the epoch is over.

mod read;
mod walk;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::sync::{Mutex, OnceCell};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

use self::read::Room;
use super::error::{Error, Kind, Place};
use super::link::{Link, ReadLink};
use super::rows::Plan;
use super::runs::runs;
use super::session::{Claimed, PrepareError, Row};
use super::{Settings, SyncSource};
use crate::change::{ClaimId, Epoch, Key, OutboxId, SyncId};
use crate::ledger::{BackfillStep, ClaimRequest};

/// `$2` and `$9` are the runs of the outbox rows to delete. `$5` is the step of a backfill: none, rows, keys, enter
/// or done.
const CLAIM: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    gone as materialized (select pg2kv.take($2::int8[], $9::int8[]) as at from fence),
    claimed as (
      insert into pg2kv.claim (epoch, sync, keys)
      select $1, $3::text, $4::text[] from fence where cardinality($4::text[]) > 0
      returning id
    ),
    moved as (
      update pg2kv.backfill as b set
        phase = case when $5::text = 'rows' then 'rows' else 'keys' end,
        position = case when $5 = 'rows' then $6::text::jsonb else b.position end,
        cursor = case when $5 = 'rows' then b.cursor else $7::text end,
        done = coalesce($8::int8, b.done),
        rows = case when $5 = 'enter' then $8 else b.rows end,
        updated_at = clock_timestamp()
      where b.sync = $3 and $5 = any ('{rows,keys,enter}'::text[]) and exists (select from fence)
    ),
    outdated as (
      -- Each key that has a row or a pair was looked at since; these have neither.
      delete from pg2kv.dead_letter as d using pg2kv.backfill as b
      where b.sync = $3 and d.sync = $3 and d.at < b.started_at and $5 = 'done'
        and exists (select from fence)
    ),
    finished as (
      delete from pg2kv.backfill as b
      where b.sync = $3 and $5 = 'done' and exists (select from fence)
    ),
    remembered as (
      update pg2kv.sync as s set backfilled_at = clock_timestamp(),
        keys_estimate = coalesce(
          (select b.rows from pg2kv.backfill as b where b.sync = $3), s.keys_estimate)
      where s.name = $3 and $5 = 'done' and exists (select from fence)
        -- A fault of the triggers since it began: what it missed is still owed.
        and (s.backfilled_at = '-infinity') is not true
    )
    select exists (select from fence), (select id from claimed), (select at from gone)";

/// Claims over a connection to our own tables, for any number of readers.
pub(crate) struct Claims {
    link: Arc<Link>,
    sql: String,
    claim: OnceCell<Statement>,
}

/// A connection that reads tables of one owner.
pub(crate) struct Reader {
    settings: Settings,
    claims: Arc<Claims>,
    link: Arc<ReadLink>,
    plans: Mutex<HashMap<SyncId, Arc<Prepared>>>,
    ahead: Mutex<walk::Ahead>,
}

struct Prepared {
    plan: Plan,
    /// Bytes of a document as seen lately: how many rows are asked for at once.
    row_bytes: AtomicU64,
}

impl Claims {
    pub(crate) fn new(settings: &Settings, link: Arc<Link>) -> Self {
        Self {
            link,
            sql: settings.sql(CLAIM),
            claim: OnceCell::new(),
        }
    }

    /// The statement; prepared now, if it was not.
    pub(crate) async fn statement(&self) -> Result<&Statement, Error> {
        let prepare = || async {
            let prepared = self.link.client().prepare(&self.sql);
            self.link
                .call("preparing to claim", 2, Place::Own, prepared)
                .await
        };
        self.claim.get_or_try_init(prepare).await
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// See `Session::advance_backfill`.
    pub(crate) async fn advance(
        &self,
        epoch: Epoch,
        sync: &SyncSource,
        to: &BackfillStep,
    ) -> Result<(), Error> {
        self.write("moving a backfill on", epoch, sync, &[], &[], Some(to))
            .await
            .map(drop)
    }

    async fn write(
        &self,
        doing: &str,
        epoch: Epoch,
        sync: &SyncSource,
        keys: &[&str],
        ids: &[OutboxId],
        step: Option<&BackfillStep>,
    ) -> Result<Option<ClaimId>, Error> {
        let (low, high) = runs(ids.iter().copied());
        let (step, position, cursor, done) = match step {
            None => ("none", None, None, None),
            Some(BackfillStep::Rows { position, done }) => {
                ("rows", Some(position.as_str()), None, Some(*done))
            }
            Some(BackfillStep::Keys { cursor, done }) => {
                ("keys", None, Some(cursor.as_str()), Some(*done))
            }
            Some(BackfillStep::EnterKeys { done }) => ("enter", None, None, Some(*done)),
            Some(BackfillStep::Done) => ("done", None, None, None),
        };
        let done = done.map(|done| i64::try_from(done).unwrap_or(i64::MAX));
        let parameters: [&(dyn ToSql + Sync); 9] = [
            &epoch.0, &low, &sync.name, &keys, &step, &position, &cursor, &done, &high,
        ];
        let claim = self.statement().await?;
        let row = self.link.client().query_one(claim, &parameters);
        let row = self.link.call(doing, 1, Place::Own, row).await?;
        if row.get(0) {
            Ok(row.get::<_, Option<i64>>(1).map(ClaimId))
        } else {
            Err(Error::fenced(doing))
        }
    }
}

impl Reader {
    pub(crate) fn new(settings: &Settings, claims: Arc<Claims>, link: Arc<ReadLink>) -> Self {
        Self {
            settings: settings.clone(),
            claims,
            link,
            plans: Mutex::default(),
            ahead: Mutex::default(),
        }
    }

    /// Another reader over the same connections, which knows no sync yet.
    pub(crate) fn another(&self) -> Self {
        Self::new(
            &self.settings,
            Arc::clone(&self.claims),
            Arc::clone(&self.link),
        )
    }

    pub(crate) fn link(&self) -> &Arc<ReadLink> {
        &self.link
    }

    /// Prepares the statements of a sync, so that its first read does not wait for that.
    pub(crate) async fn warm(&self, sync: &SyncSource) -> Result<(), Error> {
        self.plan(sync).await.map(drop)
    }

    async fn plan(&self, sync: &SyncSource) -> Result<Arc<Prepared>, Error> {
        let mut plans = self.plans.lock().await;
        if let Some(plan) = plans.get(&sync.id) {
            return Ok(plan.clone());
        }
        let plan = Box::pin(Plan::prepare(&self.settings, &self.link, sync)).await?;
        let row_bytes = AtomicU64::new(plan.row_bytes);
        let prepared = Arc::new(Prepared { plan, row_bytes });
        plans.insert(sync.id, prepared.clone());
        Ok(prepared)
    }

    /// Whether a row or the relation is at fault: the statement without rows fails for the relation's
    /// reason only. Then it may have changed, and the catalog is read again next time.
    async fn blame(&self, prepared: &Prepared, sync: &SyncSource, error: Error) -> Error {
        let error = if error.is_of_rows() {
            match prepared.plan.try_out(&self.link, sync).await {
                Ok(()) => error,
                Err(proof) => proof,
            }
        } else {
            error
        };
        if error.kind() == Kind::Relation {
            self.plans.lock().await.remove(&sync.id);
        }
        error
    }

    /// See `Session::prepare_with`.
    pub(crate) async fn prepare<T>(
        &self,
        epoch: Epoch,
        sync: &SyncSource,
        request: &ClaimRequest,
        make: &(impl Fn(Row) -> T + Sync),
    ) -> Result<Claimed<T>, PrepareError> {
        let prepared = self
            .plan(sync)
            .await
            .map_err(|error| PrepareError { claim: None, error })?;
        let keys: Vec<&str> = request.keys.iter().map(Key::as_str).collect();
        let first = prepared.chunk(keys.len(), request.max_bytes);
        let room = Room {
            bytes: request.max_bytes,
            value: request.max_bytes,
        };
        // What a walk found is a stretch of the index, whatever of it is under way already.
        let walked = matches!(
            request.backfill,
            Some(BackfillStep::Rows { .. } | BackfillStep::EnterKeys { .. })
        );
        let (claimed, read) = tokio::join!(
            biased;
            Box::pin(self.claim(epoch, sync, request)),
            Box::pin(self.read(&prepared, sync, &keys[..first], walked, room, make)),
        );
        let claim = claimed.map_err(|error| PrepareError { claim: None, error })?;
        let mut read = match read {
            Ok(read) => read,
            Err(error) => {
                let error = self.blame(&prepared, sync, error).await;
                return Err(PrepareError { claim, error });
            }
        };
        prepared.learn(&read);
        while !read.full && read.rows.len() < keys.len() && read.bytes < request.max_bytes {
            let from = read.rows.len();
            let room = Room {
                bytes: request.max_bytes - read.bytes,
                ..room
            };
            let to = from + prepared.chunk(keys.len() - from, room.bytes);
            let next = self.read(&prepared, sync, &keys[from..to], walked, room, make);
            let next = match Box::pin(next).await {
                Ok(next) => next,
                Err(error) => {
                    let error = self.blame(&prepared, sync, error).await;
                    return Err(PrepareError { claim, error });
                }
            };
            prepared.learn(&next);
            // The first row of a read comes whatever its size; here it must fit.
            if next.bytes > room.bytes {
                break;
            }
            read.rows.extend(next.rows);
            read.bytes += next.bytes;
            read.full = next.full;
        }
        self.walk_ahead(sync, request).await;
        Ok(Claimed {
            claim,
            rows: read.rows,
        })
    }

    /// The claim, its outbox rows and the backfill's progress in one transaction, where any is due.
    async fn claim(
        &self,
        epoch: Epoch,
        sync: &SyncSource,
        request: &ClaimRequest,
    ) -> Result<Option<ClaimId>, Error> {
        if request.claim.is_empty() && request.ids.is_empty() && request.backfill.is_none() {
            return Ok(None);
        }
        let keys: Vec<&str> = request
            .claim
            .iter()
            .filter_map(|at| request.keys.get(*at))
            .map(Key::as_str)
            .collect();
        let (ids, step) = (&request.ids, request.backfill.as_ref());
        let doing = format!("claiming keys of sync {}", sync.name);
        self.claims
            .write(&doing, epoch, sync, &keys, ids, step)
            .await
    }

    /// See `Session::keys_of`.
    pub(crate) async fn keys_of(
        &self,
        sync: &SyncSource,
        columns: &[Vec<String>],
    ) -> Result<Vec<Option<Key>>, Error> {
        let prepared = self.plan(sync).await?;
        let doing = format!("making keys of names for sync {}", sync.name);
        let mut keys = vec![None; columns.len()];
        let mut parts = Vec::new();
        parts.push(0..columns.len());
        while let Some(part) = parts.pop() {
            let texts: Vec<String> = columns[part.clone()]
                .iter()
                .map(|values| json_array(values))
                .collect();
            let parameters: [&(dyn ToSql + Sync); 1] = [&texts];
            let query = self.link.client().query(&prepared.plan.keys, &parameters);
            match self.link.read(&doing, 1, Place::Rows, query).await {
                Ok(rows) => {
                    for (key, row) in keys[part].iter_mut().zip(&rows) {
                        *key = row.get::<_, Option<&str>>(0).map(Key::new);
                    }
                }
                Err(error) if !error.is_of_rows() => return Err(error),
                Err(error) => {
                    if part.len() == columns.len() {
                        self.try_keys(&prepared, &doing).await?;
                    }
                    let middle = part.start + part.len() / 2;
                    match part.len() {
                        // A name whose text is no value of the column's type was not made of a row.
                        0 | 1 if error.kind() == Kind::Row => {}
                        0 | 1 => return Err(error),
                        _ => parts.extend([part.start..middle, middle..part.end]),
                    }
                }
            }
        }
        Ok(keys)
    }

    /// Making keys of no names fails only if the types are not what they were.
    async fn try_keys(&self, prepared: &Prepared, doing: &str) -> Result<(), Error> {
        let none: [&str; 0] = [];
        let none = none.as_slice();
        let parameters: [&(dyn ToSql + Sync); 1] = [&none];
        let query = self.link.client().query(&prepared.plan.keys, &parameters);
        let found = self.link.read(doing, 1, Place::Relation, query).await;
        found.map(drop).map_err(|error| match error.kind() {
            Kind::Row => error.into_kind(Kind::Relation),
            _ => error,
        })
    }

    /// Whether a walk that has come to `position` has `key` still ahead of it.
    pub(crate) async fn is_ahead(
        &self,
        sync: &SyncSource,
        position: &str,
        key: &Key,
    ) -> Result<bool, Error> {
        let prepared = self.plan(sync).await?;
        let key = key.as_str();
        let parameters: [&(dyn ToSql + Sync); 2] = [&position, &key];
        let client = self.link.client();
        let row = client.query_one(&prepared.plan.ahead, &parameters);
        let doing = "comparing a key with the position of a backfill";
        let row = self.link.read(doing, 2, Place::Rows, row).await?;
        Ok(row.get::<_, Option<bool>>(0).unwrap_or(true))
    }
}

/// Texts as a JSON array, as the statements take a name's columns.
fn json_array(values: &[String]) -> String {
    serde_json::Value::from(values).to_string()
}
