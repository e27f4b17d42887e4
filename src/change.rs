//! The vocabulary that the rooms share: what changed, what to write, what came of it.
//!
//! Owns plain values and their limits. Knows nothing of Postgres, HTTP, clocks or configuration.
//! A value that went through a constructor here is valid from then on and is not checked again.

pub mod owner;

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

mod key;

pub use key::{Key, Unreadable, fingerprint};

/// Longest KV key in bytes of UTF-8.
/// Source: Workers KV limits.
pub const KV_NAME_MAX_BYTES: usize = 512;
/// Largest KV value in bytes (25 MiB).
/// Source: Workers KV limits.
pub const KV_VALUE_MAX_BYTES: usize = 26_214_400;
/// Largest metadata of a KV pair in bytes of JSON.
/// Source: Workers KV limits.
pub const KV_METADATA_MAX_BYTES: usize = 1_024;
/// Longest text of a [`Key`] in bytes. Of a longer one no name of a pair can be made, whatever JSON
/// adds to its values, so neither triggers nor daemon carry it: they carry its size and hash.
pub const KEY_MAX_BYTES: usize = 4_096;
/// Most pairs in one bulk request.
/// Source: Workers KV API, bulk write.
pub const KV_BULK_MAX_PAIRS: usize = 10_000;
/// Largest body of one bulk request in bytes ("less than 100 megabytes").
/// Source: Workers KV API, bulk write.
pub const KV_BULK_MAX_BYTES: usize = 100_000_000;
/// Shortest time to live of a pair, in seconds.
/// Source: Workers KV API, `expiration_ttl`.
pub const KV_TTL_MIN_SECONDS: u32 = 60;

/// A moment on a monotonic clock that counts suspend, as time since an arbitrary origin.
///
/// Pure code receives it as an argument; only the daemon's loop reads the clock. Nanoseconds, plus
/// one: so an `Option` of it takes no more room, and the queue holds many. Ends after 584 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(NonZeroU64);

impl Mono {
    /// The origin of the clock.
    pub const ZERO: Self = Self(NonZeroU64::MIN);

    /// The moment `since_origin` after the origin.
    pub fn from_origin(since_origin: Duration) -> Self {
        Self::ZERO + since_origin
    }

    /// Time since the origin.
    pub fn since_origin(self) -> Duration {
        self.since(Self::ZERO)
    }

    /// Time from `earlier` to `self`, zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.get().saturating_sub(earlier.0.get()))
    }

    /// The first moment from `self` on that is a multiple of `step` after the origin; `self` where
    /// `step` is zero.
    pub fn round_up(self, step: Duration) -> Self {
        let step = nanos(step);
        let over = (self.0.get() - 1).checked_rem(step).unwrap_or(0);
        if over == 0 {
            self
        } else {
            Self(self.0.saturating_add(step - over))
        }
    }

    /// The moment `by` before `self`, not before the origin.
    pub fn before(self, by: Duration) -> Self {
        let nanos = self.0.get().saturating_sub(nanos(by));
        NonZeroU64::new(nanos).map_or(Self::ZERO, Self)
    }
}

impl Default for Mono {
    fn default() -> Self {
        Self::ZERO
    }
}

impl std::ops::Add<Duration> for Mono {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Position of a sync in the checked configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncId(pub u16);

/// Identity of a row of `pg2kv.outbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutboxId(pub i64);

/// Identity of a row of `pg2kv.claim`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimId(pub i64);

/// Number of a leadership; each new leader has a larger one. It fences every write to `pg2kv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub i64);

/// One row of the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Identity of the outbox row.
    pub id: OutboxId,
    /// The sync that the row belongs to.
    pub sync: SyncId,
    /// What may differ.
    pub what: Changed,
    /// Time since the row was written, by the clock of the database.
    pub age: Duration,
}

/// What may differ between Postgres and KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The document of this key.
    Key(Key),
    /// The document of this key, which is to be written even if it is what was written last: KV was
    /// seen to have another one, or none.
    Again(Key),
    /// The documents whose rows match a row of a related table, old or new.
    Related(Related),
    /// Every document of the sync (TRUNCATE, `pg2kv.resync`).
    Everything,
}

/// Documents that take data from a row of a related table, by the values that their rows match.
///
/// Values and position stand in types whose `Debug` shows fingerprints only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Related {
    /// Name of the related table within the sync.
    pub table: Arc<str>,
    /// The values of the matched columns, in the order of the sync's columns.
    pub values: Key,
    /// Documents up to and with this key are recorded already; `None` at the start.
    pub after: Option<Key>,
}

/// The name of a pair in Workers KV: 1 to 512 bytes, not `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KvName(Arc<str>);

impl KvName {
    /// Checks the limits of Workers KV.
    ///
    /// # Errors
    /// [`Poison`] with [`PoisonReason::KeyTooLong`] or [`PoisonReason::IllegalKey`].
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, Poison> {
        let name = name.into();
        match name.len() {
            0 => Err(Poison::new(PoisonReason::IllegalKey, "the KV key is empty")),
            n if n > KV_NAME_MAX_BYTES => Err(Poison::new(
                PoisonReason::KeyTooLong,
                format!("the KV key has {n} bytes; Workers KV allows {KV_NAME_MAX_BYTES}"),
            )),
            _ if &*name == "." || &*name == ".." => Err(Poison::new(
                PoisonReason::IllegalKey,
                "the KV key is \".\" or \"..\", which Workers KV does not allow",
            )),
            _ => Ok(Self(name)),
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KvName({})", fingerprint(&self.0))
    }
}

/// Content of a value.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// UTF-8 text, JSON included: goes into the bulk body as a JSON string.
    Text(Bytes),
    /// Arbitrary bytes: go into the bulk body as base64.
    Binary(Bytes),
}

impl Value {
    /// The bytes that a Worker will read.
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes,
        }
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.bytes().len())
    }
}

/// First 128 bits of BLAKE3 over all that a pair holds (value, metadata, expiry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContentHash(pub u128);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0.to_be_bytes()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 0x0f)];
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// A pair as it is to stand in Workers KV, within every limit of a single pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// KV key.
    pub name: KvName,
    /// Content, at most 25 MiB.
    pub value: Value,
    /// Metadata as JSON text, at most 1,024 bytes; it carries the [`owner::Mark`].
    pub metadata: Arc<str>,
    /// Hash of the content, as the metadata carries it.
    pub hash: ContentHash,
    /// When KV drops the pair; `None` is never.
    pub expiration: Option<Expiration>,
}

/// When KV drops a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiration {
    /// At this Unix time in seconds.
    At(u64),
    /// So many seconds after it is written, [`KV_TTL_MIN_SECONDS`] or more.
    After(u32),
}

/// What the rows of a key make, as Postgres gave it: not yet known to be a pair that KV takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The content.
    pub value: DraftValue,
    /// MIME type of the value.
    pub content_type: Option<DraftText>,
    /// The user's own metadata, as JSON text of any kind.
    pub metadata: Option<DraftText>,
    /// How long the pair is to stand.
    pub expiry: Expiry,
}

/// A text of a [`Draft`] beside its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftText {
    /// All of it.
    Whole(String),
    /// Far over what metadata may have, so it was left where it is.
    TooLarge {
        /// Its size in bytes.
        bytes: u64,
    },
}

impl DraftText {
    fn weight(&self) -> usize {
        match self {
            Self::Whole(text) => text.len(),
            Self::TooLarge { .. } => 0,
        }
    }
}

impl Draft {
    /// A value and nothing else.
    pub fn of(value: Value) -> Self {
        Self {
            value: DraftValue::Whole(value),
            content_type: None,
            metadata: None,
            expiry: Expiry::Never,
        }
    }

    /// What two rows of one key make where each row is a document.
    pub fn duplicate() -> Self {
        Self {
            value: DraftValue::Duplicate,
            ..Self::of(Value::Text(Bytes::new()))
        }
    }

    /// Bytes that Postgres put together for it, about.
    pub fn made(&self) -> u64 {
        match self.value {
            DraftValue::TooLarge { bytes, .. } => bytes,
            DraftValue::Whole(_) | DraftValue::Twice | DraftValue::Duplicate => {
                self.weight() as u64
            }
        }
    }

    /// Bytes that it holds in memory, about.
    pub fn weight(&self) -> usize {
        let value = match &self.value {
            DraftValue::Whole(value) => value.bytes().len(),
            DraftValue::TooLarge { .. } | DraftValue::Twice | DraftValue::Duplicate => 0,
        };
        let texts = [&self.content_type, &self.metadata];
        let texts = texts.into_iter().flatten().map(DraftText::weight);
        value + texts.sum::<usize>()
    }
}

/// Content of a [`Draft`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftValue {
    /// All of it.
    Whole(Value),
    /// Over [`KV_VALUE_MAX_BYTES`], or over what the read had room for, so it was left where it is.
    TooLarge {
        /// Its size in bytes.
        bytes: u64,
        /// Among how many documents the rows of its key are divided, 1 where they are not; `None`
        /// where one row is one document.
        shards: Option<u32>,
    },
    /// Two of its rows have the same member.
    Twice,
    /// Two rows have the same key, and one row is one document.
    Duplicate,
}

/// How long a pair is to stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Until it is deleted.
    Never,
    /// Until a moment that the row names and that has not come.
    At {
        /// Unix time in seconds.
        unix_seconds: u64,
        /// Seconds until then by the clock of the database, when the row was read.
        ahead_seconds: u64,
    },
    /// For so many seconds after each write.
    After(u32),
}

impl Document {
    /// Bytes that the pair adds to a body, about: what batches are cut by.
    pub fn weight(&self) -> usize {
        self.value.bytes().len() + self.metadata.len() + self.name.as_str().len() + 64
    }
}

/// What the rows of a key say now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rendered {
    /// The pair must stand in KV like this.
    Put(Document),
    /// The pair must not stand in KV.
    Delete(KvName),
    /// There are no rows, and KV can have no pair for them: their name would be no valid one.
    Nothing,
    /// No valid pair can be made of the rows.
    Poison(Poison),
    /// The read had no room for the value. Workers KV has: it is to be read by itself.
    Large,
}

/// Why a key cannot be written, now and at each further try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    /// The kind, a metric label.
    pub reason: PoisonReason,
    /// One sentence for the operator; holds no value of a row.
    pub detail: String,
    /// Name of the pair in KV, where it has a legal one.
    pub name: Option<KvName>,
}

impl Poison {
    /// A reason with its sentence.
    pub fn new(reason: PoisonReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            name: None,
        }
    }

    /// The same with the name of the pair.
    pub fn of(self, name: KvName) -> Self {
        Self {
            name: Some(name),
            ..self
        }
    }
}

/// Kinds of [`Poison`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoisonReason {
    /// Empty, `.`, `..`, or not reversible to its columns.
    IllegalKey,
    /// More than 512 bytes.
    KeyTooLong,
    /// Value over 25 MiB.
    ValueTooLarge,
    /// Metadata over 1,024 bytes or not JSON.
    BadMetadata,
    /// Expiry in the past or less than 60 s ahead.
    BadExpiry,
    /// The value expression fails for this row.
    RowError,
    /// Workers KV refuses this pair.
    Rejected,
}

impl PoisonReason {
    /// The reason as a metric label and as text in `pg2kv.dead_letter.reason`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IllegalKey => "illegal_key",
            Self::KeyTooLong => "key_too_long",
            Self::ValueTooLarge => "value_too_large",
            Self::BadMetadata => "bad_metadata",
            Self::BadExpiry => "bad_expiry",
            Self::RowError => "row_error",
            Self::Rejected => "rejected",
        }
    }
}

/// The body of one bulk request: pairs to write or names to delete, never both, all of one sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Batch {
    /// `PUT …/bulk`
    Put(Vec<Document>),
    /// `POST …/bulk/delete`
    Delete(Vec<KvName>),
}

impl Batch {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        match self {
            Self::Put(documents) => documents.len(),
            Self::Delete(names) => names.len(),
        }
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of its documents, about; those of names are not worth to be counted.
    pub fn weight(&self) -> usize {
        match self {
            Self::Put(documents) => documents.iter().map(Document::weight).sum(),
            Self::Delete(_) => 0,
        }
    }

    /// Keeps names and hashes: an answer needs no more to be understood, and nothing is sent twice.
    pub fn drop_contents(&mut self) {
        let nothing = Arc::from("");
        if let Self::Put(documents) = self {
            for document in documents {
                document.value = Value::Text(Bytes::new());
                document.metadata = Arc::clone(&nothing);
            }
        }
    }
}

/// What one bulk request came to, with what the reply said about the rate limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it means for the keys.
    pub outcome: Outcome,
    /// `Ratelimit` header, where the reply had one.
    pub limit: Option<RateLimit>,
    /// HTTP status, or `None` where no reply came.
    pub status: Option<u16>,
    /// One sentence for log and status page: what happened, without keys, values or secrets.
    pub detail: String,
}

/// `Ratelimit: "default";r=50;t=30`.
/// Source: Cloudflare API changelog of 2025-09-03.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Requests left.
    pub remaining: u64,
    /// Time until the count starts anew.
    pub reset: Duration,
}

/// What a bulk request means for its keys. The relay's policy is a table over this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Proven: every pair is written or deleted.
    Written,
    /// The listed positions of the batch are in doubt; all others are proven.
    Partial(Vec<usize>),
    /// The request may have been applied, wholly or in part, or may be applied later.
    Ambiguous(AmbiguousReason),
    /// Nothing was sent: name resolution, connection refused, TLS handshake.
    NotSent(NotSentReason),
    /// The content was refused and nothing was applied (400, 413).
    Rejected,
    /// 429: nothing was applied; wait at least this long where the server said so.
    Throttled(Option<Duration>),
    /// 401 or 403, or code 10000: the token does not serve.
    Unauthorized,
    /// 404 or code 10013: there is no such namespace.
    NamespaceGone,
    /// Code 10048: the day's quota of the free plan is used up; it starts anew at 00:00 UTC.
    QuotaExhausted,
    /// A reply that the API does not document (3xx, other 4xx): nothing was applied; needs a person.
    Unexpected,
}

/// Why an [`Outcome::Ambiguous`] is so; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AmbiguousReason {
    /// No reply in time.
    Timeout,
    /// The connection broke after the request began to go out.
    Broken,
    /// 5xx from the API.
    ServerError,
    /// 52x from Cloudflare's edge.
    EdgeError,
    /// 2xx, but the body is not the documented one, is cut short, says `success: false`, or counts
    /// do not add up.
    BadReply,
}

impl AmbiguousReason {
    /// The reason as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Broken => "broken_connection",
            Self::ServerError => "server_error",
            Self::EdgeError => "edge_error",
            Self::BadReply => "bad_reply",
        }
    }
}

/// Why an [`Outcome::NotSent`] is so; a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotSentReason {
    /// Name resolution failed.
    Dns,
    /// No connection could be made.
    Connect,
    /// The TLS handshake failed: certificate, host name or clock.
    Tls,
    /// This process may not send: it is no longer sure to be the leader.
    Fenced,
}

impl NotSentReason {
    /// The reason as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Fenced => "fenced",
        }
    }
}
