//! One pair at a time: read, write, delete.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest as _, Multipart, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use bytes::Bytes;
use serde_json::json;
use serde_json::value::RawValue;

use super::{apply, check_expiration, check_key, check_metadata, check_namespace, query};
use crate::emulator::data::Write;
use crate::emulator::desk::{Call, Desk};
use crate::emulator::pair::Pair;
use crate::emulator::reply::{ApiError, Reply};

/// What a write brings, whichever form its body has.
struct Upload {
    value: Bytes,
    metadata: Option<Arc<str>>,
}

pub(super) fn read(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let pair = find(desk, call, "get")?;
    let octets = HeaderValue::from_static("application/octet-stream");
    let mut reply = Reply::new(StatusCode::OK, octets, pair.value);
    if let Some(expiration) = pair.expiration {
        let name = HeaderName::from_static("expiration");
        reply.set_header(name, &expiration.to_string());
    }
    Ok(reply)
}

pub(super) fn read_metadata(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let pair = find(desk, call, "get metadata")?;
    let metadata = pair
        .metadata
        .and_then(|json| RawValue::from_string(json.as_ref().to_owned()).ok());
    Ok(Reply::success(&metadata))
}

fn find(desk: &Desk, call: &Call, what: &str) -> Result<Pair, ApiError> {
    check_namespace(desk, call, what)?;
    check_key(desk, &call.route.key, StatusCode::URI_TOO_LONG)?;
    let mut data = desk.data();
    let namespace = data
        .namespace(&call.route.namespace)
        .ok_or_else(|| ApiError::namespace_not_found(what))?;
    namespace
        .pairs()
        .get(call.route.key.as_str())
        .cloned()
        .ok_or_else(|| ApiError::key_not_found(what))
}

pub(super) async fn write(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let what = "put";
    check_namespace(desk, call, what)?;
    check_key(desk, &call.route.key, StatusCode::URI_TOO_LONG)?;
    let expiration = expiration(desk, &query(call)?)?;
    let upload = upload(desk, call).await?;
    let limit = desk.limits.value_bytes;
    if upload.value.len() > limit {
        let (status, length) = (StatusCode::PAYLOAD_TOO_LARGE, upload.value.len());
        return Err(ApiError::value_too_large(status, length, limit));
    }
    let pair = Pair {
        value: upload.value,
        metadata: upload.metadata,
        expiration,
    };
    change(
        desk,
        call,
        what,
        Write::Put(call.route.key.as_str().into(), pair),
    )
}

pub(super) fn delete(desk: &Desk, call: &Call) -> Result<Reply, ApiError> {
    let what = "delete";
    check_namespace(desk, call, what)?;
    check_key(desk, &call.route.key, StatusCode::URI_TOO_LONG)?;
    change(
        desk,
        call,
        what,
        Write::Delete(call.route.key.as_str().into()),
    )
}

fn change(desk: &Desk, call: &Call, what: &str, write: Write) -> Result<Reply, ApiError> {
    let refused = apply(desk, call, what, vec![write])?;
    if refused.is_empty() {
        return Ok(Reply::success(&json!({})));
    }
    let interval = desk.limits.key_interval.unwrap_or_default();
    Err(ApiError::key_too_soon(interval.as_secs().max(1)))
}

fn expiration(desk: &Desk, parameters: &HashMap<String, String>) -> Result<Option<u64>, ApiError> {
    let least = desk.limits.ttl_seconds;
    let number = |name: &str, error: fn(&str, u64) -> ApiError| match parameters.get(name) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| error(text, least)),
    };
    let moment = number("expiration", ApiError::invalid_expiration)?;
    let time_to_live = number("expiration_ttl", ApiError::invalid_expiration_ttl)?;
    check_expiration(desk, moment, time_to_live)
}

/// The value is the body, or the part `value` of a form, which may have a part `metadata` too.
async fn upload(desk: &Desk, call: &Call) -> Result<Upload, ApiError> {
    let form = call.headers.get(CONTENT_TYPE).filter(|value| {
        value
            .as_bytes()
            .to_ascii_lowercase()
            .starts_with(b"multipart/form-data")
    });
    let Some(content_type) = form else {
        return Ok(Upload {
            value: call.body.clone(),
            metadata: None,
        });
    };
    let broken =
        |error: &dyn std::fmt::Display| ApiError::malformed_value(format!("put: '{error}'"));
    let mut request = Request::new(Body::from(call.body.clone()));
    request
        .headers_mut()
        .insert(CONTENT_TYPE, content_type.clone());
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|error| broken(&error))?;
    let (mut value, mut metadata) = (None, None);
    while let Some(part) = form.next_field().await.map_err(|error| broken(&error))? {
        let name = part.name().map(str::to_owned);
        let bytes = part.bytes().await.map_err(|error| broken(&error))?;
        match name.as_deref() {
            Some("value") => value = Some(bytes),
            Some("metadata") => {
                let json: &RawValue =
                    serde_json::from_slice(&bytes).map_err(|_| ApiError::malformed_metadata())?;
                metadata = Some(check_metadata(desk, json)?);
            }
            _ => {}
        }
    }
    let missing = "put: 'the form has no field value'";
    let value = value.ok_or_else(|| ApiError::malformed_value(missing))?;
    Ok(Upload { value, metadata })
}
