//! A connection that compares: walks tables and reads documents as the leader does, and sees which
//! keys wait. It takes no lease, and bears a leader beside it. For a leader it puts the keys that
//! drifted into the outbox, fenced by the epoch.
//!
//! The leader compares on a connection of its own, not on one of its session: the fetch takes those
//! for sessions that never insert into the outbox.

use std::pin::pin;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use tokio_postgres::types::ToSql;

use super::claim::{Claims, Reader};
use super::error::{Error, Place};
use super::key_bytes::{Raw, Via, undecodable};
use super::link::{Link, Role};
use super::readers::Readers;
use super::session::Row;
use super::{Settings, SyncSource, installation, schema};
use crate::change::owner::{Installation, Ownership};
use crate::change::{DraftValue, Epoch, KV_VALUE_MAX_BYTES, Key};
use crate::ledger::{ClaimRequest, Walked};

/// Bytes of documents held at once.
const READ_MAX_BYTES: usize = 8 << 20;
/// Keys asked for in one statement.
const AGAIN_MAX: usize = 5_000;
/// An epoch that no lease has. Reads do not look at it, and a write would be refused.
const NO_EPOCH: Epoch = Epoch(-1);

/// One snapshot, so that a key on its way from the outbox into a claim shows in one of them. A row
/// without a key stands for every key, and so does a marker that names none.
const PENDING: &str = "\
    select {key} from (
      select (case when jsonb_typeof(key) = 'object' and key->'md5' is null then key->'again'
          else key end)::text as text
        from pg2kv.outbox where sync = $1
      union all select unnest(keys) from pg2kv.claim where sync = $1
      union all select null::text from pg2kv.backfill where sync = $1
      union all select null::text from pg2kv.sync where name = $1 and backfilled_at is null
    ) as k where k.text is null or octet_length(k.text) <= 65536";

/// How many keys that is at the most: a key counts as often as it stands there.
const WAITING: &str = "\
    select (select count(*) from pg2kv.outbox where sync = $1)
      + (select coalesce(sum(cardinality(keys)), 0)::bigint from pg2kv.claim where sync = $1)";

/// Keys to be written again; a NULL among them is all keys.
const AGAIN: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    asked as (
      insert into pg2kv.outbox (sync, key)
      select $2::text, case when u.key is not null then jsonb_build_object('again', u.key::jsonb) end
      from fence, unnest($3::text[]) as u(key)
    )
    select exists (select from fence)";

/// What became owed for another reason meanwhile stays owed.
const AUDITED: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    noted as (
      update pg2kv.sync set audited_at = clock_timestamp(),
        audit_owed = case when audit_owed <> $3::text then audit_owed end
      where name = $2::text and exists (select from fence)
    )
    select exists (select from fence)";

const LETTERS: &str = "select {key} from (
      select key::text as text from pg2kv.dead_letter where sync = $1) as k";

/// A connection that compares. See the module.
pub struct Auditor {
    link: Arc<Link>,
    readers: Readers,
    settings: Settings,
    installation: Installation,
}

impl Auditor {
    /// Connects.
    ///
    /// # Errors
    /// As for any connection; there is no schema.
    pub async fn connect(settings: &Settings) -> Result<Self, Error> {
        let link = Arc::new(Link::open(settings, Role::Background, None).await?);
        schema::require(&settings.schema, &link).await?;
        Ok(Self {
            readers: Readers::new(
                settings,
                Role::Bulk,
                &Arc::new(Claims::new(settings, Arc::clone(&link))),
            ),
            installation: installation::load(settings, &link).await?,
            link,
            settings: settings.clone(),
        })
    }

    /// Which pairs are the own ones of the sync of this name.
    pub fn ownership(&self, sync: &str) -> Ownership {
        self.installation.of_sync(sync)
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
        self.readers.of(sync).await?.walk(sync, after, limit).await
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
        self.readers.of(sync).await?.keys_of(sync, columns).await
    }

    /// Reads a few of the keys, from the first on: as many as fit a limit, at least one. `None`
    /// stands for a row whose expression fails.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Relation`.
    pub async fn read(&self, sync: &SyncSource, keys: &[Key]) -> Result<Vec<Option<Row>>, Error> {
        let reader = self.readers.of(sync).await?;
        self.read_by(&reader, sync, keys).await
    }

    pub(super) async fn read_by(
        &self,
        reader: &Reader,
        sync: &SyncSource,
        keys: &[Key],
    ) -> Result<Vec<Option<Row>>, Error> {
        let (mut count, mut max_bytes) = (keys.len(), READ_MAX_BYTES);
        loop {
            let request = ClaimRequest {
                sync: sync.id,
                keys: keys[..count].to_vec(),
                claim: Vec::new(),
                ids: Vec::new(),
                backfill: None,
                max_bytes,
            };
            match reader.prepare(NO_EPOCH, sync, &request, &|row| row).await {
                Ok(claimed) => {
                    // One that the read had no room for is read by itself.
                    let large = |row: &Row| {
                        let value = row.draft.as_ref().map(|draft| &draft.value);
                        matches!(value, Some(DraftValue::TooLarge { bytes, .. })
                            if *bytes <= KV_VALUE_MAX_BYTES as u64)
                    };
                    let mut rows: Vec<Row> = claimed.rows;
                    let first = rows.iter().position(large);
                    match first {
                        Some(0) if max_bytes < KV_VALUE_MAX_BYTES => {
                            (count, max_bytes) = (1, KV_VALUE_MAX_BYTES);
                            continue;
                        }
                        Some(at) => rows.truncate(at.max(1)),
                        None => {}
                    }
                    return Ok(rows.into_iter().map(Some).collect());
                }
                Err(failed) if !failed.error.is_of_rows() => return Err(failed.error),
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

    /// How many changes of the sync stand in the outbox or in a claim.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`.
    pub async fn waiting(&self, sync: &SyncSource) -> Result<u64, Error> {
        let sql = self.settings.sql(WAITING);
        let of: [&(dyn ToSql + Sync); 1] = [&sync.name];
        let row = self.link.client().query_one(&sql, &of);
        let row = self
            .link
            .call("counting what waits", 2, Place::Own, row)
            .await?;
        Ok(row.get::<_, i64>(0).unsigned_abs())
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

    pub(super) fn readers(&self) -> &Readers {
        &self.readers
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Has the leader of this epoch write these keys again, whatever it remembers. It is to fetch
    /// by itself: the bell does not ring.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn write_again(
        &self,
        epoch: Epoch,
        sync: &SyncSource,
        keys: &[Key],
    ) -> Result<(), Error> {
        for chunk in keys.chunks(AGAIN_MAX) {
            let keys = chunk.iter().map(|key| Some(key.as_str())).collect();
            self.ask_again(epoch, sync, keys).await?;
        }
        Ok(())
    }

    /// The same for every key of the sync.
    ///
    /// # Errors
    /// The same.
    pub async fn write_all_again(&self, epoch: Epoch, sync: &SyncSource) -> Result<(), Error> {
        self.ask_again(epoch, sync, vec![None]).await
    }

    async fn ask_again(
        &self,
        epoch: Epoch,
        sync: &SyncSource,
        keys: Vec<Option<&str>>,
    ) -> Result<(), Error> {
        let doing = "asking for keys to be written again";
        self.fenced(doing, AGAIN, &[&epoch.0, &sync.name, &keys])
            .await
    }

    /// Notes that the sync was compared, for this reason.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn audited(
        &self,
        epoch: Epoch,
        sync: &SyncSource,
        reason: &str,
    ) -> Result<(), Error> {
        let doing = "noting a comparison";
        self.fenced(doing, AUDITED, &[&epoch.0, &sync.name, &reason])
            .await
    }

    pub(super) async fn fenced(
        &self,
        doing: &str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<(), Error> {
        let sql = self.settings.sql(sql);
        let query = self.link.client().query_one(&sql, parameters);
        let row = self.link.call(doing, 2, Place::Own, query).await?;
        if row.get(0) {
            Ok(())
        } else {
            Err(Error::fenced(doing))
        }
    }

    /// Streams keys; returns whether a row without a key was among them.
    async fn keys(
        &self,
        doing: &str,
        sql: &str,
        sync: &SyncSource,
        mut tell: impl FnMut(&str),
    ) -> Result<bool, Error> {
        let encoding = self.link.encoding();
        let sql = self
            .settings
            .sql(&sql.replace("{key}", &encoding.raw("k.text")));
        let mut unknown = Vec::new();
        let every = self
            .link
            .call(doing, 2, Place::Own, async {
                let rows = self.link.client().query_raw(&sql, [&sync.name]).await?;
                let mut rows = pin!(rows);
                let mut every = false;
                while let Some(row) = rows.try_next().await? {
                    match Raw::at(&row, 0)? {
                        Some(key) => match encoding.text(key) {
                            Some(key) => tell(key),
                            None => unknown.push(key.to_vec()),
                        },
                        None => every = true,
                    }
                }
                Ok(every)
            })
            .await?;
        let texts = encoding
            .texts(Via::Own(&self.link), unknown.clone())
            .await?;
        for (bytes, text) in unknown.iter().zip(texts) {
            match text {
                Some(key) => tell(&key),
                None => tell(undecodable(bytes).as_str()),
            }
        }
        Ok(every)
    }
}
