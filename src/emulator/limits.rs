//! What the emulated service accepts, and how often.
//!
//! Owns the numbers and the two rate limits (requests of an account, writes of a key). Time is an
//! argument; nothing here knows HTTP.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::clock::micros;
use crate::change::{
    KV_BULK_MAX_BYTES, KV_BULK_MAX_PAIRS, KV_METADATA_MAX_BYTES, KV_NAME_MAX_BYTES,
    KV_TTL_MIN_SECONDS, KV_VALUE_MAX_BYTES,
};

/// Limits of the emulated service. The default is what Workers KV documents.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Least time between two writes (or deletes) of one key; `None` switches the limit off.
    pub key_interval: Option<Duration>,
    /// Requests that a token may make; `None` switches the limit off.
    pub requests: Option<RequestLimit>,
    /// Longest key in bytes.
    pub key_bytes: usize,
    /// Largest value in bytes.
    pub value_bytes: usize,
    /// Largest metadata in bytes of compact JSON.
    pub metadata_bytes: usize,
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// Most pairs or keys in a bulk write or a bulk delete.
    pub bulk_pairs: usize,
    /// Most keys in a bulk read.
    pub bulk_get_keys: usize,
    /// Least time from now to an expiration, in seconds.
    pub ttl_seconds: u64,
    /// Most namespaces in the account.
    pub namespaces: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            key_interval: Some(Duration::from_secs(1)),
            requests: Some(RequestLimit::default()),
            key_bytes: KV_NAME_MAX_BYTES,
            value_bytes: KV_VALUE_MAX_BYTES,
            metadata_bytes: KV_METADATA_MAX_BYTES,
            body_bytes: KV_BULK_MAX_BYTES,
            bulk_pairs: KV_BULK_MAX_PAIRS,
            bulk_get_keys: 100,
            ttl_seconds: u64::from(KV_TTL_MIN_SECONDS),
            namespaces: 1_000,
        }
    }
}

impl Limits {
    /// The documented sizes without either rate limit: for load that is to run at full speed.
    pub fn without_rate_limits() -> Self {
        Self {
            key_interval: None,
            requests: None,
            ..Self::default()
        }
    }
}

/// Requests that a token may make in a window of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimit {
    /// Requests in one window.
    pub quota: u64,
    /// Length of the window, and of the block that follows once the quota is exceeded.
    pub window: Duration,
}

impl Default for RequestLimit {
    fn default() -> Self {
        Self {
            quota: 1_200,
            window: Duration::from_secs(300),
        }
    }
}

/// Counts the requests of a token against its [`RequestLimit`].
#[derive(Debug)]
pub(super) struct RequestWindow {
    limit: RequestLimit,
    used: u64,
    /// Unix microseconds at which the count starts anew; 0 before the first request.
    resets_at: u64,
    blocked: bool,
}

/// What the `Ratelimit` headers of one reply say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allowance {
    pub(super) limit: RequestLimit,
    pub(super) remaining: u64,
    /// Seconds until the count starts anew, rounded up.
    pub(super) reset_seconds: u64,
    pub(super) refused: bool,
}

impl RequestWindow {
    pub(super) fn new(limit: RequestLimit) -> Self {
        Self {
            limit,
            used: 0,
            resets_at: 0,
            blocked: false,
        }
    }

    /// Counts a request that arrives `now` (Unix microseconds).
    pub(super) fn count(&mut self, now: u64) -> Allowance {
        if now >= self.resets_at {
            self.used = 0;
            self.blocked = false;
            self.resets_at = now.saturating_add(micros(self.limit.window));
        }
        if !self.blocked && self.used >= self.limit.quota {
            // Cloudflare refuses every call for the next five minutes, counted from the excess.
            self.blocked = true;
            self.resets_at = now.saturating_add(micros(self.limit.window));
        }
        if !self.blocked {
            self.used += 1;
        }
        Allowance {
            limit: self.limit,
            remaining: if self.blocked {
                0
            } else {
                self.limit.quota - self.used
            },
            reset_seconds: self.resets_at.saturating_sub(now).div_ceil(1_000_000),
            refused: self.blocked,
        }
    }
}

/// Remembers which keys were written within the last interval.
///
/// Holds at most the keys of one interval: older ones leave at the next write.
#[derive(Debug, Default)]
pub(super) struct KeyPace {
    written: HashMap<Arc<str>, u64>,
    order: VecDeque<(u64, Arc<str>)>,
}

impl KeyPace {
    /// Whether a write of `key` would come too soon.
    pub(super) fn too_soon(&self, key: &str, now: u64, interval: Duration) -> bool {
        self.written
            .get(key)
            .is_some_and(|at| now < at.saturating_add(micros(interval)))
    }

    /// Notes a write of `key`, and forgets those that are older than the interval.
    pub(super) fn note(&mut self, key: &Arc<str>, now: u64, interval: Duration) {
        while let Some((at, _)) = self.order.front()
            && at.saturating_add(micros(interval)) <= now
        {
            if let Some((at, old)) = self.order.pop_front()
                && self.written.get(&old) == Some(&at)
            {
                self.written.remove(&old);
            }
        }
        self.written.insert(Arc::clone(key), now);
        self.order.push_back((now, Arc::clone(key)));
    }
}
