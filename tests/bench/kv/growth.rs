//! Whether a key of a large backlog costs more than one of a small one, in time and in memory.

use std::time::{Duration, Instant};

use super::stand::{Kv, Pace, Stand, USERS, insert_users};
use super::usage::resident;
use crate::Context;
use crate::report::{Figure, Report, Target};
use crate::rounds::{Samples, median, turns};
use crate::support::wait;

/// How often KV is asked how far a drain is.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A backlog of one key: what a beginning takes, whatever there is to do. The first looks at the
/// outbox, and one batch.
const START: u64 = 1;

/// What a drain took.
struct Drained {
    /// From the moment when the daemon leads. What connecting takes differs from start to start by as
    /// much as thousands of keys take.
    seconds: f64,
    peak_mib: f64,
}

/// Runs the part.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let small: &[u64] = context.size(&[10_000, 100_000, 1_000_000], &[10_000, 100_000]);
    // What a few keys take is little beside how far one run differs from another.
    let few = [START, small[0]].repeat(context.size(6, 2));
    let stand = Stand::start(USERS).await;
    let kv = Kv::start(Pace::Free).await;
    stand.install().await;
    stand.get_known(&kv).await;

    // The largest takes minutes, and stands between rounds of the others: a machine that grows slower
    // or faster meets all alike.
    let rounds: Vec<u64> = turns(4, &[&few, &small[1..]].concat()).collect();
    let (before, after) = rounds.split_at(rounds.len() / 2);
    let largest: &[u64] = context.size(&[10_000_000], &[]);
    let mut rows = Rows {
        stand: &stand,
        kv: &kv,
        next: 1,
    };
    let mut seconds = Samples::new();
    let mut peaks = Samples::new();
    for &size in [before, largest, after].concat().iter() {
        let drained = rows.drain(size).await;
        seconds.push(size, drained.seconds);
        peaks.push(size, drained.peak_mib);
    }

    let start = median(seconds.of(START));
    report.add(Figure::new(
        "growth: drain of one key, from when the daemon leads",
        "ms",
        &in_ms(seconds.of(START)),
    ));
    let sizes = [small, largest].concat();
    let mut micros_per_key = Vec::new();
    for &size in &sizes {
        let samples = seconds.of(size).iter();
        let samples: Vec<f64> = samples
            .map(|seconds| (seconds - start) * 1e6 / size as f64)
            .collect();
        micros_per_key.push(median(&samples));
        let name = format!("growth: time for a key of a backlog of {size}");
        report.add(Figure::new(name, "µs", &samples));
    }
    let slowest = micros_per_key.iter().copied().fold(f64::MIN, f64::max);
    let fastest = micros_per_key.iter().copied().fold(f64::MAX, f64::min);
    report.add(
        Figure::new(
            "growth: slowest size beside the fastest",
            "x",
            &[slowest / fastest],
        )
        .target(Target::AtMost(1.2)),
    );
    let largest = *sizes.last().unwrap();
    report.add(
        Figure::new(
            format!("memory, backlog of {largest} rows: at most resident"),
            "MiB",
            peaks.of(largest),
        )
        .target(Target::AtMost(96.0)),
    );
}

fn in_ms(seconds: &[f64]) -> Vec<f64> {
    seconds.iter().map(|seconds| seconds * 1e3).collect()
}

/// Backlogs of rows that are inserted while no daemon runs.
struct Rows<'a> {
    stand: &'a Stand,
    kv: &'a Kv,
    next: u64,
}

impl Rows<'_> {
    /// Makes a backlog of so many keys, and has a daemon drain it.
    async fn drain(&mut self, keys: u64) -> Drained {
        let last = self.next + keys - 1;
        self.stand.sql(&insert_users(self.next, last)).await;
        self.next = last + 1;
        self.stand.rest().await;
        // Or the first look at the outbox would step over all rows of the drains before.
        self.stand.sql("vacuum pg2kv.outbox, pg2kv.claim").await;
        self.grows_old().await;

        let before = self.kv.counts().await.applied;
        let daemon = self.stand.daemon(self.kv, Pace::Free);
        daemon.leads().await;
        let began = Instant::now();
        self.kv.applied(before + keys, LOOK_EVERY).await;
        let seconds = began.elapsed().as_secs_f64();
        self.stand.settled().await;
        let peak_mib = resident(daemon.pid()).unwrap().peak_kib as f64 / 1024.0;
        daemon.stop().await;
        Drained { seconds, peak_mib }
    }

    /// Waits until no change waits for another of its key any more: a small backlog is made so fast that
    /// the debounce would be most of its drain.
    async fn grows_old(&self) {
        let old = "select ((select at from pg2kv.outbox order by id desc limit 1)
            < clock_timestamp() - interval '1 second')::int::int8";
        wait::until("the backlog to be older than any debounce", async || {
            (self.stand.number(old).await == 1).then_some(())
        })
        .await;
    }
}
