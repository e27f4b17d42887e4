//! `watch`, `unwatch`, `status` and `resync`.

use super::{on_both_servers, refusal, run, take_keys, text, texts, with_kit};
use crate::support::postgres::Server;

on_both_servers!(
    watching_again_changes_nothing,
    watching_again_renews_the_trigger_functions,
    watching_again_follows_the_triggers_of_others,
    watching_with_other_arguments_replaces,
    unwatching_removes_everything_of_the_sync,
    a_table_that_is_in_use_is_named_with_who_uses_it,
    what_cannot_be_watched_is_refused_with_a_remedy,
    status_tells_what_is_wrong_with_the_triggers,
    resync_records_a_marker,
    triggers_survive_a_dump,
);

const TABLE: &str = "create table t (id int primary key, a text, b text, c text)";
const TRIGGERS: &str = "
    select string_agg(format('%s %s %s', oid, tgfoid::regproc, xmin), ',' order by tgname)
    from pg_trigger where not tgisinternal and tgname <> 'perform'";

async fn watching_again_changes_nothing(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLE).await;
    let watch = "select pg2kv.watch('t', sync => 't', key => '{id}', columns => '{a,b}')";
    assert_eq!(text(&admin, watch).await, "public.t is watched as t");
    assert_eq!(take_keys(&admin).await, ["everything"]);
    let before = text(&admin, TRIGGERS).await;

    let answer = text(&admin, watch).await;

    assert_eq!(
        answer,
        "public.t is watched as t already; nothing was changed"
    );
    assert_eq!(text(&admin, TRIGGERS).await, before);
    assert!(take_keys(&admin).await.is_empty());
}

async fn watching_again_renews_the_trigger_functions(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create table t (id int primary key); create table r (id int primary key);
         alter table t add r_id int",
    )
    .await;
    let watch = "select pg2kv.watch('t', sync => 't', key => '{id}')";
    let relate = "select pg2kv.watch_related('r', 't', 'r', '{\"r_id\": \"id\"}')";
    for (watch, function) in [
        (watch, "capture_t"),
        (watch, "updated_t"),
        (relate, "\"capture_t$r\""),
        (relate, "\"updated_t$r\""),
    ] {
        run(&admin, watch).await;
        let definition = format!("select pg_get_functiondef('pg2kv.{function}()'::regprocedure)");
        let wanted = text(&admin, &definition).await;
        take_keys(&admin).await;
        for change in [
            format!(
                "create or replace function pg2kv.{function}() returns trigger language plpgsql
                 security definer set search_path = pg_catalog, pg_temp as 'begin return null; end'"
            ),
            format!("alter function pg2kv.{function}() set extra_float_digits = 0"),
        ] {
            run(&admin, &change).await;

            assert!(
                text(&admin, "select pg2kv.trigger_faults('t')")
                    .await
                    .contains("is not what watch() made")
            );
            text(&admin, watch).await;
            let before = text(&admin, TRIGGERS).await;
            assert_eq!(text(&admin, &definition).await, wanted);
            assert_eq!(
                take_keys(&admin).await,
                ["everything"],
                "changes may have been missed"
            );

            // As an earlier release would have made it.
            run(&admin, &change).await;
            run(
                &admin,
                "update pg2kv.sync set functions = pg2kv.source_hash(name);
                 update pg2kv.related
                 set functions = pg2kv.source_hash(pg2kv.related_label(sync, name))",
            )
            .await;
            let answer = text(&admin, watch).await;
            assert!(
                answer.ends_with(" already; its trigger functions are new"),
                "{answer}"
            );
            assert_eq!(text(&admin, &definition).await, wanted);
            assert_eq!(text(&admin, TRIGGERS).await, before);
            assert!(take_keys(&admin).await.is_empty());
        }
    }
}

async fn watching_again_follows_the_triggers_of_others(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create table t (id int primary key, a text, b text) partition by range (id);
         create table t1 partition of t for values from (0) to (10);
         create table r (id int primary key, c text);
         create function f() returns trigger language plpgsql
           as $$ begin new.a := upper(new.b); return new; end $$;
         create function g() returns trigger language plpgsql
           as $$ begin new.c := upper(new.c); return new; end $$",
    )
    .await;
    const WATCH: [&str; 2] = [
        "select pg2kv.watch('t', 't', '{id}', '{a}')",
        "select pg2kv.watch_related('r', 't', 'r', '{\"a\": \"c\"}', '{c}')",
    ];
    const STATUS: &str = "select triggers from pg2kv.status()";
    // What was set tells a trigger on columns apart from one with a condition.
    let kinds = "
        select string_agg(format('%s %s', tgrelid::regclass, case when tgattr::text = '' then 'when' else 'of' end), ', '
                          order by tgrelid::regclass::text)
        from pg_trigger where tgname like 'zzz_pg2kv_t%_update'";
    for watch in WATCH {
        run(&admin, watch).await;
    }
    assert_eq!(text(&admin, kinds).await, "r of, t of, t1 of");
    run(&admin, "insert into t values (1, 'a', 'b')").await;
    take_keys(&admin).await;

    // What such a trigger changes is seen once the table is watched again, and all that was before.
    run(
        &admin,
        "create trigger f before update on t1 for each row execute function f();
         create trigger g before insert or update on r for each row execute function g()",
    )
    .await;
    assert_eq!(
        text(&admin, STATUS).await,
        "trigger \"zzz_pg2kv_t$r_update\" on public.r does not see what the trigger g changes before it; \
         trigger zzz_pg2kv_t_update on public.t does not see what the trigger f changes before it; \
         trigger zzz_pg2kv_t_update on public.t1 does not see what the trigger f changes before it \
         (run watch again)"
    );
    for watch in WATCH {
        run(&admin, watch).await;
    }
    assert!(take_keys(&admin).await.contains(&"everything".to_owned()));
    assert_eq!(text(&admin, STATUS).await, "ok");
    assert_eq!(text(&admin, kinds).await, "r when, t when, t1 when");
    run(&admin, "update t set b = 'x'; update t set b = 'x'").await;
    assert_eq!(take_keys(&admin).await, ["[1]"]);

    // Without it nothing was missed.
    run(&admin, "drop trigger f on t1; drop trigger g on r").await;
    assert_eq!(text(&admin, STATUS).await, "ok");
    for watch in WATCH {
        run(&admin, watch).await;
    }
    assert_eq!(text(&admin, kinds).await, "r of, t of, t1 of");
    assert!(take_keys(&admin).await.is_empty());
    let owed = "select coalesce(audit_owed, 'nothing') from pg2kv.sync";
    assert_eq!(text(&admin, owed).await, "nothing");
    run(&admin, "update t set b = 'y'; update t set a = 'y'").await;
    assert_eq!(take_keys(&admin).await, ["[1]"]);
}

async fn watching_with_other_arguments_replaces(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLE).await;
    run(&admin, "create table u (id int primary key)").await;
    run(
        &admin,
        "select pg2kv.watch('t', 't', '{id}', '{a}'); insert into t values (1)",
    )
    .await;
    take_keys(&admin).await;

    // Nothing was missed, so a comparison is all that other columns ask for.
    run(&admin, "select pg2kv.watch('t', 't', '{id}', '{b}')").await;
    assert!(take_keys(&admin).await.is_empty());
    let owed = "select coalesce(audit_owed, 'nothing') from pg2kv.sync";
    assert_eq!(text(&admin, owed).await, "other columns are watched");
    run(&admin, "update t set a = 'x'; update t set b = 'x'").await;
    assert_eq!(take_keys(&admin).await, ["[1]"]);
    let readable = "
        select string_agg(attname, ',' order by attname) from pg_attribute
        where attrelid = 't'::regclass and attnum > 0
          and has_column_privilege('pg2kv_daemon', attrelid, attnum, 'select')";
    assert_eq!(text(&admin, readable).await, "b,id");

    // While a trigger was off, who knows.
    run(
        &admin,
        "alter table t disable trigger user; select pg2kv.watch('t', 't', '{id}', '{a,b}');
         select pg2kv.watch('t', 't', '{id}', '{b}')",
    )
    .await;
    assert_eq!(take_keys(&admin).await, ["everything"]);

    run(&admin, "select pg2kv.watch('u', 't', '{id}')").await;
    assert_eq!(take_keys(&admin).await, ["everything"]);
    run(&admin, "update t set b = 'y'; insert into u values (2)").await;
    assert_eq!(take_keys(&admin).await, ["[2]"]);
    assert_eq!(text(&admin, readable).await, "null");
    assert_eq!(
        text(&admin, "select relation from pg2kv.status()").await,
        "public.u"
    );
}

async fn unwatching_removes_everything_of_the_sync(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLE).await;
    run(
        &admin,
        "select pg2kv.watch('t', 'one', '{id}', '{a,b}');
         select pg2kv.watch('t', 'two', '{id}', '{b,c}');
         insert into t values (1);
         insert into pg2kv.claim (epoch, sync, keys) values (1, 'one', array['[1]']);
         insert into pg2kv.dead_letter (sync, key, reason) values ('one', '[1]', 'too large');
         insert into pg2kv.backfill (sync, reason, phase) values ('one', 'new', 'rows')",
    )
    .await;

    assert_eq!(
        text(&admin, "select pg2kv.unwatch('one')").await,
        "public.t is no longer watched as one"
    );
    let left = "
        select sync from pg2kv.outbox union all select sync from pg2kv.claim
        union all select sync from pg2kv.dead_letter union all select sync from pg2kv.backfill";
    assert_eq!(texts(&admin, left).await, ["two", "two"]);
    assert_eq!(
        texts(
            &admin,
            "select proname::text from pg_proc where proname ~ '^(capture|updated)_one'"
        )
        .await,
        [""; 0]
    );
    let readable = "
        select string_agg(attname, ',' order by attname) from pg_attribute
        where attrelid = 't'::regclass and attnum > 0
          and has_column_privilege('pg2kv_daemon', attrelid, attnum, 'select')";
    assert_eq!(
        text(&admin, readable).await,
        "b,c,id",
        "what the other sync needs stays"
    );

    assert_eq!(
        text(&admin, "select pg2kv.unwatch('one')").await,
        "'one' is not watched; nothing was changed"
    );
    run(&admin, "select pg2kv.unwatch('two')").await;
    assert_eq!(text(&admin, readable).await, "null");
    assert_eq!(text(&admin, TRIGGERS).await, "null");
}

async fn a_table_that_is_in_use_is_named_with_who_uses_it(server: Server) {
    let (db, admin) = with_kit(server).await;
    run(&admin, TABLE).await;
    let writer = db.connect().await;
    run(&writer, "begin; insert into t values (1)").await;
    let pid = text(&writer, "select pg_backend_pid()::text").await;

    let error = refusal(&admin, "select pg2kv.watch('t', 't', '{id}')").await;

    assert_eq!(error.code().code(), "55P03");
    let message = error.message();
    let start = format!(
        "could not lock public.t within 2 s because of process {pid} \
         (idle in transaction, transaction open for 00:00:0"
    );
    assert!(message.starts_with(&start), "{message}");
    assert!(message.ends_with("); nothing was changed"), "{message}");
    let hint = error.hint().unwrap();
    assert!(
        hint.contains(&format!("select pg_terminate_backend({pid});")),
        "{hint}"
    );
    let made = "select (select count(*) from pg2kv.sync) + (select count(*) from pg2kv.outbox)
                     + (select count(*) from pg_proc where proname ~ '^(capture|updated)_')";
    assert_eq!(text(&admin, &format!("select ({made})::text")).await, "0");

    run(&writer, "prepare transaction 'forgotten'").await;
    let error = refusal(&admin, "select pg2kv.watch('t', 't', '{id}')").await;
    assert!(
        error
            .message()
            .contains("a prepared transaction (see pg_prepared_xacts)"),
        "{error}"
    );

    run(&writer, "commit prepared 'forgotten'").await;
    run(&admin, "select pg2kv.watch('t', 't', '{id}')").await;
    run(&writer, "begin; select * from t").await;
    let error = refusal(&admin, "select pg2kv.unwatch('t')").await;
    assert!(
        error
            .message()
            .contains(&format!("because of process {pid} (idle")),
        "{error}"
    );
    assert_eq!(
        text(&admin, "select triggers from pg2kv.status()").await,
        "ok"
    );
}

async fn what_cannot_be_watched_is_refused_with_a_remedy(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create table t (id int primary key, a text, w interval unique, j jsonb unique,
                         l int[] unique, d int unique deferrable, half int, other int);
         create unique index on t (half) where half > 0;
         create unique index on t (half, other);
         create table parent (id int primary key);
         create table child (extra int) inherits (parent);
         create unlogged table fleeting (id int primary key);
         create temp table short (id int primary key);
         create view v as select * from t;
         create table \"long\" (id int primary key)",
    )
    .await;
    for (arguments, message, hint) in [
        (
            "'t', 'No', '{id}'",
            "'No' is not a name for a sync",
            "lower-case letter",
        ),
        (
            "'t', null, '{id}'",
            "null is not a name for a sync",
            "lower-case letter",
        ),
        ("null, 't', '{id}'", "relation is null", "public.users"),
        ("'t', 't', '{}'", "key names no column", "{id}"),
        ("'t', 't', null", "key names no column", "{id}"),
        (
            "'t', 't', '{id,x}'",
            "public.t has no column x",
            "without double quotes",
        ),
        (
            "'t', 't', '{id}', '{a,Y}'",
            "public.t has no column \"Y\"",
            "without double quotes",
        ),
        (
            "'t', 't', '{id}', '{xmin}'",
            "public.t has no column xmin",
            "without double quotes",
        ),
        (
            "'t', 't', '{w}'",
            "a key of KV cannot be made from w (interval)",
            "uuid",
        ),
        (
            "'t', 't', '{j}'",
            "a key of KV cannot be made from j (jsonb)",
            "uuid",
        ),
        (
            "'t', 't', '{l}'",
            "a key of KV cannot be made from l (integer[])",
            "uuid",
        ),
        (
            "'t', 't', '{a}'",
            "no unique index",
            "create unique index concurrently on public.t (a);",
        ),
        ("'t', 't', '{d}'", "no unique index", "create unique index"),
        (
            "'t', 't', '{half}'",
            "no unique index",
            "create unique index",
        ),
        (
            "'t', 't', '{id,a}'",
            "no unique index",
            "on public.t (id, a);",
        ),
        (
            "'v', 't', '{id}'",
            "public.v is not an ordinary",
            "not a view",
        ),
        (
            "'short', 't', '{id}'",
            "short is not an ordinary",
            "not a view",
        ),
        (
            "'pg2kv.outbox', 't', '{id}'",
            "pg2kv.outbox is not an ordinary",
            "not a view",
        ),
        (
            "'parent', 't', '{id}'",
            "public.parent takes part in table inheritance",
            "partitioned",
        ),
        (
            "'child', 't', '{id}'",
            "public.child takes part in table inheritance",
            "partitioned",
        ),
        (
            "'fleeting', 't', '{id}'",
            "public.fleeting is unlogged",
            "set logged",
        ),
    ] {
        let error = refusal(&admin, &format!("select pg2kv.watch({arguments})")).await;
        assert!(error.message().contains(message), "{arguments}: {error}");
        assert!(
            error.hint().unwrap_or_default().contains(hint),
            "{arguments}: {:?}",
            error.hint()
        );
    }
    run(&admin, "select pg2kv.watch('t', 't', '{other,half}')").await;
}

async fn status_tells_what_is_wrong_with_the_triggers(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create table t (id int primary key) partition by range (id);
         create table t1 partition of t for values from (0) to (10);
         select pg2kv.watch('t', 't', '{id}')",
    )
    .await;
    const STATUS: &str = "select triggers from pg2kv.status()";
    assert_eq!(text(&admin, STATUS).await, "ok");
    for (damage, said) in [
        (
            "alter table t1 disable trigger zzz_pg2kv_t_row",
            "trigger zzz_pg2kv_t_row on public.t1 is disabled",
        ),
        (
            "alter table t enable trigger zzz_pg2kv_t_update",
            "trigger zzz_pg2kv_t_update on public.t is not enabled always; \
             trigger zzz_pg2kv_t_update on public.t1 is not enabled always",
        ),
        (
            "drop trigger zzz_pg2kv_t_truncate on t1",
            "trigger zzz_pg2kv_t_truncate on public.t1 is missing",
        ),
        (
            "create table t2 partition of t for values from (10) to (20)",
            "trigger zzz_pg2kv_t_truncate on public.t2 is missing",
        ),
        (
            "create function f() returns trigger language plpgsql as 'begin return null; end';
             create or replace trigger zzz_pg2kv_t_truncate after truncate on t1 execute function f();
             alter table t1 enable always trigger zzz_pg2kv_t_truncate",
            "trigger zzz_pg2kv_t_truncate on public.t1 calls the wrong function",
        ),
    ] {
        run(&admin, damage).await;
        assert_eq!(text(&admin, STATUS).await, format!("{said} (run watch again)"));
        take_keys(&admin).await;
        run(&admin, "select pg2kv.watch('t', 't', '{id}')").await;
        assert_eq!(text(&admin, STATUS).await, "ok", "after {damage}");
        assert_eq!(take_keys(&admin).await, ["everything"], "changes may have been missed");
    }
    // A column that took the name of a watched one is another column.
    run(
        &admin,
        "create table u (id int primary key, a text, b text); select pg2kv.watch('u', 'u', '{id}', '{a}');
         alter table u rename a to c",
    )
    .await;
    const OF_U: &str = "select triggers from pg2kv.status() where sync = 'u'";
    for renamed in ["select", "alter table u rename b to a"] {
        run(&admin, renamed).await;
        assert_eq!(
            text(&admin, OF_U).await,
            "trigger zzz_pg2kv_u_update on public.u does not see the column a (run watch again)"
        );
    }
    run(&admin, "select pg2kv.unwatch('u')").await;
    run(
        &admin,
        "insert into pg2kv.outbox (sync, key, at) values ('t', '[1]', now() - interval '1 hour');
         insert into pg2kv.claim (epoch, sync, keys) values (1, 't', '{}');
         insert into pg2kv.dead_letter (sync, key, reason) values ('t', '[1]', 'too large');
         insert into pg2kv.backfill (sync, reason, phase, done, estimate)
         values ('t', 'new', 'rows', 5, 10)",
    )
    .await;
    let row =
        "select format('%s %s %s %s %s', waiting, oldest_wait > interval '59 minutes', claims,
                             dead_letters, backfill) from pg2kv.status()";
    assert_eq!(text(&admin, row).await, "1 t 1 1 new: rows, 5 of about 10");
    run(&admin, "drop table t").await;
    assert!(text(&admin, STATUS).await.contains("the table is gone"));
}

async fn resync_records_a_marker(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLE).await;
    run(&admin, "select pg2kv.watch('t', 't', '{id}')").await;
    take_keys(&admin).await;
    run(&admin, "select pg2kv.resync('t')").await;
    assert_eq!(take_keys(&admin).await, ["everything"]);
    let error = refusal(&admin, "select pg2kv.resync('u')").await;
    assert_eq!(error.message(), "no sync is named 'u'");
}

/// `pg_dump` writes what `pg_get_triggerdef` says, and that must be SQL.
async fn triggers_survive_a_dump(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, TABLE).await;
    run(
        &admin,
        "select pg2kv.watch('t', 'some', '{id}', '{a,b}');
         select pg2kv.watch('t', 'all_', '{id}');
         do $$
         declare
           definition text;
           definitions text[] := array(select pg_get_triggerdef(oid) from pg_trigger where tgname ~ 'pg2kv');
         begin
           alter table t rename to old_t;
           create table t (like old_t including all);
           foreach definition in array definitions loop
             execute definition;
           end loop;
         end
         $$;
         insert into t values (1);
         truncate pg2kv.outbox;
         update t set c = 'x'",
    )
    .await;
    assert_eq!(
        texts(&admin, "select sync from pg2kv.outbox").await,
        ["all_"]
    );
}
