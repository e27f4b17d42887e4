//! A backlog of one UPDATE, drained as fast as it goes: beside the floor.

use std::time::{Duration, Instant};

use super::floor;
use super::stand::{Kv, Pace, Stand, USERS, insert_users};
use super::usage::processor_seconds;
use crate::Context;
use crate::report::{Figure, Report, Target};
use crate::rounds::{Samples, turns};

/// How often KV is asked how far a drain is.
const LOOK_EVERY: Duration = Duration::from_millis(10);

const DAEMON: &str = "pg2kv";
const SEQUENTIAL: &str = "COPY, then bulk writes one by one";
const PIPELINED: &str = "COPY and bulk writes overlapped";
const POSTGRES: &str = "PostgreSQL";
const KV: &str = "KV";

/// Runs the part.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let keys = context.size(1_000_000, 100_000);
    let rounds = context.size(3, 2);
    let stand = Stand::start(USERS).await;
    let kv = Kv::start(Pace::Free).await;
    stand.install().await;
    stand.get_known(&kv).await;
    // The backlog of the first rows warms KV up: from then on all write over what is there.
    stand.sql(&insert_users(1, keys)).await;
    drain(&stand, &kv, keys).await;

    let mut samples = Samples::new();
    let mut used = Samples::new();
    for variant in turns(rounds, &[DAEMON, SEQUENTIAL, PIPELINED]) {
        let seconds = match variant {
            DAEMON => {
                change_all(&stand).await;
                let drained = drain(&stand, &kv, keys).await;
                for (who, seconds) in drained.processor_seconds {
                    used.push(who, seconds * 1e6 / keys as f64);
                }
                drained.took.as_secs_f64()
            }
            SEQUENTIAL => floor::sequential(&stand, &kv).await.seconds(),
            _ => floor::pipelined(&stand, &kv).await.as_secs_f64(),
        };
        samples.push(variant, seconds);
    }
    assert_eq!(kv.counts().await.pairs, keys, "pairs in KV");

    let name = format!("drain of {keys} changed keys");
    let took = samples.of(DAEMON);
    report.add(
        Figure::new(&name, "s", took)
            .against(SEQUENTIAL, samples.of(SEQUENTIAL))
            .target(Target::RatioAtMost(1.3)),
    );
    let rates: Vec<f64> = took.iter().map(|seconds| keys as f64 / seconds).collect();
    report.add(
        Figure::new(format!("{name}, rate"), "keys/s", &rates).target(Target::AtLeast(60_000.0)),
    );
    report.add(
        Figure::new(
            format!("{name}, beside reading and writing overlapped"),
            "s",
            took,
        )
        .against(PIPELINED, samples.of(PIPELINED)),
    );
    for who in [DAEMON, POSTGRES, KV] {
        let name = format!("{name}, processor time of {who} for a key");
        report.add(Figure::new(name, "µs", used.of(who)));
    }
}

/// One UPDATE of each row while no daemon runs.
async fn change_all(stand: &Stand) {
    stand
        .sql("update public.users set plan = case plan when 'free' then 'pro!' else 'free' end")
        .await;
    stand.rest().await;
}

/// What a drain took.
struct Drained {
    took: Duration,
    /// What each of the three used of the processors meanwhile.
    processor_seconds: [(&'static str, f64); 3],
}

/// Lets a daemon write what stands in the outbox: from its start until KV has accepted the last key.
/// Then nothing must be left.
async fn drain(stand: &Stand, kv: &Kv, keys: u64) -> Drained {
    let before = kv.counts().await.applied;
    let others = [(POSTGRES, stand.postgres.pid().unwrap()), (KV, kv.pid())];
    let others = others.map(|(who, pid)| (who, pid, processor_seconds(pid)));
    let began = Instant::now();
    let daemon = stand.daemon(kv, Pace::Free);
    kv.applied(before + keys, LOOK_EVERY).await;
    let took = began.elapsed();
    let own = (DAEMON, processor_seconds(daemon.pid()));
    let [postgres, kv] = others.map(|(who, pid, before)| (who, processor_seconds(pid) - before));
    stand.settled().await;
    daemon.stop().await;
    Drained {
        took,
        processor_seconds: [own, postgres, kv],
    }
}
