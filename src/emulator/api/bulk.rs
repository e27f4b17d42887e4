//! Many pairs in one request.
//!
//! A bulk write or delete is checked whole before anything is applied: one bad entry refuses the
//! request. What remains is applied at one moment, less the keys that were written too recently,
//! which the result lists.

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{apply, check_expiration, check_key, check_metadata, check_namespace};
use crate::emulator::data::Write;
use crate::emulator::desk::{Call, Desk, Partial};
use crate::emulator::pair::Pair;
use crate::emulator::reply::{ApiError, BulkResult, Envelope, Reply};
use crate::emulator::route::Operation;

/// An entry of a bulk write. Borrows from the body wherever the JSON has no escapes.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(default)]
    expiration: Option<i64>,
    #[serde(default)]
    expiration_ttl: Option<i64>,
    #[serde(borrow, default, deserialize_with = "present")]
    metadata: Option<&'a RawValue>,
    #[serde(default)]
    base64: Option<bool>,
}

/// Metadata that is there. `null` is metadata too, and shown as such.
fn present<'de, D: Deserializer<'de>>(json: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(json).map(Some)
}

/// A key in a list of keys.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[derive(Deserialize)]
struct GetRequest<'a> {
    #[serde(borrow)]
    keys: Vec<Name<'a>>,
    #[serde(default, rename = "type")]
    kind: GetType,
    #[serde(default, rename = "withMetadata")]
    with_metadata: bool,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GetType {
    #[default]
    Text,
    Json,
}

#[derive(Serialize)]
struct WithMetadata {
    value: Value,
    metadata: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<u64>,
}

pub(super) fn write(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let what = "bulk put";
    check_namespace(desk, call, what)?;
    let items: Vec<Item<'_>> = parse(&call.body, what)?;
    check_count(items.len(), desk.limits.bulk_pairs, what, "key/value pairs")?;

    let mut writes: Vec<Write> = Vec::with_capacity(items.len());
    let mut places: HashMap<Arc<str>, usize> = HashMap::with_capacity(items.len());
    for item in &items {
        let (key, pair) = check_item(desk, item)?;
        match places.entry(Arc::clone(&key)) {
            Entry::Vacant(place) => {
                place.insert(writes.len());
                writes.push(Write::Put(key, pair));
            }
            Entry::Occupied(place) => {
                // The same pair twice is one pair; two different ones have no order.
                let same =
                    matches!(&writes[*place.get()], Write::Put(_, earlier) if *earlier == pair);
                if !same {
                    return Err(ApiError::invalid_request(format!(
                        "received duplicate key with different values or expiration parameters: \"{key}\""
                    )));
                }
            }
        }
    }
    finish(desk, call, what, writes)
}

pub(super) fn delete(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let what = "bulk delete";
    check_namespace(desk, call, what)?;
    let names: Vec<Name<'_>> = parse(&call.body, what)?;
    check_count(names.len(), desk.limits.bulk_pairs, what, "keys")?;
    let mut seen = HashSet::with_capacity(names.len());
    let mut writes = Vec::with_capacity(names.len());
    for Name(name) in &names {
        check_key(desk, name, StatusCode::BAD_REQUEST)?;
        if seen.insert(&**name) {
            writes.push(Write::Delete(Arc::from(&**name)));
        }
    }
    finish(desk, call, what, writes)
}

pub(super) fn get(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let what = "bulk get";
    check_namespace(desk, call, what)?;
    let request: GetRequest<'_> = parse(&call.body, what)?;
    check_count(request.keys.len(), desk.limits.bulk_get_keys, what, "keys")?;
    if request.keys.is_empty() {
        return Err(ApiError::invalid_request(
            "You must request a minimum of 1 key",
        ));
    }

    let mut data = desk.data();
    let namespace = data
        .namespace(&call.route.namespace)
        .ok_or_else(|| ApiError::namespace_not_found(what))?;
    let mut values: BTreeMap<&str, Value> = BTreeMap::new();
    for Name(name) in &request.keys {
        check_key(desk, name, StatusCode::BAD_REQUEST)?;
        let found = match namespace.pairs().get(&**name) {
            None => Value::Null,
            Some(pair) => show(pair, request.kind, request.with_metadata)?,
        };
        values.insert(name, found);
    }
    Ok(Reply::success(&json!({ "values": values })))
}

fn show(pair: &Pair, kind: GetType, with_metadata: bool) -> Result<Value, ApiError> {
    let value = match kind {
        GetType::Text => Value::String(String::from_utf8_lossy(&pair.value).into_owned()),
        GetType::Json => serde_json::from_slice(&pair.value).map_err(|_| {
            ApiError::malformed_value("bulk get: 'at least one of the values is not JSON'")
        })?,
    };
    if !with_metadata {
        return Ok(value);
    }
    let metadata = pair
        .metadata
        .as_deref()
        .and_then(|json| serde_json::from_str(json).ok());
    let shown = WithMetadata {
        value,
        metadata: metadata.unwrap_or(Value::Null),
        expiration: pair.expiration,
    };
    serde_json::to_value(shown).map_err(|error| ApiError::internal(error.to_string()))
}

/// Whether a bulk request names a key that begins with `prefix`.
pub(super) fn names_key(operation: Operation, body: &[u8], prefix: &str) -> bool {
    #[derive(Deserialize)]
    struct KeyOnly<'a> {
        #[serde(borrow)]
        key: Cow<'a, str>,
    }
    let begins = |name: &Name<'_>| name.0.starts_with(prefix);
    match operation {
        Operation::BulkWrite => serde_json::from_slice::<Vec<KeyOnly<'_>>>(body)
            .is_ok_and(|items| items.iter().any(|item| item.key.starts_with(prefix))),
        Operation::BulkGet => serde_json::from_slice::<GetRequest<'_>>(body)
            .is_ok_and(|request| request.keys.iter().any(begins)),
        _ => serde_json::from_slice::<Vec<Name<'_>>>(body)
            .is_ok_and(|names| names.iter().any(begins)),
    }
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8], what: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::malformed_value(format!("{what}: 'the body is malformed: {error}'"))
    })
}

fn check_count(count: usize, limit: usize, what: &str, things: &str) -> Result<(), ApiError> {
    if count <= limit {
        return Ok(());
    }
    Err(ApiError::malformed_value(format!(
        "{what}: 'received {count} {things}, but max allowed per request is: {limit}'"
    )))
}

fn check_item(desk: &Desk, item: &Item<'_>) -> Result<(Arc<str>, Pair), ApiError> {
    check_key(desk, &item.key, StatusCode::BAD_REQUEST)?;
    let value = if item.base64 == Some(true) {
        let decoded = STANDARD.decode(item.value.as_bytes()).map_err(|_| {
            ApiError::malformed_value("bulk put: 'a value with base64 set is not valid base64'")
        })?;
        Bytes::from(decoded)
    } else {
        Bytes::copy_from_slice(item.value.as_bytes())
    };
    let limit = desk.limits.value_bytes;
    if value.len() > limit {
        return Err(ApiError::value_too_large(
            StatusCode::BAD_REQUEST,
            value.len(),
            limit,
        ));
    }
    let metadata = item
        .metadata
        .map(|json| check_metadata(desk, json))
        .transpose()?;
    let expiration = check_expiration(desk, item.expiration, item.expiration_ttl)?;
    Ok((
        Arc::from(&*item.key),
        Pair {
            value,
            metadata,
            expiration,
        },
    ))
}

/// Applies the writes, less those that a fault holds back, and says which keys did not make it.
fn finish(desk: &Desk, call: &Call, what: &str, mut writes: Vec<Write>) -> Result<Reply, ApiError> {
    let sent = writes.len();
    let mut unsuccessful = Vec::new();
    let mut status = StatusCode::OK;
    if let Some(partial) = &call.partial {
        unsuccessful = choose(&writes, partial);
        status = StatusCode::from_u16(partial.reply.status).unwrap_or(status);
        if !partial.reply.written {
            let held_back: HashSet<&Arc<str>> = unsuccessful.iter().collect();
            writes.retain(|write| !held_back.contains(write.key()));
        }
    }
    unsuccessful.extend(apply(desk, call, what, writes)?);
    if call.partial.is_some() {
        // A key that the fault lists and lets through may have been refused as well.
        unsuccessful.sort_unstable();
        unsuccessful.dedup();
    }
    let result = BulkResult {
        successful_key_count: sent - unsuccessful.len(),
        unsuccessful_keys: unsuccessful,
    };
    if status.is_success() {
        return Ok(Reply::success(&result));
    }
    let error = json!({ "code": 10001, "message": "some keys could not be written" });
    Ok(Reply::json(status, &Envelope::failure(&[error], result)))
}

/// The keys that a fault lists as unsuccessful.
fn choose(writes: &[Write], partial: &Partial) -> Vec<Arc<str>> {
    let prefix = partial.key_prefix.as_deref().unwrap_or("");
    let mut keys: Vec<Arc<str>> = writes
        .iter()
        .map(Write::key)
        .filter(|key| key.starts_with(prefix))
        .cloned()
        .collect();
    fastrand::Rng::with_seed(partial.seed).shuffle(&mut keys);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share from 0 to 1 of at most 10,000"
    )]
    let count = (keys.len() as f64 * partial.reply.share).ceil() as usize;
    keys.truncate(count);
    keys
}
