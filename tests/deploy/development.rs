//! The files that the development overlay and the compose file share, at work: the table, the
//! configuration, the command that installs.

use std::ffi::OsStr;
use std::fs;

use pg2kv::emulator::{self, Emulator, Namespace};

use super::tools::{root, said};
use crate::support::postgres::{Database, Server};
use crate::support::process::{self, Process};
use crate::support::wait;
use crate::support::world::NAMESPACE;

/// The token of the overlay's emulator.
const TOKEN: &str = "development";

#[tokio::test]
async fn what_the_development_files_set_up_brings_rows_to_kv() {
    let folder = root().join("deploy/kubernetes/overlays/development");
    let database = Database::create(Server::Installed).await;
    let client = database.connect().await;
    let users = fs::read_to_string(folder.join("users.sql")).unwrap();
    client.batch_execute(&users).await.unwrap();
    let emulator = Emulator::start(emulator::Options {
        token: Some(TOKEN.to_owned()),
        namespaces: vec![Namespace {
            id: NAMESPACE.to_owned(),
            title: "development".to_owned(),
        }],
        ..emulator::Options::default()
    })
    .await
    .unwrap();

    // The addresses of this machine, in the place of those of the cluster.
    let config = folder.join("pg2kv.toml");
    let (url, api) = (database.url_as("pg2kv_login"), emulator.base_url());
    let variables = [
        ("PG2KV__POSTGRES__URL", OsStr::new(&url)),
        ("PG2KV__KV__API_BASE_URL", OsStr::new(&api)),
        ("PG2KV__KV__API_TOKEN", OsStr::new(TOKEN)),
        ("PG2KV__OPS__LISTEN", OsStr::new("127.0.0.1:0")),
    ];
    let installed = process::command()
        .args(["install", "--database-url"])
        .arg(database.url())
        .arg("--config")
        .arg(&config)
        .envs(variables)
        .output()
        .await
        .unwrap();
    assert!(installed.status.success(), "{}", said(&installed));

    let daemon = Process::run_with(&config, &variables);
    let kv = emulator.store();
    wait::until("the last user to be in KV", async || {
        kv.get(NAMESPACE, "user:1000").map(drop)
    })
    .await;
    let change = "update public.users set plan = 'pro' where id = 1";
    client.batch_execute(change).await.unwrap();
    wait::until("the change to be in KV", async || {
        let pair = kv.get(NAMESPACE, "user:1")?;
        let value = String::from_utf8_lossy(&pair.value).into_owned();
        value.contains("\"pro\"").then_some(())
    })
    .await;
    daemon.stop().await;
}
