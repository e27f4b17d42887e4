//! The metadata of a pair: the mark of pg2kv, the MIME type, and the user's own members.
//!
//! Owns its layout and its limit. The user's members go in as the text that Postgres gave, without
//! the white space between them: a number keeps every digit.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};

use super::{METADATA_MARK_MEMBER, METADATA_TYPE_MEMBER};
use crate::change::owner::Mark;
use crate::change::{DraftText, KV_METADATA_MAX_BYTES, Poison, PoisonReason};

/// The members that are not the mark, as JSON without the braces; empty where there are none.
///
/// # Errors
/// [`PoisonReason::BadMetadata`].
pub(super) fn own_members(
    content_type: Option<&DraftText>,
    metadata: Option<&DraftText>,
) -> Result<String, Poison> {
    let content_type = content_type.map(|text| whole("content_type", text));
    let metadata = metadata.map(|text| whole("the metadata", text));
    let (content_type, metadata) = (content_type.transpose()?, metadata.transpose()?);
    let mut members = match content_type {
        None => String::new(),
        Some(text) => type_member(text)?,
    };
    let Some(metadata) = metadata else {
        return Ok(members);
    };
    // JSON null is no metadata, as SQL NULL is.
    if metadata.trim() == "null" {
        return Ok(members);
    }
    let names = Names::of(metadata)?;
    if names.mark {
        return Err(bad(format!(
            "the metadata has a member {METADATA_MARK_MEMBER:?}, where pg2kv keeps its mark; give \
             it another name"
        )));
    }
    if names.content_type && content_type.is_some() {
        return Err(bad(format!(
            "the metadata has a member {METADATA_TYPE_MEMBER:?}, and the sync sets content_type \
             too; keep one of them"
        )));
    }
    let compact = compact(metadata);
    let own = compact
        .strip_prefix('{')
        .and_then(|text| text.strip_suffix('}'))
        .unwrap_or_default();
    if !members.is_empty() && !own.is_empty() {
        members.push(',');
    }
    members.push_str(own);
    Ok(members)
}

/// The whole metadata as JSON text.
///
/// # Errors
/// [`PoisonReason::BadMetadata`] where it is over the limit of Workers KV.
pub(super) fn with_mark(mark: Mark, own_members: &str) -> Result<Arc<str>, Poison> {
    let comma = if own_members.is_empty() { "" } else { "," };
    let mut text = String::with_capacity(72 + own_members.len());
    // Nothing that is written to a string fails.
    let _ = write!(
        text,
        r#"{{"{METADATA_MARK_MEMBER}":"{mark}"{comma}{own_members}}}"#
    );
    if text.len() > KV_METADATA_MAX_BYTES {
        return Err(bad(format!(
            "the metadata has {} bytes with the mark of pg2kv; Workers KV allows \
             {KV_METADATA_MAX_BYTES}",
            text.len()
        )));
    }
    Ok(text.into())
}

/// A header of HTTP is made of it, so it must be one line of visible characters.
fn type_member(text: &str) -> Result<String, Poison> {
    let visible = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    if text.trim().is_empty() || !text.bytes().all(visible) {
        return Err(bad(
            "content_type is empty or has characters that a MIME type cannot have; give something \
             like \"image/png\", or NULL for none",
        ));
    }
    let text = serde_json::Value::from(text);
    Ok(format!(r#""{METADATA_TYPE_MEMBER}":{text}"#))
}

fn whole<'a>(what: &str, text: &'a DraftText) -> Result<&'a str, Poison> {
    match text {
        DraftText::Whole(text) => Ok(text),
        DraftText::TooLarge { bytes } => Err(bad(format!(
            "{what} has {bytes} bytes; Workers KV allows {KV_METADATA_MAX_BYTES} for both"
        ))),
    }
}

fn bad(detail: impl Into<String>) -> Poison {
    Poison::new(PoisonReason::BadMetadata, detail)
}

/// JSON without the white space between its tokens.
fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for character in json.chars() {
        if !in_string && character.is_ascii_whitespace() {
            continue;
        }
        out.push(character);
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = in_string,
            '"' => in_string = !in_string,
            _ => {}
        }
    }
    out
}

/// Which of the names that matter a JSON object has.
struct Names {
    mark: bool,
    content_type: bool,
}

impl Names {
    fn of(json: &str) -> Result<Self, Poison> {
        let not_an_object = |_| {
            bad("the metadata is not a JSON object; give something like \
                 jsonb_build_object('etag', version)")
        };
        let mut reader = serde_json::Deserializer::from_str(json);
        let names = reader
            .deserialize_map(NamesVisitor)
            .map_err(not_an_object)?;
        reader.end().map_err(not_an_object)?;
        Ok(names)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = Names;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
        let mut names = Names {
            mark: false,
            content_type: false,
        };
        while let Some(name) = map.next_key::<String>()? {
            map.next_value::<IgnoredAny>()?;
            names.mark |= name == METADATA_MARK_MEMBER;
            names.content_type |= name == METADATA_TYPE_MEMBER;
        }
        Ok(names)
    }
}
