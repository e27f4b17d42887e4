//! The model Workers KV: pairs, and requests that take effect at some moment after they were sent,
//! which may be long after the reply. Decides what becomes of a request; `world` carries it out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pg2kv::change::{
    AmbiguousReason, Batch, ContentHash, Document, KvName, Mono, NotSentReason, Outcome, Rendered,
    Value,
};
use pg2kv::change::{Poison, PoisonReason};
use pg2kv::relay::RequestId;

use super::database::{Address, Place, Row};
use super::plan::{Faults, LATE_WRITE_WINDOW, REQUEST_TIMEOUT, RETRY_AFTER_MAX};

/// Contents from here on are refused.
const REFUSED: u32 = 1 << 31;
/// Pairs of another installation for each sync.
pub(super) const STRANGE: usize = 2;

/// A request on its way.
#[derive(Debug)]
pub(super) struct Shot {
    pub(super) from: Address,
    pub(super) request: RequestId,
    pub(super) sync: usize,
    pub(super) batch: Batch,
    pub(super) pairs: Vec<(Place, Option<u32>)>,
    pub(super) outcome: Outcome,
    /// The namespace was gone when a part of it was to take effect.
    pub(super) missed: bool,
}

/// When which pairs of a request take effect, and when the reply comes.
#[derive(Debug)]
pub(super) struct Course {
    pub(super) outcome: Outcome,
    pub(super) applies: Vec<(Mono, Vec<usize>)>,
    pub(super) reply: Mono,
}

#[derive(Debug)]
pub(super) struct Kv {
    content: Vec<Vec<Option<u32>>>,
    /// Since when each namespace has been gone, and who noticed.
    pub(super) gone: Vec<Option<Gone>>,
    /// The token that is good.
    pub(super) token: u32,
    pub(super) quota_until: Option<Mono>,
    pub(super) shots: BTreeMap<u64, Shot>,
    /// Keys of requests that truly run.
    pub(super) running: BTreeSet<(Address, Place)>,
    /// Pairs that somebody else wrote or deleted, of which the ledger cannot know.
    pub(super) tampered: BTreeSet<Place>,
    /// Pairs that another installation wrote, under names that keys of ours would make.
    strange: BTreeSet<Place>,
    /// Share of requests that go wrong.
    pub(super) trouble: f64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    pub(super) since: Mono,
    pub(super) noticed: Option<Address>,
}

impl Kv {
    /// Behind the keys of each sync stand pairs of another installation.
    pub(super) fn new(syncs: usize, keys: usize, trouble: f64) -> Self {
        let mut content = vec![Some(0); keys + STRANGE];
        content[..keys].fill(None);
        let strange =
            (0..syncs).flat_map(|sync| (keys..keys + STRANGE).map(move |key| (sync, key)));
        Self {
            content: vec![content; syncs],
            strange: strange.collect(),
            gone: vec![None; syncs],
            token: 0,
            quota_until: None,
            shots: BTreeMap::new(),
            running: BTreeSet::new(),
            tampered: BTreeSet::new(),
            trouble,
        }
    }

    pub(super) fn get(&self, (sync, key): Place) -> Option<u32> {
        self.content[sync][key]
    }

    pub(super) fn set(&mut self, (sync, key): Place, content: Option<u32>) {
        self.content[sync][key] = content;
        self.tampered.remove(&(sync, key));
    }

    pub(super) fn is_strange(&self, place: Place) -> bool {
        self.strange.contains(&place)
    }

    /// A pair of another installation that is gone, though nobody but us deletes any.
    pub(super) fn robbed(&self) -> Option<Place> {
        let mut strange = self.strange.iter();
        strange.find(|place| self.get(**place).is_none()).copied()
    }

    /// Somebody else writes.
    pub(super) fn tamper(&mut self, place: Place, content: Option<u32>) {
        self.set(place, content);
        self.tampered.insert(place);
    }

    pub(super) fn lose(&mut self, sync: usize) {
        self.content[sync].fill(None);
        self.strange.retain(|place| place.0 != sync);
        self.tampered.retain(|place| place.0 != sync);
    }

    /// Up to `limit` pairs after `cursor`.
    pub(super) fn list(
        &self,
        sync: usize,
        cursor: Option<usize>,
        limit: usize,
    ) -> (Vec<(usize, u32)>, Option<usize>) {
        let first = cursor.map_or(0, |cursor| cursor + 1);
        let mut found = (first..self.content[sync].len())
            .filter_map(|key| Some((key, self.content[sync][key]?)));
        let page: Vec<(usize, u32)> = found.by_ref().take(limit).collect();
        let next = if found.next().is_some() {
            page.last().map(|(key, _)| *key)
        } else {
            None
        };
        (page, next)
    }

    /// Why any request to this sync's namespace is refused now.
    pub(super) fn refusal(&self, sync: usize, token: u32) -> Option<Outcome> {
        if token != self.token {
            Some(Outcome::Unauthorized)
        } else if self.gone[sync].is_some() {
            Some(Outcome::NamespaceGone)
        } else if self.quota_until.is_some() {
            Some(Outcome::QuotaExhausted)
        } else {
            None
        }
    }

    /// Decides what becomes of a request sent now.
    pub(super) fn course(
        &self,
        rng: &mut fastrand::Rng,
        faults: &Faults,
        now: Mono,
        sync: usize,
        token: u32,
        pairs: &[(Place, Option<u32>)],
    ) -> Course {
        let slow = faults.slow_kv && rng.u32(..4) == 0;
        let latency = if slow {
            rng.u64(100_000..4_500_000)
        } else {
            rng.u64(2_000..40_000)
        };
        let reply = now + micros(latency);
        let none = |outcome| Course {
            outcome,
            applies: Vec::new(),
            reply,
        };
        if let Some(outcome) = self.refusal(sync, token) {
            return none(outcome);
        }
        if pairs
            .iter()
            .any(|(_, content)| content.is_some_and(|content| content >= REFUSED))
        {
            return none(Outcome::Rejected);
        }
        let all: Vec<usize> = (0..pairs.len()).collect();
        let kinds = [
            faults.ambiguous,
            faults.partial,
            faults.throttled,
            faults.not_sent,
            faults.unexpected,
        ];
        let kind = rng.usize(..kinds.len());
        if !kinds[kind] || rng.f64() >= self.trouble {
            let at = now + micros(rng.u64(1_000..latency));
            return Course {
                outcome: Outcome::Written,
                applies: vec![(at, all)],
                reply,
            };
        }
        match kind {
            0 => {
                let reason = [
                    AmbiguousReason::Timeout,
                    AmbiguousReason::Broken,
                    AmbiguousReason::ServerError,
                    AmbiguousReason::EdgeError,
                    AmbiguousReason::BadReply,
                ][rng.usize(..5)];
                let reply = if reason == AmbiguousReason::Timeout {
                    now + REQUEST_TIMEOUT
                } else {
                    reply
                };
                let applies = sooner_or_later(rng, now, reply, &all);
                Course {
                    outcome: Outcome::Ambiguous(reason),
                    applies,
                    reply,
                }
            }
            1 => {
                let (listed, proven): (Vec<usize>, Vec<usize>) =
                    all.iter().partition(|_| rng.bool());
                let mut applies = sooner_or_later(rng, now, reply, &listed);
                applies.push((now + micros(rng.u64(1_000..latency)), proven));
                Course {
                    outcome: Outcome::Partial(listed),
                    applies,
                    reply,
                }
            }
            2 => {
                let seconds = rng.u64(1..=RETRY_AFTER_MAX.as_secs());
                none(Outcome::Throttled(
                    rng.bool().then(|| Duration::from_secs(seconds)),
                ))
            }
            3 => none(Outcome::NotSent(
                [
                    NotSentReason::Dns,
                    NotSentReason::Connect,
                    NotSentReason::Tls,
                ][rng.usize(..3)],
            )),
            _ => none(Outcome::Unexpected),
        }
    }
}

/// Each pair takes effect before the reply, after it, or never.
fn sooner_or_later(
    rng: &mut fastrand::Rng,
    now: Mono,
    reply: Mono,
    which: &[usize],
) -> Vec<(Mono, Vec<usize>)> {
    let whole = rng.bool();
    let draw = |rng: &mut fastrand::Rng| match rng.u32(..4) {
        0 => None,
        1 => Some(now + micros(rng.u64(1_000..=micros_of(reply.since(now))))),
        2 => Some(now + micros(rng.u64(1_000..micros_of(LATE_WRITE_WINDOW)))),
        _ => Some(now + micros(micros_of(LATE_WRITE_WINDOW) - rng.u64(1..200_000))),
    };
    if whole {
        return draw(rng)
            .map(|at| (at, which.to_vec()))
            .into_iter()
            .collect();
    }
    which
        .iter()
        .filter_map(|one| Some((draw(rng)?, vec![*one])))
        .collect()
}

pub(super) fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

pub(super) fn micros_of(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).expect("within a day")
}

/// What the daemon makes of a row.
pub(super) fn render(place: Place, row: Option<Row>) -> Rendered {
    let content = match row {
        None | Some(Row::Hidden) => return Rendered::Delete(name(place)),
        Some(Row::TooLarge) => {
            return Rendered::Poison(Poison::new(PoisonReason::ValueTooLarge, "too large"));
        }
        Some(Row::Broken) => {
            return Rendered::Poison(Poison::new(PoisonReason::RowError, "read alone it fails"));
        }
        Some(Row::Good(content)) => content,
        Some(Row::Refused(content)) => content | REFUSED,
    };
    Rendered::Put(Document {
        name: name(place),
        value: Value::Text(Default::default()),
        metadata: "".into(),
        hash: ContentHash(u128::from(content)),
        expiration: None,
    })
}

fn name((sync, key): Place) -> KvName {
    KvName::new(format!("{sync}:{key}")).expect("a short name")
}

/// The pairs of a body.
pub(super) fn pairs(batch: &Batch) -> Vec<(Place, Option<u32>)> {
    let place = |name: &KvName| {
        let (sync, key) = name.as_str().split_once(':').expect("a name of the model");
        (sync.parse().expect("a sync"), key.parse().expect("a key"))
    };
    match batch {
        Batch::Put(documents) => documents
            .iter()
            .map(|document| (place(&document.name), u32::try_from(document.hash.0).ok()))
            .collect(),
        Batch::Delete(names) => names.iter().map(|name| (place(name), None)).collect(),
    }
}
