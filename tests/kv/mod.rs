//! The sink against servers that say exactly what a test scripts, byte by byte.

mod http2;
mod network;
mod replies;
mod requests;
mod server;
mod setup;
mod tls;

use std::time::Duration;

use bytes::Bytes;
use pg2kv::change::{Answer, Batch, ContentHash, Document, KvName, Value};
use pg2kv::sink::kv::KvClient;
use pg2kv::sink::setup::{NamespaceId, Settings};
use pg2kv::sink::token::TokenSource;
use secrecy::SecretString;

const ACCOUNT: &str = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";
const NAMESPACE: &str = "1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b";
/// Each of them must never be seen in an answer, an error or a log.
const TOKEN: &str = "canary-token-0123456789";
const SECRETS: [&str; 3] = [TOKEN, "canary-key", "canary-value"];

fn namespace() -> NamespaceId {
    NamespaceId::new(NAMESPACE).unwrap()
}

/// Settings with a time-out that no test reaches unless it means to.
fn settings(api_base_url: String) -> Settings {
    Settings {
        api_base_url,
        account: Some(ACCOUNT.to_owned()),
        token: TokenSource::Fixed(SecretString::from(TOKEN)),
        connect_timeout: Duration::from_secs(20),
        request_timeout: Duration::from_secs(30),
        proxy: None,
        root_certificate: None,
    }
}

fn client(api_base_url: String) -> KvClient {
    KvClient::new(settings(api_base_url)).unwrap()
}

fn name(position: usize) -> KvName {
    KvName::new(format!("canary-key/{position}")).unwrap()
}

fn put(pairs: usize) -> Batch {
    let document = |position| Document {
        name: name(position),
        value: Value::Text(Bytes::from_static(b"canary-value")),
        metadata: r#"{"pg2kv":"00000000000000000000000000000000"}"#.into(),
        hash: ContentHash(0),
        expiration: None,
    };
    Batch::Put((0..pairs).map(document).collect())
}

fn delete(pairs: usize) -> Batch {
    Batch::Delete((0..pairs).map(name).collect())
}

/// One pair so large that it does not fit into the buffers between client and server.
fn large_put() -> Batch {
    let Batch::Put(mut documents) = put(1) else {
        unreachable!()
    };
    documents[0].value = Value::Text(Bytes::from(vec![b'x'; 20_000_000]));
    Batch::Put(documents)
}

/// Sends, and checks what holds for every answer: it gives nothing away.
async fn send(client: &KvClient, batch: &Batch) -> Answer {
    let answer = client.send(&namespace(), &mut batch.clone()).await;
    discreet(&format!("{answer:?}"));
    answer
}

fn discreet(text: &str) {
    for secret in SECRETS {
        assert!(!text.contains(secret), "{secret} in: {text}");
    }
}
