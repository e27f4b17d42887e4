//! Keys: which document something is about. Pure.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Identity of a document within a sync: the values of its key columns as Postgres prints them in
/// one `jsonb` array, for example `["42"]` or `[7, "eu"]`.
///
/// Two equal keys have equal text because `jsonb` output is canonical. The text may hold personal
/// data, so `Debug` shows a fingerprint only.
///
/// A key that cannot be carried is known by size and hash: `{"md5": "…", "oversized": 200000}` stands
/// for a key of more than [`KEY_MAX_BYTES`](super::KEY_MAX_BYTES), `undecodable` for one that is no text in UTF-8. It is
/// claimed, coalesced and settled like any other, and it never has a row: see [`Key::unreadable`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// Why a key is known by its size and hash only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Its text has so many bytes, more than [`KEY_MAX_BYTES`](super::KEY_MAX_BYTES).
    Oversized(u64),
    /// Its text of so many bytes is not one in UTF-8.
    Undecodable(u64),
}

impl Key {
    /// A key from the text of a `jsonb` array as Postgres printed it.
    pub fn new(jsonb_text: impl Into<Arc<str>>) -> Self {
        Self(jsonb_text.into())
    }

    /// A key that cannot be carried; `md5` is of its text in the encoding of the database.
    ///
    /// The text is what Postgres makes of the same object, as the triggers write it.
    pub fn of_unreadable(why: Unreadable, md5: &str) -> Self {
        let (member, bytes) = match why {
            Unreadable::Oversized(bytes) => ("oversized", bytes),
            Unreadable::Undecodable(bytes) => ("undecodable", bytes),
        };
        Self::new(format!(r#"{{"md5": "{md5}", "{member}": {bytes}}}"#))
    }

    /// Why the key cannot be carried, if it cannot.
    pub fn unreadable(&self) -> Option<Unreadable> {
        let rest = self.0.strip_prefix(r#"{"md5": ""#)?.strip_suffix('}')?;
        let (_, rest) = rest.split_once(r#"", ""#)?;
        let (member, bytes) = rest.split_once(r#"": "#)?;
        let bytes = bytes.parse().ok()?;
        match member {
            "oversized" => Some(Unreadable::Oversized(bytes)),
            "undecodable" => Some(Unreadable::Undecodable(bytes)),
            _ => None,
        }
    }

    /// The `jsonb` text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An order in which keys of one positive integer, and those of one UUID, stand as their values do,
    /// and so as in an index.
    pub fn index_order(&self, other: &Self) -> Ordering {
        let lengths = self.0.len().cmp(&other.0.len());
        lengths.then_with(|| self.0.cmp(&other.0))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", fingerprint(&self.0))
    }
}

/// Eight hexadecimal digits that stand for a key or a KV name in logs.
pub fn fingerprint(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_cannot_be_carried_says_why() {
        for (text, why) in [
            (
                r#"{"md5": "0a", "oversized": 200000}"#,
                Some(Unreadable::Oversized(200_000)),
            ),
            (
                r#"{"md5": "0a", "undecodable": 9}"#,
                Some(Unreadable::Undecodable(9)),
            ),
            (r#"{"md5": "0a", "other": 9}"#, None),
            (r#"{"md5": "0a"}"#, None),
            (r#"["{\"md5\": \"0a\", \"oversized\": 9}"]"#, None),
        ] {
            let key = Key::new(text);
            assert_eq!(key.unreadable(), why, "{text}");
            if let Some(why) = why {
                assert_eq!(Key::of_unreadable(why, "0a"), key);
            }
        }
    }

    #[test]
    fn keys_of_one_integer_or_uuid_are_ordered_as_their_values() {
        let (low, high) = (r#"["09ff0000-…"]"#, r#"["0a000000-…"]"#);
        for (one, other) in [("[9]", "[10]"), ("[10]", "[11]"), (low, high)] {
            assert!(Key::new(one).index_order(&Key::new(other)).is_lt(), "{one}");
        }
    }
}
