//! Who may do what.

use super::{on_both_servers, refusal, run, take_keys, text, with_kit};
use crate::support::postgres::Server;

on_both_servers!(
    the_daemon_may_do_its_work_and_nothing_else,
    writers_need_no_rights_and_get_none,
    objects_of_a_writer_do_not_divert_a_change,
    every_name_in_a_trigger_function_carries_its_schema,
    only_the_owner_of_a_table_can_watch_it,
);

/// Runs `sql` as `role` and tells whether it was allowed; nothing of it is kept.
async fn allowed(admin: &tokio_postgres::Client, role: &str, sql: &str) -> bool {
    run(admin, &format!("begin; set local role {role}")).await;
    let result = admin.batch_execute(sql).await;
    run(admin, "rollback").await;
    match result {
        Ok(()) => true,
        Err(error) => {
            assert_eq!(
                error.code().map(|code| code.code()),
                Some("42501"),
                "{sql}: {error:?}"
            );
            false
        }
    }
}

async fn the_daemon_may_do_its_work_and_nothing_else(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create schema app;
         create table app.t (id int primary key, a text, secret text);
         create table app.u (id int primary key);
         select pg2kv.watch('app.t', 't', '{id}', '{a}')",
    )
    .await;
    let table_rights = "
        select string_agg(format('%s: %s', relname, rights), '; ' order by relname) from (
            select relname, string_agg(privilege, ' ' order by privilege) as rights
            from pg_class,
                 unnest(array['select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger']) privilege
            where relnamespace = 'pg2kv'::regnamespace and relkind = 'r'
              and has_table_privilege('pg2kv_daemon', oid, privilege)
            group by relname) as granted";
    assert_eq!(
        text(&admin, table_rights).await,
        "backfill: delete insert select update; claim: delete insert select update; \
         dead_letter: delete insert select update; lease: delete insert select update; \
         meta: select; outbox: insert select; related: select; \
          retired: delete insert select update; sync: select"
    );
    for sql in [
        "select id, a from app.t where id = 1",
        "select key from pg2kv.outbox; select pg2kv.take('{1}', '{1}')",
        "insert into pg2kv.outbox (sync, key) values ('t', '[1]')",
        "update pg2kv.meta set identity = '{}'",
        "select setval('pg2kv.bell', 5), (select last_value from pg2kv.bell)",
        "select last_value from pg2kv.outbox_id_seq",
        "select from pg2kv.lease where epoch = 0 for share",
        "update pg2kv.lease set epoch = epoch + 1",
        "with c as (insert into pg2kv.claim (epoch, sync, keys) values (1, 't', '{}') returning id)
         delete from pg2kv.claim where id = (select id from c)",
        "select pg2kv.version(); select * from pg2kv.status(); select pg2kv.resync('t'); listen pg2kv",
        "update pg2kv.sync set keys_estimate = 7, deletes_held = 7; select pg2kv.approve_deletes('t', '1 minute')",
    ] {
        assert!(allowed(&admin, "pg2kv_daemon", sql).await, "{sql}");
    }
    for sql in [
        "select secret from app.t",
        "select * from app.t",
        "update app.t set a = 'x'",
        "delete from app.t",
        "select id from app.u",
        "update pg2kv.meta set schema_version = 2",
        "update pg2kv.meta set serves = 2",
        "update pg2kv.outbox set key = null",
        "truncate pg2kv.outbox",
        "update pg2kv.sync set columns = null",
        "update pg2kv.sync set deletes_approved_until = 'infinity'",
        "select nextval('pg2kv.outbox_id_seq')",
        "select pg2kv.watch('app.t', 't', '{id}')",
        "select pg2kv.unwatch('t')",
        "create table pg2kv.mine ()",
        "drop table pg2kv.claim",
        "alter function pg2kv.capture_t() reset all",
        "alter function pg2kv.updated_t() reset all",
    ] {
        assert!(!allowed(&admin, "pg2kv_daemon", sql).await, "{sql}");
    }
    let login = "select rolcanlogin::text from pg_roles where rolname = 'pg2kv_owner'";
    assert_eq!(text(&admin, login).await, "false");
    run(&admin, "select pg2kv.unwatch('t')").await;
    assert!(!allowed(&admin, "pg2kv_daemon", "select id from app.t").await);
    let usage = "select has_schema_privilege('pg2kv_daemon', 'app', 'usage')::text";
    assert_eq!(text(&admin, usage).await, "false");
}

async fn writers_need_no_rights_and_get_none(server: Server) {
    let (db, admin) = with_kit(server).await;
    let writer = db.role("writer");
    run(
        &admin,
        &format!(
            "create table t (id int primary key, a text);
             create role {writer} login;
             grant select, insert, update, delete, truncate on t to {writer};
             select pg2kv.watch('t', 't', '{{id}}')"
        ),
    )
    .await;
    take_keys(&admin).await;
    let client = db.connect_as(&writer).await;
    run(&client, "insert into t values (1)").await;
    run(&client, "update t set a = 'b'").await;
    run(&client, "delete from t").await;
    run(&client, "truncate t").await;
    assert_eq!(take_keys(&admin).await, ["[1]", "[1]", "[1]", "everything"]);
    for sql in [
        "select * from pg2kv.outbox",
        "insert into pg2kv.outbox (sync) values ('t')",
        "select * from pg2kv.status()",
        "select pg2kv.resync('t')",
        "select pg2kv.approve_deletes('t')",
        "select last_value from pg2kv.bell",
    ] {
        assert_eq!(refusal(&client, sql).await.code().code(), "42501", "{sql}");
    }
    let open = format!(
        "select string_agg(oid::regprocedure::text, ', ') from pg_proc
         where pronamespace = 'pg2kv'::regnamespace and has_function_privilege('{writer}', oid, 'execute')"
    );
    // What watches a table of one's own, and one that only computes: an index on it is kept up with the
    // writer's rights.
    assert_eq!(
        text(&admin, &open).await,
        "pg2kv.ask(text,jsonb), pg2kv.shard(text,integer), pg2kv.tables_of(regclass), \
         pg2kv.take_lock(regclass,text), pg2kv.unwatch(text), pg2kv.unwatch_related(text,text), \
         pg2kv.watch(regclass,text,text[],text[],boolean,integer), \
         pg2kv.watch_related(regclass,text,text,jsonb,text[])"
    );
    let definers = "select string_agg(proname, ' ' order by proname) from pg_proc
                    where pronamespace = 'pg2kv'::regnamespace and prosecdef";
    assert_eq!(
        text(&admin, definers).await,
        "approve_deletes capture_t perform_request resync status take updated_t"
    );
    // A body that was parsed when it was made looks no name up when it is called, and trigger functions
    // have no name without its schema.
    let search_paths = "select string_agg(proname, ' ') from pg_proc
        where pronamespace = 'pg2kv'::regnamespace and prosqlbody is null and prorettype <> 'trigger'::regtype
          and not coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false)";
    assert_eq!(text(&admin, search_paths).await, "null");
}

async fn objects_of_a_writer_do_not_divert_a_change(server: Server) {
    let (db, admin) = with_kit(server).await;
    let writer = db.role("writer");
    run(
        &admin,
        &format!(
            "create table t (id int primary key, a text);
             create role {writer} login;
             grant insert, update, delete on t to {writer};
             grant create on schema public to {writer};
             select pg2kv.watch('t', 't', '{{id}}', '{{a}}');
             select setval('pg2kv.bell', extract(epoch from clock_timestamp())::bigint + 60)"
        ),
    )
    .await;
    take_keys(&admin).await;
    let client = db.connect_as(&writer).await;
    // Each of them would be taken before that of PostgreSQL, and fails when it is called.
    run(
        &client,
        "create temp table outbox (sync text, key jsonb);
         create temp table bell (last_value bigint);
         create function public.jsonb_build_array(int) returns jsonb language sql as 'select (1/0)::text::jsonb';
         create function public.record_image_eq(record, record) returns boolean language plpgsql
           as 'begin return 1/0 = 1; end';
         create function public.record_image_ne(record, record) returns boolean language plpgsql
           as 'begin return 1/0 = 1; end';
         create function public.pg_sequence_last_value(regclass) returns bigint language sql as 'select 1/0';
         create function public.clock_timestamp() returns timestamptz language sql as 'select to_timestamp(1/0)';
         create function public.date_part(text, timestamptz) returns float8 language sql as 'select 1/0';
         create function public.pg_notify(text, text) returns void language sql as 'select 1/0';
         create function public.same(text, text) returns boolean language sql as 'select 1/0 = 1';
         create operator public.= (leftarg = text, rightarg = text, function = public.same);
         create function public.more(bigint, float8) returns boolean language sql as 'select 1/0 = 1';
         create operator public.> (leftarg = bigint, rightarg = float8, function = public.more);
         create domain public.text as int;
         create domain public.regclass as int;
         set search_path = pg_temp, public, pg_catalog;
         insert into public.t values (1);
         update public.t set a = 'b';
         update public.t set id = 2;
         delete from public.t",
    )
    .await;
    assert_eq!(take_keys(&admin).await, ["[1]", "[1]", "[1]", "[2]", "[2]"]);
    assert_eq!(
        text(
            &client,
            "select count(*)::pg_catalog.text from pg_temp.outbox"
        )
        .await,
        "0"
    );
}

/// Trigger functions run as their owner under the search path of whoever writes.
async fn every_name_in_a_trigger_function_carries_its_schema(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create table plain (id int primary key, a text);
         create table many (at timestamptz, b bytea, f float8, n numeric unique, g int, id date primary key, v text);
         create table tenants (g int, v text);
         select pg2kv.watch('plain', 'plain', '{id}', '{a}');
         select pg2kv.watch('plain', 'every', '{id}');
         select pg2kv.watch('many', 'nullable', '{n}', '{v}');
         select pg2kv.watch('many', 'collected', '{at,b,f}', '{v}', collect => true);
         select pg2kv.watch('many', 'sharded', '{g}', '{v}', collect => true, shards => 4);
         select pg2kv.watch('many', 'whole', '{}', '{v}', collect => true, shards => 4);
         select pg2kv.watch_related('tenants', 'nullable', 'tenants', '{\"v\": \"v\"}', '{g}')",
    )
    .await;
    let functions = "select count(*)::text from pg_proc
                     where pronamespace = 'pg2kv'::regnamespace and proname ~ '^(capture|updated)_'";
    assert_eq!(text(&admin, functions).await, "14");
    // Calls, casts, and operators between spaces.
    let bare = r"
        select string_agg(distinct found[1], ' ') from pg_proc,
          regexp_matches(regexp_replace(prosrc, '--[^\n]*', '', 'g'),
            '((?<![\w.])(?!row\M|not\M|and\M|or\M|coalesce\M|greatest\M|values\M|operator\M|key\M|outbox\M|made\M|select\M|from\M)\w+ ?\(|::(?!pg_catalog\.)\w+| [-=<>|~!@#%^&*/+?]+ )',
            'g') as found
        where pronamespace = 'pg2kv'::regnamespace and proname ~ '^(capture|updated)_'";
    assert_eq!(text(&admin, bare).await, "null");
    // And it does find what it looks for.
    run(
        &admin,
        "create function pg2kv.capture_bad() returns trigger language plpgsql as
         $$ begin perform f(1), 1 = 1, '1'::text, pg_catalog.now(); return null; end $$",
    )
    .await;
    assert_eq!(text(&admin, bare).await, " =  ::text f(");
}

async fn only_the_owner_of_a_table_can_watch_it(server: Server) {
    let (db, admin) = with_kit(server).await;
    let role = db.role("developer");
    run(
        &admin,
        &format!("create table t (id int primary key); create role {role} login"),
    )
    .await;
    let watch = "select pg2kv.watch('public.t', 't', '{id}')";
    let client = db.connect_as(&role).await;
    let error = refusal(&client, watch).await;
    assert_eq!(
        error.message(),
        "only the owner of public.t (postgres) can put triggers on it"
    );
    run(&admin, &format!("alter table t owner to {role}")).await;
    run(&client, watch).await;
    run(
        &client,
        "insert into t values (1); select pg2kv.unwatch('t')",
    )
    .await;
    // By way of a role that owns it, too, and for a member that does not inherit, once it is that role.
    let member = db.role("member");
    run(
        &admin,
        &format!("create role {member} login noinherit; grant {role} to {member}"),
    )
    .await;
    let client = db.connect_as(&member).await;
    assert_eq!(refusal(&client, watch).await.code().code(), "42501");
    run(&client, &format!("set role {role}; {watch}; reset role")).await;
    assert_eq!(
        text(&admin, "select triggers from pg2kv.status()").await,
        "ok"
    );
}
