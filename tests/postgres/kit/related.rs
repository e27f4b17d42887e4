//! `watch_related` and `unwatch_related`: what a change of a table that documents take data from
//! records, and who may do what.

use super::{on_both_servers, refusal, run, take_keys, text, texts, with_kit};
use crate::support::postgres::Server;

on_both_servers!(
    a_change_is_one_marker_whatever_it_concerns,
    matched_columns_that_are_the_key_record_the_key,
    the_values_do_not_depend_on_who_writes,
    partitions_and_replication_are_seen,
    watching_again_changes_nothing_and_other_arguments_replace,
    what_cannot_be_related_is_refused_with_a_remedy,
    the_daemon_may_read_what_it_must_and_no_more,
    unwatching_leaves_no_trace,
    faults_of_related_triggers_are_told_and_mended,
    a_table_in_use_is_left_alone,
);

const TABLES: &str = "
    create table tenants (id int primary key, plan text, name text, notes text);
    create table users (id bigint primary key, tenant_id bigint, plan text, secret text);
    create index on users (tenant_id, id);
    insert into tenants values (1, 'free', 'One'), (2, 'free', 'Two');
    insert into users select n, 1 + n % 2 from generate_series(1, 10) n;
    select pg2kv.watch('users', sync => 'users', key => '{id}', columns => '{plan,tenant_id}');";
const RELATE: &str = "select pg2kv.watch_related('tenants', sync => 'users', name => 'tenants',
    match => '{\"tenant_id\": \"id\"}', columns => '{plan,name}')";

fn marker(values: &str) -> String {
    format!("{{\"values\": {values}, \"related\": \"tenants\"}}")
}

async fn a_change_is_one_marker_whatever_it_concerns(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLES).await;
    take_keys(&admin).await;
    assert_eq!(
        text(&admin, RELATE).await,
        "public.tenants is watched as tenants of users"
    );
    assert_eq!(take_keys(&admin).await, ["everything"]);
    let (one, two, three) = (marker("[1]"), marker("[2]"), marker("[3]"));
    for (sql, recorded) in [
        ("update tenants set plan = 'pro' where id = 1", vec![&one]),
        ("update tenants set plan = 'pro' where id = 1", vec![]),
        ("update tenants set notes = 'x'", vec![]),
        ("update tenants set name = 'same'", vec![&two, &one]),
        ("update tenants set id = 3 where id = 2", vec![&two, &three]),
        ("insert into tenants values (2)", vec![&two]),
        ("delete from tenants where id = 3", vec![&three]),
        ("begin; update tenants set plan = null; rollback", vec![]),
    ] {
        run(&admin, sql).await;
        assert_eq!(
            take_keys(&admin).await.iter().collect::<Vec<_>>(),
            recorded,
            "{sql}"
        );
    }
    run(&admin, "update users set tenant_id = 2 where id = 2").await;
    assert_eq!(take_keys(&admin).await, ["[2]"], "the row's own trigger");
    run(&admin, "truncate tenants").await;
    assert_eq!(take_keys(&admin).await, ["everything"]);
    assert_eq!(
        text(&admin, "select triggers from pg2kv.status()").await,
        "ok"
    );
}

async fn matched_columns_that_are_the_key_record_the_key(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create table users (region text, id int, name text, primary key (id, region));
         create table settings (n int, user_id int, home text, theme text);
         create table wide (user_id bigint, home text);
         select pg2kv.watch('users', 'users', '{region,id}');
         select pg2kv.watch_related('settings', 'users', 'settings', '{\"id\": \"user_id\", \"region\": \"home\"}');
         select pg2kv.watch_related('wide', 'users', 'wide', '{\"id\": \"user_id\", \"region\": \"home\"}')",
    )
    .await;
    take_keys(&admin).await;
    for (sql, recorded) in [
        (
            "insert into settings values (1, 7, 'eu', 'dark')",
            vec![r#"["eu", 7]"#],
        ),
        ("update settings set theme = 'light'", vec![r#"["eu", 7]"#]),
        (
            "update settings set user_id = 8",
            vec![r#"["eu", 7]"#, r#"["eu", 8]"#],
        ),
        ("update settings set home = null", vec![r#"["eu", 8]"#]),
        ("update settings set theme = 'dark'", vec![]),
        ("delete from settings", vec![]),
        // A number that does not fit the key would be a key that no row can have.
        (
            "insert into wide values (3000000000, 'eu')",
            vec![r#"{"values": [3000000000, "eu"], "related": "wide"}"#],
        ),
    ] {
        run(&admin, sql).await;
        assert_eq!(take_keys(&admin).await, recorded, "{sql}");
    }
}

async fn the_values_do_not_depend_on_who_writes(server: Server) {
    let (db, admin) = with_kit(server).await;
    let writer = db.role("writer");
    run(
        &admin,
        &format!(
            "create table t (id int primary key, at timestamptz, f float8, b bytea);
             create table r (at timestamptz, f float8, b bytea, v int);
             create role {writer} login; grant insert, update on r to {writer};
             select pg2kv.watch('t', 't', '{{id}}');
             select pg2kv.watch_related('r', 't', 'r', '{{\"at\": \"at\", \"f\": \"f\", \"b\": \"b\"}}')"
        ),
    )
    .await;
    take_keys(&admin).await;
    let client = db.connect_as(&writer).await;
    run(
        &client,
        "set timezone = 'Asia/Kathmandu'; set bytea_output = 'escape'; set extra_float_digits = -10;
         create temp table outbox (sync text, key jsonb);
         set search_path = pg_temp, public, pg_catalog;
         insert into r values ('2026-02-03 04:05:06+00', 0.1::float8 + 0.2, '\\x00ff', 1)",
    )
    .await;
    let recorded =
        r#"{"values": ["2026-02-03T04:05:06", "00ff", 0.30000000000000004], "related": "r"}"#;
    assert_eq!(take_keys(&admin).await, [recorded]);
}

async fn partitions_and_replication_are_seen(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create table tenants (id int primary key, plan text) partition by range (id);
         create table tenants1 partition of tenants for values from (0) to (10);
         create table tenants2 partition of tenants for values from (10) to (20);
         create table users (id int primary key, tenant_id int) partition by range (id);
         create table users1 partition of users for values from (0) to (100);
         create index on users (tenant_id);
         select pg2kv.watch('users', 'users', '{id}');
         select pg2kv.watch_related('tenants', 'users', 'tenants', '{\"tenant_id\": \"id\"}')",
    )
    .await;
    take_keys(&admin).await;
    for (sql, recorded) in [
        ("insert into tenants1 values (1)", vec![marker("[1]")]),
        (
            "update tenants set id = 11",
            vec![marker("[1]"), marker("[11]")],
        ),
        ("truncate tenants2", vec!["everything".to_owned()]),
        ("set session_replication_role = replica", vec![]),
        ("insert into tenants values (2)", vec![marker("[2]")]),
        ("reset session_replication_role", vec![]),
    ] {
        run(&admin, sql).await;
        assert_eq!(take_keys(&admin).await, recorded, "{sql}");
    }
}

const TRIGGERS: &str = "
    select string_agg(format('%s %s %s', oid, tgfoid::regproc, xmin), ',' order by tgname)
    from pg_trigger where not tgisinternal and tgname <> 'perform'";

async fn watching_again_changes_nothing_and_other_arguments_replace(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLES).await;
    run(&admin, RELATE).await;
    take_keys(&admin).await;
    let before = text(&admin, TRIGGERS).await;
    assert_eq!(
        text(&admin, RELATE).await,
        "public.tenants is watched as tenants of users already; nothing was changed"
    );
    run(
        &admin,
        "select pg2kv.watch('users', 'users', '{id}', '{plan,tenant_id}')",
    )
    .await;
    assert_eq!(text(&admin, TRIGGERS).await, before);
    assert!(take_keys(&admin).await.is_empty());

    // What waits would be understood by the new match.
    run(
        &admin,
        "update tenants set plan = 'x' where id = 1;
         alter table tenants add code int;
         select pg2kv.watch_related('tenants', 'users', 'tenants', '{\"tenant_id\": \"code\"}')",
    )
    .await;
    assert_eq!(take_keys(&admin).await, ["everything"]);
    run(&admin, "update tenants set code = 5 where id = 1").await;
    assert_eq!(take_keys(&admin).await, [marker("[5]")]);

    // With another key it is one to one, which is not for the trigger of before.
    run(
        &admin,
        "alter table users add unique (tenant_id, id); select pg2kv.unwatch_related('users', 'tenants');
         alter table tenants alter code type bigint;
         select pg2kv.watch_related('tenants', 'users', 'tenants', '{\"tenant_id\": \"code\"}');
         delete from users where id > 2;
         alter table users add unique (tenant_id);
         select pg2kv.watch('users', 'users', '{tenant_id}', '{plan}')",
    )
    .await;
    take_keys(&admin).await;
    run(&admin, "update tenants set code = 6 where id = 1").await;
    assert_eq!(take_keys(&admin).await, ["[5]", "[6]"]);
}

async fn what_cannot_be_related_is_refused_with_a_remedy(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLES).await;
    run(
        &admin,
        "create view v as select * from tenants; create unlogged table fleeting (id bigint);
         alter table users add code text; alter table users add secret_id int",
    )
    .await;
    for (arguments, message, hint) in [
        ("null, 'users', 'x', '{}'", "relation is null", "tenants"),
        (
            "'tenants', 'nobody', 'x', '{}'",
            "no sync is named 'nobody'",
            "pg2kv.watch",
        ),
        (
            "'tenants', 'users', 'No', '{}'",
            "'No' is not a name",
            "lower-case",
        ),
        (
            "'tenants', 'users', 'x', '[]'",
            "match is not an object",
            "tenant_id",
        ),
        (
            "'tenants', 'users', 'x', '{}'",
            "match is not an object",
            "tenant_id",
        ),
        (
            "'tenants', 'users', 'x', '{\"tenant_id\": 1}'",
            "match is not an object",
            "tenant_id",
        ),
        (
            "'tenants', 'users', 'x', null",
            "match is not an object",
            "tenant_id",
        ),
        (
            "'tenants', 'users', 'x', '{\"tenant_id\": \"no\"}'",
            "public.tenants has no column no",
            "without double quotes",
        ),
        (
            "'tenants', 'users', 'x', '{\"no\": \"id\"}'",
            "public.users has no column no",
            "first",
        ),
        (
            "'tenants', 'users', 'x', '{\"tenant_id\": \"id\"}', '{no}'",
            "public.tenants has no column no",
            "without double quotes",
        ),
        (
            "'tenants', 'users', 'x', '{\"secret_id\": \"id\"}'",
            "does not watch all of secret_id",
            "columns => '{plan,secret_id,tenant_id}'",
        ),
        (
            "'tenants', 'users', 'x', '{\"tenant_id\": \"plan\"}'",
            "columns of different types cannot match: public.users.tenant_id (bigint) and public.tenants.plan (text)",
            "same type",
        ),
        (
            "'v', 'users', 'x', '{\"tenant_id\": \"id\"}'",
            "public.v is not an ordinary",
            "not a view",
        ),
        (
            "'fleeting', 'users', 'x', '{\"tenant_id\": \"id\"}'",
            "public.fleeting is unlogged",
            "set logged",
        ),
        (
            "'tenants', 'users', 'x234567890123456789012345678901', '{\"tenant_id\": \"id\"}'",
            "too long together",
            "shorter",
        ),
    ] {
        if arguments.contains("x2345") {
            run(
                &admin,
                "select pg2kv.watch('tenants', 'u234567890123456789012345678901', '{id}')",
            )
            .await;
        }
        let arguments = if arguments.contains("x2345") {
            arguments.replace("'users'", "'u234567890123456789012345678901'")
        } else {
            arguments.to_owned()
        };
        let error = refusal(&admin, &format!("select pg2kv.watch_related({arguments})")).await;
        assert!(error.message().contains(message), "{arguments}: {error}");
        let found = error.hint().unwrap_or_default();
        assert!(found.contains(hint), "{arguments}: {found:?}");
    }
}

async fn the_daemon_may_read_what_it_must_and_no_more(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create schema app;
         create table app.tenants (id bigint primary key, plan text, secret text);
         create table users (id int primary key, tenant_id bigint, secret text);
         select pg2kv.watch('users', 'users', '{id}', '{tenant_id}');
         select pg2kv.watch_related('app.tenants', 'users', 'tenants', '{\"tenant_id\": \"id\"}', '{plan}')",
    )
    .await;
    const READABLE: &str = "
        select string_agg(attrelid::regclass || '.' || attname, ' ' order by 1) from (
          select attrelid, attname from pg_attribute
          where attrelid in ('app.tenants'::regclass, 'users'::regclass) and attnum > 0
            and has_column_privilege('pg2kv_daemon', attrelid, attnum, 'select')
          order by 1, 2) as readable";
    let readable = texts(
        &admin,
        &READABLE.replace(
            "string_agg(attrelid::regclass || '.' || attname, ' ' order by 1)",
            "attrelid::regclass || '.' || attname",
        ),
    )
    .await;
    assert_eq!(
        readable
            .iter()
            .map(String::as_str)
            .collect::<std::collections::BTreeSet<_>>(),
        [
            "app.tenants.id",
            "app.tenants.plan",
            "users.id",
            "users.tenant_id"
        ]
        .into()
    );
    let usage = "select has_schema_privilege('pg2kv_daemon', 'app', 'usage')::text";
    assert_eq!(text(&admin, usage).await, "true");
    for sql in [
        "select pg2kv.watch_related('app.tenants', 'users', 'tenants', '{\"tenant_id\": \"id\"}')",
        "select pg2kv.unwatch_related('users', 'tenants')",
        "delete from pg2kv.related",
        "select pg2kv.capture_users$tenants()",
        "select pg2kv.updated_users$tenants()",
    ] {
        run(&admin, "begin; set local role pg2kv_daemon").await;
        assert_eq!(refusal(&admin, sql).await.code().code(), "42501", "{sql}");
        run(&admin, "rollback").await;
    }
    run(&admin, "select pg2kv.unwatch_related('users', 'tenants')").await;
    assert_eq!(text(&admin, usage).await, "false");
}

async fn unwatching_leaves_no_trace(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLES).await;
    run(&admin, RELATE).await;
    run(
        &admin,
        "select pg2kv.watch_related('tenants', 'users', 'again', '{\"tenant_id\": \"id\"}');
         delete from pg2kv.outbox; update tenants set plan = 'x' where id = 1",
    )
    .await;
    assert_eq!(
        text(&admin, "select pg2kv.unwatch_related('users', 'tenants')").await,
        "public.tenants is no longer watched as tenants of users"
    );
    assert_eq!(
        take_keys(&admin).await,
        [r#"{"values": [1], "related": "again"}"#]
    );
    assert_eq!(
        text(&admin, "select pg2kv.unwatch_related('users', 'tenants')").await,
        "'tenants' of 'users' is not watched; nothing was changed"
    );
    run(&admin, "select pg2kv.unwatch('users')").await;
    for left in [
        "select tgname::text from pg_trigger where tgname ~ 'pg2kv'",
        "select proname::text from pg_proc where proname ~ '^(capture|updated)_'",
        "select name from pg2kv.related",
        "select sync from pg2kv.outbox",
        "select 'tenants' from pg_class, aclexplode(relacl) a
         where oid in ('users'::regclass, 'tenants'::regclass) and a.grantee = 'pg2kv_daemon'::regrole",
    ] {
        assert_eq!(texts(&admin, left).await, [""; 0], "{left}");
    }
}

async fn faults_of_related_triggers_are_told_and_mended(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLES).await;
    run(&admin, RELATE).await;
    const STATUS: &str = "select triggers from pg2kv.status()";
    assert_eq!(text(&admin, STATUS).await, "ok");
    for (damage, said) in [
        (
            "alter table tenants disable trigger zzz_pg2kv_users$tenants_update",
            "trigger \"zzz_pg2kv_users$tenants_update\" on public.tenants is disabled",
        ),
        (
            "drop trigger zzz_pg2kv_users$tenants_row on tenants",
            "trigger \"zzz_pg2kv_users$tenants_row\" on public.tenants is missing",
        ),
        (
            "drop function pg2kv.capture_users$tenants() cascade",
            "\"zzz_pg2kv_users$tenants_truncate\" on public.tenants is missing",
        ),
        (
            "drop function pg2kv.updated_users$tenants() cascade",
            "\"zzz_pg2kv_users$tenants_update\" on public.tenants is missing",
        ),
        (
            "create or replace trigger zzz_pg2kv_users$tenants_update after update on tenants
             for each row execute function pg2kv.capture_users$tenants()",
            "\"zzz_pg2kv_users$tenants_update\" on public.tenants calls the wrong function",
        ),
    ] {
        run(&admin, damage).await;
        let status = text(&admin, STATUS).await;
        assert!(status.contains(said), "{status}");
        // The one thing to run mends what belongs to the sync.
        run(
            &admin,
            "select pg2kv.watch('users', 'users', '{id}', '{plan,tenant_id}')",
        )
        .await;
        assert_eq!(text(&admin, STATUS).await, "ok", "after {damage}");
        take_keys(&admin).await;
        run(
            &admin,
            "update tenants set plan = clock_timestamp()::text where id = 1",
        )
        .await;
        assert_eq!(take_keys(&admin).await, [marker("[1]")]);
    }
    run(&admin, "drop table tenants").await;
    let status = text(&admin, STATUS).await;
    assert!(status.contains("is missing"), "{status}");
    run(&admin, "select pg2kv.unwatch_related('users', 'tenants')").await;
    assert_eq!(text(&admin, STATUS).await, "ok");
}

async fn a_table_in_use_is_left_alone(server: Server) {
    let (db, admin) = with_kit(server).await;
    run(&admin, TABLES).await;
    let writer = db.connect().await;
    run(&writer, "begin; update tenants set plan = 'x'").await;
    let error = refusal(&admin, RELATE).await;
    assert_eq!(error.code().code(), "55P03");
    assert!(
        error
            .message()
            .starts_with("could not lock public.tenants within 2 s"),
        "{error}"
    );
    assert_eq!(
        text(&admin, "select count(*)::text from pg2kv.related").await,
        "0"
    );
}
