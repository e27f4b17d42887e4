//! Lets KV be compared with the rows when nothing is in the way, page by page. Pure.
//!
//! What the comparison finds comes back through the outbox, like any change, so nothing is lost
//! whatever dies; here it is only told.

use super::{Shared, Term, sync_id};
use crate::change::{Answer, Mono, Outcome, SyncId};
use crate::ledger::{Failure, FailureKind};
use crate::queue::budget::Budget;
use crate::relay::holds::Pass;
use crate::relay::{AuditFound, Effect, Notice, SweepFailure};

impl Term {
    pub(super) fn drive_audits(&mut self, shared: &mut Shared<'_>, now: Mono) {
        if self
            .next_audit_at(shared.budget, now)
            .is_none_or(|at| at > now)
        {
            return;
        }
        if self.audits.is_running() {
            self.audits.allow_page(now);
            shared.budget.spend_spare(now);
            shared.emit(Effect::AllowPage {
                trusted_until: self.lease.trusted_until,
            });
            return;
        }
        let next = (0..self.syncs.len())
            .map(sync_id)
            .filter_map(|sync| Some((self.audit_at(sync, now)?, self.audits.due_at(sync)?, sync)))
            .filter(|(at, ..)| *at <= now)
            .min_by_key(|(_, due, sync)| (*due, *sync));
        if let Some((.., sync)) = next {
            let reason = self.audits.begin(sync);
            shared.tell(Notice::AuditStarted {
                sync,
                reason: reason.clone(),
            });
            shared.emit(Effect::Audit { sync, reason });
        }
    }

    /// When the next page may be listed, or the next comparison may begin; `None` while only events
    /// tell.
    pub(super) fn next_audit_at(&self, budget: &mut Budget, now: Mono) -> Option<Mono> {
        if self.audits.is_running() {
            let paced = self.audits.page_at()?;
            return Some(paced.max(self.sending_from(now)?).max(budget.spare_at(now)));
        }
        let syncs = (0..self.syncs.len()).map(sync_id);
        syncs.filter_map(|sync| self.audit_at(sync, now)).min()
    }

    /// A backfill looks at every key itself; and before all unknown writes have landed, a comparison
    /// would be in vain.
    fn audit_at(&self, sync: SyncId, now: Mono) -> Option<Mono> {
        let index = usize::from(sync.0);
        let due = self.audits.due_at(sync)?;
        let uninspected = self.syncs[index].inspection.is_some();
        if uninspected || !self.walks[index].is_idle() || self.new_syncs.contains(&sync) {
            return None;
        }
        let gate = match self.syncs[index].gate.pass(now) {
            Pass::Free => now,
            Pass::Probe => (self.syncs[index].busy == 0).then_some(now)?,
            Pass::Closed(until) => until,
        };
        let free = self.sending_from(now)?.max(self.walks_from(now)?);
        Some(due.max(gate).max(free))
    }

    /// When sending as a whole is free, or may be tried.
    pub(super) fn sending_from(&self, now: Mono) -> Option<Mono> {
        match self.sending.pass(now) {
            Pass::Free => Some(now),
            Pass::Probe => (self.flights() == 0).then_some(now),
            Pass::Closed(until) => Some(until),
        }
    }

    pub(super) fn page_wanted(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        failed: Option<Answer>,
    ) {
        let Some(Some(began)) = self.audits.want_page(sync) else {
            return;
        };
        // The namespace of old names may be another one than the sync's: nothing follows for that.
        if self.audits.is_cleaning() {
            return;
        }
        match failed {
            Some(answer) => {
                let until = self.list_failed(shared, now, sync, began, &answer);
                self.audits.delay_page(until);
            }
            None => self.listed(shared, sync, began),
        }
    }

    /// A page shows that the API and the namespace are there.
    fn listed(&mut self, shared: &mut Shared<'_>, sync: SyncId, began: Mono) {
        if self.sending.open(began).is_some() {
            shared.tell(Notice::Unblocked);
        }
        self.proven(shared, sync, began);
    }

    pub(super) fn audited(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        result: Result<AuditFound, SweepFailure>,
    ) -> Result<(), Failure> {
        let expected = self.audits.expects_drift();
        let began = self.audits.end(sync);
        let (detail, until) = match result {
            Ok(found) => {
                if let Some(began) = began {
                    self.listed(shared, sync, began);
                }
                if let Some(old) = found.unmade {
                    self.cleanings.add(now, old);
                }
                if !found.undecided {
                    self.audits.done(now, sync, found);
                    shared.tell(Notice::Audited {
                        sync,
                        found,
                        expected,
                    });
                    if found.drifted() > 0 {
                        self.fetch.ring();
                    }
                    return Ok(());
                }
                ("too much waits to tell what has drifted".to_owned(), now)
            }
            // Names have a quota of their own; writes may go on.
            Err(SweepFailure::Kv(answer)) if answer.outcome == Outcome::QuotaExhausted => {
                (answer.detail, now)
            }
            Err(SweepFailure::Kv(answer)) => {
                let began = began.unwrap_or(now);
                let until = self.list_failed(shared, now, sync, began, &answer);
                (answer.detail, until)
            }
            Err(SweepFailure::Ledger(failure)) if failure.kind == FailureKind::Fenced => {
                return Err(failure);
            }
            // The connection was the audit's own; whether the session lives shows elsewhere.
            Err(SweepFailure::Ledger(failure)) => (failure.detail, now),
        };
        let at = self.audits.failed(now, sync, until);
        shared.tell(Notice::AuditFailed {
            sync,
            detail,
            retry_in: at.since(now),
        });
        Ok(())
    }
}
