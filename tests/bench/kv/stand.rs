//! PostgreSQL, KV and the daemon, each a process of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pg2kv::throwaway::Postgres;
use reqwest::{Client as Http, Url};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_postgres::Client;

use crate::support::kv::KvProcess;
use crate::support::postgres::{Server, connect};
use crate::support::process::{self, Process};
use crate::support::world::{ACCOUNT, NAMESPACE, TOKEN, describe};

/// The role that the daemon logs in as.
const LOGIN: &str = "edge";
/// A drain that moves no key for so long has failed.
const STANDSTILL: Duration = Duration::from_secs(60);

/// The rows that are published, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    /// The table, without rows.
    pub(crate) table: &'static str,
    /// The body of the sync's section.
    pub(crate) sync: &'static str,
}

/// Users with a number: neighbours in the table are neighbours everywhere, so that what is seen is
/// pg2kv and not how PostgreSQL caches.
pub(crate) const USERS: Published = Published {
    table: "create table public.users (
              id bigint primary key,
              username text not null,
              email text not null,
              plan text not null,
              flags jsonb not null,
              updated_at timestamptz not null default now()
            )",
    sync: "table = \"public.users\"\nkey = \"user:{id}\"\ncolumns = [\"plan\", \"flags\"]",
};

/// Rows of [`USERS`] from the first number to the last.
pub(crate) fn insert_users(first: u64, last: u64) -> String {
    format!(
        "insert into public.users (id, username, email, plan, flags)
         select n, 'user' || n, 'user' || n || '@example.com', 'free',
           jsonb_build_object('beta', n % 7 = 0, 'theme', 'dark', 'seats', n % 50)
         from generate_series({first}::bigint, {last}) n"
    )
}

/// PostgreSQL with a table that pg2kv watches.
pub(crate) struct Stand {
    pub(crate) postgres: Postgres,
    admin: Client,
    files: TempDir,
    published: Published,
}

impl Stand {
    /// A server of our own with the table and, unless that is left to the caller, its triggers.
    pub(crate) async fn start(published: Published) -> Self {
        let mut options = Server::Installed.options();
        options.fsync = true;
        let settings = [
            ("shared_buffers", "512MB"),
            // No checkpoint in the middle of what is measured.
            ("max_wal_size", "16GB"),
            ("checkpoint_timeout", "1h"),
        ];
        options
            .settings
            .extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let postgres = tokio::task::spawn_blocking(|| Postgres::start(options).unwrap());
        let postgres = postgres.await.unwrap();
        let admin = connect(&postgres.admin_url()).await;
        let stand = Self {
            postgres,
            admin,
            files: TempDir::new().unwrap(),
            published,
        };
        stand.sql(published.table).await;
        stand.sql(&format!("create role {LOGIN} login")).await;
        stand
    }

    /// Runs statements; they must succeed.
    pub(crate) async fn sql(&self, sql: &str) {
        if let Err(error) = self.admin.batch_execute(sql).await {
            panic!("{}\nof: {sql}", describe(&error));
        }
    }

    /// The one number that a query gives.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// A connection of the superuser's of its own.
    pub(crate) async fn connect(&self) -> Client {
        connect(&self.postgres.admin_url()).await
    }

    /// Puts pg2kv into the database, the triggers included.
    pub(crate) async fn install(&self) {
        let config = self.configure("install", "http://127.0.0.1:1", "");
        let config = config.to_str().unwrap();
        self.sql(&pg2kv_prints(&["sql", "--login", LOGIN, "--config", config]).await)
            .await;
    }

    /// Takes pg2kv out again, with all that it knows.
    pub(crate) async fn uninstall(&self) {
        let config = self.configure("install", "http://127.0.0.1:1", "");
        let config = config.to_str().unwrap();
        self.sql(&pg2kv_prints(&["sql", "uninstall", "--config", config]).await)
            .await;
    }

    /// Lets a daemon lead once, so that the sync is a known one: from here on, what there is to do is
    /// what stands in the outbox. The table may hold rows; they are written to `kv`.
    pub(crate) async fn get_known(&self, kv: &Kv) {
        let daemon = self.daemon(kv, Pace::Free);
        daemon.leads().await;
        self.settled().await;
        daemon.stop().await;
    }

    /// What a long time of quiet would do to the table anyway: nothing of it then falls into what is
    /// measured.
    pub(crate) async fn rest(&self) {
        self.sql("vacuum (analyze) public.users").await;
        self.sql("checkpoint").await;
    }

    /// Starts a daemon: all as it is by default, but for the addresses and the pace.
    pub(crate) fn daemon(&self, kv: &Kv, pace: Pace) -> Process {
        Process::run(&self.configure("daemon", kv.base_url(), pace.settings()))
    }

    /// Waits until nothing is left to write or to walk.
    pub(crate) async fn settled(&self) {
        let left = "select (select count(*) from pg2kv.outbox) + (select count(*) from pg2kv.claim)
            + (select count(*) from pg2kv.backfill)
            + (select count(*) from pg2kv.sync where backfilled_at is null)";
        let mut look = tokio::time::interval(Duration::from_millis(20));
        let (mut least, mut moved) = (i64::MAX, Instant::now());
        loop {
            look.tick().await;
            let now = self.number(left).await;
            if now == 0 {
                return;
            }
            if now < least {
                (least, moved) = (now, Instant::now());
            }
            assert!(moved.elapsed() < STANDSTILL, "{now} things are left to do");
        }
    }

    fn configure(&self, name: &str, base_url: &str, settings: &str) -> PathBuf {
        let token = self.files.path().join("token");
        fs::write(&token, TOKEN).unwrap();
        let text = format!(
            "[postgres]\nurl = \"{}\"\n\n\
             [kv]\napi_base_url = \"{base_url}\"\naccount_id = \"{ACCOUNT}\"\n\
             namespace_id = \"{NAMESPACE}\"\napi_token_file = \"{}\"\n{settings}\n\
             [ops]\nlisten = \"127.0.0.1:0\"\n\n\
             [sync.users]\n{}\n",
            self.postgres.url_as(LOGIN, "postgres"),
            token.display(),
            self.published.sync,
        );
        let path = self.files.path().join(format!("{name}.toml"));
        fs::write(&path, text).unwrap();
        path
    }

    /// A directory that goes with the stand.
    pub(crate) fn files(&self) -> &Path {
        self.files.path()
    }
}

/// How fast a daemon may go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pace {
    /// Without Cloudflare's limit of requests.
    Free,
    /// As it is by default.
    Limited,
}

impl Pace {
    fn settings(self) -> &'static str {
        match self {
            Self::Free => "requests_per_5min = 0\nreserve_requests = 0\n",
            Self::Limited => "",
        }
    }
}

/// What the binary prints.
async fn pg2kv_prints(arguments: &[&str]) -> String {
    let output = process::command().args(arguments).output().await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "pg2kv {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Workers KV: the emulator in a process of its own, which ends when it is dropped.
pub(crate) struct Kv {
    process: KvProcess,
    control: Url,
    http: Http,
}

/// What it counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Pairs that were written or deleted.
    pub(crate) applied: u64,
    /// Bulk writes that arrived.
    pub(crate) bulk_writes: u64,
    /// Pairs that it holds.
    pub(crate) pairs: u64,
}

impl Kv {
    /// Starts it with the sizes that Workers KV allows, and with its rate limits or without.
    pub(crate) async fn start(pace: Pace) -> Self {
        let arguments: &[&str] = match pace {
            Pace::Free => &["--no-limits"],
            Pace::Limited => &[],
        };
        let process = KvProcess::start(arguments).await;
        let mut control = Url::parse(&process.base_url).unwrap();
        control.set_path("/__emulator/");
        let http = Http::builder().no_proxy().build().unwrap();
        Self {
            process,
            control,
            http,
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Where its API begins.
    pub(crate) fn base_url(&self) -> &str {
        &self.process.base_url
    }

    /// Lets every bulk write take so much longer, as over a network.
    pub(crate) async fn delay(&self, milliseconds: u64) {
        let fault = json!({
            "match": { "operation": "bulk_write" },
            "delay_ms": milliseconds, "effect": "now", "reply": "served",
        });
        let url = self.control.join("faults").unwrap();
        let reply = self.http.post(url).bearer_auth(TOKEN);
        let reply = reply.body(fault.to_string()).send().await;
        reply.unwrap().error_for_status().unwrap();
    }

    /// What it has counted so far.
    pub(crate) async fn counts(&self) -> Counts {
        let reply = self
            .http
            .get(self.control.join("stats").unwrap())
            .bearer_auth(TOKEN)
            .send()
            .await
            .unwrap();
        let stats: Value = serde_json::from_str(&reply.text().await.unwrap()).unwrap();
        let number = |pointer: &str| stats.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        Counts {
            applied: number("/applied"),
            bulk_writes: number("/by_operation/bulk_write"),
            pairs: number(&format!("/pairs/{NAMESPACE}")),
        }
    }

    /// Waits until it has applied so many writes since its start; it may take as long as it likes,
    /// but not stand still. Returns what it had counted then.
    pub(crate) async fn applied(&self, writes: u64, look_every: Duration) -> Counts {
        let mut look = tokio::time::interval(look_every);
        let (mut before, mut moved) = (0, Instant::now());
        loop {
            look.tick().await;
            let counts = self.counts().await;
            if counts.applied >= writes {
                return counts;
            }
            if counts.applied > before {
                (before, moved) = (counts.applied, Instant::now());
            }
            let standing = moved.elapsed();
            assert!(
                standing < STANDSTILL,
                "it stands still at {} of {writes}",
                counts.applied
            );
        }
    }

    /// Where bulk writes go.
    pub(crate) fn bulk_url(&self) -> String {
        let base = self.base_url();
        format!("{base}/accounts/{ACCOUNT}/storage/kv/namespaces/{NAMESPACE}/bulk")
    }
}
