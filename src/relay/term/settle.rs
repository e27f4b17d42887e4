//! The end of a key, and the transactions that end claims. Pure.

use indexmap::IndexMap;

use super::{Shared, Term, sync_id};
use crate::change::{ClaimId, Key, Mono, OutboxId, Poison, SyncId};
use crate::ledger::{DeadLetter, Failure, SettleRequest};
use crate::queue::{Resolved, Slot, Verdict};
use crate::relay::{Effect, Notice};

/// What waits to be written to the ledger. One transaction at a time is out.
#[derive(Debug, Default)]
pub(super) struct Settlement {
    claims: Vec<ClaimId>,
    /// The last word on each key; in order, so that a seed replays.
    fates: IndexMap<(SyncId, Key), Fate>,
    out: Option<SettleRequest>,
    not_before: Mono,
    redundant: Vec<OutboxId>,
    compacting: bool,
    /// What was deleted lately is to be noted.
    deletes: bool,
}

/// What the dead letters are to say of a key.
#[derive(Debug)]
pub(super) enum Fate {
    Dead(Poison),
    Cleared,
}

impl Settlement {
    pub(super) fn is_idle(&self) -> bool {
        self.out.is_none() && !self.waits()
    }

    pub(super) fn wake_at(&self) -> Option<Mono> {
        (self.out.is_none() && self.waits()).then_some(self.not_before)
    }

    pub(super) fn end_claim(&mut self, claim: ClaimId) {
        self.claims.push(claim);
    }

    pub(super) fn note_deletes(&mut self) {
        self.deletes = true;
    }

    pub(super) fn decide(&mut self, sync: SyncId, key: Key, fate: Fate) {
        self.fates.insert((sync, key), fate);
    }

    pub(super) fn add_redundant(&mut self, ids: Vec<OutboxId>) {
        self.redundant.extend(ids);
    }

    fn waits(&self) -> bool {
        !self.claims.is_empty() || !self.fates.is_empty() || self.deletes
    }

    fn take(&mut self) -> SettleRequest {
        self.deletes = false;
        let mut request = SettleRequest {
            claims: std::mem::take(&mut self.claims),
            ..Default::default()
        };
        for ((sync, key), fate) in std::mem::take(&mut self.fates) {
            match fate {
                Fate::Dead(poison) => request.dead.push(DeadLetter { sync, key, poison }),
                Fate::Cleared => request.cleared.push((sync, key)),
            }
        }
        request
    }

    /// Takes back what was not written. A fate decided meanwhile is newer and stays.
    fn put_back(&mut self, request: SettleRequest) {
        self.claims.extend(request.claims);
        for letter in request.dead {
            self.fates
                .entry((letter.sync, letter.key))
                .or_insert(Fate::Dead(letter.poison));
        }
        for key in request.cleared {
            self.fates.entry(key).or_insert(Fate::Cleared);
        }
    }
}

impl Term {
    pub(super) fn drive_settle(&mut self, shared: &mut Shared<'_>, now: Mono) {
        if self.settle.wake_at().is_some_and(|at| at <= now) {
            let mut request = self.settle.take();
            let brakes = self.syncs.iter_mut().enumerate();
            request.deleted = brakes
                .filter_map(|(index, sync)| Some((sync_id(index), sync.brake.save(now)?)))
                .collect();
            self.settle.out = Some(request.clone());
            shared.emit(Effect::Settle(request));
        }
        if !self.settle.compacting && !self.settle.redundant.is_empty() && !self.is_draining() {
            self.settle.compacting = true;
            let ids = std::mem::take(&mut self.settle.redundant);
            shared.emit(Effect::Compact(ids));
        }
    }

    pub(super) fn settled(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        result: Result<(), Failure>,
    ) -> Result<(), Failure> {
        let request = self.settle.out.take().unwrap_or_default();
        if let Err(failure) = result {
            let wait = self.passing(shared, failure)?;
            for (sync, _) in &request.deleted {
                self.syncs[usize::from(sync.0)].brake.not_saved();
                self.settle.note_deletes();
            }
            self.settle.put_back(request);
            self.settle.not_before = now + wait;
        }
        Ok(())
    }

    pub(super) fn compacted(
        &mut self,
        shared: &mut Shared<'_>,
        result: Result<(), (Vec<OutboxId>, Failure)>,
    ) -> Result<(), Failure> {
        self.settle.compacting = false;
        if let Err((ids, failure)) = result {
            self.passing(shared, failure)?;
            self.settle.redundant.extend(ids);
        }
        Ok(())
    }

    /// Ends a try; returns how it ended, if it needs no other.
    pub(super) fn resolve(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        slot: Slot,
        verdict: Verdict,
    ) -> Option<Resolved> {
        let jitter = shared.jitter();
        let resolved = self.queue.resolve(now, slot, verdict, jitter)?;
        if let Some(claim) = resolved.claim {
            self.release(claim);
        }
        Some(resolved)
    }

    pub(super) fn again(&mut self, shared: &mut Shared<'_>, now: Mono, slot: Slot, at: Mono) {
        self.resolve(shared, now, slot, Verdict::Again { at });
    }

    pub(super) fn doubt(&mut self, shared: &mut Shared<'_>, now: Mono, sync: SyncId, slot: Slot) {
        if let Some(key) = self.queue.key(slot) {
            self.seen.forget(sync, key);
        }
        let until = now + shared.settings.late_write_window;
        self.resolve(shared, now, slot, Verdict::Doubt { until });
    }

    /// A key that cannot be written: its dead letter and the end of its claim are one transaction.
    pub(super) fn bury(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        slot: Slot,
        poison: Poison,
    ) {
        let Some(key) = self.queue.key(slot).cloned() else {
            return;
        };
        self.seen.forget(sync, &key);
        self.syncs[usize::from(sync.0)].may_have_dead_letters = true;
        shared.tell(Notice::Dead {
            sync,
            key: key.clone(),
            poison: poison.clone(),
        });
        self.settle.decide(sync, key, Fate::Dead(poison));
        self.resolve(shared, now, slot, Verdict::Dead);
    }

    /// A key of which KV can have no pair. Nothing was ever sent for it, so no doubt remains either.
    pub(super) fn forget(&mut self, shared: &mut Shared<'_>, now: Mono, sync: SyncId, slot: Slot) {
        if let Some(key) = self.queue.key(slot).cloned()
            && self.syncs[usize::from(sync.0)].may_have_dead_letters
        {
            self.settle.decide(sync, key, Fate::Cleared);
        }
        self.resolve(shared, now, slot, Verdict::Dead);
    }

    /// One key fewer needs the claim.
    pub(super) fn release(&mut self, claim: ClaimId) {
        let Some(open) = self.claims.get_mut(&claim) else {
            return;
        };
        *open -= 1;
        if *open == 0 {
            self.claims.remove(&claim);
            self.found.remove(&claim);
            self.settle.end_claim(claim);
        }
    }
}
