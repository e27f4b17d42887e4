//! One leadership: from the election until the session with Postgres is lost or drained. Pure.
//!
//! Owns everything that is forgotten when the term ends. `handle` takes an event in, `drive` starts
//! whatever may start now; both are called for each event, so `drive` must find nothing to do twice.

mod audit;
mod capture;
mod clean;
mod deletes;
mod deliver;
mod expand;
mod inspect;
mod prepare;
mod settle;
mod walk;

use std::collections::{HashMap, VecDeque};

use self::capture::Fetch;
use self::deliver::Sent;
use self::inspect::Inspection;
use self::prepare::{Item, Preparing};
use self::settle::Settlement;
use super::audits::Audits;
use super::backfills::{self, Walk};
use super::brake::Brake;
use super::cleanings::Cleanings;
use super::expansions::Expansions;
use super::holds::{BlockReason, Gate, HoldReason};
use super::{
    BatchId, Effect, Event, IDENTITY_CHANGED, Notice, Output, Recovered, RequestId, Settings,
    Status, StatusBlock, StatusBrake, StatusExpansion, StatusSync,
};
use crate::change::{ClaimId, Epoch, Mono, SyncId};
use crate::ledger::{Failure, FailureKind};
use crate::queue::Queue;
use crate::queue::budget::Budget;
use crate::queue::seen::Seen;

/// Part of the lease ttl that is not trusted: what a send may take to leave the process.
const TRUST_MARGIN: f64 = 0.2;

/// What a term borrows from the relay.
pub(super) struct Shared<'a> {
    pub(super) settings: &'a Settings,
    pub(super) budget: &'a mut Budget,
    pub(super) rng: &'a mut fastrand::Rng,
    pub(super) out: &'a mut Output,
}

impl Shared<'_> {
    fn emit(&mut self, effect: Effect) {
        self.out.effects.push(effect);
    }

    fn tell(&mut self, notice: Notice) {
        self.out.notices.push(notice);
    }

    fn jitter(&mut self) -> f64 {
        self.rng.f64()
    }
}

#[derive(Debug)]
pub(super) struct Term {
    epoch: Epoch,
    queue: Queue,
    seen: Seen,
    /// What was sent up to then says nothing about KV any more.
    seen_since: Mono,
    lease: Lease,
    fetch: Fetch,
    batches: HashMap<BatchId, Preparing>,
    requests: HashMap<RequestId, Sent>,
    /// Halves of batches that failed as a whole; their keys are claimed.
    halves: VecDeque<(SyncId, Vec<Item>)>,
    /// Keys whose values no batch has room for; they are claimed.
    large: VecDeque<(SyncId, Item)>,
    /// Open keys of each claim.
    claims: HashMap<ClaimId, usize>,
    /// Those among them that an earlier leader made.
    found: HashMap<ClaimId, SyncId>,
    settle: Settlement,
    sending: Gate<BlockReason>,
    syncs: Vec<Sync>,
    walks: Vec<Walk>,
    audits: Audits,
    expansions: Expansions,
    cleanings: Cleanings,
    /// Syncs to be walked for the first time, once the first fetch has brought the marker that
    /// `pg2kv.watch` left: one walk answers both.
    new_syncs: Vec<SyncId>,
    /// Writes that no claim names may land until then, so a walk before would be in vain.
    unsure_until: Option<Mono>,
    pairs: usize,
    next_id: u64,
    draining: Option<Mono>,
}

#[derive(Debug)]
struct Lease {
    trusted_until: Mono,
    heartbeat_at: Mono,
    beating: bool,
}

#[derive(Debug)]
struct Sync {
    gate: Gate<HoldReason>,
    brake: Brake,
    rejected_in_a_row: u32,
    /// Reads of a single row that failed since one worked.
    failed_in_a_row: u32,
    /// When its namespace was last found gone, until it is there again.
    lost_at: Option<Mono>,
    /// Dead letters of this sync may stand in the ledger, so a proven write clears its key's.
    may_have_dead_letters: bool,
    /// What is wrong with its triggers.
    fault: Option<String>,
    /// Batches and requests under way.
    busy: usize,
    /// Fetches that have been answered when its next batch goes out, full or not.
    fills_until: Option<u64>,
    /// Nothing is sent until it is done.
    inspection: Option<Inspection>,
}

impl Term {
    pub(super) fn new(
        settings: &Settings,
        now: Mono,
        epoch: Epoch,
        began: Mono,
        mut recovered: Recovered,
        out: &mut Output,
    ) -> Self {
        let count = settings.syncs.len();
        let audited = std::mem::take(&mut recovered.audits);
        let mut term = Self {
            epoch,
            queue: Queue::new(settings.queue, count),
            seen: Seen::new(settings.seen_max),
            seen_since: Mono::ZERO,
            lease: Lease {
                trusted_until: trusted_until(settings, began),
                heartbeat_at: began + settings.lease_ttl / 3,
                beating: false,
            },
            fetch: Fetch::new(now),
            batches: HashMap::new(),
            requests: HashMap::new(),
            halves: VecDeque::new(),
            large: VecDeque::new(),
            claims: HashMap::new(),
            found: HashMap::new(),
            settle: Settlement::default(),
            sending: Gate::new(settings.backoff),
            syncs: (0..count)
                .map(|_| Sync {
                    gate: Gate::new(settings.backoff),
                    brake: Brake::new(settings.brake),
                    rejected_in_a_row: 0,
                    failed_in_a_row: 0,
                    lost_at: None,
                    may_have_dead_letters: false,
                    fault: None,
                    busy: 0,
                    fills_until: None,
                    inspection: None,
                })
                .collect(),
            walks: backfills::walks(count),
            audits: Audits::new(settings.audit, now, count, audited),
            expansions: Expansions::new(count),
            cleanings: Cleanings::new(
                now + settings.lease_ttl + settings.late_write_window,
                std::mem::take(&mut recovered.retired),
            ),
            new_syncs: Vec::new(),
            unsure_until: None,
            pairs: settings.pairs_max,
            next_id: 0,
            draining: None,
        };
        for facts in &recovered.deletes {
            let brake = &mut term.syncs[usize::from(facts.sync.0)].brake;
            brake.resume(now, began, facts);
            if brake.is_closed() {
                out.notices.push(Notice::DeletesHeld { sync: facts.sync });
            }
        }
        term.recover(settings, now, recovered, out);
        term
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Starts nothing new from now on.
    pub(super) fn drain(&mut self, until: Mono) {
        self.draining.get_or_insert(until);
    }

    /// Every claim found is in doubt: its writer may have died at any point, and what it sent may
    /// land late. It may even live: after a restart of the server its lease is free at once, while
    /// it trusts itself for up to a ttl and retries what it had claimed.
    fn recover(&mut self, settings: &Settings, now: Mono, recovered: Recovered, out: &mut Output) {
        let doubt_until = now + settings.lease_ttl + settings.late_write_window;
        for (claim, sync, keys) in recovered.claims {
            self.claims.insert(claim, keys.len());
            self.found.insert(claim, sync);
            let empty = keys.is_empty();
            for key in keys {
                if let Some(older) = self.queue.recover(now, sync, key, claim, doubt_until) {
                    self.release(older);
                }
            }
            if empty {
                self.claims.remove(&claim);
                self.found.remove(&claim);
                self.settle.end_claim(claim);
            }
        }
        for (sync, count) in recovered.dead {
            self.syncs[usize::from(sync.0)].may_have_dead_letters = count > 0;
        }
        for sync in recovered.not_looked_at {
            self.syncs[usize::from(sync.0)].inspection = Some(Inspection::default());
        }
        if recovered.unsure {
            self.unsure_until = Some(doubt_until);
        }
        let changed = recovered.changed.into_iter().map(Notice::Reconfigured);
        out.notices.extend(changed);
        self.new_syncs = recovered.new_syncs;
        for backfill in recovered.backfills {
            if backfill.reason == IDENTITY_CHANGED {
                self.unsure_until = Some(doubt_until);
            }
            out.notices.push(Notice::BackfillStarted {
                sync: backfill.sync,
                reason: format!("{} (resumed)", backfill.reason),
            });
            self.foresee_resumed(now, &backfill, out);
            backfills::of(&mut self.walks, backfill.sync).resume(backfill);
        }
    }

    /// Takes in one event.
    ///
    /// # Errors
    /// The failure that ends this term.
    pub(super) fn handle(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        event: Event,
    ) -> Result<(), Failure> {
        match event {
            Event::Tick | Event::Campaigned(_) | Event::Shutdown | Event::Released => Ok(()),
            Event::SessionLost(failure) => Err(failure),
            Event::Heartbeat(result) => {
                self.lease.beating = false;
                let began = match result {
                    Ok(began) => began,
                    // The lease is still trusted for a while.
                    Err(failure) => {
                        self.lease.heartbeat_at = now + self.passing(shared, failure)?;
                        return Ok(());
                    }
                };
                self.lease.trusted_until = self
                    .lease
                    .trusted_until
                    .max(trusted_until(shared.settings, began));
                Ok(())
            }
            Event::Rung => {
                self.fetch.ring();
                shared.tell(Notice::Rung);
                Ok(())
            }
            Event::Fetched(result) => self.fetched(shared, now, result),
            Event::Prepared { batch, claim, read } => {
                self.prepared(shared, now, batch, claim, read)
            }
            Event::Answered {
                request,
                batch,
                answer,
                until_midnight,
            } => {
                self.answered(shared, now, request, batch, answer, until_midnight);
                Ok(())
            }
            Event::Settled(result) => self.settled(shared, now, result),
            Event::Compacted(result) => self.compacted(shared, result),
            Event::BackfillStarted { sync, result } => {
                self.backfill_started(shared, now, sync, result)
            }
            Event::Walked { sync, result } => self.walked(shared, now, sync, result),
            Event::Swept { sync, result } => self.swept(shared, now, sync, result),
            Event::Advanced { sync, result } => self.advanced(shared, now, sync, result),
            Event::PageWanted { sync, failed } => {
                self.page_wanted(shared, now, sync, failed);
                Ok(())
            }
            Event::Inspected { sync, result } => self.inspected(shared, now, sync, result),
            Event::Expanded { sync, result } => self.expanded(shared, now, sync, result),
            Event::Audited { sync, result } => self.audited(shared, now, sync, result),
            Event::Cleaned { old, result } => self.cleaned(shared, now, old, result),
            Event::Examined(result) => self.examined(shared, result),
            Event::DeletesAsked { at, facts } => {
                self.deletes_asked(shared, now, at, &facts);
                Ok(())
            }
            Event::TokenChanged => {
                if self
                    .sending
                    .closed()
                    .is_some_and(|(why, ..)| why == BlockReason::Unauthorized)
                {
                    self.sending.retry_now(now);
                }
                Ok(())
            }
        }
    }

    /// Starts whatever may start now. `Ok(true)` once a drain is over.
    ///
    /// # Errors
    /// The failure that ends this term.
    pub(super) fn drive(&mut self, shared: &mut Shared<'_>, now: Mono) -> Result<bool, Failure> {
        if now >= self.lease.trusted_until {
            return Err(Failure {
                kind: FailureKind::Fenced,
                detail: "the lease could not be renewed in time".to_owned(),
                hint: None,
            });
        }
        if !self.lease.beating && self.lease.heartbeat_at <= now {
            self.lease.beating = true;
            self.lease.heartbeat_at = now + shared.settings.lease_ttl / 3;
            shared.emit(Effect::Heartbeat(self.epoch));
        }
        self.queue.cool(now);
        self.drive_brakes(shared);
        self.drive_settle(shared, now);
        if let Some(until) = self.draining {
            let idle = self.batches.is_empty() && self.requests.is_empty() && self.settle.is_idle();
            return Ok(idle || until <= now);
        }
        self.drive_fetch(shared, now);
        self.drive_inspections(shared, now);
        self.drive_batches(shared, now);
        self.drive_backfills(shared, now);
        self.drive_expansions(shared, now);
        self.drive_audits(shared, now);
        self.drive_cleanings(shared, now);
        Ok(false)
    }

    /// When [`Term::drive`] may find something to do that no event announces.
    pub(super) fn wake_at(
        &self,
        settings: &Settings,
        budget: &mut Budget,
        now: Mono,
    ) -> Option<Mono> {
        let mut wake = vec![self.lease.trusted_until];
        if !self.lease.beating {
            wake.push(self.lease.heartbeat_at);
        }
        wake.extend(self.settle.wake_at());
        if let Some(until) = self.draining {
            wake.push(until);
            return wake.into_iter().min();
        }
        if self.queue.room() > 0 {
            wake.extend(self.fetch.wake_at());
        } else {
            wake.extend(self.queue.next_cool());
        }
        if self.has_room(settings, now)
            && let Some(at) = self.next_batch_at(settings, budget, now)
        {
            wake.push(at);
        }
        wake.extend(self.next_audit_at(budget, now));
        wake.extend(self.next_inspection(budget, now).map(|(at, _)| at));
        wake.extend(self.expand_at(settings));
        wake.extend(self.next_cleaning(budget, now).map(|(at, _)| at));
        wake.into_iter().min()
    }

    pub(super) fn fill_status(&self, now: Mono, status: &mut Status) {
        status.epoch = Some(self.epoch);
        status.queue_keys = self.queue.active();
        status.in_flight_keys = self.queue.in_flight();
        status.doubt_keys = self.queue.in_doubt();
        status.claims = self.claims.len();
        let oldest = [self.queue.oldest_change(), self.expansions.oldest_change()];
        let oldest = oldest.into_iter().flatten().min();
        status.oldest_change_age = oldest.map(|at| now.since(at));
        status.batch_pairs = self.pairs;
        status.notify_queue_full = self.fetch.is_crowded();
        status.blocked = self
            .sending
            .closed()
            .map(|(reason, detail, until)| StatusBlock {
                reason,
                detail: detail.to_owned(),
                retry_in: until.since(now),
            });
        status.syncs = self
            .syncs
            .iter()
            .zip(&self.walks)
            .enumerate()
            .map(|(index, (sync, walk))| StatusSync {
                waiting_keys: self.queue.waiting(sync_id(index)),
                hold: sync.gate.closed().map(|(reason, detail, _)| {
                    (reason, detail.to_owned(), reason.hint().to_owned())
                }),
                fault: sync.fault.clone(),
                deletes_held: sync.brake.is_closed().then(|| StatusBrake {
                    keys: self.queue.held(sync_id(index)),
                    ahead: sync.brake.ahead(),
                }),
                backfill: walk.current().cloned(),
                audit: self.audits.status(now, sync_id(index)),
                expansion: self
                    .expansions
                    .progress(sync_id(index))
                    .map(|(changes, keys)| StatusExpansion { changes, keys }),
                old_names: self.cleanings.status(sync_id(index)),
            })
            .collect();
    }

    /// Forgets what stands in KV, what is on its way there included.
    fn forget_seen(&mut self, now: Mono) {
        self.seen.clear();
        self.seen_since = now;
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn trusted_until(settings: &Settings, began: Mono) -> Mono {
    began + settings.lease_ttl.mul_f64(1.0 - TRUST_MARGIN)
}

fn sync_id(index: usize) -> SyncId {
    // The configuration allows far fewer syncs than u16::MAX.
    SyncId(u16::try_from(index).unwrap_or(u16::MAX))
}
