//! Rows of any size in little memory: sizes travel before contents, and everything that is held has a
//! limit in bytes.

use crate::support::kv::KvProcess;
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

/// What the process may have resident at any moment.
const RESIDENT_MAX_KIB: u64 = 384 * 1_024;
/// Documents of almost the size that Workers KV takes: more than are ever in flight.
const LARGE: usize = 12;

const ROWS: Plan = Plan {
    sql: "create table public.page (id int primary key, large int, beside int);
          create table public.tag (name text primary key, body text);
          create table public.note (id int primary key, text text)",
    syncs: &[
        Sync {
            name: "page",
            toml: "table = \"public.page\"\nkey = \"page:{id}\"\n\
                   value = \"to_json(repeat('x', large))\"\n\
                   metadata = \"jsonb_build_object('m', repeat('x', beside))\"\n\
                   content_type = \"repeat('x', case when id < 0 then beside else 9 end)\"\n\
                   watch = [\"large\", \"beside\"]",
            namespace: NAMESPACE,
            oracle: "",
        },
        Sync {
            name: "tag",
            toml: "table = \"public.tag\"\nkey = \"tag:{name}\"\ncolumns = [\"body\"]",
            namespace: NAMESPACE,
            oracle: "",
        },
        Sync {
            name: "note",
            toml: "table = \"public.note\"\nkey = \"note:{id}\"\ncolumns = [\"text\"]",
            namespace: NAMESPACE,
            oracle: "",
        },
    ],
    settings: &[],
    limits: None,
};

/// Waits until so many dead letters have a reason.
async fn dead_letters(world: &World, reason: &str, expected: i64) {
    let letters = format!("select count(*) from pg2kv.dead_letter where reason = '{reason}'");
    wait::until(&format!("{expected} dead letters {reason}"), async || {
        (world.number(&letters).await == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rows_of_any_size_fit_into_little_memory() {
    let world = World::start(Plan { ..ROWS }).await;
    let kv = KvProcess::start(&["--no-limits"]).await;
    let mut settings = world.settings();
    for (key, value) in [
        ("kv.api_base_url", kv.base_url.as_str()),
        ("kv.request_timeout", "60s"),
        ("postgres.statement_timeout", "60s"),
    ] {
        settings.insert(key.to_owned(), value.to_owned());
    }
    let daemon = world.daemon_with("large", &settings);
    daemon.leads().await;
    world.quiet().await;
    let told = async |what: &str| {
        let peak = daemon.memory_peak_kib();
        wait::say(&format!("{what}: at most {} MiB resident", peak / 1_024));
        assert!(peak < RESIDENT_MAX_KIB, "{what}: {peak} KiB");
    };

    world
        .sql(&format!(
            "insert into public.page select n, 24000000, 9 from generate_series(1, {LARGE}) n;
             insert into public.note select n, 'flows' from generate_series(1, 100) n"
        ))
        .await;
    world.quiet().await;
    told("documents of 24 MB").await;

    world
        .sql(
            "insert into public.page values (1001, 9, 250000000), (1002, 9, 17000), (-1, 9, 250000000),
               (1003, 9, 9);",
        )
        .await;
    dead_letters(&world, "bad_metadata", 3).await;
    told("metadata of 250 MB").await;

    world
        .sql(
            "insert into public.tag select n || repeat('x', 200000), 'long' from generate_series(1, 2000) n;
             insert into public.tag values ('short', 'flows');
             insert into public.note values (101, 'flows')",
        )
        .await;
    dead_letters(&world, "key_too_long", 2_000).await;
    world.quiet().await;
    told("keys of 200 kB").await;

    // A walk over all of it makes no more.
    world.sql("select pg2kv.resync('tag')").await;
    world.quiet().await;
    told("a walk").await;
    // The documents, the notes, and what is short among what is long; the walk may write that again.
    let written = daemon.metric("pg2kv_pairs_written_total").await;
    assert!(written >= Some((LARGE + 103) as f64), "{written:?}");
    world
        .sql("delete from public.tag; delete from public.page")
        .await;
    world.quiet().await;
    told("deletes").await;
    daemon.stop().await;
}
