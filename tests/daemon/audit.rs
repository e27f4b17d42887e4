//! What others do to KV behind the daemon's back is found and mended by itself.

use std::collections::BTreeMap;

use pg2kv::emulator::faults::Fault;
use pg2kv::emulator::route::Operation;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{PLAN, bulk_writes};
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Settings, World};

/// A pair under the notes' prefix that is nobody's row.
const FOREIGN: &str = "note:somebody-elses";
const LEFT_OVER: &str = "left over in KV: note:somebody-elses";
const DRIFTED: &str = "KV had drifted from the rows";

/// Audits follow each other closely, and look again at once at what differs.
async fn world(interval: &'static [(&'static str, &'static str)]) -> World {
    let world = World::start(Plan {
        settings: interval,
        ..PLAN
    })
    .await;
    world
        .sql("insert into public.note select n, 'text ' || n from generate_series(1, 300) n")
        .await;
    world
}

const OFTEN: &[(&str, &str)] = &[
    ("audit.interval", "300ms"),
    ("audit.page_interval", "0s"),
    ("audit.recheck_after", "0s"),
];
const ONLY_OWED: &[(&str, &str)] = &[
    ("audit.interval", "0s"),
    ("audit.page_interval", "0s"),
    ("audit.recheck_after", "0s"),
];

fn settings(world: &World, changed: &[(&str, &str)]) -> Settings {
    let mut settings = world.settings();
    for (key, value) in changed {
        settings.insert((*key).to_owned(), (*value).to_owned());
    }
    settings
}

/// Damages four keys, each in another way, and adds one that is no row's.
async fn tamper(world: &World) {
    let ours = world.kv.get(NAMESPACE, "note:8").unwrap();
    let value = std::str::from_utf8(&ours.value).unwrap();
    let metadata: Value = serde_json::from_str(ours.metadata.as_deref().unwrap()).unwrap();
    let bulk = json!([
        // Another row's, and it says so.
        { "key": "note:7", "value": value, "metadata": metadata },
        // There is no such row.
        { "key": "note:9000", "value": "{}", "metadata": metadata },
        // Written by somebody who leaves no hash.
        { "key": "note:9", "value": "{}" },
        { "key": FOREIGN, "value": "{}" },
    ]);
    let path = format!("{NAMESPACE}/bulk");
    world.api(Method::PUT, &path, bulk.to_string()).await;
    let path = format!("{NAMESPACE}/values/note:10");
    world.api(Method::DELETE, &path, "").await;
}

#[tokio::test]
async fn what_others_did_to_kv_is_mended_and_no_other_key_is_written() {
    let world = world(OFTEN).await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    daemon.logged_times("audit done", 2).await;
    let before = world.kv.statistics().applied;

    tamper(&world).await;
    wait::until("KV to be mended", async || {
        (world.differences().await == [LEFT_OVER]).then_some(())
    })
    .await;
    world.converges_but_for(&[LEFT_OVER]).await;
    // The log and the metrics tell of it, and so does the status until the next audit is done.
    daemon.logged(DRIFTED).await;
    let done = daemon.count("audit done");
    daemon.logged_times("audit done", done + 2).await;
    let mut writes = BTreeMap::new();
    for applied in world.kv.history_page(before, 1_000).entries {
        *writes.entry(applied.key.to_string()).or_insert(0) += 1;
    }
    // Once by whoever tampered, once by us.
    let twice = ["note:10", "note:7", "note:9", "note:9000"].map(|key| (key.to_owned(), 2));
    let mut expected = BTreeMap::from(twice);
    expected.insert(FOREIGN.to_owned(), 1);
    assert_eq!(writes, expected);

    let drifted = daemon.metric("pg2kv_audit_drifted_keys_total").await;
    assert_eq!(drifted, Some(4.0));
    let (_, status) = daemon.get("/api/status").await;
    let status: Value = serde_json::from_str(&status).unwrap();
    let audit = &status["syncs"][1]["audit"];
    assert_eq!(audit["found"]["equal"], 300, "{audit}");
    assert_eq!(audit["found"]["foreign"], 1, "{audit}");
    assert!(!daemon.log().contains("note:"), "no key in the log");
    daemon.stop().await;
}

#[tokio::test]
async fn what_an_audit_found_is_mended_though_the_daemon_dies_at_once() {
    let world = world(OFTEN).await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    daemon.logged("audit done").await;
    let requests = world.kv.requests();
    let bulk = requests.iter().map(|request| request.operation);
    let writes = bulk
        .filter(|one| *one == Some(Operation::BulkWrite))
        .count();
    // All but the first, which tampers.
    let refused = Fault::status(503).on_operation(Operation::BulkWrite);
    world.kv.faults().add(refused.after(1)).unwrap();
    // No audit between its two requests: it would repair a part of the damage and die of that.
    daemon.signal(Signal::STOP);
    tamper(&world).await;
    daemon.signal(Signal::CONT);
    // One is the tampering, one the repair, which comes to nothing.
    bulk_writes(&world, writes + 2).await;
    daemon.kill().await;
    world.kv.faults().clear();
    // The next one does not audit by itself: the ledger has to know.
    let daemon = world.daemon_with("next", &settings(&world, ONLY_OWED));
    daemon.leads().await;
    wait::until("KV to be mended", async || {
        (world.differences().await == [LEFT_OVER]).then_some(())
    })
    .await;
    assert_eq!(daemon.count("audit started"), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn another_identity_is_followed_by_an_audit_and_only_once() {
    let world = world(ONLY_OWED).await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    assert_eq!(daemon.count("audit started"), 0);
    daemon.stop().await;
    world
        .sql("update pg2kv.meta set identity = jsonb_set(identity, '{timeline}', '7')")
        .await;
    let daemon = world.daemon();
    daemon.logged_times("audit done", 2).await;
    let log = daemon.log();
    let started = log.lines().filter(|line| line.contains("audit started"));
    assert!(
        started.clone().all(|line| line.contains("\"identity\"")),
        "{log}"
    );
    assert_eq!(started.count(), 2, "one for each sync");
    let walked = log.find("backfill done").unwrap();
    assert!(walked < log.find("audit started").unwrap(), "{log}");
    daemon.stop().await;
    let owed = "select count(*) from pg2kv.sync where audit_owed is not null";
    assert_eq!(world.number(owed).await, 0);
    let audited = "select count(*) from pg2kv.sync where audited_at is not null";
    assert_eq!(world.number(audited).await, 2);
}

#[tokio::test]
async fn a_restart_neither_forgets_nor_repeats_an_audit() {
    let world = world(&[
        ("audit.interval", "1d"),
        ("audit.page_interval", "0s"),
        ("audit.recheck_after", "0s"),
    ])
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    daemon.stop().await;
    // One is due, the other was done an hour ago.
    world
        .sql(
            "update pg2kv.sync set audited_at = now() - case name when 'note' then interval '25 h'
             else interval '1 h' end",
        )
        .await;
    let daemon = world.daemon();
    let done = daemon.logged("audit done").await;
    assert!(done.contains("\"note\""), "{done}");
    daemon.stop().await;
    let recent = "select count(*) from pg2kv.sync where audited_at > now() - interval '30 min'";
    assert_eq!(world.number(recent).await, 1);
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql("insert into public.note values (1000, 'new')")
        .await;
    world.converges().await;
    // The ledger is read each ten seconds.
    let at = wait::until("the time of the last audit to show", async || {
        let name = "pg2kv_audit_last_success_timestamp_seconds";
        daemon.metric(name).await
    })
    .await;
    assert!(at > 1_700_000_000.0, "{at:?}");
    assert_eq!(daemon.count("audit started"), 0);
    daemon.stop().await;
}
