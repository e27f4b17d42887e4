//! The relay by synthetic events. This file owns the bench that they run on.

mod answers;
mod audit;
mod backfill;
mod brake;
mod capture;
mod clean;
mod expand;
mod inspect;
mod leadership;
mod rows;

use std::collections::VecDeque;

use super::*;
use crate::change::{
    Answer, Batch, Change, Changed, ClaimId, ContentHash, Document, Epoch, Key, KvName, OutboxId,
    Outcome, Rendered, SyncId, Value,
};
use crate::ledger::{
    Backfill, BackfillPhase, BackfillStep, ClaimRequest, FetchMode, Fetched, SettleRequest, Walked,
};

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
            grain: Duration::ZERO,
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
        brake: super::brake::Settings {
            share: 0.3,
            count: 0,
            window: Duration::from_secs(600),
        },
        audit: super::audits::Settings {
            interval: Duration::from_secs(3_600),
            page_interval: Duration::from_secs(1),
        },
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
    /// The next fetch does not come to the end.
    more: bool,
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
            more: false,
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
                let more = std::mem::take(&mut self.more);
                self.give(Event::Fetched(Ok(Fetched {
                    changes,
                    more,
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
        let mut ticks = 0;
        while self.open.is_empty() {
            ticks += 1;
            assert!(ticks < 10_000, "the relay runs in circles");
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
