//! Keys that are done, but were written too lately to be written again. Pure.
//!
//! Owns when such a key is calm again. Knows a key by its hash only, so that as many as are written in
//! an interval take little room. Keys of one hash would share their moments: one would wait for the
//! other's interval, which is late and not wrong.

use std::collections::VecDeque;

use hashbrown::HashTable;

use crate::change::Mono;

/// When a key is as if it had never been written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Calm {
    /// It must not be written sooner.
    pub(super) not_before: Mono,
    /// A change until then is a repeat of its last write.
    pub(super) repeats_until: Mono,
}

impl Calm {
    /// From then on neither matters.
    pub(super) fn at(self) -> Mono {
        self.not_before.max(self.repeats_until)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cooling {
    keys: HashTable<(u64, Calm)>,
    /// In the order in which they were put here, those taken out since included.
    order: VecDeque<(Mono, u64)>,
}

impl Cooling {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Puts a key here.
    pub(super) fn put(&mut self, hash: u64, calm: Calm) {
        self.order.push_back((calm.at(), hash));
        match self.keys.find_mut(hash, |(of, _)| *of == hash) {
            Some((_, other)) => {
                other.not_before = other.not_before.max(calm.not_before);
                other.repeats_until = other.repeats_until.max(calm.repeats_until);
            }
            None => {
                self.keys.insert_unique(hash, (hash, calm), |(of, _)| *of);
            }
        }
    }

    /// Takes a key out that something is to be done with.
    pub(super) fn take(&mut self, hash: u64) -> Option<Calm> {
        let found = self.keys.find_entry(hash, |(of, _)| *of == hash).ok()?;
        Some(found.remove().0.1)
    }

    /// Forgets the keys that are calm.
    pub(super) fn forget(&mut self, now: Mono) {
        while let Some(&(at, hash)) = self.order.front() {
            if at > now {
                break;
            }
            self.order.pop_front();
            let is_calm = |(of, calm): &(u64, Calm)| *of == hash && calm.at() <= now;
            if let Ok(found) = self.keys.find_entry(hash, is_calm) {
                found.remove();
            }
        }
    }

    /// When the next key is forgotten.
    pub(super) fn next(&self) -> Option<Mono> {
        self.order.front().map(|(at, _)| *at)
    }
}
