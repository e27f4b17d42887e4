//! Installing and removing.

use pg2kv::sql_kit::{self, Schema, WatchSpec};
use pg2kv::throwaway::Postgres;

use super::{on_both_servers, refusal, run, text, with_kit};
use crate::support::postgres::{self, Database, Server};

on_both_servers!(
    installing_twice_changes_nothing,
    everything_has_a_comment,
    uninstalling_leaves_nothing,
    another_schema_name_stands_beside_the_default_one,
    a_role_that_may_create_roles_can_do_it_all,
    a_newer_schema_is_left_alone,
    a_publication_of_all_tables_leaves_the_daemon_its_deletes,
);

/// Everything that a kit makes, with owners and privileges.
const INVENTORY: &str = "
    select string_agg(line, e'\n' order by line) from (
        select format('%s %s %s %s', relkind, relname, relowner::regrole, array(select a::text from unnest(relacl) a order by 1)) as line
        from pg_class where relnamespace = to_regnamespace('pg2kv')
        union all
        select format('%s %s %s', oid::regprocedure, proowner::regrole, array(select a::text from unnest(proacl) a order by 1))
        from pg_proc where pronamespace = to_regnamespace('pg2kv')
        union all
        select format('%s %s', nspname, array(select a::text from unnest(nspacl) a order by 1)) from pg_namespace where nspname ~ 'pg2kv'
        union all
        select format('%s %s', rolname, rolcanlogin) from pg_roles where rolname ~ 'pg2kv'
        union all
        select format('%s %s', tgname, tgenabled) from pg_trigger where tgname ~ 'pg2kv'
        union all
        select format('%s %s', relname, attname) from pg_attribute join pg_class c on c.oid = attrelid
        where attacl::text ~ 'pg2kv'
        union all
        select format('%s %s', relname, array(select a::text from unnest(relacl) a order by 1)) from pg_class where relacl::text ~ 'pg2kv'
    ) lines";

async fn installing_twice_changes_nothing(server: Server) {
    let (_db, admin) = with_kit(server).await;
    let before = text(&admin, INVENTORY).await;
    run(
        &admin,
        "select setval('pg2kv.bell', 7); update pg2kv.lease set epoch = 3",
    )
    .await;

    run(&admin, &sql_kit::install(&Schema::default())).await;

    assert_eq!(text(&admin, INVENTORY).await, before);
    assert_eq!(
        text(&admin, "select last_value::text from pg2kv.bell").await,
        "7"
    );
    assert_eq!(
        text(&admin, "select epoch::text from pg2kv.lease").await,
        "3"
    );
}

async fn everything_has_a_comment(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create table t (id int primary key); select pg2kv.watch('t', 't', '{id}')",
    )
    .await;
    let bare = "
        select relname::text from pg_class
        where relnamespace = 'pg2kv'::regnamespace and relkind in ('r', 'S')
          and relname !~ '_id_seq$' and obj_description(oid, 'pg_class') is null
        union all
        select proname::text from pg_proc
        where pronamespace = 'pg2kv'::regnamespace and obj_description(oid, 'pg_proc') is null
        union all
        select tgname::text from pg_trigger
        where tgname ~ 'pg2kv' and obj_description(oid, 'pg_trigger') is null
        union all
        select rolname::text from pg_roles
        where rolname ~ 'pg2kv' and shobj_description(oid, 'pg_authid') is null";
    assert_eq!(text(&admin, bare).await, "");
}

async fn uninstalling_leaves_nothing(server: Server) {
    // Roles belong to the whole cluster, so this takes a cluster of its own.
    let server = Postgres::start(server.options()).unwrap();
    let admin = postgres::connect(&server.admin_url()).await;
    let before = text(&admin, INVENTORY).await;
    run(&admin, &sql_kit::install(&Schema::default())).await;
    run(
        &admin,
        "create schema app;
         create table app.t (id int primary key, a text);
         select pg2kv.watch('app.t', 't', '{id}', '{a}');
         create table gone (id int primary key);
         select pg2kv.watch('gone', 'gone', '{id}');
         drop table gone;
         insert into app.t values (1, 'a')",
    )
    .await;
    assert_ne!(text(&admin, INVENTORY).await, before);

    run(&admin, &sql_kit::uninstall(&Schema::default())).await;
    assert_eq!(text(&admin, INVENTORY).await, before);
    run(&admin, "update app.t set a = 'b'").await;

    run(&admin, &sql_kit::uninstall(&Schema::default())).await;
}

async fn another_schema_name_stands_beside_the_default_one(server: Server) {
    let (_db, admin) = with_kit(server).await;
    let edge = Schema::parse("edge_eu").unwrap();
    run(&admin, &sql_kit::install(&edge)).await;
    run(
        &admin,
        r#"create table "Odd table" ("The id" int primary key, a text, b text)"#,
    )
    .await;
    for (schema, columns) in [
        (&Schema::default(), None),
        (&edge, Some(vec!["a".to_owned()])),
    ] {
        let spec = WatchSpec {
            related: Vec::new(),
            sync: "odd".into(),
            table: r#"public."Odd table""#.into(),
            key_columns: vec!["The id".into()],
            columns,
            collect: false,
            shards: None,
        };
        run(&admin, &sql_kit::watch(schema, &spec)).await;
    }
    run(
        &admin,
        r#"insert into "Odd table" values (1); update "Odd table" set b = 'b'"#,
    )
    .await;

    let count = |schema| format!("select count(*)::text from {schema}.outbox where key = '[1]'");
    assert_eq!(text(&admin, &count("pg2kv")).await, "2");
    assert_eq!(text(&admin, &count("edge_eu")).await, "1");

    run(&admin, &sql_kit::unwatch(&edge, "odd")).await;
    run(&admin, r#"update "Odd table" set b = 'c'"#).await;
    assert_eq!(text(&admin, &count("pg2kv")).await, "3");
}

async fn a_role_that_may_create_roles_can_do_it_all(server: Server) {
    let server = Postgres::start(server.options()).unwrap();
    let admin = postgres::connect(&server.admin_url()).await;
    run(&admin, "create role dba login createrole").await;
    run(&admin, "create database app owner dba").await;
    let dba = postgres::connect(&server.url_as("dba", "app")).await;
    for _ in 0..2 {
        run(&dba, &sql_kit::install(&Schema::default())).await;
    }
    run(
        &dba,
        "create schema app;
         create table app.t (id int primary key, a text);
         select pg2kv.watch('app.t', 't', '{id}', '{a}');
         insert into app.t values (1, 'a');",
    )
    .await;
    assert_eq!(
        text(&dba, "select pg_has_role('pg2kv_owner', 'usage')::text").await,
        "false",
        "who installs is a member of pg2kv_owner for that long only"
    );
    run(&dba, "grant pg2kv_daemon to dba").await;
    assert_eq!(
        text(&dba, "select triggers from pg2kv.status()").await,
        "ok"
    );
    assert_eq!(
        text(&dba, "select count(*)::text from pg2kv.outbox").await,
        "2"
    );
    run(&dba, "select pg2kv.unwatch('t')").await;
    run(&dba, &sql_kit::uninstall(&Schema::default())).await;
    assert_eq!(text(&dba, INVENTORY).await, "null");
}

async fn a_newer_schema_is_left_alone(server: Server) {
    let db = Database::create(server).await;
    let admin = db.connect().await;
    run(&admin, &sql_kit::install(&Schema::default())).await;
    run(
        &admin,
        "update pg2kv.meta set schema_version = 1000; drop function pg2kv.resync",
    )
    .await;
    let error = refusal(&admin, &sql_kit::install(&Schema::default())).await;
    assert!(error.message().contains("newer than this file"), "{error}");
    run(&admin, "rollback").await;
    assert_eq!(
        text(&admin, "select to_regproc('pg2kv.resync')::text").await,
        "null"
    );
}

/// Such a publication makes the server refuse deletes from a table whose rows it could not name.
async fn a_publication_of_all_tables_leaves_the_daemon_its_deletes(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, "create publication everything for all tables").await;
    let tables = super::texts(
        &admin,
        "select tablename::text from pg_tables where schemaname = 'pg2kv'",
    )
    .await;
    assert!(tables.len() > 8, "{tables:?}");
    for table in tables {
        run(&admin, &format!("delete from pg2kv.{table}")).await;
    }
}
