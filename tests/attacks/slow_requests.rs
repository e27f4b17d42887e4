//! Clients that do not finish their requests, and pages in an operator's browser.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::header::{HOST, ORIGIN};
use reqwest::{Client, Method};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::support::kv::KvProcess;
use crate::support::process::Process;
use crate::support::wait;
use crate::support::world::TOKEN;

/// Descriptors that a process gets here: fewer than an attacker has connections, more than the server lets
/// stand.
const DESCRIPTORS: u64 = 400;
/// Requests that are never finished.
const UNFINISHED: usize = 500;

/// A process that is attacked has no more descriptors than this.
fn limit_descriptors(pid: u32) {
    let limit = Rlimit {
        current: Some(DESCRIPTORS),
        maximum: Some(DESCRIPTORS),
    };
    let pid = Pid::from_raw(i32::try_from(pid).unwrap());
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

/// Opens a connection from `address` and sends half a request over it.
async fn half_a_request(address: &str, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(address.parse().unwrap())?;
    let mut stream = socket.connect(server).await?;
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: ").await?;
    Ok(stream)
}

/// A crowd at another address that opens a connection anew as soon as one is closed.
fn storm(server: SocketAddr) -> (JoinSet<()>, Arc<AtomicUsize>) {
    let opened = Arc::new(AtomicUsize::new(0));
    let mut crowd = JoinSet::new();
    for _ in 0..UNFINISHED {
        let opened = Arc::clone(&opened);
        crowd.spawn(async move {
            loop {
                let Ok(mut stream) = half_a_request("127.0.0.2:0", server).await else {
                    tokio::task::yield_now().await;
                    continue;
                };
                opened.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 64]).await;
            }
        });
    }
    (crowd, opened)
}

fn daemon(files: &Path) -> Process {
    // Nobody listens there: what is attacked needs neither Postgres nor Workers KV.
    let config = "[postgres]\nurl = 'postgres://edge@127.0.0.1:1/app'\n\
                  [kv]\naccount_id = '0123456789abcdef0123456789abcdef'\n\
                  namespace_id = '0123456789abcdef0123456789abcdef'\n\
                  api_token = 'token'\napi_base_url = 'http://127.0.0.1:1'\n\
                  [ops]\nlisten = '127.0.0.1:0'\nhosts = 'status.example.com'\n\
                  [sync.users]\ntable = 'public.users'\nkey = 'user:{id}'\ncolumns = ['plan']\n";
    let path = files.join("pg2kv.toml");
    std::fs::write(&path, config).unwrap();
    Process::run(&path)
}

#[tokio::test]
async fn unfinished_requests_do_not_silence_the_probes() {
    let files = tempfile::tempdir().unwrap();
    let daemon = daemon(files.path());
    let server: SocketAddr = daemon.address().await.parse().unwrap();
    limit_descriptors(daemon.pid());
    let probes = async |when: &str| {
        for (path, expected) in [("/livez", 200), ("/readyz", 503), ("/metrics", 200)] {
            let (status, _) = daemon.get(path).await;
            assert_eq!(status, expected, "{path} {when}");
        }
    };
    let mut held = Vec::new();
    for _ in 0..UNFINISHED {
        held.push(half_a_request("127.0.0.1:0", server).await.unwrap());
    }
    probes("beside unfinished requests").await;
    // Those that were given up see it.
    assert_eq!(held[0].read(&mut [0; 64]).await.unwrap_or(0), 0);
    drop(held);

    let (crowd, opened) = storm(server);
    wait::until("the storm", async || {
        (opened.load(Ordering::Relaxed) >= 2 * UNFINISHED).then_some(())
    })
    .await;
    probes("in a storm of them").await;
    drop(crowd);
    daemon.stop().await;
}

#[tokio::test]
async fn unfinished_requests_do_not_silence_the_emulator() {
    let kv = KvProcess::start(&[]).await;
    limit_descriptors(kv.pid());
    let url = reqwest::Url::parse(&kv.base_url).unwrap();
    let server = url.socket_addrs(|| None).unwrap()[0];
    let mut held = Vec::new();
    for _ in 0..UNFINISHED {
        held.push(half_a_request("127.0.0.1:0", server).await.unwrap());
    }
    let accounts = format!("{}/accounts", kv.base_url);
    let reply = client().get(accounts).bearer_auth(TOKEN).send().await;
    assert_eq!(reply.unwrap().status(), 200);
}

fn client() -> Client {
    let builder = Client::builder().no_proxy();
    builder.timeout(Duration::from_secs(5)).build().unwrap()
}

/// A page whose name is made to point at the daemon gets nothing; kubelet and Prometheus, which ask by
/// address, and names of the configuration do.
#[tokio::test]
async fn a_foreign_name_reads_neither_readiness_nor_metrics() {
    let files = tempfile::tempdir().unwrap();
    let daemon = daemon(files.path());
    let client = client();
    for path in ["/readyz", "/metrics", "/api/status", "/"] {
        let ask = async |host: &str| {
            let url = daemon.url(path).await;
            let reply = client.get(url).header(HOST, host).send().await.unwrap();
            (reply.status().as_u16(), reply.text().await.unwrap())
        };
        let (status, body) = ask("evil.example:9464").await;
        assert_eq!(status, 421, "{path}");
        assert!(body.contains("ops.hosts"), "{body}");
        for host in [
            "10.0.3.7:9464",
            "[fd00::7]:9464",
            "localhost",
            "status.example.com",
        ] {
            assert_ne!(ask(host).await.0, 421, "{path} as {host}");
        }
    }
    for path in ["/livez", "/healthz", "/startupz"] {
        let url = daemon.url(path).await;
        let reply = client.get(url).header(HOST, "evil.example").send().await;
        assert_eq!(reply.unwrap().status(), 200, "{path}");
    }
    daemon.stop().await;
}

/// What controls the emulator is for whoever has its token, and for no page.
#[tokio::test]
async fn a_page_does_not_control_the_emulator() {
    let kv = KvProcess::start(&[]).await;
    let mut url = reqwest::Url::parse(&kv.base_url).unwrap();
    let own = format!("http://{}", url.socket_addrs(|| None).unwrap()[0]);
    let client = client();
    for (method, path, body) in [
        (Method::GET, "stats", ""),
        (Method::GET, "history", ""),
        (Method::GET, "requests", ""),
        (Method::GET, "dump/0123456789abcdef0123456789abcdef", ""),
        (Method::GET, "faults", ""),
        (Method::POST, "faults", "[]"),
        (Method::DELETE, "faults", ""),
        (Method::PUT, "token", r#"{"token": null}"#),
    ] {
        url.set_path(&format!("/__emulator/{path}"));
        let ask = || client.request(method.clone(), url.clone()).body(body);
        let status = async |request: reqwest::RequestBuilder| {
            request.send().await.unwrap().status().as_u16()
        };
        assert_eq!(status(ask()).await, 401, "{path}");
        assert_eq!(status(ask().bearer_auth("other")).await, 401, "{path}");
        let foreign = ask().bearer_auth(TOKEN).header(HOST, "evil.example");
        assert_eq!(status(foreign).await, 403, "{path}");
        let foreign = ask()
            .bearer_auth(TOKEN)
            .header(ORIGIN, "http://evil.example");
        assert_eq!(status(foreign).await, 403, "{path}");
        let ours = ask().bearer_auth(TOKEN).header(ORIGIN, &own);
        assert!(status(ours).await < 300, "{path}");
    }
}
