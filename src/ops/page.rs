//! The status page: three small files of our own, and a stream of events that they draw.
//!
//! Nothing is loaded from elsewhere, and no script but ours runs: the policy in the headers says so.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;

use super::status::StatusJson;
use super::{Ops, text};

/// Most pages that follow live at the same time.
pub(super) const FOLLOWERS_MAX: usize = 64;
/// Least time between two events.
const EVENT_INTERVAL: Duration = Duration::from_millis(500);

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub(super) fn router() -> Router<Ops> {
    let file = |kind, body| get(move || async move { file(kind, body) });
    let html = include_str!("page/index.html");
    let css = include_str!("page/page.css");
    let script = include_str!("page/page.js");
    let icon = include_str!("page/icon.svg");
    Router::new()
        .route("/", file("text/html; charset=utf-8", html))
        .route("/page/page.css", file("text/css; charset=utf-8", css))
        .route(
            "/page/page.js",
            file("text/javascript; charset=utf-8", script),
        )
        .route("/page/icon.svg", file("image/svg+xml", icon))
        .route("/api/events", get(events))
}

fn file(kind: &'static str, body: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 5] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(POLICY),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
        // Files and daemon are one binary; after an upgrade both must be new.
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, body).into_response()
}

/// The status now, and again whenever there is a new report.
async fn events(State(ops): State<Ops>) -> Response {
    let Ok(permit) = ops.followers.try_acquire_owned() else {
        return text(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many pages follow already; close some\n",
        );
    };
    let mut watcher = ops.watcher;
    watcher.mark_changed();
    let stream = stream::unfold(
        (watcher, permit, false),
        |(mut watcher, permit, paced)| async move {
            if paced {
                tokio::time::sleep(EVENT_INTERVAL).await;
            }
            let report = watcher.next().await?;
            // What serialises once serialises always; an empty event would be drawn as an error.
            let event = Event::default()
                .event("status")
                .json_data(StatusJson::new(&report))
                .ok()?;
            Some((Ok::<_, Infallible>(event), (watcher, permit, true)))
        },
    );
    Sse::new(stream)
        .keep_alive(KeepAlive::default())
        .into_response()
}
