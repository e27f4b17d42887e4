//! The only reader of clocks.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::change::Mono;

/// Now, on a clock that never jumps and counts suspend: a leader that slept must notice.
pub(super) fn now() -> Mono {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Mono::from_origin(Duration::new(seconds, nanos))
}

/// Now, by the wall clock: for people, never for a decision.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// Time until 00:00 UTC by the wall clock.
pub(super) fn until_midnight() -> Duration {
    const DAY: u64 = 86_400;
    Duration::from_secs(DAY - unix_seconds() % DAY)
}
