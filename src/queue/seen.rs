//! What was last proven to stand in KV, so that an equal document is not written (and billed) again.
//! Pure, bounded.
//!
//! Forgetting is always safe: it costs one write. Remembering wrongly is not, so whoever doubts a
//! write must [`Seen::forget`] it.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

use crate::change::{ContentHash, Key, SyncId};

/// What stands in KV under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A pair with this content.
    Present(ContentHash),
    /// No pair.
    Absent,
}

/// Two generations of memory: when the young one is full, the old one is dropped as a whole. Both
/// the cost and the bound are simpler than those of a least-recently-used list.
#[derive(Debug)]
pub struct Seen {
    max: usize,
    young: HashTable<Entry>,
    old: HashTable<Entry>,
    /// Two, for 64 bits each.
    hashers: [RandomState; 2],
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u128,
    content: u128,
}

impl Seen {
    /// Remembers at least `max / 2` and at most `max` keys.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            young: HashTable::new(),
            old: HashTable::new(),
            hashers: [RandomState::new(), RandomState::new()],
        }
    }

    /// Whether `content` is what was last proven to stand there.
    pub fn is(&self, sync: SyncId, key: &Key, content: Content) -> bool {
        let id = self.id(sync, key);
        let known = find(&self.young, id).or_else(|| find(&self.old, id));
        known.is_some_and(|entry| entry.content == code(content))
    }

    /// Notes a proven write.
    pub fn note(&mut self, sync: SyncId, key: &Key, content: Content) {
        if self.young.len() >= self.max / 2 {
            // The tables keep their room, which grows no more from then on.
            std::mem::swap(&mut self.old, &mut self.young);
            self.young.clear();
        }
        let new = Entry {
            id: self.id(sync, key),
            content: code(content),
        };
        let entry = self.young.entry(
            hash(new.id),
            |entry| entry.id == new.id,
            |entry| hash(entry.id),
        );
        entry.insert(new);
    }

    /// Drops what is known of a key.
    pub fn forget(&mut self, sync: SyncId, key: &Key) {
        let id = self.id(sync, key);
        for table in [&mut self.young, &mut self.old] {
            if let Ok(found) = table.find_entry(hash(id), |entry| entry.id == id) {
                found.remove();
            }
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// 128 bits stand for the key, of a hash whose key nobody knows: a collision would need both the
    /// key and the content to agree.
    fn id(&self, sync: SyncId, key: &Key) -> u128 {
        let [high, low] = self
            .hashers
            .each_ref()
            .map(|hasher| u128::from(hasher.hash_one((sync, key))));
        high << 64 | low
    }
}

fn find(table: &HashTable<Entry>, id: u128) -> Option<&Entry> {
    table.find(hash(id), |entry| entry.id == id)
}

/// The id is a hash already.
fn hash(id: u128) -> u64 {
    (id >> 64) as u64
}

/// Two thirds of the room of a [`Content`]. That a hash is this number is as likely as that two
/// contents have the same one.
fn code(content: Content) -> u128 {
    match content {
        Content::Present(hash) => hash.0,
        Content::Absent => u128::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNC: SyncId = SyncId(0);

    #[test]
    fn remembers_the_last_content_only() {
        let mut seen = Seen::new(10);
        let key = Key::new("[1]");
        let one = Content::Present(ContentHash(1));
        seen.note(SYNC, &key, one);
        assert!(seen.is(SYNC, &key, one));
        assert!(!seen.is(SyncId(1), &key, one));
        seen.note(SYNC, &key, Content::Absent);
        assert!(!seen.is(SYNC, &key, one));
        assert!(seen.is(SYNC, &key, Content::Absent));
        seen.forget(SYNC, &key);
        assert!(!seen.is(SYNC, &key, Content::Absent));
    }

    #[test]
    fn is_bounded_and_keeps_the_newest_half() {
        let mut seen = Seen::new(100);
        let key = |n: u32| Key::new(format!("[{n}]"));
        for n in 0..1_000 {
            seen.note(SYNC, &key(n), Content::Absent);
            assert!(seen.young.len() + seen.old.len() <= 100);
        }
        assert!((950..1_000).all(|n| seen.is(SYNC, &key(n), Content::Absent)));
    }

    #[test]
    fn an_old_generation_never_answers_for_a_newer_one() {
        let mut seen = Seen::new(4);
        let key = Key::new("[0]");
        seen.note(SYNC, &key, Content::Present(ContentHash(1)));
        seen.note(SYNC, &Key::new("[1]"), Content::Absent);
        seen.note(SYNC, &key, Content::Present(ContentHash(2)));
        assert!(!seen.is(SYNC, &key, Content::Present(ContentHash(1))));
    }
}
