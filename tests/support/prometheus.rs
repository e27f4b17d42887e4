//! A real Prometheus with our rules: scrapes daemons each second, evaluates each second.
//!
//! Owns where the programs are (`scripts/setup` unpacks them below the target directory), the child
//! process and its HTTP API.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::wait;

/// What is scraped: the value of `instance`, and the address.
pub(crate) type Target = (&'static str, String);

/// The directory in which `scripts/setup` puts tools.
pub(crate) fn tools() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/bin")
}

/// Where `promtool` or `prometheus` is.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(tools())
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is missing; `scripts/setup test` gets it"))
}

/// The server, killed when it is dropped.
pub(crate) struct Prometheus {
    /// `http://127.0.0.1:PORT`
    pub(crate) url: String,
    files: TempDir,
    http: reqwest::Client,
    _child: Child,
}

impl Prometheus {
    /// Starts a server that scrapes nothing yet and evaluates these rules.
    pub(crate) async fn start(rules: &str) -> Self {
        let files = TempDir::new().unwrap();
        let at = |name: &str| files.path().join(name);
        std::fs::write(at("rules.yaml"), rules).unwrap();
        std::fs::write(at("targets.json"), "[]").unwrap();
        let config = json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{
                "job_name": "pg2kv",
                "file_sd_configs": [{ "files": ["targets.json"], "refresh_interval": "1s" }],
            }],
        });
        // JSON is YAML.
        std::fs::write(at("prometheus.yml"), config.to_string()).unwrap();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        // Somebody else may take the port before the server does.
        for _ in 0..5 {
            let port = free_port();
            let url = format!("http://127.0.0.1:{port}");
            let mut child = Command::new(program("prometheus"))
                .arg("--config.file=prometheus.yml")
                .arg("--storage.tsdb.path=data")
                .arg(format!("--web.listen-address=127.0.0.1:{port}"))
                .current_dir(files.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(std::fs::File::create(at("log")).unwrap())
                .kill_on_drop(true)
                .spawn()
                .unwrap();
            let ready = wait::until("Prometheus to be ready", async || {
                if child.try_wait().unwrap().is_some() {
                    return Some(false);
                }
                let reply = http.get(format!("{url}/-/ready")).send().await.ok()?;
                reply.status().is_success().then_some(true)
            })
            .await;
            if ready {
                return Self {
                    url,
                    files,
                    http,
                    _child: child,
                };
            }
        }
        let log = std::fs::read_to_string(at("log")).unwrap_or_default();
        panic!("Prometheus does not start:\n{log}");
    }

    /// Scrapes these from now on, and no others.
    pub(crate) fn scrape(&self, targets: &[Target]) {
        let targets: Vec<Value> = targets
            .iter()
            .map(|(instance, address)| {
                json!({
                    "targets": [address],
                    "labels": { "instance": instance, "namespace": "edge" },
                })
            })
            .collect();
        let new = self.files.path().join("targets.new");
        std::fs::write(&new, Value::from(targets).to_string()).unwrap();
        std::fs::rename(new, self.files.path().join("targets.json")).unwrap();
    }

    /// The series that an expression gives now.
    pub(crate) async fn query(&self, expression: &str) -> Vec<Value> {
        self.result("query", &[("query", expression)]).await
    }

    /// The one number that an expression gives now; `None` where it gives no series.
    pub(crate) async fn number(&self, expression: &str) -> Option<f64> {
        let series = self.query(expression).await;
        series.first()?["value"][1].as_str()?.parse().ok()
    }

    /// The series that an expression gives over time; times are Unix seconds.
    pub(crate) async fn query_range(&self, expression: &str, from: f64, to: f64) -> Vec<Value> {
        let (from, to) = (from.to_string(), to.to_string());
        let parameters = [
            ("query", expression),
            ("start", &from),
            ("end", &to),
            ("step", "1"),
        ];
        self.result("query_range", &parameters).await
    }

    async fn result(&self, path: &str, parameters: &[(&str, &str)]) -> Vec<Value> {
        let reply = self.get(path, parameters).await;
        assert_eq!(reply["status"], "success", "{parameters:?}: {reply}");
        reply["data"]["result"].as_array().unwrap().clone()
    }

    /// Alerts by name: `pending`, or `firing` where one of its series is.
    pub(crate) async fn alerts(&self) -> BTreeMap<String, String> {
        let reply = self.get("alerts", &[]).await;
        let mut alerts = BTreeMap::new();
        for alert in reply["data"]["alerts"].as_array().unwrap() {
            let name = alert["labels"]["alertname"].as_str().unwrap().to_owned();
            let state = alert["state"].as_str().unwrap().to_owned();
            let known = alerts.entry(name).or_insert_with(|| state.clone());
            if state == "firing" {
                *known = state;
            }
        }
        alerts
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let mut url = reqwest::Url::parse(&format!("{}/api/v1/{path}", self.url)).unwrap();
        url.query_pairs_mut().extend_pairs(parameters);
        let reply = self.http.get(url).send().await.unwrap();
        serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}
