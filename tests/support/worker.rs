//! The Worker of `deploy/worker`: checked and built as its users do it, running in Cloudflare's
//! simulator.
//!
//! Knows nothing of Postgres, nor of what the Worker answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use tokio::process::Command;

use super::node::{self, Peers, Service};
use super::world::NAMESPACE;

/// The Worker beside the KV that it reads.
pub(crate) struct Edge {
    simulator: Service,
    http: reqwest::Client,
}

/// What the Worker answered, byte for byte.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Edge {
    /// Starts the Worker with a KV that is empty.
    pub(crate) async fn start(peers: &Peers) -> Self {
        Self::with(peers, &json!({})).await
    }

    /// The same, with a Worker around it that gets the requests, as `simulator.mjs` has it.
    pub(crate) async fn around(peers: &Peers, around: &str) -> Self {
        Self::with(peers, &json!({ "around": around })).await
    }

    async fn with(peers: &Peers, more: &Value) -> Self {
        let script = built(peers).await;
        let date = compatibility_date();
        let mut input = json!({ "kv": { "KV": NAMESPACE }, "script": script, "date": date });
        input
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        Self {
            simulator: peers.serve("simulator.mjs", &input).await,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    /// Where the simulator's KV REST API stands; it has no accounts and asks for no token.
    pub(crate) fn api(&self) -> &str {
        self.simulator.ready["api"].as_str().unwrap()
    }

    /// The URL of a path of the Worker.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.simulator.ready["worker"].as_str().unwrap())
    }

    /// What the Worker answers to a GET.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request(Method::GET, path, &[]).await
    }

    /// What the Worker answers.
    pub(crate) async fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Reply {
        let headers = headers.iter().map(|(name, value)| {
            let value = HeaderValue::from_str(value).unwrap();
            (HeaderName::from_static(name), value)
        });
        let request = self.http.request(method, self.url(path));
        let reply = request.headers(headers.collect()).send().await.unwrap();
        Reply {
            status: reply.status().as_u16(),
            headers: reply.headers().clone(),
            body: reply.bytes().await.unwrap().to_vec(),
        }
    }

    /// Writes a pair as somebody other than pg2kv would.
    pub(crate) async fn put(&self, key: &str, value: &str, metadata: Value) {
        let url = format!("{}/storage/kv/namespaces/{NAMESPACE}/bulk", self.api());
        let pairs = json!([{ "key": key, "value": value, "metadata": metadata }]);
        let request = self.http.put(url).body(pairs.to_string());
        let request = request.header("content-type", "application/json");
        let reply = request.send().await.unwrap();
        assert_eq!(reply.status(), 200, "{key}");
    }

    /// The names of all pairs.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let url = format!("{}/storage/kv/namespaces/{NAMESPACE}/keys", self.api());
        let reply = self.http.get(url).send().await.unwrap();
        let reply: Value = serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap();
        let names = reply["result"].as_array().unwrap().iter();
        names
            .map(|pair| pair["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Stops the simulator, and returns what the Worker logged.
    pub(crate) async fn stop(self) -> String {
        self.simulator.stop().await
    }
}

impl Reply {
    /// A header's value; empty where there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    /// The body as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/worker")
}

/// The date whose runtime the Worker is deployed for; the simulator shall behave like it.
fn compatibility_date() -> String {
    let settings = fs::read_to_string(directory().join("wrangler.jsonc")).unwrap();
    let (_, rest) = settings.split_once("\"compatibility_date\": \"").unwrap();
    rest.split_once('"').unwrap().0.to_owned()
}

/// The script that wrangler would upload. Types are checked too. It is built when a source changed.
async fn built(peers: &Peers) -> String {
    let directory = directory();
    node::install(&directory, "worker");
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join("worker");
    fs::create_dir_all(&output).unwrap();
    let lock = fs::File::create(output.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();

    let (script, stamp) = (output.join("index.js"), output.join("built-from"));
    let sources = sources(&directory);
    if fs::read_to_string(&stamp).ok().as_ref() != Some(&sources) {
        let run = async |program: &str, arguments: &[&str]| {
            let mut command = peers.command(program);
            command.args(arguments).current_dir(&directory);
            succeed(program, &mut command, &output).await;
        };
        run("node_modules/typescript/bin/tsc", &[]).await;
        let outdir = output.to_str().unwrap();
        let arguments = ["deploy", "--dry-run", "--outdir", outdir];
        run("node_modules/wrangler/bin/wrangler.js", &arguments).await;
        fs::write(&stamp, sources).unwrap();
    }
    fs::read_to_string(script).unwrap()
}

async fn succeed(program: &str, command: &mut Command, home: &Path) {
    command
        .env("WRANGLER_SEND_METRICS", "false")
        .env("CI", "1")
        // Its logs and caches go below the target directory.
        .env("XDG_CONFIG_HOME", home);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().await.unwrap();
    let said = [stdout, stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    assert!(status.success(), "{program}: {}", said.concat());
}

/// The texts of everything that a build depends on.
fn sources(directory: &Path) -> String {
    let names = ["package-lock.json", "tsconfig.json", "wrangler.jsonc"];
    let mut paths: Vec<PathBuf> = names.iter().map(|name| directory.join(name)).collect();
    for entry in fs::read_dir(directory.join("src")).unwrap() {
        paths.push(entry.unwrap().path());
    }
    paths.sort();
    let texts = paths
        .iter()
        .map(|path| format!("{}\n{}", path.display(), fs::read_to_string(path).unwrap()));
    texts.collect()
}
