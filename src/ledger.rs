//! What the relay asks of the ledger in Postgres (outbox, claims, dead letters, backfills) and what
//! comes back.
//!
//! Owns plain values. Knows no SQL: `source` turns a request into statements, `daemon` carries it.

use std::time::Duration;

use crate::change::{Change, ClaimId, Key, OutboxId, Poison, Related, SyncId};

/// How to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchMode {
    /// Writers need not ring: fetch only, after silencing the bell if it is set.
    Awake,
    /// Set the bell, look for writers that may have read it before, then fetch: in that order.
    FallingAsleep,
}

/// What a fetch found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fetched {
    /// Rows of configured syncs, none returned twice in one session but for rare, harmless repeats.
    pub changes: Vec<Change>,
    /// Rows of syncs that are not configured here, and markers that this version does not know; they
    /// stay in the outbox.
    pub ignored: u64,
    /// The limit was reached; more rows may wait.
    pub more: bool,
    /// After [`FetchMode::FallingAsleep`]: a transaction is open that may have read the bell before
    /// it was set, so NOTIFY cannot be relied on yet.
    pub writers: bool,
    /// Whether the server's notification queue is so full that the bell was not set; `None` if it was
    /// not to be set.
    pub notify_queue_full: Option<bool>,
}

/// Claim keys, then read their rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// The sync of all keys.
    pub sync: SyncId,
    /// The keys to read, each once.
    pub keys: Vec<Key>,
    /// Positions in `keys` that the claim must hold. Empty: no claim is made, as older claims hold
    /// all of them.
    pub claim: Vec<usize>,
    /// Outbox rows that the claim replaces; deleted in the same transaction.
    pub ids: Vec<OutboxId>,
    /// Backfill position that the claim replaces; advanced in the same transaction.
    pub backfill: Option<BackfillStep>,
    /// Stop reading when the values pass this many bytes.
    pub max_bytes: usize,
}

/// Where a backfill goes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackfillStep {
    /// Rows up to and with this key (`jsonb` text) are done.
    Rows {
        /// Key of the last row.
        position: String,
        /// Rows done so far.
        done: u64,
    },
    /// All rows are done; now the names in KV are looked through for orphans.
    EnterKeys {
        /// Rows done.
        done: u64,
    },
    /// Names in KV up to this list cursor are done.
    Keys {
        /// Cursor of the next page.
        cursor: String,
        /// Rows and names done so far.
        done: u64,
    },
    /// Nothing is left to do. Dead letters of the sync from before the backfill's start are deleted
    /// with this step: every key that has rows or a pair was looked at since, so theirs have neither.
    Done,
}

/// Phase of a backfill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackfillPhase {
    /// Walks the table in key order.
    Rows,
    /// Lists KV under the sync's prefix and looks for orphans.
    Keys,
}

/// A backfill as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backfill {
    /// The sync.
    pub sync: SyncId,
    /// Why it runs, for people.
    pub reason: String,
    /// Which walk it is in.
    pub phase: BackfillPhase,
    /// Last key done (`jsonb` text); `None` at the start.
    pub position: Option<String>,
    /// KV list cursor; `None` at the start.
    pub cursor: Option<String>,
    /// Rows and names done so far.
    pub done: u64,
    /// Estimated rows in all.
    pub estimate: Option<u64>,
}

/// Next keys of a table in key order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// The keys.
    pub keys: Vec<Key>,
    /// Key of the last row (`jsonb` text); `None` where the table ends.
    pub position: Option<String>,
}

/// A row of the outbox that stands for the documents of a row of a related table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The outbox row.
    pub id: OutboxId,
    /// What it says.
    pub related: Related,
}

/// What an expansion of markers wrote into the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// Keys.
    pub keys: u64,
    /// Markers that are at their end; each of the others has a row with its new position.
    pub done: u64,
    /// The highest id among the new rows; `None` where there are none.
    pub last: Option<OutboxId>,
}

/// Whether a sync's changes are recorded, as its triggers stand now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examined {
    /// The sync.
    pub sync: SyncId,
    /// Why changes are not, or not all, recorded; one sentence without row data.
    pub fault: Option<String>,
    /// There was a fault before, and no backfill has begun since it was over.
    pub owed: bool,
    /// Why the sync is to be compared with KV soon.
    pub audit_owed: Option<String>,
}

impl Examined {
    /// What to do about a fault.
    pub const HINT: &str = "run `pg2kv install`, or `select pg2kv.watch(...)` as `pg2kv sql` \
                            prints it; what was missed is then written by itself";
}

/// Claims to delete, dead letters to write and to clear, in one transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettleRequest {
    /// Claims that have no open key.
    pub claims: Vec<ClaimId>,
    /// Keys that cannot be written.
    pub dead: Vec<DeadLetter>,
    /// Keys that were written and may have a dead letter from before.
    pub cleared: Vec<(SyncId, Key)>,
    /// How long ago how many pairs of a sync were deleted, in place of what was noted before.
    pub deleted: Vec<(SyncId, Vec<(Duration, u64)>)>,
}

impl SettleRequest {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
            && self.dead.is_empty()
            && self.cleared.is_empty()
            && self.deleted.is_empty()
    }
}

/// A key that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its sync.
    pub sync: SyncId,
    /// The key.
    pub key: Key,
    /// Why.
    pub poison: Poison,
}

/// What the ledger says about deletes of a sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteFacts {
    /// The sync.
    pub sync: SyncId,
    /// Its keys, about; `None` until its first backfill is done.
    pub keys: Option<u64>,
    /// A person has approved of any number of deletes, for this much longer.
    pub approved_for: Option<Duration>,
    /// The leader held deletes when this was last noted.
    pub held: bool,
    /// How long ago how many pairs were deleted; only those whose claims are over.
    pub lately: Vec<(Duration, u64)>,
}

/// What the ledger says about comparisons of a sync with KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditFacts {
    /// The sync.
    pub sync: SyncId,
    /// Time since the last one ended, or since the sync was watched where there was none.
    pub age: Duration,
    /// Why the next one may not wait for its time.
    pub owed: Option<String>,
}

/// Number of names that are no longer made: of a template and a namespace that a sync had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RetiredId(pub i64);

/// Names that are no longer made. Pairs of theirs may stand in KV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OldNames {
    /// Their number.
    pub id: RetiredId,
    /// The sync that made them.
    pub sync: SyncId,
}

/// A sync whose configuration is another than that of the leader before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconfigured {
    /// The sync.
    pub sync: SyncId,
    /// The options that differ.
    pub options: Vec<String>,
}

/// Why the ledger, or a read of rows, did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What to do about it.
    pub kind: FailureKind,
    /// One sentence without row data.
    pub detail: String,
    /// What a person can do, where there is something.
    pub hint: Option<String>,
}

/// Kinds of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// The session is gone, or what the server did is unknown.
    Connection,
    /// Another leader has taken over.
    Fenced,
    /// Reading one of the rows fails, now and at each further try.
    Row,
    /// Reading one of the rows fails for a reason that may pass: it takes too long, or waits for a lock.
    RowTransient,
    /// The relation cannot be read as configured: column gone, privilege, row-level security.
    Relation,
    /// Rolled back by the server for a reason that passes: try again.
    Transient,
    /// Needs a person: wrong password, pooler, schema missing.
    Refused,
    /// The schema has a version that this program cannot work with.
    Schema,
}

impl FailureKind {
    /// Whether some row is at fault: the others can be read without it.
    pub const fn is_of_rows(self) -> bool {
        matches!(self, Self::Row | Self::RowTransient)
    }

    /// The kind as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Fenced => "fenced",
            Self::Row => "row",
            Self::RowTransient => "row_transient",
            Self::Relation => "relation",
            Self::Transient => "transient",
            Self::Refused => "refused",
            Self::Schema => "schema",
        }
    }
}
