//! A drain under the limit of the API: 1,200 requests of 10,000 pairs in five minutes.
//!
//! The limit allows a burst. So a rate means something only over a whole window of five minutes that
//! begins with the first request: no more than 1,200 requests fall into it, whenever they are sent,
//! and none were saved up before. The long round measures just that. The short one cannot; it
//! measures how full requests are while a backlog waits, and multiplies by those that the daemon allows
//! itself in a window: 1,200 without its reserve of 60.

use std::time::{Duration, Instant};

use super::stand::{Kv, Pace, Stand, USERS, insert_users};
use crate::Context;
use crate::report::{Figure, Report, Target};
use crate::support::wait::say;

/// The window that the API counts over.
const WINDOW: Duration = Duration::from_secs(300);
/// Pairs a second that it allows.
const ALLOWED: f64 = 40_000.0;
/// Requests in a window that the daemon's defaults leave for writes.
const OWN_REQUESTS: f64 = 1_140.0;

/// Rows of the table. They are to be written again and again, one block after the other.
const ROWS: u64 = 1_000_000;
const BLOCK: u64 = 100_000;
/// Changes that wait to be written, at the least. A key has long been written when its block comes
/// again, so no two changes become one write.
const WAITING: u64 = 400_000;
/// Keys of the short round, and those at its end that are no backlog any more: the daemon has them all in
/// memory, and divides them among the requests that may be under way.
const QUICK_ROWS: u64 = 300_000;
const QUICK_END: u64 = 100_000;

/// Runs the part.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let rows = context.size(ROWS, QUICK_ROWS);
    let stand = Stand::start(USERS).await;
    stand.install().await;
    let kv = Kv::start(Pace::Free).await;
    stand.get_known(&kv).await;
    stand.sql(&insert_users(1, rows)).await;
    stand.rest().await;

    let kv = Kv::start(Pace::Limited).await;
    let daemon = stand.daemon(&kv, Pace::Limited);
    let (name, rate) = if context.size(true, false) {
        (
            "drain under the API's limit, over five minutes",
            window(&stand, &kv).await,
        )
    } else {
        let counts = kv
            .applied(rows - QUICK_END, Duration::from_millis(10))
            .await;
        let pairs_per_request = counts.applied as f64 / counts.bulk_writes as f64;
        (
            "drain under the API's limit, from how full requests are",
            pairs_per_request * OWN_REQUESTS / WINDOW.as_secs_f64(),
        )
    };
    let counts = kv.counts().await;
    say(&format!(
        "    {} pairs in {} requests",
        counts.applied, counts.bulk_writes
    ));
    daemon.stop().await;
    report.add(
        Figure::new(name, "keys/s", &[rate])
            .against("what the limit allows", &[ALLOWED])
            .target(Target::RatioAtLeast(0.9)),
    );
}

/// Keys a second over the window that begins with the first request, while there is always a
/// backlog.
async fn window(stand: &Stand, kv: &Kv) -> f64 {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let began = loop {
        look.tick().await;
        if kv.counts().await.bulk_writes > 0 {
            break Instant::now();
        }
    };
    let (mut made, mut block) = (ROWS, 0);
    // What a trigger would put there. Changing as many rows too takes more than the machine has.
    loop {
        let applied = kv.counts().await.applied;
        if began.elapsed() >= WINDOW {
            return applied as f64 / began.elapsed().as_secs_f64();
        }
        if made - applied < WAITING {
            let (first, last) = (block * BLOCK + 1, (block + 1) * BLOCK);
            stand
                .sql(&format!(
                    "insert into pg2kv.outbox (sync, key)
                     select 'users', jsonb_build_array(n) from generate_series({first}, {last}) n"
                ))
                .await;
            made += BLOCK;
            block = (block + 1) % (ROWS / BLOCK);
        } else {
            look.tick().await;
        }
    }
}
