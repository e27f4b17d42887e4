//! Two installations of pg2kv in one namespace, and names that a sync no longer makes.

use std::collections::BTreeMap;
use std::path::Path;

use pg2kv::emulator::pair::Pair;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::process::{self, Process};
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Settings, Sync, World};

const AUDITS: &[(&str, &str)] = &[
    ("audit.recheck_after", "0s"),
    ("audit.interval", "300ms"),
    ("audit.page_interval", "0s"),
    ("postgres.check_interval", "1s"),
];

/// `u{id}` of a number cannot have made `user:7` or `up:status`.
const NUMBERS: Plan = Plan {
    sql: "create table public.item (id bigint primary key, text text not null);
          insert into public.item select n, 'item ' || n from generate_series(1, 20) n;",
    syncs: &[Sync {
        name: "item",
        toml: "table = \"public.item\"\nkey = \"u{id}\"\ncolumns = [\"text\"]",
        namespace: NAMESPACE,
        oracle: "select 'u' || id, json_build_object('text', text)::text from public.item",
    }],
    settings: AUDITS,
    limits: None,
};

const USERS: Plan = Plan {
    sql: "create table public.account (id int primary key, name text not null);
          create table public.state (name text primary key, text text not null);
          insert into public.account select n, 'name ' || n from generate_series(1, 5) n;
          insert into public.state values ('status', 'up');",
    syncs: &[
        Sync {
            name: "account",
            toml: "table = \"public.account\"\nkey = \"user:{id}\"\ncolumns = [\"name\"]",
            namespace: NAMESPACE,
            oracle: "select 'user:' || id, json_build_object('name', name)::text from public.account",
        },
        Sync {
            name: "state",
            toml: "table = \"public.state\"\nkey = \"up:{name}\"\ncolumns = [\"text\"]",
            namespace: NAMESPACE,
            oracle: "select 'up:' || name, json_build_object('text', text)::text from public.state",
        },
    ],
    settings: AUDITS,
    limits: None,
};

/// The settings of a world whose KV is that of another one.
fn beside(world: &World, other: &World) -> Settings {
    let mut settings = world.settings();
    let base = other.emulator.base_url();
    settings.insert("kv.api_base_url".to_owned(), base);
    settings
}

fn names(world: &World, prefix: &str) -> Vec<String> {
    let names = world.kv.snapshot(NAMESPACE).into_keys();
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Pairs under names that no number makes.
fn theirs(world: &World) -> BTreeMap<String, Pair> {
    let mut pairs = world.kv.snapshot(NAMESPACE);
    pairs.retain(|name, _| name.starts_with("us") || name.starts_with("up"));
    pairs
}

async fn installation(world: &World) -> String {
    world.rows("select installation from pg2kv.meta").await[0].get(0)
}

async fn pg2kv(config: &Path, arguments: &[&str]) -> String {
    let output = process::command()
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .await
        .unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

async fn backfilled(world: &World) {
    wait::until("the first backfills to end", async || {
        let new = "select count(*) from pg2kv.sync where backfilled_at is null";
        (world.number(new).await == 0).then_some(())
    })
    .await;
    world.quiet().await;
}

/// A comparison that begins after this moment has ended: the first to end may have begun before it.
async fn audited(world: &World, sync: &str) {
    for _ in 0..2 {
        let now: String = world.rows("select clock_timestamp()::text").await[0].get(0);
        let later = format!(
            "select count(*) from pg2kv.sync where name = '{sync}' and audited_at > '{now}'"
        );
        wait::until("an audit to end", async || {
            (world.number(&later).await == 1).then_some(())
        })
        .await;
    }
}

/// The metadata that another installation leaves.
fn marked(world: &World, name: &str, installation: &str) -> Value {
    let metadata = world.kv.get(NAMESPACE, name).unwrap().metadata.unwrap();
    let mut metadata: Value = serde_json::from_str(&metadata).unwrap();
    let mark = metadata["pg2kv"].as_str().unwrap().to_owned();
    let parts: Vec<&str> = mark.split('.').collect();
    metadata["pg2kv"] = format!("{}.{installation}.{}", parts[0], parts[2]).into();
    metadata
}

async fn put(world: &World, name: &str, metadata: &Value) {
    let bulk = json!([{ "key": name, "value": "{}", "metadata": metadata }]);
    let path = format!("{NAMESPACE}/bulk");
    world.api(Method::PUT, &path, bulk.to_string()).await;
}

#[tokio::test]
async fn pairs_of_another_installation_outlive_a_new_template() {
    let users = World::start(USERS).await;
    let numbers = World::start(NUMBERS).await;
    let first = users.daemon();
    backfilled(&users).await;
    first.stop().await;
    let before = theirs(&users);
    assert_eq!(before.len(), 6, "{before:?}");

    // Their names begin as its own do, but no number makes them.
    let config = numbers.configure("beside", &beside(&numbers, &users));
    let daemon = Process::run(&config);
    backfilled(&numbers).await;
    assert_eq!(names(&users, "u").len(), 26);
    daemon.stop().await;

    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"u{id}\"", "\"v:{id}\"")).unwrap();
    let daemon = Process::run(&config);
    daemon
        .logged("nothing is left in KV of an earlier configuration")
        .await;
    assert_eq!(names(&users, "v:").len(), 20);
    assert_eq!(theirs(&users), before);
    assert_eq!(names(&users, "u").len(), 6);
    daemon.stop().await;
}

#[tokio::test]
async fn no_scan_deletes_what_another_installation_wrote() {
    let world = World::start(NUMBERS).await;
    let config = world.configure("pg2kv", &world.settings());
    let daemon = world.daemon();
    backfilled(&world).await;
    let (ours, theirs) = (
        marked(&world, "u7", &installation(&world).await),
        marked(&world, "u7", "ffffffffffff"),
    );
    // Each looks like an orphan; only the first is one.
    put(&world, "u1001", &ours).await;
    put(&world, "u1002", &theirs).await;
    world.has("u1001", None).await;
    audited(&world, "item").await;
    assert!(world.kv.get(NAMESPACE, "u1002").is_some());

    let said = pg2kv(&config, &["verify", "--repair"]).await;
    assert!(
        said.contains("item: installation ffffffffffff of pg2kv has pairs under its prefix"),
        "{said}"
    );
    let said = pg2kv(&config, &["explain", "u1002"]).await;
    assert!(
        said.contains("written by installation ffffffffffff of pg2kv"),
        "{said}"
    );
    put(&world, "u1003", &ours).await;
    let said = pg2kv(&config, &["resync", "item"]).await;
    world.has("u1003", None).await;
    world.quiet().await;
    assert!(world.kv.get(NAMESPACE, "u1002").is_some(), "{said}");
    // What a row makes is overwritten, whoever wrote it.
    put(&world, "u5", &theirs).await;
    world.has("u5", Some("{\"text\":\"item 5\"}")).await;
    daemon.stop().await;
}

#[tokio::test]
async fn the_second_installation_under_the_same_names_stops_until_it_adopts_the_first() {
    let first = World::start(NUMBERS).await;
    let daemon = first.daemon();
    backfilled(&first).await;
    daemon.stop().await;
    let before = first.kv.snapshot(NAMESPACE);
    let id = installation(&first).await;

    // A blue-green upgrade: the same rows, but for two.
    let second = World::start(NUMBERS).await;
    second
        .sql(
            "delete from public.item where id = 3;
              update public.item set text = 'new' where id = 4",
        )
        .await;
    let settings = beside(&second, &first);
    let daemon = second.daemon_with("second", &settings);
    let line = daemon.logged("sync on hold; the others flow").await;
    assert!(line.contains("another_installation"), "{line}");
    assert!(line.contains(&id), "{line}");
    let (_, ready) = daemon.get("/readyz").await;
    assert!(
        ready.contains("sync item on hold (another_installation)") && ready.contains(&id),
        "{ready}"
    );
    assert!(ready.contains("pg2kv.meta.adopted"), "{ready}");
    let (_, status) = daemon.get("/api/status").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["syncs"][0]["hold"]["reason"], "another_installation");
    second
        .sql("update public.item set text = 'live' where id = 5; delete from public.item where id = 6")
        .await;
    let config = second.configure("second", &settings);
    for verb in [&["check"][..], &["verify"], &["explain", "u4"]] {
        let said = pg2kv(&config, verb).await;
        assert!(said.contains(&id), "{verb:?}: {said}");
    }
    assert_eq!(first.kv.snapshot(NAMESPACE), before);
    // A restart does not help.
    daemon.kill().await;
    let daemon = second.daemon_with("second", &settings);
    daemon.logged("sync on hold; the others flow").await;
    assert_eq!(first.kv.snapshot(NAMESPACE), before);

    second
        .sql(&format!(
            "update pg2kv.meta set adopted = adopted || '{id}'::text"
        ))
        .await;
    daemon.logged("sync flows again").await;
    backfilled(&second).await;
    first.has("u5", Some("{\"text\":\"live\"}")).await;
    first.has("u4", Some("{\"text\":\"new\"}")).await;
    first.has("u3", None).await;
    first.has("u6", None).await;
    assert_eq!(names(&first, "u").len(), 18);
    daemon.stop().await;

    // And it is not looked at again.
    let daemon = second.daemon_with("second", &settings);
    daemon.leads().await;
    second
        .sql("update public.item set text = 'again' where id = 5")
        .await;
    first.has("u5", Some("{\"text\":\"again\"}")).await;
    assert_eq!(daemon.count("sync on hold"), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn names_that_no_key_makes_after_a_change_of_its_type_are_removed() {
    let world = World::start(Plan {
        sql: "create table public.item (id text primary key, text text not null);
              insert into public.item select n, 'item ' || n from generate_series(1, 20) n;
              insert into public.item values ('seven', 'a word'), ('007', 'zeros');",
        ..NUMBERS
    })
    .await;
    let config = world.configure("pg2kv", &world.settings());
    let daemon = world.daemon();
    backfilled(&world).await;
    assert_eq!(names(&world, "u").len(), 22);
    put(&world, "ustrange", &json!({})).await;
    daemon.stop().await;
    world
        .sql(
            "begin;
             select pg2kv.unwatch('item');
             delete from public.item where id in ('seven', '007');
             alter table public.item alter column id type bigint using id::bigint;
             commit;",
        )
        .await;
    let sql = process::command()
        .args(["sql", "--config"])
        .arg(&config)
        .output()
        .await
        .unwrap();
    world.sql(&String::from_utf8(sql.stdout).unwrap()).await;
    let daemon = world.daemon();
    world.has("useven", None).await;
    world.has("u007", None).await;
    backfilled(&world).await;
    assert_eq!(names(&world, "u").len(), 21, "what others wrote is left");
    daemon.stop().await;
}
