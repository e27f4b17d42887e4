//! Has the changes of related tables expanded into keys, chunk by chunk. Pure.
//!
//! The keys come back through the outbox and the queue as those of any change do. What cannot be
//! expanded is answered by a walk over all rows of the sync: that costs more and misses nothing.

use super::{Shared, Term};
use crate::change::{Mono, OutboxId, Related, SyncId};
use crate::ledger::{Expanded, Failure, FailureKind, Marker};
use crate::relay::expansions::Instead;
use crate::relay::{Effect, Notice, Settings, backfills};

/// Reason of the walk, for people.
const INSTEAD: &str = "related table";

impl Term {
    pub(super) fn drive_expansions(&mut self, shared: &mut Shared<'_>, now: Mono) {
        let chunk = shared.settings.backfill_chunk;
        if self.expansions.ready_at().is_none_or(|at| at > now) || self.queue.room() < chunk {
            return;
        }
        if let Some((sync, markers)) = self.expansions.take(chunk) {
            let limit = (chunk / markers.len().max(1)).max(1);
            shared.emit(Effect::Expand {
                sync,
                markers,
                limit,
            });
        }
    }

    /// When [`Self::drive_expansions`] may find something to do that no event announces.
    pub(super) fn expand_at(&self, settings: &Settings) -> Option<Mono> {
        let ready = self.expansions.ready_at()?;
        if self.queue.room() < settings.backfill_chunk {
            return self.queue.next_cool();
        }
        Some(ready)
    }

    /// A fetch brought a marker.
    pub(super) fn related(&mut self, sync: SyncId, id: OutboxId, related: Related, at: Mono) {
        let instead = self.expansions.offer(sync, Marker { id, related }, at);
        self.walk_instead(instead);
    }

    pub(super) fn expanded(
        &mut self,
        shared: &mut Shared<'_>,
        now: Mono,
        sync: SyncId,
        result: Result<Expanded, Failure>,
    ) -> Result<(), Failure> {
        match result {
            Ok(expanded) => {
                shared.tell(Notice::Expanded {
                    sync,
                    markers: expanded.done,
                    keys: expanded.keys,
                });
                if self.expansions.done(&expanded) {
                    self.fetch.expect();
                }
            }
            // Columns that are gone, or a value that no row can have: trying again changes nothing.
            Err(failure) if matches!(failure.kind, FailureKind::Row | FailureKind::Relation) => {
                shared.tell(Notice::LedgerFailed(failure));
                let instead = self.expansions.give_up();
                self.walk_instead(instead);
            }
            Err(failure) => {
                let wait = self.passing(shared, failure)?;
                let instead = self.expansions.failed(now + wait);
                self.walk_instead(instead);
            }
        }
        Ok(())
    }

    fn walk_instead(&mut self, instead: Option<Instead>) {
        if let Some(Instead { sync, markers }) = instead {
            backfills::of(&mut self.walks, sync).want(INSTEAD, markers);
        }
    }
}
