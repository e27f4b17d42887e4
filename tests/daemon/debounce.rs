//! When a change is written: debounce, the pace of a key, and the mode without a bell.

use std::time::{Duration, Instant};

use pg2kv::emulator::limits::Limits;
use pg2kv::emulator::record::Applied;

use super::{PLAN, timed};
use crate::support::world::{Plan, World};

/// When a key was written.
fn writes(world: &World, key: &str) -> Vec<Applied> {
    let mut history = world.kv.history();
    history.retain(|write| &*write.key == key);
    history
}

#[tokio::test]
async fn a_hot_key_is_written_once_a_second_and_ends_right() {
    let world = World::start(Plan {
        // As they are by default, against the limits of the real service.
        settings: &[
            ("queue.quiet", "100ms"),
            ("queue.max_wait", "1s"),
            ("queue.key_interval", "1s"),
        ],
        limits: Some(Limits::default()),
        ..PLAN
    })
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    let client = world.admin().await;
    let began = Instant::now();
    let mut changes = 0;
    while began.elapsed() < Duration::from_secs(5) {
        changes += 1;
        let upsert = format!(
            "insert into public.note values (1, '{changes}') on conflict (id) do update set text = excluded.text"
        );
        client.batch_execute(&upsert).await.unwrap();
    }
    world.converges().await;
    let expected = format!(r#"{{"text":"{changes}"}}"#);
    assert_eq!(world.value("note:1"), Some(expected));
    let writes = writes(&world, "note:1");
    for pair in writes.windows(2) {
        let apart = pair[1].at - pair[0].at;
        assert!(apart >= Duration::from_millis(990), "{apart:?}");
    }
    // It never was quiet, and was not kept waiting for that.
    assert!(
        (3..=7).contains(&writes.len()),
        "{} writes of {changes} changes",
        writes.len()
    );
    let refused: u64 = world
        .kv
        .requests()
        .iter()
        .filter(|request| request.status == Some(429))
        .count() as u64;
    assert_eq!(refused, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn leading_sends_an_idle_key_at_once_and_debounces_what_follows() {
    let world = World::start(Plan {
        settings: &[
            ("queue.leading", "true"),
            ("queue.quiet", "5s"),
            ("queue.max_wait", "10s"),
        ],
        ..PLAN
    })
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.quiet().await;
    let first = timed(async {
        world
            .sql("insert into public.note values (1, 'first')")
            .await;
        world.has("note:1", Some(r#"{"text":"first"}"#)).await;
    })
    .await;
    assert!(first < Duration::from_millis(4_500), "{first:?}");
    for n in 1..=20 {
        world
            .sql(&format!("update public.note set text = 'change {n}'"))
            .await;
    }
    world.converges().await;
    let writes = writes(&world, "note:1");
    assert_eq!(writes.len(), 2);
    let apart = writes[1].at - writes[0].at;
    assert!(apart >= Duration::from_millis(4_900), "{apart:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_bell_nobody_notifies_and_prepared_transactions_work() {
    let world = World::start(Plan {
        settings: &[
            ("postgres.doorbell", "false"),
            ("postgres.poll_interval", "200ms"),
        ],
        ..PLAN
    })
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.quiet().await;
    for n in 1..=5 {
        world
            .sql(&format!("begin; insert into public.note values ({n}, 'prepared'); prepare transaction 'p{n}'"))
            .await;
        assert_eq!(world.value(&format!("note:{n}")), None);
        world.sql(&format!("commit prepared 'p{n}'")).await;
        world
            .has(&format!("note:{n}"), Some(r#"{"text":"prepared"}"#))
            .await;
    }
    world.converges().await;
    assert_eq!(world.number("select last_value from pg2kv.bell").await, 0);
    assert_eq!(daemon.metric("pg2kv_bell_rings_total").await, Some(0.0));
    daemon.stop().await;
}

#[tokio::test]
async fn a_ring_does_not_wait_for_the_poll() {
    let world = World::start(Plan {
        settings: &[("postgres.poll_interval", "1h")],
        ..PLAN
    })
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    for n in 1..=20 {
        world.quiet().await;
        world
            .sql(&format!("insert into public.note values ({n}, 'rings')"))
            .await;
    }
    world.converges().await;
    daemon.stop().await;
}
