//! Walks and lists.

use super::*;
use crate::change::{KvName, Outcome};

#[test]
fn after_a_change_of_identity_the_walk_waits_for_unknown_writes() {
    let recovered = Recovered {
        backfills: vec![backfill(SYNC, IDENTITY_CHANGED)],
        ..Default::default()
    };
    let mut bench = Bench::leading(settings(), recovered);
    let elected = bench.now;
    bench.until_effect(Duration::from_secs(400));
    assert!(matches!(bench.open.pop(), Some(Effect::Walk { .. })));
    assert_eq!(bench.now.since(elected), Duration::from_secs(190));
}

#[test]
fn a_backfill_walks_claims_sweeps_and_ends() {
    let recovered = Recovered {
        new_syncs: vec![SYNC],
        ..Default::default()
    };
    let mut bench = Bench::leading(settings(), recovered);
    assert!(matches!(bench.open.remove(0), Effect::StartBackfill { .. }));
    assert!(matches!(
        bench.open.pop(),
        Some(Effect::Walk { after: None, .. })
    ));
    let keys = vec![key(1), key(2)];
    let result = Ok(Walked {
        keys,
        position: None,
    });
    bench.give(Event::Walked { sync: SYNC, result });
    let (batch, request) = bench.prepare();
    assert_eq!(request.claim, [0, 1]);
    assert_eq!(request.backfill, Some(BackfillStep::EnterKeys { done: 2 }));
    bench.prepared(batch, &request);
    let (request, batch) = bench.write();
    bench.answered(request, batch, Outcome::Written);
    bench.settled();
    assert!(matches!(
        bench.open.pop(),
        Some(Effect::Sweep { cursor: None, .. })
    ));
    // One name is right, one has no rows any more.
    let Rendered::Put(right) = document(&key(1)) else {
        panic!()
    };
    bench.pass(Duration::from_secs(2));
    bench.give(Event::Swept {
        sync: SYNC,
        result: Ok(Swept {
            keys: vec![(key(1), right.hash), (key(9), ContentHash(1))],
            foreign: 3,
            unmade: None,
            next: None,
        }),
    });
    let (batch, request) = bench.prepare();
    assert_eq!(request.backfill, Some(BackfillStep::Done));
    let orphan = Rendered::Delete(KvName::new("[9]").unwrap());
    let read = Ok(vec![document(&key(1)), orphan]);
    let claim = Some(ClaimId(77));
    bench.give(Event::Prepared { batch, claim, read });
    let (_, batch) = bench.write();
    assert_eq!(batch, Batch::Delete(vec![KvName::new("[9]").unwrap()]));
    let done = |notice: &Notice| matches!(notice, Notice::BackfillDone { foreign: 3, .. });
    assert!(bench.notices.iter().any(done));
}

#[test]
fn a_lost_namespace_is_noted_at_once_and_written_anew() {
    let mut bench = Bench::leader();
    let (request, batch) = bench.sent(1);
    bench.answered(request, batch, Outcome::NamespaceGone);
    let Some(Effect::StartBackfill { sync, .. }) = bench.open.pop() else {
        panic!("{:?}", bench.open)
    };
    assert_eq!(sync, SYNC);
    assert!(bench.relay.status(bench.now).syncs[0].hold.is_some());
    bench.until_effect(Duration::from_secs(5));
    while bench.relay.status(bench.now).syncs[0].hold.is_some() {
        bench.until_effect(Duration::from_secs(5));
        match bench.open.remove(0) {
            Effect::Prepare { batch, request } => bench.prepared(batch, &request),
            Effect::Write { request, batch, .. } => {
                bench.answered(request, batch, Outcome::Written);
            }
            Effect::Walk { .. } | Effect::Settle(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let resumed = |notice: &Notice| matches!(notice, Notice::Resumed { .. });
    assert!(bench.notices.iter().any(resumed));
    assert!(bench.relay.status(bench.now).syncs[0].backfill.is_some());
}
