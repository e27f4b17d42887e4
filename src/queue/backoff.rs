//! Exponential backoff with full jitter. The only file that knows the `backoff` crate.
//!
//! Time and randomness come from the caller, so a simulation replays exactly: the crate's clock is
//! a fixed instant (there is no limit on elapsed time that would read it) and its own jitter is off.

use std::time::{Duration, Instant};

use backoff::backoff::Backoff as _;
use backoff::exponential::ExponentialBackoff;

/// Waits between tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Upper bound of the first wait.
    pub initial: Duration,
    /// Upper bound of every wait.
    pub max: Duration,
}

#[derive(Clone, Copy, Debug)]
struct FixedClock(Instant);

impl backoff::Clock for FixedClock {
    fn now(&self) -> Instant {
        self.0
    }
}

/// One row of failures: the bound doubles with each, a success ends the row.
#[derive(Debug)]
pub struct Backoff {
    inner: ExponentialBackoff<FixedClock>,
    failures: u32,
}

impl Backoff {
    /// A row with no failure yet.
    pub fn new(settings: Settings) -> Self {
        let clock = FixedClock(Instant::now());
        Self {
            inner: ExponentialBackoff {
                current_interval: settings.initial,
                initial_interval: settings.initial,
                randomization_factor: 0.0,
                multiplier: 2.0,
                max_interval: settings.max,
                start_time: clock.0,
                max_elapsed_time: None,
                clock,
            },
            failures: 0,
        }
    }

    /// The wait after one more failure: between an eighth of the bound and the bound, by `jitter`
    /// in `0.0..1.0`. The floor keeps a run of small draws from becoming a busy loop.
    pub fn next(&mut self, jitter: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        // None stands for "give up", which max_elapsed_time: None rules out.
        let bound = self.inner.next_backoff().unwrap_or(self.inner.max_interval);
        bound.mul_f64(0.125 + 0.875 * jitter.clamp(0.0, 1.0))
    }

    /// Ends the row of failures.
    pub fn reset(&mut self) {
        if self.failures > 0 {
            self.failures = 0;
            self.inner.reset();
        }
    }

    /// Failures in the row so far.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        initial: Duration::from_millis(200),
        max: Duration::from_secs(30),
    };

    #[test]
    fn doubles_to_the_bound_and_starts_anew() {
        let mut backoff = Backoff::new(SETTINGS);
        let waits: Vec<u128> = (0..10).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(
            waits,
            [200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000]
        );
        assert_eq!(backoff.failures(), 10);
        backoff.reset();
        assert_eq!(backoff.next(1.0), Duration::from_millis(200));
    }

    #[test]
    fn jitter_spreads_but_never_reaches_zero() {
        let mut backoff = Backoff::new(SETTINGS);
        assert_eq!(backoff.next(0.0), Duration::from_millis(25));
        assert_eq!(backoff.next(0.0), Duration::from_millis(50));
    }

    #[test]
    fn never_gives_up() {
        let mut backoff = Backoff::new(SETTINGS);
        assert!((0..100_000).all(|_| backoff.next(0.5) <= SETTINGS.max));
    }
}
