//! What happened: applied writes for checkers and watchers, and requests with their replies.
//!
//! Owns the bounded history. A full history forgets its oldest entries and counts them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use serde::{Serialize, Serializer};
use tokio::sync::mpsc;

use super::route::Operation;

/// One write or delete that took effect.
///
/// An expiration is not a write and leaves no entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Number of the write, from 1, without gaps, in the order in which writes took effect.
    pub seq: u64,
    /// When it took effect: from then on a read sees it. All writes of one request share it.
    #[serde(skip)]
    pub at: Instant,
    /// The same moment by the emulator's [`Clock`](super::clock::Clock), in Unix microseconds.
    pub unix_micros: u64,
    /// The namespace.
    pub namespace: Arc<str>,
    /// The key.
    pub key: Arc<str>,
    /// What was done.
    #[serde(flatten)]
    pub op: Op,
    /// Number of the request that did it; see [`RequestRecord::number`].
    pub request: u64,
}

/// What an [`Applied`] did to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// The key has this value now.
    Put {
        /// First 128 bits of BLAKE3 over the bytes of the value; see [`value_hash`].
        #[serde(serialize_with = "hexadecimal")]
        hash: u128,
        /// Length of the value in bytes.
        bytes: usize,
    },
    /// The key is gone, or never was there.
    Delete,
}

/// The hash by which a history names a value.
pub fn value_hash(value: &[u8]) -> u128 {
    let hash = blake3::hash(value);
    let first: [u8; 16] = std::array::from_fn(|index| hash.as_bytes()[index]);
    u128::from_be_bytes(first)
}

fn hexadecimal<S: Serializer>(hash: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{hash:032x}"))
}

/// One request and its reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestRecord {
    /// Number of the request, from 1, in the order of arrival.
    pub number: u64,
    /// Operation, or `None` where the API has no such route.
    pub operation: Option<Operation>,
    /// When its head had arrived, in Unix microseconds.
    pub arrived_unix_micros: u64,
    /// When its reply was ready, in Unix microseconds; `None` while there is none.
    pub replied_unix_micros: Option<u64>,
    /// Status of the reply; `None` while there is none, or where the connection was cut instead.
    pub status: Option<u16>,
    /// The fault that it met.
    pub fault: Option<u64>,
}

/// Entries from some number on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Page<T> {
    /// The entries that are still held, oldest first.
    pub entries: Vec<T>,
    /// Number of the newest entry ever made; 0 before the first.
    pub last: u64,
    /// Entries forgotten so far because the history was full or was not kept.
    pub forgotten: u64,
}

/// A bounded list of numbered entries: the newest `capacity` of them.
#[derive(Debug)]
struct Ring<T> {
    entries: VecDeque<T>,
    capacity: usize,
    last: u64,
}

impl<T: Clone> Ring<T> {
    fn new(capacity: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            capacity,
            last: 0,
        }
    }

    fn push(&mut self, entry: T) {
        self.last += 1;
        if self.entries.len() == self.capacity {
            self.entries.pop_front();
        }
        if self.capacity > 0 {
            self.entries.push_back(entry);
        }
    }

    /// Number of the oldest entry held, less one.
    fn forgotten(&self) -> u64 {
        self.last - self.entries.len() as u64
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let index = number.checked_sub(self.forgotten() + 1)?;
        self.entries.get_mut(usize::try_from(index).ok()?)
    }

    /// Up to `limit` entries with a number greater than `since`.
    fn page(&self, since: u64, limit: usize) -> Page<T> {
        let skip = usize::try_from(since.saturating_sub(self.forgotten())).unwrap_or(usize::MAX);
        Page {
            entries: self
                .entries
                .iter()
                .skip(skip)
                .take(limit)
                .cloned()
                .collect(),
            last: self.last,
            forgotten: self.forgotten(),
        }
    }
}

/// Keeps the history of writes and tells it to subscribers.
#[derive(Debug)]
pub(super) struct WriteLog {
    ring: Ring<Applied>,
    subscribers: Vec<mpsc::UnboundedSender<Arc<[Applied]>>>,
}

impl WriteLog {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            ring: Ring::new(capacity),
            subscribers: Vec::new(),
        }
    }

    /// Whether anybody will see the entries; if not, their hashes need not be computed.
    pub(super) fn wanted(&self) -> bool {
        self.ring.capacity > 0 || !self.subscribers.is_empty()
    }

    /// Numbers writes that nobody wants to see.
    pub(super) fn skip(&mut self, count: usize) {
        self.ring.last += count as u64;
    }

    /// Keeps and tells the writes of one request, which took effect just now.
    pub(super) fn publish(
        &mut self,
        namespace: &Arc<str>,
        request: u64,
        unix_micros: u64,
        ops: Vec<(Arc<str>, Op)>,
    ) {
        let (at, first) = (Instant::now(), self.ring.last + 1);
        let applied: Arc<[Applied]> = (first..)
            .zip(ops)
            .map(|(seq, (key, op))| {
                let namespace = Arc::clone(namespace);
                Applied {
                    seq,
                    at,
                    unix_micros,
                    namespace,
                    key,
                    op,
                    request,
                }
            })
            .collect();
        for entry in &*applied {
            self.ring.push(entry.clone());
        }
        self.subscribers
            .retain(|subscriber| subscriber.send(Arc::clone(&applied)).is_ok());
    }

    pub(super) fn page(&self, since: u64, limit: usize) -> Page<Applied> {
        self.ring.page(since, limit)
    }

    pub(super) fn subscribe(&mut self) -> Subscription {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.subscribers.push(sender);
        Subscription {
            receiver,
            batch: Vec::new().into(),
            next: 0,
        }
    }
}

/// Applied writes, from the moment of subscription on, in order and without loss.
///
/// They wait in memory until they are taken, about 150 bytes each: a subscriber that does not keep
/// up costs memory without bound.
#[derive(Debug)]
pub struct Subscription {
    receiver: mpsc::UnboundedReceiver<Arc<[Applied]>>,
    batch: Arc<[Applied]>,
    next: usize,
}

impl Subscription {
    /// The next write, or `None` once the emulator is gone and all writes were taken.
    ///
    /// Cancel-safety: a write is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Applied> {
        loop {
            if let Some(applied) = self.batch.get(self.next) {
                self.next += 1;
                return Some(applied.clone());
            }
            self.batch = self.receiver.recv().await?;
            self.next = 0;
        }
    }
}

/// Keeps the history of requests.
#[derive(Debug)]
pub(super) struct RequestLog(Ring<RequestRecord>);

impl RequestLog {
    pub(super) fn new(capacity: usize) -> Self {
        Self(Ring::new(capacity))
    }

    /// Notes an arrival and gives the request its number.
    pub(super) fn arrived(&mut self, operation: Option<Operation>, unix_micros: u64) -> u64 {
        let number = self.0.last + 1;
        self.0.push(RequestRecord {
            number,
            operation,
            arrived_unix_micros: unix_micros,
            replied_unix_micros: None,
            status: None,
            fault: None,
        });
        number
    }

    pub(super) fn met(&mut self, number: u64, fault: u64) {
        if let Some(record) = self.0.get_mut(number) {
            record.fault = Some(fault);
        }
    }

    pub(super) fn replied(&mut self, number: u64, unix_micros: u64, status: u16) {
        if let Some(record) = self.0.get_mut(number) {
            record.replied_unix_micros = Some(unix_micros);
            record.status = Some(status);
        }
    }

    pub(super) fn page(&self, since: u64, limit: usize) -> Page<RequestRecord> {
        self.0.page(since, limit)
    }
}
