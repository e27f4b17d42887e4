//! Names that a sync no longer makes: whose pairs in KV are still to be removed. Pure.
//!
//! Owns what is to be done next for each: count, delete, and count again once nothing that was sent
//! can land any more. Only an empty count then lets the names be forgotten.
//!
//! Nothing here has to survive: the ledger has the names, and a new term counts anew.

use std::time::Duration;

use super::{CleanStep, StatusOldNames};
use crate::change::{Mono, SyncId};
use crate::ledger::OldNames;

/// Wait before a look that came to nothing is tried again; it doubles with each further one.
const RETRY: Duration = Duration::from_secs(30);
/// Longest such wait.
const RETRY_MAX: Duration = Duration::from_secs(1_800);
/// Deletes that the brake does not let go are looked at again after this long.
const HELD: Duration = Duration::from_secs(60);

/// The names of all syncs.
#[derive(Debug)]
pub(super) struct Cleanings(Vec<Cleaning>);

#[derive(Debug)]
struct Cleaning {
    old: OldNames,
    not_before: Mono,
    /// What was sent under these names, by whomever, has landed by then.
    landed_at: Mono,
    /// Pairs, as last counted.
    names: u64,
    held: bool,
    failed: u32,
}

impl Cleanings {
    /// `landed_at`: by then, what an earlier leader sent has landed.
    pub(super) fn new(landed_at: Mono, retired: Vec<OldNames>) -> Self {
        let cleaning = |old| Cleaning {
            old,
            not_before: Mono::ZERO,
            landed_at,
            names: 0,
            held: false,
            failed: 0,
        };
        Self(retired.into_iter().map(cleaning).collect())
    }

    /// Names that a scan found.
    pub(super) fn add(&mut self, now: Mono, old: OldNames) {
        match self.find_mut(old) {
            Some(one) => one.not_before = one.not_before.min(now),
            None => self.0.push(Cleaning {
                old,
                not_before: now,
                landed_at: now,
                names: 0,
                held: false,
                failed: 0,
            }),
        }
    }

    /// Each with the time before which nothing is to be done.
    pub(super) fn due(&self) -> impl Iterator<Item = (Mono, OldNames)> {
        self.0.iter().map(|one| (one.not_before, one.old))
    }

    /// Pairs that the next step would delete.
    pub(super) fn names(&self, old: OldNames) -> u64 {
        self.find(old).map_or(0, |one| one.names)
    }

    /// What to do now.
    pub(super) fn step(&self, now: Mono, old: OldNames) -> CleanStep {
        match self.find(old) {
            Some(one) if one.names > 0 => CleanStep::Delete { most: one.names },
            Some(one) => CleanStep::Count {
                last: one.landed_at <= now,
            },
            None => CleanStep::Count { last: false },
        }
    }

    /// The brake does not let them go; returns whether that is news.
    pub(super) fn hold(&mut self, now: Mono, old: OldNames) -> bool {
        let Some(one) = self.find_mut(old) else {
            return false;
        };
        one.not_before = now + HELD;
        !std::mem::replace(&mut one.held, true)
    }

    /// Somebody approves of deletes of the sync.
    pub(super) fn wake(&mut self, now: Mono, sync: SyncId) {
        let held = self.0.iter_mut();
        for one in held.filter(|one| one.old.sync == sync && one.held) {
            one.not_before = one.not_before.min(now);
        }
    }

    /// The new names are not written yet.
    pub(super) fn wait(&mut self, until: Mono, old: OldNames) {
        if let Some(one) = self.find_mut(old) {
            one.not_before = until;
            one.failed = 0;
        }
    }

    pub(super) fn counted(&mut self, now: Mono, old: OldNames, names: u64) {
        if let Some(one) = self.find_mut(old) {
            one.names = names;
            one.failed = 0;
            one.not_before = match names {
                0 => one.landed_at,
                _ => now,
            };
        }
    }

    /// Deletes were sent; they have landed by `landed_at`.
    pub(super) fn deleted(&mut self, landed_at: Mono, old: OldNames) {
        if let Some(one) = self.find_mut(old) {
            one.names = 0;
            one.held = false;
            one.failed = 0;
            one.landed_at = one.landed_at.max(landed_at);
            one.not_before = one.landed_at;
        }
    }

    /// A step came to nothing, and what it may have sent has landed by `landed_at`. Returns when it is
    /// tried again, at `until` at the earliest.
    pub(super) fn failed(
        &mut self,
        now: Mono,
        old: OldNames,
        until: Mono,
        landed_at: Mono,
    ) -> Mono {
        let Some(one) = self.find_mut(old) else {
            return until;
        };
        let wait = RETRY.saturating_mul(1 << one.failed.min(16)).min(RETRY_MAX);
        one.failed += 1;
        one.names = 0;
        one.held = false;
        one.landed_at = one.landed_at.max(landed_at);
        one.not_before = until.max(now + wait);
        one.not_before
    }

    pub(super) fn forget(&mut self, old: OldNames) {
        self.0.retain(|one| one.old != old);
    }

    /// What is left of a sync.
    pub(super) fn status(&self, sync: SyncId) -> Option<StatusOldNames> {
        let of_sync = self.0.iter().filter(|one| one.old.sync == sync);
        of_sync.fold(None, |sum: Option<StatusOldNames>, one| {
            let before = sum.map_or((0, false), |sum| (sum.names, sum.held));
            Some(StatusOldNames {
                names: before.0 + one.names,
                held: before.1 || one.held,
            })
        })
    }

    fn find(&self, old: OldNames) -> Option<&Cleaning> {
        self.0.iter().find(|one| one.old == old)
    }

    fn find_mut(&mut self, old: OldNames) -> Option<&mut Cleaning> {
        self.0.iter_mut().find(|one| one.old == old)
    }
}
