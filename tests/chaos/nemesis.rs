//! Chaos: two daemons, three writers, and somebody who breaks everything there is, from a seed. Then
//! all is mended, and KV must equal Postgres.
//!
//! `PG2KV_CHAOS_SEED` repeats the choices of a run (not the timing of the processes), and
//! `PG2KV_CHAOS_SECONDS` makes it longer.

use std::time::{Duration, Instant};

use pg2kv::emulator::faults::{Effect, Fault, Reply, StatusReply};
use pg2kv::emulator::route::Operation;
use pg2kv::throwaway::Stop;
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::support::load::{SYNCS, TABLES, Writer};
use crate::support::process::LEADS;
use crate::support::proxy::Mode;
use crate::support::wait::{self, say, seed};
use crate::support::world::{Plan, TOKEN, World};

const WRITERS: usize = 3;
/// How long faults of KV may hold a write back; shorter than the late-write window.
const LATE_MS: u64 = 1_200;

const PLAN: Plan = Plan {
    sql: TABLES,
    syncs: SYNCS,
    settings: &[
        ("lease.ttl", "2s"),
        ("kv.request_timeout", "1s"),
        ("retry.late_write_window", "2500ms"),
        ("backfill.chunk", "50"),
        ("postgres.statement_timeout", "2s"),
    ],
    limits: None,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_converges_after_chaos() {
    let seed = seed("PG2KV_CHAOS_SEED");
    let seconds = std::env::var("PG2KV_CHAOS_SECONDS").map_or(20, |text| text.parse().unwrap());
    let mut world = World::start(PLAN).await;
    let nodes = [
        Node::start(&world, "left").await,
        Node::start(&world, "right").await,
    ];
    let writing = CancellationToken::new();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let seed = seed.wrapping_mul(31).wrapping_add(writer as u64);
        writers.spawn(write(world.postgres.admin_url(), seed, writing.clone()));
    }
    let mut nemesis = Nemesis {
        rng: fastrand::Rng::with_seed(seed),
        nodes,
        tokens: 0,
        token: TOKEN.to_owned(),
        deeds: 0,
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        nemesis.strike(&mut world).await;
    }
    nemesis.mend(&world).await;
    writing.cancel();
    let (mut changes, mut aborted) = (0, 0);
    while let Some(writer) = writers.join_next().await {
        let writer = writer.expect("a writer that met no error of ours");
        changes += writer.changes;
        aborted += writer.aborted;
    }
    world.converges().await;
    // What KV held back would have landed by now; it must not show.
    tokio::time::sleep(Duration::from_millis(LATE_MS)).await;
    world.converges().await;

    let [left, right] = nemesis.nodes;
    let statistics = world.kv.statistics();
    say(&format!(
        "{} deeds, {changes} changes, {aborted} transactions aborted, {} writes in KV, epoch {}",
        nemesis.deeds,
        statistics.applied,
        world.number("select epoch from pg2kv.lease").await,
    ));
    // One leads, and both are well enough to say farewell.
    wait::until("exactly one to lead", async || {
        let mut leaders = 0;
        for node in [&left, &right] {
            let (_, text) = node.daemon.get("/readyz").await;
            leaders += usize::from(text.starts_with("ok: leading"));
        }
        (leaders == 1).then_some(())
    })
    .await;
    left.daemon.stop().await;
    right.daemon.stop().await;
}

async fn write(url: String, seed: u64, writing: CancellationToken) -> Writer {
    let mut writer = Writer::new(seed, true);
    let mut pace = tokio::time::interval(Duration::from_millis(5));
    while !writing.is_cancelled() {
        // The server may be down just now.
        pace.tick().await;
        let Ok((client, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            continue;
        };
        tokio::spawn(connection);
        while !writing.is_cancelled() && !client.is_closed() {
            pace.tick().await;
            writer.transaction(&client).await;
        }
    }
    writer
}

/// Breaks things.
struct Nemesis {
    rng: fastrand::Rng,
    nodes: [Node; 2],
    tokens: u32,
    /// The token that KV takes.
    token: String,
    deeds: u32,
}

impl Nemesis {
    /// One deed, and its end where it must have one.
    async fn strike(&mut self, world: &mut World) {
        self.deeds += 1;
        let which = self.rng.usize(..2);
        let pause = Duration::from_millis(self.rng.u64(20..600));
        let deed = self.rng.u8(..13);
        match deed {
            0 | 1 => self.nodes[which].replace(world).await,
            2 => {
                // Up to twice the lease.
                let frozen = Duration::from_millis(self.rng.u64(100..4_000));
                self.nodes[which].daemon.signal(Signal::STOP);
                tokio::time::sleep(frozen).await;
                self.nodes[which].daemon.signal(Signal::CONT);
            }
            3 => {
                self.nodes[which].daemon.signal(Signal::TERM);
                tokio::time::sleep(pause).await;
                self.nodes[which].replace(world).await;
            }
            4 => {
                let sessions = ["edge", "postgres"][self.rng.usize(..2)];
                world
                    .sql(&format!(
                        "select pg_terminate_backend(pid) from pg_stat_activity \
                         where usename = '{sessions}' and pid <> pg_backend_pid() and random() < 0.5"
                    ))
                    .await;
            }
            5 => {
                let how = [Stop::Immediate, Stop::Immediate, Stop::Fast][self.rng.usize(..3)];
                world.stop_postgres(how).await;
                tokio::time::sleep(pause).await;
                world.postgres.resume().unwrap();
            }
            6 | 7 => {
                let mode = self.mode();
                self.nodes[which].postgres.set(mode);
                tokio::time::sleep(pause * 4).await;
                self.nodes[which].postgres.set(Mode::Pass);
            }
            8 => {
                let mode = self.mode();
                self.nodes[which].kv.set(mode);
                tokio::time::sleep(pause * 3).await;
                // Not straight to `Pass`: a request that was lost in between must stay lost, for KV
                // never holds one back longer than the late-write window says.
                self.nodes[which].kv.set(Mode::Reset);
                tokio::task::yield_now().await;
                self.nodes[which].kv.set(Mode::Pass);
            }
            9 => {
                self.tokens += 1;
                self.token = format!("{TOKEN}-{}", self.tokens);
                world.kv.set_token(Some(self.token.clone()));
                tokio::time::sleep(pause).await;
                world.set_token(&self.token);
            }
            _ => {
                let fault = self.fault();
                world.kv.faults().add(fault).unwrap();
            }
        }
        tokio::time::sleep(pause / 2).await;
    }

    fn mode(&mut self) -> Mode {
        match self.rng.u8(..4) {
            0 => Mode::Blackhole,
            1 => Mode::Reset,
            2 => Mode::CutAfter(self.rng.usize(1..20_000)),
            _ => Mode::Slow(Duration::from_millis(self.rng.u64(1..60))),
        }
    }

    fn fault(&mut self) -> Fault {
        let rng = &mut self.rng;
        let late = rng.u64(..LATE_MS);
        let status = |status| StatusReply {
            status,
            ..StatusReply::default()
        };
        let replies = [
            Reply::Hang,
            Reply::Reset,
            Reply::Garbage,
            Reply::Truncated,
            Reply::SuccessFalse,
            Reply::EdgeTimeout,
            Reply::Redirect {
                location: "http://127.0.0.1:1/".to_owned(),
            },
            Reply::Status(status(500)),
            Reply::Status(status(502)),
            Reply::Status(status(503)),
            Reply::Status(StatusReply {
                retry_after: Some(1),
                ..status(429)
            }),
        ];
        let fault = match rng.u8(..8) {
            0 => Fault::partial(rng.f64()),
            1 => Fault::partial_but_written(rng.f64()),
            2 => Fault::delay(Duration::from_millis(late)),
            3 => Fault::hang_then_apply(Duration::from_millis(late)),
            4 => Fault::apply_then_hang(),
            _ => {
                let effects = [Effect::Now, Effect::Never, Effect::AfterMs(late)];
                let reply = replies[rng.usize(..replies.len())].clone();
                Fault::new(reply).effect(effects[rng.usize(..3)])
            }
        };
        let operations = [
            Operation::BulkWrite,
            Operation::BulkWrite,
            Operation::BulkDelete,
            Operation::ListKeys,
        ];
        fault
            .on_operation(operations[rng.usize(..4)])
            .times(rng.u64(1..4))
    }

    /// Ends everything that is still going on.
    async fn mend(&mut self, world: &World) {
        world.kv.faults().clear();
        world.kv.set_token(Some(self.token.clone()));
        world.set_token(&self.token);
        for node in &mut self.nodes {
            node.postgres.set(Mode::Pass);
            node.kv.set(Mode::Pass);
            // Some were asked to stop and some are well; both are replaced or stay.
            if node.daemon.has_ended() {
                node.replace(world).await;
            }
        }
        let leaders: usize = self.nodes.iter().map(|node| node.daemon.count(LEADS)).sum();
        say(&format!("mended; the last two daemons led {leaders} times"));
    }
}
