//! The first sync of a table: pg2kv beside Cloudflare's own ways.
//!
//! All three read the table of Cloudflare's example and write the same pairs into an empty KV. KV
//! answers at once here, and all three share its cores with it, which a real one would not. So they
//! are also measured with replies that take as long as over a network; the emulator's cost counts for
//! less there.

use std::time::{Duration, Instant};

use super::peers::{self, Took};
use super::stand::{Kv, Pace, Published, Stand};
use super::usage::Watch;
use crate::Context;
use crate::report::{Figure, Report, Target};
use crate::rounds::{Samples, turns};
use crate::support::node::Peers;

/// The table of Cloudflare's example, and its pairs.
const EXAMPLE: Published = Published {
    table: "create table public.users (
              id uuid primary key default gen_random_uuid(),
              username text not null,
              email text not null,
              preview_features_enabled boolean not null default false
            )",
    sync: "table = \"public.users\"\nkey = \"{id}\"\ncolumns = [\"preview_features_enabled\"]",
};

/// How often KV is asked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long a reply takes over a network. The real service takes longer for 10,000 pairs.
const NETWORK_MS: u64 = 500;

const PG2KV: &str = "pg2kv";
const SCRIPT: &str = "the documentation's script in chunks";
const WRANGLER: &str = "psql and wrangler kv bulk put";

/// Runs the part.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let peers = tokio::task::spawn_blocking(Peers::installed).await.unwrap();
    let users = context.size(1_000_000, 100_000);
    let all = [PG2KV, SCRIPT, WRANGLER];
    let stand = with_users(users).await;
    let at_once = measure(&stand, &peers, users, 0, context.size(2, 1), &all).await;
    let name = format!("first sync of {users} users");
    report_all(report, &name, &at_once, &all[1..]);
    drop(stand);

    // Wrangler writes 1,000 pairs at a time, one after the other: with the larger table that would
    // take eight minutes.
    let slow: Vec<(u64, &[&'static str])> = context.size(
        vec![(1_000_000, &all[..2]), (100_000, &all)],
        vec![(100_000, &all[..2])],
    );
    for (users, variants) in slow {
        let stand = with_users(users).await;
        let slow = measure(&stand, &peers, users, NETWORK_MS, 1, variants).await;
        let name = format!("first sync of {users} users, replies take {NETWORK_MS} ms");
        report_all(report, &name, &slow, &variants[1..]);
    }
}

/// The example's table with so many rows, and nothing of pg2kv.
async fn with_users(users: u64) -> Stand {
    let stand = Stand::start(EXAMPLE).await;
    stand
        .sql(&format!(
            "insert into public.users (username, email, preview_features_enabled)
             select 'user' || n, 'user' || n || '@example.com', n % 3 = 0
             from generate_series(1, {users}) n"
        ))
        .await;
    stand.rest().await;
    stand
}

/// Seconds and MiB, by variant.
struct Measured {
    seconds: Samples<&'static str>,
    mib: Samples<&'static str>,
}

async fn measure(
    stand: &Stand,
    peers: &Peers,
    users: u64,
    delay_ms: u64,
    rounds: usize,
    variants: &[&'static str],
) -> Measured {
    let mut measured = Measured {
        seconds: Samples::new(),
        mib: Samples::new(),
    };
    for variant in turns(rounds, variants) {
        let kv = Kv::start(Pace::Free).await;
        if delay_ms > 0 {
            kv.delay(delay_ms).await;
        }
        let took = match variant {
            PG2KV => pg2kv(stand, &kv, users).await,
            SCRIPT => peers::script(peers, stand, &kv).await,
            _ => peers::wrangler(peers, stand, &kv).await,
        };
        assert_eq!(kv.counts().await.pairs, users, "pairs written by {variant}");
        measured.seconds.push(variant, took.time.as_secs_f64());
        measured.mib.push(variant, took.peak_kib as f64 / 1024.0);
    }
    measured
}

/// The daemon's walk over a table that it has never seen: from its start until KV has accepted the
/// last pair.
async fn pg2kv(stand: &Stand, kv: &Kv, users: u64) -> Took {
    stand.install().await;
    let began = Instant::now();
    let daemon = stand.daemon(kv, Pace::Free);
    let watch = Watch::start(daemon.pid());
    kv.applied(users, LOOK_EVERY).await;
    let time = began.elapsed();
    stand.settled().await;
    let peak_kib = watch.peak_kib().await;
    daemon.stop().await;
    stand.uninstall().await;
    Took { time, peak_kib }
}

fn report_all(report: &mut Report, name: &str, measured: &Measured, others: &[&'static str]) {
    let Measured { seconds, mib } = measured;
    for other in others {
        report.add(
            Figure::new(name, "s", seconds.of(PG2KV))
                .against(other, seconds.of(other))
                .target(Target::RatioAtMost(1.0 / 3.0)),
        );
    }
    for other in others {
        report.add(
            Figure::new(format!("{name}: memory"), "MiB", mib.of(PG2KV))
                .against(other, mib.of(other))
                .target(Target::RatioAtMost(1.0)),
        );
    }
}
