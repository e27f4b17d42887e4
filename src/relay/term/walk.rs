//! Carries the backfills on: behind the live changes, through the same claims and requests. Pure.

use super::prepare::Item;
use super::{Shared, Term, sync_id};
use crate::change::{ContentHash, Key, Mono, SyncId};
use crate::ledger::{Backfill, BackfillStep, Examined, Failure, FailureKind, Walked};
use crate::queue::OutboxIds;
use crate::relay::backfills::{self, Next};
use crate::relay::{Effect, HoldReason, Notice, SweepFailure, Swept};

impl Term {
    pub(super) fn drive_backfills(&mut self, shared: &mut Shared<'_>, now: Mono) {
        if self.walks_from(now).is_none_or(|at| at > now) {
            return;
        }
        if self.unsure_until.take().is_some() {
            self.forget_seen(now);
        }
        for index in 0..self.syncs.len() {
            let sync = sync_id(index);
            // A start writes only to the ledger, so nothing but its own hold delays it.
            if self.walks[index].wants_start() {
                if self.walks[index].not_before() <= now {
                    self.next_walk(shared, now, sync, 0);
                }
                continue;
            }
            if !self.walk_is_ready(shared.settings.backfill_chunk, index, now)
                || self.live_is_due(now)
            {
                continue;
            }
            // A start of another sync needs no allowance, so the others are still looked at.
            if let Some(pairs) = self.allowance(shared, now)
                && let Some(pairs) = self.sync_allowance(sync, now, pairs)
            {
                self.next_walk(shared, now, sync, pairs);
            }
        }
    }

    /// What was missed while the triggers were not in order is found by a walk once they are.
    ///
    /// That it is owed stands in the ledger, not here: the fault may be of another leader's time.
    ///
    /// # Errors
    /// The failure that ends this term: the schema no longer serves this program.
    pub(super) fn examined(
        &mut self,
        shared: &mut Shared<'_>,
        result: Result<Vec<Examined>, Failure>,
    ) -> Result<(), Failure> {
        let examined = match result {
            Ok(examined) => examined,
            Err(failure) if failure.kind == FailureKind::Schema => return Err(failure),
            // It is done again soon, and what is wrong with the session shows elsewhere too.
            Err(failure) => {
                shared.tell(Notice::LedgerFailed(failure));
                return Ok(());
            }
        };
        for Examined {
            sync,
            fault,
            owed,
            audit_owed,
        } in examined
        {
            if let Some(reason) = audit_owed {
                self.audits.owe(sync, reason);
            }
            let known = &mut self.syncs[usize::from(sync.0)].fault;
            match &fault {
                Some(new) if *known != fault => shared.tell(Notice::Faulty {
                    sync,
                    fault: new.clone(),
                }),
                None if known.is_some() => shared.tell(Notice::Mended { sync }),
                _ => {}
            }
            if fault.is_none() && owed {
                backfills::of(&mut self.walks, sync).want("triggers mended", Vec::new());
            }
            *known = fault;
        }
        Ok(())
    }

    /// When backfills may go on; `None` while only answers tell.
    ///
    /// **Invariant:** after a change of identity no key counts as walked by a request that was sent
    /// before all unknown writes had landed.
    pub(super) fn walks_from(&self, now: Mono) -> Option<Mono> {
        let Some(until) = self.unsure_until else {
            return Some(now);
        };
        let older = self.requests.values().any(|sent| sent.at < until);
        (until > now || !older).then_some(until)
    }

    /// Whether the walk of a sync could take its next step, were sending free.
    pub(super) fn walk_is_ready(&self, chunk: usize, index: usize, now: Mono) -> bool {
        self.walks[index].has_work()
            && !self.sweep_is_held(index)
            && self.walks[index].not_before() <= now
            && self.queue.room() >= chunk
    }

    /// Live changes go first.
    fn live_is_due(&self, now: Mono) -> bool {
        self.halves
            .iter()
            .any(|(sync, _)| self.sync_allowance(*sync, now, 1).is_some())
            || (0..self.syncs.len()).map(sync_id).any(|sync| {
                self.queue.due_at(sync).is_some_and(|at| at <= now)
                    && self.sync_allowance(sync, now, 1).is_some()
            })
    }

    fn next_walk(&mut self, shared: &mut Shared<'_>, now: Mono, sync: SyncId, pairs: usize) {
        let limit = shared.settings.backfill_chunk.min(pairs);
        match backfills::of(&mut self.walks, sync).next(now) {
            Some(Next::Start { reason, markers }) => {
                shared.emit(Effect::StartBackfill {
                    sync,
                    reason,
                    markers,
                });
            }
            Some(Next::Walk { after }) => shared.emit(Effect::Walk { sync, after, limit }),
            Some(Next::Sweep { cursor }) => {
                shared.budget.spend(now);
                shared.emit(Effect::Sweep { sync, cursor });
            }
            None => {}
        }
    }

    pub(super) fn backfill_started(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        result: Result<Backfill, Failure>,
    ) -> Result<(), Failure> {
        match result {
            Ok(backfill) => {
                // What is known of KV is what the backfill is to look at again.
                self.forget_seen(now);
                self.queue.outdate(sync);
                let reason = backfill.reason.clone();
                shared.tell(Notice::BackfillStarted { sync, reason });
                backfills::of(&mut self.walks, sync).resume(backfill);
                Ok(())
            }
            Err(failure) => {
                let wait = self.passing(shared, failure)?;
                backfills::of(&mut self.walks, sync).start_failed(now + wait);
                Ok(())
            }
        }
    }

    pub(super) fn walked(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        result: Result<Walked, Failure>,
    ) -> Result<(), Failure> {
        let walked = match result {
            Ok(walked) => walked,
            Err(failure) => return self.walk_failed(shared, now, sync, failure),
        };
        let walk = backfills::of(&mut self.walks, sync);
        let step = walk.after_rows(walked.position, walked.keys.len());
        let keys = walked.keys.into_iter().map(|key| (key, None)).collect();
        let began = walk.began();
        self.readable(shared, sync, began);
        self.chunk(shared, now, sync, keys, step);
        Ok(())
    }

    pub(super) fn swept(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        result: Result<Swept, SweepFailure>,
    ) -> Result<(), Failure> {
        match result {
            Ok(Swept {
                keys,
                foreign,
                unmade,
                next,
            }) => {
                if let Some(old) = unmade {
                    self.cleanings.add(now, old);
                }
                let began = backfills::of(&mut self.walks, sync).began();
                // A list is a request too: it shows that the API and the namespace are there.
                self.sending.open(began);
                self.proven(shared, sync, began);
                let walk = backfills::of(&mut self.walks, sync);
                walk.count_foreign(foreign);
                let step = walk.after_names(next, keys.len());
                let keys = keys
                    .into_iter()
                    .map(|(key, hash)| (key, Some(hash)))
                    .collect();
                self.chunk(shared, now, sync, keys, step);
                Ok(())
            }
            Err(SweepFailure::Ledger(failure)) => self.walk_failed(shared, now, sync, failure),
            Err(SweepFailure::Kv(answer)) => {
                let began = backfills::of(&mut self.walks, sync).began();
                let until = self.list_failed(shared, now, sync, began, &answer);
                backfills::of(&mut self.walks, sync).retry_at(until);
                Ok(())
            }
        }
    }

    pub(super) fn advanced(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        result: Result<BackfillStep, Failure>,
    ) -> Result<(), Failure> {
        match result {
            Ok(step) => {
                self.step_done(shared, now, sync, step);
                Ok(())
            }
            Err(failure) => self.walk_failed(shared, now, sync, failure),
        }
    }

    /// The ledger has the step.
    pub(super) fn step_done(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        step: BackfillStep,
    ) {
        if let BackfillStep::EnterKeys { done } = step {
            self.foresee(shared, now, sync, done);
        }
        if let Some((done, foreign)) = backfills::of(&mut self.walks, sync).advanced(step) {
            self.syncs[usize::from(sync.0)].brake.swept();
            shared.tell(Notice::BackfillDone {
                sync,
                done,
                foreign,
            });
        }
    }

    /// A chunk is a batch of its own; what the queue already holds is looked at anyway.
    fn chunk(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        keys: Vec<(Key, Option<ContentHash>)>,
        step: BackfillStep,
    ) {
        let items: Vec<Item> = keys
            .into_iter()
            .filter_map(|(key, listed)| {
                let slot = self.queue.take_idle(sync, &key)?;
                Some(Item {
                    slot,
                    ids: OutboxIds::new(),
                    listed,
                })
            })
            .collect();
        if items.is_empty() {
            shared.emit(Effect::Advance { sync, step });
        } else {
            self.prepare(shared, now, sync, items, Some(step));
        }
    }

    fn walk_failed(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        failure: Failure,
    ) -> Result<(), Failure> {
        let at = match failure.kind {
            // No single row can be blamed while keys are walked: the filter fails.
            FailureKind::Row | FailureKind::Relation => {
                let hint = failure.hint.clone();
                self.hold(
                    shared,
                    now,
                    sync,
                    HoldReason::Relation,
                    failure.detail,
                    hint,
                )
            }
            _ => now + self.passing(shared, failure)?,
        };
        backfills::of(&mut self.walks, sync).retry_at(at);
        Ok(())
    }
}
