//! What an operator gets wrong, or loses: the log says what and what to do, everything else flows,
//! and nothing is lost.

use pg2kv::throwaway::Stop;
use reqwest::Method;

use super::{DOCS, world};
use crate::support::postgres::connect;
use crate::support::wait;
use crate::support::world::TOKEN;

#[tokio::test]
async fn a_table_that_is_missing_at_the_start_or_dropped_later() {
    let world = world().await;
    world.sql("drop table public.doc").await;
    let daemon = world.daemon();
    let line = daemon.logged("sync on hold; the others flow").await;
    for said in [
        "\"sync\":\"doc\"",
        "\"reason\":\"relation\"",
        "public.doc",
        "\"hint\":",
    ] {
        assert!(line.contains(said), "{said} is not in {line}");
    }
    world
        .sql("insert into public.note values (1, 'flows')")
        .await;
    world.has("note:1", Some(r#"{"text":"flows"}"#)).await;

    let table = "create table public.doc (name text primary key, body text);
                 select pg2kv.watch('public.doc', sync => 'doc', key => '{name}', columns => '{body}');";
    world.sql(table).await;
    world
        .sql("insert into public.doc values ('a', 'back'), ('b', 'back')")
        .await;
    daemon.logged("sync flows again").await;
    world.converges().await;

    world
        .sql("drop table public.doc; select pg2kv.resync('doc')")
        .await;
    daemon
        .logged_times("sync on hold; the others flow", 2)
        .await;
    world
        .sql("insert into public.note values (2, 'flows')")
        .await;
    world.has("note:2", Some(r#"{"text":"flows"}"#)).await;
    // A table that cannot be read says nothing about its rows.
    assert_eq!(world.kv.snapshot(DOCS).len(), 2);
    world.sql(table).await;
    world
        .sql("insert into public.doc values ('a', 'again')")
        .await;
    world.converges().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_column_or_the_privilege_to_read_it_goes_and_comes_back() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql("insert into public.doc values ('a', 'first')")
        .await;
    world.converges().await;
    for (breaks, mends) in [
        (
            "revoke select on public.doc from pg2kv_daemon",
            "grant select (name, body) on public.doc to pg2kv_daemon",
        ),
        (
            "alter table public.doc rename body to content",
            "alter table public.doc rename content to body",
        ),
    ] {
        let holds = daemon.count("sync on hold");
        world.sql(breaks).await;
        world
            .sql("insert into public.doc values (gen_random_uuid(), null)")
            .await;
        let line = daemon.logged_times("sync on hold", holds + 1).await;
        assert!(line.contains("\"hint\":"), "{line}");
        world.sql("update public.note set text = text; insert into public.note values (1, 'flows') on conflict do nothing").await;
        world.has("note:1", Some(r#"{"text":"flows"}"#)).await;
        world.sql(mends).await;
        world.converges().await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_table_that_somebody_has_locked_holds_its_sync_and_no_other() {
    let world = world().await;
    let mut locker = connect(&world.postgres.admin_url()).await;
    let lock = locker.transaction().await.unwrap();
    lock.batch_execute("lock table public.doc in access exclusive mode")
        .await
        .unwrap();
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql("insert into public.note values (1, 'flows')")
        .await;
    let line = daemon.logged("sync on hold; the others flow").await;
    assert!(line.contains("\"sync\":\"doc\""), "{line}");
    assert!(line.contains("has locked the table"), "{line}");
    world.has("note:1", Some(r#"{"text":"flows"}"#)).await;
    lock.execute("insert into public.doc values ('a', 'waits')", &[])
        .await
        .unwrap();
    lock.commit().await.unwrap();
    daemon.logged("sync flows again").await;
    world.converges().await;
    assert_eq!(daemon.count("this process leads"), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn a_revoked_token_and_then_a_good_one_in_the_file() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql("insert into public.note values (1, 'before')")
        .await;
    world.converges().await;

    world.kv.set_token(Some("another-token".to_owned()));
    world
        .sql("insert into public.note values (2, 'waits'); delete from public.note where id = 1")
        .await;
    let line = daemon.logged("nothing is sent to KV for a while").await;
    for said in [
        "\"reason\":\"unauthorized\"",
        "the API token is refused",
        "kv.api_token_file",
    ] {
        assert!(line.contains(said), "{said} is not in {line}");
    }
    let (status, body) = daemon.get("/readyz").await;
    assert_eq!(status, 200);
    assert!(body.contains("sending blocked (unauthorized)"), "{body}");
    assert!(body.contains("kv.api_token_file"), "{body}");
    world
        .sql("insert into public.note values (3, 'waits too')")
        .await;

    world.set_token("another-token");
    daemon.logged("the API token was read anew").await;
    daemon.logged("sending to KV works again").await;
    world.converges().await;
    let (_, body) = daemon.get("/readyz").await;
    assert!(!body.contains("blocked"), "{body}");
    world.kv.set_token(Some(TOKEN.to_owned()));
    daemon.stop().await;
}

#[tokio::test]
async fn a_namespace_that_is_not_there_yet_and_one_that_goes() {
    let world = world().await;
    world.api(Method::DELETE, DOCS, "").await;
    let daemon = world.daemon();
    world
        .sql("insert into public.doc values ('a', 'waits'); insert into public.note values (1, 'flows')")
        .await;
    let line = daemon.logged("sync on hold; the others flow").await;
    for said in [
        "\"sync\":\"doc\"",
        "\"reason\":\"namespace_gone\"",
        "kv.namespace_id",
    ] {
        assert!(line.contains(said), "{said} is not in {line}");
    }
    world.has("note:1", Some(r#"{"text":"flows"}"#)).await;
    let (_, body) = daemon.get("/readyz").await;
    assert!(body.contains("sync doc on hold (namespace_gone)"), "{body}");
    world.kv.create_namespace(DOCS).unwrap();
    daemon.logged("sync flows again").await;
    world.converges().await;

    // What stood in the namespace goes with it, so everything is written anew.
    world
        .sql("insert into public.doc select 'd' || n, 'x' from generate_series(1, 50) n")
        .await;
    world.converges().await;
    world.api(Method::DELETE, DOCS, "").await;
    world
        .sql("update public.doc set body = 'y' where name = 'd1'")
        .await;
    daemon
        .logged_times("sync on hold; the others flow", 2)
        .await;
    world.kv.create_namespace(DOCS).unwrap();
    daemon.logged_times("backfill done", 3).await;
    world.converges().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_postgres_that_is_down_at_the_start_and_crashes_later() {
    let mut world = world().await;
    world.sql("insert into public.note values (1, 'old')").await;
    world.stop_postgres(Stop::Fast).await;
    let daemon = world.daemon();
    let line = daemon
        .logged("no session with Postgres; trying again")
        .await;
    assert!(line.contains("\"level\":\"WARN\""), "{line}");
    wait::until("/readyz to say why", async || {
        let (status, body) = daemon.get("/readyz").await;
        (status == 503 && body.contains("not ready") && body.contains("postgres: ")).then_some(())
    })
    .await;
    assert_eq!(daemon.get("/livez").await.0, 200);
    world.postgres.resume().unwrap();
    daemon.leads().await;
    world.converges().await;
    assert_eq!(daemon.get("/readyz").await.0, 200);

    for how in [Stop::Fast, Stop::Immediate] {
        world.sql("update public.note set text = text || '.'").await;
        world.stop_postgres(how).await;
        world.postgres.resume().unwrap();
        world
            .sql("insert into public.note select count(*) + 1, 'new' from public.note")
            .await;
        world.converges().await;
    }
    daemon.stop().await;
}
