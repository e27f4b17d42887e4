//! The relay by synthetic events: what each answer leads to, and what wakes it.

use std::collections::VecDeque;

use super::*;
use crate::change::PoisonReason;
use crate::change::{
    AmbiguousReason, Change, Changed, Document, KvName, NotSentReason, Outcome, Poison, RateLimit,
    Value,
};
use crate::ledger::BackfillPhase;

const SYNC: SyncId = SyncId(0);

fn settings() -> Settings {
    let backoff = backoff::Settings {
        initial: Duration::from_millis(200),
        max: Duration::from_secs(30),
    };
    Settings {
        queue: queue::Settings {
            quiet: Duration::ZERO,
            max_wait: Duration::from_secs(1),
            key_interval: Duration::from_secs(1),
            keys_max: 10_000,
            leading: false,
            backoff,
        },
        backoff,
        budget: budget::Settings {
            requests_per_window: 1_200,
            reserve_requests: 60,
        },
        syncs: vec!["users".to_owned(), "plans".to_owned()],
        pairs_max: 100,
        body_max_bytes: 1_000_000,
        in_flight_max: 4,
        late_write_window: Duration::from_secs(180),
        lease_ttl: Duration::from_secs(10),
        campaign_interval: Duration::from_secs(2),
        poll_interval: Duration::from_secs(30),
        linger: Duration::from_millis(10),
        doorbell: true,
        backfill_chunk: 50,
        fetch_max: 1_000,
        grace: Duration::from_secs(20),
        seen_max: 1_000,
    }
}

/// A relay, its clock, and a ledger that answers as if all went well unless a test answers instead.
struct Bench {
    relay: Relay,
    now: Mono,
    outbox: VecDeque<Change>,
    next_id: i64,
    notices: Vec<Notice>,
    /// Effects that a test looks at.
    open: Vec<Effect>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        Self {
            relay: Relay::new(settings, 7),
            now: Mono::from_origin(Duration::from_secs(100)),
            outbox: VecDeque::new(),
            next_id: 0,
            notices: Vec::new(),
            open: Vec::new(),
        }
    }

    fn leading(settings: Settings, recovered: Recovered) -> Self {
        let mut bench = Self::new(settings);
        bench.give(Event::Tick);
        assert!(matches!(bench.open.pop(), Some(Effect::Campaign)));
        let (epoch, began) = (Epoch(1), bench.now);
        bench.give(Event::Campaigned(Campaigned::Elected {
            epoch,
            began,
            recovered,
        }));
        assert_eq!(bench.relay.phase(), Phase::Leading);
        bench
    }

    fn leader() -> Self {
        Self::leading(settings(), Recovered::default())
    }

    fn give(&mut self, event: Event) {
        let output = self.relay.handle(self.now, event);
        self.notices.extend(output.notices);
        for effect in output.effects {
            self.answer(effect);
        }
    }

    /// The ledger's part; what goes to KV or is about the session stays open.
    fn answer(&mut self, effect: Effect) {
        match effect {
            Effect::Heartbeat(_) => self.give(Event::Heartbeat(Ok(self.now))),
            Effect::Fetch { limit, .. } => {
                let count = self.outbox.len().min(limit);
                let changes = self.outbox.drain(..count).collect();
                self.give(Event::Fetched(Ok(Fetched {
                    changes,
                    ..Default::default()
                })));
            }
            Effect::Settle(request) => {
                self.open.push(Effect::Settle(request));
                self.give(Event::Settled(Ok(())));
            }
            Effect::StartBackfill {
                sync,
                reason,
                markers,
            } => {
                self.open.push(Effect::StartBackfill {
                    sync,
                    reason: reason.clone(),
                    markers,
                });
                let result = Ok(backfill(sync, &reason));
                self.give(Event::BackfillStarted { sync, result });
            }
            other => self.open.push(other),
        }
    }

    /// Keys change and their writers ring.
    fn change(&mut self, keys: impl IntoIterator<Item = u32>) {
        for key in keys {
            self.next_id += 1;
            self.outbox.push_back(Change {
                id: OutboxId(self.next_id),
                sync: SYNC,
                what: Changed::Key(self::key(key)),
                age: Duration::ZERO,
            });
        }
        self.give(Event::Rung);
    }

    /// Lets time pass, with the ticks that the relay asks for, until an effect waits for an answer.
    fn until_effect(&mut self, at_most: Duration) {
        let end = self.now + at_most;
        while self.open.is_empty() {
            match self.relay.wake_at(self.now).filter(|at| *at <= end) {
                Some(at) => {
                    self.now = at.max(self.now);
                    self.give(Event::Tick);
                }
                None => {
                    self.now = end;
                    return;
                }
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.give(Event::Tick);
    }

    fn prepare(&mut self) -> (BatchId, ClaimRequest) {
        let at = self
            .open
            .iter()
            .position(|e| matches!(e, Effect::Prepare { .. }));
        match at.map(|at| self.open.remove(at)) {
            Some(Effect::Prepare { batch, request }) => (batch, request),
            _ => panic!("no batch is prepared: {:?}", self.open),
        }
    }

    fn write(&mut self) -> (RequestId, Batch) {
        let at = self
            .open
            .iter()
            .position(|e| matches!(e, Effect::Write { .. }));
        match at.map(|at| self.open.remove(at)) {
            Some(Effect::Write { request, batch, .. }) => (request, batch),
            _ => panic!("nothing is written: {:?}", self.open),
        }
    }

    fn settled(&mut self) -> SettleRequest {
        let at = self
            .open
            .iter()
            .position(|e| matches!(e, Effect::Settle(_)));
        match at.map(|at| self.open.remove(at)) {
            Some(Effect::Settle(request)) => request,
            _ => panic!("nothing is settled: {:?}", self.open),
        }
    }

    /// The claim is made under the batch's number, and the rows render to documents.
    fn prepared(&mut self, batch: BatchId, request: &ClaimRequest) {
        let claim = (!request.claim.is_empty()).then_some(claim_of(batch));
        let read = Ok(request.keys.iter().map(document).collect());
        self.give(Event::Prepared { batch, claim, read });
    }

    fn read_fails(&mut self, batch: BatchId, request: &ClaimRequest, kind: FailureKind) {
        let claim = (!request.claim.is_empty()).then_some(claim_of(batch));
        let read = Err(failure(kind));
        self.give(Event::Prepared { batch, claim, read });
    }

    fn answered(&mut self, request: RequestId, batch: Batch, outcome: Outcome) {
        self.give(Event::Answered {
            request,
            batch,
            answer: Answer {
                outcome,
                limit: None,
                status: None,
                detail: "as the test says".to_owned(),
            },
            until_midnight: Duration::from_secs(3_600),
        });
    }

    /// Brings one change up to the request that writes it.
    fn sent(&mut self, key: u32) -> (RequestId, Batch) {
        self.change([key]);
        self.next_write()
    }

    /// Answers the next batch's claim and read.
    fn next_write(&mut self) -> (RequestId, Batch) {
        self.until_effect(Duration::from_secs(400));
        let (batch, request) = self.prepare();
        self.prepared(batch, &request);
        self.write()
    }
}

fn key(n: u32) -> Key {
    Key::new(format!("[{n}]"))
}

fn document(key: &Key) -> Rendered {
    let hash = ContentHash(u128::from(
        fastrand::Rng::with_seed(key.as_str().len() as u64).u64(..),
    ));
    Rendered::Put(Document {
        name: KvName::new(key.as_str()).unwrap(),
        value: Value::Text(Default::default()),
        metadata: "{}".into(),
        hash,
        expiration: None,
    })
}

fn failure(kind: FailureKind) -> Failure {
    Failure {
        kind,
        detail: "as the test says".to_owned(),
        hint: None,
    }
}

fn backfill(sync: SyncId, reason: &str) -> Backfill {
    Backfill {
        sync,
        reason: reason.to_owned(),
        phase: BackfillPhase::Rows,
        position: None,
        cursor: None,
        done: 0,
        estimate: None,
    }
}

/// The claim that the bench makes for a batch.
fn claim_of(batch: BatchId) -> ClaimId {
    ClaimId(i64::try_from(batch.0).unwrap())
}

fn claims_of(request: &SettleRequest) -> Vec<i64> {
    request.claims.iter().map(|claim| claim.0).collect()
}

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
