//! A document of 100,000 rows: what one change of it costs. `make measure` prints it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

const USERS: usize = 100_000;

const PLAN: Plan = Plan {
    sql: "create table public.person (id int primary key, name text, plan text, mail text, beta bool);
          insert into public.person
            select n, 'name of user ' || n, 'free', 'user' || n || '@example.com', n % 10 = 0
            from generate_series(1, 100000) n;
          analyze public.person",
    syncs: &[Sync {
        name: "person",
        toml: "table = \"public.person\"\nkey = \"people\"\n\
               columns = [\"name\", \"plan\", \"mail\", \"beta\"]\ncollect = \"object\"\nmember = \"id\"",
        namespace: NAMESPACE,
        oracle: "",
    }],
    // As they are by default but for what a slow machine needs.
    settings: &[
        ("postgres.statement_timeout", "120s"),
        ("kv.request_timeout", "120s"),
        ("retry.late_write_window", "120s"),
    ],
    limits: None,
};

#[tokio::test]
async fn one_user_of_100000_in_one_document() {
    let world = World::start(PLAN).await;
    let daemon = world.daemon();
    daemon.leads().await;
    let pair = async || world.kv.get(NAMESPACE, "people").map(|pair| pair.value);
    let first = wait::until("the document to arrive", pair).await;
    world.quiet().await;
    let before = daemon.memory_peak_kib();

    let mut took = Vec::new();
    for plan in ["pro", "team"] {
        let writes = world.kv.history().len();
        world
            .sql(&format!(
                "update public.person set plan = '{plan}' where id = 50000"
            ))
            .await;
        let committed = Instant::now();
        let applied = wait::until("the change to arrive", async || {
            world.kv.history().get(writes).map(|write| write.at)
        })
        .await;
        took.push(applied.saturating_duration_since(committed));
        let value = pair().await.unwrap();
        let people: Value = serde_json::from_slice(&value).unwrap();
        assert_eq!(people.as_object().unwrap().len(), USERS);
        assert_eq!(people["50000"]["plan"], plan);
        world.quiet().await;
    }
    let peak = daemon.memory_peak_kib();
    wait::say(&format!(
        "{USERS} users in one document of {:.1} MB; one changed, from commit to accepted: {}; peak \
         memory of the daemon {} MB, after the first document {} MB",
        first.len() as f64 / 1e6,
        took.iter().map(seconds).collect::<Vec<_>>().join(", "),
        peak / 1024,
        before / 1024,
    ));
    // A few copies of the document, not one for each change.
    assert!(peak < 300 * 1024, "{peak} KiB");
    daemon.stop().await;
}

fn seconds(took: &Duration) -> String {
    format!("{:.2} s", took.as_secs_f64())
}
