//! Nothing that pg2kv installs gives anybody rights that they did not have.

use pg2kv::sql_kit::{self, Schema};
use pg2kv::throwaway::Postgres;

use super::{on_both_servers, refusal, run, take_keys, texts, with_mallory};
use crate::support::postgres::{self, Database, Server};

on_both_servers!(
    the_owner_of_a_key_type_runs_no_code,
    nobody_can_forge_who_asks,
    a_planted_schema_is_not_run,
    a_planted_role_is_not_trusted,
    a_dump_restored_without_owners_is_found_and_repaired,
    a_second_database_does_not_share_the_roles_unasked,
    an_installer_without_the_admin_option_is_told_what_to_grant,
    the_daemon_cannot_lock_writers_out,
);

/// A type of the attacker's with casts to everything that a key could be rendered by. Each of them notes
/// as whom it ran.
const HOSTILE_TYPE: &str = "
    create table public.ran (as_whom name);
    grant insert on public.ran to public;
    create type public.kind as enum ('a', 'b');
    create function public.to_json(public.kind) returns json language plpgsql as
      $$ begin insert into public.ran values (current_user); return '\"x\"'; end $$;
    create function public.to_jsonb(public.kind) returns jsonb language plpgsql as
      $$ begin insert into public.ran values (current_user); return '\"x\"'; end $$;
    create function public.to_text(public.kind) returns text language plpgsql as
      $$ begin insert into public.ran values (current_user); return 'x'; end $$;
    create function public.to_number(public.kind) returns bigint language plpgsql as
      $$ begin insert into public.ran values (current_user); return 1; end $$;
    create cast (public.kind as json) with function public.to_json(public.kind) as implicit;
    create cast (public.kind as jsonb) with function public.to_jsonb(public.kind) as implicit;
    create cast (public.kind as text) with function public.to_text(public.kind) as implicit;
    create cast (public.kind as bigint) with function public.to_number(public.kind) as implicit;";

/// Who the attacker's code ran as, besides the attacker itself.
const VICTIMS: &str = "select distinct as_whom::text from public.ran where as_whom <> 'mallory'";

async fn the_owner_of_a_key_type_runs_no_code(server: Server) {
    let (db, admin, mallory) = with_mallory(server).await;
    run(&mallory, HOSTILE_TYPE).await;
    // As the type of a key from the beginning.
    run(
        &mallory,
        "create table public.direct (id public.kind primary key, v text);
         select pg2kv.watch('public.direct', 'direct', '{id}', '{v}');
         insert into public.direct values ('a', 'x'); update public.direct set id = 'b'",
    )
    .await;
    assert_eq!(
        take_keys(&admin, "direct").await,
        ["every key", r#"["a"]"#, r#"["a"]"#, r#"["b"]"#]
    );
    // Under the name of a column that was of another type when the table was watched.
    for (table, columns) in [("swapped", "'{v}'"), ("whole", "null")] {
        run(
            &mallory,
            &format!(
                "create table public.{table} (id bigint primary key, v text);
                 select pg2kv.watch('public.{table}', '{table}', '{{id}}', {columns});
                 insert into public.{table} values (1, 'x');
                 alter table public.{table} rename id to old_id;
                 alter table public.{table} add id public.kind default 'a'"
            ),
        )
        .await;
        take_keys(&admin, table).await;
        // The superuser writes, in a session that has written before and in one that has not.
        run(
            &admin,
            &format!("insert into public.{table} (old_id) values (2)"),
        )
        .await;
        let fresh = db.connect().await;
        run(&fresh, &format!("update public.{table} set v = 'y'")).await;
        run(&mallory, &format!("delete from public.{table}")).await;
        assert_eq!(take_keys(&admin, table).await, ["every key"; 3], "{table}");
    }
    // As the type of what matches a related table.
    run(
        &mallory,
        "create table public.tenants (id public.kind primary key, plan text);
         create table public.users (id bigint primary key, tenant_id public.kind);
         select pg2kv.watch('public.users', 'users', '{id}', '{tenant_id}');
         select pg2kv.watch_related('public.tenants', 'users', 'tenants', '{\"tenant_id\": \"id\"}', '{plan}');
         insert into public.tenants values ('a', 'free')",
    )
    .await;
    run(
        &admin,
        "update public.tenants set plan = 'pro'; select * from pg2kv.status()",
    )
    .await;
    assert!(
        texts(&admin, VICTIMS).await.is_empty(),
        "{:?}",
        texts(&admin, VICTIMS).await
    );
    // The trap works: a cast that somebody does call is noted.
    run(&admin, "select 'a'::public.kind::bigint").await;
    assert_eq!(texts(&admin, VICTIMS).await, ["postgres"]);
    // Not even the role that trigger functions run as could change them.
    for sql in [
        "set role pg2kv_capture; create function pg2kv.capture_users() returns trigger language plpgsql as 'begin end'",
        "set role pg2kv_capture; select * from pg2kv.outbox",
        "set role pg2kv_capture; update pg2kv.sync set columns = null",
        "set role pg2kv_capture; insert into pg2kv.outbox (sync, key, at) values ('users', null, now())",
        "set role pg2kv_capture; select setval('pg2kv.bell', 1)",
    ] {
        let sql = format!("begin; {sql}");
        assert_eq!(refusal(&admin, &sql).await.code().code(), "42501", "{sql}");
        run(&admin, "rollback").await;
    }
}

async fn nobody_can_forge_who_asks(server: Server) {
    let (_db, admin, mallory) = with_mallory(server).await;
    run(
        &admin,
        "create table public.users (id bigint primary key, name text, secret text);
         select pg2kv.watch('public.users', 'users', '{id}', '{name}')",
    )
    .await;
    run(
        &mallory,
        "create table public.mine (id bigint primary key, v text)",
    )
    .await;
    for sql in [
        "select pg2kv.watch('public.users', 'other', '{id}', '{secret}')",
        "select pg2kv.watch('public.mine', 'users', '{id}')",
        "select pg2kv.watch_related('public.mine', 'users', 'mine', '{\"id\": \"id\"}')",
        "select pg2kv.unwatch('users')",
        "insert into pg2kv.request (caller, operation, arguments) values ('postgres', 'unwatch', '{\"sync\": \"users\"}')",
        "insert into pg2kv.request (operation, arguments) values ('forget', '{\"sync\": \"users\"}')",
        "select pg2kv.make_sync('postgres', 'public.users', 'users', '{id}', null, false, null)",
        "select pg2kv.forget_sync('users')",
        "create trigger t before insert on public.mine for each row execute function pg2kv.capture_users()",
        "select pg2kv.record_every_key('users')",
    ] {
        assert_eq!(refusal(&mallory, sql).await.code().code(), "42501", "{sql}");
    }
    // Whoever else runs a function of the attacker's, or maintains its index, lends it nothing: such code
    // runs as the attacker, though the session and its role are the superuser's.
    run(
        &mallory,
        "create function public.unwatch() returns text language sql security definer as
           $$ select pg2kv.unwatch('users') $$;
         create function public.in_index(bigint) returns bigint language plpgsql immutable as
           $$ begin perform pg2kv.unwatch('users'); return $1; end $$;
         create index on public.mine (public.in_index(id))",
    )
    .await;
    assert_eq!(
        refusal(&admin, "select public.unwatch()")
            .await
            .code()
            .code(),
        "42501"
    );
    run(
        &admin,
        "alter table public.mine disable trigger user; insert into public.mine select 1 where false",
    )
    .await;
    run(
        &mallory,
        "drop index public.mine_in_index_idx; insert into public.mine values (1)",
    )
    .await;
    let indexed = "create index on public.mine (public.in_index(id))";
    assert_eq!(refusal(&admin, indexed).await.code().code(), "42501");
    assert_eq!(
        texts(&admin, "select triggers from pg2kv.status()").await,
        ["ok"]
    );
}

async fn a_planted_schema_is_not_run(server: Server) {
    let server = Postgres::start(server.options()).unwrap();
    let admin = postgres::connect(&server.admin_url()).await;
    run(&admin, "create role mallory login").await;
    run(&admin, "create database app owner mallory").await;
    let mallory = postgres::connect(&server.url_as("mallory", "app")).await;
    run(
        &mallory,
        "create table public.ran (as_whom name); grant insert on public.ran to public;
         create function public.trap() returns int language plpgsql as
           $$ begin insert into public.ran values (current_user); return 1; end $$",
    )
    .await;
    let admin = postgres::connect(&server.url("app")).await;
    for (plant, named) in [
        (
            "create schema pg2kv; create view pg2kv.meta as select public.trap() as schema_version, 1 as serves",
            "the schema pg2kv is not as pg2kv makes it (it belongs to mallory)",
        ),
        (
            "create schema pg2kv; create view pg2kv.sync as select public.trap()::text as name",
            "the schema pg2kv",
        ),
        (
            "create schema pg2kv; create function pg2kv.unwatch(text) returns text language sql as 'select public.trap()::text';
             create table pg2kv.sync (name text); insert into pg2kv.sync values ('x')",
            "the schema pg2kv",
        ),
    ] {
        run(&mallory, plant).await;
        for sql in [
            sql_kit::install(&Schema::default()),
            sql_kit::uninstall(&Schema::default()),
        ] {
            let error = refusal(&admin, &sql).await;
            assert!(error.message().contains(named), "{error}");
            assert!(error.hint().unwrap().contains("choose another schema name"), "{error:?}");
            run(&admin, "rollback").await;
        }
        run(&mallory, "drop schema pg2kv cascade").await;
    }
    // One object of a stranger's among ours is enough.
    run(&admin, &sql_kit::install(&Schema::default())).await;
    run(
        &admin,
        "grant create on schema pg2kv to mallory; set role mallory;
         create function pg2kv.version(text) returns int language sql as 'select public.trap()';
         reset role",
    )
    .await;
    let error = refusal(&admin, &sql_kit::install(&Schema::default())).await;
    assert!(
        error
            .message()
            .contains("function pg2kv.version is not as pg2kv makes it (it belongs to mallory)"),
        "{error}"
    );
    run(&admin, "rollback").await;
    assert!(
        texts(&admin, "select as_whom::text from public.ran")
            .await
            .is_empty()
    );
}

async fn a_planted_role_is_not_trusted(server: Server) {
    let server = Postgres::start(server.options()).unwrap();
    let admin = postgres::connect(&server.admin_url()).await;
    run(
        &admin,
        "create role mallory login; create role pg2kv_owner; grant pg2kv_owner to mallory",
    )
    .await;
    let error = refusal(&admin, &sql_kit::install(&Schema::default())).await;
    assert!(
        error
            .message()
            .contains("mallory is a member of pg2kv_owner"),
        "{error}"
    );
    assert!(
        error
            .hint()
            .unwrap()
            .starts_with("revoke pg2kv_owner from mallory cascade;"),
        "{error:?}"
    );
    run(
        &admin,
        "rollback; revoke pg2kv_owner from mallory; alter role pg2kv_owner login",
    )
    .await;
    let error = refusal(&admin, &sql_kit::install(&Schema::default())).await;
    assert!(
        error
            .message()
            .contains("the role pg2kv_owner is not as pg2kv makes it"),
        "{error}"
    );
    run(&admin, "rollback; alter role pg2kv_owner nologin").await;
    run(&admin, &sql_kit::install(&Schema::default())).await;
}

async fn a_dump_restored_without_owners_is_found_and_repaired(server: Server) {
    let db = Database::create(server).await;
    let admin = db.connect().await;
    run(&admin, &sql_kit::install(&Schema::default())).await;
    run(
        &admin,
        "create table public.users (id bigint primary key, name text);
         select pg2kv.watch('public.users', 'users', '{id}', '{name}')",
    )
    .await;
    // What `pg_restore --no-owner` leaves.
    run(
        &admin,
        "do $$ declare o record; begin
           for o in select format('alter %s %s owner to postgres', case when prokind = 'f' then 'function' end,
                                  oid::regprocedure) as sql
             from pg_proc where pronamespace = 'pg2kv'::regnamespace
             union all select format('alter table pg2kv.%I owner to postgres', relname)
             from pg_class where relnamespace = 'pg2kv'::regnamespace and relkind in ('r', 'v')
             union all select 'alter sequence pg2kv.bell owner to postgres'
             union all select 'alter schema pg2kv owner to postgres'
           loop execute o.sql; end loop;
         end $$",
    )
    .await;
    let faults = texts(&admin, "select triggers from pg2kv.status()")
        .await
        .join("");
    assert!(
        faults.contains("function pg2kv.capture_users() runs as postgres instead of pg2kv_capture"),
        "{faults}"
    );
    run(&admin, &sql_kit::install(&Schema::default())).await;
    run(
        &admin,
        "select pg2kv.watch('public.users', 'users', '{id}', '{name}')",
    )
    .await;
    assert_eq!(
        texts(&admin, "select triggers from pg2kv.status()").await,
        ["ok"]
    );
    let owners = "
        select distinct owner::regrole::text from (
          select nspowner as owner from pg_namespace where nspname = 'pg2kv'
          union all select relowner from pg_class where relnamespace = 'pg2kv'::regnamespace
          union all select proowner from pg_proc where pronamespace = 'pg2kv'::regnamespace) o order by 1";
    assert_eq!(
        texts(&admin, owners).await,
        ["pg2kv_capture", "pg2kv_owner"]
    );
}

async fn a_second_database_does_not_share_the_roles_unasked(server: Server) {
    let server = Postgres::start(server.options()).unwrap();
    let admin = postgres::connect(&server.admin_url()).await;
    run(&admin, "create database first").await;
    run(&admin, "create database second").await;
    let first = postgres::connect(&server.url("first")).await;
    run(&first, &sql_kit::install(&Schema::default())).await;
    run(
        &admin,
        "create role login_of_first login in role pg2kv_daemon",
    )
    .await;

    let second = postgres::connect(&server.url("second")).await;
    let error = refusal(&second, &sql_kit::install(&Schema::default())).await;
    assert!(
        error
            .message()
            .starts_with("another database of this cluster uses the roles"),
        "{error}"
    );
    let hint = error.hint().unwrap();
    assert!(
        hint.contains("alter database second set pg2kv.share_roles = on"),
        "{hint}"
    );
    run(&second, "rollback").await;
    // With a name of its own its roles are its own.
    run(
        &second,
        &sql_kit::install(&Schema::parse("pg2kv_second").unwrap()),
    )
    .await;
    let stranger = postgres::connect(&server.url_as("login_of_first", "second")).await;
    let sql = "delete from pg2kv_second.outbox";
    assert_eq!(refusal(&stranger, sql).await.code().code(), "42501");
    // Or whoever decides says that one login may serve both.
    run(&admin, "alter database second set pg2kv.share_roles = on").await;
    let second = postgres::connect(&server.url("second")).await;
    run(&second, &sql_kit::install(&Schema::default())).await;
    // The first one is there already, so it may be installed again.
    run(&admin, "alter database first set pg2kv.share_roles = on").await;
    let first = postgres::connect(&server.url("first")).await;
    run(&first, &sql_kit::install(&Schema::default())).await;
}

async fn an_installer_without_the_admin_option_is_told_what_to_grant(server: Server) {
    let server = Postgres::start(server.options()).unwrap();
    let admin = postgres::connect(&server.admin_url()).await;
    run(
        &admin,
        "create role first_dba login createrole; create role second_dba login createrole",
    )
    .await;
    run(&admin, "create database first owner first_dba").await;
    run(&admin, "create database second owner second_dba").await;
    run(&admin, "alter database second set pg2kv.share_roles = on").await;
    let first = postgres::connect(&server.url_as("first_dba", "first")).await;
    run(&first, &sql_kit::install(&Schema::default())).await;

    let second = postgres::connect(&server.url_as("second_dba", "second")).await;
    if let Err(error) = second
        .batch_execute(&sql_kit::install(&Schema::default()))
        .await
    {
        // From 16 on, CREATEROLE is not enough to grant a role that somebody else made.
        let error = error.as_db_error().unwrap();
        let hint = error.hint().unwrap();
        assert!(
            hint.contains("revoke pg2kv_owner from first_dba")
                || hint.contains("with admin option"),
            "{error:?}"
        );
        run(&second, "rollback").await;
        run(
            &admin,
            "revoke pg2kv_owner, pg2kv_capture from first_dba cascade;
             grant pg2kv_owner, pg2kv_capture, pg2kv_daemon to second_dba with admin option",
        )
        .await;
        run(&second, &sql_kit::install(&Schema::default())).await;
    }
    assert_eq!(
        texts(&second, "select to_regclass('pg2kv.outbox')::text").await,
        ["pg2kv.outbox"],
        "the kit is there"
    );
}

async fn the_daemon_cannot_lock_writers_out(server: Server) {
    let (db, admin, _) = with_mallory(server).await;
    run(&admin, "create role daemon login in role pg2kv_daemon").await;
    let daemon = db.connect_as("daemon").await;
    for mode in [
        "access exclusive",
        "exclusive",
        "share row exclusive",
        "share",
    ] {
        let sql = format!("begin; lock table pg2kv.outbox in {mode} mode");
        assert_eq!(
            refusal(&daemon, &sql).await.code().code(),
            "42501",
            "{mode}"
        );
        run(&daemon, "rollback").await;
    }
    for sql in [
        "truncate pg2kv.outbox",
        "update pg2kv.outbox set key = null",
        "delete from pg2kv.outbox",
    ] {
        assert_eq!(refusal(&daemon, sql).await.code().code(), "42501", "{sql}");
    }
}
