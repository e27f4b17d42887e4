//! A look at the relay's memory, for gauges, probes and the status page. Pure values.

use std::time::Duration;

use super::AuditFound;
use super::holds::{BlockReason, HoldReason};
use crate::change::Epoch;
use crate::ledger::Backfill;

/// Who leads, as far as this process knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Asks for the lease, or waits to ask again after a failure.
    Starting,
    /// Another process leads.
    Standby,
    /// This process leads.
    Leading,
    /// Finishes what is in flight.
    Draining,
    /// Nothing is left to do.
    Done,
}

/// A look at the relay's memory.
#[derive(Clone, Debug)]
pub struct Status {
    /// Who leads.
    pub phase: Phase,
    /// Number of the leadership, while this process leads.
    pub epoch: Option<Epoch>,
    /// Keys in the queue.
    pub queue_keys: usize,
    /// Keys being written.
    pub in_flight_keys: usize,
    /// Keys of which a write is in doubt.
    pub doubt_keys: usize,
    /// Claims of this term that are not settled.
    pub claims: usize,
    /// Age of the oldest change that no write has covered yet.
    pub oldest_change_age: Option<Duration>,
    /// Requests that may go now without the reserve.
    pub budget_left: u64,
    /// Pairs that the next batch may hold.
    pub batch_pairs: usize,
    /// The server's notification queue is more than half full, so the outbox is polled.
    pub notify_queue_full: bool,
    /// Why nothing is sent.
    pub blocked: Option<StatusBlock>,
    /// By sync.
    pub syncs: Vec<StatusSync>,
}

impl Status {
    /// Why the outbox is polled, and what to do.
    pub const NOTIFY_QUEUE_FULL: (&str, &str) = (
        "the server's notification queue is more than half full, so the daemon polls and nobody notifies it",
        "end the session that listens in an open transaction: the server's log names it, and \
         pg_stat_activity shows it as idle in transaction",
    );
}

impl Default for Status {
    fn default() -> Self {
        Self {
            phase: Phase::Starting,
            epoch: None,
            queue_keys: 0,
            in_flight_keys: 0,
            doubt_keys: 0,
            claims: 0,
            oldest_change_age: None,
            budget_left: 0,
            batch_pairs: 0,
            notify_queue_full: false,
            blocked: None,
            syncs: Vec::new(),
        }
    }
}

/// Why nothing is sent.
#[derive(Clone, Debug)]
pub struct StatusBlock {
    /// Kind.
    pub reason: BlockReason,
    /// Sentence.
    pub detail: String,
    /// Time until the next try.
    pub retry_in: Duration,
}

/// Why deletes of a sync are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusBrake {
    /// Keys that wait to be deleted.
    pub keys: usize,
    /// Orphans that the backfill is about to find in KV, about.
    pub ahead: u64,
}

impl StatusBrake {
    /// What happened, and what a person can do about `sync`.
    pub fn told(&self, sync: &str) -> (String, String) {
        let keys = self.keys as u64 + self.ahead;
        let about = if self.ahead > 0 { "about " } else { "" };
        (
            format!(
                "{about}{keys} keys would be deleted from KV, more than [brake] allows at once"
            ),
            format!(
                "if that is meant, run `pg2kv approve-deletes {sync}`; if not, put the rows back \
                 and run `pg2kv resync {sync}`"
            ),
        )
    }
}

/// Pairs in KV under names that a sync no longer makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusOldNames {
    /// How many, as last counted.
    pub names: u64,
    /// They wait for approval.
    pub held: bool,
}

impl StatusOldNames {
    /// What there is, and what a person can do about `sync`.
    pub fn told(&self, sync: &str) -> (String, String) {
        (
            format!(
                "{} keys stand in KV under names of an earlier configuration, more than [brake] \
                 lets go at once",
                self.names
            ),
            format!(
                "once nobody reads them any more, run `pg2kv approve-deletes {sync}`; if the change \
                 was a mistake, change it back"
            ),
        )
    }
}

/// One sync in [`Status`].
#[derive(Clone, Debug)]
pub struct StatusSync {
    /// Keys that wait for their time.
    pub waiting_keys: usize,
    /// Why it is on hold, with detail and hint.
    pub hold: Option<(HoldReason, String, String)>,
    /// Why its changes are not recorded.
    pub fault: Option<String>,
    /// Its deletes, while they are held.
    pub deletes_held: Option<StatusBrake>,
    /// Its backfill.
    pub backfill: Option<Backfill>,
    /// Its comparison with KV.
    pub audit: StatusAudit,
    /// What is left in KV of an earlier configuration.
    pub old_names: Option<StatusOldNames>,
    /// Changes of related tables, while some are not done with.
    pub expansion: Option<StatusExpansion>,
}

/// Changes of related tables of one sync that are being expanded into keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExpansion {
    /// Changes that are not done with.
    pub changes: usize,
    /// Keys recorded for such since there were none.
    pub keys: u64,
}

/// The comparisons of one sync with KV.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatusAudit {
    /// Why one runs now.
    pub running: Option<String>,
    /// Time since the last one ended, or since the sync was watched.
    pub age: Option<Duration>,
    /// What the last one of this leadership found.
    pub found: Option<AuditFound>,
}
