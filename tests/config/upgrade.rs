//! `pg2kv sql upgrade` and `pg2kv install` on schemas of other versions.

use std::path::{Path, PathBuf};
use std::process::Output;

use tokio::process::Command;

use super::{BASE, Files};
use crate::support::postgres::{Database, Server};

/// A database with a table, and a configuration for it that logs in as the superuser.
struct Place {
    database: Database,
    _files: Files,
    config: PathBuf,
}

impl Place {
    async fn new() -> Self {
        let database = Database::create(Server::Installed).await;
        let table = "create table users (id int primary key, plan text)";
        database.connect().await.batch_execute(table).await.unwrap();
        let files = Files::new();
        let url = "url = \"postgres://daemon@localhost/app\"";
        assert!(BASE.contains(url));
        let text = BASE.replace(url, &format!("url = \"{}\"", database.url()));
        // Nobody answers there.
        let text = text.replace(
            "[kv]",
            "[kv]\napi_base_url = \"http://127.0.0.1:9/client/v4\"",
        );
        let config = files.write("pg2kv.toml", &text);
        Self {
            database,
            _files: files,
            config,
        }
    }

    async fn good(&self, arguments: &[&str]) -> String {
        let output = pg2kv(arguments, &self.config).await;
        assert!(output.status.success(), "{arguments:?} {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    async fn bad(&self, arguments: &[&str]) -> String {
        let output = pg2kv(arguments, &self.config).await;
        assert_eq!(output.status.code(), Some(1), "{arguments:?} {output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    async fn sql(&self, sql: &str) {
        let client = self.database.connect().await;
        client.batch_execute(sql).await.unwrap();
    }
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

#[tokio::test]
async fn upgrade_prints_what_is_needed_and_says_where_nothing_is() {
    let place = Place::new().await;
    let none = place.bad(&["sql", "upgrade"]).await;
    assert_eq!(
        none,
        "error: there is no schema pg2kv to upgrade\n  \
         help: `pg2kv install` makes it, or the SQL that `pg2kv sql` prints\n"
    );

    place.good(&["install"]).await;
    assert_eq!(
        place.good(&["sql", "upgrade"]).await,
        "-- The schema pg2kv has version 1 already: nothing is to be done.\n"
    );
    let status = place.good(&["status"]).await;
    assert!(status.contains("\nschema  version 1\n"), "{status}");

    place.sql("update pg2kv.meta set schema_version = 2").await;
    let status = place.good(&["status", "--json"]).await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        status["schema"],
        serde_json::json!({ "version": 2, "serves": 1 })
    );
    for refused in [vec!["sql", "upgrade"], vec!["install"]] {
        let newer = place.bad(&refused).await;
        assert!(
            newer.contains("has version 2, and this program makes version 1"),
            "{newer}"
        );
        assert!(newer.contains("help: use the release"), "{newer}");
    }
}

#[tokio::test]
async fn a_version_that_never_was_has_no_steps() {
    let files = Files::new();
    let config = files.write("pg2kv.toml", BASE);
    for version in ["0", "2"] {
        let output = pg2kv(&["sql", "upgrade", "--from", version], &config).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty());
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains(&format!("version {version}")), "{errors}");
    }
}

#[tokio::test]
async fn install_puts_a_lost_version_back() {
    let place = Place::new().await;
    for _ in 0..2 {
        assert_eq!(
            place.good(&["install"]).await,
            "ok  schema pg2kv\nok  triggers of users\n"
        );
    }
    place.sql("delete from pg2kv.meta").await;
    let lost = place.bad(&["status"]).await;
    assert!(
        lost.contains("help: run `pg2kv install`, which puts"),
        "{lost}"
    );
    place.good(&["install"]).await;
    place.good(&["status"]).await;
}
