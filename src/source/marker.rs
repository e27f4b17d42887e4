//! What the `key` column of an outbox row says: a key, every key, or a marker. Pure.
//!
//! An array is a key; no key stands for all of them; an object is a marker that asks for more than a
//! look at one key. An object that is not known here is of a newer version: its row is left alone.

use serde::de::IgnoredAny;

use crate::change::{Changed, Key};

/// The marker that has a key written again: `{"again": [7, "eu"]}`. In SQL it is made by
/// `jsonb_build_object('again', key)`.
const AGAIN: &str = "{\"again\": ";

/// What a row asks for, from its column as `jsonb` prints it; `None` where that is not known.
pub(crate) fn asked(key: Option<&str>) -> Option<Changed> {
    let Some(text) = key else {
        return Some(Changed::Everything);
    };
    if text.starts_with('[') {
        return Some(Changed::Key(Key::new(text)));
    }
    // The text between is kept as it stands, since a key is known by its text.
    let key = text.strip_prefix(AGAIN)?.strip_suffix('}')?;
    let is_key = serde_json::from_str::<Vec<IgnoredAny>>(key).is_ok();
    is_key.then(|| Changed::Again(Key::new(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_markers_and_what_is_neither() {
        let key = |text: &str| Some(Changed::Key(Key::new(text)));
        let again = |text: &str| Some(Changed::Again(Key::new(text)));
        assert_eq!(asked(None), Some(Changed::Everything));
        assert_eq!(asked(Some("[7, \"eu\"]")), key("[7, \"eu\"]"));
        assert_eq!(
            asked(Some("{\"again\": [1.00, \"}\"]}")),
            again("[1.00, \"}\"]")
        );
        for unknown in [
            "{\"again\": 7}",
            "{\"again\": [7], \"other\": 1}",
            "{\"other\": [7]}",
            "{}",
            "\"text\"",
            "7",
        ] {
            assert_eq!(asked(Some(unknown)), None, "{unknown}");
        }
    }
}
