//! A table that is fed by logical replication: the copy at its start, and what is applied later.

use pg2kv::throwaway::Stop;

use super::{PLAN, world};
use crate::support::postgres::connect;
use crate::support::world::World;

#[tokio::test]
async fn what_a_subscription_copies_and_applies_arrives() {
    let mut world = world().await;
    world.sql("alter system set wal_level = logical").await;
    world.stop_postgres(Stop::Fast).await;
    world.postgres.resume().unwrap();
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;

    world.sql("create database origin").await;
    let origin = connect(&world.postgres.url("origin")).await;
    origin.batch_execute(PLAN.sql).await.unwrap();
    origin
        .batch_execute(
            "insert into public.note select n, 'copied' from generate_series(1, 100) n;
             create publication everything for all tables",
        )
        .await
        .unwrap();
    // A slot that the subscription makes itself would wait for the subscription, on one server.
    origin
        .batch_execute("select pg_create_logical_replication_slot('feed', 'pgoutput')")
        .await
        .unwrap();
    subscribe(&world).await;
    world.has("note:100", Some(r#"{"text":"copied"}"#)).await;

    origin
        .batch_execute(
            "update public.note set text = 'applied' where id <= 10;
             delete from public.note where id = 11;
             update public.note set id = 1012 where id = 12",
        )
        .await
        .unwrap();
    world.has("note:1", Some(r#"{"text":"applied"}"#)).await;
    world.has("note:1012", Some(r#"{"text":"copied"}"#)).await;
    for gone in ["note:11", "note:12"] {
        world.has(gone, None).await;
    }
    origin
        .batch_execute("truncate public.note; insert into public.note values (7, 'last')")
        .await
        .unwrap();
    world.has("note:7", Some(r#"{"text":"last"}"#)).await;
    world.has("note:100", None).await;
    world.converges().await;
    daemon.stop().await;
    world.sql("alter subscription feed disable").await;
}

async fn subscribe(world: &World) {
    let origin = world.postgres.url("origin");
    world
        .sql(&format!(
            "create subscription feed connection '{origin}' publication everything \
             with (create_slot = false, slot_name = 'feed')"
        ))
        .await;
}
