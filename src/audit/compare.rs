//! What stands in KV against what rows say: 128 bits for a key, 128 bits for a content. Pure.
//!
//! Owns no text but that of a bounded number of samples, so that a million keys fit into memory.

use std::collections::{HashMap, HashSet};

use crate::change::{ContentHash, Document, Expiration, Key, KvName, Rendered};

/// Keys whose text is kept for the report.
const SAMPLES_MAX: usize = 1_000;

/// A key or a name in 128 bits.
pub(super) type Id = u128;

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
    listed: Option<ContentHash>,
    /// `None` also where no valid pair can be made.
    rendered: Option<ContentHash>,
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

/// The pairs of a listing that pg2kv wrote.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pairs: HashMap<Id, ContentHash>,
}

impl Listing {
    pub(super) fn insert(&mut self, name: &KvName, hash: ContentHash) {
        self.pairs.insert(id(name.as_str()), hash);
    }

    /// Takes the pair of a document out, and compares. `None` is a row that cannot be rendered.
    pub(super) fn judge(&mut self, rendered: Option<&Rendered>) -> Judged {
        let (name, wanted) = match rendered {
            Some(Rendered::Put(document)) => (Some(&document.name), Some(document.hash)),
            Some(Rendered::Poison(poison)) => (poison.name.as_ref(), None),
            None => (None, None),
            Some(Rendered::Delete(_) | Rendered::Nothing) => return Judged::Unpublished,
        };
        let listed = name.and_then(|name| self.pairs.remove(&id(name.as_str())));
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
            listed,
            rendered: wanted,
        })
    }

    /// Whether the pair is still here with this content: no document has taken it out.
    pub(super) fn holds(&self, name: &KvName, hash: ContentHash) -> bool {
        self.pairs.get(&id(name.as_str())) == Some(&hash)
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

/// Differences by key.
#[derive(Debug, Default)]
pub(super) struct Differences {
    found: HashMap<Id, Difference>,
    samples: Vec<Key>,
}

impl Differences {
    pub(super) fn insert(&mut self, key: &Key, difference: Difference) {
        self.found.insert(id(key.as_str()), difference);
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(key.clone());
        }
    }

    pub(super) fn insert_orphan(&mut self, key: &Key, listed: ContentHash) {
        let orphan = Difference {
            drift: Drift::Orphaned,
            listed: Some(listed),
            rendered: None,
        };
        self.insert(key, orphan);
    }

    pub(super) fn get(&self, key: &Key) -> Option<Difference> {
        self.found.get(&id(key.as_str())).copied()
    }

    /// Takes one key out, if it is here.
    pub(super) fn remove(&mut self, key: &str) -> bool {
        self.found.remove(&id(key)).is_some()
    }

    /// Takes all out; returns how many they were.
    pub(super) fn clear(&mut self) -> u64 {
        let count = self.len();
        self.found.clear();
        count
    }

    pub(super) fn len(&self) -> u64 {
        self.found.len() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn count(&self, drift: Drift) -> u64 {
        let same = self.found.values().filter(|found| found.drift == drift);
        same.count() as u64
    }

    /// Some of those that are left, at most `limit`.
    pub(super) fn samples(&self, limit: usize) -> Vec<(Key, Drift)> {
        let mut told = HashSet::new();
        self.samples
            .iter()
            .filter(|key| told.insert(*key))
            .filter_map(|key| Some((key.clone(), self.get(key)?.drift)))
            .take(limit)
            .collect()
    }
}

fn id(text: &str) -> Id {
    let mut first = [0; 16];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    Id::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change::{Draft, Poison, PoisonReason, Value};
    use crate::document::{Template, render};

    fn rendered(id: &str, value: Option<&'static str>) -> Rendered {
        let template = Template::parse("user:{id}", &["id".to_owned()]).unwrap();
        let draft = value.map(|value| Draft::of(Value::Text(Bytes::from(value))));
        render(&template, &[id.to_owned()], draft)
    }

    fn listing(pairs: &[(&str, &'static str)]) -> Listing {
        let mut listing = Listing::default();
        for (id, value) in pairs {
            let Rendered::Put(document) = rendered(id, Some(value)) else {
                panic!("a pair");
            };
            listing.insert(&document.name, document.hash);
        }
        listing
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
        assert!(listing.is_empty());
        assert_eq!(drift(listing.judge(None)), Drift::Missing);
    }

    #[test]
    fn a_pair_that_ends_by_itself_is_never_missing() {
        let Some(Rendered::Put(mut document)) = Some(rendered("1", Some("a"))) else {
            panic!("a pair");
        };
        document.expiration = Some(Expiration::After(60));
        let rendered = Rendered::Put(document.clone());
        let judged = Listing::default().judge(Some(&rendered));
        assert_eq!(judged, Judged::MayHaveExpired);
        let stale = listing(&[("1", "b")]).judge(Some(&rendered));
        assert_eq!(drift(stale), Drift::Stale);
        document.expiration = Some(Expiration::At(4_000_000_000));
        let judged = Listing::default().judge(Some(&Rendered::Put(document)));
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
    fn samples_are_of_what_is_left() {
        let mut differences = Differences::default();
        for n in 0..5 {
            differences.insert_orphan(&Key::new(format!("[{n}]")), ContentHash(n));
        }
        assert!(differences.remove("[1]"));
        assert!(!differences.remove("[1]"));
        assert_eq!(differences.count(Drift::Orphaned), 4);
        let samples = differences.samples(2);
        assert_eq!(
            samples,
            [
                (Key::new("[0]"), Drift::Orphaned),
                (Key::new("[2]"), Drift::Orphaned)
            ]
        );
        assert_eq!(differences.clear(), 4);
        assert!(differences.samples(2).is_empty());
    }
}
