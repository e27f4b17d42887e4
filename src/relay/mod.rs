//! The decider: takes an event and the time, changes its state, and says what to do. Pure.
//!
//! Owns who leads, what is fetched, what is in flight, what is on hold and what may be settled.
//! Must not wait, send, log or read a clock: `daemon` does, and simulation takes its place.
//!
//! **Invariant:** a claim is settled only when each of its keys was proven written by a request
//! sent after the last doubt about it ended, or has a dead letter, or is held by a newer claim.
//!
//! After any doubt about the session with Postgres the whole [`term`] is dropped and read anew:
//! everything that must survive stands in Postgres.

mod backfills;
mod holds;
mod policy;
mod term;

use std::time::Duration;

use self::term::Term;
use crate::change::{
    Answer, Batch, ClaimId, ContentHash, Epoch, Key, Mono, OutboxId, PoisonReason, Rendered, SyncId,
};
use crate::ledger::{
    Backfill, BackfillStep, ClaimRequest, Failure, FailureKind, FetchMode, Fetched, SettleRequest,
    Walked,
};
use crate::queue;
use crate::queue::backoff::{self, Backoff};
use crate::queue::budget::{self, Budget};

pub use self::holds::{BlockReason, HoldReason};

/// What the relay is told once. Everything has a limit.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Debounce, key interval, bound.
    pub queue: queue::Settings,
    /// Waits between tries.
    pub backoff: backoff::Settings,
    /// Requests to KV.
    pub budget: budget::Settings,
    /// Names of the syncs; a [`SyncId`] is a position here.
    pub syncs: Vec<String>,
    /// Most pairs in one request.
    pub pairs_max: usize,
    /// Most bytes of documents read for one batch and sent in one request.
    pub body_max_bytes: usize,
    /// Most batches that are prepared or sent at the same time.
    pub in_flight_max: usize,
    /// How long a write in doubt may still land.
    pub late_write_window: Duration,
    /// The lease runs out this long after the last heartbeat began.
    pub lease_ttl: Duration,
    /// A standby asks for the lease this often.
    pub campaign_interval: Duration,
    /// Fallback poll while asleep.
    pub poll_interval: Duration,
    /// Wait between two fetches while changes keep coming.
    pub linger: Duration,
    /// Whether writers ring; if not, the fallback poll is all there is.
    pub doorbell: bool,
    /// Rows of one backfill chunk.
    pub backfill_chunk: usize,
    /// Most rows of one fetch.
    pub fetch_max: usize,
    /// Time to finish what is in flight after a shutdown.
    pub grace: Duration,
    /// Most keys whose last written content is remembered.
    pub seen_max: usize,
}

/// Reason of the backfill that the ledger begins for each sync when the server is another one than
/// was noted, or the same set back.
///
/// Such a server may lack claims whose writes are still on their way, so the backfill does not walk
/// before those have landed. It may also lack the note that a sync was ever backfilled, so even a
/// sync that looks new begins with this reason.
pub const IDENTITY_CHANGED: &str = "identity";

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
}

/// One page of names in KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Keys of names that pg2kv wrote, with the content hash that their metadata carries.
    pub keys: Vec<(Key, ContentHash)>,
    /// Names under the prefix that pg2kv did not write; they are left alone.
    pub foreign: u64,
    /// Cursor of the next page; `None` after the last.
    pub next: Option<String>,
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
    /// The API token is another than before.
    TokenChanged,
    /// Finish what is in flight and stop.
    Shutdown,
    /// Answers [`Effect::Release`].
    Released,
}

/// Why a page of names could not be had.
#[derive(Clone, Debug)]
pub enum SweepFailure {
    /// KV did not list them.
    Kv(Answer),
    /// Postgres could not make keys of them.
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
    /// Note how far a backfill is where no claim does; [`Event::Advanced`].
    Advance {
        /// The sync.
        sync: SyncId,
        /// How far.
        step: BackfillStep,
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
        /// Kind of reason.
        reason: PoisonReason,
        /// The sentence.
        detail: String,
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
    /// Nothing is sent for a while.
    Blocked {
        /// Why.
        reason: BlockReason,
        /// For how long.
        pause: Duration,
        /// What happened.
        detail: String,
    },
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

/// The state machine.
#[derive(Debug)]
pub struct Relay {
    settings: Settings,
    state: State,
    /// Belongs to the token, so it outlives a term.
    budget: Budget,
    session_backoff: Backoff,
    rng: fastrand::Rng,
}

#[derive(Debug)]
enum State {
    Starting {
        campaign_at: Mono,
        asked: bool,
        standby: bool,
    },
    Term(Box<Term>),
    Releasing {
        give_up_at: Mono,
    },
    Done,
}

impl Relay {
    /// A relay that does not lead yet. The same seed and events give the same effects.
    pub fn new(settings: Settings, seed: u64) -> Self {
        Self {
            state: State::Starting {
                campaign_at: Mono::ZERO,
                asked: false,
                standby: false,
            },
            budget: Budget::new(settings.budget),
            session_backoff: Backoff::new(settings.backoff),
            rng: fastrand::Rng::with_seed(seed),
            settings,
        }
    }

    /// Takes in one event.
    pub fn handle(&mut self, now: Mono, event: Event) -> Output {
        let mut out = Output::default();
        match event {
            Event::Shutdown => self.shutdown(now, &mut out),
            Event::Campaigned(campaigned) => self.campaigned(now, campaigned, &mut out),
            Event::Released => self.state = State::Done,
            event => {
                if let State::Term(term) = &mut self.state {
                    // A term that lives to its first heartbeat is more than a flicker.
                    if matches!(event, Event::Heartbeat(Ok(_))) {
                        self.session_backoff.reset();
                    }
                    let mut shared = term::Shared {
                        settings: &self.settings,
                        budget: &mut self.budget,
                        rng: &mut self.rng,
                        out: &mut out,
                    };
                    if let Err(failure) = term.handle(&mut shared, now, event) {
                        self.end_term(now, failure, &mut out);
                    }
                }
            }
        }
        self.drive(now, &mut out);
        out
    }

    /// When the relay wants an [`Event::Tick`]; `None` while it waits for answers only.
    pub fn wake_at(&mut self, now: Mono) -> Option<Mono> {
        match &self.state {
            State::Starting { asked: true, .. } | State::Done => None,
            State::Starting { campaign_at, .. } => Some(*campaign_at),
            State::Releasing { give_up_at } => Some(*give_up_at),
            State::Term(term) => term.wake_at(&self.settings, &mut self.budget, now),
        }
    }

    /// Who leads.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::Starting { standby: false, .. } => Phase::Starting,
            State::Starting { standby: true, .. } => Phase::Standby,
            State::Term(term) if term.is_draining() => Phase::Draining,
            State::Term(_) => Phase::Leading,
            State::Releasing { .. } => Phase::Draining,
            State::Done => Phase::Done,
        }
    }

    /// What stands in memory, for gauges and the status page.
    pub fn status(&mut self, now: Mono) -> Status {
        let mut status = Status {
            phase: self.phase(),
            ..Status::default()
        };
        status.budget_left = self.budget.left(now);
        if let State::Term(term) = &self.state {
            term.fill_status(now, &mut status);
        }
        status
    }

    fn campaigned(&mut self, now: Mono, campaigned: Campaigned, out: &mut Output) {
        let State::Starting {
            asked: true,
            standby,
            ..
        } = self.state
        else {
            return;
        };
        match campaigned {
            Campaigned::Elected {
                epoch,
                began,
                recovered,
            } => {
                let keys = recovered.claims.iter().map(|(_, _, keys)| keys.len()).sum();
                out.notices.push(Notice::Elected {
                    epoch,
                    claimed_keys: keys,
                });
                let term = Term::new(&self.settings, now, epoch, began, recovered, out);
                self.state = State::Term(Box::new(term));
            }
            Campaigned::Standby => {
                if !standby {
                    out.notices.push(Notice::Standby);
                }
                self.session_backoff.reset();
                let wait = self
                    .settings
                    .campaign_interval
                    .mul_f64(0.5 + self.rng.f64() / 2.0);
                self.state = State::Starting {
                    campaign_at: now + wait,
                    asked: false,
                    standby: true,
                };
            }
            Campaigned::Failed(failure) => self.start_again(now, failure, out),
        }
    }

    fn end_term(&mut self, now: Mono, failure: Failure, out: &mut Output) {
        out.effects
            .retain(|effect| matches!(effect, Effect::ReloadToken));
        out.effects.push(Effect::Abandon);
        let draining = matches!(&self.state, State::Term(term) if term.is_draining());
        if draining {
            out.notices.push(Notice::SessionFailed(failure));
            self.state = State::Done;
        } else {
            self.start_again(now, failure, out);
        }
    }

    fn start_again(&mut self, now: Mono, failure: Failure, out: &mut Output) {
        out.notices.push(Notice::SessionFailed(failure));
        let wait = self.session_backoff.next(self.rng.f64());
        self.state = State::Starting {
            campaign_at: now + wait,
            asked: false,
            standby: false,
        };
    }

    fn shutdown(&mut self, now: Mono, out: &mut Output) {
        match &mut self.state {
            State::Starting { .. } => {
                out.effects.push(Effect::Abandon);
                self.state = State::Done;
            }
            State::Term(term) => term.drain(now + self.settings.grace),
            State::Releasing { .. } | State::Done => {}
        }
    }

    fn drive(&mut self, now: Mono, out: &mut Output) {
        match &mut self.state {
            State::Starting {
                campaign_at, asked, ..
            } if !*asked && *campaign_at <= now => {
                *asked = true;
                out.effects.push(Effect::Campaign);
            }
            State::Term(term) => {
                let mut shared = term::Shared {
                    settings: &self.settings,
                    budget: &mut self.budget,
                    rng: &mut self.rng,
                    out,
                };
                match term.drive(&mut shared, now) {
                    Ok(false) => {}
                    Ok(true) => {
                        out.effects.push(Effect::Release);
                        // A release that hangs must not hold up the exit.
                        self.state = State::Releasing {
                            give_up_at: now + Duration::from_secs(2),
                        };
                    }
                    Err(failure) => self.end_term(now, failure, out),
                }
            }
            State::Releasing { give_up_at } if *give_up_at <= now => {
                out.effects.push(Effect::Abandon);
                self.state = State::Done;
            }
            State::Starting { .. } | State::Releasing { .. } | State::Done => {}
        }
    }
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
    /// Why nothing is sent.
    pub blocked: Option<StatusBlock>,
    /// By sync.
    pub syncs: Vec<StatusSync>,
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

/// One sync in [`Status`].
#[derive(Clone, Debug)]
pub struct StatusSync {
    /// Keys that wait for their time.
    pub waiting_keys: usize,
    /// Why it is on hold, with detail and hint.
    pub hold: Option<(HoldReason, String, String)>,
    /// Its backfill.
    pub backfill: Option<Backfill>,
}

/// A failure that ends the term.
fn ends_term(failure: &Failure) -> bool {
    matches!(
        failure.kind,
        FailureKind::Connection | FailureKind::Fenced | FailureKind::Refused
    )
}

#[cfg(test)]
mod tests;
