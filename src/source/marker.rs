//! What the `key` column of an outbox row says: a key, every key, or a marker. Pure.
//!
//! An array is a key; no key stands for all of them; an object is a marker that asks for more than a
//! look at one key. An object that is not known here is of a newer version: its row is left alone.

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::key_bytes::undecodable;
use crate::change::{Changed, Key, Related};

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
    let key = Key::new(text);
    if key.unreadable().is_some() {
        return Some(Changed::Key(key));
    }
    if let Some(related) = related(text) {
        return Some(Changed::Related(related));
    }
    // The text between is kept as it stands, since a key is known by its text.
    let inner = text.strip_prefix(AGAIN)?.strip_suffix('}')?;
    let key = Key::new(inner);
    (is_array(inner) || key.unreadable().is_some()).then_some(Changed::Again(key))
}

/// What a row asks for whose column is no text in UTF-8. The values of a related row cannot be told, so
/// every key may be meant.
pub(crate) fn asked_of_bytes(bytes: &[u8]) -> Changed {
    if bytes.starts_with(b"[") {
        return Changed::Key(undecodable(bytes));
    }
    let again = bytes.strip_prefix(AGAIN.as_bytes());
    match again.and_then(|rest| rest.strip_suffix(b"}")) {
        Some(key) => Changed::Key(undecodable(key)),
        None => Changed::Everything,
    }
}

/// The marker of a change of a related table, as its trigger writes it, and as `expand` does with
/// the position: `{"after": [5], "values": [7], "related": "tenants"}`.
fn related(text: &str) -> Option<Related> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Marker<'a> {
        related: Box<str>,
        #[serde(borrow)]
        values: &'a RawValue,
        #[serde(borrow)]
        after: Option<&'a RawValue>,
    }
    let marker: Marker<'_> = serde_json::from_str(text).ok()?;
    let array = |raw: &RawValue| is_array(raw.get()).then(|| Key::new(raw.get()));
    Some(Related {
        table: marker.related.into(),
        values: array(marker.values)?,
        after: match marker.after {
            Some(after) => Some(array(after)?),
            None => None,
        },
    })
}

fn is_array(text: &str) -> bool {
    serde_json::from_str::<Vec<IgnoredAny>>(text).is_ok()
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
        let related = |after: Option<&str>| {
            Some(Changed::Related(Related {
                table: "tenants".into(),
                values: Key::new("[1.00, \"}\"]"),
                after: after.map(Key::new),
            }))
        };
        assert_eq!(
            asked(Some(
                "{\"values\": [1.00, \"}\"], \"related\": \"tenants\"}"
            )),
            related(None)
        );
        assert_eq!(
            asked(Some(
                "{\"after\": [5], \"values\": [1.00, \"}\"], \"related\": \"tenants\"}"
            )),
            related(Some("[5]"))
        );
        let long = r#"{"md5": "0a", "oversized": 200000}"#;
        assert_eq!(asked(Some(long)), key(long));
        let long_again = format!("{{\"again\": {long}}}");
        assert_eq!(asked(Some(&long_again)), again(long));
        assert_eq!(
            asked_of_bytes(b"[\"\xe9\"]"),
            Changed::Key(undecodable(b"[\"\xe9\"]"))
        );
        assert_eq!(
            asked_of_bytes(b"{\"again\": [\"\xe9\"]}"),
            Changed::Key(undecodable(b"[\"\xe9\"]"))
        );
        let related_bytes = b"{\"values\": [\"\xe9\"], \"related\": \"tenants\"}";
        assert_eq!(asked_of_bytes(related_bytes), Changed::Everything);
        for unknown in [
            "{\"values\": 7, \"related\": \"tenants\"}",
            "{\"related\": \"tenants\"}",
            "{\"after\": 5, \"values\": [7], \"related\": \"tenants\"}",
            "{\"other\": 5, \"values\": [7], \"related\": \"tenants\"}",
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
