//! Election, trust, drain.

use super::*;
use crate::change::Outcome;

#[test]
fn a_leader_that_cannot_renew_its_lease_stops_sending() {
    let mut bench = Bench::leader();
    let elected = bench.now;
    bench.change([1]);
    let (batch, request) = bench.prepare();
    // Nothing of the session answers any more; the claim's reply comes late.
    let output = bench.relay.handle(
        elected + Duration::from_secs(9),
        Event::Prepared {
            batch,
            claim: Some(ClaimId(1)),
            read: Ok(request.keys.iter().map(document).collect()),
        },
    );
    let sends = |effect: &Effect| matches!(effect, Effect::Write { .. });
    assert!(!output.effects.iter().any(sends), "{:?}", output.effects);
    assert!(output.effects.iter().any(|e| matches!(e, Effect::Abandon)));
    assert_eq!(bench.relay.phase(), Phase::Starting);
}

#[test]
fn a_heartbeat_that_was_rolled_back_does_not_end_the_term() {
    let mut bench = Bench::leader();
    bench.give(Event::Heartbeat(Err(failure(FailureKind::Transient))));
    assert_eq!(bench.relay.phase(), Phase::Leading);
    bench.give(Event::Heartbeat(Err(failure(FailureKind::Fenced))));
    assert_eq!(bench.relay.phase(), Phase::Starting);
    assert!(matches!(bench.open.pop(), Some(Effect::Abandon)));
}

#[test]
fn a_new_leader_doubts_every_claim_that_it_finds() {
    let recovered = Recovered {
        claims: vec![
            (ClaimId(3), SYNC, vec![key(1)]),
            (ClaimId(4), SYNC, vec![key(1), key(2)]),
        ],
        ..Default::default()
    };
    let mut bench = Bench::leading(settings(), recovered);
    assert_eq!(
        claims_of(&bench.settled()),
        [3],
        "a newer claim has its key"
    );
    let elected = bench.now;
    let (request, batch) = bench.next_write();
    assert_eq!(batch.len(), 2);
    bench.answered(request, batch, Outcome::Written);
    assert!(bench.open.is_empty());
    let (request, batch) = bench.next_write();
    assert!(
        bench.now.since(elected) >= Duration::from_secs(190),
        "ttl and window"
    );
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(claims_of(&bench.settled()), [4]);
}

#[test]
fn a_drain_finishes_what_is_in_flight_and_releases() {
    let mut bench = Bench::leader();
    let (request, batch) = bench.sent(1);
    bench.give(Event::Shutdown);
    assert_eq!(bench.relay.phase(), Phase::Draining);
    bench.change([2]);
    assert!(
        bench.open.is_empty(),
        "nothing new begins: {:?}",
        bench.open
    );
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(bench.settled().claims.len(), 1);
    assert!(matches!(bench.open.pop(), Some(Effect::Release)));
    bench.give(Event::Released);
    assert_eq!(bench.relay.phase(), Phase::Done);
}

#[test]
fn a_drain_ends_with_its_grace() {
    let mut bench = Bench::leader();
    bench.sent(1);
    let before = bench.now;
    bench.give(Event::Shutdown);
    bench.until_effect(Duration::from_secs(60));
    assert!(matches!(bench.open.pop(), Some(Effect::Release)));
    assert_eq!(bench.now.since(before), Duration::from_secs(20));
    // And a release that hangs does not hold up the exit.
    bench.until_effect(Duration::from_secs(60));
    assert!(matches!(bench.open.pop(), Some(Effect::Abandon)));
    assert_eq!(bench.relay.phase(), Phase::Done);
}

#[test]
fn a_standby_asks_again_and_a_lost_session_backs_off() {
    let mut bench = Bench::new(settings());
    bench.give(Event::Tick);
    bench.open.clear();
    bench.give(Event::Campaigned(Campaigned::Standby));
    assert_eq!(bench.relay.phase(), Phase::Standby);
    let before = bench.now;
    bench.until_effect(Duration::from_secs(10));
    assert!(matches!(bench.open.pop(), Some(Effect::Campaign)));
    assert!(bench.now.since(before) <= Duration::from_secs(2));
    let mut waits = Vec::new();
    for _ in 0..12 {
        let before = bench.now;
        let failed = failure(FailureKind::Connection);
        bench.give(Event::Campaigned(Campaigned::Failed(failed)));
        bench.until_effect(Duration::from_secs(60));
        assert!(matches!(bench.open.pop(), Some(Effect::Campaign)));
        waits.push(bench.now.since(before));
    }
    assert!(
        waits.iter().max() > Some(&Duration::from_secs(4)),
        "{waits:?}"
    );
}
