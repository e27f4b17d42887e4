//! When the outbox is fetched.

use super::*;

/// A leader whose fetches the test answers itself.
fn sleeper(settings: Settings) -> (Relay, Mono) {
    let mut relay = Relay::new(settings, 1);
    let now = Mono::from_origin(Duration::from_secs(50));
    relay.handle(now, Event::Tick);
    let output = relay.handle(
        now,
        Event::Campaigned(Campaigned::Elected {
            epoch: Epoch(1),
            began: now,
            recovered: Recovered::default(),
        }),
    );
    assert_eq!(fetches(&output), [FetchMode::Awake]);
    (relay, now)
}

fn fetches(output: &Output) -> Vec<FetchMode> {
    let mode = |effect: &Effect| match effect {
        Effect::Fetch { mode, .. } => Some(*mode),
        _ => None,
    };
    output.effects.iter().filter_map(mode).collect()
}

fn empty(writers: bool) -> Event {
    Event::Fetched(Ok(Fetched {
        writers,
        ..Default::default()
    }))
}

#[test]
fn sleeps_only_after_a_look_for_writers_found_none() {
    let (mut relay, mut now) = sleeper(settings());
    assert_eq!(
        fetches(&relay.handle(now, empty(false))),
        [FetchMode::FallingAsleep]
    );
    for wait in [5, 10, 20, 40, 80, 100, 100] {
        assert!(fetches(&relay.handle(now, empty(true))).is_empty());
        let at = relay.wake_at(now).unwrap();
        assert_eq!(at.since(now), Duration::from_millis(wait));
        now = at;
        assert_eq!(
            fetches(&relay.handle(now, Event::Tick)),
            [FetchMode::FallingAsleep]
        );
    }
    assert!(fetches(&relay.handle(now, empty(false))).is_empty());
    assert!(
        relay.wake_at(now).unwrap().since(now) > Duration::from_secs(2),
        "asleep"
    );
    assert_eq!(fetches(&relay.handle(now, Event::Rung)), [FetchMode::Awake]);
}

#[test]
fn a_ring_during_a_fetch_is_not_lost() {
    let (mut relay, now) = sleeper(settings());
    relay.handle(now, empty(false));
    assert!(
        fetches(&relay.handle(now, Event::Rung)).is_empty(),
        "one fetch at a time"
    );
    assert_eq!(
        fetches(&relay.handle(now, empty(false))),
        [FetchMode::Awake]
    );
}

#[test]
fn without_a_doorbell_the_bell_is_never_set() {
    let (mut relay, mut now) = sleeper(Settings {
        doorbell: false,
        ..settings()
    });
    let start = now;
    assert!(fetches(&relay.handle(now, empty(false))).is_empty());
    let mut polls = 0;
    while now.since(start) < Duration::from_secs(120) {
        now = relay.wake_at(now).unwrap();
        let output = relay.handle(now, Event::Tick);
        for effect in &output.effects {
            if matches!(effect, Effect::Heartbeat(_)) {
                relay.handle(now, Event::Heartbeat(Ok(now)));
            }
        }
        for mode in fetches(&output) {
            assert_eq!(mode, FetchMode::Awake);
            relay.handle(now, empty(false));
            polls += 1;
        }
    }
    assert!((3..=6).contains(&polls), "{polls}");
}

#[test]
fn a_full_queue_leaves_the_rest_in_the_outbox() {
    let mut settings = settings();
    settings.queue.keys_max = 10;
    settings.backfill_chunk = 5;
    let mut bench = Bench::leading(settings, Recovered::default());
    bench.change(0..50);
    assert_eq!(bench.outbox.len(), 40);
    assert_eq!(bench.relay.status(bench.now).queue_keys, 10);
    let (batch, request) = bench.prepare();
    bench.prepared(batch, &request);
    let (request, batch) = bench.write();
    bench.answered(request, batch, Outcome::Written);
    bench.open.clear();
    bench.until_effect(Duration::from_secs(5));
    assert_eq!(bench.outbox.len(), 30);
}

/// A page of the outbox, each key of this sync, and more is to come.
fn page(relay: &mut Relay, now: Mono, keys: &[(u16, std::ops::Range<u32>)]) -> Vec<(u16, usize)> {
    let changes = keys.iter().flat_map(|(sync, keys)| {
        keys.clone().map(|n| Change {
            id: OutboxId(i64::from(*sync) * 1_000_000 + i64::from(n)),
            sync: SyncId(*sync),
            what: Changed::Key(key(n)),
            age: Duration::from_secs(60),
        })
    });
    let output = relay.handle(
        now,
        Event::Fetched(Ok(Fetched {
            changes: changes.collect(),
            more: true,
            ..Default::default()
        })),
    );
    assert_eq!(fetches(&output), [FetchMode::Awake]);
    let wake_at = relay.wake_at(now);
    assert!(wake_at > Some(now), "nothing can be done before an answer");
    prepared(&output)
}

/// Sync and keys of each batch.
fn prepared(output: &Output) -> Vec<(u16, usize)> {
    let size = |effect: &Effect| match effect {
        Effect::Prepare { request, .. } => Some((request.sync.0, request.keys.len())),
        _ => None,
    };
    output.effects.iter().filter_map(size).collect()
}

#[test]
fn a_request_waits_for_the_page_that_fills_it() {
    let (mut relay, now) = sleeper(settings());
    assert_eq!(
        page(&mut relay, now, &[(0, 0..60)]),
        [(0, 60)],
        "nothing is under way"
    );
    assert_eq!(page(&mut relay, now, &[(0, 60..120)]), []);
    assert_eq!(page(&mut relay, now, &[(0, 120..180)]), [(0, 100)]);
    // The last page: what is left goes at once.
    assert_eq!(prepared(&relay.handle(now, empty(false))), [(0, 20)]);
}

#[test]
fn a_sync_waits_for_one_page_and_no_longer() {
    let (mut relay, now) = sleeper(settings());
    assert_eq!(page(&mut relay, now, &[(0, 0..60)]), [(0, 60)]);
    let both = [(0, 60..100), (1, 0..1)];
    assert_eq!(page(&mut relay, now, &both), []);
    assert_eq!(page(&mut relay, now, &[(0, 100..120)]), [(0, 60), (1, 1)]);
}

#[test]
fn a_backfill_lets_changes_go_first_that_wait_for_a_page() {
    let (mut relay, now) = sleeper(settings());
    assert_eq!(page(&mut relay, now, &[(0, 0..60)]), [(0, 60)]);
    assert_eq!(page(&mut relay, now, &[(0, 60..90)]), []);
    let sync = SyncId(1);
    let result = Ok(backfill(sync, "new sync"));
    let output = relay.handle(now, Event::BackfillStarted { sync, result });
    assert!(output.effects.is_empty(), "{:?}", output.effects);
    assert!(relay.wake_at(now) > Some(now));
    let output = relay.handle(now, empty(false));
    assert_eq!(prepared(&output), [(0, 30)]);
    let walks = |effect: &&Effect| matches!(effect, Effect::Walk { .. });
    assert_eq!(output.effects.iter().filter(walks).count(), 1);
}

#[test]
fn rings_for_nothing_are_bounded_and_others_are_not() {
    let (mut relay, mut now) = sleeper(settings());
    relay.handle(now, empty(false));
    relay.handle(now, empty(false));
    let mut idle = 0;
    for _ in 0..1_000 {
        now = now + Duration::from_millis(1);
        let mut out = fetches(&relay.handle(now, Event::Rung));
        while let Some(mode) = out.pop() {
            idle += u32::from(mode == FetchMode::Awake);
            out = fetches(&relay.handle(now, empty(false)));
        }
    }
    assert!((50..=75).contains(&idle), "{idle} fetches in a second");
    let at = relay.wake_at(now).unwrap();
    assert!(
        at.since(now) <= Duration::from_millis(20),
        "a ring waits so long at most"
    );
    now = at;
    relay.handle(now, Event::Tick);
    for id in 0..200 {
        relay.handle(now, Event::Fetched(Ok(changed(id))));
        now = now + Duration::from_millis(1);
        assert_eq!(
            fetches(&relay.handle(now, Event::Rung)),
            [FetchMode::Awake],
            "writers that have something to say are heard at once"
        );
    }
}

/// What a fetch brings after a change.
fn changed(id: i64) -> Fetched {
    let change = Change {
        id: OutboxId(id),
        sync: SyncId(0),
        what: Changed::Key(Key::new("[1]")),
        age: Duration::ZERO,
    };
    Fetched {
        changes: vec![change],
        ..Default::default()
    }
}

#[test]
fn a_full_notification_queue_is_polled_until_it_is_not() {
    let (mut relay, mut now) = sleeper(settings());
    relay.handle(now, empty(false));
    let looked = |full| {
        Event::Fetched(Ok(Fetched {
            notify_queue_full: Some(full),
            ..Default::default()
        }))
    };
    let out = relay.handle(now, looked(true));
    assert!(
        out.notices
            .iter()
            .any(|notice| matches!(notice, Notice::NotifyQueue { full: true }))
    );
    assert!(relay.status(now).notify_queue_full);
    for _ in 0..3 {
        let at = relay.wake_at(now).unwrap();
        assert_eq!(at.since(now), Duration::from_millis(100));
        now = at;
        assert_eq!(
            fetches(&relay.handle(now, Event::Tick)),
            [FetchMode::FallingAsleep]
        );
        assert!(relay.handle(now, looked(true)).notices.is_empty());
    }
    now = relay.wake_at(now).unwrap();
    relay.handle(now, Event::Tick);
    let out = relay.handle(now, looked(false));
    assert!(
        out.notices
            .iter()
            .any(|notice| matches!(notice, Notice::NotifyQueue { full: false }))
    );
    assert!(
        relay.wake_at(now).unwrap().since(now) > Duration::from_secs(2),
        "asleep"
    );
}
