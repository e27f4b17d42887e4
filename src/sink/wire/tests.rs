use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::change::{ContentHash, Expiration, KV_VALUE_MAX_BYTES};

/// The body as a server reads it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    key: String,
    value: String,
    #[serde(default)]
    base64: bool,
    expiration: Option<u64>,
    expiration_ttl: Option<u32>,
    metadata: serde_json::Value,
}

impl Pair {
    fn stored(&self) -> Vec<u8> {
        match self.base64 {
            true => STANDARD.decode(&self.value).unwrap(),
            false => self.value.clone().into_bytes(),
        }
    }
}

fn document(name: &str, value: Value) -> Document {
    Document {
        name: KvName::new(name).unwrap(),
        value,
        metadata: r#"{"pg2kv":"00"}"#.into(),
        hash: ContentHash(0),
        expiration: None,
    }
}

fn text(text: impl Into<Vec<u8>>) -> Value {
    Value::Text(Bytes::from(text.into()))
}

fn parsed(documents: &[Document]) -> Vec<Pair> {
    serde_json::from_slice(&encode_put(documents).unwrap()).unwrap()
}

#[test]
fn the_bytes_are_as_documented() {
    let mut second = document("b", Value::Binary(Bytes::from_static(b"\xff\x00")));
    second.expiration = Some(Expiration::At(1_800_000_000));
    let mut third = document("c", text(""));
    third.expiration = Some(Expiration::After(60));
    let first = document("a\"", text("{\"x\":\n1}"));
    let body = encode_put(&[first, second, third]).unwrap();
    let expected = concat!(
        r#"[{"key":"a\"","value":"{\"x\":\n1}","metadata":{"pg2kv":"00"}},"#,
        r#"{"key":"b","value":"/wA=","base64":true,"expiration":1800000000,"#,
        r#""metadata":{"pg2kv":"00"}},"#,
        r#"{"key":"c","value":"","expiration_ttl":60,"metadata":{"pg2kv":"00"}}]"#
    );
    assert_eq!(std::str::from_utf8(&body).unwrap(), expected);
    let names = [KvName::new("a").unwrap(), KvName::new("\u{1}\\").unwrap()];
    assert_eq!(&encode_delete(&names).unwrap()[..], br#"["a","\u0001\\"]"#);
    assert_eq!(&encode_put(&[]).unwrap()[..], b"[]");
}

#[test]
fn every_character_comes_back() {
    // All of Unicode in values of one plane each.
    let documents: Vec<Document> = (0..=16_u32)
        .map(|plane| {
            let all = (plane << 16..(plane + 1) << 16).filter_map(char::from_u32);
            document(&format!("plane {plane}"), text(String::from_iter(all)))
        })
        .collect();
    for (document, pair) in documents.iter().zip(parsed(&documents)) {
        assert!(!pair.base64);
        assert_eq!(pair.value.as_bytes(), &document.value.bytes()[..]);
    }
}

#[test]
fn text_that_escaping_would_blow_up_goes_as_base64() {
    let pair = &parsed(&[document("k", text("\u{1}".repeat(1_000)))])[0];
    assert!(pair.base64);
    assert_eq!(pair.stored(), vec![1; 1_000]);
    let quotes = &parsed(&[document("k", text("\"\n".repeat(1_000)))])[0];
    assert!(!quotes.base64, "doubling is what JSON within JSON may cost");
}

#[test]
fn the_largest_pair_of_any_content_fits() {
    for byte in [b'x', b'"', 0, b'\n'] {
        let pair = document(&"\u{1}".repeat(512), text(vec![byte; KV_VALUE_MAX_BYTES]));
        let size = put_bytes(&pair);
        assert!(size < 55_000_000, "{byte}: {size}");
        assert_eq!(encode_put(&[pair]).unwrap().len(), size + 2);
    }
}

#[test]
fn limits_are_refused_before_anything_is_made() {
    let pairs = vec![document("k", text("v")); KV_BULK_MAX_PAIRS + 1];
    assert!(encode_put(&pairs[1..]).is_ok());
    assert_eq!(
        encode_put(&pairs),
        Err(EncodeError::TooManyPairs { pairs: 10_001 })
    );
    let names = vec![KvName::new("\u{1}".repeat(512)).unwrap(); KV_BULK_MAX_PAIRS + 1];
    assert!(encode_delete(&names[1..]).is_ok());
    assert_eq!(
        encode_delete(&names),
        Err(EncodeError::TooManyPairs { pairs: 10_001 })
    );

    // "less than 100 megabytes": one byte below fits, the limit itself does not.
    let value = Bytes::from(vec![b'x'; 24_999_000]);
    let mut pairs = vec![document("k", Value::Text(value)); 4];
    let room = KV_BULK_MAX_BYTES - 1 - encode_put(&pairs).unwrap().len();
    pairs[3].value = text(vec![b'x'; 24_999_000 + room]);
    assert_eq!(encode_put(&pairs).unwrap().len(), KV_BULK_MAX_BYTES - 1);
    pairs[3].value = text(vec![b'x'; 24_999_000 + room + 1]);
    assert_eq!(
        encode_put(&pairs),
        Err(EncodeError::TooLarge {
            bytes: KV_BULK_MAX_BYTES
        })
    );
}

fn characters() -> impl Strategy<Value = String> {
    let letter = prop_oneof![
        any::<char>(),
        proptest::char::range('\0', '\u{1f}'),
        Just('"'),
        Just('\\'),
        Just('\u{7f}'),
        Just('\u{2028}'),
    ];
    proptest::collection::vec(letter, 0..60).prop_map(String::from_iter)
}

fn documents() -> impl Strategy<Value = Vec<Document>> {
    let value = prop_oneof![
        characters().prop_map(text),
        proptest::collection::vec(any::<u8>(), 0..60)
            .prop_map(|bytes| Value::Binary(Bytes::from(bytes))),
        // Not UTF-8 by mistake of a caller: must still arrive byte by byte.
        proptest::collection::vec(any::<u8>(), 0..60).prop_map(text),
    ];
    let name = characters().prop_filter_map("a KV key", |name| KvName::new(name).ok());
    let pair = (
        name,
        value,
        proptest::option::of(prop_oneof![
            any::<u64>().prop_map(Expiration::At),
            any::<u32>().prop_map(Expiration::After),
        ]),
        characters(),
    )
        .prop_map(|(name, value, expiration, own)| Document {
            name,
            value,
            metadata: serde_json::json!({ "pg2kv": "00", "own": own })
                .to_string()
                .into(),
            hash: ContentHash(0),
            expiration,
        });
    proptest::collection::vec(pair, 0..5)
}

proptest! {
    #[test]
    fn a_put_reads_back_as_the_same_pairs(documents in documents()) {
        let body = encode_put(&documents).unwrap();
        let sizes: usize = documents.iter().map(put_bytes).sum();
        prop_assert_eq!(body.len(), sizes + 2 + documents.len().saturating_sub(1));
        let pairs: Vec<Pair> = serde_json::from_slice(&body).unwrap();
        prop_assert_eq!(pairs.len(), documents.len());
        for (pair, document) in pairs.iter().zip(&documents) {
            prop_assert_eq!(&pair.key, document.name.as_str());
            prop_assert_eq!(&pair.stored()[..], &document.value.bytes()[..]);
            let expiration = pair.expiration.map(Expiration::At);
            let ttl = pair.expiration_ttl.map(Expiration::After);
            prop_assert_eq!(expiration.or(ttl), document.expiration);
            prop_assert!(expiration.is_none() || ttl.is_none());
            let metadata: serde_json::Value = serde_json::from_str(&document.metadata).unwrap();
            prop_assert_eq!(&pair.metadata, &metadata);
        }
    }

    #[test]
    fn a_delete_reads_back_as_the_same_names(names in proptest::collection::vec(characters(), 0..6)) {
        let names: Vec<KvName> = names.into_iter().filter_map(|name| KvName::new(name).ok()).collect();
        let body = encode_delete(&names).unwrap();
        let read: Vec<String> = serde_json::from_slice(&body).unwrap();
        prop_assert!(read.iter().map(String::as_str).eq(names.iter().map(KvName::as_str)));
        let sizes: usize = names.iter().map(delete_bytes).sum();
        prop_assert_eq!(body.len(), sizes + 2 + names.len().saturating_sub(1));
    }
}
