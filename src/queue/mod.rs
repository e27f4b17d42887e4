//! The debounced queue: which keys must be looked at, and when. Pure.
//!
//! Owns, for each key: the changes that wait (coalesced), whether a write is in flight, the claim
//! that holds it in Postgres, and the doubt that an earlier write left. Must not know what a
//! document is, nor how anything is sent.
//!
//! **Invariant:** a key is in flight at most once, and is taken no sooner than `key_interval` after
//! its last write came back.

pub mod backoff;
pub mod budget;
mod cooling;
mod entry;
mod held;
mod resolve;
mod room;
pub mod seen;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use hashbrown::HashTable;
use smallvec::{SmallVec, smallvec};

use self::cooling::Cooling;
use self::entry::{Dirty, Entry, Trouble};
use crate::change::{ClaimId, KV_NAME_MAX_BYTES, Key, Mono, OutboxId, SyncId};

/// Rows of the outbox that speak of one key: mostly one, and then without room of its own.
pub type OutboxIds = SmallVec<[OutboxId; 2]>;

/// Outbox rows that one waiting key may hold before all but the oldest are called redundant.
const IDS_PER_KEY_MAX: usize = 1_000;

/// Limits and times of a [`Queue`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A key is due once it has not changed for this long. May be zero.
    pub quiet: Duration,
    /// A key that keeps changing is due this long after its first change.
    pub max_wait: Duration,
    /// Keys become due together, at multiples of this: at most so much later than `quiet` and
    /// `max_wait` say, in so many fewer batches. May be zero.
    pub grain: Duration,
    /// Least time between two writes of one key.
    pub key_interval: Duration,
    /// Most distinct keys held at once; see [`Queue::room`].
    pub keys_max: usize,
    /// An idle key is due at its first change; only its repeats are debounced.
    pub leading: bool,
    /// Waits between tries of one key.
    pub backoff: backoff::Settings,
}

/// Place of a key in the queue; valid until the key is resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u32);

/// What became of an offered change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// The key did not wait before.
    New,
    /// The key waited already: this change costs no write of its own.
    Coalesced,
    /// The same outbox row again.
    Repeated,
}

/// A key taken out for writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Its place, to resolve it by.
    pub slot: Slot,
    /// The key.
    pub key: Key,
    /// Outbox rows that say it changed. Empty for a retry: its claim holds it.
    pub ids: OutboxIds,
}

/// What a try to write a key came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Proven to stand in KV, by a request sent at this moment.
    Written {
        /// When the request was sent.
        sent_at: Mono,
    },
    /// KV already has it; nothing was sent.
    Unchanged,
    /// It cannot be written; a dead letter takes its place, or there is no row any more.
    Dead,
    /// It may or may not have been written, or may be yet, until the moment given.
    Doubt {
        /// End of the late-write window.
        until: Mono,
    },
    /// It was not written. Look again at this moment.
    Again {
        /// Earliest next try.
        at: Mono,
    },
    /// It was not written, and waits under its claim: for a change, or for
    /// [`Queue::release_held`].
    Held,
}

/// A key that needs nothing more for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The claim that no longer needs to hold it.
    pub claim: Option<ClaimId>,
    /// Time since its oldest change that the write covers.
    pub waited: Option<Duration>,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    settings: Settings,
    entries: Vec<Option<Entry>>,
    /// The lowest is taken first: keys that come one after the other get slots in that order, and so are
    /// taken in it where they are due at the same moment.
    vacant: BinaryHeap<Reverse<Slot>>,
    /// By sync and key, which stand in the entry.
    index: HashTable<Slot>,
    hasher: RandomState,
    /// By sync, so that a sync on hold costs the others nothing.
    due: Vec<BTreeSet<(Mono, Slot)>>,
    /// Keys that need nothing, but were written less than `key_interval` ago.
    cooling: Cooling,
    redundant: Vec<OutboxId>,
    /// Bytes of the keys.
    key_bytes: usize,
    in_flight: usize,
    in_doubt: usize,
    /// Keys that wait for a person, by sync.
    held: Vec<usize>,
}

impl Queue {
    /// An empty queue for this many syncs.
    pub fn new(settings: Settings, syncs: usize) -> Self {
        Self {
            settings,
            // Pages that nothing touches cost nothing.
            entries: Vec::with_capacity(settings.keys_max),
            vacant: BinaryHeap::new(),
            index: HashTable::new(),
            hasher: RandomState::new(),
            due: (0..syncs).map(|_| BTreeSet::new()).collect(),
            cooling: Cooling::default(),
            redundant: Vec::new(),
            key_bytes: 0,
            in_flight: 0,
            in_doubt: 0,
            held: vec![0; syncs],
        }
    }

    /// Keys held, those that only wait out their interval included.
    pub fn len(&self) -> usize {
        self.active() + self.cooling.len()
    }

    /// Keys that something is to be done with.
    pub fn active(&self) -> usize {
        self.index.len()
    }

    /// Whether no key is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys that are being written.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Keys of which an earlier write is in doubt.
    pub fn in_doubt(&self) -> usize {
        self.in_doubt
    }

    /// First change that no write has covered yet. Looks at every key: for gauges, not for the loop.
    pub fn oldest_change(&self) -> Option<Mono> {
        self.entries
            .iter()
            .flatten()
            .flat_map(|entry| {
                [
                    entry.waiting_since,
                    entry.dirty.as_ref().map(|dirty| dirty.first),
                ]
            })
            .flatten()
            .min()
    }

    /// Takes in a change of `key` made at `changed_at`, recorded in the outbox as `id`.
    pub fn offer(
        &mut self,
        now: Mono,
        sync: SyncId,
        key: Key,
        id: OutboxId,
        changed_at: Mono,
    ) -> Offered {
        let leading = self.settings.leading;
        let slot = self.slot_of(sync, key);
        let Some(entry) = self.entry_mut(slot) else {
            return Offered::Repeated;
        };
        let offered = match &mut entry.dirty {
            None => {
                let idle = !entry.in_flight && entry.retry_at.is_none() && entry.calm().at() <= now;
                entry.dirty = Some(Dirty {
                    first: changed_at,
                    last: changed_at,
                    at_once: leading && idle,
                    again: false,
                    ids: smallvec![id],
                });
                Offered::New
            }
            Some(dirty) => {
                // Ids arrive nearly in order; a late commit inserts near the end.
                let Err(place) = dirty.ids.binary_search(&id) else {
                    return Offered::Repeated;
                };
                dirty.ids.insert(place, id);
                dirty.first = dirty.first.min(changed_at);
                dirty.last = dirty.last.max(changed_at);
                Offered::Coalesced
            }
        };
        let redundant = entry
            .dirty
            .as_mut()
            .filter(|dirty| dirty.ids.len() > IDS_PER_KEY_MAX)
            .map(|dirty| dirty.ids.drain(1..).collect::<Vec<_>>());
        self.redundant.extend(redundant.into_iter().flatten());
        self.reindex(slot);
        offered
    }

    /// Has the change of `key` that waits written even if the document is the one written last.
    ///
    /// It is the next try that must write. One that is in flight now may have been sent before KV
    /// was seen to differ, so its proof does not count.
    pub fn insist(&mut self, sync: SyncId, key: &Key) {
        let slot = self.find(self.hash(sync, key), sync, key);
        if let Some(entry) = slot.and_then(|slot| self.entry_mut(slot))
            && let Some(dirty) = &mut entry.dirty
        {
            dirty.again = true;
        }
    }

    /// Outbox rows that may be deleted because an older row of the same key stays.
    pub fn take_redundant(&mut self) -> Vec<OutboxId> {
        std::mem::take(&mut self.redundant)
    }

    /// Takes in a key of a claim that an earlier leader left: its write is in doubt.
    ///
    /// Returns the claim that held the key until now, which no longer needs to.
    pub fn recover(
        &mut self,
        now: Mono,
        sync: SyncId,
        key: Key,
        claim: ClaimId,
        doubt_until: Mono,
    ) -> Option<ClaimId> {
        let slot = self.slot_of(sync, key);
        self.set_doubt(slot, Some(doubt_until));
        let entry = self.entry_mut(slot)?;
        entry.retry_at = Some(now);
        let before = entry.claim.replace(claim);
        self.reindex(slot);
        before
    }

    /// Takes up to `max` due keys of `sync`, and fewer where they are longer than names may be.
    pub fn take(&mut self, now: Mono, sync: SyncId, max: usize) -> Vec<Taken> {
        let mut taken = Vec::new();
        let (mut bytes, bytes_max) = (0, max.saturating_mul(KV_NAME_MAX_BYTES));
        while taken.len() < max && bytes < bytes_max {
            let Some(&(at, slot)) = self.due[usize::from(sync.0)].first() else {
                break;
            };
            if at > now {
                break;
            }
            self.due[usize::from(sync.0)].pop_first();
            let Some(entry) = self.entry_mut(slot) else {
                continue;
            };
            entry.due = None;
            entry.in_flight = true;
            entry.retry_at = None;
            let was_held = std::mem::replace(&mut entry.held, false);
            let key = entry.key.clone();
            bytes += key.as_str().len();
            let dirty = entry.dirty.take();
            if let Some(dirty) = &dirty {
                entry.again |= dirty.again;
                entry.waiting_since = Some(
                    entry
                        .waiting_since
                        .map_or(dirty.first, |since| since.min(dirty.first)),
                );
            }
            self.in_flight += 1;
            self.held[usize::from(sync.0)] -= usize::from(was_held);
            taken.push(Taken {
                slot,
                key,
                ids: dirty.map(|dirty| dirty.ids).unwrap_or_default(),
            });
        }
        taken
    }

    /// Takes a key of a backfill, unless it waits or is in flight: then it is being looked at anyway,
    /// by the outbox or a claim.
    ///
    /// A key that only waits out its interval is taken too, since what it was written for may be
    /// older than the backfill; it must not be written before [`Queue::not_before`]. So is one that
    /// waits for a person: its rows may be there again.
    pub fn take_idle(&mut self, sync: SyncId, key: &Key) -> Option<Slot> {
        let slot = self.slot_of(sync, key.clone());
        let entry = self
            .entry_mut(slot)
            .filter(|entry| entry.held || entry.is_idle())
            .filter(|entry| entry.due.is_none())?;
        entry.in_flight = true;
        self.set_held(slot, false);
        self.in_flight += 1;
        Some(slot)
    }

    /// The key in `slot` must not be written before this moment.
    pub fn not_before(&self, slot: Slot) -> Mono {
        self.entry(slot)
            .map_or(Mono::ZERO, |entry| entry.not_before)
    }

    /// Has every key of the sync that is in flight looked at once more, when it is back.
    ///
    /// A backfill that begins now relies on reads from now on. Of what was read before and is still
    /// on its way, neither the table nor the names in KV tell it.
    pub fn outdate(&mut self, sync: SyncId) {
        for entry in self.entries.iter_mut().flatten() {
            entry.outdated |= entry.sync == sync && entry.in_flight;
        }
    }

    /// Notes that `claim` holds the key in Postgres from now on.
    ///
    /// Returns the claim that held it until now: one claim is enough, and the newest is the one
    /// whose other keys are alive longest.
    pub fn claimed(&mut self, slot: Slot, claim: ClaimId) -> Option<ClaimId> {
        self.entry_mut(slot)?.claim.replace(claim)
    }

    /// Puts a taken key back whose claim was not made: the outbox still has its rows.
    pub fn give_back(&mut self, slot: Slot, ids: OutboxIds, at: Mono) {
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        entry.in_flight = false;
        if !ids.is_empty() {
            let first = entry.waiting_since.unwrap_or(at);
            match &mut entry.dirty {
                Some(dirty) => {
                    dirty.first = dirty.first.min(first);
                    dirty.ids.extend(ids);
                    dirty.ids.sort_unstable();
                    dirty.ids.dedup();
                }
                None => {
                    entry.dirty = Some(Dirty {
                        first,
                        last: first,
                        at_once: false,
                        again: false,
                        ids,
                    });
                }
            }
        }
        if entry.claim.is_some() {
            entry.retry_at = Some(at);
        }
        if !entry.is_idle() {
            entry.not_before = entry.not_before.max(at);
        }
        self.in_flight -= 1;
        // An idle key, one of a backfill, may still be within its interval.
        self.put_down(slot, Mono::ZERO);
    }

    /// Whether the key must be written even if the document is the one written last: an earlier
    /// write of it is in doubt, or somebody insists.
    pub fn must_write(&self, slot: Slot) -> bool {
        self.is_in_doubt(slot) || self.entry(slot).is_some_and(|entry| entry.again)
    }

    /// Whether an earlier write of the key is in doubt.
    pub fn is_in_doubt(&self, slot: Slot) -> bool {
        self.entry(slot)
            .and_then(|entry| entry.trouble.as_ref())
            .is_some_and(|trouble| trouble.doubt_until.is_some())
    }

    /// The key in `slot`.
    pub fn key(&self, slot: Slot) -> Option<&Key> {
        self.entry(slot).map(|entry| &entry.key)
    }

    /// Drops keys that were only held for their interval. Called before the queue is asked for work.
    pub fn cool(&mut self, now: Mono) {
        self.cooling.forget(now);
    }

    /// When the next idle key is dropped.
    pub fn next_cool(&self) -> Option<Mono> {
        self.cooling.next()
    }

    /// When the first key of `sync` is due, which may be in the past.
    pub fn due_at(&self, sync: SyncId) -> Option<Mono> {
        self.due[usize::from(sync.0)].first().map(|(at, _)| *at)
    }

    /// Keys of `sync` that stand in the due index: those that wait for their time.
    pub fn waiting(&self, sync: SyncId) -> usize {
        self.due[usize::from(sync.0)].len()
    }

    fn slot_of(&mut self, sync: SyncId, key: Key) -> Slot {
        let hash = self.hash(sync, &key);
        if let Some(slot) = self.find(hash, sync, &key) {
            return slot;
        }
        let calm = self.cooling.take(hash);
        self.key_bytes += key.as_str().len();
        let entry = Entry {
            sync,
            key,
            dirty: None,
            in_flight: false,
            outdated: false,
            waiting_since: None,
            claim: None,
            held: false,
            again: false,
            may_delete: false,
            retry_at: None,
            trouble: None,
            not_before: calm.map_or(Mono::ZERO, |calm| calm.not_before),
            repeats_until: calm.map_or(Mono::ZERO, |calm| calm.repeats_until),
            due: None,
        };
        let slot = match self.vacant.pop() {
            Some(Reverse(slot)) => {
                self.entries[slot.0 as usize] = Some(entry);
                slot
            }
            None => {
                // The queue is bounded far below u32::MAX keys.
                let slot = Slot(u32::try_from(self.entries.len()).unwrap_or(u32::MAX));
                self.entries.push(Some(entry));
                slot
            }
        };
        let Self {
            index,
            entries,
            hasher,
            ..
        } = self;
        index.insert_unique(hash, slot, |other| {
            let entry = entries[other.0 as usize].as_ref();
            entry.map_or(0, |entry| hasher.hash_one((entry.sync, &entry.key)))
        });
        slot
    }

    fn hash(&self, sync: SyncId, key: &Key) -> u64 {
        self.hasher.hash_one((sync, key))
    }

    fn find(&self, hash: u64, sync: SyncId, key: &Key) -> Option<Slot> {
        let slot = self.index.find(hash, |slot| {
            self.entry(*slot)
                .is_some_and(|entry| entry.sync == sync && entry.key == *key)
        });
        slot.copied()
    }

    fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot.0 as usize)?.as_ref()
    }

    fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.0 as usize)?.as_mut()
    }

    fn set_doubt(&mut self, slot: Slot, doubt: Option<Mono>) {
        let settings = self.settings.backoff;
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        let before = entry
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.doubt_until.is_some());
        if doubt.is_some() || before {
            entry
                .trouble
                .get_or_insert_with(|| Box::new(Trouble::new(settings)))
                .doubt_until = doubt;
        }
        match (before, doubt.is_some()) {
            (false, true) => self.in_doubt += 1,
            (true, false) => self.in_doubt -= 1,
            _ => {}
        }
    }

    /// Files a key that is no longer in flight: under its due time, as cooling, or not at all.
    fn put_down(&mut self, slot: Slot, now: Mono) {
        let Some(entry) = self.entry(slot) else {
            return;
        };
        if !entry.is_idle() {
            self.reindex(slot);
            return;
        }
        let calm = entry.calm();
        if let Some(hash) = self.remove(slot)
            && calm.at() > now
        {
            self.cooling.put(hash, calm);
        }
    }

    fn reindex(&mut self, slot: Slot) {
        let settings = self.settings;
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        let due = entry.due_at(&settings);
        let before = std::mem::replace(&mut entry.due, due);
        let sync = usize::from(entry.sync.0);
        if before != due {
            if let Some(at) = before {
                self.due[sync].remove(&(at, slot));
            }
            if let Some(at) = due {
                self.due[sync].insert((at, slot));
            }
        }
    }

    /// Lets go of a key; returns its hash.
    fn remove(&mut self, slot: Slot) -> Option<u64> {
        let entry = self.entries.get_mut(slot.0 as usize)?.take()?;
        self.key_bytes -= entry.key.as_str().len();
        let hash = self.hash(entry.sync, &entry.key);
        if let Ok(found) = self.index.find_entry(hash, |other| *other == slot) {
            found.remove();
        }
        self.vacant.push(Reverse(slot));
        Some(hash)
    }
}

#[cfg(test)]
mod tests;
