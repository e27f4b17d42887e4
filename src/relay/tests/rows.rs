//! Rows that cannot be read, and values that no batch has room for.

use super::*;
use crate::change::KV_VALUE_MAX_BYTES;

/// Plays the ledger and KV until nothing is open: reads fail with `kind` if they have a key of `bad` in
/// them. Returns how many pairs were written, and the dead letters.
fn play(bench: &mut Bench, bad: &[u32], kind: FailureKind) -> (usize, usize) {
    let (mut written, mut dead) = (0, 0);
    while !bench.open.is_empty() {
        for effect in std::mem::take(&mut bench.open) {
            match effect {
                Effect::Prepare { batch, request } => {
                    if bad.iter().any(|bad| request.keys.contains(&key(*bad))) {
                        bench.read_fails(batch, &request, kind);
                    } else {
                        bench.prepared(batch, &request);
                    }
                }
                Effect::Write { request, batch, .. } => {
                    written += batch.len();
                    bench.answered(request, batch, Outcome::Written);
                }
                Effect::Settle(request) => {
                    dead += request.dead.len();
                    bench.give(Event::Settled(Ok(())));
                }
                other => panic!("{other:?}"),
            }
        }
        bench.until_effect(Duration::from_millis(100));
    }
    (written, dead)
}

#[test]
fn a_slow_row_is_found_by_halves_and_tried_again() {
    let mut bench = Bench::leader();
    bench.change(0..32);
    bench.until_effect(Duration::from_secs(1));
    assert_eq!(play(&mut bench, &[11], FailureKind::RowTransient), (31, 0));
    bench.until_effect(settings().backoff.max * 2);
    assert_eq!(play(&mut bench, &[], FailureKind::Row), (1, 0));
}

#[test]
fn rows_that_all_fail_hold_their_sync() {
    let mut bench = Bench::leader();
    bench.change(0..64);
    bench.until_effect(Duration::from_secs(1));
    let bad: Vec<u32> = (0..64).collect();
    let (written, dead) = play(&mut bench, &bad, FailureKind::Row);
    assert_eq!(written, 0);
    assert!((20..64).contains(&dead), "{dead} dead letters");
    let status = bench.relay.status(bench.now);
    assert_eq!(
        status.syncs[0].hold.as_ref().unwrap().0,
        HoldReason::Relation
    );
    assert!(status.syncs[1].hold.is_none());
}

#[test]
fn a_value_that_no_batch_has_room_for_goes_alone() {
    let mut bench = Bench::leader();
    bench.change(0..10);
    bench.until_effect(Duration::from_secs(1));
    let (batch, request) = bench.prepare();
    let claim = Some(claim_of(batch));
    let rendered = request.keys.iter().map(|read| match read {
        large if *large == key(3) || *large == key(4) => Rendered::Large,
        other => document(other),
    });
    let read = Ok(rendered.collect());
    bench.give(Event::Prepared { batch, claim, read });
    let (small, pairs) = bench.write();
    assert_eq!(pairs.len(), 8);
    // There is no room beside another request: only once that is back.
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    bench.answered(small, pairs, Outcome::Written);
    for _ in 0..2 {
        let (batch, request) = bench.prepare();
        assert_eq!(
            (request.keys.len(), request.max_bytes),
            (1, KV_VALUE_MAX_BYTES)
        );
        assert!(
            bench
                .open
                .iter()
                .all(|open| !matches!(open, Effect::Prepare { .. }))
        );
        bench.prepared(batch, &request);
        let (request, pairs) = bench.write();
        bench.answered(request, pairs, Outcome::Written);
    }
    assert_eq!(bench.settled().claims.len(), 1);
}
