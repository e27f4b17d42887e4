//! Triggers that are disabled, dropped or left behind: the daemon says so, and once they are in order
//! again what they missed arrives without anybody asking for it.

use serde_json::Value;

use super::PLAN;
use crate::support::process::Process;
use crate::support::wait;
use crate::support::world::{Plan, World};

const WATCH: &str =
    "select pg2kv.watch('public.note', sync => 'note', key => '{id}', columns => '{text}')";

/// Looks often enough for a test.
async fn world() -> World {
    World::start(Plan {
        settings: &[("postgres.check_interval", "200ms")],
        ..PLAN
    })
    .await
}

/// Three notes that are in KV.
async fn with_notes(world: &World) {
    world
        .sql("insert into public.note select n, 'first' from generate_series(1, 3) n")
        .await;
    world.converges().await;
}

/// Waits until the probe says that a sync is faulty, and why.
async fn told(daemon: &Process, why: &str) {
    wait::until(&format!("/readyz to tell: {why}"), async || {
        let (status, text) = daemon.get("/readyz").await;
        assert_eq!(status, 200);
        let line = "sync note: changes are not recorded: ";
        let told = text.lines().find(|told| told.starts_with(line))?;
        told.contains(why).then_some(())
    })
    .await;
    assert_eq!(daemon.metric("pg2kv_triggers_faulty").await, Some(1.0));
    let (_, text) = daemon.get("/api/status").await;
    let status: Value = serde_json::from_str(&text).unwrap();
    let error = &status["syncs"][1]["triggers_error"];
    assert!(error["error"].as_str().unwrap().contains(why), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("pg2kv.watch"));
}

/// Waits until nothing is wrong, and KV equals Postgres.
async fn heals(world: &World, daemon: &Process) {
    wait::until("nothing to differ", async || {
        world.differences().await.is_empty().then_some(())
    })
    .await;
    wait::until("the fault to be over", async || {
        let faulty = daemon.metric("pg2kv_triggers_faulty").await;
        (faulty == Some(0.0)).then_some(())
    })
    .await;
    world.converges().await;
}

/// Damages, changes rows that the damage hides, sees it told, and mends.
async fn round(world: &World, daemon: &Process, damage: &str, why: &str, mend: &str) {
    with_notes(world).await;
    let logged = daemon.count("changes of this sync are not recorded");
    world.sql(damage).await;
    world
        .sql(
            "update public.note set text = 'missed' where id = 1;
             delete from public.note where id = 2;
             insert into public.note values (4, 'missed')",
        )
        .await;
    told(daemon, why).await;
    assert_eq!(world.differences().await.len(), 3, "{damage}");
    let line = daemon
        .logged_times("changes of this sync are not recorded", logged + 1)
        .await;
    assert!(line.contains("\"hint\":"), "{line}");
    world.sql(mend).await;
    heals(world, daemon).await;
    world.sql("delete from public.note").await;
    world.converges().await;
}

#[tokio::test]
async fn what_faulty_triggers_missed_arrives_once_they_are_mended() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    for (damage, why, mend) in [
        (
            "alter table public.note disable trigger all",
            "zzz_pg2kv_note_row on public.note is disabled",
            "alter table public.note enable always trigger zzz_pg2kv_note_row,
             enable always trigger zzz_pg2kv_note_update,
             enable always trigger zzz_pg2kv_note_truncate",
        ),
        (
            "drop trigger zzz_pg2kv_note_row on public.note;
             drop trigger zzz_pg2kv_note_update on public.note",
            "zzz_pg2kv_note_row on public.note is missing",
            WATCH,
        ),
        (
            "create table public.other (like public.note including all);
             insert into public.other select * from public.note;
             alter table public.note rename to note_old;
             alter table public.other rename to note",
            "another table is watched under this name",
            WATCH,
        ),
    ] {
        round(&world, &daemon, damage, why, mend).await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn what_was_missed_arrives_though_no_daemon_saw_the_end_of_the_fault() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    with_notes(&world).await;
    world
        .sql("alter table public.note disable trigger all")
        .await;
    told(&daemon, "is disabled").await;

    // A walk during the fault ends well and finds what was missed so far, but pays no debt.
    world
        .sql(
            "update public.note set text = 'missed before' where id = 1;
             select pg2kv.resync('note')",
        )
        .await;
    world
        .has("note:1", Some(r#"{"text":"missed before"}"#))
        .await;
    world.quiet().await;
    world
        .sql("update public.note set text = 'missed after' where id = 1")
        .await;
    daemon.kill().await;
    world
        .sql(
            "alter table public.note enable always trigger zzz_pg2kv_note_row,
             enable always trigger zzz_pg2kv_note_update,
             enable always trigger zzz_pg2kv_note_truncate",
        )
        .await;

    let daemon = world.daemon();
    heals(&world, &daemon).await;
    let line = daemon.logged("backfill started").await;
    assert!(line.contains("triggers mended"), "{line}");
    // Paid once.
    let owed = "select count(*) from pg2kv.sync where backfilled_at = '-infinity'";
    assert_eq!(world.number(owed).await, 0);
    daemon.stop().await;
}
