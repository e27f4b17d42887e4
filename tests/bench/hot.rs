//! Few keys that change all the time: how often KV is written, and how late its last value is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::Context;
use crate::pgbench::Load;
use crate::report::{Figure, Report, Target};
use crate::stage::options;
use crate::support::postgres::connect;
use crate::support::world::{NAMESPACE, Plan, Sync, World};
use pg2kv::emulator::limits::Limits;

const TABLE: &str = "
    create table public.users (id int primary key, level int not null);
    insert into public.users select n, 0 from generate_series(1, 10) n;
";
const SYNCS: &[Sync] = &[Sync {
    name: "users",
    toml: "table = \"public.users\"\nkey = \"user:{id}\"\ncolumns = [\"level\"]",
    namespace: NAMESPACE,
    oracle: "select 'user:' || id, json_build_object('level', level)::text from public.users",
}];
const KEYS: usize = 10;

/// 1,000 updates a second on 10 keys. The daemon is as it is by default, and KV has its limits: it
/// refuses a key that is written twice within a second.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let world = World::start_on(
        options(),
        Plan {
            sql: TABLE,
            syncs: SYNCS,
            settings: &[],
            limits: Some(Limits::default()),
        },
    )
    .await;
    let mut settings = world.default_settings(&world.emulator.base_url());
    settings.retain(|key, _| !key.ends_with("_per_5min") && key != "kv.reserve_requests");
    let daemon = world.daemon_with("hot", &settings);
    world.converges().await;

    let seconds = context.size(30, 10);
    let before = world.kv.history_page(0, 0).last;
    let load = Load {
        url: &world.postgres.admin_url(),
        script: "\\set id random(1, 10)\nupdate public.users set level = level + 1 where id = :id;\n",
        clients: 8,
        rate: Some(1_000),
        seconds,
    };
    let rate = load.run().await;
    let writer = connect(&world.postgres.admin_url()).await;
    let last = "update public.users set level = -level";
    writer.execute(last, &[]).await.unwrap();
    let committed = Instant::now();

    // What is there after everything has come to rest is what the last update said.
    world.converges().await;
    let mut writes: HashMap<Arc<str>, Vec<Instant>> = HashMap::new();
    for write in world.kv.history_page(before, usize::MAX).entries {
        writes.entry(write.key).or_default().push(write.at);
    }
    assert_eq!(writes.len(), KEYS);
    let often = writes.values().map(|at| {
        let took = at[at.len() - 1] - at[0];
        (at.len() - 1) as f64 / took.as_secs_f64()
    });
    let last = writes.values().filter_map(|at| at.last()).max().unwrap();
    let refused = world.kv.statistics().counts.refused_by_key_interval;
    report.add(
        // Fewer would say nothing about 1,000 a second.
        Figure::new("hot keys: updates made", "/s", &[rate]).target(Target::AtLeast(900.0)),
    );
    report.add(
        Figure::new(
            "hot keys: writes of one key, at most",
            "/s",
            &[often.fold(0.0, f64::max)],
        )
        .target(Target::AtMost(1.0)),
    );
    report.add(
        Figure::new(
            "hot keys: writes that KV refused as too soon",
            "",
            &[refused as f64],
        )
        .target(Target::AtMost(0.0)),
    );
    let late = last.saturating_duration_since(committed).as_secs_f64();
    report.add(
        Figure::new("hot keys: last commit to last value in KV", "s", &[late])
            .target(Target::AtMost(2.0)),
    );
    daemon.stop().await;
}
