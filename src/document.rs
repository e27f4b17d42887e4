//! Documents: how the key columns become the name of a KV pair and back, and how what rows make
//! becomes a pair within the limits of Workers KV.
//!
//! Pure. Knows nothing of where rows come from or where pairs go.
//!
//! **Invariant:** a name that [`Template::render`] returns, [`Template::reverse`] turns into the
//! same columns. So two keys of one sync never share a KV pair, no batch holds a name twice, and
//! an audit can tell from a name in KV which row it stands for.

mod metadata;
mod template;

use smallvec::SmallVec;
pub use template::{Template, TemplateError};

use crate::change::owner::{Mark, Owner};
use crate::change::{
    ContentHash, Document, Draft, DraftValue, Expiration, Expiry, KV_NAME_MAX_BYTES,
    KV_TTL_MIN_SECONDS, KV_VALUE_MAX_BYTES, Key, KvName, Poison, PoisonReason, Rendered,
    Unreadable, Value,
};

/// Member of a pair's metadata that holds the [`Mark`].
pub const METADATA_MARK_MEMBER: &str = "pg2kv";
/// Member of a pair's metadata that holds the MIME type of its value, where the sync gives one.
pub const METADATA_TYPE_MEMBER: &str = "content_type";

/// A pair that is to end sooner than this is sent with the seconds that it has left instead of with
/// the moment of its end: KV refuses a moment that is not a minute ahead by its own clock, and the
/// way there, or a clock that is off, must not make a row poison.
const SHORT_LIFE_SECONDS: u64 = 180;

const TOGETHER_BYTES: usize = 1_024;

/// What is to stand in KV for a key: its columns name the pair, its draft is the content, and no
/// draft means that there must be no pair. A pair carries the mark of `owner`.
///
/// # Panics
/// Where the number of values is not the number of the template's key columns.
pub fn render(
    template: &Template,
    owner: Owner,
    columns: &[String],
    draft: Option<Draft>,
) -> Rendered {
    let name = match template.render(columns) {
        Ok(name) => name,
        // A row that is gone takes its dead letter along.
        Err(_) if draft.is_none() => return Rendered::Nothing,
        Err(poison) => return Rendered::Poison(poison),
    };
    let Some(draft) = draft else {
        return Rendered::Delete(name);
    };
    if let DraftValue::TooLarge { bytes, .. } = draft.value
        && bytes <= KV_VALUE_MAX_BYTES as u64
    {
        return Rendered::Large;
    }
    match document(name.clone(), owner, draft) {
        Ok(document) => Rendered::Put(document),
        Err(poison) => Rendered::Poison(poison.of(name)),
    }
}

/// Why no pair can be made for a key that is known by its size and hash; `None` for other keys.
pub fn unreadable(key: &Key) -> Option<Poison> {
    Some(match key.unreadable()? {
        Unreadable::Oversized(bytes) => Poison::new(
            PoisonReason::KeyTooLong,
            format!(
                "the key has {bytes} bytes; Workers KV allows {KV_NAME_MAX_BYTES}. Give the row a \
                 shorter key, then run `pg2kv resync`"
            ),
        ),
        Unreadable::Undecodable(bytes) => Poison::new(
            PoisonReason::IllegalKey,
            format!(
                "the key has {bytes} bytes that are not a text in UTF-8, as a KV key must be. Correct \
                 the row's key, then run `pg2kv resync`"
            ),
        ),
    })
}

fn document(name: KvName, owner: Owner, draft: Draft) -> Result<Document, Poison> {
    let value = match draft.value {
        DraftValue::Whole(value) => value,
        DraftValue::TooLarge { bytes, shards } => return Err(too_large(bytes, shards)),
        DraftValue::Duplicate => {
            return Err(Poison::new(
                PoisonReason::RowError,
                "two rows have the same key; delete or change one of them, and put a unique index \
                 on the key columns",
            ));
        }
        DraftValue::Twice => {
            return Err(Poison::new(
                PoisonReason::RowError,
                "two rows of the document have the same member; take a column for `member` that \
                 tells the rows of one document apart",
            ));
        }
    };
    if value.bytes().len() > KV_VALUE_MAX_BYTES {
        return Err(too_large(value.bytes().len() as u64, None));
    }
    if let Value::Text(text) = &value
        && let Err(error) = std::str::from_utf8(text)
    {
        return Err(Poison::new(
            PoisonReason::RowError,
            format!(
                "the value is not UTF-8 text from byte {} on",
                error.valid_up_to()
            ),
        ));
    }
    let own = metadata::own_members(draft.content_type.as_ref(), draft.metadata.as_ref())?;
    let hash = content_hash(&value, draft.expiry, &own);
    Ok(Document {
        name,
        metadata: metadata::with_mark(Mark::new(hash, owner), &own)?,
        value,
        hash,
        expiration: expiration(draft.expiry),
    })
}

fn too_large(bytes: u64, shards: Option<u32>) -> Poison {
    let advice = match shards {
        None => String::new(),
        Some(shards) => format!(
            "; divide its rows among several documents: shards = {}, and {{shard}} in the key",
            shards_for(bytes, shards)
        ),
    };
    Poison::new(
        PoisonReason::ValueTooLarge,
        format!("the value has {bytes} bytes; Workers KV allows {KV_VALUE_MAX_BYTES}{advice}"),
    )
}

/// So many that each would be half full, where `shards` give one of so many bytes.
fn shards_for(bytes: u64, shards: u32) -> u64 {
    bytes
        .saturating_mul(u64::from(shards))
        .div_ceil(KV_VALUE_MAX_BYTES as u64 / 2)
}

/// The expiry as KV takes it.
fn expiration(expiry: Expiry) -> Option<Expiration> {
    match expiry {
        Expiry::Never => None,
        Expiry::After(seconds) => Some(Expiration::After(seconds)),
        Expiry::At {
            unix_seconds,
            ahead_seconds,
        } => Some(match u32::try_from(ahead_seconds) {
            Ok(ahead) if ahead_seconds < SHORT_LIFE_SECONDS => {
                Expiration::After(ahead.max(KV_TTL_MIN_SECONDS))
            }
            _ => Expiration::At(unix_seconds),
        }),
    }
}

/// Hash of all that makes two pairs of one name equal: the kind of the value and its bytes, the
/// expiry as the rows say it, and the members of the metadata that are not the hash, as JSON text
/// or empty.
pub fn content_hash(value: &Value, expiry: Expiry, own_metadata: &str) -> ContentHash {
    let kind = match value {
        Value::Text(_) => b't',
        Value::Binary(_) => b'b',
    };
    let (expiry, seconds) = match expiry {
        Expiry::Never => (0, 0),
        Expiry::At { unix_seconds, .. } => (1, unix_seconds),
        Expiry::After(seconds) => (2, u64::from(seconds)),
    };
    // Lengths and tags stand before what varies, so that no two contents run into the same bytes.
    let hash = hash_of(&[
        &[kind],
        &(value.bytes().len() as u64).to_le_bytes(),
        value.bytes(),
        &[expiry],
        &seconds.to_le_bytes(),
        own_metadata.as_bytes(),
    ]);
    let mut first = [0; 16];
    first.copy_from_slice(&hash.as_bytes()[..16]);
    ContentHash(u128::from_be_bytes(first))
}

/// Hash of one part after the other. Few bytes are put together first: a hasher that takes them part
/// by part costs as much as the hash itself.
fn hash_of(parts: &[&[u8]]) -> blake3::Hash {
    let mut together = SmallVec::<[u8; TOGETHER_BYTES]>::new();
    if parts.iter().map(|part| part.len()).sum::<usize>() <= TOGETHER_BYTES {
        for part in parts {
            together.extend_from_slice(part);
        }
        return blake3::hash(&together);
    }
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests;
