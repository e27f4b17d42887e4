//! `/__emulator`: what tests and demos ask of the emulator itself.
//!
//! Owns its paths and their JSON, which the module documentation describes, and who may ask: whoever has
//! the emulator's token, and no page in a browser.

use std::collections::BTreeMap;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, put};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::faults::{Fault, Waiting};
use super::pair::Pair;
use super::record::{Applied, Page, RequestRecord};
use super::store::{Statistics, Store};
use crate::http_server::hosts::{Hosts, same_origin};

/// Entries in one page of a history where the request does not say.
const PAGE_ENTRIES: usize = 10_000;

/// The routes of the control interface.
pub(super) fn router(store: Store) -> Router<Store> {
    Router::new()
        .route(
            "/__emulator/faults",
            get(list_faults).post(add_faults).delete(clear_faults),
        )
        .route("/__emulator/faults/{id}", delete(remove_fault))
        .route("/__emulator/history", get(history))
        .route("/__emulator/requests", get(requests))
        .route("/__emulator/dump/{namespace}", get(dump))
        .route("/__emulator/stats", get(statistics))
        .route("/__emulator/token", put(set_token))
        .route_layer(middleware::from_fn_with_state(store, check))
}

/// Refuses pages of other servers, names that they can make point here, and whoever has not the token.
async fn check(State(store): State<Store>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    if !Hosts::new(&[]).allow(headers) || !same_origin(headers) {
        let what = "ask by address or as localhost, and not from a page of another server\n";
        return (StatusCode::FORBIDDEN, what).into_response();
    }
    if !store.takes_token(headers) {
        let what = "send the emulator's token: `Authorization: Bearer ...`\n";
        return (StatusCode::UNAUTHORIZED, what).into_response();
    }
    next.run(request).await
}

#[derive(Deserialize)]
struct Since {
    #[serde(default)]
    since: u64,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    token: Option<String>,
}

#[derive(Serialize)]
struct Dumped {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<u64>,
}

async fn list_faults(State(store): State<Store>) -> Json<Vec<Waiting>> {
    Json(store.faults().list())
}

/// Adds one fault or an array of them; a malformed one refuses all.
async fn add_faults(State(store): State<Store>, body: Bytes) -> Response {
    let parsed = if body.trim_ascii_start().starts_with(b"[") {
        serde_json::from_slice::<Vec<Fault>>(&body)
    } else {
        serde_json::from_slice::<Fault>(&body).map(|fault| vec![fault])
    };
    let added = parsed
        .map_err(|error| error.to_string())
        .and_then(|faults| {
            store
                .faults()
                .add_all(faults)
                .map_err(|error| error.to_string())
        });
    match added {
        Ok(ids) => Json(json!({ "ids": ids })).into_response(),
        Err(what) => (StatusCode::BAD_REQUEST, what).into_response(),
    }
}

async fn clear_faults(State(store): State<Store>) -> StatusCode {
    store.faults().clear();
    StatusCode::NO_CONTENT
}

async fn remove_fault(State(store): State<Store>, Path(id): Path<u64>) -> StatusCode {
    if store.faults().remove(id) {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn history(State(store): State<Store>, Query(page): Query<Since>) -> Json<Page<Applied>> {
    Json(store.history_page(page.since, page.limit.unwrap_or(PAGE_ENTRIES)))
}

async fn requests(
    State(store): State<Store>,
    Query(page): Query<Since>,
) -> Json<Page<RequestRecord>> {
    Json(store.requests_page(page.since, page.limit.unwrap_or(PAGE_ENTRIES)))
}

async fn statistics(State(store): State<Store>) -> Json<Statistics> {
    Json(store.statistics())
}

async fn set_token(State(store): State<Store>, body: Bytes) -> Response {
    match serde_json::from_slice(&body) {
        Ok(Token { token }) => {
            store.set_token(token);
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

async fn dump(State(store): State<Store>, Path(namespace): Path<String>) -> Response {
    let Some(pairs) = store.find(&namespace) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let dumped: BTreeMap<String, Dumped> = pairs
        .into_iter()
        .map(|(key, pair)| (key, dumped(pair)))
        .collect();
    Json(dumped).into_response()
}

fn dumped(pair: Pair) -> Dumped {
    let text = std::str::from_utf8(&pair.value).ok().map(str::to_owned);
    Dumped {
        base64: text.is_none().then(|| STANDARD.encode(&pair.value)),
        value: text,
        metadata: pair
            .metadata
            .and_then(|json| RawValue::from_string(json.as_ref().into()).ok()),
        expiration: pair.expiration,
    }
}
