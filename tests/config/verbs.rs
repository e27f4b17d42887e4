//! The verbs that speak to Postgres and Workers KV, against a real server and the emulator.

use std::path::{Path, PathBuf};
use std::process::Output;

use pg2kv::emulator::{Emulator, Namespace, Options};
use tokio::process::Command;

use super::Files;
use crate::support::postgres::{Database, Server};

const ID: &str = "0123456789abcdef0123456789abcdef";
const TOKEN: &str = "canary-token-0123456789";

/// A database with a table, a namespace, and a configuration for both.
struct Place {
    database: Database,
    emulator: Emulator,
    files: Files,
    config: PathBuf,
    login: &'static str,
}

impl Place {
    /// Roles are shared by the databases of a server, so each test has a login of its own.
    async fn new(login: &'static str) -> Self {
        let database = Database::create(Server::Installed).await;
        database
            .connect()
            .await
            .batch_execute(&format!(
                "create table users (id int primary key, plan text); create role {login} login"
            ))
            .await
            .unwrap();
        let emulator = Emulator::start(Options {
            token: Some(TOKEN.to_owned()),
            namespaces: vec![Namespace {
                id: ID.to_owned(),
                title: "test".to_owned(),
            }],
            ..Options::default()
        })
        .await
        .unwrap();
        let files = Files::new();
        let config = files.write(
            "pg2kv.toml",
            &config(&database.url_as(login), &emulator, TOKEN),
        );
        Self {
            database,
            emulator,
            files,
            config,
            login,
        }
    }

    async fn pg2kv(&self, arguments: &[&str]) -> Output {
        pg2kv(arguments, &self.config).await
    }

    async fn install(&self) -> Output {
        self.pg2kv(&["install", "--database-url", &self.database.url()])
            .await
    }
}

/// The server takes prepared transactions, so writers must not ring.
fn config(url: &str, emulator: &Emulator, token: &str) -> String {
    format!(
        "[postgres]\nurl = \"{url}\"\ndoorbell = false\n\
         [kv]\naccount_id = \"{ID}\"\nnamespace_id = \"{ID}\"\napi_token = \"{token}\"\n\
         api_base_url = \"{}\"\n\
         [sync.users]\ntable = \"public.users\"\nkey = \"user:{{id}}\"\ncolumns = [\"plan\"]\n",
        emulator.base_url()
    )
}

async fn pg2kv(arguments: &[&str], config: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pg2kv"))
        .env_clear()
        .args(arguments)
        .arg("--config")
        .arg(config)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn install_then_check_then_status_then_resync() {
    let place = Place::new("verbs_daemon").await;

    let dry = place
        .pg2kv(&[
            "install",
            "--dry-run",
            "--database-url",
            &place.database.url(),
        ])
        .await;
    assert!(dry.status.success(), "{dry:?}");
    assert!(text(&dry.stdout).contains("select pg2kv.watch("));
    let missing = place.pg2kv(&["status"]).await;
    assert_eq!(missing.status.code(), Some(1));
    let missing = text(&missing.stderr);
    assert!(missing.contains("  help: run `pg2kv install`"), "{missing}");

    for _ in 0..2 {
        let installed = place.install().await;
        assert!(installed.status.success(), "{}", text(&installed.stderr));
        assert_eq!(
            text(&installed.stdout),
            format!(
                "ok  schema pg2kv\nok  triggers of users\nok  grants of {}\n",
                place.login
            )
        );
    }

    let check = place.pg2kv(&["check"]).await;
    let lines = text(&check.stdout);
    assert!(check.status.success(), "{lines}");
    assert!(
        lines.lines().all(|line| line.starts_with("ok  ")),
        "{lines}"
    );
    for what in [
        "configuration",
        "schema",
        "connection",
        "privileges",
        "sync users: triggers",
    ] {
        assert!(lines.contains(what), "{what}\n{lines}");
    }
    assert!(
        lines.contains(&format!("{ID} answers, and takes the token")),
        "{lines}"
    );

    let client = place.database.connect().await;
    client
        .batch_execute("insert into users values (1, 'pro'), (2, 'free')")
        .await
        .unwrap();
    let status = place.pg2kv(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["leader"], serde_json::Value::Null);
    let users = &status["syncs"][0];
    assert_eq!(
        (&users["sync"], &users["triggers"]),
        (&"users".into(), &"ok".into())
    );
    // And the marker that watch() leaves for the rows that were there before.
    assert_eq!(users["waiting"], 3);
    assert!(users["oldest_wait_seconds"].as_f64().unwrap() >= 0.0);

    let resync = place.pg2kv(&["resync", "users", "--no-wait"]).await;
    assert!(resync.status.success(), "{}", text(&resync.stderr));
    let markers = client
        .query_one(
            "select count(*) from pg2kv.outbox where sync = 'users' and key is null",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(markers.get::<_, i64>(0), 2);
    let unknown = place.pg2kv(&["resync", "user"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(
        text(&unknown.stderr),
        "error: asking for a resync of user: no sync is named 'user'\n  \
         help: select sync from pg2kv.status() lists them; select pg2kv.watch(...) makes one.\n"
    );
    let table = place.pg2kv(&["status"]).await;
    let table = text(&table.stdout);
    assert!(
        table.starts_with("leader  none, and there never was one"),
        "{table}"
    );
    let words: Vec<_> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(words[..3], ["users", "public.users", "4"], "{table}");
}

#[tokio::test]
async fn check_says_what_is_not_in_order() {
    let place = Place::new("broken_daemon").await;
    place.install().await;
    let client = place.database.connect().await;
    client
        .batch_execute("alter table users disable trigger zzz_pg2kv_users_update")
        .await
        .unwrap();
    let wrong = config(
        &place.database.url_as(place.login),
        &place.emulator,
        "wrong-token",
    )
    .replace(
        &format!("namespace_id = \"{ID}\""),
        &format!("namespace_id = \"{}\"", "f".repeat(32)),
    );
    let wrong = place.files.write("wrong.toml", &wrong);
    let check = pg2kv(&["check"], &wrong).await;
    let lines = text(&check.stdout);
    assert_eq!(check.status.code(), Some(1), "{lines}");
    let failed: Vec<_> = lines
        .lines()
        .filter(|line| line.starts_with("FAIL"))
        .collect();
    assert_eq!(failed.len(), 2, "{lines}");
    assert!(failed[0].contains("sync users: triggers"), "{lines}");
    assert!(failed[1].contains("namespace of users"), "{lines}");
    assert!(
        lines.contains("help: make a token with \"Workers KV Storage: Edit\""),
        "{lines}"
    );
    assert!(lines.ends_with("\n2 things not in order\n"), "{lines}");
    assert!(!lines.contains("wrong-token"));
}

#[tokio::test]
async fn check_says_that_the_path_names_no_account() {
    let place = Place::new("accountless_daemon").await;
    place.install().await;
    let whole = config(&place.database.url_as(place.login), &place.emulator, TOKEN);
    let without = whole.replace(&format!("account_id = \"{ID}\"\n"), "");
    let without = place.files.write("without.toml", &without);
    let check = pg2kv(&["check"], &without).await;
    let lines = text(&check.stdout);
    assert_eq!(check.status.code(), Some(1), "{lines}");
    assert!(
        lines.contains("help: set kv.account_id, without which"),
        "{lines}"
    );
}

#[tokio::test]
async fn a_database_that_does_not_answer_exits_69() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    drop(taken);
    let files = Files::new();
    let path = files.write(
        "pg2kv.toml",
        &super::BASE.replace("@localhost/", &format!("@127.0.0.1:{port}/")),
    );
    let status = pg2kv(&["status"], &path).await;
    assert_eq!(status.status.code(), Some(69), "{}", text(&status.stderr));
    assert!(text(&status.stderr).starts_with("error: connecting to Postgres: "));
}
