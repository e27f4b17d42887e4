//! The relay's words: what happened, what to do, what to tell. Pure values.

use std::time::Duration;

use super::holds::{BlockReason, HoldReason};
use super::scanned::{AuditFound, CleanStep, Cleaned, Inspected, Swept};
use crate::change::{Answer, Batch, ClaimId, Epoch, Key, Mono, OutboxId, Poison, Rendered, SyncId};
use crate::ledger::{
    AuditFacts, Backfill, BackfillStep, ClaimRequest, DeleteFacts, Examined, Expanded, Failure,
    FetchMode, Fetched, Marker, OldNames, Reconfigured, SettleRequest, Walked,
};

/// Number of a batch within a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(pub u64);

/// Number of a request within a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What came of a campaign.
#[derive(Clone, Debug)]
pub enum Campaigned {
    /// This process leads.
    Elected {
        /// Number of the leadership.
        epoch: Epoch,
        /// When the campaign began: the lease is trusted from then.
        began: Mono,
        /// Claims, backfills and dead letters that stand in the ledger.
        recovered: Recovered,
    },
    /// Another process leads.
    Standby,
    /// Postgres could not be asked.
    Failed(Failure),
}

/// What a new leader finds in the ledger.
#[derive(Clone, Debug, Default)]
pub struct Recovered {
    /// Claims of any epoch, oldest first.
    pub claims: Vec<(ClaimId, SyncId, Vec<Key>)>,
    /// Backfills that were not finished.
    pub backfills: Vec<Backfill>,
    /// Dead letters of each sync that has any.
    pub dead: Vec<(SyncId, u64)>,
    /// Syncs that were never backfilled.
    pub new_syncs: Vec<SyncId>,
    /// What is known about deletes of the syncs.
    pub deletes: Vec<DeleteFacts>,
    /// When each watched sync was last compared with KV.
    pub audits: Vec<AuditFacts>,
    /// Syncs whose configuration is another than that of the leader before.
    pub changed: Vec<Reconfigured>,
    /// Names that are no longer made.
    pub retired: Vec<OldNames>,
    /// Deletes of names that are made again may still land.
    pub unsure: bool,
    /// Syncs of which nothing may be sent until [`Effect::Inspect`] has found their names free.
    pub not_looked_at: Vec<SyncId>,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The time that [`Relay::wake_at`] named has come, or the process just started.
    Tick,
    /// Answers [`Effect::Campaign`].
    Campaigned(Campaigned),
    /// Answers [`Effect::Heartbeat`], with the moment at which it began.
    Heartbeat(Result<Mono, Failure>),
    /// A connection of the session is gone.
    SessionLost(Failure),
    /// A writer rang.
    Rung,
    /// Answers [`Effect::Fetch`].
    Fetched(Result<Fetched, Failure>),
    /// Answers [`Effect::Prepare`].
    Prepared {
        /// The batch.
        batch: BatchId,
        /// The claim, where one was made; it may be made though the read failed.
        claim: Option<ClaimId>,
        /// The documents in the order of the keys, fewer where the byte limit was reached.
        read: Result<Vec<Rendered>, Failure>,
    },
    /// Answers [`Effect::Write`].
    Answered {
        /// The request.
        request: RequestId,
        /// What was sent.
        batch: Batch,
        /// What came of it.
        answer: Answer,
        /// Time until 00:00 UTC, when the quota of the free plan starts anew.
        until_midnight: Duration,
    },
    /// Answers [`Effect::Settle`].
    Settled(Result<(), Failure>),
    /// Answers [`Effect::Compact`]; hands the rows back where it failed.
    Compacted(Result<(), (Vec<OutboxId>, Failure)>),
    /// Answers [`Effect::StartBackfill`].
    BackfillStarted {
        /// The sync.
        sync: SyncId,
        /// The backfill as it now stands in the ledger.
        result: Result<Backfill, Failure>,
    },
    /// Answers [`Effect::Walk`].
    Walked {
        /// The sync.
        sync: SyncId,
        /// The next keys.
        result: Result<Walked, Failure>,
    },
    /// Answers [`Effect::Sweep`].
    Swept {
        /// The sync.
        sync: SyncId,
        /// The next names, or how KV or Postgres failed.
        result: Result<Swept, SweepFailure>,
    },
    /// Answers [`Effect::Advance`].
    Advanced {
        /// The sync.
        sync: SyncId,
        /// The step, if the ledger took it.
        result: Result<BackfillStep, Failure>,
    },
    /// Answers [`Effect::Inspect`].
    Inspected {
        /// The sync.
        sync: SyncId,
        /// What was found, or how KV or Postgres failed.
        result: Result<Inspected, SweepFailure>,
    },
    /// Answers [`Effect::Expand`].
    Expanded {
        /// The sync.
        sync: SyncId,
        /// What stands in the outbox now.
        result: Result<Expanded, Failure>,
    },
    /// An audit wants to list a page of names; [`Effect::AllowPage`] lets it.
    PageWanted {
        /// The sync.
        sync: SyncId,
        /// How the page before failed, if it did.
        failed: Option<Answer>,
    },
    /// Answers [`Effect::Audit`].
    Audited {
        /// The sync.
        sync: SyncId,
        /// What was found, or how KV or Postgres failed.
        result: Result<AuditFound, SweepFailure>,
    },
    /// Answers [`Effect::Clean`].
    Cleaned {
        /// The names.
        old: OldNames,
        /// What came of it, or how KV or Postgres failed.
        result: Result<Cleaned, SweepFailure>,
    },
    /// Somebody looked at the triggers of all syncs.
    Examined(Result<Vec<Examined>, Failure>),
    /// The ledger was asked about deletes, at this moment.
    DeletesAsked {
        /// When.
        at: Mono,
        /// What it says.
        facts: Vec<DeleteFacts>,
    },
    /// The API token is another than before.
    TokenChanged,
    /// Finish what is in flight and stop.
    Shutdown,
    /// Answers [`Effect::Release`].
    Released,
}

/// Why names could not be had, or not be compared with the rows.
#[derive(Clone, Debug)]
pub enum SweepFailure {
    /// KV did not list them.
    Kv(Answer),
    /// Postgres could not make keys of them, or read the rows.
    Ledger(Failure),
}

/// Something to do. Each is answered by the event that its documentation names.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Try to become the leader; [`Event::Campaigned`].
    Campaign,
    /// Renew the trust in the lease; [`Event::Heartbeat`].
    Heartbeat(Epoch),
    /// Read the outbox; [`Event::Fetched`].
    Fetch {
        /// Awake or falling asleep.
        mode: FetchMode,
        /// Most rows.
        limit: usize,
    },
    /// Claim and read; [`Event::Prepared`].
    Prepare {
        /// The batch.
        batch: BatchId,
        /// The request.
        request: ClaimRequest,
    },
    /// Send to KV; [`Event::Answered`]. Must not be sent once `trusted_until` has passed.
    Write {
        /// The request.
        request: RequestId,
        /// Whose namespace.
        sync: SyncId,
        /// The body.
        batch: Batch,
        /// End of the trust in the lease.
        trusted_until: Mono,
    },
    /// Settle; [`Event::Settled`].
    Settle(SettleRequest),
    /// Delete redundant outbox rows; [`Event::Compacted`].
    Compact(Vec<OutboxId>),
    /// Begin a backfill in place of these resync markers; [`Event::BackfillStarted`].
    StartBackfill {
        /// The sync.
        sync: SyncId,
        /// Why, for people.
        reason: String,
        /// Outbox rows that it replaces.
        markers: Vec<OutboxId>,
    },
    /// Next keys of the table; [`Event::Walked`].
    Walk {
        /// The sync.
        sync: SyncId,
        /// After this key.
        after: Option<String>,
        /// Most rows.
        limit: usize,
    },
    /// Next names in KV; [`Event::Swept`].
    Sweep {
        /// The sync.
        sync: SyncId,
        /// Cursor of the page.
        cursor: Option<String>,
    },
    /// Look for pairs of another installation under the names of a sync; [`Event::Inspected`].
    Inspect {
        /// The sync.
        sync: SyncId,
        /// Cursor of the page.
        cursor: Option<String>,
    },
    /// Note how far a backfill is where no claim does; [`Event::Advanced`].
    Advance {
        /// The sync.
        sync: SyncId,
        /// How far.
        step: BackfillStep,
    },
    /// Write the next keys of these markers into the outbox, and the markers' positions in the same
    /// transaction; [`Event::Expanded`].
    Expand {
        /// The sync.
        sync: SyncId,
        /// The markers.
        markers: Vec<Marker>,
        /// Most keys of each.
        limit: usize,
    },
    /// Compare KV with the rows of a sync, put the keys that drifted into the outbox, and note in the
    /// ledger that this was done; [`Event::Audited`]. Each request to KV waits for
    /// [`Effect::AllowPage`].
    Audit {
        /// The sync.
        sync: SyncId,
        /// Why, for people; the ledger no longer owes an audit for this reason.
        reason: String,
    },
    /// Look after names that are no longer made; [`Event::Cleaned`]. Each request to KV waits for
    /// [`Effect::AllowPage`].
    Clean {
        /// The names.
        old: OldNames,
        /// What to do.
        step: CleanStep,
    },
    /// Let the audit, or the look after old names, send one request. Answered by the next
    /// [`Event::PageWanted`], by [`Event::Audited`] or by [`Event::Cleaned`].
    AllowPage {
        /// End of the trust in the lease: a delete must not be sent later.
        trusted_until: Mono,
    },
    /// Read the token file again; [`Event::TokenChanged`] if it differs.
    ReloadToken,
    /// Drop the session and everything that runs for it. No answer.
    Abandon,
    /// Give the lease up; [`Event::Released`].
    Release,
}

/// Something to tell: for logs and metrics.
#[derive(Clone, Debug)]
pub enum Notice {
    /// This process leads now.
    Elected {
        /// Number of the leadership.
        epoch: Epoch,
        /// Keys of claims that an earlier leader left.
        claimed_keys: usize,
    },
    /// This process waits for the lease.
    Standby,
    /// The leadership, or the try to get it, ended like this.
    SessionFailed(Failure),
    /// A fetch brought rows.
    Fetched {
        /// Rows.
        changes: usize,
        /// Of these, changes of keys that waited already.
        coalesced: usize,
        /// Rows of syncs that are not configured.
        ignored: u64,
    },
    /// The server's notification queue became more than half full, or no longer is.
    NotifyQueue {
        /// It is, so the outbox is polled.
        full: bool,
    },
    /// A writer rang.
    Rung,
    /// The relay woke up to fetch.
    Woken(WakeCause),
    /// Keys came to rest in KV.
    Written {
        /// The sync.
        sync: SyncId,
        /// Pairs written.
        puts: usize,
        /// Pairs deleted.
        deletes: usize,
        /// Time of each key from its oldest change to the proof that it is written.
        waited: Vec<Duration>,
    },
    /// Keys of which KV has the document already.
    Unchanged {
        /// The sync.
        sync: SyncId,
        /// How many.
        keys: usize,
    },
    /// A request came back.
    Answered {
        /// The sync.
        sync: SyncId,
        /// Pairs in it.
        pairs: usize,
        /// What it came to.
        answer: Answer,
        /// Time from sending to the reply.
        took: Duration,
    },
    /// A read of rows, a claim or a settlement failed.
    LedgerFailed(Failure),
    /// A key went to the dead letters.
    Dead {
        /// The sync.
        sync: SyncId,
        /// The key.
        key: Key,
        /// Why.
        poison: Poison,
    },
    /// A sync is on hold.
    Held {
        /// The sync.
        sync: SyncId,
        /// Why.
        reason: HoldReason,
        /// What happened.
        detail: String,
        /// What to do.
        hint: String,
    },
    /// A sync flows again.
    Resumed {
        /// The sync.
        sync: SyncId,
    },
    /// Changes of a sync are not recorded as they should be.
    Faulty {
        /// The sync.
        sync: SyncId,
        /// Why.
        fault: String,
    },
    /// They are recorded again.
    Mended {
        /// The sync.
        sync: SyncId,
    },
    /// Deletes of a sync are held: they would be too many in too short a time.
    DeletesHeld {
        /// The sync.
        sync: SyncId,
    },
    /// Deletes of a sync go again.
    DeletesResumed {
        /// The sync.
        sync: SyncId,
    },
    /// Nothing is sent for a while.
    Blocked {
        /// Why.
        reason: BlockReason,
        /// For how long.
        pause: Duration,
        /// What happened.
        detail: String,
    },
    /// A request got through again after [`Notice::Blocked`].
    Unblocked,
    /// A backfill began.
    BackfillStarted {
        /// The sync.
        sync: SyncId,
        /// Why.
        reason: String,
    },
    /// A backfill is done.
    BackfillDone {
        /// The sync.
        sync: SyncId,
        /// Rows and names looked at.
        done: u64,
        /// Names in KV that pg2kv did not write.
        foreign: u64,
    },
    /// Changes of related tables were expanded into keys.
    Expanded {
        /// The sync.
        sync: SyncId,
        /// Markers that came to their end.
        markers: u64,
        /// Keys.
        keys: u64,
    },
    /// A comparison with KV began.
    AuditStarted {
        /// The sync.
        sync: SyncId,
        /// Why.
        reason: String,
    },
    /// A comparison with KV is done.
    Audited {
        /// The sync.
        sync: SyncId,
        /// What it found.
        found: AuditFound,
        /// Differences are what it was run for.
        expected: bool,
    },
    /// A comparison with KV came to nothing, and is tried again.
    AuditFailed {
        /// The sync.
        sync: SyncId,
        /// What happened.
        detail: String,
        /// Time until the next try.
        retry_in: Duration,
    },
    /// A sync is configured otherwise than under the leader before.
    Reconfigured(Reconfigured),
    /// Pairs stand in KV under names that the sync no longer makes.
    OldNames {
        /// The sync.
        sync: SyncId,
        /// How many.
        names: u64,
        /// They wait for approval.
        held: bool,
    },
    /// Such pairs were deleted.
    Cleaned {
        /// The sync.
        sync: SyncId,
        /// How many.
        names: u64,
    },
    /// No such pair is left.
    Clean {
        /// The sync.
        sync: SyncId,
    },
    /// A look after old names came to nothing, and is tried again.
    CleaningFailed {
        /// The sync.
        sync: SyncId,
        /// What happened.
        detail: String,
        /// Time until the next try.
        retry_in: Duration,
    },
}

/// Why a fetch happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WakeCause {
    /// A writer rang.
    Notify,
    /// The fallback poll.
    Poll,
    /// Changes keep coming.
    Linger,
    /// A writer that may not ring is still open.
    Writers,
}

impl WakeCause {
    /// The cause as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Poll => "poll",
            Self::Linger => "linger",
            Self::Writers => "writers",
        }
    }
}

/// What the relay says in answer to an event.
#[derive(Debug, Default)]
pub struct Output {
    /// To do.
    pub effects: Vec<Effect>,
    /// To tell.
    pub notices: Vec<Notice>,
}
