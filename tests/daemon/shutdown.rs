//! How it ends: what is in flight is finished, the lease is given back, and a second signal is final.

use std::time::{Duration, Instant};

use pg2kv::emulator::faults::{Fault, Reply};
use pg2kv::emulator::route::Operation;
use pg2kv::throwaway::Stop;
use rustix::process::Signal;

use super::{PLAN, bulk_writes, timed, world};
use crate::support::process::{LEADS, STANDS_BY};
use crate::support::wait;
use crate::support::world::{Plan, World};

/// Well below the lease and the grace, 10 s each, and what a loaded machine may need all the same.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_a_standby_takes_over() {
    let world = world().await;
    let mut leader = world.daemon();
    leader.leads().await;
    let standby = world.daemon_with("standby", &world.settings());
    standby.logged(STANDS_BY).await;
    world
        .kv
        .faults()
        .add(
            Fault::delay(Duration::from_millis(1_500))
                .on_operation(Operation::BulkWrite)
                .times(1),
        )
        .unwrap();
    world
        .sql("insert into public.note values (1, 'in flight')")
        .await;
    bulk_writes(&world, 1).await;

    leader.signal(Signal::TERM);
    leader.logged("stopping: finishing what is in flight").await;
    wait::until("/readyz to say that it stops", async || {
        let (status, body) = leader.get("/readyz").await;
        (status == 503 && body.starts_with("stopping")).then_some(())
    })
    .await;
    // The row is committed while the leader drains, so the standby has to bring it.
    world
        .sql("insert into public.note values (2, 'for the next one')")
        .await;
    let status = leader.ended().await;
    let gone = Instant::now();
    assert!(status.success(), "{status}");
    // The last lines may still be on their way from the pipe.
    leader.logged("\"stopped\"").await;
    assert_eq!(
        world.value("note:1").as_deref(),
        Some(r#"{"text":"in flight"}"#)
    );
    assert_eq!(world.number("select count(*) from pg2kv.claim where 'note' = sync and 1 = any (select (unnest(keys)::jsonb ->> 0)::int)").await, 0);
    standby.leads().await;
    assert!(gone.elapsed() < SOON, "{:?}", gone.elapsed());
    world.converges().await;
    assert_eq!(standby.count(LEADS), 1);
    standby.stop().await;
}

#[tokio::test]
async fn a_second_signal_exits_at_once_and_loses_nothing() {
    let world = world().await;
    let mut daemon = world.daemon();
    daemon.leads().await;
    world
        .kv
        .faults()
        .add(Fault::new(Reply::Hang).on_operation(Operation::BulkWrite))
        .unwrap();
    world
        .sql("insert into public.note values (1, 'in flight')")
        .await;
    bulk_writes(&world, 1).await;
    daemon.signal(Signal::TERM);
    daemon.logged("stopping: finishing what is in flight").await;
    daemon.signal(Signal::INT);
    let mut code = None;
    let took = timed(async { code = daemon.ended().await.code() }).await;
    assert_eq!(code, Some(1));
    assert!(took < SOON, "{took:?}");
    assert_eq!(world.number("select count(*) from pg2kv.claim").await, 1);

    world.kv.faults().clear();
    let next = world.daemon();
    world.converges().await;
    next.stop().await;
}

#[tokio::test]
async fn an_idle_daemon_or_one_without_postgres_stops_at_once() {
    let mut world = world().await;
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = world.daemon();
        daemon.leads().await;
        world.quiet().await;
        daemon.signal(signal);
        let took = timed(async { assert!(daemon.ended().await.success()) }).await;
        assert!(took < SOON, "{took:?}");
    }
    world.stop_postgres(Stop::Fast).await;
    let mut daemon = world.daemon();
    daemon.logged("no session with Postgres").await;
    daemon.signal(Signal::TERM);
    let took = timed(async { assert!(daemon.ended().await.success()) }).await;
    assert!(took < SOON, "{took:?}");
}

#[tokio::test]
async fn what_does_not_finish_within_the_grace_is_left_to_the_next() {
    let world = World::start(Plan {
        settings: &[("kv.request_timeout", "30s")],
        ..PLAN
    })
    .await;
    let mut settings = world.settings();
    settings.insert("shutdown.grace".to_owned(), "500ms".to_owned());
    let mut daemon = world.daemon_with("short", &settings);
    daemon.leads().await;
    world
        .kv
        .faults()
        .add(Fault::new(Reply::Hang).on_operation(Operation::BulkWrite))
        .unwrap();
    world
        .sql("insert into public.note values (1, 'in flight')")
        .await;
    bulk_writes(&world, 1).await;
    daemon.signal(Signal::TERM);
    let took = timed(async { assert!(daemon.ended().await.success()) }).await;
    assert!(took < SOON, "{took:?}");
    world.kv.faults().clear();
    let next = world.daemon();
    world.converges().await;
    next.stop().await;
}
