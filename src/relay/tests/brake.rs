//! Deletes that are held.

use super::*;
use crate::ledger::DeleteFacts;

/// More than 10 pairs and more than 30 % of 20 keys.
fn braked() -> Settings {
    let mut settings = settings();
    settings.brake.count = 10;
    settings
}

fn facts(approved_for: Option<Duration>) -> Vec<DeleteFacts> {
    vec![DeleteFacts {
        sync: SYNC,
        keys: Some(20),
        approved_for,
        held: false,
        lately: Vec::new(),
    }]
}

fn recovered() -> Recovered {
    Recovered {
        deletes: facts(None),
        ..Default::default()
    }
}

impl Bench {
    /// The next batch is claimed, and its keys have no rows.
    fn rows_are_gone(&mut self) -> ClaimId {
        self.until_effect(Duration::from_secs(2));
        let (batch, request) = self.prepare();
        let claim = (!request.claim.is_empty()).then_some(claim_of(batch));
        let read = Ok(request.keys.iter().map(deletion).collect());
        self.give(Event::Prepared { batch, claim, read });
        claim_of(batch)
    }

    fn approve(&mut self, time: Option<Duration>) {
        let (at, facts) = (self.now, facts(time));
        self.give(Event::DeletesAsked { at, facts });
    }

    fn held(&mut self) -> Option<(usize, u64)> {
        let status = self.relay.status(self.now);
        let held = status.syncs[0].deletes_held?;
        Some((held.keys, held.ahead))
    }
}

fn deletion(key: &Key) -> Rendered {
    Rendered::Delete(KvName::new(key.as_str()).unwrap())
}

#[test]
fn too_many_deletes_are_held_while_writes_go_on() {
    let mut bench = Bench::leading(braked(), recovered());
    bench.change(0..15);
    bench.rows_are_gone();
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    assert_eq!(bench.held(), Some((15, 0)));
    let status = bench.relay.status(bench.now);
    assert_eq!((status.in_flight_keys, status.claims), (0, 1));

    let (request, batch) = bench.sent(100);
    assert!(matches!(batch, Batch::Put(_)));
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(claims_of(&bench.settled()), [2], "the other claim stays");

    bench.approve(Some(Duration::from_secs(60)));
    assert_eq!(bench.held(), None);
    let (batch, request) = bench.prepare();
    assert_eq!(request.claim, [0_usize; 0], "its claim holds them already");
    let read = Ok(request.keys.iter().map(deletion).collect());
    bench.give(Event::Prepared {
        batch,
        claim: None,
        read,
    });
    let (request, batch) = bench.write();
    assert_eq!(batch.len(), 15);
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(claims_of(&bench.settled()), [1]);
}

#[test]
fn held_keys_do_not_wake_the_loop() {
    let mut bench = Bench::leading(braked(), recovered());
    bench.change(0..15);
    bench.rows_are_gone();
    let mut ticks = 0;
    let end = bench.now + Duration::from_secs(600);
    while let Some(at) = bench.relay.wake_at(bench.now).filter(|at| *at <= end) {
        bench.now = at.max(bench.now);
        bench.give(Event::Tick);
        ticks += 1;
    }
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    // Heartbeats and polls.
    assert!(ticks < 600, "{ticks} ticks in ten minutes");
    assert_eq!(bench.held(), Some((15, 0)));
}

#[test]
fn a_row_that_is_there_again_is_written() {
    let mut bench = Bench::leading(braked(), recovered());
    bench.change(0..15);
    bench.rows_are_gone();
    bench.change(0..15);
    let (request, batch) = bench.next_write();
    assert!(matches!(batch, Batch::Put(_)));
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(
        claims_of(&bench.settled()),
        [1],
        "the newer claim holds them"
    );
    assert_eq!(claims_of(&bench.settled()), [2]);
    assert_eq!(bench.held(), None, "nothing is left to be deleted");
}

#[test]
fn a_new_leader_holds_what_it_finds_in_claims() {
    let recovered = Recovered {
        claims: vec![(ClaimId(7), SYNC, (0..15).map(key).collect())],
        ..recovered()
    };
    let mut bench = Bench::leading(braked(), recovered);
    bench.rows_are_gone();
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    assert_eq!(bench.held(), Some((15, 0)));
}

#[test]
fn a_retry_of_a_delete_counts_once() {
    let mut bench = Bench::leading(braked(), recovered());
    bench.change(0..10);
    bench.rows_are_gone();
    for _ in 0..3 {
        let (request, batch) = bench.write();
        assert_eq!(batch.len(), 10);
        bench.answered(request, batch, Outcome::Throttled(None));
        bench.until_effect(Duration::from_secs(60));
        let (batch, request) = bench.prepare();
        let read = Ok(request.keys.iter().map(deletion).collect());
        bench.give(Event::Prepared {
            batch,
            claim: None,
            read,
        });
    }
    assert_eq!(bench.held(), None);
}

#[test]
fn a_sweep_that_would_find_too_many_orphans_waits() {
    let mut bench = Bench::leading(braked(), recovered());
    bench.next_id += 1;
    bench.outbox.push_back(Change {
        id: OutboxId(bench.next_id),
        sync: SYNC,
        what: Changed::Everything,
        age: Duration::ZERO,
    });
    bench.give(Event::Rung);
    assert!(matches!(bench.open.remove(0), Effect::StartBackfill { .. }));
    assert!(matches!(bench.open.pop(), Some(Effect::Walk { .. })));
    // A table that was emptied.
    let result = Ok(Walked {
        keys: Vec::new(),
        position: None,
    });
    bench.give(Event::Walked { sync: SYNC, result });
    let Some(Effect::Advance { step, .. }) = bench.open.pop() else {
        panic!("{:?}", bench.open)
    };
    let result = Ok(step);
    bench.give(Event::Advanced { sync: SYNC, result });
    assert_eq!(bench.held(), Some((0, 20)));
    bench.until_effect(Duration::from_secs(60));
    assert!(bench.open.is_empty(), "{:?}", bench.open);

    bench.approve(Some(Duration::from_secs(60)));
    assert!(matches!(bench.open.pop(), Some(Effect::Sweep { .. })));
}

#[test]
fn a_new_leader_holds_the_sweep_too() {
    let mut swept = backfill(SYNC, "resync");
    swept.phase = BackfillPhase::Keys;
    let recovered = Recovered {
        backfills: vec![swept],
        ..recovered()
    };
    let mut bench = Bench::leading(braked(), recovered);
    bench.until_effect(Duration::from_secs(60));
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    assert_eq!(bench.held(), Some((0, 20)));
}

#[test]
fn a_new_leader_begins_held_and_opens_only_once_what_it_found_was_looked_at() {
    let mut left = facts(None);
    left[0].held = true;
    let recovered = Recovered {
        claims: vec![(ClaimId(7), SYNC, (0..5).map(key).collect())],
        deletes: left,
        ..Default::default()
    };
    let mut bench = Bench::leading(braked(), recovered.clone());
    assert_eq!(bench.held(), Some((0, 0)), "from the start");
    bench.rows_are_gone();
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    assert_eq!(bench.held(), Some((5, 0)), "few as they are");

    // The rows are there again.
    let mut bench = Bench::leading(braked(), recovered);
    let (request, batch) = bench.next_write();
    assert!(matches!(batch, Batch::Put(_)));
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(bench.held(), Some((0, 0)), "its claim is in doubt");
    bench.until_effect(Duration::from_secs(600));
    let (request, batch) = bench.next_write();
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(claims_of(&bench.settled()), [7]);
    assert_eq!(bench.held(), None);
}

#[test]
fn deletes_count_across_restarts() {
    let mut bench = Bench::leading(braked(), recovered());
    bench.change(0..8);
    bench.rows_are_gone();
    let (request, batch) = bench.write();
    bench.answered(request, batch, Outcome::Written);
    let settled = bench.settled();
    assert_eq!(settled.deleted, [(SYNC, vec![(Duration::ZERO, 8)])]);

    let mut left = facts(None);
    left[0].lately = settled.deleted[0].1.clone();
    let recovered = Recovered {
        deletes: left,
        ..Default::default()
    };
    let mut bench = Bench::leading(braked(), recovered);
    bench.change(8..11);
    bench.rows_are_gone();
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    assert_eq!(bench.held(), Some((3, 0)));
}
