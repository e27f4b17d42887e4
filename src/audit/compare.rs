//! What stands in KV against what rows say: 64 bits for a name, 64 bits for a content. Pure.
//!
//! Two names or keys of a million share their 64 bits once in forty million times. Then one of them
//! may count as drift and be written in vain; the next comparison does not make it worse. A content
//! that differs counts as equal once in 2^64 times.

use std::collections::HashMap;

use crate::change::{ContentHash, Document, Expiration, Key, KvName, Rendered};

/// Most keys that are told apart. Where more differ, only their number is known.
const KEYS_MAX: usize = 100_000;

/// A key, a name or a content in 64 bits.
type Id = u64;

/// How a pair differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Drift {
    /// The rows make a pair, KV has none.
    Missing,
    /// KV has another one.
    Stale,
    /// KV has one, the rows make none.
    Orphaned,
}

impl Drift {
    /// One word for reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stale => "stale",
            Self::Orphaned => "orphaned",
        }
    }
}

/// A difference as it was seen. Seen twice with equal contents on both sides, with nothing waiting
/// in between, it is drift; otherwise it was a change on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) drift: Drift,
    /// Of the pair; `None` where it cannot even be named.
    name: Option<Id>,
    listed: Option<Id>,
    /// `None` also where no valid pair can be made.
    rendered: Option<Id>,
}

/// A document of the rows against the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    Equal,
    Different(Difference),
    /// The rows make no pair for this key.
    Unpublished,
    /// KV has none, and may have dropped it itself: the pair stands for a while after each write.
    MayHaveExpired,
}

/// Pairs as they are listed: 16 bytes each.
#[derive(Debug, Default)]
pub(super) struct Pairs(Vec<(Id, Id)>);

impl Pairs {
    pub(super) fn push(&mut self, name: &KvName, hash: ContentHash) {
        self.0.push((id(name.as_str()), content(hash)));
    }

    /// The whole of them, to be judged.
    pub(super) fn listing(mut self) -> Listing {
        self.0.sort_unstable();
        self.0.dedup_by_key(|(name, _)| *name);
        self.0.shrink_to_fit();
        Listing {
            taken: vec![false; self.0.len()],
            pairs: self.0,
        }
    }
}

/// The pairs of a listing that pg2kv wrote, in the order of their names' bits.
#[derive(Debug)]
pub(super) struct Listing {
    pairs: Vec<(Id, Id)>,
    /// A document has taken it out.
    taken: Vec<bool>,
}

impl Listing {
    /// Takes the pair of a document out, and compares. `None` is a row that cannot be rendered.
    pub(super) fn judge(&mut self, rendered: Option<&Rendered>) -> Judged {
        let (name, wanted) = match rendered {
            Some(Rendered::Put(document)) => (Some(&document.name), Some(content(document.hash))),
            Some(Rendered::Poison(poison)) => (poison.name.as_ref(), None),
            None | Some(Rendered::Large) => (None, None),
            Some(Rendered::Delete(_) | Rendered::Nothing) => return Judged::Unpublished,
        };
        let name = name.map(|name| id(name.as_str()));
        let listed = name.and_then(|name| self.take(name));
        if wanted.is_some() && listed == wanted {
            return Judged::Equal;
        }
        let drift = match listed {
            None if ends_by_itself(rendered) => return Judged::MayHaveExpired,
            None => Drift::Missing,
            Some(_) => Drift::Stale,
        };
        Judged::Different(Difference {
            drift,
            name,
            listed,
            rendered: wanted,
        })
    }

    fn take(&mut self, name: Id) -> Option<Id> {
        let place = self.find(name)?;
        let taken = std::mem::replace(&mut self.taken[place], true);
        (!taken).then_some(self.pairs[place].1)
    }

    fn find(&self, name: Id) -> Option<usize> {
        self.pairs
            .binary_search_by_key(&name, |(name, _)| *name)
            .ok()
    }

    /// Forgets the pairs that documents have taken out.
    pub(super) fn keep_left(&mut self) {
        let mut taken = std::mem::take(&mut self.taken).into_iter();
        self.pairs.retain(|_| taken.next() == Some(false));
        self.pairs.shrink_to_fit();
        self.taken = vec![false; self.pairs.len()];
    }

    /// Whether the pair is still here with this content: no document has taken it out.
    pub(super) fn holds(&self, name: &KvName, hash: ContentHash) -> bool {
        self.find(id(name.as_str()))
            .is_some_and(|place| !self.taken[place] && self.pairs[place].1 == content(hash))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// Whether nobody but KV knows if the time of the pair is over: it counts from the last write.
fn ends_by_itself(rendered: Option<&Rendered>) -> bool {
    matches!(
        rendered,
        Some(Rendered::Put(Document {
            expiration: Some(Expiration::After(_)),
            ..
        }))
    )
}

/// Differences by key, with the text of up to [`KEYS_MAX`] keys.
#[derive(Debug, Default)]
pub(super) struct Differences {
    found: HashMap<Id, Difference>,
    keys: Vec<Key>,
    /// Those that are only counted, by kind.
    more: [u64; 3],
}

impl Differences {
    pub(super) fn insert(&mut self, key: &Key, difference: Difference) {
        if self.found.len() >= KEYS_MAX {
            self.more[difference.drift as usize] += 1;
        } else if self.found.insert(id(key.as_str()), difference).is_none() {
            self.keys.push(key.clone());
        }
    }

    pub(super) fn insert_orphan(&mut self, key: &Key, name: &KvName, listed: ContentHash) {
        let orphan = Difference {
            drift: Drift::Orphaned,
            name: Some(id(name.as_str())),
            listed: Some(content(listed)),
            rendered: None,
        };
        self.insert(key, orphan);
    }

    pub(super) fn get(&self, key: &Key) -> Option<Difference> {
        self.found.get(&id(key.as_str())).copied()
    }

    /// Names of pairs that differ, to be looked up.
    pub(super) fn names(&self) -> Vec<Id> {
        let mut names: Vec<Id> = self.found.values().filter_map(|one| one.name).collect();
        names.sort_unstable();
        names
    }

    /// Takes one key out, if it is here.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        self.found.remove(&id(key)).is_some()
    }

    /// Takes all out; returns how many they were.
    pub(super) fn clear(&mut self) -> u64 {
        let count = self.len();
        *self = Self::default();
        count
    }

    pub(super) fn len(&self) -> u64 {
        self.found.len() as u64 + self.more.iter().sum::<u64>()
    }

    /// Whether some are only counted.
    pub(super) fn is_cut(&self) -> bool {
        self.more.iter().any(|count| *count > 0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn count(&self, drift: Drift) -> u64 {
        let same = self.found.values().filter(|found| found.drift == drift);
        same.count() as u64 + self.more[drift as usize]
    }

    /// The keys that are left, in the order in which they were found.
    pub(super) fn into_keys(self) -> Vec<(Key, Drift)> {
        let Self { found, keys, .. } = self;
        keys.into_iter()
            .filter_map(|key| {
                let drift = found.get(&id(key.as_str()))?.drift;
                Some((key, drift))
            })
            .collect()
    }
}

/// Whether a name is among [`Differences::names`].
pub(super) fn is_among(names: &[Id], name: &KvName) -> bool {
    names.binary_search(&id(name.as_str())).is_ok()
}

fn id(text: &str) -> Id {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    Id::from_le_bytes(first)
}

/// The hash is uniform, so any of its halves will do.
fn content(hash: ContentHash) -> Id {
    (hash.0 >> 64) as Id
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change::owner::{InstallationId, Owner};
    use crate::change::{Draft, Poison, PoisonReason, Value};
    use crate::document::{Template, render};

    fn rendered(id: &str, value: Option<&'static str>) -> Rendered {
        let template = Template::parse("user:{id}", &["id".to_owned()]).unwrap();
        let draft = value.map(|value| Draft::of(Value::Text(Bytes::from(value))));
        let owner = Owner::new(InstallationId::parse("0123456789ab").unwrap(), "user");
        render(&template, owner, &[id.to_owned()], draft)
    }

    fn listing(pairs: &[(&str, &'static str)]) -> Listing {
        let mut listing = Pairs::default();
        for (id, value) in pairs {
            let Rendered::Put(document) = rendered(id, Some(value)) else {
                panic!("a pair");
            };
            listing.push(&document.name, document.hash);
        }
        listing.listing()
    }

    fn drift(judged: Judged) -> Drift {
        match judged {
            Judged::Different(difference) => difference.drift,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pair_is_equal_stale_or_missing_and_the_rest_is_left() {
        let mut listing = listing(&[("1", "a"), ("2", "a"), ("4", "a")]);
        assert_eq!(
            listing.judge(Some(&rendered("1", Some("a")))),
            Judged::Equal
        );
        assert_eq!(
            drift(listing.judge(Some(&rendered("2", Some("b"))))),
            Drift::Stale
        );
        assert_eq!(
            drift(listing.judge(Some(&rendered("3", Some("a"))))),
            Drift::Missing
        );
        assert!(!listing.is_empty());
        assert_eq!(
            listing.judge(Some(&rendered("4", None))),
            Judged::Unpublished
        );
        let Rendered::Put(four) = rendered("4", Some("a")) else {
            panic!("a pair");
        };
        assert!(listing.holds(&four.name, four.hash));
        assert!(!listing.holds(&four.name, ContentHash(1)));
        listing.keep_left();
        assert!(!listing.is_empty());
        assert!(listing.holds(&four.name, four.hash));
        assert_eq!(
            listing.judge(Some(&rendered("4", Some("a")))),
            Judged::Equal
        );
        assert!(!listing.holds(&four.name, four.hash), "taken out");
        listing.keep_left();
        assert!(listing.is_empty());
    }

    #[test]
    fn what_cannot_be_rendered_never_counts_as_equal() {
        let mut listing = listing(&[("1", "a")]);
        let name = KvName::new("user:1").unwrap();
        let poison = Poison::new(PoisonReason::ValueTooLarge, "too large").of(name);
        assert_eq!(
            drift(listing.judge(Some(&Rendered::Poison(poison)))),
            Drift::Stale
        );
        assert_eq!(drift(listing.judge(None)), Drift::Missing);
        listing.keep_left();
        assert!(listing.is_empty());
    }

    #[test]
    fn a_pair_that_ends_by_itself_is_never_missing() {
        let Some(Rendered::Put(mut document)) = Some(rendered("1", Some("a"))) else {
            panic!("a pair");
        };
        document.expiration = Some(Expiration::After(60));
        let rendered = Rendered::Put(document.clone());
        let judged = listing(&[]).judge(Some(&rendered));
        assert_eq!(judged, Judged::MayHaveExpired);
        let stale = listing(&[("1", "b")]).judge(Some(&rendered));
        assert_eq!(drift(stale), Drift::Stale);
        document.expiration = Some(Expiration::At(4_000_000_000));
        let judged = listing(&[]).judge(Some(&Rendered::Put(document)));
        assert_eq!(drift(judged), Drift::Missing);
    }

    #[test]
    fn a_difference_is_the_same_only_with_the_same_contents() {
        let judge = |listed: &'static str, wanted: &'static str| {
            listing(&[("1", listed)]).judge(Some(&rendered("1", Some(wanted))))
        };
        assert_eq!(judge("a", "b"), judge("a", "b"));
        assert_ne!(judge("a", "b"), judge("a", "c"));
        assert_ne!(judge("a", "c"), judge("b", "c"));
    }

    #[test]
    fn a_pair_takes_17_bytes() {
        let mut pairs = Pairs::default();
        for n in 0..50_000 {
            let name = KvName::new(format!("user:{n}")).unwrap();
            pairs.push(&name, ContentHash(n));
        }
        let listing = pairs.listing();
        let bytes = listing.pairs.capacity() * size_of::<(Id, Id)>() + listing.taken.capacity();
        assert_eq!(bytes, 17 * 50_000);
    }

    #[test]
    fn keys_are_those_that_are_left() {
        let name = KvName::new("user:1").unwrap();
        let mut differences = Differences::default();
        for n in [0, 1, 2, 3, 4, 2] {
            differences.insert_orphan(&Key::new(format!("[{n}]")), &name, ContentHash(n));
        }
        assert!(differences.remove("[1]"));
        assert!(!differences.remove("[1]"));
        assert_eq!(differences.count(Drift::Orphaned), 4);
        assert!(is_among(&differences.names(), &name));
        let keys = [0, 2, 3, 4].map(|n| (Key::new(format!("[{n}]")), Drift::Orphaned));
        assert_eq!(differences.into_keys(), keys);
    }

    #[test]
    fn beyond_the_limit_they_are_counted() {
        let name = KvName::new("user:1").unwrap();
        let mut differences = Differences::default();
        for n in 0..KEYS_MAX + 7 {
            differences.insert_orphan(&Key::new(format!("[{n}]")), &name, ContentHash(1));
        }
        assert!(differences.is_cut());
        assert_eq!(differences.count(Drift::Orphaned), KEYS_MAX as u64 + 7);
        assert_eq!(differences.keys.len(), KEYS_MAX);
        assert_eq!(differences.clear(), KEYS_MAX as u64 + 7);
        assert!(differences.is_empty());
    }
}
