//! The emulator, driven over HTTP.

mod api;
mod client;
mod conformance;
mod faults;
mod journal;
mod limits;

use std::time::Duration;

use pg2kv::emulator::store::Store;
use pg2kv::emulator::{Emulator, Namespace, Options};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

/// The namespace of every test.
pub(crate) const NAMESPACE: &str = "0123456789abcdef0123456789abcdef";
/// The account of every test.
pub(crate) const ACCOUNT: &str = "fedcba9876543210fedcba9876543210";
/// The token of every test.
pub(crate) const TOKEN: &str = "a-token-for-tests";
/// Longest that any wait of a test may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// An emulator with a client.
struct Rig {
    emulator: Emulator,
    store: Store,
    http: reqwest::Client,
}

/// A reply, read to its end.
#[derive(Debug)]
struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Rig {
    /// An emulator with the documented limits.
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    /// An emulator with chosen options; token, account and namespace are those of every test.
    async fn with(options: Options) -> Self {
        let namespace = Namespace {
            id: NAMESPACE.to_owned(),
            title: "KV".to_owned(),
        };
        let emulator = Emulator::start(Options {
            token: Some(TOKEN.to_owned()),
            account: Some(ACCOUNT.to_owned()),
            namespaces: vec![namespace],
            ..options
        })
        .await
        .unwrap();
        let store = emulator.store();
        let redirects = reqwest::redirect::Policy::none();
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(redirects)
            .build()
            .unwrap();
        Self {
            emulator,
            store,
            http,
        }
    }

    /// A request with the token to a path under the API's root.
    fn root(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.emulator.base_url());
        self.http.request(method, url).bearer_auth(TOKEN)
    }

    /// A request with the token to a path under the account's namespaces.
    fn namespaces(&self, method: Method, path: &str) -> RequestBuilder {
        self.root(
            method,
            &format!("/accounts/{ACCOUNT}/storage/kv/namespaces{path}"),
        )
    }

    /// A request with the token to a path under the namespace.
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.namespaces(method, &format!("/{NAMESPACE}{path}"))
    }

    /// A request to the control interface.
    fn control(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("http://{}/__emulator{path}", self.emulator.addr());
        self.http.request(method, url).bearer_auth(TOKEN)
    }

    async fn put(&self, key: &str, value: &str) -> Reply {
        send(
            self.request(Method::PUT, &format!("/values/{key}"))
                .body(value.to_owned()),
        )
        .await
    }

    async fn bulk(&self, pairs: &Value) -> Reply {
        send(self.request(Method::PUT, "/bulk").body(pairs.to_string())).await
    }

    /// The value of a key as the store has it.
    fn value(&self, key: &str) -> Option<String> {
        let pair = self.store.get(NAMESPACE, key)?;
        Some(String::from_utf8(pair.value.to_vec()).unwrap())
    }
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!(
                "{error}: {} {}",
                self.status,
                String::from_utf8_lossy(&self.body)
            )
        })
    }

    fn codes(&self) -> Vec<u64> {
        let json = self.json();
        let errors = json["errors"].as_array().unwrap();
        errors
            .iter()
            .map(|error| error["code"].as_u64().unwrap())
            .collect()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// Sends a request and reads its reply.
async fn send(request: RequestBuilder) -> Reply {
    try_send(request).await.unwrap()
}

async fn try_send(request: RequestBuilder) -> Result<Reply, reqwest::Error> {
    let reply = request.timeout(DEADLINE).send().await?;
    let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
    Ok(Reply {
        status,
        headers,
        body: reply.bytes().await?.to_vec(),
    })
}

/// A bulk body that gives each key the same value.
fn pairs(keys: impl IntoIterator<Item = impl Into<String>>, value: &str) -> Value {
    keys.into_iter()
        .map(|key| json!({ "key": key.into(), "value": value }))
        .collect()
}
