//! Documents that take data from other tables: a change there reaches every one of them, and costs its
//! writer one row.

use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

const TABLES: &str = "
    create table public.tenants (id bigint primary key, plan text, notes text);
    create table public.settings (user_id int unique, theme text);
    create table public.users (id int primary key, tenant_id int, name text);
    create index on public.users (tenant_id, id);
    insert into public.tenants values (1, 'free'), (2, 'free'), (3, 'free');
";

/// The tenant is shared by many, the settings are one row for each user.
const USERS: Sync = Sync {
    name: "users",
    toml: r#"
table = "public.users"
key = "user:{id}"
value = """json_build_object('name', name,
  'plan', (select t.plan from public.tenants t where t.id = users.tenant_id),
  'theme', (select s.theme from public.settings s where s.user_id = users.id))"""
where = "coalesce((select t.plan from public.tenants t where t.id = users.tenant_id), '') <> 'closed'"
related.tenants = { table = "public.tenants", match = { tenant_id = "id" }, watch = ["plan"] }
related.settings = { table = "public.settings", match = { id = "user_id" } }"#,
    namespace: NAMESPACE,
    oracle: "select 'user:' || u.id, json_build_object('name', u.name, 'plan', t.plan, 'theme', s.theme)::text
        from public.users u left join public.tenants t on t.id = u.tenant_id
        left join public.settings s on s.user_id = u.id
        where t.plan is distinct from 'closed'",
};

const PLAN: Plan = Plan {
    sql: TABLES,
    syncs: &[USERS],
    settings: &[],
    limits: None,
};

/// Rows of the table of the test with many; half of them are of one tenant.
const USERS_MAX: u32 = 20_000;

/// Markers that wait in the outbox.
const MARKERS: &str = "select count(*) from pg2kv.outbox where key ? 'related'";

async fn with_users(world: &World, users: u32) {
    world
        .sql(&format!(
            "insert into public.users select n, 1 + n % 2, 'name' from generate_series(1, {users}) n;
             analyze public.users"
        ))
        .await;
    world.converges().await;
}

#[tokio::test]
async fn a_change_of_a_related_row_reaches_its_documents_and_no_others() {
    let world = World::start(PLAN).await;
    let daemon = world.daemon();
    daemon.leads().await;
    with_users(&world, 20).await;
    for (sql, written) in [
        ("update public.tenants set plan = 'pro' where id = 1", 10),
        ("update public.tenants set notes = 'x'", 0),
        // Nobody is of this tenant.
        ("update public.tenants set plan = 'pro' where id = 3", 0),
        // The row that moves, and then the tenant that it moved to.
        ("update public.users set tenant_id = 3 where id = 1", 0),
        ("update public.users set tenant_id = 3 where id = 2", 0),
        ("update public.tenants set plan = 'new' where id = 3", 2),
        ("update public.tenants set id = 4 where id = 3", 2),
        ("update public.tenants set plan = 'closed' where id = 2", 9),
        ("update public.tenants set plan = 'open' where id = 2", 9),
        ("insert into public.settings values (5, 'dark')", 1),
        ("update public.settings set user_id = 6", 2),
        ("delete from public.settings", 1),
        ("delete from public.tenants where id = 1", 9),
        ("insert into public.tenants values (1, 'back')", 9),
        ("truncate public.settings", 0),
    ] {
        let before = world.kv.statistics().applied;
        world.sql(sql).await;
        world.converges().await;
        let applied = world.kv.statistics().applied - before;
        assert!(
            applied >= written,
            "{sql}: {applied} written, not {written}"
        );
    }
    // 10, 0, 2, 2, 9, 9, 9, 9: the settings are recorded by key.
    let keys = daemon.metric("pg2kv_related_keys_total").await;
    assert_eq!(keys, Some(50.0));
    assert_eq!(
        daemon.metric("pg2kv_related_changes_waiting").await,
        Some(0.0)
    );
    daemon.stop().await;
}

#[tokio::test]
async fn a_change_of_many_documents_is_one_row_of_its_writer() {
    let users = match std::env::var("PG2KV_RELATED_USERS") {
        Ok(text) => text.parse().expect("a number of users"),
        Err(_) => USERS_MAX,
    };
    let world = World::start(PLAN).await;
    let daemon = world.daemon();
    daemon.leads().await;
    with_users(&world, users).await;

    let client = world.admin().await;
    client
        .batch_execute("begin; update public.tenants set plan = 'pro' where id = 1")
        .await
        .unwrap();
    assert_eq!(world.number("select count(*) from pg2kv.outbox").await, 1);
    client.batch_execute("commit").await.unwrap();

    // Live changes meanwhile, of documents that are in it, and of the tenant itself.
    for round in 0..20 {
        world
            .sql(&format!(
                "update public.users set name = 'name {round}' where id % 2011 = {round};
                 update public.users set tenant_id = 3 - tenant_id where id % 3011 = {round};
                 update public.tenants set notes = 'round {round}' where id = 1"
            ))
            .await;
    }
    world
        .sql("update public.tenants set plan = 'max' where id = 1")
        .await;
    world.converges().await;
    assert_eq!(world.number(MARKERS).await, 0);
    let keys = daemon.metric("pg2kv_related_keys_total").await.unwrap();
    assert!(keys >= f64::from(users / 2), "{keys}");
    daemon.stop().await;
}

#[tokio::test]
async fn kills_in_the_middle_of_an_expansion_lose_nothing() {
    let world = World::start(Plan {
        settings: &[("backfill.chunk", "100")],
        ..PLAN
    })
    .await;
    let mut daemon = world.daemon();
    daemon.leads().await;
    with_users(&world, 4_000).await;
    for kill in 0..3 {
        world
            .sql(&format!(
                "update public.tenants set plan = 'plan {kill}' where id = 1"
            ))
            .await;
        wait::until("the expansion to be under way", async || {
            let begun = "select count(*) from pg2kv.outbox where key ? 'after'";
            (world.number(begun).await > 0).then_some(())
        })
        .await;
        daemon.kill().await;
        daemon = world.daemon();
        daemon.leads().await;
        world.converges().await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_expanded_is_walked() {
    let world = World::start(PLAN).await;
    let daemon = world.daemon();
    daemon.leads().await;
    with_users(&world, 20).await;
    // A related table of which this daemon does not know.
    world
        .sql(
            "create table public.others (id int primary key, v text);
             insert into public.others values (1);
             select pg2kv.watch_related('public.others', 'users', 'others', '{\"tenant_id\": \"id\"}')",
        )
        .await;
    world.converges().await;
    let backfills = daemon.metric("pg2kv_backfills_total").await.unwrap();
    world.sql("update public.others set v = 'x'").await;
    world.converges().await;
    wait::until("the walk to be counted", async || {
        let now = daemon.metric("pg2kv_backfills_total").await.unwrap();
        (now == backfills + 1.0).then_some(())
    })
    .await;
    let line = daemon.logged("has no related table others").await;
    assert!(line.contains("unwatch_related"), "{line}");
    daemon.stop().await;
}
