//! TRUNCATE, and what somebody else did to KV.

use std::time::Duration;

use pg2kv::emulator::faults::Fault;
use pg2kv::emulator::route::Operation;
use reqwest::Method;

use super::{bulk_writes, world};
use crate::support::world::{NAMESPACE, World};

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

    world.sql("select pg2kv.resync('note')").await;
    world
        .converges_but_for(&["left over in KV: note:somebody-elses"])
        .await;
    daemon.stop().await;
}
