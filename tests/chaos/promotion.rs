//! The primary is lost with commits that the standby never got, and the standby takes its place.

use std::process::{Command, Stdio};

use pg2kv::throwaway::{Options, Postgres, Stop};
use tempfile::TempDir;
use tokio_postgres::Client;

use super::Node;
use crate::support::load::{SYNCS, TABLES, Writer};
use crate::support::postgres::{Server, connect};
use crate::support::process::STANDS_BY;
use crate::support::wait::{self, say, seed};
use crate::support::world::{Plan, World};

/// Transactions that the standby gets, and then transactions that it never hears of.
const TRANSACTIONS: usize = 150;

const PLAN: Plan = Plan {
    sql: TABLES,
    syncs: SYNCS,
    settings: &[("lease.ttl", "2s"), ("backfill.chunk", "50")],
    limits: None,
};

/// What the walk of a sync is begun for, as it is logged.
const IDENTITY_CHANGED: &str = "\"reason\":\"identity";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_a_failover_that_lost_commits_kv_follows_the_new_primary() {
    let mut writer = Writer::new(seed("PG2KV_PROMOTION_SEED"), true);
    let mut world = World::start(PLAN).await;
    let left = Node::start(&world, "left").await;
    left.daemon.leads().await;
    let right = Node::start(&world, "right").await;
    right.daemon.logged(STANDS_BY).await;
    load(&world, &mut writer).await;
    let standby = standby(&world).await;
    let behind = connect(&standby.admin_url()).await;
    load(&world, &mut writer).await;
    world
        .sql("insert into public.item values (5001, 'kept', 1), (5002, 'kept', 1)")
        .await;
    world.converges().await;
    cut_off(&world, &behind).await;

    // Committed, confirmed to the writer, seen by pg2kv, and lost.
    load(&world, &mut writer).await;
    world
        .sql(
            "insert into public.item values (5001, 'lost', 1), (5003, 'lost', 1)
             on conflict (id) do update set label = excluded.label;
             delete from public.item where id = 5002",
        )
        .await;
    world.converges().await;
    assert!(world.value("item:5003").is_some());
    assert!(world.value("item:5002").is_none());

    world.stop_postgres(Stop::Immediate).await;
    let promoted = behind.query_one("select pg_promote()", &[]).await.unwrap();
    assert!(promoted.get::<_, bool>(0));
    let address = ([127, 0, 0, 1], standby.port()).into();
    left.postgres.redirect(address);
    right.postgres.redirect(address);
    let _lost = world.use_postgres(standby).await;

    let changed = wait::until("a leader to notice the new primary", async || {
        let noticed = |node: &Node| node.daemon.count(IDENTITY_CHANGED);
        let noticed = noticed(&left) + noticed(&right);
        (noticed >= SYNCS.len()).then_some(noticed)
    });
    changed.await;
    world.converges().await;
    assert!(world.value("item:5003").is_none());
    for (key, label) in [("item:5001", "kept"), ("item:5002", "kept")] {
        let value = world.value(key).unwrap();
        assert!(value.contains(label), "{key}: {value}");
    }
    load(&world, &mut writer).await;
    world.converges().await;
    say(&format!(
        "{} changes, timeline {}",
        writer.changes,
        world.number(TIMELINE).await
    ));
    left.daemon.stop().await;
    right.daemon.stop().await;
}

const TIMELINE: &str = "select (identity ->> 'timeline')::int8 from pg2kv.meta";

/// Random transactions, as any client would make them.
async fn load(world: &World, writer: &mut Writer) {
    let client = world.admin().await;
    for _ in 0..TRANSACTIONS {
        writer.transaction(&client).await;
    }
}

/// Copies the primary while it works, and starts the copy as a standby that follows it.
async fn standby(world: &World) -> Postgres {
    let primary = world.postgres.admin_url();
    let mut options = Server::Installed.options();
    tokio::task::spawn_blocking(move || {
        let copy = TempDir::new().unwrap();
        copy_of(&primary, &options, &copy);
        options.template = Some(copy.path().join("data"));
        options.files = vec![("standby.signal".to_owned(), Vec::new())];
        for (name, value) in [
            ("primary_conninfo", primary.as_str()),
            // Not below the primary's, or the standby stops.
            ("max_prepared_transactions", "10"),
        ] {
            options.settings.push((name.to_owned(), value.to_owned()));
        }
        Postgres::start(options).unwrap()
    })
    .await
    .unwrap()
}

fn copy_of(primary: &str, options: &Options, into: &TempDir) {
    let programs = options.bin_dir.as_ref().unwrap();
    let output = Command::new(programs.join("pg_basebackup"))
        .args(["--checkpoint", "fast", "--no-sync", "--dbname", primary])
        .arg("--pgdata")
        .arg(into.path().join("data"))
        .stdin(Stdio::null())
        .output()
        .expect("pg_basebackup, which comes with the clients of the server");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// Waits until the standby has all, and then has it follow nobody.
async fn cut_off(world: &World, standby: &Client) {
    let behind = "select count(*) from pg_stat_replication \
                  where replay_lsn is distinct from pg_current_wal_lsn()";
    let followers = "select count(*) from pg_stat_replication";
    assert_eq!(world.number(followers).await, 1);
    wait::until("the standby to have all", async || {
        (world.number(behind).await == 0).then_some(())
    })
    .await;
    // One statement at a time: the first cannot be part of a transaction.
    for statement in [
        "alter system set primary_conninfo = ''",
        "select pg_reload_conf()",
    ] {
        standby.batch_execute(statement).await.unwrap();
    }
    wait::until("the standby to follow nobody", async || {
        (world.number(followers).await == 0).then_some(())
    })
    .await;
}
