//! A local server for the Workers KV REST API: for development, demos and tests.
//!
//! It serves every endpoint of the API under `http://{addr}/client/v4`, with the API's envelope,
//! error codes and size limits, one write per second and key, 1,200 requests per five minutes, and
//! the `Ratelimit` headers. A token is checked where one is set (as bearer token, or as
//! `X-Auth-Key` beside any `X-Auth-Email`). Where Cloudflare does not document what happens, it
//! follows Cloudflare's own simulator; `tests/peers/conformance.json` lists the differences.
//!
//! Not emulated: eventual consistency between places, the quota of the free plan, billing.
//!
//! # Storage
//! In memory, one ordered map per namespace. With [`Options::data_dir`] each namespace also has a
//! journal there, which survives `kill -9` (see `journal.rs`).
//!
//! # History
//! [`Options::record_history`] writes and as many requests are kept for checkers (the oldest
//! give way): about 150 bytes and the key for a write, 80 bytes for a request. 0 keeps none.
//!
//! # Control over HTTP
//! The same as [`Store`] offers in the process, for tests that run the binary. It asks for the
//! emulator's token like the API does, where one is set. `Host` must be an address or `localhost`, and
//! `Origin`, where there is one, this server's: no page in a browser can use it.
//!
//! | request | meaning |
//! |---|---|
//! | `GET /__emulator/faults` | the faults: `[{"id", "fault", "matched", "met"}]` |
//! | `POST /__emulator/faults` | adds one fault or an array of them; replies `{"ids": [1]}` |
//! | `DELETE /__emulator/faults` | removes all; `/__emulator/faults/{id}` removes one |
//! | `GET /__emulator/history?since=N&limit=M` | `{"entries": [{"seq", "unix_micros", "namespace", "key", "op": "put" or "delete", "hash", "bytes", "request"}], "last", "forgotten"}` |
//! | `GET /__emulator/requests?since=N&limit=M` | the same for requests: `{"number", "operation", "arrived_unix_micros", "replied_unix_micros", "status", "fault"}` |
//! | `GET /__emulator/dump/{namespace}` | `{key: {"value" or "base64", "metadata", "expiration"}}` |
//! | `GET /__emulator/stats` | requests by operation and status, refusals, applied writes, pairs |
//! | `PUT /__emulator/token` | `{"token": "…"}` sets another token, `{"token": null}` takes any |
//!
//! # Faults
//! A [`Fault`](faults::Fault) waits for the requests that its matcher describes, and is used up
//! after `count` of them. It says when the request takes effect and what the client gets:
//!
//! | to have | write |
//! |---|---|
//! | an error without effect | `{"reply": {"status": {"status": 503, "retry_after": 2}}}` |
//! | a slow reply | `{"delay_ms": 800, "reply": "served"}` |
//! | applied, but never answered | `{"effect": "now", "reply": "hang"}` |
//! | never answered, and applied later | `{"effect": {"after_ms": 500}, "reply": "hang"}` |
//! | a 5xx, and applied later | `{"effect": {"after_ms": 500}, "reply": {"status": {"status": 500}}}` |
//! | half of the keys not written | `{"reply": {"partial": {"share": 0.5}}}` |
//! | listed as not written, but written | `{"reply": {"partial": {"share": 0.5, "written": true}}}` |
//! | applied, then the connection resets | `{"effect": "now", "reply": "reset"}` |
//! | other replies | `"garbage"`, `"truncated"`, `"success_false"`, `"edge_timeout"`, `{"redirect": {"location": "…"}}` |
//!
//! Matchers are `"match": {"method", "path", "operation", "key_prefix", "probability", "seed"}`;
//! operations are those of [`Operation`](route::Operation), such as `"bulk_write"` and
//! `"bulk_delete"`. Faults meet requests that have passed the credentials and the request limit.

mod api;
pub mod clock;
mod connection;
mod control;
mod data;
mod desk;
pub mod faults;
mod journal;
pub mod limits;
pub mod pair;
pub mod record;
mod reply;
pub mod route;
pub mod store;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::DefaultBodyLimit;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use clock::Clock;
use connection::Connection;
use data::Data;
use desk::Desk;
use journal::Directory;
use limits::Limits;
use record::WriteLog;
use store::Store;

use crate::http_server;

/// More than any client of the API needs, and below the usual limit of 1,024 descriptors.
const CONNECTIONS: http_server::Limits = http_server::Limits {
    connections_max: 256,
    header_timeout: Duration::from_secs(60),
};
/// Time that open connections get to end once the emulator stops; they end at once in practice.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// What an emulator is started with.
#[derive(Clone)]
pub struct Options {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The token that requests must bring; `None` takes any request.
    pub token: Option<String>,
    /// The account that paths must name; `None` takes any.
    pub account: Option<String>,
    /// Namespaces that exist from the start, besides those of the data directory.
    pub namespaces: Vec<Namespace>,
    /// Where namespaces outlive the process; `None` keeps them in memory only.
    pub data_dir: Option<PathBuf>,
    /// What is accepted, and how often.
    pub limits: Limits,
    /// Writes, and as many requests, that the histories keep; 0 keeps none.
    pub record_history: usize,
    /// The clock of expirations and rate limits.
    pub clock: Clock,
}

/// A namespace that exists from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// 32 hexadecimal digits in lower case.
    pub id: String,
    /// Title in the account.
    pub title: String,
}

impl Default for Options {
    /// A free loopback port, any token, any account, no namespace, in memory, the documented
    /// limits, no history.
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            token: None,
            account: None,
            namespaces: Vec::new(),
            data_dir: None,
            limits: Limits::default(),
            record_history: 0,
            clock: Clock::running(),
        }
    }
}

/// A running emulator. Dropping it stops it too, without waiting for its connections to end.
pub struct Emulator {
    address: SocketAddr,
    desk: Arc<Desk>,
    server: JoinHandle<()>,
}

impl Emulator {
    /// Starts to listen; from the return on, requests are served.
    ///
    /// # Errors
    /// The address cannot be bound, the data directory cannot be read, is damaged or in use, or a
    /// namespace id is malformed. The message says which.
    pub async fn start(options: Options) -> io::Result<Self> {
        let Options {
            listen,
            token,
            account,
            namespaces,
            data_dir,
            limits,
            record_history,
            clock,
        } = options;
        let directory = data_dir.as_deref().map(Directory::open).transpose()?;
        let data = Data::open(directory, clock.clone(), WriteLog::new(record_history))?;
        let desk = Arc::new(Desk::new(
            data,
            limits,
            clock,
            account,
            token,
            record_history,
        ));
        for Namespace { id, title } in &namespaces {
            store::create(&desk, id, title)?;
        }

        let tcp = TcpListener::bind(listen).await.map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}"))
        })?;
        let address = tcp.local_addr()?;
        let store = Store {
            desk: Arc::clone(&desk),
        };
        let app = control::router(store.clone())
            .fallback(desk::handle)
            .with_state(store)
            .layer(DefaultBodyLimit::disable());
        let stop = desk.stop.clone();
        let server = tokio::spawn(async move {
            let open = |tcp| Connection::new(tcp, &stop);
            http_server::serve(tcp, app, CONNECTIONS, stop.clone(), open).await;
        });
        Ok(Self {
            address,
            desk,
            server,
        })
    }

    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Where the API begins: `http://{addr}/client/v4`.
    pub fn base_url(&self) -> String {
        format!("http://{}{}", self.address, route::ROOT)
    }

    /// A handle to look into it.
    pub fn store(&self) -> Store {
        Store {
            desk: Arc::clone(&self.desk),
        }
    }

    /// Stops listening, cuts every connection, drops writes that a fault still holds back, and
    /// returns once all of that is done.
    pub async fn stop(mut self) {
        self.desk.stop.cancel();
        // The connections end by themselves; should one not, the task ends with the runtime.
        let _ = tokio::time::timeout(STOP_GRACE, &mut self.server).await;
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.desk.stop.cancel();
    }
}
