//! The schema is upgraded under writers and daemons that go on.
//!
//! There is one build of the program here, and no release before it. The two steps in `fixtures` are made
//! up: the first goes on serving this program, the second does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pg2kv::sql_kit::VERSION;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;

use super::PLAN;
use crate::support::load::{SYNCS, TABLES, Writer};
use crate::support::postgres::connect;
use crate::support::process::{self, Process};
use crate::support::wait::{self, say, seed};
use crate::support::world::{Plan, World, describe};

/// A step that adds.
const EXPAND: &str = include_str!("../fixtures/expand.sql");
/// A step that takes away.
const CONTRACT: &str = include_str!("../fixtures/contract.sql");

/// Clients that write at the same time.
const WRITERS: u64 = 3;
/// Transactions of theirs after which something has surely happened meanwhile.
const WHILE: u64 = 40;

const LIVE: Plan = Plan {
    sql: TABLES,
    syncs: SYNCS,
    // A leader looks once a minute: in this test it must hear of a step that bars it from the step.
    settings: &[("lease.ttl", "2s"), ("postgres.check_interval", "10m")],
    limits: None,
};

/// Clients that write until they are told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    /// The longest transaction since it was last asked for.
    longest_micros: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Writer>>,
}

impl Writers {
    async fn start(world: &World, seed: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (transactions, longest_micros) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let mut tasks = Vec::new();
        for number in 0..WRITERS {
            let client = connect(&world.postgres.admin_url()).await;
            // They meet each other too, and that is not what is measured.
            let soon = "set deadlock_timeout = '20ms'";
            client.batch_execute(soon).await.unwrap();
            let mut writer = Writer::new(seed.wrapping_add(number), false);
            let stop = Arc::clone(&stop);
            let (count, longest) = (Arc::clone(&transactions), Arc::clone(&longest_micros));
            tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    // Panics on any error that is not another writer's doing.
                    writer.transaction(&client).await;
                    let took = u64::try_from(began.elapsed().as_micros()).unwrap();
                    longest.fetch_max(took, Ordering::Relaxed);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                writer
            }));
        }
        Self {
            stop,
            transactions,
            longest_micros,
            tasks,
        }
    }

    /// Waits until they have done some more, and says how long they had to wait at most since the last
    /// time.
    async fn go_on(&self, meanwhile: &str) {
        let before = self.transactions.load(Ordering::Relaxed);
        wait::until("writers to go on", async || {
            let failed = self.tasks.iter().any(JoinHandle::is_finished);
            assert!(!failed, "a transaction failed, see above");
            (self.transactions.load(Ordering::Relaxed) >= before + WHILE).then_some(())
        })
        .await;
        let longest = Duration::from_micros(self.longest_micros.swap(0, Ordering::Relaxed));
        say(&format!(
            "{meanwhile}: longest transaction of a writer {longest:?}"
        ));
    }

    async fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut changes = 0;
        for task in std::mem::take(&mut self.tasks) {
            changes += task.await.unwrap().changes;
        }
        let transactions = self.transactions.load(Ordering::Relaxed);
        say(&format!(
            "{transactions} transactions, {changes} rows changed"
        ));
    }
}

/// After a failed assertion too: a writer without a server would never let go of its thread.
impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Runs a step; once more where a writer kept a lock for too long, as its message says.
async fn run(world: &World, step: &str) {
    let admin = world.admin().await;
    wait::until("a step to get its locks", async || {
        let Err(error) = admin.batch_execute(step).await else {
            return Some(());
        };
        let in_the_way = error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE);
        assert!(in_the_way, "{}", describe(&error));
        admin.batch_execute("rollback").await.unwrap();
        None
    })
    .await;
}

/// Waits until a daemon says that it cannot work with the schema, and why.
async fn barred(daemon: &Process, why: &str) {
    wait::until(&format!("/readyz to tell: {why}"), async || {
        let (status, text) = daemon.get("/readyz").await;
        let told = status == 503 && text.starts_with("not ready: ") && text.contains(why);
        (told && text.contains("  help: ")).then_some(())
    })
    .await;
    daemon.logged(why).await;
    assert_eq!(daemon.metric("pg2kv_leader").await, Some(0.0));
}

/// Waits until all are ready and one of them leads; returns which.
async fn one_leads(daemons: &[&Process]) -> usize {
    wait::until("one daemon to lead and all to be ready", async || {
        let mut leader = None;
        for (index, daemon) in daemons.iter().enumerate() {
            if daemon.get("/readyz").await.0 != 200 {
                return None;
            }
            if daemon.metric("pg2kv_leader").await == Some(1.0) {
                leader = Some(index);
            }
        }
        leader
    })
    .await
}

/// Waits until a row that is written now is in KV.
async fn flows(world: &World, id: u32) {
    let row = format!("insert into public.item values ({id}, 'flows', 1)");
    world.sql(&row).await;
    wait::until("a change to arrive", async || {
        world.value(&format!("item:{id}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_live_database_is_upgraded_under_writers_and_daemons() {
    let world = World::start(LIVE).await;
    let writers = Writers::start(&world, seed("PG2KV_UPGRADE_SEED")).await;
    let left = world.daemon_with("left", &world.settings());
    let right = world.daemon_with("right", &world.settings());
    writers.go_on("before").await;
    let (leader, standby) = match one_leads(&[&left, &right]).await {
        0 => (left, right),
        _ => (right, left),
    };
    flows(&world, 9001).await;

    // A step that adds: whoever leads goes on.
    let leads = leader.count(process::LEADS);
    run(&world, EXPAND).await;
    writers
        .go_on("a step that adds a column to the outbox")
        .await;
    let newer = f64::from(VERSION) + 1.0;
    wait::until("the leader to have seen the new version", async || {
        (leader.metric("pg2kv_schema_version").await == Some(newer)).then_some(())
    })
    .await;
    flows(&world, 9002).await;
    assert_eq!(leader.count(process::LEADS), leads, "it never stopped");
    assert_eq!(one_leads(&[&leader, &standby]).await, 0);

    // The daemons are replaced one by one.
    standby.stop().await;
    let new_standby = world.daemon_with("new_standby", &world.settings());
    new_standby.logged(process::STANDS_BY).await;
    leader.stop().await;
    new_standby.leads().await;
    let other = world.daemon_with("other", &world.settings());
    other.logged(process::STANDS_BY).await;
    flows(&world, 9003).await;

    // A step that takes away: those that it no longer serves stop at once, and lose nothing.
    run(&world, CONTRACT).await;
    writers.go_on("a step that fences the leader").await;
    let why =
        format!("serves programs of version {newer} or later; this one is of version {VERSION}");
    for daemon in [&new_standby, &other] {
        barred(daemon, &why).await;
    }
    // A newer program would take over now. This one does once the schema says that it may.
    world
        .sql(&format!("update pg2kv.meta set serves = {VERSION}"))
        .await;
    one_leads(&[&new_standby, &other]).await;
    flows(&world, 9004).await;
    writers.finish().await;
    world.converges().await;
    new_standby.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_leader_stops_at_its_next_look_where_the_schema_is_another() {
    let world = World::start(Plan {
        settings: &[("postgres.check_interval", "200ms")],
        ..PLAN
    })
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    // Nothing but the number tells: its sessions go on.
    world
        .sql("update pg2kv.meta set schema_version = 99, serves = 99")
        .await;
    barred(&daemon, "serves programs of version 99").await;
    world
        .sql("insert into public.note values (0, 'waits')")
        .await;
    let says = format!("update pg2kv.meta set schema_version = {VERSION}, serves = 1");
    world.sql(&says).await;
    daemon.logged_times(process::LEADS, 2).await;
    world.converges().await;
    assert!(world.value("note:0").is_some());
    daemon.stop().await;
}
