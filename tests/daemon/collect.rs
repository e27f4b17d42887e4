//! Many rows in one document, by the real binary: load, a walk, an audit, and what goes wrong.

use serde_json::Value;

use crate::support::process;
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

const TABLE: &str = "
    create table public.person (id int primary key, tenant text, name text not null, plan int not null);
    create index on public.person (tenant);
    insert into public.person select n, 't' || n % 5, 'name ' || n, n from generate_series(1, 60) n;
";

const SYNCS: &[Sync] = &[
    Sync {
        name: "tenant",
        toml: "table = \"public.person\"\nkey = \"tenant:{tenant}\"\ncolumns = [\"name\", \"plan\"]\n\
               collect = \"object\"\nmember = \"id\"\nwhere = \"plan >= 0\"\nwatch = [\"plan\"]",
        namespace: NAMESPACE,
        oracle: "select 'tenant:' || tenant,
                   jsonb_object_agg(id, jsonb_build_object('name', name, 'plan', plan))::text
                 from public.person where tenant is not null and plan >= 0 group by tenant",
    },
    Sync {
        name: "names",
        toml: "table = \"public.person\"\nkey = \"names\"\nvalue = \"name\"\ncollect = \"list\"\n\
               order_by = \"id desc\"\nwatch = [\"id\", \"name\"]",
        namespace: NAMESPACE,
        oracle: "select 'names', jsonb_agg(name order by id desc)::text from public.person
                 having count(*) > 0",
    },
    Sync {
        name: "plans",
        toml: "table = \"public.person\"\nkey = \"plans:{shard}\"\nvalue = \"plan\"\n\
               collect = \"object\"\nmember = \"id\"\nwatch = [\"plan\"]\nshards = 7",
        namespace: NAMESPACE,
        oracle: "select 'plans:' || ('x' || left(md5(id::text), 8))::bit(32)::int8 % 7,
                   jsonb_object_agg(id, plan)::text
                 from public.person group by 1",
    },
];

const PLAN: Plan = Plan {
    sql: TABLE,
    syncs: SYNCS,
    settings: &[("backfill.chunk", "3")],
    limits: None,
};

/// What `pg2kv verify` finds.
async fn verify(world: &World) -> Value {
    let config = world.configure("verify", &world.settings());
    let output = process::command()
        .args(["verify", "--json", "--config"])
        .arg(config)
        .output()
        .await
        .unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test]
async fn documents_of_many_rows_follow_their_rows() {
    let world = World::start(PLAN).await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    let names = world.kv.snapshot(NAMESPACE).len();
    assert_eq!(names, 5 + 1 + 7);

    // A row that moves changes two documents; one that leaves a group as its last empties it.
    world
        .sql("update public.person set tenant = 'new' where id = 5")
        .await;
    world.converges().await;
    assert!(world.value("tenant:new").unwrap().contains("\"5\""));
    assert!(!world.value("tenant:t0").unwrap().contains("\"5\""));
    world
        .sql("update public.person set tenant = null where id = 5")
        .await;
    world.converges().await;
    assert_eq!(world.value("tenant:new"), None, "it was emptied");

    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..40 {
        let (a, b, tenant) = (rng.u8(1..90), rng.u8(1..90), rng.u8(0..6));
        let sql = match rng.u8(..5) {
            0 => format!(
                "insert into public.person values ({a}, 't{tenant}', 'new', {b}) on conflict do nothing"
            ),
            1 => format!("delete from public.person where id between {a} and {a} + 3"),
            2 => format!("update public.person set plan = plan - 20 where tenant = 't{tenant}'"),
            3 => format!(
                "update public.person set tenant = 't{tenant}', name = 'n{b}' where id = {a}"
            ),
            _ => format!(
                "update public.person set id = {b} where id = {a} \
                 and not exists (select from public.person where id = {b})"
            ),
        };
        world.sql(&sql).await;
    }
    world.converges().await;
    assert_eq!(verify(&world).await["drifted"], 0);
    world.sql("truncate public.person").await;
    world.converges().await;
    assert!(world.kv.snapshot(NAMESPACE).is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn a_walk_mends_documents_of_many_rows_and_sweeps_what_has_none() {
    let world = World::start(PLAN).await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    daemon.stop().await;

    // What triggers did not see: a group is gone, another is new, all others have changed.
    world
        .sql(
            "set session_replication_role = replica;
             alter table public.person disable trigger user;
             update public.person set tenant = 'other' where tenant = 't1';
             update public.person set plan = plan + 1, name = name || '!';
             alter table public.person enable always trigger zzz_pg2kv_tenant_row,
               enable always trigger zzz_pg2kv_tenant_update, enable always trigger zzz_pg2kv_tenant_truncate,
               enable always trigger zzz_pg2kv_names_row, enable always trigger zzz_pg2kv_names_update,
               enable always trigger zzz_pg2kv_names_truncate, enable always trigger zzz_pg2kv_plans_row,
               enable always trigger zzz_pg2kv_plans_update, enable always trigger zzz_pg2kv_plans_truncate;
             reset session_replication_role",
        )
        .await;
    let found = verify(&world).await;
    let of = |name: &str| {
        let syncs = found["syncs"].as_array().unwrap();
        let sync = syncs.iter().find(|sync| sync["sync"] == name).unwrap();
        ["missing", "stale", "orphaned"].map(|kind| sync[kind].as_u64().unwrap())
    };
    assert_eq!(of("tenant"), [1, 4, 1]);
    assert_eq!(of("names"), [0, 1, 0]);
    assert_eq!(of("plans"), [0, 7, 0]);

    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql("select pg2kv.resync(s.name) from pg2kv.sync s")
        .await;
    world.converges().await;
    assert_eq!(world.value("tenant:t1"), None);
    assert_eq!(verify(&world).await["drifted"], 0);
    daemon.stop().await;
}

const TWICE: Plan = Plan {
    sql: "create table public.person (id int primary key, tenant text, name text);
          insert into public.person values (1, 'a', 'same'), (2, 'a', 'same'), (3, 'b', 'one');
          insert into public.person
            select n, 'large', repeat('x', 900000) || n from generate_series(100, 140) n",
    syncs: &[Sync {
        name: "tenant",
        toml: "table = \"public.person\"\nkey = \"tenant:{tenant}\"\ncolumns = [\"id\"]\n\
               collect = \"object\"\nmember = \"name\"",
        namespace: NAMESPACE,
        oracle: "",
    }],
    settings: &[],
    limits: None,
};

#[tokio::test]
async fn a_document_that_cannot_be_goes_to_the_dead_letters_with_what_to_do() {
    let world = World::start(TWICE).await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.quiet().await;
    let letters = world
        .rows("select kv_key, reason, detail from pg2kv.dead_letter order by kv_key")
        .await;
    let letters: Vec<[String; 3]> = letters
        .iter()
        .map(|row| [row.get(0), row.get(1), row.get(2)])
        .collect();
    assert_eq!(letters.len(), 2);
    assert_eq!(letters[0][..2], ["tenant:a", "row_error"]);
    assert!(
        letters[0][2].contains("the same member"),
        "{}",
        letters[0][2]
    );
    assert_eq!(letters[1][..2], ["tenant:large", "value_too_large"]);
    assert!(letters[1][2].contains("shards = 3,"), "{}", letters[1][2]);
    assert_eq!(
        world.value("tenant:b").as_deref(),
        Some(r#"{"one":{"id":3}}"#)
    );

    // The next change takes them out again. What is nearly too large is told.
    world
        .sql(
            "update public.person set name = 'other' where id = 2;
             delete from public.person where id > 123",
        )
        .await;
    world
        .has("tenant:a", Some(r#"{"other":{"id":2},"same":{"id":1}}"#))
        .await;
    wait::until("the large document to arrive", async || {
        world.kv.get(NAMESPACE, "tenant:large").map(drop)
    })
    .await;
    world.quiet().await;
    assert_eq!(
        world.number("select count(*) from pg2kv.dead_letter").await,
        0
    );
    daemon.logged("nears the largest value").await;
    let (_, metrics) = daemon.get("/metrics").await;
    let line = "pg2kv_document_bytes_max{sync=\"tenant\"} 21";
    assert!(metrics.contains(line), "{metrics}");
    daemon.stop().await;
}
