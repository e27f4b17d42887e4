//! How long after a commit KV has the change, while there are few of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pg2kv::emulator::record::Subscription;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::Context;
use crate::report::{Figure, Report, Target};
use crate::rounds::{Samples, quantile, turns};
use crate::stage::options;
use crate::support::node::Peers;
use crate::support::postgres::connect;
use crate::support::wait::DEADLINE;
use crate::support::world::{ACCOUNT, NAMESPACE, Plan, Sync, TOKEN, World};

/// Rows of each table. Changes go through them in turn, so that none of a key waits for another.
const ROWS: usize = 1_000;
/// 20 changes a second.
const EVERY: Duration = Duration::from_millis(50);

const TABLES: &str = "
    create table public.users_pg2kv (id int primary key, plan text not null, level int not null);
    create table public.users_node (like public.users_pg2kv including all);
    insert into public.users_pg2kv select n, 'free', 0 from generate_series(1, 1000) n;
    insert into public.users_node select * from public.users_pg2kv;
    create function public.tell() returns trigger language plpgsql as $$
    begin
      perform pg_notify('users', row_to_json(new)::text);
      return null;
    end $$;
    create trigger tell after update on public.users_node
      for each row execute function public.tell();
";

const SYNCS: &[Sync] = &[Sync {
    name: "users",
    toml: "table = \"public.users_pg2kv\"\nkey = \"user:{id}\"\ncolumns = [\"plan\", \"level\"]",
    namespace: NAMESPACE,
    oracle: "select 'user:' || id, json_build_object('plan', plan, 'level', level)::text
             from public.users_pg2kv",
}];

/// Who carries the changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Carrier {
    Daemon,
    Node,
}

/// 20 changes a second, `quiet = 0`.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let peers = tokio::task::spawn_blocking(Peers::installed);
    let world = World::start_on(
        options(),
        Plan {
            sql: TABLES,
            syncs: SYNCS,
            settings: &[],
            limits: None,
        },
    )
    .await;
    let peers = peers.await.unwrap();
    // The first sync is not what is measured.
    let first = world.daemon();
    world.converges().await;
    first.stop().await;

    let (rounds, changes) = context.size((3, 400), (2, 100));
    let (mut p50, mut p99) = (Samples::new(), Samples::new());
    let mut next = [0; 2];
    for carrier in turns(rounds, &[Carrier::Daemon, Carrier::Node]) {
        let took = match carrier {
            Carrier::Daemon => {
                let mut settings = world.default_settings(&world.emulator.base_url());
                settings.insert("queue.quiet".to_owned(), "0ms".to_owned());
                let daemon = world.daemon_with("latency", &settings);
                daemon.leads().await;
                let took = round(&world, "users_pg2kv", "user", &mut next[0], changes).await;
                daemon.stop().await;
                took
            }
            Carrier::Node => {
                let arguments = json!({
                    "postgres": world.postgres.admin_url(),
                    "base_url": world.emulator.base_url(),
                    "token": TOKEN, "account": ACCOUNT, "namespace": NAMESPACE,
                });
                let node = peers.serve("listen.mjs", &arguments).await;
                let took = round(&world, "users_node", "node", &mut next[1], changes).await;
                let errors = node.stop().await;
                assert_eq!(errors, "", "of the loop in Node");
                took
            }
        };
        p50.push(carrier, quantile(&took, 0.50));
        p99.push(carrier, quantile(&took, 0.99));
    }
    for (name, samples, most) in [("p50", &p50, 3.0), ("p99", &p99, 12.0)] {
        let name = format!("commit to KV, 20 changes/s: {name}");
        let figure = Figure::new(name, "ms", samples.of(Carrier::Daemon))
            .against("LISTEN loop in Node", samples.of(Carrier::Node))
            .target(Target::AtMost(most));
        report.add(figure);
    }
}

/// Milliseconds from each commit to when KV had accepted the change, on one clock: the emulator runs
/// in this process.
async fn round(
    world: &World,
    table: &str,
    prefix: &str,
    next: &mut usize,
    changes: usize,
) -> Vec<f64> {
    let writer = connect(&world.postgres.admin_url()).await;
    let update = format!("update public.{table} set level = level + 1 where id = $1");
    let update = writer.prepare(&update).await.unwrap();
    let arrivals = tokio::spawn(arrivals(
        world.kv.subscribe(),
        format!("{prefix}:"),
        changes,
    ));
    let mut commits = Vec::with_capacity(changes);
    let mut clock = interval(EVERY);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for _ in 0..changes {
        clock.tick().await;
        let id = *next % ROWS + 1;
        *next += 1;
        writer
            .execute(&update, &[&i32::try_from(id).unwrap()])
            .await
            .unwrap();
        commits.push((format!("{prefix}:{id}"), Instant::now()));
    }
    let arrivals = arrivals.await.unwrap();
    let took = commits.into_iter().map(|(key, committed)| {
        // The reply of the commit may be slower than the way to KV.
        let took = arrivals[&key].saturating_duration_since(committed);
        took.as_secs_f64() * 1e3
    });
    took.collect()
}

/// When each key was first written, until so many were.
async fn arrivals(
    mut applied: Subscription,
    prefix: String,
    keys: usize,
) -> HashMap<String, Instant> {
    let mut arrivals = HashMap::with_capacity(keys);
    while arrivals.len() < keys {
        let write = timeout(DEADLINE, applied.next()).await;
        let write = write.expect("every change arrives in KV").unwrap();
        if write.key.starts_with(&prefix) {
            arrivals.entry(write.key.to_string()).or_insert(write.at);
        }
    }
    arrivals
}
