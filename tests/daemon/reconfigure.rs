//! Configurations that change: only what differs is written, and old names go once the new are there.

use std::path::{Path, PathBuf};
use std::process::Output;

use pg2kv::emulator::faults::Fault;
use pg2kv::emulator::pair::Pair;
use pg2kv::emulator::route::Operation;
use reqwest::Method;
use serde_json::Value;

use super::DOCS;
use crate::support::process::{self, Process};
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

/// What the daemon logs when it finds that it is configured otherwise than the leader before.
const NOTICED: &str = "the configuration is another than before";
/// What it logs when all that follows is done.
const DONE: &str = "nothing is left in KV of an earlier configuration";

const SYNCS: &[Sync] = &[
    Sync {
        name: "person",
        toml: "table = \"public.person\"\nkey = \"p:{id}\"\nvalue = \"plan\"\nwatch = [\"plan\"]",
        namespace: NAMESPACE,
        oracle: "select 'p:' || id, plan from public.person",
    },
    Sync {
        name: "team",
        toml: "table = \"public.team\"\nkey = \"t:{id}\"\nvalue = \"plan\"\nwatch = [\"plan\"]",
        namespace: NAMESPACE,
        oracle: "select 't:' || id, plan from public.team",
    },
];

const PLAN: Plan = Plan {
    sql: "
        create table public.person (id int primary key, plan text);
        create table public.team (id text primary key, plan text);
        insert into public.person select n, to_json('plan ' || n % 4)::text from generate_series(1, 20) n;
        insert into public.team values ('red', '1'), ('3', '2');
    ",
    syncs: SYNCS,
    settings: &[
        ("audit.recheck_after", "0s"),
        ("audit.interval", "0s"),
        ("audit.page_interval", "0s"),
        ("postgres.check_interval", "1s"),
    ],
    limits: None,
};

/// A world in which a daemon has written everything, and none runs.
async fn world(plan: Plan) -> World {
    let world = World::start(plan).await;
    let daemon = world.daemon();
    daemon.leads().await;
    wait::until("the first backfills to end", async || {
        let new = "select count(*) from pg2kv.sync where backfilled_at is null";
        (world.number(new).await == 0).then_some(())
    })
    .await;
    world.converges().await;
    daemon.stop().await;
    world
}

/// The configuration of the world with other words in it.
fn configured(world: &World, name: &str, changes: &[(&str, &str)]) -> PathBuf {
    let path = world.configure(name, &world.settings());
    let mut text = std::fs::read_to_string(&path).unwrap();
    for (before, now) in changes {
        assert!(text.contains(before), "{before}");
        text = text.replace(before, now);
    }
    std::fs::write(&path, text).unwrap();
    path
}

/// `key = "p:{id}"` in other words.
const RENAMED: &[(&str, &str)] = &[("\"p:{id}\"", "\"person/{id}\"")];

async fn pg2kv(config: &Path, arguments: &[&str]) -> Output {
    process::command()
        .args(arguments)
        .arg("--config")
        .arg(config)
        .output()
        .await
        .unwrap()
}

/// Names in a namespace, in their order.
fn names(world: &World, namespace: &str) -> Vec<String> {
    world.kv.snapshot(namespace).into_keys().collect()
}

/// Names of that prefix.
fn count(world: &World, prefix: &str) -> usize {
    let names = names(world, NAMESPACE);
    names.iter().filter(|name| name.starts_with(prefix)).count()
}

/// Pairs that were written, by whatever they were before, since a moment of the history.
fn written_since(world: &World, moment: u64) -> usize {
    world.kv.history_page(moment, 100_000).entries.len()
}

async fn retired(world: &World) -> i64 {
    world.number("select count(*) from pg2kv.retired").await
}

#[tokio::test]
async fn a_new_template_writes_the_new_names_and_then_removes_the_old() {
    let world = world(PLAN).await;
    let before: Vec<Pair> = world.kv.snapshot(NAMESPACE).into_values().collect();
    let path = format!("{NAMESPACE}/values/p:foreign");
    world.api(Method::PUT, &path, "\"theirs\"").await;
    let moment = world.kv.statistics().applied;

    let config = configured(&world, "renamed", RENAMED);
    let check = pg2kv(&config, &["check"]).await;
    let plan = String::from_utf8(check.stdout).unwrap();
    assert!(
        plan.contains("key: \"p:{id}\" → \"person/{id}\"") && plan.contains("about 20 rows"),
        "{plan}"
    );
    assert!(
        plan.contains("about 20 keys of the names before are to be deleted"),
        "{plan}"
    );
    assert_eq!(written_since(&world, moment), 0, "check only tells");
    assert_eq!(retired(&world).await, 0);

    let daemon = Process::run(&config);
    daemon.logged(NOTICED).await;
    daemon.logged(DONE).await;
    assert_eq!(count(&world, "person/"), 20);
    assert_eq!(count(&world, "p:"), 1, "what others wrote is left");
    assert_eq!(count(&world, "t:"), 2);
    let after: Vec<Pair> = world
        .kv
        .snapshot(NAMESPACE)
        .into_iter()
        .filter(|(name, _)| name != "p:foreign")
        .map(|(_, pair)| pair)
        .collect();
    assert_eq!(before, after, "the same documents under other names");
    let history = world.kv.history_page(moment, 1_000).entries;
    let names: Vec<&str> = history.iter().map(|applied| &*applied.key).collect();
    let first_old = names
        .iter()
        .position(|name| name.starts_with("p:"))
        .unwrap();
    let last_new = names.iter().rposition(|name| name.starts_with("person/"));
    assert!(last_new < Some(first_old), "{names:?}");
    assert_eq!(names.len(), 40, "each once: {names:?}");
    assert_eq!(retired(&world).await, 0);
    assert_eq!(
        daemon.metric("pg2kv_old_names_deleted_total").await,
        Some(20.0)
    );
    assert_eq!(
        daemon.metric("pg2kv_configuration_changes_total").await,
        Some(1.0)
    );
    assert_eq!(
        daemon
            .metric("pg2kv_audit_drifted_keys_total")
            .await
            .unwrap_or(0.0),
        0.0
    );
    daemon.stop().await;

    // It is news only once.
    let moment = world.kv.statistics().applied;
    let daemon = Process::run(&config);
    daemon.leads().await;
    world
        .sql("update public.person set plan = '0' where id = 7")
        .await;
    world.has("person/7", Some("0")).await;
    assert_eq!(daemon.count(NOTICED), 0);
    assert_eq!(written_since(&world, moment), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn only_documents_that_differ_are_written() {
    let world = world(PLAN).await;
    let moment = world.kv.statistics().applied;
    let config = configured(
        &world,
        "half",
        &[(
            "key = \"p:{id}\"\nvalue = \"plan\"",
            "key = \"p:{id}\"\n\
             value = \"case when id::text < '2' then plan else upper(plan) end\"",
        )],
    );
    let daemon = Process::run(&config);
    daemon.logged(NOTICED).await;
    daemon.logged("after a change of the configuration").await;
    let differing = "select count(*) from public.person where id::text >= '2'";
    let differing = usize::try_from(world.number(differing).await).unwrap();
    wait::until("them to be written", async || {
        (written_since(&world, moment) >= differing).then_some(())
    })
    .await;
    world.quiet().await;
    assert!(differing > 5 && differing < 15, "{differing}");
    assert_eq!(written_since(&world, moment), differing);
    assert_eq!(world.value("p:2").as_deref(), Some("\"PLAN 2\""));
    assert_eq!(world.value("p:1").as_deref(), Some("\"plan 1\""));
    assert_eq!(retired(&world).await, 0, "no name has changed");

    // Other columns that count are no reason to write everything either.
    let moment = world.kv.statistics().applied;
    world
        .sql("update public.person set plan = plan where id = 1")
        .await;
    let watch = "select pg2kv.watch('public.person', 'person', '{id}', '{plan,id}')";
    world.sql(watch).await;
    let markers = "select count(*) from pg2kv.outbox where key is null";
    assert_eq!(world.number(markers).await, 0);
    wait::until("the leader to compare", async || {
        let owed = "select count(*) from pg2kv.sync where audit_owed is not null";
        (world.number(owed).await == 0).then_some(())
    })
    .await;
    world.quiet().await;
    assert_eq!(written_since(&world, moment), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_crash_in_between_is_made_up_for() {
    let world = world(PLAN).await;
    let config = configured(&world, "renamed", RENAMED);
    // It dies before it could compare …
    // The first look, for pairs of another installation, is let through.
    let refused = Fault::status(503)
        .on_operation(Operation::ListKeys)
        .after(1);
    let id = world.kv.faults().add(refused).unwrap();
    let daemon = Process::run(&config);
    daemon.logged(NOTICED).await;
    daemon.kill().await;
    assert_eq!(retired(&world).await, 1);
    world.kv.faults().remove(id);
    // … and before it could delete.
    let refused = Fault::status(503).on_operation(Operation::BulkDelete);
    let id = world.kv.faults().add(refused).unwrap();
    let daemon = Process::run(&config);
    daemon.logged("could not be looked after").await;
    assert_eq!(daemon.count(NOTICED), 0, "that is noted already");
    assert_eq!((count(&world, "person/"), count(&world, "p:")), (20, 20));
    daemon.kill().await;
    world.kv.faults().remove(id);
    let daemon = Process::run(&config);
    daemon.logged(DONE).await;
    assert_eq!((count(&world, "person/"), count(&world, "p:")), (20, 0));
    assert_eq!(retired(&world).await, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn an_old_daemon_that_leads_again_takes_its_names_back() {
    let world = world(PLAN).await;
    let config = configured(&world, "renamed", RENAMED);
    let old = world.daemon();
    old.leads().await;
    let new = Process::run(&config);
    new.logged(process::STANDS_BY).await;
    old.kill().await;
    new.logged(DONE).await;
    assert_eq!((count(&world, "person/"), count(&world, "p:")), (20, 0));

    let old = world.daemon();
    old.logged(process::STANDS_BY).await;
    new.kill().await;
    old.logged(NOTICED).await;
    old.logged(DONE).await;
    assert_eq!((count(&world, "person/"), count(&world, "p:")), (0, 20));
    world.converges().await;

    // Again, and back before the new one could do more than begin.
    // The first look, for pairs of another installation, is let through.
    let refused = Fault::status(503)
        .on_operation(Operation::ListKeys)
        .after(1);
    let id = world.kv.faults().add(refused).unwrap();
    let new = Process::run(&config);
    new.logged(process::STANDS_BY).await;
    old.kill().await;
    new.logged(NOTICED).await;
    world
        .sql("update public.person set plan = '0' where id = 7")
        .await;
    world.has("person/7", Some("0")).await;
    new.kill().await;
    world.kv.faults().remove(id);
    let old = world.daemon();
    old.logged(DONE).await;
    assert_eq!((count(&world, "person/"), count(&world, "p:")), (0, 20));
    world.converges().await;
    old.stop().await;
}

#[tokio::test]
async fn a_new_namespace_is_filled_and_the_old_one_emptied() {
    let world = world(PLAN).await;
    world.kv.create_namespace(DOCS).unwrap();
    let of_person = format!("watch = [\"plan\"]\nnamespace_id = \"{NAMESPACE}\"\n\n[sync.team]");
    let moved = format!("watch = [\"plan\"]\nnamespace_id = \"{DOCS}\"\n\n[sync.team]");
    let config = configured(&world, "moved", &[(&of_person, &moved)]);
    let daemon = Process::run(&config);
    daemon.logged(DONE).await;
    assert_eq!(names(&world, DOCS).len(), 20);
    assert_eq!(names(&world, NAMESPACE), ["t:3", "t:red"]);
    daemon.stop().await;
}

#[tokio::test]
async fn two_syncs_swap_their_prefixes() {
    let world = world(PLAN).await;
    let swapped = [
        ("\"p:{id}\"", "\"was p\""),
        ("\"t:{id}\"", "\"p:{id}\""),
        ("\"was p\"", "\"t:{id}\""),
    ];
    let config = configured(&world, "swapped", &swapped);
    let daemon = Process::run(&config);
    daemon.logged_times(DONE, 2).await;
    world.quiet().await;
    let mut expected: Vec<String> = (1..=20).map(|n| format!("t:{n}")).collect();
    expected.extend(["p:3".to_owned(), "p:red".to_owned()]);
    expected.sort_unstable();
    wait::until("each name to be its new sync's", async || {
        (names(&world, NAMESPACE) == expected).then_some(())
    })
    .await;
    world.has("p:3", Some("2")).await;
    world.has("t:3", Some("\"plan 3\"")).await;
    daemon.stop().await;
}

#[tokio::test]
async fn many_old_names_wait_until_nobody_reads_them() {
    let world = world(Plan {
        settings: &[
            ("audit.recheck_after", "0s"),
            ("audit.interval", "0s"),
            ("audit.page_interval", "0s"),
            ("brake.count", "10"),
        ],
        ..PLAN
    })
    .await;
    let config = configured(&world, "renamed", RENAMED);
    let plan = String::from_utf8(pg2kv(&config, &["check"]).await.stdout).unwrap();
    assert!(
        plan.contains("holds until `pg2kv approve-deletes person`"),
        "{plan}"
    );
    let daemon = Process::run(&config);
    daemon.logged("wait for approval of their delete").await;
    assert_eq!((count(&world, "person/"), count(&world, "p:")), (20, 20));
    let (_, ready) = daemon.get("/readyz").await;
    assert!(
        ready.contains("old names of person: 20 keys stand in KV"),
        "{ready}"
    );
    let explained = pg2kv(&config, &["explain", "p:7"]).await;
    let text = String::from_utf8(explained.stdout).unwrap();
    assert!(
        text.contains("an earlier configuration of person made this key"),
        "{text}"
    );
    // Ordinary deletes are not held with them.
    world.sql("delete from public.person where id = 20").await;
    world.has("person/20", None).await;
    let (_, status) = daemon.get("/api/status").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["syncs"][0]["old_names"]["held"], true, "{status}");
    assert!(
        pg2kv(&config, &["approve-deletes", "person"])
            .await
            .status
            .success()
    );
    daemon.logged(DONE).await;
    assert_eq!((count(&world, "person/"), count(&world, "p:")), (19, 0));
    daemon.stop().await;
}

#[tokio::test]
async fn a_sync_that_is_removed_keeps_its_keys_and_check_says_so() {
    let world = world(PLAN).await;
    let team = "[sync.team]\ntable = \"public.team\"\nkey = \"t:{id}\"\nvalue = \"plan\"\n\
                watch = [\"plan\"]\n";
    let rest = format!("{team}namespace_id = \"{NAMESPACE}\"\n");
    let config = configured(&world, "removed", &[(&rest, "")]);
    let check = String::from_utf8(pg2kv(&config, &["check"]).await.stdout).unwrap();
    assert!(
        check.contains("it is not configured: its keys (t:{id}) stay in KV as they are"),
        "{check}"
    );
    let daemon = Process::run(&config);
    daemon.leads().await;
    world
        .sql("update public.person set plan = '0' where id = 7")
        .await;
    world.has("p:7", Some("0")).await;
    assert_eq!(count(&world, "t:"), 2);
    daemon.stop().await;
}
