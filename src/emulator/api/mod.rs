//! The operations of the KV REST API.
//!
//! Owns the checks that all of them share: namespace, key, value, metadata, expiration. One file
//! per family of operations. Knows nothing of credentials, request limits or faults.

mod bulk;
mod keys;
mod namespaces;
mod values;

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::Query;
use axum::http::StatusCode;
use serde_json::value::RawValue;

use crate::emulator::data::{ApplyError, Write};
use crate::emulator::desk::{Call, Desk};
use crate::emulator::reply::{ApiError, Reply};
use crate::emulator::route::{Operation, Route};

/// Serves a call.
pub(super) async fn serve(desk: &Desk, call: &Call) -> Reply {
    let result = match call.route.operation {
        Operation::VerifyToken => Ok(namespaces::verify_token()),
        Operation::ListAccounts => Ok(namespaces::list_accounts(desk)),
        Operation::ListMemberships => Ok(namespaces::list_memberships(desk)),
        Operation::ListNamespaces => namespaces::list(desk, call),
        Operation::CreateNamespace => namespaces::create(desk, call),
        Operation::GetNamespace => namespaces::get(desk, call),
        Operation::RenameNamespace => namespaces::rename(desk, call),
        Operation::DeleteNamespace => namespaces::delete(desk, call),
        Operation::ListKeys => keys::list(desk, call),
        Operation::ReadValue => values::read(desk, call),
        Operation::ReadMetadata => values::read_metadata(desk, call),
        Operation::WriteValue => values::write(desk, call).await,
        Operation::DeleteValue => values::delete(desk, call),
        Operation::BulkWrite => bulk::write(desk, call),
        Operation::BulkDelete => bulk::delete(desk, call),
        Operation::BulkGet => bulk::get(desk, call),
    };
    result.unwrap_or_else(Reply::from)
}

/// Whether a request names a key that begins with `prefix`.
pub(super) fn names_key(route: &Route, body: &[u8], prefix: &str) -> bool {
    match route.operation {
        Operation::BulkWrite | Operation::BulkDelete | Operation::BulkGet => {
            bulk::names_key(route.operation, body, prefix)
        }
        _ => !route.key.is_empty() && route.key.starts_with(prefix),
    }
}

/// Whether a text is a namespace id: 32 hexadecimal digits in lower case.
pub(super) fn is_namespace_id(text: &str) -> bool {
    text.len() == 32
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Checks that a call's namespace exists. `what` is the operation as error messages name it.
fn check_namespace(desk: &Desk, call: &Call, what: &str) -> Result<(), ApiError> {
    let id = &call.route.namespace;
    if !is_namespace_id(id) {
        return Err(ApiError::malformed_namespace(what));
    }
    desk.data()
        .namespace(id)
        .map(|_| ())
        .ok_or_else(|| ApiError::namespace_not_found(what))
}

/// The parameters of the query string.
fn query(call: &Call) -> Result<HashMap<String, String>, ApiError> {
    Query::try_from_uri(&call.uri)
        .map(|Query(parameters)| parameters)
        .map_err(|_| ApiError::invalid_request("the query string is malformed"))
}

/// Checks a key. Too long a key has a `status` of its own where it stands in the path.
fn check_key(desk: &Desk, key: &str, too_long: StatusCode) -> Result<(), ApiError> {
    let limit = desk.limits.key_bytes;
    if key.is_empty() {
        return Err(ApiError::empty_key());
    }
    if matches!(key, "." | "..") {
        return Err(ApiError::illegal_key(key));
    }
    if key.len() > limit {
        return Err(ApiError::key_too_long(too_long, key.len(), limit));
    }
    Ok(())
}

/// Metadata as it is kept: as it was sent, or compact where only that is within the limit.
fn check_metadata(desk: &Desk, json: &RawValue) -> Result<Arc<str>, ApiError> {
    let limit = desk.limits.metadata_bytes;
    let json = json.get();
    if json.len() <= limit {
        return Ok(json.into());
    }
    // Blanks between members do not count: the service measures what it stores.
    let compact = serde_json::from_str::<serde_json::Value>(json)
        .map_err(|_| ApiError::malformed_metadata())?
        .to_string();
    if compact.len() > limit {
        return Err(ApiError::metadata_too_large(compact.len(), limit));
    }
    Ok(compact.into())
}

/// When a pair expires, in Unix seconds. A time to live wins over a moment.
fn check_expiration(
    desk: &Desk,
    moment: Option<i64>,
    time_to_live: Option<i64>,
) -> Result<Option<u64>, ApiError> {
    let least = desk.limits.ttl_seconds;
    let now = desk.clock.unix_micros() / 1_000_000;
    match (time_to_live, moment) {
        (Some(seconds), _) => match u64::try_from(seconds) {
            Ok(ahead) if ahead >= least => Ok(Some(now.saturating_add(ahead))),
            _ => Err(ApiError::invalid_expiration_ttl(
                &seconds.to_string(),
                least,
            )),
        },
        (None, Some(seconds)) => match u64::try_from(seconds) {
            Ok(at) if at >= now.saturating_add(least) => Ok(Some(at)),
            _ => Err(ApiError::invalid_expiration(&seconds.to_string(), least)),
        },
        (None, None) => Ok(None),
    }
}

/// Applies writes and returns the keys that were written too soon after another write.
fn apply(
    desk: &Desk,
    call: &Call,
    what: &str,
    writes: Vec<Write>,
) -> Result<Vec<Arc<str>>, ApiError> {
    let interval = if call.late {
        None
    } else {
        desk.limits.key_interval
    };
    let applied = desk
        .data()
        .apply(&call.route.namespace, writes, interval, call.number);
    match applied {
        Ok(refused) => {
            if !refused.is_empty() {
                desk.stats().refused_by_key_interval += refused.len() as u64;
            }
            Ok(refused)
        }
        // It was there a moment ago: another request deleted it.
        Err(ApplyError::NoNamespace) => Err(ApiError::namespace_not_found(what)),
        Err(error @ ApplyError::Journal(_)) => Err(ApiError::internal(error.to_string())),
    }
}
