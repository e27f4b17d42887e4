//! What each answer of KV and of the ledger leads to.

use super::*;
use crate::change::{AmbiguousReason, NotSentReason, Outcome, Poison, PoisonReason, RateLimit};

#[test]
fn a_written_key_is_settled_and_not_written_again() {
    let mut bench = Bench::leader();
    let (request, batch) = bench.sent(1);
    assert_eq!(batch.len(), 1);
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(bench.settled().claims.len(), 1);
    bench.until_effect(Duration::from_secs(300));
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    // The same content once more costs no write.
    bench.change([1]);
    bench.until_effect(Duration::from_secs(5));
    let (batch, request) = bench.prepare();
    bench.prepared(batch, &request);
    assert_eq!(claims_of(&bench.settled()), [claim_of(batch).0]);
    assert!(bench.open.is_empty());
}

#[test]
fn few_keys_are_divided_while_there_are_requests_in_plenty() {
    let mut settings = settings();
    settings.queue.quiet = Duration::from_millis(100);
    settings.pairs_max = 10_000;
    settings.fetch_max = 6_000;
    let batches = |bench: &mut Bench, keys: std::ops::Range<u32>| -> Vec<usize> {
        bench.change(keys);
        bench.until_effect(Duration::from_secs(5));
        let sizes = bench.open.drain(..).filter_map(|effect| match effect {
            Effect::Prepare { request, .. } => Some(request.keys.len()),
            _ => None,
        });
        sizes.collect()
    };
    let mut bench = Bench::leading(settings.clone(), Recovered::default());
    assert_eq!(batches(&mut bench, 0..5_000), [1_250; 4]);
    let mut bench = Bench::leading(settings.clone(), Recovered::default());
    assert_eq!(batches(&mut bench, 0..2_500), [1_000, 1_000, 500]);

    // More is to come, and would go in requests that are less than full.
    for (more, sizes) in [(true, vec![5_000]), (false, vec![1_250; 4])] {
        let mut settings = settings.clone();
        settings.queue.quiet = Duration::ZERO;
        let mut bench = Bench::leading(settings, Recovered::default());
        bench.more = more;
        assert_eq!(batches(&mut bench, 0..5_000), sizes, "{more}");
    }

    // Half of the budget is used.
    settings.budget.requests_per_window = 2;
    settings.budget.reserve_requests = 0;
    let mut bench = Bench::leading(settings, Recovered::default());
    let (request, batch) = bench.sent(0);
    bench.answered(request, batch, Outcome::Written);
    bench.settled();
    assert_eq!(batches(&mut bench, 1..5_001), [5_000]);
}

#[test]
fn nothing_but_proof_settles() {
    let doubtful = [
        AmbiguousReason::Timeout,
        AmbiguousReason::Broken,
        AmbiguousReason::ServerError,
        AmbiguousReason::EdgeError,
        AmbiguousReason::BadReply,
    ]
    .map(Outcome::Ambiguous);
    let plain = [
        Outcome::NotSent(NotSentReason::Dns),
        Outcome::NotSent(NotSentReason::Connect),
        Outcome::NotSent(NotSentReason::Tls),
        Outcome::NotSent(NotSentReason::Fenced),
        Outcome::Throttled(None),
        Outcome::Throttled(Some(Duration::from_secs(7))),
        Outcome::Unauthorized,
        Outcome::NamespaceGone,
        Outcome::QuotaExhausted,
        Outcome::Unexpected,
    ];
    let doubts = doubtful.into_iter().map(|outcome| (outcome, true));
    for (outcome, doubtful) in doubts.chain(plain.map(|outcome| (outcome, false))) {
        let mut bench = Bench::leader();
        let (request, batch) = bench.sent(1);
        bench.answered(request, batch, outcome.clone());
        let settled = bench.open.iter().any(|e| matches!(e, Effect::Settle(_)));
        assert!(!settled, "{outcome:?}");
        let prepares = |effect: &Effect| matches!(effect, Effect::Prepare { .. });
        bench.open.retain(prepares);
        while bench.open.is_empty() {
            bench.until_effect(Duration::from_secs(3_700));
            bench.open.retain(prepares);
        }
        let (batch, again) = bench.prepare();
        assert!(again.claim.is_empty(), "the claim still holds: {outcome:?}");
        bench.prepared(batch, &again);
        let (request, batch) = bench.write();
        let sent_at = bench.now;
        bench.answered(request, batch, Outcome::Written);
        if doubtful {
            assert!(bench.open.is_empty(), "{outcome:?}: {:?}", bench.open);
            let (request, batch) = bench.next_write();
            assert!(
                bench.now.since(sent_at) > Duration::from_secs(170),
                "{outcome:?}"
            );
            bench.answered(request, batch, Outcome::Written);
        }
        assert_eq!(bench.settled().claims.len(), 1, "{outcome:?}");
    }
}

#[test]
fn only_the_listed_pairs_stay() {
    let mut bench = Bench::leader();
    bench.change(0..5);
    let (request, batch) = bench.next_write();
    bench.answered(request, batch, Outcome::Partial(vec![1, 3]));
    assert!(
        bench.open.is_empty(),
        "the claim holds two keys yet: {:?}",
        bench.open
    );
    let (_, batch) = bench.next_write();
    let Batch::Put(documents) = batch else {
        panic!("{batch:?}")
    };
    let names: Vec<&str> = documents.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["[1]", "[3]"]);
}

#[test]
fn a_brownout_shrinks_batches_probes_and_recovers() {
    let mut bench = Bench::leader();
    bench.change(0..300);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        bench.until_effect(Duration::from_secs(100));
        let before = bench.now;
        while bench
            .open
            .iter()
            .any(|e| matches!(e, Effect::Prepare { .. }))
        {
            let (batch, request) = bench.prepare();
            bench.prepared(batch, &request);
        }
        let requests: Vec<_> = std::iter::from_fn(|| {
            let waits = bench.open.iter().any(|e| matches!(e, Effect::Write { .. }));
            waits.then(|| bench.write())
        })
        .collect();
        for (request, batch) in requests {
            let outcome = Outcome::Ambiguous(AmbiguousReason::ServerError);
            bench.answered(request, batch, outcome);
        }
        pauses.push(before);
    }
    let status = bench.relay.status(bench.now);
    assert_eq!(status.batch_pairs, 50);
    let block = status.blocked.unwrap();
    assert_eq!(block.reason, BlockReason::Failing);
    bench.until_effect(Duration::from_secs(100));
    let probes = bench
        .open
        .iter()
        .filter(|e| matches!(e, Effect::Prepare { .. }))
        .count();
    assert_eq!(probes, 1, "one probe at a time");
    let (batch, request) = bench.prepare();
    bench.prepared(batch, &request);
    let (request, batch) = bench.write();
    bench.answered(request, batch, Outcome::Written);
    assert!(bench.relay.status(bench.now).blocked.is_none());
    let batches = bench
        .open
        .iter()
        .filter(|e| matches!(e, Effect::Prepare { .. }))
        .count();
    assert!(batches > 1, "all flows again");
}

/// Answers batches until nothing is left to do; a request with `bad` in it is refused.
fn refuse(bench: &mut Bench, bad: &str) -> (usize, Vec<SettleRequest>) {
    let (mut requests, mut settled) = (0, Vec::new());
    loop {
        bench.until_effect(Duration::from_secs(30));
        if bench.open.is_empty() {
            return (requests, settled);
        }
        for effect in std::mem::take(&mut bench.open) {
            match effect {
                Effect::Prepare { batch, request } => bench.prepared(batch, &request),
                Effect::Write { request, batch, .. } => {
                    requests += 1;
                    let Batch::Put(documents) = &batch else {
                        panic!("{batch:?}")
                    };
                    let refused = documents.iter().any(|d| d.name.as_str() == bad);
                    let outcome = if refused {
                        Outcome::Rejected
                    } else {
                        Outcome::Written
                    };
                    bench.answered(request, batch, outcome);
                }
                Effect::Settle(request) => settled.push(request),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn a_refused_batch_is_halved_until_the_poison_stands_alone() {
    let mut bench = Bench::leader();
    bench.change(0..64);
    let (requests, settled) = refuse(&mut bench, "[37]");
    assert!(requests <= 13, "{requests} requests for one poison in 64");
    let dead: Vec<_> = settled.iter().flat_map(|s| &s.dead).collect();
    assert_eq!(dead.len(), 1);
    assert_eq!(
        (&dead[0].key, dead[0].poison.reason),
        (&key(37), PoisonReason::Rejected)
    );
    assert_eq!(settled.iter().map(|s| s.claims.len()).sum::<usize>(), 1);
    // A later change that works takes the letter back.
    bench.change([37]);
    let (_, settled) = refuse(&mut bench, "none");
    let cleared: Vec<_> = settled.iter().flat_map(|s| &s.cleared).collect();
    assert_eq!(cleared, [&(SYNC, key(37))]);
}

#[test]
fn a_sync_whose_every_pair_is_refused_is_held() {
    let mut bench = Bench::leader();
    for n in 0..25 {
        if bench.relay.status(bench.now).syncs[0].hold.is_some() {
            assert!(n > 20, "held after {n}");
            return;
        }
        let (request, batch) = bench.sent(n);
        bench.answered(request, batch, Outcome::Rejected);
        bench.open.clear();
    }
    panic!("never held");
}

#[test]
fn a_failing_row_is_found_by_halves() {
    let mut bench = Bench::leader();
    bench.change(0..32);
    bench.until_effect(Duration::from_secs(1));
    let (mut reads, mut dead, mut written) = (0, Vec::new(), 0);
    while !bench.open.is_empty() {
        for effect in std::mem::take(&mut bench.open) {
            match effect {
                Effect::Prepare { batch, request } => {
                    reads += 1;
                    if request.keys.contains(&key(11)) {
                        bench.read_fails(batch, &request, FailureKind::Row);
                    } else {
                        bench.prepared(batch, &request);
                    }
                }
                Effect::Write { request, batch, .. } => {
                    written += batch.len();
                    bench.answered(request, batch, Outcome::Written);
                }
                Effect::Settle(request) => dead.extend(request.dead),
                other => panic!("{other:?}"),
            }
        }
        bench.until_effect(Duration::from_secs(5));
    }
    assert_eq!((reads, written), (11, 31));
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].poison.reason, PoisonReason::RowError);
    assert_eq!(dead[0].key, key(11));
}

#[test]
fn a_relation_that_cannot_be_read_holds_its_sync_only() {
    let mut bench = Bench::leader();
    bench.change([1]);
    let (batch, request) = bench.prepare();
    bench.read_fails(batch, &request, FailureKind::Relation);
    let status = bench.relay.status(bench.now);
    assert_eq!(
        status.syncs[0].hold.as_ref().unwrap().0,
        HoldReason::Relation
    );
    assert!(status.syncs[1].hold.is_none());
    // The other sync flows meanwhile.
    bench.outbox.push_back(Change {
        id: OutboxId(900),
        sync: SyncId(1),
        what: Changed::Key(key(5)),
        age: Duration::ZERO,
    });
    bench.give(Event::Rung);
    let (other, other_request) = bench.prepare();
    assert_eq!(other_request.sync, SyncId(1));
    bench.prepared(other, &other_request);
    bench.open.clear();
    // After the wait one batch tries again, and success ends the hold.
    let (request, batch) = bench.next_write();
    assert!(bench.relay.status(bench.now).syncs[0].hold.is_none());
    bench.answered(request, batch, Outcome::Written);
}

#[test]
fn a_refused_token_is_read_again_and_a_new_one_used_at_once() {
    let mut bench = Bench::leader();
    let (request, batch) = bench.sent(1);
    bench.answered(request, batch, Outcome::Unauthorized);
    assert!(matches!(bench.open.pop(), Some(Effect::ReloadToken)));
    assert!(bench.open.is_empty());
    let before = bench.now;
    bench.give(Event::TokenChanged);
    bench.until_effect(Duration::from_secs(1));
    let (batch, request) = bench.prepare();
    bench.prepared(batch, &request);
    let (request, batch) = bench.write();
    assert!(bench.now.since(before) < Duration::from_millis(300));
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(bench.settled().claims.len(), 1);
}

#[test]
fn an_empty_quota_waits_for_midnight() {
    let mut bench = Bench::leader();
    let (request, batch) = bench.sent(1);
    let before = bench.now;
    bench.answered(request, batch, Outcome::QuotaExhausted);
    bench.until_effect(Duration::from_secs(7_200));
    bench.prepare();
    assert!(bench.now.since(before) >= Duration::from_secs(3_600));
}

#[test]
fn retry_after_is_kept_whatever_else_comes_back() {
    let mut bench = Bench::leader();
    let (first, first_batch) = bench.sent(1);
    let (second, second_batch) = bench.sent(2);
    let before = bench.now;
    let wait = Duration::from_secs(40);
    bench.answered(first, first_batch, Outcome::Throttled(Some(wait)));
    bench.answered(second, second_batch, Outcome::Written);
    bench.open.clear();
    bench.until_effect(Duration::from_secs(300));
    bench.prepare();
    assert!(bench.now.since(before) >= wait);
}

#[test]
fn what_the_server_says_is_left_is_kept_to() {
    let mut bench = Bench::leader();
    let (request, batch) = bench.sent(1);
    let before = bench.now;
    bench.give(Event::Answered {
        request,
        batch,
        answer: Answer {
            outcome: Outcome::Written,
            limit: Some(RateLimit {
                remaining: 0,
                reset: Duration::from_secs(25),
            }),
            status: Some(200),
            detail: String::new(),
        },
        until_midnight: Duration::ZERO,
    });
    bench.open.clear();
    bench.change([2]);
    bench.until_effect(Duration::from_secs(100));
    bench.prepare();
    assert_eq!(bench.now.since(before), Duration::from_secs(25));
}

#[test]
fn a_claim_that_was_rolled_back_is_made_again_with_the_same_rows() {
    let mut bench = Bench::leader();
    bench.change([1, 2, 1]);
    let (batch, request) = bench.prepare();
    let read = Err(failure(FailureKind::Transient));
    let claim = None;
    bench.give(Event::Prepared { batch, claim, read });
    bench.until_effect(Duration::from_secs(1));
    let (_, again) = bench.prepare();
    let sorted = |mut ids: Vec<OutboxId>| {
        ids.sort_unstable();
        ids
    };
    assert_eq!(sorted(again.ids), sorted(request.ids));
    assert_eq!(again.claim.len(), 2);
}

#[test]
fn a_dead_letter_and_the_end_of_its_claim_are_one_transaction() {
    let mut bench = Bench::leader();
    bench.change([1]);
    let (batch, _) = bench.prepare();
    let poison = Poison::new(PoisonReason::ValueTooLarge, "too large");
    let read = Ok(vec![Rendered::Poison(poison)]);
    let claim = Some(ClaimId(5));
    bench.give(Event::Prepared { batch, claim, read });
    let settled = bench.settled();
    assert_eq!((claims_of(&settled), settled.dead.len()), (vec![5], 1));
    assert!(bench.open.is_empty());
}

#[test]
fn a_key_that_needs_nothing_ends_its_claim_and_nothing_is_sent() {
    let mut bench = Bench::leader();
    bench.change([1]);
    bench.until_effect(Duration::from_secs(5));
    let (batch, _) = bench.prepare();
    let (claim, read) = (Some(claim_of(batch)), Ok(vec![Rendered::Nothing]));
    bench.give(Event::Prepared { batch, claim, read });
    bench.until_effect(Duration::from_secs(5));
    assert_eq!(claims_of(&bench.settled()), [claim_of(batch).0]);
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    let written = |notice: &Notice| matches!(notice, Notice::Unchanged { keys: 1, .. });
    assert!(bench.notices.iter().any(written));
}
