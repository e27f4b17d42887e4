//! What a leader asks of Postgres, one method each.
//!
//! Owns the working connections of one leadership. All methods take `&self` and may run at the same
//! time. After an error of kind `Connection` the session is of no more use: drop it, open another.
//!
//! Cancel-safety: a dropped call may still take effect on the server. Drop one only together with
//! the session.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::claim::Claims;
use super::doorbell::Doorbell;
use super::error::{Error, Kind, Place};
use super::expand::Expander;
use super::gauges::Watch;
use super::link::{Link, Role};
use super::outbox::Outbox;
use super::readers::Readers;
use super::settle::Settler;
use super::triggers::Examiner;
use super::{Settings, SyncSource, installation, recover, retired, schema};
use crate::change::owner::{Installation, Ownership};
use crate::change::{ClaimId, Draft, Epoch, Key, OutboxId, SyncId};
use crate::ledger::{
    AuditFacts, Backfill, BackfillStep, ClaimRequest, DeleteFacts, Examined, Expanded, FetchMode,
    Fetched, Marker, OldNames, Reconfigured, SettleRequest, Walked,
};

/// The connections of one leadership. See the module.
pub struct Session {
    control: Arc<Link>,
    /// Writes what need not be soon.
    background: Arc<Link>,
    work: Readers,
    bulk: Readers,
    outbox: Outbox,
    settler: Settler,
    watch: Watch,
    examiner: Examiner,
    expander: Expander,
    epoch: Epoch,
    syncs: HashMap<SyncId, SyncSource>,
    settings: Settings,
    installation: RwLock<Installation>,
}

/// What a claim and its read gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed<T = Row> {
    /// The claim, where one was asked for.
    pub claim: Option<ClaimId>,
    /// Rows in the order of the keys; shorter where `max_bytes` was reached: the rest was not read.
    pub rows: Vec<T>,
}

/// What Postgres says of one key.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// The key columns as canonical text (UTC, ISO dates, hexadecimal bytea).
    pub columns: Vec<String>,
    /// What the row makes; `None` where there is no such row, it is not published, or its value is
    /// NULL.
    pub draft: Option<Draft>,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.draft.as_ref().map(Draft::weight);
        write!(
            f,
            "Row({} columns, a draft of {bytes:?} bytes)",
            self.columns.len()
        )
    }
}

/// A claim or its read failed.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct PrepareError {
    /// The claim, where it was made though the read failed.
    pub claim: Option<ClaimId>,
    /// What failed.
    pub error: Error,
}

/// What a leader finds when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Claims of all epochs: each may have been written to KV, or may yet be.
    pub claims: Vec<(ClaimId, SyncId, Vec<Key>)>,
    /// Backfills under way.
    pub backfills: Vec<Backfill>,
    /// Dead letters of each sync that has some.
    pub dead: Vec<(SyncId, u64)>,
    /// Which database this is.
    pub identity: Identity,
    /// It is not the one that was seen last (failover, restore, upgrade): each configured sync has
    /// a backfill with reason `identity`.
    pub identity_changed: bool,
    /// Configured, watched, and never walked to the end.
    pub new_syncs: Vec<SyncId>,
    /// What is known about deletes of the watched syncs.
    pub deletes: Vec<DeleteFacts>,
    /// When each watched sync was last compared with KV.
    pub audits: Vec<AuditFacts>,
    /// Syncs whose configuration is another than before.
    pub changed: Vec<Reconfigured>,
    /// Names that are no longer made.
    pub retired: Vec<OldNames>,
    /// Deletes of such names by an earlier leader may still land.
    pub unsure: bool,
    /// Syncs whose names were not yet seen to be free of pairs of another installation.
    pub not_looked_at: Vec<SyncId>,
}

/// Which database this is: any change means that rows may have gone back in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of the cluster; a pg_upgrade or a new initdb changes it.
    pub system_identifier: String,
    /// Of the write-ahead log; a promotion or a point-in-time recovery changes it.
    pub timeline: u32,
    /// Of the database within the cluster; a restore into a new one changes it.
    pub database: u32,
}

/// Numbers for metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Version of the schema.
    pub schema_version: i32,
    /// Live rows of the outbox, as the server's statistics estimate.
    pub outbox_rows: u64,
    /// Dead rows of the outbox that vacuum has not removed, as the statistics estimate.
    pub outbox_dead_rows: u64,
    /// Age of the oldest row of the outbox.
    pub oldest_age: Option<Duration>,
    /// Claims.
    pub claims: u64,
    /// Dead letters by sync and reason.
    pub dead_letters: Vec<(SyncId, String, u64)>,
    /// Share of the server's notification queue that is full, 0 to 1.
    pub notify_queue_usage: f64,
    /// What is known about deletes of the watched syncs.
    pub deletes: Vec<DeleteFacts>,
    /// When each sync was last compared with KV, in seconds since 1970 by the server's clock; those
    /// that never were are missing.
    pub audited: Vec<(SyncId, f64)>,
    /// Age of the oldest open transaction that this role may see (all, with `pg_read_all_stats`).
    pub oldest_transaction_age: Option<Duration>,
}

impl Session {
    /// Connects, listens, then loads: whatever commits after the load rings or is fetched.
    ///
    /// A sync whose table cannot be read does not fail this; its reads will.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`, `Schema`; `Fenced` where `epoch` is over already.
    pub async fn open(
        settings: &Settings,
        syncs: &[SyncSource],
        epoch: Epoch,
    ) -> Result<(Self, Doorbell, Recovered), Error> {
        let doorbell = Doorbell::open(settings).await?;
        let (control, claim, background) = tokio::try_join!(
            Link::open(settings, Role::Control, None),
            Link::open(settings, Role::Claim, None),
            Link::open(settings, Role::Background, None),
        )?;
        let (control, claim) = (Arc::new(control), Arc::new(claim));
        let background = Arc::new(background);
        schema::require(&settings.schema, &control).await?;

        // Not the background connection: it writes to the outbox too, when it expands markers.
        let mut own = Vec::new();
        for link in [&control, &claim] {
            let row = link.client().query_one("select pg_backend_pid()", &[]);
            own.push(
                link.call("opening a session", 2, Place::Own, row)
                    .await?
                    .get(0),
            );
        }
        let by_name = syncs
            .iter()
            .map(|sync| (sync.name.clone(), sync.id))
            .collect();
        let outbox = Outbox::open(settings, &control, own, by_name).await?;
        let settler = Settler::open(settings, &control).await?;
        let watch = Watch::open(settings);
        let examiner = Examiner::open(settings);
        let expander = Expander::open(settings, &background).await?;
        let claims = Arc::new(Claims::new(settings, claim));
        let work = Readers::new(settings, Role::Work, &claims);
        let claims = Arc::new(Claims::new(settings, Arc::clone(&background)));
        let bulk = Readers::new(settings, Role::Bulk, &claims);
        tokio::try_join!(
            work.claims().statement(),
            bulk.claims().statement(),
            work.open_for(syncs),
            bulk.open_for(syncs),
        )?;
        // This only saves time later, and must not take it from the lease: nobody renews that yet.
        let until = Instant::now() + settings.lease_ttl / 4;
        for sync in syncs {
            for readers in [&work, &bulk] {
                if Instant::now() >= until {
                    break;
                }
                match readers.of(sync).await?.warm(sync).await {
                    Err(error) if matches!(error.kind(), Kind::Connection | Kind::Refused) => {
                        return Err(error);
                    }
                    // Told again, to the right sync, by the first read.
                    Ok(()) | Err(_) => {}
                }
            }
        }
        let installation = installation::load(settings, &control).await?;
        let recovered = recover::load(settings, &control, syncs, epoch).await?;
        let syncs = syncs.iter().map(|sync| (sync.id, sync.clone())).collect();
        let session = Self {
            control,
            background,
            work,
            bulk,
            outbox,
            settler,
            watch,
            examiner,
            expander,
            epoch,
            syncs,
            settings: settings.clone(),
            installation: RwLock::new(installation),
        };
        Ok((session, doorbell, recovered))
    }

    /// Number of the leadership.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Which pairs are the sync's own.
    ///
    /// # Errors
    /// `Relation` for a sync that is not of this session.
    pub fn ownership(&self, sync: SyncId) -> Result<Ownership, Error> {
        let name = &self.sync(sync)?.name;
        let installation = self.installation.read();
        Ok(installation
            .unwrap_or_else(PoisonError::into_inner)
            .of_sync(name))
    }

    /// Reads again which installation this is: somebody may have adopted another one.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`.
    pub async fn reload_installation(&self) -> Result<(), Error> {
        let fresh = installation::load(&self.settings, &self.background).await?;
        *self
            .installation
            .write()
            .unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Notes that no pair of another installation has a name of this sync. Fenced.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn note_free(&self, sync: SyncId) -> Result<(), Error> {
        let (link, sync) = (&self.background, self.sync(sync)?);
        installation::note_free(&self.settings, link, self.epoch, sync).await
    }

    /// Retires the names of a sync that none of its keys makes. Fenced.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn retire(&self, sync: SyncId) -> Result<Option<OldNames>, Error> {
        let (link, sync) = (&self.background, self.sync(sync)?);
        retired::retire(&self.settings, link, self.epoch, sync).await
    }

    /// Fetches up to `limit` new changes, and as many late ones.
    ///
    /// Never misses a change that commits late with a smaller id; returns none twice, unless
    /// hundreds of transactions are open at once. Rows that are dead or were returned cost nothing.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`.
    pub async fn fetch(&self, mode: FetchMode, limit: usize) -> Result<Fetched, Error> {
        self.outbox.fetch(&self.control, mode, limit).await
    }

    /// Claims keys in one synchronous, fenced transaction, and reads them meanwhile: one round trip.
    ///
    /// # Errors
    /// [`PrepareError`]; `Row` and `Relation` are about the read.
    pub async fn prepare(&self, request: &ClaimRequest) -> Result<Claimed, PrepareError> {
        self.prepare_with(request, |row| row).await
    }

    /// [`Self::prepare`] that makes something of each row as it comes, while the server goes on.
    ///
    /// # Errors
    /// The same.
    pub async fn prepare_with<T>(
        &self,
        request: &ClaimRequest,
        make: impl Fn(Row) -> T + Sync,
    ) -> Result<Claimed<T>, PrepareError> {
        let sync = self
            .sync(request.sync)
            .map_err(|error| PrepareError { claim: None, error })?;
        let reader = if request.backfill.is_some() {
            &self.bulk
        } else {
            &self.work
        };
        let reader = reader.of(sync).await;
        let reader = reader.map_err(|error| PrepareError { claim: None, error })?;
        reader.prepare(self.epoch, sync, request, &make).await
    }

    /// Ends claims, records dead letters and clears others: one fenced transaction.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn settle(&self, request: &SettleRequest) -> Result<(), Error> {
        self.settler
            .settle(&self.control, self.epoch, request, &self.syncs)
            .await
    }

    /// Deletes redundant outbox rows: of a key that keeps another one. Fenced.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn compact(&self, ids: &[OutboxId]) -> Result<(), Error> {
        self.outbox.compact(&self.control, self.epoch, ids).await
    }

    /// The next `limit` keys of published rows after `after`, in the order of the key's index.
    ///
    /// Where the filter fails for a row, keys of rows that are not published come too: reading them
    /// one by one finds the one that fails.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Relation`, `Row` (a position that does not fit the columns).
    pub async fn walk(
        &self,
        sync: SyncId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Walked, Error> {
        let sync = self.sync(sync)?;
        self.bulk.of(sync).await?.walk(sync, after, limit).await
    }

    /// Begins a backfill from the start, and deletes the outbox rows that asked for it: one fenced
    /// transaction.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn start_backfill(
        &self,
        sync: SyncId,
        reason: &str,
        markers: &[OutboxId],
    ) -> Result<Backfill, Error> {
        let sync = self.sync(sync)?;
        self.settler
            .start_backfill(&self.control, self.epoch, sync, reason, markers)
            .await
    }

    /// The keys of the texts that stand in names, one text for each key column; `None` for a text
    /// that is no value of its column's type.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Relation`.
    pub async fn keys_of(
        &self,
        sync: SyncId,
        columns: &[Vec<String>],
    ) -> Result<Vec<Option<Key>>, Error> {
        let sync = self.sync(sync)?;
        self.bulk.of(sync).await?.keys_of(sync, columns).await
    }

    /// Moves a backfill on where there is no key to claim. Fenced.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn advance_backfill(&self, sync: SyncId, to: &BackfillStep) -> Result<(), Error> {
        let claims = self.bulk.claims();
        claims.advance(self.epoch, self.sync(sync)?, to).await
    }

    /// Writes the next keys of each marker into the outbox, at most `limit` of each, and the markers'
    /// positions: one fenced transaction.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`; `Relation` where the related table is not
    /// configured or its columns cannot be read, `Row` for values that do not fit them.
    pub async fn expand(
        &self,
        sync: SyncId,
        markers: &[Marker],
        limit: usize,
    ) -> Result<Expanded, Error> {
        let sync = self.sync(sync)?;
        let reader = self.bulk.of(sync).await?;
        let links = (&**reader.link(), &*self.background);
        self.expander
            .expand(links, self.epoch, sync, markers, limit)
            .await
    }

    /// Notes for people how many keys of each sync wait for approval of their deletes. Fenced: after
    /// a takeover it does nothing.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`.
    pub async fn note_held(&self, held: &[(SyncId, Option<u64>)]) -> Result<(), Error> {
        self.watch
            .note_held(&self.background, self.epoch, held, &self.syncs)
            .await
    }

    /// Numbers for metrics.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`.
    pub async fn gauges(&self) -> Result<Gauges, Error> {
        self.watch.gauges(&self.background, &self.syncs).await
    }

    /// Looks whether the schema still serves this program and the triggers of each sync are as the
    /// configuration says, and notes for whoever leads next that a sync with a fault is to be walked
    /// once that is over. Fenced.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`, `Schema`.
    pub async fn examine(&self) -> Result<Vec<Examined>, Error> {
        let link = &self.background;
        // First: of a schema that it does not know this program could only misjudge the triggers.
        schema::require(&self.settings.schema, link).await?;
        self.examiner.examine(link, self.epoch, &self.syncs).await
    }

    /// Resolves when one of the working connections is gone.
    pub async fn closed(&self) {
        tokio::select! {
            () = self.control.closed() => {}
            () = self.background.closed() => {}
            () = self.work.claims().link().closed() => {}
            () = self.work.closed() => {}
            () = self.bulk.closed() => {}
        }
    }

    fn sync(&self, id: SyncId) -> Result<&SyncSource, Error> {
        self.syncs.get(&id).ok_or_else(|| {
            Error::new(
                Kind::Relation,
                "looking up a sync",
                "it is not part of this session",
            )
        })
    }
}
