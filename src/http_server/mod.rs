//! An HTTP/1 server that serves everybody while some clients do not finish what they begin.
//!
//! Owns accepting, the number of open connections, and the time that a request may take to come in.
//! Knows nothing of paths and bodies; `ops` and `emulator` bring a router.
//!
//! **Invariant:** a new connection is always accepted. When there are [`Limits::connections_max`]
//! already, one of the address that has most of them makes room: the one that has waited longest for a
//! request, or, when all are served, the one that is served longest. So unfinished requests hold a
//! bounded number of descriptors, and a probe is answered beside any number of them, however fast others
//! open new ones.

pub(crate) mod hosts;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Pause after an accept that failed, for instance because no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What clients may take up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Open connections at the same time.
    pub(crate) connections_max: usize,
    /// From the beginning of a connection, or the end of the request before, to the end of the next
    /// request's headers. An idle connection is closed after this time too.
    pub(crate) header_timeout: Duration,
}

/// Serves until `shutdown`, then finishes the requests that are under way.
///
/// `open` makes of each socket what is read and written, and what handlers get as [`ConnectInfo`].
// Cancel-safety: dropping the future ends every connection at once.
pub(crate) async fn serve<I, C>(
    listener: TcpListener,
    app: Router,
    limits: Limits,
    shutdown: CancellationToken,
    open: impl Fn(TcpStream) -> (I, C),
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    C: Clone + Send + Sync + 'static,
{
    let connections = Connections::default();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((tcp, peer)) => {
                    // A refusal costs some latency only.
                    let _ = tcp.set_nodelay(true);
                    let (io, info) = open(tcp);
                    let entry = connections.enter(peer.ip(), limits.connections_max);
                    let shutdown = shutdown.clone();
                    tasks.spawn(converse(io, app.clone(), info, limits, entry, shutdown));
                }
                Err(_) => {
                    connections.close_one();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Serves one connection until it ends, is closed for another one, or shutdown has let it finish.
async fn converse<I, C>(
    io: I,
    app: Router,
    info: C,
    limits: Limits,
    entry: Entry,
    shutdown: CancellationToken,
) where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    C: Clone + Send + Sync + 'static,
{
    let app = TowerToHyperService::new(app);
    let entry = Arc::new(entry);
    let closed = entry.closed.clone();
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(ConnectInfo(info.clone()));
        entry.set(State::Served);
        let reply = app.call(request);
        let entry = Arc::clone(&entry);
        async move {
            let reply: Result<Response, Infallible> = reply.await;
            entry.set(State::Waiting);
            reply
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // A client that breaks off, or sends no HTTP, is none of our concern.
        _ = connection.as_mut() => return,
        () = closed.cancelled() => return,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = connection => {}
        () = closed.cancelled() => {}
    }
}

/// What a connection does. Those that wait make room first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// No whole request has come in, or its reply is made.
    Waiting,
    /// A handler makes the reply.
    Served,
}

/// The open connections.
#[derive(Clone, Debug, Default)]
struct Connections(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// Grows with each change, so that the smallest one is the oldest.
    ticks: u64,
    open: HashMap<u64, Open>,
}

#[derive(Debug)]
struct Open {
    peer: IpAddr,
    state: State,
    /// The tick of its last change.
    since: u64,
    closed: CancellationToken,
}

impl Table {
    fn tick(&mut self) -> u64 {
        self.ticks += 1;
        self.ticks
    }

    fn close_one(&mut self) {
        let mut peers: HashMap<IpAddr, usize> = HashMap::new();
        for open in self.open.values() {
            *peers.entry(open.peer).or_default() += 1;
        }
        let rank = |open: &Open| (Reverse(peers[&open.peer]), open.state, open.since);
        let first = self.open.iter().min_by_key(|(_, open)| rank(open));
        let first = first.map(|(id, _)| *id);
        if let Some(open) = first.and_then(|id| self.open.remove(&id)) {
            open.closed.cancel();
        }
    }
}

impl Connections {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room where there is none and enters a new connection.
    fn enter(&self, peer: IpAddr, connections_max: usize) -> Entry {
        let mut table = self.table();
        while table.open.len() >= connections_max.max(1) {
            table.close_one();
        }
        let id = table.tick();
        let closed = CancellationToken::new();
        let open = Open {
            peer,
            state: State::Waiting,
            since: id,
            closed: closed.clone(),
        };
        table.open.insert(id, open);
        drop(table);
        Entry {
            id,
            closed,
            connections: self.clone(),
        }
    }

    fn close_one(&self) {
        self.table().close_one();
    }
}

/// A connection among the open ones; it is none of them any more once this is dropped.
struct Entry {
    id: u64,
    closed: CancellationToken,
    connections: Connections,
}

impl Entry {
    fn set(&self, state: State) {
        let mut table = self.connections.table();
        let now = table.tick();
        if let Some(open) = table.open.get_mut(&self.id) {
            (open.state, open.since) = (state, now);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.table().open.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn whoever_has_most_connections_makes_room() {
        let connections = Connections::default();
        let probe = connections.enter(ONE, 3);
        let crowd = [(); 2].map(|()| connections.enter(OTHER, 3));
        let _one_more = connections.enter(OTHER, 3);
        assert!(!probe.closed.is_cancelled() && crowd[0].closed.is_cancelled());
    }

    #[test]
    fn the_longest_wait_makes_room_before_what_is_served() {
        let connections = Connections::default();
        let [first, second, third] = [(); 3].map(|()| connections.enter(ONE, 3));
        first.set(State::Served);
        let fourth = connections.enter(ONE, 3);
        assert!(second.closed.is_cancelled() && !first.closed.is_cancelled());
        // A reply that is made begins a new wait.
        first.set(State::Waiting);
        let fifth = connections.enter(ONE, 3);
        assert!(third.closed.is_cancelled() && !first.closed.is_cancelled());
        // All are served: the one that is served longest goes.
        for entry in [&fourth, &first, &fifth] {
            entry.set(State::Served);
        }
        let _sixth = connections.enter(ONE, 3);
        assert!(fourth.closed.is_cancelled() && !first.closed.is_cancelled());
        // What has gone by itself leaves its place.
        drop(first);
        let _seventh = connections.enter(ONE, 3);
        assert!(!fifth.closed.is_cancelled());
    }
}
