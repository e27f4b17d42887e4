//! From due keys to documents: takes a batch, has it claimed and read, and takes a failed read
//! apart. Pure.

use std::time::Duration;

use super::{Shared, Term, sync_id};
use crate::change::{
    ClaimId, ContentHash, KV_VALUE_MAX_BYTES, Mono, Poison, PoisonReason, Rendered, SyncId,
};
use crate::ledger::{BackfillStep, ClaimRequest, Failure, FailureKind};
use crate::queue::budget::Budget;
use crate::queue::{OutboxIds, Slot};
use crate::relay::holds::Pass;
use crate::relay::{BatchId, Effect, HoldReason, Notice, Settings, backfills, ends_term};

/// Keys of a probe: enough to see whether it works, few enough to lose.
const PROBE_PAIRS: usize = 100;

/// Fewer pairs are not worth a request of their own.
const SHARE_PAIRS_MIN: usize = 1_000;

/// Single rows of one sync that cannot be read, one after the other, before the cause is sought
/// elsewhere than in them.
const FAILED_IN_A_ROW_MAX: u32 = 20;

/// A key of a batch.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) slot: Slot,
    pub(super) ids: OutboxIds,
    /// Hash that KV's metadata carries, where a sweep saw it.
    pub(super) listed: Option<ContentHash>,
}

impl Item {
    /// A key that a claim holds.
    pub(super) fn claimed(slot: Slot) -> Self {
        Self {
            slot,
            ids: OutboxIds::new(),
            listed: None,
        }
    }
}

/// A batch that is being claimed and read.
#[derive(Debug)]
pub(super) struct Preparing {
    sync: SyncId,
    items: Vec<Item>,
    claims: bool,
    step: Option<BackfillStep>,
    began: Mono,
    /// Bytes of documents that it may bring.
    max_bytes: usize,
}

impl Term {
    pub(super) fn flights(&self) -> usize {
        self.batches.len() + self.requests.len()
    }

    /// Whether memory bears one more batch. A value that no batch has room for goes alone, and only one
    /// such at a time, so that the others flow beside it; while it waits for its turn, they do not.
    pub(super) fn has_room(&self, settings: &Settings, now: Mono) -> bool {
        if self.flights() == 0 {
            return true;
        }
        let reading = self.batches.values().map(|batch| batch.max_bytes);
        let sent = self.requests.values().map(|sent| sent.bytes);
        let bytes: usize = reading.chain(sent).sum();
        let next = if self.is_large_next(settings, now) {
            KV_VALUE_MAX_BYTES
        } else {
            settings.body_max_bytes
        };
        let bytes_max = settings.in_flight_max * settings.body_max_bytes;
        self.flights() < settings.in_flight_max && bytes + next <= bytes_max
    }

    /// Whether the next batch is a large value.
    fn is_large_next(&self, settings: &Settings, now: Mono) -> bool {
        let is_large = |bytes: usize| bytes > settings.body_max_bytes;
        let reading = self.batches.values().map(|batch| batch.max_bytes);
        let sent = self.requests.values().map(|sent| sent.bytes);
        self.large_at(now).is_some() && !reading.chain(sent).any(is_large)
    }

    /// Whether a batch may start, and how large. `None`: not now.
    pub(super) fn allowance(&self, shared: &mut Shared<'_>, now: Mono) -> Option<usize> {
        if !self.has_room(shared.settings, now) {
            return None;
        }
        let pairs = match self.sending.pass(now) {
            Pass::Free => self.pairs,
            Pass::Probe if self.flights() == 0 => self.pairs.min(PROBE_PAIRS),
            Pass::Probe | Pass::Closed(_) => return None,
        };
        // Batches that are being prepared will spend too.
        let left = shared.budget.left(now) > self.batches.len() as u64;
        (left && shared.budget.ready_at(now) <= now).then_some(pairs)
    }

    /// Most pairs of each batch, where these are all keys that wait and requests are in plenty: one
    /// batch alone is read, then written, and half of the time waits. So keys that would fit in few
    /// are divided among as many as may be under way.
    fn share(&self, shared: &mut Shared<'_>, now: Mono) -> usize {
        if self.flights() > 0 || self.fetch.has_more() || !shared.budget.is_ample(now) {
            return usize::MAX;
        }
        let waiting: usize = (0..self.syncs.len())
            .map(|index| self.queue.waiting(sync_id(index)))
            .sum();
        let share = waiting.div_ceil(shared.settings.in_flight_max.max(1));
        share.max(SHARE_PAIRS_MIN)
    }

    /// Whether the keys of `sync` wait for the page of the outbox that is on its way, to fill their
    /// request: one counts alike however few pairs it has, and others are under way meanwhile.
    ///
    /// They wait for one page only, which can fill any request. If it brought nothing for this sync,
    /// other syncs' changes would hold up its own for as long as they last.
    fn is_filling(&self, sync: SyncId) -> bool {
        let until = self.syncs[usize::from(sync.0)].fills_until;
        until.is_some_and(|until| self.fetch.answered() < until)
            && self.fetch.brings_more()
            && self.flights() > 0
    }

    /// Whether the next batch of `sync`, of as many pairs, is to wait for more keys. Notes when that
    /// ends.
    fn is_to_fill(&mut self, sync: SyncId, pairs: usize) -> bool {
        if self.queue.waiting(sync) >= pairs {
            return false;
        }
        let next = self.fetch.answered() + 1;
        let until = &mut self.syncs[usize::from(sync.0)].fills_until;
        until.get_or_insert(next);
        self.is_filling(sync)
    }

    pub(super) fn sync_allowance(&self, sync: SyncId, now: Mono, pairs: usize) -> Option<usize> {
        let state = &self.syncs[usize::from(sync.0)];
        if state.inspection.is_some() {
            return None;
        }
        match state.gate.pass(now) {
            Pass::Free => Some(pairs),
            Pass::Probe if state.busy == 0 => Some(pairs.min(PROBE_PAIRS)),
            Pass::Probe | Pass::Closed(_) => None,
        }
    }

    pub(super) fn next_batch_at(
        &self,
        settings: &Settings,
        budget: &mut Budget,
        now: Mono,
    ) -> Option<Mono> {
        if budget.left(now) <= self.batches.len() as u64 && !self.batches.is_empty() {
            // What is left goes to the batches under way; their answers come first.
            return None;
        }
        let gate = match self.sending.pass(now) {
            Pass::Free => now,
            Pass::Probe if self.flights() == 0 => now,
            Pass::Probe => return None,
            Pass::Closed(until) => until,
        };
        // Live changes go first, those that wait for a page too.
        let filling = (0..self.syncs.len()).any(|index| self.is_filling(sync_id(index)));
        let walks_from = self.walks_from(now).filter(|_| !filling);
        let work = (0..self.syncs.len())
            .filter_map(|index| {
                let sync = sync_id(index);
                if self.syncs[index].inspection.is_some() {
                    return None;
                }
                let walk = &self.walks[index];
                let room = walk.wants_start() || self.queue.room() >= settings.backfill_chunk;
                let walk = walks_from
                    .filter(|_| walk.has_work() && room && !self.sweep_is_held(index))
                    .map(|from| walk.not_before().max(from));
                let large = self.large.iter().any(|(of, _)| *of == sync);
                let halves = self.halves.iter().any(|(of, _)| *of == sync);
                let halves = (halves || large).then_some(now);
                let due = self
                    .queue
                    .due_at(sync)
                    .filter(|_| !self.is_filling(sync))
                    .into_iter()
                    .chain(walk)
                    .chain(halves)
                    .min()?;
                match self.syncs[index].gate.pass(now) {
                    Pass::Free => Some(due),
                    Pass::Probe => (self.syncs[index].busy == 0).then_some(due),
                    Pass::Closed(until) => Some(due.max(until)),
                }
            })
            .min()?;
        Some(work.max(gate).max(budget.ready_at(now)))
    }

    pub(super) fn drive_batches(&mut self, shared: &mut Shared<'_>, now: Mono) {
        let share = self.share(shared, now);
        while let Some(pairs) = self.allowance(shared, now) {
            if self.is_large_next(shared.settings, now)
                && let Some((sync, item)) = self.next_large(now)
            {
                self.prepare_bytes(shared, now, sync, vec![item], None, KV_VALUE_MAX_BYTES);
                continue;
            }
            if let Some((sync, items)) = self.next_half(now) {
                self.prepare(shared, now, sync, items, None);
                continue;
            }
            let mut due: Vec<(Mono, SyncId, usize)> = (0..self.syncs.len())
                .map(sync_id)
                .filter_map(|sync| {
                    let at = self.queue.due_at(sync).filter(|at| *at <= now)?;
                    Some((at, sync, self.sync_allowance(sync, now, pairs)?))
                })
                .collect();
            due.sort_unstable();
            let next = due
                .into_iter()
                .find(|(_, sync, pairs)| !self.is_to_fill(*sync, (*pairs).min(share)));
            let Some((_, sync, pairs)) = next else { return };
            self.syncs[usize::from(sync.0)].fills_until = None;
            let mut taken = self.queue.take(now, sync, pairs.min(share));
            // Neighbours in the table stand side by side, so the server finds one near the other.
            taken.sort_unstable_by(|one, other| one.key.index_order(&other.key));
            let items: Vec<Item> = taken
                .into_iter()
                .map(|taken| Item {
                    slot: taken.slot,
                    ids: taken.ids,
                    listed: None,
                })
                .collect();
            self.prepare(shared, now, sync, items, None);
        }
    }

    pub(super) fn prepare(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        items: Vec<Item>,
        step: Option<BackfillStep>,
    ) {
        let max_bytes = shared.settings.body_max_bytes;
        self.prepare_bytes(shared, now, sync, items, step, max_bytes);
    }

    /// [`Self::prepare`] for so many bytes of documents.
    fn prepare_bytes(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        items: Vec<Item>,
        step: Option<BackfillStep>,
        max_bytes: usize,
    ) {
        let backfill = step.is_some();
        let keys = items
            .iter()
            .filter_map(|item| self.queue.key(item.slot).cloned())
            .collect();
        let claim: Vec<usize> = items
            .iter()
            .enumerate()
            .filter(|(_, item)| backfill || !item.ids.is_empty())
            .map(|(index, _)| index)
            .collect();
        let ids = items
            .iter()
            .flat_map(|item| item.ids.iter().copied())
            .collect();
        let batch = BatchId(self.next_id());
        let request = ClaimRequest {
            sync,
            keys,
            claim,
            ids,
            backfill: step.clone(),
            max_bytes,
        };
        let claims = !request.claim.is_empty();
        self.syncs[usize::from(sync.0)].busy += 1;
        self.batches.insert(
            batch,
            Preparing {
                sync,
                items,
                claims,
                step,
                began: now,
                max_bytes,
            },
        );
        shared.emit(Effect::Prepare { batch, request });
    }

    pub(super) fn prepared(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        batch: BatchId,
        claim: Option<ClaimId>,
        read: Result<Vec<Rendered>, Failure>,
    ) -> Result<(), Failure> {
        let Some(Preparing {
            sync,
            items,
            claims,
            step,
            began,
            max_bytes: _,
        }) = self.batches.remove(&batch)
        else {
            return Ok(());
        };
        self.syncs[usize::from(sync.0)].busy -= 1;
        if let Some(claim) = claim {
            let held: Vec<Slot> = items
                .iter()
                .filter(|item| step.is_some() || !item.ids.is_empty())
                .map(|item| item.slot)
                .collect();
            self.claims.insert(claim, held.len());
            for slot in held {
                if let Some(older) = self.queue.claimed(slot, claim) {
                    self.release(older);
                }
            }
            if let Some(step) = step {
                self.step_done(shared, now, sync, step);
            }
        } else if claims {
            return self.not_claimed(shared, now, sync, items, step.is_some(), read);
        }
        match read {
            Ok(rendered) => {
                self.readable(shared, sync, began);
                self.rendered(shared, now, sync, items, rendered);
                Ok(())
            }
            Err(failure) if failure.kind.is_of_rows() && items.len() > 1 => {
                let items = items.into_iter().map(|item| Item::claimed(item.slot));
                self.take_apart(sync, items.collect());
                Ok(())
            }
            Err(failure) if failure.kind == FailureKind::Row => {
                let poison = Poison::new(PoisonReason::RowError, failure.detail.clone());
                for item in items {
                    self.bury(shared, now, sync, item.slot, poison.clone());
                }
                let state = &mut self.syncs[usize::from(sync.0)];
                state.failed_in_a_row += 1;
                if state.failed_in_a_row > FAILED_IN_A_ROW_MAX {
                    // Dead letters go on at the pace of the hold's probes: it may be the rows after all.
                    let detail = format!("no row of this sync can be read: {}", failure.detail);
                    let reason = HoldReason::Relation;
                    self.hold(shared, now, sync, reason, detail, failure.hint);
                }
                Ok(())
            }
            Err(failure) => {
                // A row that takes too long would keep all others waiting if it were read at once.
                let slow = failure.kind == FailureKind::RowTransient;
                let mut at = self.read_failed(shared, now, sync, failure)?;
                if slow {
                    at = at.max(now + shared.settings.backoff.max);
                }
                for item in items {
                    self.again(shared, now, item.slot, at);
                }
                Ok(())
            }
        }
    }

    /// Something in a claimed batch fails it: each half is tried for itself.
    pub(super) fn take_apart(&mut self, sync: SyncId, mut left: Vec<Item>) {
        let right = left.split_off(left.len() / 2);
        self.halves.extend([(sync, left), (sync, right)]);
    }

    /// Place of the next large value whose sync may pass.
    fn large_at(&self, now: Mono) -> Option<usize> {
        let passes = |sync: &SyncId| self.sync_allowance(*sync, now, 1).is_some();
        self.large.iter().position(|(sync, _)| passes(sync))
    }

    fn next_large(&mut self, now: Mono) -> Option<(SyncId, Item)> {
        self.large.remove(self.large_at(now)?)
    }

    /// The next half whose sync may pass.
    fn next_half(&mut self, now: Mono) -> Option<(SyncId, Vec<Item>)> {
        let at = self
            .halves
            .iter()
            .position(|(sync, _)| self.sync_allowance(*sync, now, 1).is_some())?;
        self.halves.remove(at)
    }

    /// A read of the sync's table that began at `began` went well.
    pub(super) fn readable(&mut self, shared: &mut Shared<'_>, sync: SyncId, began: Mono) {
        let state = &mut self.syncs[usize::from(sync.0)];
        state.failed_in_a_row = 0;
        let gate = &mut state.gate;
        let unreadable = gate
            .closed()
            .is_some_and(|(why, ..)| why == HoldReason::Relation);
        if unreadable && gate.open(began).is_some() {
            shared.tell(Notice::Resumed { sync });
        }
    }

    /// The claim was rolled back: the outbox, or the backfill's position, still has every key.
    pub(super) fn not_claimed(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        items: Vec<Item>,
        backfill: bool,
        read: Result<Vec<Rendered>, Failure>,
    ) -> Result<(), Failure> {
        let failure = read.err().unwrap_or_else(|| Failure {
            kind: FailureKind::Fenced,
            detail: "the claim was not made".to_owned(),
            hint: None,
        });
        let at = self.read_failed(shared, now, sync, failure)?;
        for item in items {
            self.queue.give_back(item.slot, item.ids, at);
        }
        if backfill {
            backfills::of(&mut self.walks, sync).retry_at(at);
        }
        Ok(())
    }

    /// When to try again after a failed claim or read.
    pub(super) fn read_failed(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        failure: Failure,
    ) -> Result<Mono, Failure> {
        if failure.kind == FailureKind::Relation {
            let hint = failure.hint.clone();
            return Ok(self.hold(
                shared,
                now,
                sync,
                HoldReason::Relation,
                failure.detail,
                hint,
            ));
        }
        Ok(now + self.passing(shared, failure)?)
    }

    /// The wait after a failure that passes by itself.
    pub(super) fn passing(
        &mut self,
        shared: &mut Shared<'_>,
        failure: Failure,
    ) -> Result<Duration, Failure> {
        if ends_term(&failure) {
            return Err(failure);
        }
        shared.tell(Notice::LedgerFailed(failure));
        Ok(shared
            .settings
            .backoff
            .initial
            .mul_f64(0.5 + shared.jitter()))
    }
}
