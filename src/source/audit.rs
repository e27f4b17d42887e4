//! A connection that compares: walks tables and reads documents as the leader does, and sees which
//! keys wait. It takes no lease, writes nothing, and bears a leader beside it.

use std::pin::pin;
use std::sync::Arc;

use futures_util::TryStreamExt as _;

use super::claim::Reader;
use super::error::{Error, Kind, Place};
use super::link::{Link, Role};
use super::session::Row;
use super::{Settings, SyncSource, recover};
use crate::change::{Epoch, Key};
use crate::ledger::{ClaimRequest, Walked};

/// Bytes of documents held at once.
const READ_MAX_BYTES: usize = 8 << 20;
/// An epoch that no lease has. Reads do not look at it, and a write would be refused.
const NO_EPOCH: Epoch = Epoch(-1);

/// One snapshot, so that a key on its way from the outbox into a claim shows in one of them. A row
/// without a key stands for every key.
const PENDING: &str = "\
    select key::text from pg2kv.outbox where sync = $1
    union all select unnest(keys)::text from pg2kv.claim where sync = $1
    union all select null from pg2kv.backfill where sync = $1
    union all select null from pg2kv.sync where name = $1 and backfilled_at is null";

const LETTERS: &str = "select key::text from pg2kv.dead_letter where sync = $1";

/// A connection that compares. See the module.
pub struct Auditor {
    link: Arc<Link>,
    reader: Reader,
    settings: Settings,
}

impl Auditor {
    /// Connects.
    ///
    /// # Errors
    /// As for any connection; there is no schema.
    pub async fn connect(settings: &Settings) -> Result<Self, Error> {
        let link = Arc::new(Link::open(settings, Role::Bulk, None).await?);
        recover::require_schema(settings, &link).await?;
        Ok(Self {
            reader: Reader::open(settings, Arc::clone(&link)).await?,
            link,
            settings: settings.clone(),
        })
    }

    /// See [`Session::walk`](super::Session::walk).
    ///
    /// # Errors
    /// The same.
    pub async fn walk(
        &self,
        sync: &SyncSource,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Walked, Error> {
        self.reader.walk(sync, after, limit).await
    }

    /// See [`Session::keys_of`](super::Session::keys_of).
    ///
    /// # Errors
    /// The same.
    pub async fn keys_of(
        &self,
        sync: &SyncSource,
        columns: &[Vec<String>],
    ) -> Result<Vec<Option<Key>>, Error> {
        self.reader.keys_of(sync, columns).await
    }

    /// Reads a few of the keys, from the first on: as many as fit a limit, at least one. `None`
    /// stands for a row whose expression fails.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Relation`.
    pub async fn read(&self, sync: &SyncSource, keys: &[Key]) -> Result<Vec<Option<Row>>, Error> {
        self.read_by(&self.reader, sync, keys).await
    }

    pub(super) async fn read_by(
        &self,
        reader: &Reader,
        sync: &SyncSource,
        keys: &[Key],
    ) -> Result<Vec<Option<Row>>, Error> {
        let mut count = keys.len();
        loop {
            let request = ClaimRequest {
                sync: sync.id,
                keys: keys[..count].to_vec(),
                claim: Vec::new(),
                ids: Vec::new(),
                backfill: None,
                max_bytes: READ_MAX_BYTES,
            };
            match reader.prepare(NO_EPOCH, sync, &request).await {
                Ok(claimed) => return Ok(claimed.rows.into_iter().map(Some).collect()),
                Err(failed) if failed.error.kind() != Kind::Row => return Err(failed.error),
                Err(_) if count <= 1 => return Ok(vec![None]),
                // The row that fails is found by halving.
                Err(_) => count /= 2,
            }
        }
    }

    /// Tells each key of the sync that has a change in the outbox or stands in a claim. Returns
    /// whether every key waits: a walk was asked for, or is under way.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`.
    pub async fn pending(&self, sync: &SyncSource, tell: impl FnMut(&str)) -> Result<bool, Error> {
        self.keys("reading what waits", PENDING, sync, tell).await
    }

    /// Tells each key of the sync that has a dead letter.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`.
    pub async fn letters(&self, sync: &SyncSource, tell: impl FnMut(&str)) -> Result<(), Error> {
        self.keys("reading dead letters", LETTERS, sync, tell)
            .await
            .map(drop)
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    pub(super) fn reader(&self) -> &Reader {
        &self.reader
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Streams keys; returns whether a row without a key was among them.
    async fn keys(
        &self,
        doing: &str,
        sql: &str,
        sync: &SyncSource,
        mut tell: impl FnMut(&str),
    ) -> Result<bool, Error> {
        let sql = self.settings.sql(sql);
        self.link
            .call(doing, 2, Place::Own, async {
                let rows = self.link.client().query_raw(&sql, [&sync.name]).await?;
                let mut rows = pin!(rows);
                let mut every = false;
                while let Some(row) = rows.try_next().await? {
                    match row.try_get::<_, Option<&str>>(0)? {
                        Some(key) => tell(key),
                        None => every = true,
                    }
                }
                Ok(every)
            })
            .await
    }
}
