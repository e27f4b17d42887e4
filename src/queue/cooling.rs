//! Keys that are done, but were written too lately to be written again. Pure.
//!
//! Owns when such a key is calm again. Knows a key by its hash only, and the moments of keys that were
//! written together once, so that as many as are written in an interval take little room. Keys of one
//! hash would share their moments: one would wait for the other's interval, which is late and not wrong.

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

    /// Both have passed.
    fn and(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.max(other.not_before),
            repeats_until: self.repeats_until.max(other.repeats_until),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Cooling {
    /// The hash of each key, and the number of its group.
    keys: HashTable<(u64, u32)>,
    /// In the order in which they were put here; numbered without a gap, and from the start again
    /// after the last number.
    groups: VecDeque<Group>,
    /// The number of the first group.
    first: u32,
}

/// Keys that are calm at the same moments, those taken out since included.
#[derive(Debug)]
struct Group {
    calm: Calm,
    hashes: Vec<u64>,
}

impl Cooling {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Puts a key here.
    pub(super) fn put(&mut self, hash: u64, calm: Calm) {
        let calm = match self.take(hash) {
            Some(other) => calm.and(other),
            None => calm,
        };
        match self.groups.back_mut() {
            Some(group) if group.calm == calm => group.hashes.push(hash),
            _ => self.groups.push_back(Group {
                calm,
                hashes: vec![hash],
            }),
        }
        #[expect(clippy::cast_possible_truncation, reason = "numbers go round")]
        let last = self.first.wrapping_add(self.groups.len() as u32 - 1);
        self.keys
            .insert_unique(hash, (hash, last), |(hash, _)| *hash);
    }

    /// Takes a key out that something is to be done with.
    pub(super) fn take(&mut self, hash: u64) -> Option<Calm> {
        let found = self.keys.find_entry(hash, |(of, _)| *of == hash).ok()?;
        let ((_, number), _) = found.remove();
        let group = self.groups.get(number.wrapping_sub(self.first) as usize);
        group.map(|group| group.calm)
    }

    /// Forgets the keys that are calm.
    pub(super) fn forget(&mut self, now: Mono) {
        while self.next().is_some_and(|at| at <= now) {
            let hashes = self.groups.pop_front().map(|group| group.hashes);
            for hash in hashes.into_iter().flatten() {
                // It may be in a later group by now.
                let is_here = |(of, number): &(u64, u32)| *of == hash && *number == self.first;
                if let Ok(found) = self.keys.find_entry(hash, is_here) {
                    found.remove();
                }
            }
            self.first = self.first.wrapping_add(1);
        }
    }

    /// When the next key is forgotten.
    pub(super) fn next(&self) -> Option<Mono> {
        self.groups.front().map(|group| group.calm.at())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono::from_origin(Duration::from_secs(seconds))
    }

    fn calm(not_before: u64, repeats_until: u64) -> Calm {
        Calm {
            not_before: at(not_before),
            repeats_until: at(repeats_until),
        }
    }

    #[test]
    fn keys_are_forgotten_once_both_moments_have_passed() {
        let mut cooling = Cooling::default();
        cooling.put(1, calm(5, 2));
        cooling.put(2, calm(5, 2));
        cooling.put(3, calm(3, 6));
        assert_eq!(cooling.next(), Some(at(5)));
        cooling.forget(at(4));
        assert_eq!(cooling.len(), 3);
        cooling.forget(at(5));
        assert_eq!(cooling.len(), 1);
        assert_eq!(cooling.take(1), None);
        assert_eq!(cooling.take(3), Some(calm(3, 6)));
        cooling.forget(at(6));
        assert_eq!((cooling.len(), cooling.next()), (0, None));
    }

    #[test]
    fn a_key_that_comes_again_stays_for_the_later_of_its_moments() {
        let mut cooling = Cooling::default();
        cooling.put(1, calm(4, 5));
        cooling.put(1, calm(7, 3));
        assert_eq!((cooling.len(), cooling.next()), (1, Some(at(5))));
        // Its first group goes, and the key stays.
        cooling.forget(at(6));
        assert_eq!(cooling.len(), 1);
        assert_eq!(cooling.take(1), Some(calm(7, 5)));
        cooling.put(1, calm(12, 10));
        assert_eq!(cooling.take(1), Some(calm(12, 10)));
        assert_eq!(cooling.take(1), None);
        // Taken out and put back: what is left of it in the first group takes it out of no other.
        cooling.put(1, calm(20, 10));
        cooling.forget(at(12));
        assert_eq!(cooling.take(1), Some(calm(20, 10)));
    }

    #[test]
    fn numbers_of_groups_go_round() {
        let mut cooling = Cooling {
            first: u32::MAX - 1,
            ..Cooling::default()
        };
        for key in 0..4 {
            cooling.put(key, calm(key, 0));
        }
        cooling.forget(at(1));
        assert_eq!(cooling.len(), 2);
        assert_eq!(cooling.take(0), None);
        assert_eq!(cooling.take(2), Some(calm(2, 0)));
        assert_eq!(cooling.take(3), Some(calm(3, 0)));
    }
}
