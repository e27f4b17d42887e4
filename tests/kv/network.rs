//! Connections that do not come about, and the way to the server.

use std::io::Write;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pg2kv::change::NotSentReason::{Connect, Dns};
use pg2kv::change::Outcome::{NotSent, Written};
use pg2kv::sink::kv::KvClient;

use super::server::{Server, Step, http, written};
use super::tls::{Authority, join, serve, serve_request};
use super::{client, discreet, name, namespace, put, send, settings};

/// An address that refuses connections.
async fn refused() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn an_unknown_host_is_not_sent() {
    let client = client("https://pg2kv-canary.invalid/client/v4".to_owned());
    let answer = send(&client, &put(1)).await;
    assert_eq!(answer.outcome, NotSent(Dns));
    assert_eq!(answer.status, None);
    assert!(
        answer.detail.contains("pg2kv-canary.invalid"),
        "{}",
        answer.detail
    );
    assert_eq!(client.probe(&namespace()).await.outcome, NotSent(Dns));
}

#[tokio::test]
async fn a_refused_connection_is_not_sent() {
    let client = client(format!("http://{}", refused().await));
    let answer = send(&client, &put(1)).await;
    assert_eq!(answer.outcome, NotSent(Connect));
    assert!(answer.detail.contains("refused"), "{}", answer.detail);
}

/// The HTTP library's errors repeat the URL, and a read has a key in it.
#[tokio::test]
async fn a_failed_read_does_not_show_the_key() {
    let client = client(format!("http://{}", refused().await));
    let read = client.get(&namespace(), &name(0)).await.unwrap_err();
    assert_eq!(read.outcome, NotSent(Connect));
    discreet(&format!("{read:?}"));
    let page = client
        .list(&namespace(), "canary-key", Some("canary-value"))
        .await
        .unwrap_err();
    assert_eq!(page.outcome, NotSent(Connect));
    discreet(&format!("{page:?}"));
}

/// TLS belongs to connecting: a server that accepts and stays silent has seen no request.
#[tokio::test]
async fn a_connection_that_takes_too_long_is_not_sent() {
    let server = Server::once(vec![Step::Hang]).await;
    let mut settings = settings(format!("https://{}", server.address()));
    settings.connect_timeout = Duration::from_millis(200);
    let answer = send(&KvClient::new(settings).unwrap(), &put(1)).await;
    assert_eq!(answer.outcome, NotSent(Connect));
    assert_eq!(server.connections(), 1);
}

/// The proxy resolves the name, and sees neither the token nor anything else.
#[tokio::test]
async fn a_configured_proxy_is_used() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let authority = Authority::new("behind the proxy");
    let config = authority.server("api.example.com", 2000, 2100);
    let (address, server) = serve(config, serve_request);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = settings("https://api.example.com/client/v4".to_owned());
    settings.proxy = Some(format!("http://{}", listener.local_addr().unwrap()));
    settings.root_certificate = Some(authority.file());
    let proxy = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            client.read_buf(&mut head).await.unwrap();
        }
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut server = tokio::net::TcpStream::connect(address).await.unwrap();
        // Whoever ends it first, everything has come through by then.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        String::from_utf8(head).unwrap()
    });
    let client = KvClient::new(settings).unwrap();
    assert_eq!(send(&client, &put(1)).await.outcome, Written);
    drop(client);
    assert!(join(server).await > 0);
    let asked = proxy.await.unwrap();
    assert!(asked.starts_with("CONNECT api.example.com:443 "), "{asked}");
    discreet(&asked);
}

/// For HTTPS the proxy is asked for a tunnel first; without one nothing is sent.
#[tokio::test]
async fn a_proxy_that_gives_no_tunnel_is_not_sent() {
    let full = Server::once(vec![Step::Receive, Step::Send(http("503 Full", "", ""))]).await;
    let closes = Server::once(vec![Step::Receive]).await;
    for proxy in [
        full.address().to_string(),
        closes.address().to_string(),
        refused().await,
    ] {
        let mut settings = settings("https://api.example.com/v4".to_owned());
        settings.proxy = Some(format!("http://user:canary-value@{proxy}"));
        let client = KvClient::new(settings).unwrap();
        assert_eq!(send(&client, &put(1)).await.outcome, NotSent(Connect));
        discreet(&format!("{client:?}"));
    }
    let asked = &full.requests()[0];
    assert_eq!(asked.line(), "CONNECT api.example.com:443");
    assert_eq!(
        asked.header("authorization"),
        None,
        "the token is for the API alone"
    );
}

/// The environment cannot be changed within a process that has threads, so this test runs itself
/// once more in a process whose environment points to a proxy.
#[tokio::test]
async fn the_environment_names_no_proxy() {
    const MARK: &str = "PG2KV_TEST_API";
    if let Ok(api) = std::env::var(MARK) {
        assert_eq!(send(&client(api), &put(1)).await.outcome, Written);
        return;
    }
    let server = Server::once(vec![Step::Receive, Step::Send(written(1))]).await;
    let proxy = Server::start(vec![]).await;
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "kv::network::the_environment_names_no_proxy"]);
    child
        .env(MARK, server.base_url())
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    for variable in [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ] {
        child.env(variable, format!("http://{}", proxy.address()));
    }
    let output = tokio::task::spawn_blocking(move || child.output().unwrap())
        .await
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(server.requests().len(), 1, "the child ran the test");
    assert_eq!(proxy.connections(), 0);
}

/// Everything that the HTTP library logs about a request, at its most talkative.
#[tokio::test]
async fn logs_give_nothing_away() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let reply = vec![
        Step::Receive,
        Step::Send(written(1)),
        Step::Receive,
        Step::Reset,
    ];
    let server = Server::once(reply).await;
    let client = client(server.base_url());
    tracing::info!("begins");
    send(&client, &put(1)).await;
    send(&client, &put(1)).await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("begins"));
    discreet(&log);
}
