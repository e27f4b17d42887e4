//! TLS against a certificate authority of the tests' own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use pg2kv::change::Answer;
use pg2kv::change::NotSentReason;
use pg2kv::change::Outcome::{NotSent, Written};
use pg2kv::sink::kv::KvClient;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};

use super::server::{Server, Step, written};
use super::{put, send, settings};

pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self {
            issuer,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn file(&self) -> PathBuf {
        let path = self.directory.path().join("ca.pem");
        std::fs::write(&path, self.issuer.pem()).unwrap();
        path
    }

    /// Configuration with a certificate for `host`, valid between the years.
    pub(super) fn server(&self, host: &str, from: i32, until: i32) -> ServerConfig {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(from, 1, 1);
        params.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap()
    }
}

/// The server's side of a connection.
pub(super) type Tls<'a> = Stream<'a, ServerConnection, TcpStream>;

/// Accepts one connection over TLS in a thread, which ends with what `serve` returns.
pub(super) fn serve<T: Send + 'static>(
    config: ServerConfig,
    serve: impl FnOnce(&mut Tls<'_>) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut tcp, _) = listener.accept().unwrap();
        let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
        serve(&mut Stream::new(&mut connection, &mut tcp))
    });
    (address, thread)
}

/// Waits for the thread without holding up the tests' runtime.
pub(super) async fn join<T: Send + 'static>(thread: JoinHandle<T>) -> T {
    tokio::task::spawn_blocking(|| thread.join().unwrap())
        .await
        .unwrap()
}

/// Serves one request and returns how many bytes of it came through.
pub(super) fn serve_request(tls: &mut Tls<'_>) -> usize {
    let mut received = Vec::new();
    let mut buffer = [0; 4_096];
    // The body is one array of objects, so the request is through with its closing brackets.
    while !received.ends_with(b"}]") {
        match tls.read(&mut buffer) {
            Ok(0) | Err(_) => return received.len(),
            Ok(count) => received.extend_from_slice(&buffer[..count]),
        }
    }
    tls.write_all(&written(1)).unwrap();
    received.len()
}

/// What a client that trusts `authority` is answered by this server, and how much the server saw.
async fn try_send(authority: &Authority, config: ServerConfig) -> (Answer, usize) {
    let (address, server) = serve(config, serve_request);
    let mut settings = settings(format!("https://{address}/client/v4"));
    settings.root_certificate = Some(authority.file());
    let client = KvClient::new(settings).unwrap();
    let answer = send(&client, &put(1)).await;
    drop(client);
    (answer, join(server).await)
}

#[tokio::test]
async fn a_trusted_server_is_written_to() {
    let authority = Authority::new("trusted");
    let (answer, bytes) = try_send(&authority, authority.server("127.0.0.1", 2020, 2120)).await;
    assert_eq!(answer.outcome, Written, "{}", answer.detail);
    assert!(bytes > 0);
}

#[tokio::test]
async fn a_server_that_is_not_trusted_gets_nothing() {
    let authority = Authority::new("trusted");
    let stranger = Authority::new("stranger");
    for (config, says) in [
        (
            authority.server("api.example.com", 2020, 2120),
            "not valid for",
        ),
        (authority.server("127.0.0.1", 2020, 2021), "expired"),
        (authority.server("127.0.0.1", 2110, 2120), "not valid yet"),
        (stranger.server("127.0.0.1", 2020, 2120), "UnknownIssuer"),
    ] {
        let (answer, bytes) = try_send(&authority, config).await;
        assert_eq!(
            answer.outcome,
            NotSent(NotSentReason::Tls),
            "{says}: {}",
            answer.detail
        );
        assert_eq!(bytes, 0, "{says}");
        assert!(answer.detail.contains(says), "{says}: {}", answer.detail);
        assert_eq!(answer.status, None);
    }
}

/// The system's authorities do not know the test's own.
#[tokio::test]
async fn without_a_configured_authority_the_systems_count() {
    let authority = Authority::new("trusted");
    let config = authority.server("127.0.0.1", 2020, 2120);
    let (address, server) = serve(config, serve_request);
    let client = KvClient::new(settings(format!("https://{address}"))).unwrap();
    assert_eq!(
        send(&client, &put(1)).await.outcome,
        NotSent(NotSentReason::Tls)
    );
    let bytes = join(server).await;
    assert_eq!(bytes, 0);
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_gets_nothing() {
    let reply = b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec();
    let server = Server::once(vec![Step::ReceiveBytes(100), Step::Send(reply), Step::Hang]).await;
    let client = KvClient::new(settings(format!("https://{}", server.address()))).unwrap();
    assert_eq!(
        send(&client, &put(1)).await.outcome,
        NotSent(NotSentReason::Tls)
    );
}
