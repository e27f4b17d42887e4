//! The steps from one version of the schema to the next.

use pg2kv::sql_kit::upgrade::{STEPS, Step};
use pg2kv::sql_kit::{self, Schema, VERSION};
use tokio_postgres::Client;

use super::{on_both_servers, refusal, run, text, with_kit};
use crate::support::postgres::{Database, Server};
use crate::support::wait;

on_both_servers!(
    an_upgraded_schema_is_what_a_fresh_one_is,
    a_step_on_another_version_says_so_and_changes_nothing,
    a_step_that_does_not_get_its_lock_says_who_is_in_the_way,
    a_step_that_is_cut_off_changes_nothing,
    a_member_of_the_owner_may_upgrade,
    a_file_of_another_version_installs_nothing,
);

/// `install.sql` as it was at version 1. It never changes.
pub(crate) const KIT_1: &str = include_str!("../../fixtures/kit-0001.sql");

/// Everything in the schema, but for the order of columns.
const ANATOMY: &str = "
    select string_agg(line, e'\n' order by line) from (
      select format('relation %s %s %s %s %s %s', c.relname, c.relkind, c.relreplident, c.relowner::regrole,
        array(select unnest(c.relacl)::text order by 1), array(select unnest(c.reloptions) order by 1)) as line
      from pg_class c where c.relnamespace = 'pg2kv'::regnamespace
      union all
      select format('column %s.%s %s %s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
        a.attnotnull, a.attidentity, pg_get_expr(d.adbin, d.adrelid), a.attacl)
      from pg_attribute a join pg_class c on c.oid = a.attrelid
      left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
      where c.relnamespace = 'pg2kv'::regnamespace and a.attnum > 0 and not a.attisdropped
      union all
      select format('comment %s %s', pg_describe_object(classoid, objoid, objsubid), description)
      from pg_description where pg_describe_object(classoid, objoid, objsubid) ~ 'pg2kv'
      union all
      select format('constraint %s %s', conname, pg_get_constraintdef(oid))
      from pg_constraint where connamespace = 'pg2kv'::regnamespace
      union all
      select format('index %s', pg_get_indexdef(i.indexrelid))
      from pg_index i join pg_class c on c.oid = i.indrelid
      where c.relnamespace = 'pg2kv'::regnamespace
      union all
      select format('function %s %s %s %s', p.oid::regprocedure, p.proowner::regrole,
        array(select unnest(p.proacl)::text order by 1), pg_get_functiondef(p.oid))
      from pg_proc p where p.pronamespace = 'pg2kv'::regnamespace
      union all
      select format('trigger %s %s', pg_get_triggerdef(oid), tgenabled) from pg_trigger
      where tgname ~ 'pg2kv'
      union all
      select format('version %s serves %s', schema_version, serves) from pg2kv.meta
    ) lines";

/// A table that is watched, and one that its documents take data from.
const WATCHED: &str = "
    create table t (id int primary key, a text, b int);
    create table u (id int primary key, c text);
    select pg2kv.watch('t', 't', '{id}', '{a,b}');
    select pg2kv.watch_related('u', 't', 'u', '{\"b\": \"id\"}', '{c}');";
/// What `pg2kv install` runs after the steps.
const AGAIN: &str = "
    select pg2kv.watch('t', 't', '{id}', '{a,b}');
    select pg2kv.watch_related('u', 't', 'u', '{\"b\": \"id\"}', '{c}');";

/// A database with the kit of version 1.
async fn with_kit_1(server: Server) -> (Database, Client) {
    let db = Database::create(server).await;
    let admin = db.connect().await;
    run(&admin, KIT_1).await;
    (db, admin)
}

fn first() -> (&'static Step, String) {
    (&STEPS[0], STEPS[0].sql(&Schema::default()))
}

async fn version(client: &Client) -> String {
    text(client, "select schema_version::text from pg2kv.meta").await
}

async fn an_upgraded_schema_is_what_a_fresh_one_is(server: Server) {
    let (_old, old) = with_kit_1(server).await;
    run(&old, WATCHED).await;
    let (_new, new) = with_kit(server).await;
    run(&new, WATCHED).await;
    for step in STEPS {
        assert_eq!(version(&old).await, step.from.to_string());
        run(&old, &step.sql(&Schema::default())).await;
        let says = "select format('%s %s', schema_version, serves) from pg2kv.meta";
        assert_eq!(
            text(&old, says).await,
            format!("{} {}", step.to(), step.serves)
        );
    }
    run(&old, AGAIN).await;

    let (old_lines, new_lines) = (text(&old, ANATOMY).await, text(&new, ANATOMY).await);
    let missing = |of: &str, there: &str| {
        let lines = of
            .lines()
            .filter(|line| !there.lines().any(|other| other == *line));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        (
            missing(&new_lines, &old_lines),
            missing(&old_lines, &new_lines)
        ),
        (Vec::new(), Vec::new()),
        "install.sql and the steps in upgrade/ do not make the same (what only a fresh schema has, \
         what only an upgraded one has)"
    );
    assert_eq!(
        text(&new, "select pg2kv.version()::text").await,
        VERSION.to_string()
    );
    // And it can be installed over.
    run(&old, &sql_kit::install(&Schema::default())).await;
    assert_eq!(text(&old, ANATOMY).await, old_lines);
}

async fn a_step_on_another_version_says_so_and_changes_nothing(server: Server) {
    let (_db, admin) = with_kit(server).await;
    let before = text(&admin, ANATOMY).await;
    for step in STEPS {
        let error = refusal(&admin, &step.sql(&Schema::default())).await;
        let says = format!(
            "has version {VERSION}, and this file upgrades version {}",
            step.from
        );
        assert!(error.message().contains(&says), "{error}");
        run(&admin, "rollback").await;
        assert_eq!(text(&admin, ANATOMY).await, before);
    }
    let empty = Database::create(server).await;
    let client = empty.connect().await;
    let error = refusal(&client, &first().1).await;
    assert!(
        error.message().contains("there is no schema pg2kv"),
        "{error}"
    );
}

async fn a_step_that_does_not_get_its_lock_says_who_is_in_the_way(server: Server) {
    let (db, admin) = with_kit_1(server).await;
    let reader = db.connect().await;
    run(&reader, "begin; select from pg2kv.meta").await;
    let (step, sql) = first();
    let error = refusal(&admin, &sql).await;
    assert!(
        error
            .message()
            .contains("could not lock pg2kv.meta within 2 s"),
        "{error}"
    );
    assert!(error.message().contains("nothing was changed"), "{error}");
    run(&admin, "rollback").await;
    assert_eq!(version(&admin).await, step.from.to_string());

    run(&reader, "rollback").await;
    run(&admin, &sql).await;
    assert_eq!(version(&admin).await, step.to().to_string());
}

async fn a_step_that_is_cut_off_changes_nothing(server: Server) {
    let (db, admin) = with_kit_1(server).await;
    let before = version(&admin).await;
    let (step, sql) = first();
    let cut_off = db.connect().await;
    let unfinished = sql.strip_suffix("commit;\n").unwrap();
    run(&cut_off, unfinished).await;
    let pid = text(&cut_off, "select pg_backend_pid()::text").await;
    drop(cut_off);
    let there = format!("select count(*)::text from pg_stat_activity where pid = {pid}");
    wait::until("the server to notice", async || {
        (text(&admin, &there).await == "0").then_some(())
    })
    .await;
    assert_eq!(version(&admin).await, before);
    assert_eq!(
        text(&admin, "select to_regproc('pg2kv.version')::text").await,
        "null"
    );
    run(&admin, &sql).await;
    assert_eq!(version(&admin).await, step.to().to_string());
}

async fn a_member_of_the_owner_may_upgrade(server: Server) {
    let (db, admin) = with_kit_1(server).await;
    let (dba, stranger) = (db.role("dba"), db.role("stranger"));
    let roles =
        format!("create role {dba} login in role pg2kv_owner; create role {stranger} login");
    run(&admin, &roles).await;
    let (step, sql) = first();
    let client = db.connect_as(&stranger).await;
    let error = refusal(&client, &sql).await;
    assert!(error.message().contains("permission denied"), "{error}");
    assert_eq!(version(&admin).await, step.from.to_string());
    run(&db.connect_as(&dba).await, &sql).await;
    assert_eq!(version(&admin).await, step.to().to_string());
}

async fn a_file_of_another_version_installs_nothing(server: Server) {
    let (_db, admin) = with_kit_1(server).await;
    run(&admin, "drop function pg2kv.resync").await;
    let error = refusal(&admin, &sql_kit::install(&Schema::default())).await;
    assert!(
        error
            .message()
            .contains("older than this file: it has version 1"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("upgrade/"), "{error:?}");
    run(&admin, "rollback").await;
    assert_eq!(
        text(&admin, "select to_regproc('pg2kv.resync')::text").await,
        "null"
    );

    let (_db, admin) = with_kit(server).await;
    let error = refusal(&admin, KIT_1).await;
    assert!(error.message().contains("newer than this file"), "{error}");
}
