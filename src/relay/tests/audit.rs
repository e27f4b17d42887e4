//! When KV is compared with the rows, and what becomes of what is found.

use super::*;
use crate::ledger::AuditFacts;

/// Between two comparisons of a sync.
const ROUND: Duration = Duration::from_secs(3_600);

fn facts(sync: SyncId, age: Duration, owed: Option<&str>) -> AuditFacts {
    AuditFacts {
        sync,
        age,
        owed: owed.map(str::to_owned),
    }
}

/// A leader whose two syncs were compared so long ago.
fn leader(settings: Settings, ages: [Duration; 2]) -> Bench {
    let audits = (0..)
        .zip(ages)
        .map(|(id, age)| facts(SyncId(id), age, None));
    let recovered = Recovered {
        audits: audits.collect(),
        ..Default::default()
    };
    Bench::leading(settings, recovered)
}

fn with_budget(requests_per_window: u32, reserve_requests: u32) -> Settings {
    Settings {
        budget: budget::Settings {
            requests_per_window,
            reserve_requests,
        },
        ..settings()
    }
}

impl Bench {
    fn audit(&mut self) -> (SyncId, String) {
        match self.open.pop() {
            Some(Effect::Audit { sync, reason }) => (sync, reason),
            other => panic!("no audit: {other:?}"),
        }
    }

    /// Waits for the next audit; returns how long that took.
    fn next_audit(&mut self, at_most: Duration) -> (SyncId, String, Duration) {
        let before = self.now;
        self.until_effect(at_most);
        let (sync, reason) = self.audit();
        (sync, reason, self.now.since(before))
    }

    fn want_page(&mut self, sync: SyncId, failed: Option<Outcome>) {
        let failed = failed.map(|outcome| Answer {
            outcome,
            limit: None,
            status: None,
            detail: "as the test says".to_owned(),
        });
        self.give(Event::PageWanted { sync, failed });
    }

    fn audited(&mut self, sync: SyncId, found: AuditFound) {
        let result = Ok(found);
        self.give(Event::Audited { sync, result });
    }

    /// Key 1 is written, so that memory says what KV has. The bench's claims are its own.
    fn write_key_1(&mut self) {
        let (request, batch) = self.sent(1);
        self.answered(request, batch, Outcome::Written);
        self.settled();
    }

    /// The outbox has a row of key 1 that an audit wrote.
    fn ask_again(&mut self) {
        self.next_id += 1;
        self.outbox.push_back(Change {
            id: OutboxId(self.next_id),
            sync: SYNC,
            what: Changed::Again(key(1)),
            age: Duration::ZERO,
        });
        self.give(Event::Rung);
    }
}

#[test]
fn each_sync_is_compared_in_turn_once_in_an_interval() {
    let part = Duration::from_secs(600);
    let mut bench = leader(settings(), [part, 2 * ROUND]);
    // One that is late goes at once, also where the machine was started after it was due.
    let (sync, reason) = bench.audit();
    assert_eq!((sync, reason.as_str()), (SyncId(1), "interval"));
    let status = bench.relay.status(bench.now);
    assert_eq!(status.syncs[1].audit.running.as_deref(), Some("interval"));
    assert_eq!(status.syncs[1].audit.age, Some(2 * ROUND));
    // The other one is due meanwhile, and waits for the first to end.
    bench.until_effect(ROUND);
    assert!(bench.open.is_empty());
    let found = AuditFound {
        equal: 7,
        ..AuditFound::default()
    };
    bench.audited(SyncId(1), found);
    let (sync, _) = bench.audit();
    assert_eq!(sync, SyncId(0));
    bench.until_effect(part);
    bench.audited(SyncId(0), found);
    let status = bench.relay.status(bench.now);
    assert_eq!(status.syncs[1].audit.found, Some(found));
    assert_eq!(status.syncs[1].audit.age, Some(part));
    let (sync, _, waited) = bench.next_audit(2 * ROUND);
    assert_eq!((sync, waited), (SyncId(1), ROUND - part));
}

#[test]
fn nothing_is_compared_by_itself_where_that_is_off_unless_it_is_owed() {
    let off = || Settings {
        audit: super::super::audits::Settings {
            interval: Duration::ZERO,
            page_interval: Duration::ZERO,
        },
        ..settings()
    };
    let mut bench = leader(off(), [ROUND, ROUND]);
    bench.until_effect(5 * ROUND);
    assert!(bench.open.is_empty());
    let recovered = Recovered {
        audits: vec![facts(SYNC, ROUND, Some("some reason"))],
        ..Default::default()
    };
    let mut bench = Bench::leading(off(), recovered);
    assert_eq!(bench.audit(), (SYNC, "some reason".to_owned()));
    bench.audited(SYNC, AuditFound::default());
    bench.until_effect(5 * ROUND);
    assert!(bench.open.is_empty());
}

#[test]
fn after_a_change_of_identity_it_waits_for_the_backfill() {
    let recovered = Recovered {
        backfills: vec![backfill(SYNC, IDENTITY_CHANGED)],
        audits: vec![facts(SYNC, Duration::ZERO, Some(IDENTITY_CHANGED))],
        ..Default::default()
    };
    let mut bench = Bench::leading(settings(), recovered);
    bench.until_effect(Duration::from_secs(400));
    assert!(matches!(bench.open.pop(), Some(Effect::Walk { .. })));
    let (keys, position) = (Vec::new(), None);
    let result = Ok(Walked { keys, position });
    bench.give(Event::Walked { sync: SYNC, result });
    let Some(Effect::Advance { step, .. }) = bench.open.pop() else {
        panic!("{:?}", bench.open)
    };
    let result = Ok(step);
    bench.give(Event::Advanced { sync: SYNC, result });
    assert!(matches!(bench.open.pop(), Some(Effect::Sweep { .. })));
    let result = Ok(Swept {
        keys: Vec::new(),
        foreign: 0,
        unmade: None,
        next: None,
    });
    bench.give(Event::Swept { sync: SYNC, result });
    assert!(matches!(bench.open.pop(), Some(Effect::Advance { .. })));
    let result = Ok(BackfillStep::Done);
    bench.give(Event::Advanced { sync: SYNC, result });
    assert_eq!(bench.audit(), (SYNC, "identity".to_owned()));
}

#[test]
fn what_is_owed_waits_for_writes_that_may_still_land() {
    // The leader before walked the one sync to its end; the other one still has its backfill.
    let recovered = Recovered {
        backfills: vec![backfill(SyncId(1), IDENTITY_CHANGED)],
        audits: vec![facts(SYNC, Duration::ZERO, Some(IDENTITY_CHANGED))],
        ..Default::default()
    };
    let mut bench = Bench::leading(settings(), recovered);
    let elected = bench.now;
    bench.until_effect(Duration::from_secs(400));
    assert_eq!(bench.now.since(elected), Duration::from_secs(190));
    let audit = |effect: &Effect| matches!(effect, Effect::Audit { sync: SYNC, .. });
    assert!(bench.open.iter().any(audit), "{:?}", bench.open);
}

#[test]
fn pages_keep_a_pace_and_take_from_the_reserve() {
    let mut bench = leader(with_budget(100, 10), [ROUND, Duration::ZERO]);
    assert_eq!(bench.audit().0, SYNC);
    // Writes have used more than a quarter, so the reserve is all there is.
    let began = bench.now;
    for key in 0..30 {
        let (request, batch) = bench.sent(key);
        bench.answered(request, batch, Outcome::Written);
        bench.open.clear();
    }
    let left = bench.relay.status(bench.now).budget_left;
    let mut at = Vec::new();
    for _ in 0..11 {
        bench.want_page(SYNC, None);
        bench.until_effect(Duration::from_secs(400));
        assert!(matches!(bench.open.pop(), Some(Effect::AllowPage { .. })));
        at.push(bench.now);
    }
    for two in at[..10].windows(2) {
        assert_eq!(two[1].since(two[0]), Duration::from_secs(1));
    }
    assert!(
        at[10].since(began) >= Duration::from_secs(300),
        "a window later"
    );
    let mut bench_left = bench.relay.status(at[9]).budget_left;
    bench_left = bench_left.max(left);
    assert_eq!(bench_left, 60 + 30, "no page was taken from the writes");
}

#[test]
fn a_page_that_fails_is_a_failure_of_the_api() {
    let mut bench = leader(settings(), [ROUND, Duration::ZERO]);
    bench.audit();
    bench.want_page(SYNC, None);
    assert!(matches!(bench.open.pop(), Some(Effect::AllowPage { .. })));
    let wait = Duration::from_secs(60);
    bench.want_page(SYNC, Some(Outcome::Throttled(Some(wait))));
    assert!(bench.relay.status(bench.now).blocked.is_some());
    // Nobody sends before, and the page itself is the probe.
    let throttled = bench.now;
    bench.until_effect(2 * wait);
    assert!(matches!(bench.open.pop(), Some(Effect::AllowPage { .. })));
    assert!(bench.now.since(throttled) >= wait);
    bench.audited(SYNC, AuditFound::default());
    assert!(bench.relay.status(bench.now).blocked.is_none());
}

#[test]
fn one_that_comes_to_nothing_is_tried_again_and_the_next_sync_goes_first() {
    let mut bench = leader(settings(), [2 * ROUND, ROUND]);
    assert_eq!(bench.audit().0, SyncId(0));
    let result = Err(SweepFailure::Ledger(failure(FailureKind::Connection)));
    let sync = SyncId(0);
    bench.give(Event::Audited { sync, result });
    assert_eq!(
        bench.relay.phase(),
        Phase::Leading,
        "its connection was its own"
    );
    assert_eq!(bench.audit().0, SyncId(1));
    let undecided = AuditFound {
        undecided: true,
        ..AuditFound::default()
    };
    bench.audited(SyncId(1), undecided);
    let (sync, _, waited) = bench.next_audit(ROUND);
    assert_eq!((sync, waited), (SyncId(0), Duration::from_secs(360)));
    bench.audited(SyncId(0), AuditFound::default());
    assert_eq!(bench.audit().0, SyncId(1), "it is owed an answer as well");
}

#[test]
fn a_quota_of_names_does_not_stop_writes() {
    let mut bench = leader(settings(), [ROUND, Duration::ZERO]);
    bench.audit();
    bench.want_page(SYNC, None);
    bench.open.clear();
    let result = Err(SweepFailure::Kv(Answer {
        outcome: Outcome::QuotaExhausted,
        limit: None,
        status: None,
        detail: "as the test says".to_owned(),
    }));
    bench.give(Event::Audited { sync: SYNC, result });
    assert!(bench.relay.status(bench.now).blocked.is_none());
    let told = |notice: &Notice| matches!(notice, Notice::AuditFailed { .. });
    assert!(bench.notices.iter().any(told));
}

#[test]
fn what_drifted_is_fetched_at_once_and_written_whatever_memory_says() {
    let mut bench = leader(settings(), [ROUND, Duration::ZERO]);
    bench.audit();
    bench.write_key_1();
    // An ordinary change of a row that renders to the same costs no write …
    bench.pass(Duration::from_secs(2));
    bench.change([1]);
    bench.until_effect(Duration::from_secs(5));
    let (batch, request) = bench.prepare();
    bench.prepared(batch, &request);
    let unchanged = |notice: &Notice| matches!(notice, Notice::Unchanged { keys: 1, .. });
    assert!(bench.notices.iter().any(unchanged));
    bench.open.clear();
    // … but what an audit asks for does.
    bench.ask_again();
    let (request, batch) = bench.next_write();
    assert_eq!(batch.len(), 1);
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(bench.settled().claims.len(), 1);
    // Once: then memory counts again.
    bench.pass(Duration::from_secs(2));
    bench.change([1]);
    bench.until_effect(Duration::from_secs(5));
    let (batch, request) = bench.prepare();
    bench.prepared(batch, &request);
    assert!(!bench.open.iter().any(|e| matches!(e, Effect::Write { .. })));
}

#[test]
fn a_write_that_was_in_flight_when_drift_was_found_does_not_mend_it() {
    let mut bench = Bench::leader();
    let (request, batch) = bench.sent(1);
    // Somebody else's write landed after ours did, and before our reply came.
    bench.ask_again();
    bench.answered(request, batch, Outcome::Written);
    bench.settled();
    let (request, batch) = bench.next_write();
    assert_eq!(batch.len(), 1);
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(bench.settled().claims.len(), 1);
}

#[test]
fn a_failed_try_does_not_forget_that_it_has_to_write() {
    let mut bench = Bench::leader();
    bench.write_key_1();
    bench.ask_again();
    bench.until_effect(Duration::from_secs(5));
    let (batch, request) = bench.prepare();
    bench.read_fails(batch, &request, FailureKind::Transient);
    let (request, batch) = bench.next_write();
    bench.answered(request, batch, Outcome::Throttled(None));
    let (request, batch) = bench.next_write();
    assert_eq!(batch.len(), 1);
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(bench.settled().claims.len(), 1);
}

#[test]
fn nothing_is_compared_while_a_process_stops() {
    let mut bench = leader(settings(), [Duration::ZERO, Duration::ZERO]);
    let (request, batch) = bench.sent(1);
    bench.give(Event::Shutdown);
    bench.now = bench.now + ROUND / 2;
    assert_eq!(bench.relay.phase(), Phase::Draining);
    bench.answered(request, batch, Outcome::Written);
    assert!(!bench.open.iter().any(|e| matches!(e, Effect::Audit { .. })));
}
