//! A whole world for the real binary: PostgreSQL, Workers KV (the emulator), a configuration file,
//! and the question whether both say the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use pg2kv::emulator::limits::Limits;
use pg2kv::emulator::store::Store;
use pg2kv::emulator::{self, Emulator, Namespace};
use pg2kv::throwaway::{Options, Postgres, Stop};
use reqwest::{Body, Method};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Mutex;
use tokio_postgres::{Client, Row};

use super::postgres::{Server, connect, in_encoding};
use super::process::{self, Process};
use super::wait;

/// Account of every test.
pub(crate) const ACCOUNT: &str = "fedcba9876543210fedcba9876543210";
/// Namespace of syncs that name none.
pub(crate) const NAMESPACE: &str = "0123456789abcdef0123456789abcdef";
/// The token at the start. It must never show anywhere.
pub(crate) const TOKEN: &str = "canary-token-5c1d";
/// The role that the daemon logs in as.
const LOGIN: &str = "edge";

/// What a test starts with.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Tables and rows, made before the triggers.
    pub(crate) sql: &'static str,
    /// The syncs.
    pub(crate) syncs: &'static [Sync],
    /// Settings that differ from [`defaults`].
    pub(crate) settings: &'static [(&'static str, &'static str)],
    /// Limits of the emulator; `None` is sizes only, no rates.
    pub(crate) limits: Option<Limits>,
}

/// One sync and what it must come to.
#[derive(Debug)]
pub(crate) struct Sync {
    /// Its name.
    pub(crate) name: &'static str,
    /// The body of its section.
    pub(crate) toml: &'static str,
    /// Its namespace.
    pub(crate) namespace: &'static str,
    /// A query for the pairs that KV should have: key, and value as JSON text. It is written
    /// independently of how the daemon reads.
    pub(crate) oracle: &'static str,
}

/// Everything that runs. The processes of the daemon belong to the tests.
pub(crate) struct World {
    /// PostgreSQL, a server of this test's own.
    pub(crate) postgres: Postgres,
    /// Workers KV.
    pub(crate) emulator: Emulator,
    /// A look into it.
    pub(crate) kv: Store,
    files: TempDir,
    plan: Plan,
    admin: Mutex<Option<Arc<Client>>>,
}

/// Settings by `section.key`, as TOML without the quotes of text.
pub(crate) type Settings = BTreeMap<String, String>;

impl World {
    /// Starts the servers and installs what the plan says, by `pg2kv sql`.
    pub(crate) async fn start(plan: Plan) -> Self {
        Self::start_on(Server::Installed.options(), plan).await
    }

    /// The same with a PostgreSQL of one's own choice.
    pub(crate) async fn start_on(options: Options, plan: Plan) -> Self {
        Self::start_in(options, "UTF8", plan).await
    }

    /// The same in a database of this encoding.
    pub(crate) async fn start_in(mut options: Options, encoding: &str, plan: Plan) -> Self {
        let prepared = ("max_prepared_transactions".to_owned(), "10".to_owned());
        options.settings.push(prepared);
        let postgres = tokio::task::spawn_blocking(|| Postgres::start(options).unwrap());
        let namespaces: BTreeSet<&str> = plan.syncs.iter().map(|sync| sync.namespace).collect();
        let namespace = |id: &&str| Namespace {
            id: (*id).to_owned(),
            title: (*id).to_owned(),
        };
        let emulator = Emulator::start(emulator::Options {
            token: Some(TOKEN.to_owned()),
            account: Some(ACCOUNT.to_owned()),
            namespaces: namespaces.iter().map(namespace).collect(),
            limits: plan
                .limits
                .clone()
                .unwrap_or_else(Limits::without_rate_limits),
            record_history: 1_000_000,
            ..emulator::Options::default()
        })
        .await
        .unwrap();
        let postgres = postgres.await.unwrap();
        if encoding != "UTF8" {
            let other = connect(&postgres.url("template1")).await;
            let create = format!("create database postgres {}", in_encoding(encoding));
            for sql in ["drop database postgres", &create] {
                other.batch_execute(sql).await.unwrap();
            }
        }
        let world = Self {
            postgres,
            kv: emulator.store(),
            emulator,
            files: TempDir::new().unwrap(),
            plan,
            admin: Mutex::new(None),
        };
        world.set_token(TOKEN);
        world.sql(world.plan.sql).await;
        world.install().await;
        world
    }

    async fn install(&self) {
        let config = self.configure("install", &self.settings());
        let sql = process::command()
            .args(["sql", "--login", LOGIN, "--config"])
            .arg(config)
            .output()
            .await
            .unwrap();
        assert!(
            sql.status.success(),
            "{}",
            String::from_utf8_lossy(&sql.stderr)
        );
        let sql = String::from_utf8(sql.stdout).unwrap();
        self.sql(&format!("create role {LOGIN} login;")).await;
        self.sql(&sql).await;
    }

    /// The settings of a daemon without a proxy.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = defaults();
        let token_file = self.token_file().display().to_string();
        for (key, value) in [
            ("postgres.url", self.postgres.url_as(LOGIN, "postgres")),
            ("kv.api_base_url", self.emulator.base_url()),
            ("kv.api_token_file", token_file),
        ] {
            settings.insert(key.to_owned(), value);
        }
        for (key, value) in self.plan.settings {
            settings.insert((*key).to_owned(), (*value).to_owned());
        }
        settings
    }

    /// A daemon as it is by default, but for what must be said and Cloudflare's limit of requests: for
    /// figures that are to hold for real ones. KV is this one.
    pub(crate) fn default_settings(&self, kv: &str) -> Settings {
        let mut settings = self.settings();
        let said = [
            "postgres.url",
            "kv.account_id",
            "kv.api_token_file",
            "kv.requests_per_5min",
            "kv.reserve_requests",
            "ops.listen",
        ];
        settings.retain(|key, _| said.contains(&key.as_str()));
        settings.insert("kv.api_base_url".to_owned(), kv.to_owned());
        settings
    }

    /// The settings of a daemon whose ways to Postgres and KV lead through these ports.
    pub(crate) fn settings_through(&self, postgres: u16, kv: u16) -> Settings {
        let mut settings = self.settings();
        for (key, real, proxy) in [
            ("postgres.url", self.postgres.port(), postgres),
            ("kv.api_base_url", self.emulator.addr().port(), kv),
        ] {
            let url = settings.get_mut(key).unwrap();
            *url = url.replace(&format!(":{real}/"), &format!(":{proxy}/"));
        }
        settings
    }

    /// Writes a configuration file.
    pub(crate) fn configure(&self, name: &str, settings: &Settings) -> PathBuf {
        let mut sections: BTreeMap<&str, String> = BTreeMap::new();
        for (key, value) in settings {
            let (section, key) = key.split_once('.').unwrap();
            let plain = value.parse::<i64>().is_ok() || value.parse::<bool>().is_ok();
            let quote = if plain { "" } else { "\"" };
            let line = format!("{key} = {quote}{value}{quote}\n");
            sections.entry(section).or_default().push_str(&line);
        }
        let mut text = String::new();
        for (section, lines) in sections {
            text.push_str(&format!("[{section}]\n{lines}\n"));
        }
        for sync in self.plan.syncs {
            text.push_str(&format!("[sync.{}]\n{}\n", sync.name, sync.toml));
            text.push_str(&format!("namespace_id = \"{}\"\n\n", sync.namespace));
        }
        let path = self.files.path().join(format!("{name}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts a daemon with the settings of the plan.
    pub(crate) fn daemon(&self) -> Process {
        self.daemon_with("pg2kv", &self.settings())
    }

    /// Starts a daemon with settings of its own.
    pub(crate) fn daemon_with(&self, name: &str, settings: &Settings) -> Process {
        Process::run(&self.configure(name, settings))
    }

    /// Puts a token into the file, as a secret store does it: all or nothing.
    pub(crate) fn set_token(&self, token: &str) {
        let new = self.files.path().join("token.new");
        std::fs::write(&new, token).unwrap();
        std::fs::rename(new, self.token_file()).unwrap();
    }

    fn token_file(&self) -> PathBuf {
        self.files.path().join("token")
    }

    /// Stops PostgreSQL; `postgres.resume()` starts it again.
    pub(crate) async fn stop_postgres(&mut self, how: Stop) {
        *self.admin.lock().await = None;
        self.postgres.stop(how).unwrap();
    }

    /// Goes on with another server, and returns the one before.
    pub(crate) async fn use_postgres(&mut self, server: Postgres) -> Postgres {
        *self.admin.lock().await = None;
        std::mem::replace(&mut self.postgres, server)
    }

    /// A connection as the superuser; a new one where the last was lost.
    pub(crate) async fn admin(&self) -> Arc<Client> {
        let mut admin = self.admin.lock().await;
        match &*admin {
            Some(client) if !client.is_closed() => Arc::clone(client),
            _ => {
                let client = Arc::new(connect(&self.postgres.admin_url()).await);
                *admin = Some(Arc::clone(&client));
                client
            }
        }
    }

    /// Runs statements; they must succeed.
    pub(crate) async fn sql(&self, sql: &str) {
        if let Err(error) = self.admin().await.batch_execute(sql).await {
            panic!("{}\nof: {sql}", describe(&error));
        }
    }

    /// The rows of a query.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<Row> {
        match self.admin().await.query(sql, &[]).await {
            Ok(rows) => rows,
            Err(error) => panic!("{}\nof: {sql}", describe(&error)),
        }
    }

    /// The one number that a query gives.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.rows(sql).await[0].get(0)
    }

    /// A request to the API of KV, as somebody other than pg2kv would make it.
    pub(crate) async fn api(&self, method: Method, path: &str, body: impl Into<Body>) {
        let base = self.emulator.base_url();
        let url = format!("{base}/accounts/{ACCOUNT}/storage/kv/namespaces/{path}");
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.request(method, url).bearer_auth(TOKEN).body(body);
        let reply = request.send().await.unwrap();
        assert!(reply.status().is_success(), "{}", reply.status());
    }

    /// The text of a pair's value, in the usual namespace.
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        let pair = self.kv.get(NAMESPACE, key)?;
        Some(String::from_utf8(pair.value.to_vec()).unwrap())
    }

    /// Waits until a pair has this value; `None` is its absence.
    pub(crate) async fn has(&self, key: &str, value: Option<&str>) {
        wait::until(&format!("{key} to become {value:?}"), async || {
            (self.value(key).as_deref() == value).then_some(())
        })
        .await;
    }

    /// Waits until nothing is left to write.
    pub(crate) async fn quiet(&self) {
        let left = "select (select count(*) from pg2kv.outbox) + (select count(*) from pg2kv.claim) \
                    + (select count(*) from pg2kv.backfill)";
        wait::until("outbox, claims and backfills to become empty", async || {
            (self.number(left).await == 0).then_some(())
        })
        .await;
    }

    /// Waits until nothing is left to write, and then KV must say what Postgres says.
    pub(crate) async fn converges(&self) {
        self.converges_but_for(&[]).await;
    }

    /// The same, but for these differences.
    pub(crate) async fn converges_but_for(&self, expected: &[&str]) {
        self.quiet().await;
        let mut differences = self.differences().await;
        differences.retain(|difference| !expected.contains(&difference.as_str()));
        assert!(
            differences.is_empty(),
            "{} keys differ: {:#?}",
            differences.len(),
            &differences[..differences.len().min(20)]
        );
    }

    /// Every key of which KV and Postgres do not say the same.
    pub(crate) async fn differences(&self) -> Vec<String> {
        let mut differences = Vec::new();
        let (mut wanted, mut found) = (BTreeMap::new(), BTreeMap::new());
        for sync in self.plan.syncs {
            for row in self.rows(sync.oracle).await {
                let value: Value = serde_json::from_str(row.get(1)).unwrap();
                let key = (sync.namespace, row.get::<_, String>(0));
                if wanted.insert(key.clone(), value).is_some() {
                    differences.push(format!("the oracle has {} twice", key.1));
                }
            }
            for (key, pair) in self.kv.snapshot(sync.namespace) {
                let value: Value = serde_json::from_slice(&pair.value).unwrap();
                found.insert((sync.namespace, key), value);
            }
        }
        let keys: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
        for key in keys {
            let (wanted, found) = (wanted.get(key), found.get(key));
            let (_, name) = key;
            match (wanted, found) {
                (Some(_), None) => differences.push(format!("missing in KV: {name}")),
                (None, Some(_)) => differences.push(format!("left over in KV: {name}")),
                (Some(wanted), Some(found)) if wanted != found => {
                    differences.push(format!("stale in KV: {name}: {found}, not {wanted}"));
                }
                _ => {}
            }
        }
        differences
    }
}

/// Everything fast, nothing unsafe: the windows are as short as the faults of the tests allow.
fn defaults() -> Settings {
    [
        ("postgres.poll_interval", "1s"),
        ("postgres.connect_timeout", "2s"),
        ("postgres.statement_timeout", "5s"),
        ("kv.account_id", ACCOUNT),
        ("kv.request_timeout", "2s"),
        ("kv.connect_timeout", "1s"),
        ("kv.requests_per_5min", "0"),
        ("kv.reserve_requests", "0"),
        ("queue.quiet", "5ms"),
        ("queue.max_wait", "100ms"),
        ("queue.key_interval", "20ms"),
        ("retry.initial", "50ms"),
        ("retry.max", "500ms"),
        ("retry.late_write_window", "300ms"),
        // Random loads delete more than any sane window allows; the brake has tests of its own.
        ("brake.count", "0"),
        ("shutdown.grace", "10s"),
        ("ops.listen", "127.0.0.1:0"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// What a server said, with its detail.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("{error} {:?}", error.detail()),
        None => error.to_string(),
    }
}
