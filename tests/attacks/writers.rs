//! Nothing that pg2kv installs makes a writer's statement fail or wait.

use std::time::Instant;

use super::{on_both_servers, refusal, run, take_keys, texts, with_mallory};
use crate::support::postgres::Server;
use crate::support::wait;

on_both_servers!(
    ddl_on_key_columns_never_breaks_an_open_session,
    large_watched_values_cost_writers_of_other_columns_nothing,
    an_oversized_key_is_recorded_by_its_size,
    unwatching_beside_a_daemon_does_not_deadlock,
);

/// Each form of the triggers: `watch`, and `watch_related` for a table beside `public.parent`.
const FORMS: &[(&str, &str)] = &[
    ("some columns", "select pg2kv.watch('public.t', 's', '{id}', '{v}')"),
    ("every column", "select pg2kv.watch('public.t', 's', '{id}')"),
    (
        "with a BEFORE trigger",
        "create trigger before_update before update on public.t for each row execute function public.as_it_is();
         select pg2kv.watch('public.t', 's', '{id}', '{v}')",
    ),
    (
        "collected",
        "select pg2kv.watch('public.t', 's', '{g}', '{v}', collect => true, shards => 3)",
    ),
    (
        "related",
        "select pg2kv.watch('public.parent', 's', '{id}', '{t_id}');
         select pg2kv.watch_related('public.t', 's', 't', '{\"t_id\": \"id\"}', '{v}')",
    ),
    (
        "related, every column",
        "select pg2kv.watch('public.parent', 's', '{id}', '{t_id}');
         select pg2kv.watch_related('public.t', 's', 't', '{\"t_id\": \"id\"}')",
    ),
];

async fn ddl_on_key_columns_never_breaks_an_open_session(server: Server) {
    let (db, admin, _) = with_mallory(server).await;
    run(
        &admin,
        "create function public.as_it_is() returns trigger language plpgsql as 'begin return new; end'",
    )
    .await;
    for (form, watch) in FORMS {
        let key = if form.contains("collected") {
            "g"
        } else {
            "id"
        };
        run(
            &admin,
            &format!(
                "create table public.t (id int primary key, g int not null, v text, other int);
                 create table public.parent (id int primary key, t_id int);
                 create index on public.parent (t_id);
                 {watch}; insert into public.t values (1, 1, 'x', 1)"
            ),
        )
        .await;
        // A session that has written before the table is changed, and so has plans of the triggers.
        let open = db.connect().await;
        let writes = |id: &str, g: &str| {
            format!(
                "insert into public.t ({id}, {g}, v) values (2, 2, 'x'); update public.t set v = v || 'y';
                 update public.t set {id} = 3 where {id} = 2; delete from public.t where {id} = 3"
            )
        };
        run(&open, &writes("id", "g")).await;
        for refused in [
            format!("alter table public.t alter {key} type bigint"),
            format!("alter table public.t drop column {key}"),
        ] {
            let error = refusal(&admin, &refused).await;
            assert!(
                error
                    .detail()
                    .is_some_and(|detail| detail.contains("zzz_pg2kv_s")),
                "{form}: {refused}: {error:?}"
            );
        }
        take_keys(&admin, "s").await;
        let (id, g) = match key {
            "g" => ("id", "other_name"),
            _ => ("other_name", "g"),
        };
        run(
            &admin,
            &format!("alter table public.t rename {key} to other_name"),
        )
        .await;
        // In an open session and in one that is new; once in a transaction.
        run(&open, &format!("begin; {}; commit", writes(id, g))).await;
        assert_eq!(take_keys(&admin, "s").await, ["every key"], "{form}");
        let fresh = db.connect().await;
        run(&fresh, &format!("begin; {}; commit", writes(id, g))).await;
        assert_eq!(take_keys(&admin, "s").await, ["every key"], "{form}");
        // What a savepoint takes back is recorded again.
        run(
            &fresh,
            "begin; savepoint a; update public.t set v = 'a'; rollback to a; update public.t set v = 'b'; commit",
        )
        .await;
        assert_eq!(take_keys(&admin, "s").await, ["every key"], "{form}");
        // It is reported, and watching again under the new name repairs it.
        let faults = texts(&admin, "select triggers from pg2kv.status()")
            .await
            .join("");
        assert!(
            faults.contains("does not see the column"),
            "{form}: {faults}"
        );
        run(
            &admin,
            "select pg2kv.unwatch('s'); drop table public.t, public.parent",
        )
        .await;
    }
}

async fn large_watched_values_cost_writers_of_other_columns_nothing(server: Server) {
    let (_db, admin, _) = with_mallory(server).await;
    // Values that do not compress, so they are as large in the table.
    let setup = |table: &str| {
        format!(
            "create table public.{table} (id int primary key, body text, n int, updated_at timestamptz);
             insert into public.{table} select i, (
               select string_agg(md5(i::text || j::text), '') from generate_series(1, 160000) j), 0
             from generate_series(1, 20) i;
             create trigger before_update before update on public.{table}
               for each row execute function public.touch()"
        )
    };
    run(
        &admin,
        "create function public.touch() returns trigger language plpgsql as
           'begin new.updated_at := clock_timestamp(); return new; end'",
    )
    .await;
    run(&admin, &setup("bare")).await;
    run(&admin, &setup("watched")).await;
    run(
        &admin,
        "select pg2kv.watch('public.watched', 'w', '{id}', '{body}')",
    )
    .await;
    take_keys(&admin, "w").await;
    // Reading the values once takes a hundred times as long as such an UPDATE, so the best of some
    // rounds tells whatever else the machine does.
    let mut best = [f64::INFINITY; 2];
    for _ in 0..15 {
        for (at, table) in ["bare", "watched"].into_iter().enumerate() {
            let begun = Instant::now();
            run(&admin, &format!("update public.{table} set n = n + 1")).await;
            best[at] = best[at].min(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [bare, watched] = best;
    assert!(
        watched < bare * 3.0 + 2.0,
        "20 rows of 5 MB: {watched:.1} ms with triggers, {bare:.1} ms without"
    );
    // They count as changed, because nothing looked at them.
    assert_eq!(take_keys(&admin, "w").await.len(), 15 * 20);
}

async fn an_oversized_key_is_recorded_by_its_size(server: Server) {
    let (_db, admin, _) = with_mallory(server).await;
    run(
        &admin,
        "create table public.tags (name text primary key, v int);
         select pg2kv.watch('public.tags', 'tags', '{name}', '{v}');
         insert into public.tags values (repeat('x', 200000), 1), (repeat('y', 4096), 1), ('short', 1)",
    )
    .await;
    let keys = take_keys(&admin, "tags").await;
    assert_eq!(keys[0], "every key");
    let oversized: serde_json::Value = serde_json::from_str(&keys[1]).unwrap();
    assert_eq!(oversized["oversized"], 200_000);
    assert!(keys[1].len() < 100, "{}", keys[1]);
    assert_eq!(keys[2].len(), 4096 + 4);
    assert_eq!(keys[3], r#"["short"]"#);
}

async fn unwatching_beside_a_daemon_does_not_deadlock(server: Server) {
    let (db, admin, _) = with_mallory(server).await;
    run(
        &admin,
        "create table public.t (id int primary key) partition by range (id);
         create table public.t1 partition of public.t for values from (0) to (10);
         create role daemon login in role pg2kv_daemon;
         select pg2kv.watch('public.t', 's', '{id}'); insert into public.t values (1)",
    )
    .await;
    // The daemon reads the table and then takes outbox rows, while unwatch() waits for the table.
    let daemon = db.connect_as("daemon").await;
    run(&daemon, "begin; select from public.t").await;
    let unwatching = db.connect().await;
    let unwatch = tokio::spawn(async move {
        let done = unwatching.batch_execute("select pg2kv.unwatch('s')").await;
        done.map_err(|error| format!("{error:?}"))
    });
    wait::until("unwatch() to wait for the table", async || {
        let waits = "select pid::text from pg_locks where not granted and locktype = 'relation'";
        (!texts(&admin, waits).await.is_empty()).then_some(())
    })
    .await;
    run(
        &daemon,
        "select pg2kv.take(array_agg(id), array_agg(id)) from pg2kv.outbox;
         insert into pg2kv.claim (epoch, sync, keys) values (1, 's', '{[1]}'); commit",
    )
    .await;
    unwatch.await.unwrap().unwrap();
    // The other way round: what the daemon has taken and not committed is not waited for.
    run(
        &admin,
        "delete from pg2kv.claim; select pg2kv.watch('public.t', 's', '{id}'); insert into public.t values (2)",
    )
    .await;
    run(
        &daemon,
        "begin; select pg2kv.take(array_agg(id), array_agg(id)) from pg2kv.outbox",
    )
    .await;
    run(&admin, "select pg2kv.unwatch('s')").await;
    run(&daemon, "commit").await;
    assert!(
        texts(&admin, "select sync from pg2kv.outbox")
            .await
            .is_empty()
    );
}
