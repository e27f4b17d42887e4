//! The demo's servers, its changes, and the comparison at the end.
//!
//! Everything is real but the name of the API's host: a PostgreSQL server, the SQL kit, an ordinary
//! configuration file, the daemon. The daemon runs in this process to keep the demo one binary.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

use super::screen::Screen;
use super::{failed, io_failed};
use crate::cli::args::DemoArgs;
use crate::cli::output::Failure;
use crate::config;
use crate::daemon::Daemon;
use crate::emulator::clock::Clock;
use crate::emulator::limits::Limits;
use crate::emulator::record::{Applied, Op, Subscription};
use crate::emulator::{self, Emulator};
use crate::sql_kit::{self, Schema};
use crate::throwaway::{self, Postgres};

const ACCOUNT: &str = "00000000000000000000000000000001";
const NAMESPACE: &str = "0000000000000000000000000000da7a";
const TOKEN: &str = "demo-token";
const EXAMPLE: &str = include_str!("../../../deploy/sql/examples/users.sql");
/// A key takes one write a second, so the demo leaves a row alone for longer than that.
const ROW_REST: Duration = Duration::from_millis(1_500);
/// How often the ledger is asked whether anything is left.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// What a change does to its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Update,
    Insert,
    Delete,
}

/// A change that is committed.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) kind: Kind,
    /// What it says, without the id.
    pub(super) sql: String,
    pub(super) kv_key: String,
    committed: Instant,
}

/// Everything that runs.
pub(super) struct World {
    // In the order in which it is dropped: daemon, clients, servers, files.
    daemon: Option<JoinHandle<()>>,
    shutdown: CancellationToken,
    client: Client,
    applied: Subscription,
    emulator: Emulator,
    config: config::Config,
    _postgres: Postgres,
    _files: TempDir,
    rng: fastrand::Rng,
    ids: Vec<String>,
    touched: HashMap<String, Instant>,
    inserted: u64,
    writes: u64,
}

impl World {
    pub(super) async fn start(args: &DemoArgs, screen: Screen) -> Result<Self, Failure> {
        let postgres =
            tokio::task::spawn_blocking(|| Postgres::start(throwaway::Options::default()))
                .await
                .map_err(|error| failed("PostgreSQL did not start", &error))?
                .map_err(|error| failed("PostgreSQL did not start", &error))?;
        let client = connect(&postgres.admin_url()).await?;
        let version: String = client
            .query_one("show server_version", &[])
            .await
            .map_err(|error| failed("PostgreSQL did not answer", &error))?
            .get(0);
        let port = postgres.port();
        screen.step(
            "PostgreSQL",
            &format!("{version}, throw-away, 127.0.0.1:{port}"),
        )?;

        let emulator = Emulator::start(emulator::Options {
            listen: ([127, 0, 0, 1], 0).into(),
            token: Some(TOKEN.to_owned()),
            account: Some(ACCOUNT.to_owned()),
            namespaces: vec![emulator::Namespace {
                id: NAMESPACE.to_owned(),
                title: "demo".to_owned(),
            }],
            data_dir: None,
            limits: Limits::default(),
            record_history: 0,
            clock: Clock::running(),
        })
        .await
        .map_err(io_failed("the emulator did not start"))?;
        screen.step(
            "Workers KV",
            &format!("emulator with the API's limits, {}", emulator.base_url()),
        )?;

        install(&client, args.rows).await?;
        screen.step("Triggers", "on public.users, by pg2kv.watch(…)")?;

        let files = TempDir::new().map_err(io_failed("no temporary directory"))?;
        let url = postgres.url_as("edge", "postgres");
        let config = configure(&files, &url, &emulator.base_url(), args)?;
        screen.configuration(&std::fs::read_to_string(files.path().join("pg2kv.toml"))?)?;
        let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        screen.seed(seed)?;
        Ok(Self {
            daemon: None,
            shutdown: CancellationToken::new(),
            applied: emulator.store().subscribe(),
            client,
            emulator,
            config,
            _postgres: postgres,
            _files: files,
            rng: fastrand::Rng::with_seed(seed),
            ids: Vec::new(),
            touched: HashMap::new(),
            inserted: 0,
            writes: 0,
        })
    }

    pub(super) async fn start_daemon(&mut self) -> Result<(), Failure> {
        let kv = crate::cli::kv_client(&self.config)?;
        let (daemon, _) = Daemon::new(self.config.daemon_settings(), kv);
        self.daemon = Some(tokio::spawn(daemon.run(self.shutdown.clone())));
        let rows = self
            .client
            .query("select id::text from public.users order by id", &[])
            .await
            .map_err(|error| failed("the users cannot be read", &error))?;
        self.ids = rows.iter().map(|row| row.get(0)).collect();
        Ok(())
    }

    /// Waits until each row of the table is in KV.
    pub(super) async fn first_sync(&mut self, patience: Duration) -> Result<Duration, Failure> {
        let began = Instant::now();
        let mut missing = self.ids.len();
        while missing > 0 {
            self.next(began + patience).await?;
            missing -= 1;
        }
        self.quiescence(patience).await?;
        let took = began.elapsed();
        // Each row was written a moment ago, and a key takes one write a second.
        tokio::time::sleep(ROW_REST).await;
        Ok(took)
    }

    /// Makes one change to one row and commits it.
    pub(super) async fn change(&mut self) -> Result<Change, Failure> {
        let kind = match self.rng.u8(..10) {
            0..=6 => Kind::Update,
            7..=8 => Kind::Insert,
            _ => Kind::Delete,
        };
        let kind = if self.ids.len() < 10 {
            Kind::Insert
        } else {
            kind
        };
        let (sql, row) = match kind {
            Kind::Insert => {
                self.inserted += 1;
                let name = format!("newcomer{}", self.inserted);
                let sql = format!("insert into users (username, …) values ('{name}', …)");
                let statement = "insert into public.users (username, email) \
                                 values ($1::text, $1 || '@example.com') returning id::text";
                (sql, self.client.query_one(statement, &[&name]).await)
            }
            Kind::Update => {
                let id = self.pick();
                let plan = ["free", "pro", "team"][self.rng.usize(..3)];
                let level = self.rng.i32(1..1_000);
                let sql = format!(
                    "update users set plan = '{plan}' where id = '{}…'",
                    &id[..8]
                );
                let statement = "update public.users set plan = $2, \
                                 flags = jsonb_build_object('level', $3::int), \
                                 preview_features_enabled = not preview_features_enabled, \
                                 updated_at = now() where id = $1::text::uuid returning id::text";
                (
                    sql,
                    self.client
                        .query_one(statement, &[&id, &plan, &level])
                        .await,
                )
            }
            Kind::Delete => {
                let id = self.pick();
                let statement =
                    "delete from public.users where id = $1::text::uuid returning id::text";
                let deleted = self.client.query_one(statement, &[&id]).await;
                self.ids.retain(|other| *other != id);
                (
                    format!("delete from users where id = '{}…'", &id[..8]),
                    deleted,
                )
            }
        };
        let committed = Instant::now();
        let id: String = row
            .map_err(|error| failed("a change failed", &error))?
            .get(0);
        if kind == Kind::Insert {
            self.ids.push(id.clone());
        }
        self.touched.insert(id.clone(), committed);
        Ok(Change {
            kind,
            sql,
            kv_key: format!("user:{id}"),
            committed,
        })
    }

    /// Waits until KV has taken the change; returns how long after the commit that was.
    pub(super) async fn arrival(
        &mut self,
        change: &Change,
        patience: Duration,
    ) -> Result<Duration, Failure> {
        loop {
            let applied = self.next(change.committed + patience).await?;
            let deleted = applied.op == Op::Delete;
            if *applied.key == *change.kv_key && deleted == (change.kind == Kind::Delete) {
                return Ok(applied.at.saturating_duration_since(change.committed));
            }
        }
    }

    /// Waits until nothing is left to write.
    pub(super) async fn quiescence(&self, patience: Duration) -> Result<(), Failure> {
        let left = "select (select count(*) from pg2kv.outbox) + (select count(*) from pg2kv.claim) \
                    + (select count(*) from pg2kv.backfill)";
        let deadline = Instant::now() + patience;
        loop {
            let row = self.client.query_one(left, &[]).await;
            let left: i64 = row
                .map_err(|error| failed("the ledger cannot be read", &error))?
                .get(0);
            if left == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(failed(
                    "KV did not catch up in time",
                    &format!("{left} entries left"),
                ));
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Compares KV with what the rows say, by a query of its own.
    pub(super) async fn is_equal(&self) -> Result<bool, Failure> {
        let expected = "select 'user:' || id, to_jsonb(row) - 'id' from (select id, username, plan, \
                        flags, preview_features_enabled from public.users) as row";
        let rows = self
            .client
            .query(expected, &[])
            .await
            .map_err(|error| failed("the users cannot be read", &error))?;
        let expected: BTreeMap<String, Value> = rows
            .iter()
            .map(|row| {
                let Json(value) = row.get(1);
                (row.get(0), value)
            })
            .collect();
        let found: BTreeMap<String, Value> = self
            .emulator
            .store()
            .snapshot(NAMESPACE)
            .into_iter()
            .map(|(key, pair)| {
                (
                    key,
                    serde_json::from_slice(&pair.value).unwrap_or(Value::Null),
                )
            })
            .collect();
        Ok(expected == found)
    }

    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    pub(super) fn requests(&self) -> u64 {
        self.emulator.store().statistics().counts.requests
    }

    /// Lets the daemon finish, as SIGTERM would.
    pub(super) async fn stop(mut self) {
        self.shutdown.cancel();
        if let Some(daemon) = self.daemon.take() {
            // It ends within its grace; a panic in it would have shown above.
            let _ = daemon.await;
        }
        self.emulator.stop().await;
    }

    async fn next(&mut self, deadline: Instant) -> Result<Applied, Failure> {
        match tokio::time::timeout_at(deadline.into(), self.applied.next()).await {
            Ok(Some(applied)) => {
                self.writes += 1;
                Ok(applied)
            }
            Ok(None) => Err(failed("the emulator is gone", &"it ended by itself")),
            Err(_) => Err(failed(
                "a change did not arrive in KV",
                &"waited long enough",
            )),
        }
    }

    /// A row that was not touched a moment ago.
    fn pick(&mut self) -> String {
        loop {
            let id = &self.ids[self.rng.usize(..self.ids.len())];
            if self
                .touched
                .get(id)
                .is_none_or(|at| at.elapsed() > ROW_REST)
            {
                return id.clone();
            }
        }
    }
}

/// `jsonb` as serde_json reads it.
struct Json(Value);

impl<'a> tokio_postgres::types::FromSql<'a> for Json {
    fn from_sql(
        _: &tokio_postgres::types::Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        // One byte says the version of the format.
        let text = raw
            .strip_prefix(&[1])
            .ok_or("not the jsonb format that is known")?;
        Ok(Self(serde_json::from_slice(text)?))
    }

    fn accepts(kind: &tokio_postgres::types::Type) -> bool {
        *kind == tokio_postgres::types::Type::JSONB
    }
}

async fn connect(url: &str) -> Result<Client, Failure> {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .map_err(|error| failed("PostgreSQL cannot be reached", &error))?;
    tokio::spawn(connection);
    Ok(client)
}

async fn install(client: &Client, rows: u64) -> Result<(), Failure> {
    let seed = format!(
        "truncate public.users; \
         insert into public.users (username, email, plan) \
         select 'user' || n, 'user' || n || '@example.com', \
         (array['free', 'pro', 'team'])[1 + n % 3] from generate_series(1, {rows}) as n; \
         delete from pg2kv.outbox; analyze public.users;"
    );
    let role = "create role edge login; grant pg2kv_daemon to edge;";
    for sql in [
        sql_kit::install(&Schema::default()),
        EXAMPLE.to_owned(),
        seed,
        role.to_owned(),
    ] {
        client
            .batch_execute(&sql)
            .await
            .map_err(|error| failed("the SQL kit cannot be installed", &error))?;
    }
    Ok(())
}

/// The file that a person would write.
fn configure(
    files: &TempDir,
    url: &str,
    base_url: &str,
    args: &DemoArgs,
) -> Result<config::Config, Failure> {
    let quiet = humantime::format_duration(args.quiet);
    let token_file = files.path().join("token");
    let token_path = token_file.display();
    let file = files.path().join("pg2kv.toml");
    let text = format!(
        r#"[postgres]
url = "{url}"

[kv]
account_id = "{ACCOUNT}"
namespace_id = "{NAMESPACE}"
api_token_file = "{token_path}"
api_base_url = "{base_url}"

[queue]
quiet = "{quiet}"

[sync.users]
table = "public.users"
key = "user:{{id}}"
columns = ["username", "plan", "flags", "preview_features_enabled"]
"#
    );
    std::fs::write(&token_file, TOKEN)?;
    std::fs::write(&file, text)?;
    Ok(config::load(&[file], std::iter::empty())?)
}
