//! Listing the keys of a namespace.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::{check_namespace, query};
use crate::emulator::desk::{Call, Desk};
use crate::emulator::reply::{ApiError, Reply};

const LIMIT_LOWEST: usize = 10;
const LIMIT_HIGHEST: usize = 1_000;

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
}

pub(super) fn list(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let what = "list keys";
    check_namespace(desk, call, what)?;
    let parameters = query(call)?;
    let limit = match parameters.get("limit") {
        None => LIMIT_HIGHEST,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (LIMIT_LOWEST..=LIMIT_HIGHEST).contains(limit))
            .ok_or_else(|| ApiError::invalid_limit(LIMIT_LOWEST, LIMIT_HIGHEST))?,
    };
    let prefix = parameters.get("prefix").map_or("", String::as_str);
    let after = match parameters.get("cursor").map(String::as_str) {
        None | Some("") => None,
        Some(cursor) => Some(read_cursor(cursor).ok_or_else(ApiError::invalid_cursor)?),
    };

    let mut data = desk.data();
    let namespace = data
        .namespace(&call.route.namespace)
        .ok_or_else(|| ApiError::namespace_not_found(what))?;
    let mut keys = namespace.list(prefix, after.as_deref());
    let shown: Vec<Listed<'_>> = keys
        .by_ref()
        .take(limit)
        .map(|(key, pair)| Listed {
            name: key,
            expiration: pair.expiration,
            metadata: pair
                .metadata
                .as_deref()
                .and_then(|json| serde_json::from_str(json).ok()),
        })
        .collect();
    let cursor = match (keys.next(), shown.last()) {
        (Some(_), Some(last)) => URL_SAFE_NO_PAD.encode(last.name),
        _ => String::new(),
    };
    Ok(Reply::page(
        &shown,
        json!({ "count": shown.len(), "cursor": cursor }),
    ))
}

/// The key after which a page begins.
fn read_cursor(cursor: &str) -> Option<String> {
    String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()
}
