//! What the mass-delete brake holds back, and how it goes on. Pure.
//!
//! Two things may wait: keys in the queue, each under its claim, and the sweep of a backfill, whose
//! position stands in the ledger. So a held delete costs nothing but room, and outlives the process.

use super::{Shared, Term, sync_id};
use crate::change::{KvName, Mono, SyncId};
use crate::ledger::{Backfill, BackfillPhase, DeleteFacts};
use crate::queue::{Slot, Verdict};
use crate::relay::{Notice, Output};

/// A pair that is to go.
pub(super) struct Deletion {
    pub(super) slot: Slot,
    pub(super) name: KvName,
    /// A sweep saw it in KV.
    pub(super) listed: bool,
}

impl Term {
    /// Those that may be deleted now; the others are held.
    pub(super) fn braked(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        deletions: Vec<Deletion>,
    ) -> (Vec<Slot>, Vec<KvName>) {
        let asked = deletions
            .iter()
            .filter(|deletion| !self.queue.may_delete(deletion.slot));
        let (pairs, listed) = asked.fold((0, false), |(pairs, listed), deletion| {
            (pairs + 1, listed || deletion.listed)
        });
        let brake = &mut self.syncs[usize::from(sync.0)].brake;
        let was_closed = brake.is_closed();
        let admitted = pairs == 0 || brake.admit(now, pairs, listed);
        if brake.is_closed() && !was_closed {
            shared.tell(Notice::DeletesHeld { sync });
        }
        let mut go = (Vec::new(), Vec::new());
        for Deletion { slot, name, .. } in deletions {
            if admitted || self.queue.may_delete(slot) {
                self.queue.let_delete(slot, true);
                go.0.push(slot);
                go.1.push(name);
            } else {
                self.resolve(shared, now, slot, Verdict::Held);
            }
        }
        go
    }

    pub(super) fn deletes_asked(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        at: Mono,
        facts: &[DeleteFacts],
    ) {
        for facts in facts {
            let sync = facts.sync;
            if facts.approved_for.is_some() {
                self.cleanings.wake(now, sync);
            }
            if self.syncs[usize::from(sync.0)].brake.learn(now, at, facts) {
                self.queue.release_held(now, sync);
                shared.tell(Notice::DeletesResumed { sync });
            }
        }
    }

    /// All rows of the sync were walked, and there are so many.
    pub(super) fn foresee(&mut self, shared: &mut Shared<'_>, now: Mono, sync: SyncId, rows: u64) {
        let brake = &mut self.syncs[usize::from(sync.0)].brake;
        let was_closed = brake.is_closed();
        brake.foresee(now, rows);
        if brake.is_closed() && !was_closed {
            shared.tell(Notice::DeletesHeld { sync });
        }
    }

    /// The same where an earlier leader walked them, and swept no name yet.
    pub(super) fn foresee_resumed(&mut self, now: Mono, backfill: &Backfill, out: &mut Output) {
        if backfill.phase == BackfillPhase::Keys && backfill.cursor.is_none() {
            let sync = backfill.sync;
            let brake = &mut self.syncs[usize::from(sync.0)].brake;
            let was_closed = brake.is_closed();
            brake.foresee(now, backfill.done);
            if brake.is_closed() && !was_closed {
                out.notices.push(Notice::DeletesHeld { sync });
            }
        }
    }

    /// A brake opens by itself once nothing is left to be deleted: the rows are there again. What an
    /// earlier leader had claimed is looked at first.
    pub(super) fn drive_brakes(&mut self, shared: &mut Shared<'_>) {
        for (index, state) in self.syncs.iter_mut().enumerate() {
            let sync = sync_id(index);
            if state.brake.is_closed()
                && state.brake.ahead() == 0
                && state.busy == 0
                && !self.found.values().any(|of| *of == sync)
                && self.queue.held(sync) == 0
            {
                state.brake.open();
                shared.tell(Notice::DeletesResumed { sync });
            }
        }
    }

    /// Whether a sweep would only find what may not be deleted.
    pub(super) fn sweep_is_held(&self, index: usize) -> bool {
        let walk = &self.walks[index];
        let sweeps = walk
            .current()
            .is_some_and(|backfill| backfill.phase == BackfillPhase::Keys);
        self.syncs[index].brake.is_closed() && sweeps && !walk.wants_start()
    }
}
