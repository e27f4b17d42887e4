//! What a change costs the database while an old snapshot holds dead rows in the outbox.
//!
//! Autovacuum cannot remove a row that some open transaction might still see. A report that runs for
//! hours makes the outbox of a busy table swell by every change of those hours.

use pg2kv::emulator::record::Subscription;
use tokio::time::timeout;

use crate::Context;
use crate::report::{Figure, Report, Target};
use crate::support::postgres::{Server, connect};
use crate::support::wait::DEADLINE;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

const TABLE: &str = "
    create table public.users (id int primary key, level int not null);
    insert into public.users select n, 0 from generate_series(1, 1000) n;
    create extension pg_stat_statements;
";
const SYNCS: &[Sync] = &[Sync {
    name: "users",
    toml: "table = \"public.users\"\nkey = \"user:{id}\"\ncolumns = [\"level\"]",
    namespace: NAMESPACE,
    oracle: "select 'user:' || id, json_build_object('level', level)::text from public.users",
}];
/// Changes of a round, each made once the one before is in KV: so each is fetched by itself.
const CHANGES: i32 = 200;
/// The server's means are over a round, where one hiccup of a millisecond weighs as much as all looks.
const ROUNDS: usize = 5;

/// What the server counted for the daemon, for each change.
struct Cost {
    /// Pages that one look into the outbox touches.
    fetch_pages: f64,
    /// How long the server takes for it, in microseconds.
    fetch_micros: f64,
    /// Pages that all statements of the daemon touch.
    pages: f64,
}

type Kind = (&'static str, &'static str, fn(&Cost) -> f64);

/// What is told of it.
const KINDS: [Kind; 3] = [
    ("pages of a fetch", "pages", |cost| cost.fetch_pages),
    ("time of a fetch", "µs", |cost| cost.fetch_micros),
    ("pages of a change, all statements", "pages", |cost| {
        cost.pages
    }),
];

/// The same changes with more and more dead rows.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let mut options = Server::Installed.options();
    let counts = ("shared_preload_libraries", "pg_stat_statements");
    let more = [counts, ("max_wal_size", "4GB"), ("shared_buffers", "256MB")];
    let more = more.map(|(name, value)| (name.to_owned(), value.to_owned()));
    options.settings.extend(more);
    let plan = Plan {
        sql: TABLE,
        syncs: SYNCS,
        settings: &[],
        limits: None,
    };
    let world = World::start_on(options, plan).await;
    let mut settings = world.default_settings(&world.emulator.base_url());
    settings.insert("queue.quiet".to_owned(), "0ms".to_owned());
    settings.insert("queue.key_interval".to_owned(), "20ms".to_owned());
    let first = world.daemon();
    world.converges().await;
    first.stop().await;

    let holder = connect(&world.postgres.admin_url()).await;
    let hold = "begin isolation level repeatable read; select count(*) from public.users";
    holder.batch_execute(hold).await.unwrap();
    let mut before: Option<(u32, Vec<Cost>)> = None;
    for dead in context.size([0, 1_000_000, 10_000_000], [0, 150_000, 300_000]) {
        let there = before.as_ref().map_or(0, |(dead, _)| *dead);
        add_dead_rows(&world, dead - there).await;
        let daemon = world.daemon_with("dead", &settings);
        daemon.leads().await;
        let mut costs = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            costs.push(changes(&world).await);
        }
        daemon.stop().await;
        for (kind, unit, of) in KINDS {
            let samples = |costs: &[Cost]| costs.iter().map(of).collect::<Vec<_>>();
            let name = format!("outbox with {dead} dead rows: {kind}");
            let figure = Figure::new(name, unit, &samples(&costs));
            report.add(match &before {
                None => figure,
                Some((fewer, costs)) => {
                    let figure = figure.against(&format!("with {fewer}"), &samples(costs));
                    // From none on, the index becomes as deep as an index is.
                    if *fewer == 0 {
                        figure
                    } else {
                        figure.target(Target::RatioAtMost(1.2))
                    }
                }
            });
        }
        before = Some((dead, costs));
    }
    holder.batch_execute("commit").await.unwrap();
}

/// Rows as a busy table leaves them: fetched and deleted, but an older transaction is open.
async fn add_dead_rows(world: &World, rows: u32) {
    // No sync of ours, so that no daemon has anything to do with them.
    let sql = format!(
        "begin;
         insert into pg2kv.outbox (sync, key)
           select 'none', jsonb_build_array(n) from generate_series(1, {rows}) n;
         delete from pg2kv.outbox where sync = 'none';
         commit"
    );
    world.sql(&sql).await;
}

/// Makes changes, one after another, and asks what they cost.
async fn changes(world: &World) -> Cost {
    let writer = connect(&world.postgres.admin_url()).await;
    let update = "update public.users set level = level + 1 where id = $1";
    let update = writer.prepare(update).await.unwrap();
    let mut applied = world.kv.subscribe();
    for id in 0..=CHANGES {
        if id == 1 {
            // The first one waited for what the daemon does when it begins.
            world.sql("select pg_stat_statements_reset()").await;
        }
        writer.execute(&update, &[&(id + 1)]).await.unwrap();
        arrives(&mut applied, &format!("user:{}", id + 1)).await;
    }
    let counted = world
        .rows(
            "select (query ~ 'from pg2kv.outbox where id > .* order by id limit') as fetches,
               sum(calls)::float8, sum(shared_blks_hit + shared_blks_read)::float8,
               sum(total_exec_time)::float8
             from pg_stat_statements
             where userid = 'edge'::regrole group by fetches order by fetches",
        )
        .await;
    let [others, fetches] = &counted[..] else {
        panic!("{} kinds of statements were counted", counted.len());
    };
    let (calls, pages): (f64, f64) = (fetches.get(1), fetches.get(2));
    Cost {
        fetch_pages: pages / calls,
        fetch_micros: fetches.get::<_, f64>(3) * 1e3 / calls,
        pages: (pages + others.get::<_, f64>(2)) / f64::from(CHANGES),
    }
}

async fn arrives(applied: &mut Subscription, key: &str) {
    let arrived = timeout(DEADLINE, async {
        while let Some(write) = applied.next().await {
            if *write.key == *key {
                return;
            }
        }
    });
    arrived.await.expect("the change arrives in KV");
}
