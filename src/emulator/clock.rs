//! The emulator's wall clock: real time that a test may stop and move.
//!
//! Owns what "now" means for expirations, rate limits and recorded times. Knows nothing of requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A wall clock. Clones show the same time.
///
/// A running clock takes the system's time once and counts on monotonically, so that a step of the
/// system's clock moves nothing here.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Unix time in microseconds at `started`.
    origin: u64,
    /// `None`: the clock stands still unless it is advanced.
    started: Option<Instant>,
    /// Microseconds by which [`Clock::advance`] moved it.
    advanced: AtomicU64,
}

impl Clock {
    /// A clock that runs, beginning at the system's time.
    pub fn running() -> Self {
        let since_epoch = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self::new(since_epoch, Some(Instant::now()))
    }

    /// A clock that stands at `unix_time` until it is advanced.
    pub fn stopped_at(unix_time: Duration) -> Self {
        Self::new(unix_time, None)
    }

    fn new(unix_time: Duration, started: Option<Instant>) -> Self {
        let advanced = AtomicU64::new(0);
        Self(Arc::new(Inner {
            origin: micros(unix_time),
            started,
            advanced,
        }))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.0.advanced.fetch_add(micros(by), Ordering::Relaxed);
    }

    /// Unix time in microseconds.
    pub fn unix_micros(&self) -> u64 {
        let ran = self
            .0
            .started
            .map_or(0, |started| micros(started.elapsed()));
        self.0.origin + ran + self.0.advanced.load(Ordering::Relaxed)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::running()
    }
}

/// A duration in microseconds, as large as it can be where it does not fit.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
