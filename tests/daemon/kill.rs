//! kill -9 at any moment loses nothing.

use tokio_util::sync::CancellationToken;

use crate::support::load::{SYNCS, TABLES, Writer};
use crate::support::wait::{say, seed};
use crate::support::world::{Plan, World};

const KILLS: u64 = 20;
const CHANGES: u64 = 5_000;

#[tokio::test]
async fn twenty_kills_during_a_load_lose_nothing() {
    let seed = seed("PG2KV_KILL_SEED");
    let mut rng = fastrand::Rng::with_seed(seed);
    let world = World::start(Plan {
        sql: TABLES,
        syncs: SYNCS,
        // A new leader waits for so long before it trusts that a claim's write has ended.
        settings: &[("lease.ttl", "3s")],
        limits: None,
    })
    .await;
    let client = world.admin().await;
    let mut writer = Writer::new(rng.u64(..), true);
    let mut daemon = world.daemon();
    for kill in 1..=KILLS {
        if rng.bool() {
            // One more, of a daemon that does not lead yet.
            daemon.logged("pg2kv started").await;
            daemon.kill().await;
            daemon = world.daemon();
        }
        daemon.leads().await;
        let (from, to) = (CHANGES * (kill - 1) / KILLS, CHANGES * kill / KILLS);
        let moment = rng.u64(from..to);
        let mut applied = world.kv.subscribe();
        while writer.changes < moment {
            writer.transaction(&client).await;
        }
        // Beside the load: the moment is also one of the daemon's, after so many of its writes.
        let writes = rng.u8(..3);
        let written = CancellationToken::new();
        let load = async {
            while writer.changes < to {
                writer.transaction(&client).await;
            }
            written.cancel();
        };
        let kill = async {
            for _ in 0..writes {
                tokio::select! {
                    _ = applied.next() => {}
                    () = written.cancelled() => break,
                }
            }
            daemon.kill().await;
            world.daemon()
        };
        ((), daemon) = tokio::join!(load, kill);
        world.converges().await;
    }
    say(&format!(
        "{} changes, {} transactions aborted, {} writes in KV, {KILLS} kills of a leader",
        writer.changes,
        writer.aborted,
        world.kv.statistics().applied
    ));
    daemon.stop().await;
    world.converges().await;
}
