//! The HTTP server for operators: probes, metrics, status, and a page that shows it.
//!
//! Read-only, GET only, without secrets, keys or values. Probes depend on nothing outside but what
//! their names say: `/livez` never on Postgres or KV, or an outage there would restart every pod.

mod page;
mod status;
pub mod systemd;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics::gauge;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::daemon::{Report, Watcher};
use crate::http_server::hosts::Hosts;
use crate::http_server::{self, Limits};
use crate::metrics as names;
use crate::relay::Phase;

/// A loop that did not go round for this long is stuck. It goes round each second at least.
const STUCK_AFTER: Duration = Duration::from_secs(15);
/// Probes, scrapes and as many pages as may follow live; far below the usual limit of 1,024 descriptors,
/// of which the connections to Postgres and Workers KV need some.
const LIMITS: Limits = Limits {
    connections_max: 128,
    header_timeout: Duration::from_secs(10),
};
/// How often histograms are folded up.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
struct Ops {
    watcher: Watcher,
    metrics: PrometheusHandle,
    /// Pages that may still follow the status live.
    followers: Arc<Semaphore>,
}

/// The server, bound and not yet serving.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    ops: Ops,
    hosts: Hosts,
}

impl Server {
    /// Binds `listen`. All but `/livez` and `/startupz` is shown under addresses, `localhost` and the names in
    /// `hosts` only.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(
        listen: SocketAddr,
        hosts: &[String],
        watcher: Watcher,
        metrics: PrometheusHandle,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        Ok(Self {
            listener,
            ops: Ops {
                watcher,
                metrics,
                followers: Arc::new(Semaphore::new(page::FOLLOWERS_MAX)),
            },
            hosts: Hosts::new(hosts),
        })
    }

    /// The address, with the port that was chosen where 0 was asked for.
    ///
    /// # Errors
    /// When the socket cannot be asked.
    pub fn addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, shutdown: CancellationToken) {
        let process = metrics_process::Collector::default();
        process.describe();
        let handle = self.ops.metrics.clone();
        let upkeep = async move {
            let mut interval = tokio::time::interval(UPKEEP_INTERVAL);
            loop {
                interval.tick().await;
                handle.run_upkeep();
            }
        };
        let app = router(self.ops, self.hosts);
        let server = http_server::serve(self.listener, app, LIMITS, shutdown.clone(), |tcp| {
            (tcp, ())
        });
        tokio::select! {
            () = server => {}
            () = upkeep => {}
            // A client that keeps its connection open must not hold up the exit.
            () = async { shutdown.cancelled().await; tokio::time::sleep(Duration::from_secs(1)).await } => {}
        }
    }
}

fn router(ops: Ops, hosts: Hosts) -> Router {
    let pages = Router::new()
        .merge(page::router())
        .route("/api/status", get(status_json))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(hosts, check_host));
    // These say nothing of what the daemon does, so whoever asks may know.
    Router::new()
        .merge(pages)
        .route("/livez", get(livez))
        .route("/healthz", get(livez))
        .route("/startupz", get(startupz))
        .fallback(async || text(StatusCode::NOT_FOUND, "there is no such page\n"))
        .with_state(ops)
}

/// Refuses names that somebody else can make point here. kubelet and Prometheus ask by address.
async fn check_host(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    if hosts.allow(request.headers()) {
        return next.run(request).await;
    }
    text(
        StatusCode::MISDIRECTED_REQUEST,
        "this host name is not known here; ask by address, or add the name to ops.hosts\n",
    )
}

async fn livez(State(ops): State<Ops>) -> Response {
    let (status, body) = liveness(ops.watcher.loop_age());
    text(status, body)
}

fn liveness(loop_age: Duration) -> (StatusCode, String) {
    if loop_age < STUCK_AFTER {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        let body = format!("the loop has been stuck for {} s\n", loop_age.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, body)
    }
}

async fn startupz() -> Response {
    text(StatusCode::OK, "ok\n")
}

/// Ready once Postgres was reached, whether leading or standing by: a standby that is not ready
/// would block every rollout. Trouble after that is told in the body, not by the status: no traffic
/// depends on it, and a restart would not help. But whoever cannot work with the schema cannot take
/// over either, and a rollout of such must not go on.
async fn readyz(State(ops): State<Ops>) -> Response {
    let report = ops.watcher.report();
    let status = match report.status.phase {
        Phase::Draining | Phase::Done => StatusCode::SERVICE_UNAVAILABLE,
        _ if !report.reached || report.is_barred() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    text(status, status::readiness(&report))
}

async fn metrics(State(ops): State<Ops>) -> Response {
    metrics_process::Collector::default().collect();
    // Here, because a loop that is stuck tells nothing of itself.
    gauge!(names::LOOP_AGE).set(ops.watcher.loop_age().as_secs_f64());
    let body = ops.metrics.render();
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

async fn status_json(State(ops): State<Ops>) -> Response {
    let report: Report = ops.watcher.report();
    axum::Json(status::StatusJson::new(&report)).into_response()
}

fn text(status: StatusCode, body: impl Into<String>) -> Response {
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
    ];
    (status, headers, body.into()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_loop_is_not_alive() {
        assert_eq!(liveness(Duration::from_secs(14)).0, StatusCode::OK);
        let (status, body) = liveness(Duration::from_secs(16));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(body, "the loop has been stuck for 16 s\n");
    }
}
