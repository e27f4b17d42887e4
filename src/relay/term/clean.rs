//! Removes from KV what a sync made under an earlier configuration, once all of the new is written.
//! Pure.
//!
//! The names stand in the ledger until none is left, so whatever dies, the next leader goes on. These
//! deletes pass the brake: Workers may still read the old names. Those that are too many wait for a
//! person, and hold no other delete back.

use super::{Shared, Term};
use crate::change::{Mono, Outcome};
use crate::ledger::{Failure, FailureKind, OldNames};
use crate::queue::budget::Budget;
use crate::relay::{Cleaned, Effect, Notice, SweepFailure};

impl Term {
    pub(super) fn drive_cleanings(&mut self, shared: &mut Shared<'_>, now: Mono) {
        while let Some((at, old)) = self.next_cleaning(shared.budget, now)
            && at <= now
        {
            let names = self.cleanings.names(old);
            let brake = &mut self.syncs[usize::from(old.sync.0)].brake;
            if names > 0 && !brake.lets(now, names) {
                if self.cleanings.hold(now, old) {
                    shared.tell(Notice::OldNames {
                        sync: old.sync,
                        names,
                        held: true,
                    });
                }
                continue;
            }
            if names > 0 && brake.spend(now, names) {
                self.settle.note_deletes();
            }
            let step = self.cleanings.step(now, old);
            self.audits.begin_cleaning(old.sync);
            shared.emit(Effect::Clean { old, step });
            return;
        }
    }

    /// When something may be done for which names; `None` while only events tell.
    pub(super) fn next_cleaning(&self, budget: &mut Budget, now: Mono) -> Option<(Mono, OldNames)> {
        if self.audits.is_running() {
            return None;
        }
        let due = self.cleanings.due();
        let (at, old) = due
            .filter(|(_, old)| {
                !self.audits.is_owed(old.sync)
                    && self.walks[usize::from(old.sync.0)].is_idle()
                    && !self.new_syncs.contains(&old.sync)
                    && self.syncs[usize::from(old.sync.0)].inspection.is_none()
            })
            .min()?;
        let free = self.sending_from(now)?.max(self.walks_from(now)?);
        Some((at.max(free).max(budget.spare_at(now)), old))
    }

    pub(super) fn cleaned(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        old: OldNames,
        result: Result<Cleaned, SweepFailure>,
    ) -> Result<(), Failure> {
        let sync = old.sync;
        let began = self.audits.end(sync).unwrap_or(now);
        let landed_at = now + shared.settings.late_write_window;
        let (detail, until) = match result {
            Ok(Cleaned::NotYet) => {
                self.cleanings.wait(now + shared.settings.backoff.max, old);
                return Ok(());
            }
            Ok(Cleaned::Counted(names)) => {
                self.cleanings.counted(now, old, names);
                if names > 0 {
                    shared.tell(Notice::OldNames {
                        sync,
                        names,
                        held: false,
                    });
                }
                return Ok(());
            }
            Ok(Cleaned::Deleted(names)) => {
                self.cleanings.deleted(landed_at, old);
                shared.tell(Notice::Cleaned { sync, names });
                return Ok(());
            }
            Ok(Cleaned::Forgotten) => {
                self.cleanings.forget(old);
                shared.tell(Notice::Clean { sync });
                return Ok(());
            }
            Err(SweepFailure::Ledger(failure)) if failure.kind == FailureKind::Fenced => {
                return Err(failure);
            }
            // The connection was its own; whether the session lives shows elsewhere.
            Err(SweepFailure::Ledger(failure)) => (failure.detail, now),
            // The token's limit is everybody's business; all else concerns a namespace that may be
            // no sync's any more.
            Err(SweepFailure::Kv(answer)) if matches!(answer.outcome, Outcome::Throttled(_)) => {
                let until = self.list_failed(shared, now, sync, began, &answer);
                (answer.detail, until)
            }
            Err(SweepFailure::Kv(answer)) => (answer.detail, now),
        };
        let at = self.cleanings.failed(now, old, until, landed_at);
        shared.tell(Notice::CleaningFailed {
            sync,
            detail,
            retry_in: at.since(now),
        });
        Ok(())
    }
}
