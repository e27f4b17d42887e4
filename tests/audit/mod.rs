//! `pg2kv verify`, `pg2kv explain` and `pg2kv dead-letters` as an operator meets them: the real binary, a real
//! PostgreSQL, the emulator, and a daemon where one is needed.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not the helpers of tests

mod documents;
mod explain;
mod letters;
mod verify;

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use pg2kv::emulator::limits::Limits;
use pg2kv::emulator::{Emulator, Namespace, Options};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_postgres::Client;

use crate::support::postgres::{Database, Server};

const ID: &str = "0123456789abcdef0123456789abcdef";
/// Longest wait for what comes in well under a second on an idle machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// A database whose tables are watched, a namespace, and a configuration for both.
pub(crate) struct Place {
    pub(crate) emulator: Emulator,
    pub(crate) config: PathBuf,
    client: Client,
    pub(crate) database: Database,
    _files: TempDir,
}

impl Place {
    /// `login` is a role of this test alone: roles are shared by the databases of a server.
    pub(crate) async fn new(login: &str, tables: &str, syncs: &str) -> Self {
        let database = Database::create(Server::Installed).await;
        let login = database.role(login);
        let client = database.connect().await;
        let setup = format!("create role {login} login; {tables}");
        client.batch_execute(&setup).await.unwrap();
        let emulator = Emulator::start(Options {
            namespaces: vec![Namespace {
                id: ID.to_owned(),
                title: "test".to_owned(),
            }],
            limits: Limits::without_rate_limits(),
            ..Options::default()
        })
        .await
        .unwrap();
        let files = tempfile::tempdir().unwrap();
        let config = files.path().join("pg2kv.toml");
        // Polls are so rare that only a ring brings a change in time.
        let text = format!(
            "[postgres]\nurl = \"{}\"\npoll_interval = \"60s\"\n\
             [kv]\naccount_id = \"{ID}\"\nnamespace_id = \"{ID}\"\napi_token = \"token\"\napi_base_url = \"{}\"\n\
             [ops]\nlisten = \"127.0.0.1:0\"\n{syncs}",
            database.url_as(&login),
            emulator.base_url()
        );
        std::fs::write(&config, text).unwrap();
        let place = Self {
            emulator,
            config,
            client,
            database,
            _files: files,
        };
        let url = place.database.url();
        let installed = place.pg2kv(&["install", "--database-url", &url]).await;
        assert!(installed.status.success(), "{}", text_of(&installed.stderr));
        place
    }

    pub(crate) async fn pg2kv(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.unwrap()
    }

    /// Standard output of a verb that ends with `code`.
    pub(crate) async fn says(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.pg2kv(arguments).await;
        let (out, err) = (text_of(&output.stdout), text_of(&output.stderr));
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}\n{out}{err}"
        );
        out.to_owned()
    }

    pub(crate) async fn json(&self, code: i32, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.says(code, arguments).await).unwrap()
    }

    pub(crate) fn daemon(&self) -> Child {
        self.daemon_with(&[])
    }

    /// A daemon with other settings than the file's.
    fn daemon_with(&self, environment: &[(&str, &str)]) -> Child {
        self.command(&["run"])
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pg2kv"));
        command
            .env_clear()
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    fn value(&self, name: &str) -> Option<String> {
        let pair = self.emulator.store().get(ID, name)?;
        Some(String::from_utf8(pair.value.to_vec()).unwrap())
    }
}

/// Waits until `look` is true; panics with `what` after the deadline.
async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    let mut ticks = interval(Duration::from_millis(10));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !look().await {
        assert!(Instant::now() < deadline, "in vain: {what}");
        ticks.tick().await;
    }
}

fn text_of(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
