//! What happened lately: recent trouble, the rate of writing, and how long backfills still take.
//!
//! Owns bounded memories for people. Nothing here decides anything; the clock is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use crate::change::{Mono, SyncId};
use crate::ledger::{BackfillPhase, Examined};
use crate::relay::{Notice, Status};

/// Most kinds of trouble that are remembered.
const TROUBLES_MAX: usize = 20;
/// Time over which the rate of writing is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// Least time between two samples, which bounds their number.
const SAMPLE_MIN: Duration = Duration::from_millis(500);
/// A rate of less time than this says nothing.
const RATE_MIN: Duration = Duration::from_millis(500);

/// Something that went wrong; no key, no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// When it was last seen, as seconds since 1970.
    pub at_unix_seconds: u64,
    /// The sync, where it is one's.
    pub sync: Option<SyncId>,
    /// A few words.
    pub what: &'static str,
    /// The error.
    pub error: String,
    /// What to do.
    pub hint: Option<String>,
    /// How often, since the start of the process or since it was forgotten.
    pub times: u64,
}

/// Memories of one process.
#[derive(Debug)]
pub(super) struct History {
    /// Latest first.
    troubles: VecDeque<Trouble>,
    /// Pairs written and deleted by sync, since the start of the process.
    written: Vec<u64>,
    /// Sums of `written` at moments, oldest first.
    samples: VecDeque<(Mono, u64)>,
    walks: Vec<Option<Pace>>,
}

/// Where a walk over the rows stood when it was first seen.
#[derive(Clone, Copy, Debug)]
struct Pace {
    began: Mono,
    done_at_first: u64,
    last: u64,
}

impl History {
    pub(super) fn new(syncs: usize) -> Self {
        Self {
            troubles: VecDeque::new(),
            written: vec![0; syncs],
            samples: VecDeque::new(),
            walks: vec![None; syncs],
        }
    }

    /// Takes in what the relay tells.
    pub(super) fn note(&mut self, unix_seconds: u64, notice: &Notice) {
        if let Notice::Written {
            sync,
            puts,
            deletes,
            ..
        } = notice
        {
            if let Some(written) = self.written.get_mut(usize::from(sync.0)) {
                *written += (puts + deletes) as u64;
            }
            return;
        }
        let Some(mut trouble) = trouble(unix_seconds, notice) else {
            return;
        };
        let same = |old: &Trouble| old.what == trouble.what && old.sync == trouble.sync;
        if let Some(at) = self.troubles.iter().position(same) {
            trouble.times += self.troubles.remove(at).map_or(0, |old| old.times);
        }
        self.troubles.push_front(trouble);
        self.troubles.truncate(TROUBLES_MAX);
    }

    /// Notes how far everything is; once a second or so.
    pub(super) fn sample(&mut self, now: Mono, status: &Status) {
        let due = self.samples.back();
        if due.is_none_or(|(at, _)| now.since(*at) >= SAMPLE_MIN) {
            self.samples.push_back((now, self.written.iter().sum()));
        }
        while let Some((at, _)) = self.samples.get(1)
            && now.since(*at) >= RATE_WINDOW
        {
            self.samples.pop_front();
        }
        for (walk, sync) in self.walks.iter_mut().zip(&status.syncs) {
            let rows = sync
                .backfill
                .as_ref()
                .filter(|backfill| backfill.phase == BackfillPhase::Rows);
            *walk = rows.map(|backfill| match *walk {
                Some(pace) if pace.last <= backfill.done => Pace {
                    last: backfill.done,
                    ..pace
                },
                // Another walk than before.
                _ => Pace {
                    began: now,
                    done_at_first: backfill.done,
                    last: backfill.done,
                },
            });
        }
    }

    pub(super) fn troubles(&self) -> Vec<Trouble> {
        self.troubles.iter().cloned().collect()
    }

    /// Pairs written and deleted by sync, since the start of the process.
    pub(super) fn written(&self) -> Vec<u64> {
        self.written.clone()
    }

    /// Pairs a second over the last minute, or since the start.
    pub(super) fn rate(&self) -> f64 {
        let (Some((first, before)), Some((last, after))) =
            (self.samples.front(), self.samples.back())
        else {
            return 0.0;
        };
        let time = last.since(*first);
        if time < RATE_MIN {
            return 0.0;
        }
        (after - before) as f64 / time.as_secs_f64()
    }

    /// How long each walk over rows will still take at its pace so far, where that can be said.
    pub(super) fn left(&self, now: Mono, status: &Status) -> Vec<Option<Duration>> {
        let walks = self.walks.iter().zip(&status.syncs);
        let mut left: Vec<_> = walks
            .map(|(walk, sync)| {
                let pace = (*walk)?;
                let rows = sync.backfill.as_ref()?.estimate?.saturating_sub(pace.last);
                let time = now.since(pace.began);
                let done = pace.last - pace.done_at_first;
                if done == 0 || time < RATE_MIN {
                    return None;
                }
                Duration::try_from_secs_f64(time.as_secs_f64() * rows as f64 / done as f64).ok()
            })
            .collect();
        left.resize(self.walks.len(), None);
        left
    }
}

fn trouble(at_unix_seconds: u64, notice: &Notice) -> Option<Trouble> {
    let (what, sync, error, hint) = match notice {
        Notice::SessionFailed(failure) => (
            "no session with Postgres",
            None,
            failure.detail.clone(),
            failure.hint.clone(),
        ),
        Notice::LedgerFailed(failure) => (
            "a statement on Postgres failed",
            None,
            failure.detail.clone(),
            failure.hint.clone(),
        ),
        Notice::Blocked { reason, detail, .. } => (
            "nothing was sent to KV for a while",
            None,
            detail.clone(),
            Some(reason.hint().to_owned()),
        ),
        Notice::NotifyQueue { full: true } => {
            let (error, hint) = Status::NOTIFY_QUEUE_FULL;
            (
                "the outbox was polled",
                None,
                error.to_owned(),
                Some(hint.to_owned()),
            )
        }
        Notice::Held {
            sync, detail, hint, ..
        } => (
            "the sync was on hold",
            Some(*sync),
            detail.clone(),
            Some(hint.clone()),
        ),
        Notice::Faulty { sync, fault } => (
            "changes were not recorded",
            Some(*sync),
            fault.clone(),
            Some(Examined::HINT.to_owned()),
        ),
        Notice::DeletesHeld { sync } => (
            "deletes were on hold",
            Some(*sync),
            "too many in too short a time".to_owned(),
            None,
        ),
        Notice::Dead { sync, poison, .. } => (
            "a key went to the dead letters",
            Some(*sync),
            poison.detail.clone(),
            None,
        ),
        _ => return None,
    };
    Some(Trouble {
        at_unix_seconds,
        sync,
        what,
        error,
        hint,
        times: 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Backfill, Failure, FailureKind};
    use crate::relay::{StatusAudit, StatusSync};

    fn at(seconds: u64) -> Mono {
        Mono::from_origin(Duration::from_secs(seconds))
    }

    fn written(puts: usize) -> Notice {
        Notice::Written {
            sync: SyncId(0),
            puts,
            deletes: 0,
            waited: Vec::new(),
        }
    }

    fn lost(detail: &str) -> Notice {
        Notice::SessionFailed(Failure {
            kind: FailureKind::Connection,
            detail: detail.to_owned(),
            hint: None,
        })
    }

    fn walking(done: u64, estimate: Option<u64>) -> Status {
        Status {
            syncs: vec![StatusSync {
                waiting_keys: 0,
                hold: None,
                fault: None,
                deletes_held: None,
                expansion: None,
                old_names: None,
                audit: StatusAudit::default(),
                backfill: Some(Backfill {
                    sync: SyncId(0),
                    reason: "resync".to_owned(),
                    phase: BackfillPhase::Rows,
                    position: None,
                    cursor: None,
                    done,
                    estimate,
                }),
            }],
            ..Status::default()
        }
    }

    #[test]
    fn the_same_trouble_is_one_line_with_its_last_words() {
        let mut history = History::new(1);
        history.note(1, &lost("refused"));
        history.note(2, &Notice::DeletesHeld { sync: SyncId(0) });
        history.note(3, &lost("timed out"));
        let troubles = history.troubles();
        assert_eq!(troubles.len(), 2);
        assert_eq!((troubles[0].at_unix_seconds, troubles[0].times), (3, 2));
        assert_eq!(troubles[0].error, "timed out");
        assert_eq!(troubles[1].sync, Some(SyncId(0)));
    }

    #[test]
    fn troubles_are_bounded() {
        let mut history = History::new(100);
        for sync in 0..100 {
            history.note(u64::from(sync), &Notice::DeletesHeld { sync: SyncId(sync) });
        }
        let troubles = history.troubles();
        assert_eq!(troubles.len(), TROUBLES_MAX);
        assert_eq!(troubles[0].at_unix_seconds, 99);
    }

    #[test]
    fn the_rate_is_of_the_last_minute() {
        let mut history = History::new(1);
        let status = Status::default();
        history.sample(at(0), &status);
        assert!(history.rate().abs() < f64::EPSILON);
        history.note(0, &written(6_000));
        for second in 1..=60 {
            history.sample(at(second), &status);
        }
        assert!((history.rate() - 100.0).abs() < 0.1, "{}", history.rate());
        history.sample(at(61), &status);
        assert!(history.rate().abs() < f64::EPSILON, "{}", history.rate());
        assert!(history.samples.len() <= 62);
        assert_eq!(history.written(), [6_000]);
    }

    #[test]
    fn what_is_left_goes_by_the_pace_so_far() {
        let mut history = History::new(1);
        history.sample(at(0), &walking(1_000, Some(5_000)));
        let status = walking(2_000, Some(5_000));
        history.sample(at(10), &status);
        assert_eq!(
            history.left(at(10), &status),
            [Some(Duration::from_secs(30))]
        );
        // A walk that begins anew, and one of which the end is not known.
        let status = walking(0, None);
        history.sample(at(20), &status);
        assert_eq!(history.left(at(20), &status), [None]);
        assert_eq!(history.left(at(20), &Status::default()), [None]);
    }
}
