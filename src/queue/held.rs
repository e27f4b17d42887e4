//! Keys that wait for a person: they have no time at which they are due. Pure.

use super::{Queue, Slot};
use crate::change::{Mono, SyncId};

impl Queue {
    /// Keys of `sync` that wait for a person.
    pub fn held(&self, sync: SyncId) -> usize {
        self.held[usize::from(sync.0)]
    }

    /// The held keys of `sync` are due now. Looks at every key: for rare occasions.
    pub fn release_held(&mut self, now: Mono, sync: SyncId) {
        let held: Vec<Slot> = (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| {
                entry
                    .as_ref()
                    .is_some_and(|entry| entry.sync == sync && entry.held)
            })
            .map(|(place, _)| Slot(place))
            .collect();
        for slot in held {
            self.set_held(slot, false);
            if let Some(entry) = self.entry_mut(slot) {
                entry.retry_at = Some(now);
            }
            self.reindex(slot);
        }
    }

    /// Whether the delete of the key was let through before, and is yet to be proven.
    pub fn may_delete(&self, slot: Slot) -> bool {
        self.entry(slot).is_some_and(|entry| entry.may_delete)
    }

    /// Notes whether the key may be deleted, for as long as it needs another try.
    pub fn let_delete(&mut self, slot: Slot, may: bool) {
        if let Some(entry) = self.entry_mut(slot) {
            entry.may_delete = may;
        }
    }

    pub(super) fn set_held(&mut self, slot: Slot, held: bool) {
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        let (sync, before) = (
            usize::from(entry.sync.0),
            std::mem::replace(&mut entry.held, held),
        );
        match (before, held) {
            (false, true) => self.held[sync] += 1,
            (true, false) => self.held[sync] -= 1,
            _ => {}
        }
    }
}
