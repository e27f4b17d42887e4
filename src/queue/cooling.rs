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
    groups: VecDeque<Calm>,
    /// The number of the first group.
    first: u32,
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
        if self.groups.back() != Some(&calm) {
            self.groups.push_back(calm);
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
        self.groups
            .get(number.wrapping_sub(self.first) as usize)
            .copied()
    }

    /// Forgets the keys that are calm. Looks at every key, once for the groups that are calm by now: a
    /// list of each group's keys would take half as much room again.
    pub(super) fn forget(&mut self, now: Mono) {
        let calm = |group: &&Calm| group.at() <= now;
        let count = self.groups.iter().take_while(calm).count();
        if count == 0 {
            return;
        }
        self.groups.drain(..count);
        let first = self.first;
        self.keys
            .retain(|(_, number)| number.wrapping_sub(first) as usize >= count);
        #[expect(clippy::cast_possible_truncation, reason = "numbers go round")]
        let next = first.wrapping_add(count as u32);
        self.first = next;
    }

    /// When the next key is forgotten.
    pub(super) fn next(&self) -> Option<Mono> {
        self.groups.front().map(|group| group.at())
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
