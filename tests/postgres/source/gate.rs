//! A gate between client and server that lets one group of statements through at a time.
//!
//! Open, it passes everything. Closed, it holds each group (up to its Sync, or a simple query) on
//! every connection until it is let through, and tells when the server has finished it. That stages
//! the daemon's real statements between those of a writer.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};

pub(super) struct Gate {
    addr: SocketAddr,
    shared: Arc<Shared>,
    /// One message for each group that the server has finished.
    finished: mpsc::UnboundedReceiver<()>,
}

struct Shared {
    open: watch::Sender<bool>,
    passes: Semaphore,
    finished: mpsc::UnboundedSender<()>,
}

impl Gate {
    /// An open gate before the server on `port` of this host.
    pub(super) async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (finished, rx) = mpsc::unbounded_channel();
        let open = watch::Sender::new(true);
        let shared = Arc::new(Shared {
            open,
            passes: Semaphore::new(0),
            finished,
        });
        let ours = shared.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(requests(ours.clone(), from_client, to_server));
                tokio::spawn(answers(ours.clone(), from_server, to_client));
            }
        });
        Self {
            addr,
            shared,
            finished: rx,
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Holds back all that follows. Nothing may be under way.
    pub(super) fn close(&mut self) {
        self.shared.open.send_replace(false);
        while self.finished.try_recv().is_ok() {}
    }

    /// Lets one group through and waits until the server has finished it.
    pub(super) async fn step(&mut self) {
        self.shared.passes.add_permits(1);
        super::soon(self.finished.recv())
            .await
            .expect("the gate stands");
    }

    /// Lets everything through again.
    pub(super) fn open(&self) {
        self.shared.open.send_replace(true);
    }
}

async fn requests(
    shared: Arc<Shared>,
    mut from: impl AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
) {
    let mut open = shared.open.subscribe();
    // The first message has no type byte.
    let mut group = Vec::new();
    if read_body(&mut from, &mut group).await.is_none() || to.write_all(&group).await.is_err() {
        return;
    }
    loop {
        group.clear();
        loop {
            let Ok(tag) = from.read_u8().await else {
                return;
            };
            group.push(tag);
            if read_body(&mut from, &mut group).await.is_none() {
                return;
            }
            // Sync, simple query, password, farewell.
            if matches!(tag, b'S' | b'Q' | b'p' | b'X') {
                break;
            }
        }
        if !*open.borrow() {
            tokio::select! {
                pass = shared.passes.acquire() => pass.unwrap().forget(),
                _ = open.wait_for(|open| *open) => {}
            }
        }
        if to.write_all(&group).await.is_err() {
            return;
        }
    }
}

async fn answers(
    shared: Arc<Shared>,
    mut from: impl AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
) {
    let mut message = Vec::new();
    loop {
        message.clear();
        let Ok(tag) = from.read_u8().await else {
            return;
        };
        message.push(tag);
        if read_body(&mut from, &mut message).await.is_none()
            || to.write_all(&message).await.is_err()
        {
            return;
        }
        // ReadyForQuery
        if tag == b'Z' {
            let _ = shared.finished.send(());
        }
    }
}

/// Length and body of a message.
async fn read_body(from: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>) -> Option<()> {
    let length = from.read_u32().await.ok()?;
    into.extend(length.to_be_bytes());
    let start = into.len();
    into.resize(start + usize::try_from(length).ok()?.checked_sub(4)?, 0);
    from.read_exact(&mut into[start..]).await.ok().map(drop)
}
