//! Backfills: walk the table, then look through KV for orphans, chunk by chunk. Pure.
//!
//! Owns where each walk is and that only one step of it is open at a time: a chunk's claim advances
//! the position in the same transaction, so a second start in between would be advanced past rows
//! that it never saw.

use crate::change::{Mono, OutboxId, SyncId};
use crate::ledger::{Backfill, BackfillPhase, BackfillStep};

/// What a backfill waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Its next step may be asked for from this moment on.
    Ready(Mono),
    /// The ledger is noting a start that has this reason and these markers.
    Starting {
        reason: String,
        markers: Vec<OutboxId>,
    },
    /// A chunk is being looked for or claimed.
    Open,
}

/// The backfill of one sync, if any, and the starts that wait.
#[derive(Debug)]
pub(super) struct Walk {
    current: Option<Backfill>,
    step: Step,
    wanted: Option<Wanted>,
    foreign: u64,
    /// When the step that is open was asked for.
    began: Mono,
}

#[derive(Debug)]
struct Wanted {
    reason: String,
    markers: Vec<OutboxId>,
}

/// What to do next for a sync's backfill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Start {
        reason: String,
        markers: Vec<OutboxId>,
    },
    Walk {
        after: Option<String>,
    },
    Sweep {
        cursor: Option<String>,
    },
}

impl Walk {
    pub(super) fn new() -> Self {
        Self {
            current: None,
            step: Step::Ready(Mono::ZERO),
            wanted: None,
            foreign: 0,
            began: Mono::ZERO,
        }
    }

    pub(super) fn current(&self) -> Option<&Backfill> {
        self.current.as_ref()
    }

    /// Goes on with what an earlier leader left, or begins what the ledger just noted.
    pub(super) fn resume(&mut self, backfill: Backfill) {
        self.current = Some(backfill);
        self.step = Step::Ready(Mono::ZERO);
        self.foreign = 0;
    }

    /// Wants a new backfill from the start, in place of any that runs.
    pub(super) fn want(&mut self, reason: &str, markers: Vec<OutboxId>) {
        match &mut self.wanted {
            Some(wanted) => wanted.markers.extend(markers),
            None => {
                self.wanted = Some(Wanted {
                    reason: reason.to_owned(),
                    markers,
                });
            }
        }
    }

    /// What can be done now. A start comes first; it takes the place of the walk that runs.
    pub(super) fn next(&mut self, now: Mono) -> Option<Next> {
        if !matches!(self.step, Step::Ready(_)) {
            return None;
        }
        self.began = now;
        if let Some(Wanted { reason, markers }) = self.wanted.take() {
            self.step = Step::Starting {
                reason: reason.clone(),
                markers: markers.clone(),
            };
            return Some(Next::Start { reason, markers });
        }
        let current = self.current.as_ref()?;
        self.step = Step::Open;
        Some(match current.phase {
            BackfillPhase::Rows => Next::Walk {
                after: current.position.clone(),
            },
            BackfillPhase::Keys => Next::Sweep {
                cursor: current.cursor.clone(),
            },
        })
    }

    /// When the step that is open was asked for.
    pub(super) fn began(&self) -> Mono {
        self.began
    }

    /// Whether a start waits, which needs no room in the queue.
    pub(super) fn wants_start(&self) -> bool {
        matches!(self.step, Step::Ready(_)) && self.wanted.is_some()
    }

    /// Whether there is anything to do at all.
    pub(super) fn has_work(&self) -> bool {
        matches!(self.step, Step::Ready(_)) && (self.wanted.is_some() || self.current.is_some())
    }

    /// Whether there is no backfill, and none is wanted.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.step, Step::Ready(_)) && !self.has_work()
    }

    /// The next step may not be taken before this moment.
    pub(super) fn not_before(&self) -> Mono {
        match self.step {
            Step::Ready(at) => at,
            Step::Starting { .. } | Step::Open => Mono::ZERO,
        }
    }

    /// The open step came to nothing and is tried again from `at` on.
    pub(super) fn retry_at(&mut self, at: Mono) {
        self.step = Step::Ready(at);
    }

    /// The ledger could not note the start.
    pub(super) fn start_failed(&mut self, at: Mono) {
        if let Step::Starting { reason, markers } =
            std::mem::replace(&mut self.step, Step::Ready(at))
        {
            self.want(&reason, markers);
        }
    }

    /// The step that a chunk of walked rows makes.
    pub(super) fn after_rows(&self, position: Option<String>, keys: usize) -> BackfillStep {
        let done = self.done() + keys as u64;
        match position {
            Some(position) => BackfillStep::Rows { position, done },
            None => BackfillStep::EnterKeys { done },
        }
    }

    /// The step that a page of names makes.
    pub(super) fn after_names(&self, next: Option<String>, names: usize) -> BackfillStep {
        match next {
            Some(cursor) => BackfillStep::Keys {
                cursor,
                done: self.done() + names as u64,
            },
            None => BackfillStep::Done,
        }
    }

    pub(super) fn count_foreign(&mut self, names: u64) {
        self.foreign += names;
    }

    /// The ledger has the step. Returns `(done, foreign names)` where it was the last.
    pub(super) fn advanced(&mut self, step: BackfillStep) -> Option<(u64, u64)> {
        self.step = Step::Ready(Mono::ZERO);
        let backfill = self.current.as_mut()?;
        match step {
            BackfillStep::Rows { position, done } => {
                backfill.position = Some(position);
                backfill.done = done;
                None
            }
            BackfillStep::EnterKeys { done } => {
                backfill.phase = BackfillPhase::Keys;
                backfill.cursor = None;
                backfill.done = done;
                None
            }
            BackfillStep::Keys { cursor, done } => {
                backfill.cursor = Some(cursor);
                backfill.done = done;
                None
            }
            BackfillStep::Done => {
                let done = backfill.done;
                self.current = None;
                Some((done, self.foreign))
            }
        }
    }

    fn done(&self) -> u64 {
        self.current.as_ref().map_or(0, |backfill| backfill.done)
    }
}

/// One walk for each sync.
pub(super) fn walks(syncs: usize) -> Vec<Walk> {
    (0..syncs).map(|_| Walk::new()).collect()
}

/// The walk of `sync`.
pub(super) fn of(walks: &mut [Walk], sync: SyncId) -> &mut Walk {
    &mut walks[usize::from(sync.0)]
}
