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

pub mod audits;
mod backfills;
pub mod brake;
mod cleanings;
mod expansions;
mod holds;
mod policy;
mod protocol;
mod scanned;
mod status;
mod term;

use std::time::Duration;

use self::term::Term;
use crate::change::Mono;
use crate::ledger::{Failure, FailureKind};
use crate::queue;
use crate::queue::backoff::{self, Backoff};
use crate::queue::budget::{self, Budget};

pub use self::holds::{BlockReason, HoldReason};
pub use self::protocol::{
    BatchId, Campaigned, Effect, Event, Notice, Output, Recovered, RequestId, SweepFailure,
    WakeCause,
};
pub use self::scanned::{AuditFound, CleanStep, Cleaned, Inspected, Swept};
pub use self::status::{
    Phase, Status, StatusAudit, StatusBlock, StatusBrake, StatusExpansion, StatusOldNames,
    StatusSync,
};

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
    /// When deletes of a sync are held.
    pub brake: brake::Settings,
    /// When KV is compared with the rows.
    pub audit: audits::Settings,
}

/// Reason of the backfill that the ledger begins for each sync when the server is another one than
/// was noted, or the same set back.
///
/// Such a server may lack claims whose writes are still on their way, so the backfill does not walk
/// before those have landed. It may also lack the note that a sync was ever backfilled, so even a
/// sync that looks new begins with this reason.
pub const IDENTITY_CHANGED: &str = "identity";

/// Reasons of comparisons that are owed because documents are made otherwise than before, so that what
/// they find is nobody's fault.
pub const RECONFIGURED: [&str; 2] = ["configuration changed", "other columns are watched"];

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

/// A failure that ends the term.
fn ends_term(failure: &Failure) -> bool {
    matches!(
        failure.kind,
        FailureKind::Connection | FailureKind::Fenced | FailureKind::Refused | FailureKind::Schema
    )
}

#[cfg(test)]
mod tests;
