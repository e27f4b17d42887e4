//! The bodies of bulk requests as bytes, within the limits of the Workers KV REST API. Pure.
//!
//! Knows nothing of connections, tokens or replies. Bodies are written straight into one buffer of
//! the exact size, because a tree of JSON values would hold each batch three times.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::change::{Document, Expiration, KV_BULK_MAX_BYTES, KV_BULK_MAX_PAIRS, KvName, Value};

/// Why a batch has no body: it is over a limit of the API, and so nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More than [`KV_BULK_MAX_PAIRS`].
    #[error("the batch has {pairs} pairs; Workers KV takes {KV_BULK_MAX_PAIRS} at once")]
    TooManyPairs {
        /// Number of pairs.
        pairs: usize,
    },
    /// A body of [`KV_BULK_MAX_BYTES`] or more.
    #[error(
        "the body of the batch would have {bytes} bytes; Workers KV takes less than \
         {KV_BULK_MAX_BYTES}"
    )]
    TooLarge {
        /// Size of the body in bytes.
        bytes: usize,
    },
}

/// The body of `PUT …/bulk`.
///
/// Blocks for about a millisecond per megabyte.
///
/// # Errors
/// [`EncodeError`], before anything is allocated. It cannot befall a single pair: a pair within
/// its own limits takes less than 55 MB.
pub fn encode_put(documents: &[Document]) -> Result<Bytes, EncodeError> {
    let pairs: Vec<_> = documents.iter().map(Pair::of).collect();
    encode(&pairs, Pair::bytes, write_pair)
}

/// The body of `POST …/bulk/delete`.
///
/// # Errors
/// [`EncodeError::TooManyPairs`]; 10,000 names are never too large.
pub fn encode_delete(names: &[KvName]) -> Result<Bytes, EncodeError> {
    encode(names, delete_bytes, |out, name| {
        write_string(out, name.as_str());
    })
}

/// Exact number of bytes that the pair takes in a body, without the comma after it.
pub fn put_bytes(document: &Document) -> usize {
    Pair::of(document).bytes()
}

/// A document with how it stands in a body.
struct Pair<'a> {
    document: &'a Document,
    form: Form<'a>,
}

impl<'a> Pair<'a> {
    fn of(document: &'a Document) -> Self {
        let form = form(&document.value);
        Self { document, form }
    }

    fn bytes(&self) -> usize {
        let document = self.document;
        let value = match self.form {
            Form::Text { bytes, .. } => bytes,
            Form::Base64 => BASE64_MEMBER.len() + 2 + base64_bytes(document.value.bytes().len()),
        };
        let expiration = document.expiration.map_or(0, |expiration| {
            let (member, seconds) = expiration_member(expiration);
            member.len() + decimal_digits(seconds)
        });
        NAME_MEMBER.len()
            + string_bytes(document.name.as_str())
            + VALUE_MEMBER.len()
            + value
            + expiration
            + METADATA_MEMBER.len()
            + document.metadata.len()
            + 1
    }
}

/// Exact number of bytes that the name takes in a body, without the comma after it.
pub fn delete_bytes(name: &KvName) -> usize {
    string_bytes(name.as_str())
}

const NAME_MEMBER: &str = r#"{"key":"#;
const VALUE_MEMBER: &str = r#","value":"#;
const BASE64_MEMBER: &str = r#","base64":true"#;
const EXPIRATION_MEMBER: &str = r#","expiration":"#;
const TTL_MEMBER: &str = r#","expiration_ttl":"#;
const METADATA_MEMBER: &str = r#","metadata":"#;

fn encode<T>(
    items: &[T],
    bytes: impl Fn(&T) -> usize,
    write: impl Fn(&mut Vec<u8>, &T),
) -> Result<Bytes, EncodeError> {
    if items.len() > KV_BULK_MAX_PAIRS {
        return Err(EncodeError::TooManyPairs { pairs: items.len() });
    }
    let commas = items.len().saturating_sub(1);
    let size = 2 + commas + items.iter().map(bytes).sum::<usize>();
    if size >= KV_BULK_MAX_BYTES {
        return Err(EncodeError::TooLarge { bytes: size });
    }
    let mut out = Vec::with_capacity(size);
    out.push(b'[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(&mut out, item);
    }
    out.push(b']');
    debug_assert_eq!(out.len(), size);
    Ok(out.into())
}

fn write_pair(out: &mut Vec<u8>, pair: &Pair<'_>) {
    let document = pair.document;
    out.extend_from_slice(NAME_MEMBER.as_bytes());
    write_string(out, document.name.as_str());
    out.extend_from_slice(VALUE_MEMBER.as_bytes());
    match pair.form {
        Form::Text { text, .. } => write_string(out, text),
        Form::Base64 => {
            write_base64(out, document.value.bytes());
            out.extend_from_slice(BASE64_MEMBER.as_bytes());
        }
    }
    if let Some(expiration) = document.expiration {
        let (member, seconds) = expiration_member(expiration);
        out.extend_from_slice(member.as_bytes());
        out.extend_from_slice(seconds.to_string().as_bytes());
    }
    out.extend_from_slice(METADATA_MEMBER.as_bytes());
    out.extend_from_slice(document.metadata.as_bytes());
    out.push(b'}');
}

fn expiration_member(expiration: Expiration) -> (&'static str, u64) {
    match expiration {
        Expiration::At(unix_seconds) => (EXPIRATION_MEMBER, unix_seconds),
        Expiration::After(seconds) => (TTL_MEMBER, u64::from(seconds)),
    }
}

fn decimal_digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

/// How the bytes of a value stand in the body; what KV stores is the same either way.
enum Form<'a> {
    /// `bytes` is what it takes with quotes and escapes.
    Text {
        text: &'a str,
        bytes: usize,
    },
    Base64,
}

/// Text goes as a JSON string, unless escaping would more than double it, which takes many control
/// characters: then base64 is shorter. So every pair within its limits fits into a body.
fn form(value: &Value) -> Form<'_> {
    let Value::Text(bytes) = value else {
        return Form::Base64;
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Form::Base64;
    };
    match string_bytes(text) {
        bytes if bytes <= 2 * text.len() + 2 => Form::Text { text, bytes },
        _ => Form::Base64,
    }
}

fn base64_bytes(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    const CHUNK_BYTES: usize = 3 * 4_096; // a multiple of 3: only the last chunk is padded
    let mut text = String::with_capacity(base64_bytes(bytes.len().min(CHUNK_BYTES)));
    out.push(b'"');
    for chunk in bytes.chunks(CHUNK_BYTES) {
        text.clear();
        STANDARD.encode_string(chunk, &mut text);
        out.extend_from_slice(text.as_bytes());
    }
    out.push(b'"');
}

fn string_bytes(text: &str) -> usize {
    let bytes = text.bytes().map(|byte| ESCAPED[usize::from(byte)]);
    2 + bytes.map(usize::from).sum::<usize>()
}

/// How many bytes each byte takes.
const ESCAPED: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut byte = 0;
    while byte < bytes.len() {
        bytes[byte] = escape(byte as u8).len();
        byte += 1;
    }
    bytes
};

fn write_string(out: &mut Vec<u8>, text: &str) {
    let bytes = text.as_bytes();
    let mut plain_from = 0;
    out.push(b'"');
    for (at, byte) in bytes.iter().enumerate() {
        if ESCAPED[usize::from(*byte)] == 1 {
            continue;
        }
        let escaped = match escape(*byte) {
            Escape::Plain => continue,
            Escape::Short(letter) => &[b'\\', letter][..],
            Escape::Hex => &hex_escape(*byte)[..],
        };
        out.extend_from_slice(&bytes[plain_from..at]);
        out.extend_from_slice(escaped);
        plain_from = at + 1;
    }
    out.extend_from_slice(&bytes[plain_from..]);
    out.push(b'"');
}

/// What JSON makes of one byte of UTF-8 within a string (RFC 8259, section 7).
enum Escape {
    Plain,
    Short(u8),
    Hex,
}

impl Escape {
    const fn len(&self) -> u8 {
        match self {
            Self::Plain => 1,
            Self::Short(_) => 2,
            Self::Hex => 6,
        }
    }
}

const fn escape(byte: u8) -> Escape {
    match byte {
        b'"' | b'\\' => Escape::Short(byte),
        0x08 => Escape::Short(b'b'),
        0x0c => Escape::Short(b'f'),
        b'\n' => Escape::Short(b'n'),
        b'\r' => Escape::Short(b'r'),
        b'\t' => Escape::Short(b't'),
        0x00..=0x1f => Escape::Hex,
        _ => Escape::Plain,
    }
}

fn hex_escape(byte: u8) -> [u8; 6] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS[usize::from(nibble & 0x0f)];
    [b'\\', b'u', b'0', b'0', digit(byte >> 4), digit(byte)]
}

#[cfg(test)]
mod tests;
