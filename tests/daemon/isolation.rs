//! One row that cannot be written stops no other: not by its bytes, not by what its code raises, and not
//! by sharing its key with another.

use serde_json::Value;

use super::PLAN;
use crate::support::postgres::Server;
use crate::support::process::{LEADS, Process};
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

/// Something that a row says and no surface may show.
const CANARY: &str = "canary-of-a-row";

/// Waits until so many dead letters stand, by reason.
async fn dead_letters(world: &World, expected: &str) {
    let letters = "select coalesce(string_agg(reason || ' ' || n, ', ' order by reason), '')
        from (select reason, count(*) as n from pg2kv.dead_letter group by reason) as r";
    wait::until(
        &format!("the dead letters to be {expected:?}"),
        async || (world.rows(letters).await[0].get::<_, String>(0) == expected).then_some(()),
    )
    .await;
}

/// Nothing that the daemon shows has the text of a row in it.
async fn is_silent(world: &World, daemon: &Process) {
    for path in ["/readyz", "/api/status", "/metrics", "/"] {
        let (_, text) = daemon.get(path).await;
        assert!(!text.contains(CANARY), "{path}: {text}");
    }
    assert!(!daemon.log().contains(CANARY), "{}", daemon.log());
    let details = "select coalesce(string_agg(detail, ' '), '') from pg2kv.dead_letter";
    let details: String = world.rows(details).await[0].get(0);
    assert!(!details.contains(CANARY), "{details}");
}

#[tokio::test]
async fn a_key_that_is_not_utf8_stops_no_other() {
    for encoding in ["SQL_ASCII", "WIN1252"] {
        let plan = Plan {
            sql: "create table public.tag (name text primary key, body text);
                  insert into public.tag values (E'before\\201', 'x'), ('before', 'x')",
            syncs: &[Sync {
                name: "tag",
                toml: "table = \"public.tag\"\nkey = \"{name}\"\ncolumns = [\"body\"]",
                namespace: NAMESPACE,
                oracle: "select name, json_build_object('body', body)::text from public.tag
                         where encode(convert_to(name || body, getdatabaseencoding()), 'escape') !~ '201'",
            }],
            ..PLAN
        };
        let world = World::start_in(Server::Installed.options(), encoding, plan).await;
        let daemon = world.daemon();
        dead_letters(&world, "illegal_key 1").await;
        world.converges().await;
        world
            .sql(
                "insert into public.tag values (E'after\\201', 'x'), ('after', 'x'), ('value', E'\\201')",
            )
            .await;
        dead_letters(&world, "illegal_key 2, row_error 1").await;
        world.converges().await;
        assert_eq!(daemon.count(LEADS), 1, "{encoding}: {}", daemon.log());
        daemon.stop().await;

        // Whoever leads next reads what stands there, and looks at every row again.
        let daemon = world.daemon_with("next", &world.settings());
        daemon.leads().await;
        world.sql("select pg2kv.resync('tag')").await;
        world.converges().await;
        dead_letters(&world, "illegal_key 2, row_error 1").await;
        assert_eq!(daemon.count(LEADS), 1, "{encoding}: {}", daemon.log());

        // Once the rows are better, nothing is left of it after one more walk.
        world
            .sql(
                "delete from public.tag where name like 'after_%' or name like 'before_%';
                 update public.tag set body = 'good' where name = 'value'",
            )
            .await;
        world.quiet().await;
        world.sql("select pg2kv.resync('tag')").await;
        dead_letters(&world, "").await;
        world.converges().await;
        daemon.stop().await;
    }
}

#[tokio::test]
async fn what_the_code_of_a_row_raises_is_the_rows_fault_whatever_it_claims() {
    let world = World::start(Plan {
        sql: "create table public.risk (id int primary key, state text, v text);
              create function public.raises(state text, v text) returns json language plpgsql as $$
              begin
                if state is not null then
                  raise exception using errcode = state, message = v, detail = v, hint = v;
                end if;
                return to_json(v);
              end $$",
        syncs: &[
            Sync {
                name: "risk",
                toml: "table = \"public.risk\"\nkey = \"risk:{id}\"\n\
                       value = \"public.raises(state, v)\"\nwatch = [\"state\", \"v\"]",
                namespace: NAMESPACE,
                oracle: "select 'risk:' || id, to_json(v)::text from public.risk where state is null",
            },
            Sync {
                name: "class",
                toml: "table = \"public.risk\"\nkey = \"class:{id}\"\n\
                       value = \"to_json(v::regclass::text)\"\nwatch = [\"state\", \"v\"]",
                namespace: NAMESPACE,
                oracle: "select 'class:' || id, to_json('pg_class'::text)::text from public.risk
                         where v = 'pg_class'",
            },
        ],
        ..PLAN
    })
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    // Those of the first line are dead letters of both syncs, those of the second may pass by themselves.
    world
        .sql(&format!(
            "insert into public.risk
               select n, null, 'pg_class' from generate_series(1, 60) n
             union all
               select 100 + n, state, '{CANARY}' from unnest(array['42P01', '42501', '42703', '0A000', '08006',
                 '28000', '26000', '57P01', 'XX000', 'P0001', '22012', '25006']) with ordinality as s(state, n)
             union all
               select 200 + n, state, '{CANARY}' from unnest(array['57014', '40001', '55P03', '53100'])
                 with ordinality as s(state, n)
             union all
               select 300 + n, null, 'pg_class' from generate_series(1, 60) n"
        ))
        .await;
    dead_letters(&world, "row_error 28").await;
    wait::until("the other rows to arrive", async || {
        (world.kv.snapshot(NAMESPACE).len() == 240).then_some(())
    })
    .await;
    assert!(world.differences().await.is_empty());
    let (status, _) = daemon.get("/readyz").await;
    assert_eq!(status, 200);
    is_silent(&world, &daemon).await;
    let state: Value = serde_json::from_str(&daemon.get("/api/status").await.1).unwrap();
    assert_eq!(daemon.count(LEADS), 1, "{state}");

    // The relation itself is at fault: nothing is a dead letter, and it heals by itself.
    world
        .sql(
            "update public.risk set state = null, v = 'pg_class';
             alter table public.risk rename v to w",
        )
        .await;
    daemon.logged("does not exist").await;
    world.sql("alter table public.risk rename w to v").await;
    dead_letters(&world, "").await;
    world.converges().await;
    daemon.stop().await;
}

#[tokio::test]
async fn of_two_rows_with_one_key_only_that_key_stops() {
    let world = World::start(Plan {
        sql: "create table public.twin (id int primary key, text text);
              create index on public.twin (id)",
        syncs: &[Sync {
            name: "twin",
            toml: "table = \"public.twin\"\nkey = \"twin:{id}\"\ncolumns = [\"text\"]",
            namespace: NAMESPACE,
            oracle: "select 'twin:' || id, json_build_object('text', text)::text from public.twin",
        }],
        ..PLAN
    })
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql(
            "alter table public.twin drop constraint twin_pkey;
             insert into public.twin select n, 'one' from generate_series(1, 40) n;
             insert into public.twin values (7, 'two')",
        )
        .await;
    dead_letters(&world, "row_error 1").await;
    world.quiet().await;
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 39);
    let detail = "select detail from pg2kv.dead_letter";
    let detail: String = world.rows(detail).await[0].get(0);
    assert!(detail.contains("two rows have the same key"), "{detail}");
    world
        .sql("delete from public.twin where id = 7 and text = 'two'")
        .await;
    dead_letters(&world, "").await;
    world.converges().await;
    daemon.stop().await;
}
