//! What happens to a request between its arrival and its reply.
//!
//! Owns the order: number, body, route, credentials, request limit, fault, operation. The operations
//! themselves are in `api`.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};
use axum::http::request::Parts;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::api;
use super::clock::Clock;
use super::connection::Cut;
use super::data::Data;
use super::faults::{self, Effect, Faults, Met, PartialReply, StatusReply, Subject};
use super::limits::{Allowance, Limits, RequestWindow};
use super::record::RequestLog;
use super::reply::{ApiError, Envelope, Reply};
use super::route::{Operation, Route};
use super::store::Store;

/// Everything that the requests of one emulator share.
pub(super) struct Desk {
    data: Mutex<Data>,
    pub(super) faults: Faults,
    pub(super) limits: Limits,
    pub(super) clock: Clock,
    pub(super) account: Option<String>,
    pub(super) stop: CancellationToken,
    token: RwLock<Option<String>>,
    window: Option<Mutex<RequestWindow>>,
    requests: Mutex<RequestLog>,
    stats: Mutex<Stats>,
}

/// Counts since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests that arrived.
    pub requests: u64,
    /// Requests by operation; requests without a route are not among them.
    pub by_operation: BTreeMap<Operation, u64>,
    /// Replies by status.
    pub by_status: BTreeMap<u16, u64>,
    /// Requests refused by the request limit.
    pub refused_by_request_limit: u64,
    /// Keys refused because they were written too soon after another write.
    pub refused_by_key_interval: u64,
    /// Requests that met a fault.
    pub faults: u64,
}

/// A request on its way to its operation.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) number: u64,
    pub(super) route: Route,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// Whether a fault held the request back: it was accepted earlier, so the pace of its keys
    /// does not stop it.
    pub(super) late: bool,
    pub(super) partial: Option<Partial>,
}

/// Which keys of a bulk request a fault lists as unsuccessful.
#[derive(Clone)]
pub(super) struct Partial {
    pub(super) reply: PartialReply,
    pub(super) key_prefix: Option<String>,
    pub(super) seed: u64,
}

/// What is sent.
enum Outcome {
    Whole(Reply),
    /// The first half of the body only.
    Half(Reply),
    Reset,
    Nothing,
}

/// The body of a request.
enum Upload {
    Whole(Bytes),
    TooLarge,
    Broken,
}

impl Desk {
    pub(super) fn new(
        data: Data,
        limits: Limits,
        clock: Clock,
        account: Option<String>,
        token: Option<String>,
        remembered_requests: usize,
    ) -> Self {
        Self {
            data: Mutex::new(data),
            faults: Faults::default(),
            window: limits
                .requests
                .map(|limit| Mutex::new(RequestWindow::new(limit))),
            limits,
            clock,
            account,
            stop: CancellationToken::new(),
            token: RwLock::new(token),
            requests: Mutex::new(RequestLog::new(remembered_requests)),
            stats: Mutex::default(),
        }
    }

    pub(super) fn data(&self) -> MutexGuard<'_, Data> {
        lock(&self.data)
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, RequestLog> {
        lock(&self.requests)
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, Stats> {
        lock(&self.stats)
    }

    pub(super) fn set_token(&self, token: Option<String>) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    fn arrived(&self, operation: Option<Operation>) -> u64 {
        let mut stats = self.stats();
        stats.requests += 1;
        if let Some(operation) = operation {
            *stats.by_operation.entry(operation).or_default() += 1;
        }
        drop(stats);
        self.requests().arrived(operation, self.clock.unix_micros())
    }

    fn replied(&self, number: u64, status: StatusCode) {
        *self.stats().by_status.entry(status.as_u16()).or_default() += 1;
        self.requests()
            .replied(number, self.clock.unix_micros(), status.as_u16());
    }

    fn check_credentials(&self, headers: &HeaderMap, operation: Operation) -> Result<(), ApiError> {
        match (self.check_token(headers)?, operation) {
            (true, _) => Ok(()),
            (false, Operation::VerifyToken) => Err(ApiError::invalid_token()),
            (false, _) => Err(ApiError::wrong_credentials()),
        }
    }

    /// Whether the token that the request brings is the right one; any is where none is set.
    pub(super) fn check_token(&self, headers: &HeaderMap) -> Result<bool, ApiError> {
        let token = self.token.read().unwrap_or_else(PoisonError::into_inner);
        let Some(token) = token.as_deref() else {
            return Ok(true);
        };
        let sent = match (headers.get(AUTHORIZATION), headers.get("x-auth-key")) {
            (Some(authorization), _) => authorization
                .to_str()
                .ok()
                .and_then(|text| text.strip_prefix("Bearer "))
                .filter(|text| !text.is_empty() && !text.contains(char::is_whitespace))
                .ok_or_else(ApiError::malformed_authorization)?
                .as_bytes(),
            (None, Some(key)) if headers.contains_key("x-auth-email") => key.as_bytes(),
            (None, _) => return Err(ApiError::no_credentials()),
        };
        Ok(sent == token.as_bytes())
    }

    fn check_account(&self, route: &Route) -> Result<(), ApiError> {
        match (&self.account, &route.account) {
            (Some(ours), Some(theirs)) if ours != theirs => Err(ApiError::wrong_credentials()),
            _ => Ok(()),
        }
    }

    fn count(&self) -> Option<Allowance> {
        let allowance = lock(self.window.as_ref()?).count(self.clock.unix_micros());
        if allowance.refused {
            self.stats().refused_by_request_limit += 1;
        }
        Some(allowance)
    }

    async fn answer(
        self: &Arc<Self>,
        number: u64,
        route: Option<Route>,
        parts: Parts,
        upload: Upload,
    ) -> Outcome {
        let path = parts.uri.path();
        let Some(route) = route else {
            return Outcome::Whole(ApiError::no_route(path).into());
        };
        let allowed = self
            .check_credentials(&parts.headers, route.operation)
            .and_then(|()| self.check_account(&route));
        if let Err(error) = allowed {
            return Outcome::Whole(error.into());
        }
        let allowance = self.count();
        if allowance.is_some_and(|allowance| allowance.refused) {
            return with_allowance(ApiError::too_many_requests().into(), allowance.as_ref());
        }
        let body = match upload {
            Upload::Whole(body) => body,
            Upload::TooLarge => {
                let error = ApiError::body_too_large(self.limits.body_bytes);
                return with_allowance(error.into(), allowance.as_ref());
            }
            Upload::Broken => return Outcome::Nothing,
        };

        let subject = Subject {
            method: parts.method.as_str(),
            path,
            operation: route.operation,
        };
        let met = self
            .faults
            .meet(&subject, |prefix| api::names_key(&route, &body, prefix));
        let Parts { uri, headers, .. } = parts;
        let call = Call {
            number,
            route,
            uri,
            headers,
            body,
            late: false,
            partial: None,
        };
        match met {
            None => with_allowance(api::serve(self, &call).await, allowance.as_ref()),
            Some(met) => self.misbehave(call, met, allowance.as_ref()).await,
        }
    }

    async fn misbehave(
        self: &Arc<Self>,
        mut call: Call,
        Met { id, fault, seed }: Met,
        allowance: Option<&Allowance>,
    ) -> Outcome {
        self.stats().faults += 1;
        self.requests().met(call.number, id);
        tokio::time::sleep(Duration::from_millis(fault.delay_ms)).await;

        if let faults::Reply::Partial(reply) = fault.reply {
            let key_prefix = fault.matcher.key_prefix.clone();
            call.partial = Some(Partial {
                reply,
                key_prefix,
                seed,
            });
        }
        let served = match fault.resolved_effect() {
            Effect::Now => Some(api::serve(self, &call).await),
            Effect::Never => None,
            Effect::AfterMs(after) => {
                call.late = true;
                tokio::spawn(Arc::clone(self).serve_late(call, Duration::from_millis(after)));
                None
            }
        };
        match fault.reply {
            faults::Reply::Served | faults::Reply::Partial(_) => match served {
                Some(reply) => with_allowance(reply, allowance),
                None => Outcome::Nothing,
            },
            faults::Reply::Hang => {
                self.stop.cancelled().await;
                Outcome::Nothing
            }
            faults::Reply::Reset => Outcome::Reset,
            faults::Reply::Garbage => Outcome::Whole(garbage()),
            faults::Reply::Truncated => {
                Outcome::Half(served.unwrap_or_else(|| Reply::success(&Value::Null)))
            }
            faults::Reply::SuccessFalse => with_allowance(success_false(), allowance),
            faults::Reply::EdgeTimeout => Outcome::Whole(edge_timeout()),
            faults::Reply::Redirect { location } => Outcome::Whole(redirect(&location)),
            faults::Reply::Status(status) => with_allowance(scripted_status(status), allowance),
        }
    }

    /// Serves a request whose client has long been answered, or never will be.
    async fn serve_late(self: Arc<Self>, call: Call, after: Duration) {
        tokio::select! {
            () = tokio::time::sleep(after) => {
                api::serve(&self, &call).await;
            }
            () = self.stop.cancelled() => {}
        }
    }
}

/// Handles a request of the API.
pub(super) async fn handle(
    State(Store { desk }): State<Store>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let route = Route::parse(&parts.method, parts.uri.path());
    let number = desk.arrived(route.as_ref().map(|route| route.operation));
    let upload = read(&parts.headers, body, desk.limits.body_bytes).await;
    let response = match desk.answer(number, route, parts, upload).await {
        Outcome::Whole(reply) => Response::from(reply),
        Outcome::Half(reply) => half(reply),
        Outcome::Reset | Outcome::Nothing => {
            // The connection refuses to write from here on, so this response is never seen.
            cut.cut();
            return Response::new(Body::empty());
        }
    };
    desk.replied(number, response.status());
    response
}

/// Reads a body. One that is too large is read to its end but not kept, so that the client gets to
/// see the refusal instead of a broken connection.
async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Upload {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    let mut too_large = announced > limit;
    let mut bytes = Vec::with_capacity(if too_large { 0 } else { announced });
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let Ok(chunk) = chunk else {
            return Upload::Broken;
        };
        too_large = too_large || bytes.len() + chunk.len() > limit;
        if too_large {
            bytes = Vec::new();
        } else {
            bytes.extend_from_slice(&chunk);
        }
    }
    if too_large {
        Upload::TooLarge
    } else {
        Upload::Whole(bytes.into())
    }
}

fn with_allowance(mut reply: Reply, allowance: Option<&Allowance>) -> Outcome {
    if let Some(allowance) = allowance {
        reply.set_allowance(allowance);
    }
    Outcome::Whole(reply)
}

/// Half of the body under the length of the whole; then the connection ends.
fn half(reply: Reply) -> Response {
    let length = reply.body.len();
    let first = reply.body.slice(..length / 2);
    let mut response = Response::from(reply);
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(length));
    let sent = stream::once(async { Ok(first) });
    let broken = stream::once(async {
        // One turn of waiting lets the server flush what it has before the error ends it.
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::ConnectionAborted))
    });
    *response.body_mut() = Body::from_stream(sent.chain(broken));
    response
}

fn garbage() -> Reply {
    let body = Bytes::from_static(b"\x00\xff{\"success\":tru\xfe");
    Reply::new(
        StatusCode::OK,
        HeaderValue::from_static("application/json"),
        body,
    )
}

fn success_false() -> Reply {
    let error = serde_json::json!({ "code": 10001, "message": "service temporarily unavailable" });
    Reply::json(StatusCode::OK, &Envelope::failure(&[error], Value::Null))
}

fn edge_timeout() -> Reply {
    let page = "<!DOCTYPE html>\n<html><head><title>524: A timeout occurred</title></head>\
                <body><h1>Error 524</h1><p>A timeout occurred</p></body></html>\n";
    let status = StatusCode::from_u16(524).unwrap_or(StatusCode::GATEWAY_TIMEOUT);
    Reply::new(
        status,
        HeaderValue::from_static("text/html; charset=UTF-8"),
        page.into(),
    )
}

fn redirect(location: &str) -> Reply {
    let text = HeaderValue::from_static("text/plain");
    let mut reply = Reply::new(StatusCode::TEMPORARY_REDIRECT, text, Bytes::new());
    reply.set_header(axum::http::header::LOCATION, location);
    reply
}

fn scripted_status(scripted: StatusReply) -> Reply {
    let status = StatusCode::from_u16(scripted.status).unwrap_or(StatusCode::IM_A_TEAPOT);
    let mut reply = match scripted.body {
        Some(body) => {
            let content_type = scripted
                .content_type
                .as_deref()
                .unwrap_or("application/json");
            let content_type = HeaderValue::from_str(content_type)
                .unwrap_or(HeaderValue::from_static("application/octet-stream"));
            Reply::new(status, content_type, body.into())
        }
        None => {
            let (code, message) = usual_code(scripted.status);
            ApiError::new(status, code, message).into()
        }
    };
    if let Some(seconds) = scripted.retry_after {
        reply.set_header(axum::http::header::RETRY_AFTER, &seconds.to_string());
    }
    reply
}

/// The error that the API most likely means by a status.
fn usual_code(status: u16) -> (u32, &'static str) {
    match status {
        401 | 403 => (10000, "Authentication error"),
        404 => (10013, "namespace not found"),
        413 => (10024, "payload too large"),
        429 => (
            971,
            "Please wait and consider throttling your request speed",
        ),
        400..=499 => (10029, "invalid request"),
        _ => (10001, "service temporarily unavailable"),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere must not hide behind a second one here; the data is whole between calls.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
