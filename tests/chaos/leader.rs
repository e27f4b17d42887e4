//! Exactly one leads, and who has lost the lease sends nothing.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::{NOTES, Node, waits_for_a_lock};
use crate::support::postgres::connect;
use crate::support::process::{LEADS, STANDS_BY};
use crate::support::proxy::Mode;
use crate::support::world::World;

/// As the tests configure it.
const TTL: Duration = Duration::from_secs(2);
/// What a loaded machine may add.
const SLACK: Duration = Duration::from_secs(8);

/// A leader and a standby.
async fn pair() -> (World, Node, Node) {
    let world = World::start(NOTES).await;
    let leader = Node::start(&world, "first").await;
    leader.daemon.leads().await;
    let standby = Node::start(&world, "second").await;
    standby.daemon.logged(STANDS_BY).await;
    world
        .sql("insert into public.note values (1, 'first')")
        .await;
    world.converges().await;
    (world, leader, standby)
}

#[tokio::test]
async fn a_killed_leader_is_replaced() {
    let (world, mut leader, mut standby) = pair().await;
    for n in 2..=4 {
        world
            .sql(&format!(
                "insert into public.note values ({n}, 'before the kill')"
            ))
            .await;
        let killed = Instant::now();
        leader.replace(&world).await;
        // Whichever is quicker; in the end one leads, and the other knows that.
        world.converges().await;
        assert!(killed.elapsed() < TTL + SLACK, "{:?}", killed.elapsed());
        assert_eq!(world.number("select epoch from pg2kv.lease").await, n);
        if standby.daemon.count(LEADS) > standby.daemon.count("\"stopped\"") {
            leader.daemon.logged(STANDS_BY).await;
            std::mem::swap(&mut leader, &mut standby);
        }
        let lock = "select count(*) from pg_locks where locktype = 'advisory' and granted";
        assert_eq!(world.number(lock).await, 1);
    }
    standby.daemon.stop().await;
    leader.daemon.stop().await;
}

#[tokio::test]
async fn a_frozen_leader_is_released_and_sends_nothing_when_it_wakes() {
    let (world, leader, standby) = pair().await;
    // It is frozen with a claim under way, whose reply it finds when it wakes: nothing is nearer to
    // a send than that.
    let locker = connect(&world.postgres.admin_url()).await;
    locker
        .batch_execute("begin; lock table pg2kv.claim in access exclusive mode")
        .await
        .unwrap();
    world
        .sql("update public.note set text = 'for the frozen one'")
        .await;
    waits_for_a_lock(&world).await;
    leader.daemon.signal(Signal::STOP);
    let frozen = Instant::now();
    let sent = leader.kv.sent();
    locker.batch_execute("commit").await.unwrap();
    standby.daemon.leads().await;
    assert!(frozen.elapsed() < TTL + SLACK, "{:?}", frozen.elapsed());
    world.converges().await;
    world.sql("update public.note set text = 'newer'").await;
    world.converges().await;

    leader.daemon.signal(Signal::CONT);
    leader.daemon.logged(STANDS_BY).await;
    assert_eq!(leader.kv.sent(), sent, "a zombie has sent something");
    assert_eq!(world.number("select epoch from pg2kv.lease").await, 2);
    assert_eq!(standby.daemon.count(STANDS_BY), 1);
    world.converges().await;
    leader.daemon.stop().await;
    standby.daemon.stop().await;
}

#[tokio::test]
async fn a_leader_without_its_network_to_postgres_is_replaced() {
    let (world, leader, standby) = pair().await;
    leader.postgres.set(Mode::Blackhole);
    let lost = Instant::now();
    world
        .sql("update public.note set text = 'only the other one can see this'")
        .await;
    standby.daemon.leads().await;
    assert!(lost.elapsed() < TTL + SLACK, "{:?}", lost.elapsed());
    let sent = leader.kv.sent();
    leader.daemon.logged("no session with Postgres").await;
    world.converges().await;
    leader.postgres.set(Mode::Pass);
    leader.daemon.logged(STANDS_BY).await;
    assert_eq!(
        leader.kv.sent(),
        sent,
        "a leader that lost the lease has sent something"
    );
    leader.daemon.stop().await;
    standby.daemon.stop().await;
}

#[tokio::test]
async fn a_half_open_connection_does_not_hold_a_standby_for_ever() {
    let (world, leader, standby) = pair().await;
    standby.postgres.set(Mode::Blackhole);
    standby.daemon.logged("no session with Postgres").await;
    leader.daemon.stop().await;
    standby.postgres.set(Mode::Reset);
    standby.postgres.set(Mode::Pass);
    standby.daemon.leads().await;
    world
        .sql("update public.note set text = 'by the other one'")
        .await;
    world.converges().await;
    standby.daemon.stop().await;
}
