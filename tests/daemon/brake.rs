//! The mass-delete brake.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::{DOCS, PLAN};
use crate::support::process;
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, World};

/// With the brake as it is by default; the other tests have it off.
async fn world() -> World {
    World::start(Plan {
        settings: &[("brake.count", "1000")],
        ..PLAN
    })
    .await
}

async fn approve(config: &Path, arguments: &[&str]) -> Output {
    process::command()
        .args(["approve-deletes", "note", "--config"])
        .arg(config)
        .args(arguments)
        .output()
        .await
        .unwrap()
}

async fn explain(config: &Path, arguments: &[&str]) -> Output {
    process::command()
        .args(["explain", "--config"])
        .arg(config)
        .args(arguments)
        .output()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_truncate_empties_kv_only_once_somebody_approves() {
    let world = world().await;
    world
        .sql("insert into public.note select n, 'text' from generate_series(1, 3000) n")
        .await;
    let config = world.configure("approve", &world.settings());
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 3_000);

    world.sql("truncate public.note").await;
    daemon.logged("deletes on hold").await;
    let ready = daemon.get("/readyz").await;
    assert_eq!(ready.0, 200);
    assert!(
        ready.1.contains("deletes of note on hold: about 3000 keys"),
        "{}",
        ready.1
    );
    assert!(ready.1.contains("pg2kv approve-deletes note"));
    let (_, status) = daemon.get("/api/status").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["syncs"][1]["deletes_held"]["ahead"], 3_000);
    wait::until("the metric to tell of the hold", async || {
        let held = daemon.metric("pg2kv_deletes_held_keys").await;
        (held == Some(3_000.0)).then_some(())
    })
    .await;

    // Nobody need ask the daemon itself.
    wait::until("the ledger to tell of the hold", async || {
        let held = "select coalesce(max(deletes_held), 0) from pg2kv.sync";
        (world.number(held).await == 3_000).then_some(())
    })
    .await;
    let explained = explain(&config, &["note:7", "--sync", "note"]).await;
    assert_eq!(explained.status.code(), Some(1));
    let text = String::from_utf8(explained.stdout).unwrap();
    assert!(
        text.contains("the row was deleted; its delete waits for approval\n"),
        "{text}"
    );
    // The key template of the other sync takes any name.
    let explained = explain(&config, &["note:7", "--json"]).await;
    let both: Value = serde_json::from_slice(&explained.stdout).unwrap();
    let verdicts = [0, 1].map(|at| &both["syncs"][at]["conclusion"]["verdict"]);
    assert_eq!(verdicts, ["equal", "held"]);

    // Writes go on, of this sync too.
    world
        .sql(
            "insert into public.doc values ('goes', 'on');
             insert into public.note values (3001, 'new'), (1, 'again')",
        )
        .await;
    world.has("note:3001", Some("{\"text\":\"new\"}")).await;
    world.has("note:1", Some("{\"text\":\"again\"}")).await;
    wait::until("the other sync to flow", async || {
        world.kv.get(DOCS, "goes").map(drop)
    })
    .await;
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 3_001);

    // A new leader holds them too.
    daemon.kill().await;
    let daemon = world.daemon();
    daemon.logged("deletes on hold").await;
    let rehearsal = approve(&config, &["--dry-run"]).await;
    assert!(rehearsal.status.success(), "{rehearsal:?}");
    let text = String::from_utf8(rehearsal.stdout).unwrap();
    assert!(text.ends_with("; nothing was changed\n"), "{text}");
    let approved = "select count(*) from pg2kv.sync where deletes_approved_until is not null";
    assert_eq!(world.number(approved).await, 0);
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 3_001);

    let approval = approve(&config, &[]).await;
    assert!(approval.status.success(), "{approval:?}");
    daemon.logged("deletes are no longer on hold").await;
    world.converges().await;
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 2);
    assert!(!daemon.get("/readyz").await.1.contains("on hold"));
    daemon.stop().await;
}

#[tokio::test]
async fn deleted_rows_that_are_put_back_need_no_approval() {
    let world = world().await;
    world
        .sql("insert into public.note select n, 'text' from generate_series(1, 3000) n")
        .await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;

    world.sql("delete from public.note").await;
    daemon.logged("deletes on hold").await;
    wait::until("every claimed key to be held", async || {
        let rest = world.number("select count(*) from pg2kv.outbox").await;
        let held = daemon.metric("pg2kv_deletes_held_keys").await;
        let gone = 3_000 - world.kv.snapshot(NAMESPACE).len();
        assert!(gone <= 1_000, "{gone} keys were deleted");
        (rest == 0 && held == Some((3_000 - gone) as f64)).then_some(())
    })
    .await;
    world
        .sql("insert into public.note select n, 'back' from generate_series(1, 3000) n")
        .await;
    world.converges().await;
    daemon.logged("deletes are no longer on hold").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_restart_neither_lets_held_deletes_go_nor_allows_as_many_again() {
    let world = World::start(Plan {
        settings: &[("brake.count", "100"), ("brake.share", "0")],
        ..PLAN
    })
    .await;
    world
        .sql("insert into public.note select n, 'text' from generate_series(1, 3000) n")
        .await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;

    // 80 of the 100 that may go.
    world.sql("delete from public.note where id <= 80").await;
    world.converges().await;
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 2_920);
    let mut daemon = daemon;
    for round in 1..=3 {
        daemon.kill().await;
        daemon = world.daemon();
        daemon.leads().await;
        let (from, to) = (round * 100, round * 100 + 30);
        world
            .sql(&format!(
                "delete from public.note where id > {from} and id <= {to}"
            ))
            .await;
        daemon.logged("deletes on hold").await;
        wait::until("every claimed key to be held", async || {
            let held = "select coalesce(max(deletes_held), 0) from pg2kv.sync";
            (world.number(held).await == 30 * round).then_some(())
        })
        .await;
        assert_eq!(world.kv.snapshot(NAMESPACE).len(), 2_920, "round {round}");
    }
    daemon.stop().await;
}
