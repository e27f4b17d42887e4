//! TRUNCATE, and what somebody else did to KV.

use std::time::Duration;

use pg2kv::emulator::faults::Fault;
use pg2kv::emulator::route::Operation;
use reqwest::Method;

use super::{PLAN, bulk_writes, world};
use crate::support::load::{SYNCS, TABLES};
use crate::support::world::{NAMESPACE, Plan, World};

/// A pair under the notes' prefix that somebody else wrote.
const FOREIGN: &str = "note:somebody-elses";

async fn tamper(world: &World, method: Method, key: &str, body: &str) {
    let path = format!("{NAMESPACE}/values/{key}");
    world.api(method, &path, body.to_owned()).await;
}

#[tokio::test]
async fn truncate_empties_our_keys_and_no_others() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql(
            "insert into public.note select n, 'text' from generate_series(1, 500) n;
             insert into public.doc values ('stays', 'x')",
        )
        .await;
    world.converges().await;
    tamper(&world, Method::PUT, FOREIGN, "\"foreign\"").await;
    tamper(&world, Method::PUT, "note:1000000", "\"no metadata\"").await;

    world.sql("truncate public.note").await;
    let foreign = [
        "left over in KV: note:1000000",
        "left over in KV: note:somebody-elses",
    ];
    world.converges_but_for(&foreign).await;
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 2);

    // Emptied and filled again in one transaction.
    world
        .sql("insert into public.note select n, 'more' from generate_series(1, 50) n")
        .await;
    world.converges_but_for(&foreign).await;
    world
        .sql(
            "begin; truncate public.note;
             insert into public.note select n, 'new' from generate_series(40, 60) n; commit",
        )
        .await;
    world.converges_but_for(&foreign).await;
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 21 + 2);
    daemon.stop().await;
}

#[tokio::test]
async fn a_partition_that_comes_or_goes_is_seen_by_a_resync() {
    let world = World::start(Plan {
        sql: TABLES,
        syncs: SYNCS,
        ..PLAN
    })
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    world
        .sql(
            "create table public.event_sa (like public.event);
             insert into public.event_sa values ('sa', 1, 1), ('sa', 2, 2);
             alter table public.event attach partition public.event_sa for values in ('sa');
             alter table public.event detach partition public.event_us",
        )
        .await;
    world.sql("select pg2kv.resync('event')").await;
    world.converges().await;
    assert!(world.value("event:sa:1").is_some());
    // What has come is watched like the others, what has gone is not.
    world
        .sql("update public.event_sa set v = 3; update public.event_us set v = 3")
        .await;
    world.has("event:sa:2", Some(r#"{"v":3}"#)).await;
    world.converges().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_pair_on_its_way_while_its_table_is_emptied_does_not_stay() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.quiet().await;
    let done = daemon.count("backfill done");
    let slow = Fault::delay(Duration::from_millis(1_000)).on_operation(Operation::BulkWrite);
    world.kv.faults().add(slow.times(1)).unwrap();
    world
        .sql("insert into public.note values (1, 'on its way')")
        .await;
    bulk_writes(&world, 1).await;
    // Neither the table nor the names in KV tell the backfill of this pair.
    world.sql("truncate public.note").await;
    daemon.logged_times("backfill done", done + 1).await;
    world.converges().await;
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_resync_repairs_missing_stale_and_left_over_keys() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql("insert into public.note select n, 'text ' || n from generate_series(1, 300) n")
        .await;
    world.converges().await;
    let ours = world.kv.get(NAMESPACE, "note:8").unwrap();
    let bulk = serde_json::json!([
        // Stale, and says so: the value and the metadata of another row.
        { "key": "note:7", "value": std::str::from_utf8(&ours.value).unwrap(),
          "metadata": serde_json::from_str::<serde_json::Value>(ours.metadata.as_deref().unwrap()).unwrap() },
        // Left over: no such row.
        { "key": "note:9000", "value": "{}",
          "metadata": serde_json::from_str::<serde_json::Value>(ours.metadata.as_deref().unwrap()).unwrap() },
        // Overwritten by somebody who writes no metadata.
        { "key": "note:9", "value": "{}" },
        { "key": FOREIGN, "value": "{}" },
    ]);
    world
        .api(Method::PUT, &format!("{NAMESPACE}/bulk"), bulk.to_string())
        .await;
    tamper(&world, Method::DELETE, "note:10", "").await;
    assert_eq!(world.differences().await.len(), 5);

    let resync = super::follow::resync(&world, &[]).await;
    assert!(resync.status.success(), "{resync:?}");
    world
        .converges_but_for(&["left over in KV: note:somebody-elses"])
        .await;
    daemon.stop().await;
}
