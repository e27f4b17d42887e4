//! A TCP proxy that misbehaves on command: a network between the daemon and its servers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How it treats every connection, those that are open and those to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As if it were not there.
    Pass,
    /// Nothing gets through in either direction, and nobody is told: a lost network.
    Blackhole,
    /// Connections are reset.
    Reset,
    /// Each connection passes so many more bytes and is then reset, in the middle of whatever it is.
    CutAfter(usize),
    /// Each piece waits so long first.
    Slow(Duration),
}

/// The proxy; it ends, with its connections, when it is dropped.
pub(crate) struct Proxy {
    address: SocketAddr,
    upstream: watch::Sender<SocketAddr>,
    mode: watch::Sender<Mode>,
    sent: Arc<AtomicU64>,
    server: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and passes on to `upstream`.
    pub(crate) async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Pass);
        let (upstream, upstreams) = watch::channel(upstream);
        let sent = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&sent);
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => if let Ok((client, _)) = accepted {
                        let upstream = upstreams.clone();
                        connections.spawn(serve(client, upstream, modes.clone(), Arc::clone(&count)));
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Self {
            address,
            upstream,
            mode,
            sent,
            server,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Bytes that clients have sent so far, whether they were passed on or not.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Passes new connections on to another server; those that are open stay where they are.
    pub(crate) fn redirect(&self, upstream: SocketAddr) {
        self.upstream.send_replace(upstream);
    }

    /// Changes how connections are treated, from now on.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The connection is to be reset, or was.
struct Broken;

async fn serve(
    mut client: TcpStream,
    upstream: watch::Receiver<SocketAddr>,
    mut modes: watch::Receiver<Mode>,
    sent: Arc<AtomicU64>,
) {
    // The kernel has answered the client already; in a lost network at least nothing follows.
    let found = modes.wait_for(|mode| *mode != Mode::Blackhole).await;
    let refused = found.map_or(true, |mode| *mode == Mode::Reset);
    if refused || pass(&mut client, &upstream, modes, &sent).await.is_err() {
        // Closing with a zero linger time sends RST. Without it the peer sees an orderly end.
        let _ = client.set_zero_linger();
    }
}

async fn pass(
    client: &mut TcpStream,
    upstream: &watch::Receiver<SocketAddr>,
    modes: watch::Receiver<Mode>,
    sent: &AtomicU64,
) -> Result<(), Broken> {
    let upstream = *upstream.borrow();
    let mut server = TcpStream::connect(upstream).await.map_err(|_| Broken)?;
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let received = AtomicU64::new(0);
    let passed = {
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let up = pump(client_read, server_write, modes.clone(), sent);
        let down = pump(server_read, client_write, modes, &received);
        tokio::try_join!(up, down)
    };
    if passed.is_err() {
        let _ = server.set_zero_linger();
    }
    passed.map(drop)
}

/// One direction, until its sender has finished.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut modes: watch::Receiver<Mode>,
    count: &AtomicU64,
) -> Result<(), Broken> {
    let mut buffer = vec![0; 16_384];
    let mut left = None;
    loop {
        let mode = *modes.borrow_and_update();
        left = match (mode, left) {
            (Mode::CutAfter(bytes), None) => Some(bytes),
            (Mode::CutAfter(_), left) => left,
            _ => None,
        };
        match mode {
            Mode::Reset => return Err(Broken),
            Mode::Blackhole => {
                modes.changed().await.map_err(|_| Broken)?;
                continue;
            }
            Mode::Pass | Mode::CutAfter(_) | Mode::Slow(_) => {}
        }
        // Cancel-safety: a read that is dropped has taken nothing.
        let read = tokio::select! {
            biased;
            changed = modes.changed() => {
                changed.map_err(|_| Broken)?;
                continue;
            }
            read = from.read(&mut buffer) => read.map_err(|_| Broken)?,
        };
        if read == 0 {
            return to.shutdown().await.map_err(|_| Broken);
        }
        count.fetch_add(read as u64, Ordering::Relaxed);
        if let Mode::Slow(pause) = mode {
            tokio::time::sleep(pause).await;
        }
        let passed = left.map_or(read, |left: usize| read.min(left));
        to.write_all(&buffer[..passed]).await.map_err(|_| Broken)?;
        if let Some(left) = &mut left {
            *left -= passed;
            if passed < read || *left == 0 {
                return Err(Broken);
            }
        }
    }
}
