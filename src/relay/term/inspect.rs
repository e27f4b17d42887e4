//! Before anything of a sync is sent, looks whether another installation of pg2kv has pairs under its
//! names. Pure.
//!
//! Workers KV has no compare-and-set: two installations that write the same names overwrite each
//! other for ever. The one that comes second stops, and says so. That names are free is noted in the
//! ledger, so it is looked at once for a template and a namespace.

use super::{Shared, Term, sync_id};
use crate::change::{Mono, SyncId};
use crate::ledger::{Failure, FailureKind};
use crate::queue::budget::Budget;
use crate::relay::holds::Pass;
use crate::relay::{Effect, HoldReason, Inspected, SweepFailure};

/// How far the look at the names of a sync is.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    cursor: Option<String>,
    not_before: Mono,
    /// When the page that is under way was asked for.
    began: Option<Mono>,
}

impl Term {
    pub(super) fn drive_inspections(&mut self, shared: &mut Shared<'_>, now: Mono) {
        while let Some((at, sync)) = self.next_inspection(shared.budget, now)
            && at <= now
        {
            let Some(inspection) = &mut self.syncs[usize::from(sync.0)].inspection else {
                return;
            };
            inspection.began = Some(now);
            let cursor = inspection.cursor.clone();
            shared.budget.spend(now);
            shared.emit(Effect::Inspect { sync, cursor });
        }
    }

    /// When the next page may be looked at, and of which sync; `None` while only events tell.
    pub(super) fn next_inspection(&self, budget: &mut Budget, now: Mono) -> Option<(Mono, SyncId)> {
        let under_way = self.syncs.iter().any(|sync| {
            let inspection = sync.inspection.as_ref();
            inspection.is_some_and(|inspection| inspection.began.is_some())
        });
        let free = match self.sending.pass(now) {
            Pass::Free => now,
            Pass::Probe => (!under_way && self.flights() == 0).then_some(now)?,
            Pass::Closed(until) => until,
        };
        let next = self.syncs.iter().enumerate().filter_map(|(index, sync)| {
            let inspection = sync.inspection.as_ref()?;
            let waits = inspection.began.is_none();
            waits.then_some((inspection.not_before, sync_id(index)))
        });
        let (at, sync) = next.min()?;
        Some((at.max(free).max(budget.ready_at(now)), sync))
    }

    pub(super) fn inspected(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        result: Result<Inspected, SweepFailure>,
    ) -> Result<(), Failure> {
        let state = &mut self.syncs[usize::from(sync.0)];
        let Some(inspection) = &mut state.inspection else {
            return Ok(());
        };
        let began = inspection.began.take().unwrap_or(now);
        let not_before = match result {
            Ok(Inspected::Next(cursor)) => {
                inspection.cursor = Some(cursor);
                self.sending.open(began);
                self.proven(shared, sync, began);
                now
            }
            Ok(Inspected::Free) => {
                state.inspection = None;
                self.sending.open(began);
                self.proven(shared, sync, began);
                return Ok(());
            }
            Ok(Inspected::Taken(other)) => {
                self.sending.open(began);
                let detail = format!(
                    "installation {other} of pg2kv has pairs under the names of this sync; nothing \
                     is sent"
                );
                let reason = HoldReason::AnotherInstallation;
                self.hold(shared, now, sync, reason, detail, None);
                // A person has to do something first.
                now + shared.settings.backoff.max
            }
            Err(SweepFailure::Kv(answer)) => self.list_failed(shared, now, sync, began, &answer),
            Err(SweepFailure::Ledger(failure)) if failure.kind == FailureKind::Row => {
                now + shared.settings.backoff.max
            }
            Err(SweepFailure::Ledger(failure)) => self.read_failed(shared, now, sync, failure)?,
        };
        if let Some(inspection) = &mut self.syncs[usize::from(sync.0)].inspection {
            inspection.not_before = not_before;
        }
        Ok(())
    }
}
