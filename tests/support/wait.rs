//! Waiting for what can be seen from outside only, and telling how it went.

use std::io::Write as _;
use std::time::{Duration, Instant};

/// Longest that a test waits for anything. Far more than it takes on an idle machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
/// How often a state is looked at that does not announce itself.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks again and again until there is something to see; panics with `what` after the deadline.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Prints a line beside the test's output: seeds, and logs after a failure.
pub(crate) fn say(text: &str) {
    // Nobody to read it is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// A seed: the variable's where it is set, a fresh one otherwise. It is printed, so that a run can be
/// repeated.
pub(crate) fn seed(variable: &str) -> u64 {
    let seed = match std::env::var(variable) {
        Ok(text) => text.parse().expect("a number as seed"),
        Err(_) => fastrand::u64(..1_000_000),
    };
    say(&format!("{variable}={seed}"));
    seed
}
