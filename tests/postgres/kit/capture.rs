//! What the triggers record: every change of the key or a watched column, and nothing else.

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, NoTls};

use super::{on_both_servers, run, take_keys, text, with_kit};
use crate::support::postgres::Server;

on_both_servers!(
    plain_statements,
    other_ways_to_change_a_row,
    partitions,
    changing_the_table_does_not_fail_writers,
    the_bell_rings_only_for_a_sleeper,
);

/// A table watched by one sync named `s`, and statements with the keys that they leave.
struct Scenario {
    name: &'static str,
    /// Tables, and the call of `watch`.
    setup: &'static str,
    /// Each statement is sent alone, with what is recorded by then.
    steps: &'static [(&'static str, &'static [&'static str])],
}

async fn play(server: Server, scenarios: &[Scenario]) {
    let (_db, admin) = with_kit(server).await;
    for Scenario { name, setup, steps } in scenarios {
        run(&admin, setup).await;
        assert_eq!(
            take_keys(&admin).await,
            ["everything"],
            "{name}: the first marker"
        );
        for (sql, expected) in *steps {
            run(&admin, sql).await;
            assert_eq!(take_keys(&admin).await, *expected, "{name}: {sql}");
        }
        assert_eq!(
            text(&admin, "select triggers from pg2kv.status()").await,
            "ok",
            "{name}"
        );
        run(
            &admin,
            "select pg2kv.unwatch('s'); drop schema public cascade; create schema public",
        )
        .await;
    }
}

const ALL: &[&str] = &["everything"];
const PLAIN: &str = "create table t (id int primary key, a text, b text);
                     select pg2kv.watch('t', 's', '{id}', '{a}')";

async fn plain_statements(server: Server) {
    play(
        server,
        &[
            Scenario {
                name: "one row",
                setup: PLAIN,
                steps: &[
                    ("insert into t values (1, 'a', 'b')", &["[1]"]),
                    ("update t set a = 'x'", &["[1]"]),
                    ("update t set a = 'x'", &[]),
                    ("update t set b = 'x'", &[]),
                    ("update t set a = null", &["[1]"]),
                    ("update t set a = null", &[]),
                    ("delete from t where id = 2", &[]),
                    ("delete from t", &["[1]"]),
                    ("insert into t values (1), (2), (3)", &["[1]", "[2]", "[3]"]),
                    ("truncate t", ALL),
                ],
            },
            Scenario {
                name: "every column counts",
                setup: "create table t (id int primary key, a text, b text);
                        select pg2kv.watch('t', 's', '{id}')",
                steps: &[
                    ("insert into t values (1, 'a', 'b')", &["[1]"]),
                    ("update t set b = 'x'", &["[1]"]),
                    ("update t set b = 'x'", &[]),
                    ("alter table t add c int default 5", &[]),
                    ("update t set c = 5", &[]),
                    ("update t set c = 6", &["[1]"]),
                ],
            },
            Scenario {
                name: "the key moves",
                setup: PLAIN,
                steps: &[
                    ("insert into t values (1, 'a'), (2, 'b')", &["[1]", "[2]"]),
                    ("update t set id = 3 where id = 1", &["[1]", "[3]"]),
                    (
                        "update t set id = 0 where id = 2; update t set id = 2 where id = 3;
                         update t set id = 3 where id = 0",
                        &["[2]", "[0]", "[3]", "[2]", "[0]", "[3]"],
                    ),
                    (
                        "delete from t where id = 3; insert into t values (3, 'reused')",
                        &["[3]", "[3]"],
                    ),
                ],
            },
            Scenario {
                name: "many keys move in one statement",
                setup: PLAIN,
                steps: &[
                    ("insert into t values (1), (2)", &["[1]", "[2]"]),
                    ("update t set id = id + 10", &["[1]", "[11]", "[2]", "[12]"]),
                ],
            },
            Scenario {
                name: "what is rolled back is not recorded",
                setup: PLAIN,
                steps: &[
                    ("begin; insert into t values (1); rollback", &[]),
                    (
                        "begin; insert into t values (1); savepoint s; insert into t values (2);
                         rollback to s; insert into t values (3); commit",
                        &["[1]", "[3]"],
                    ),
                    ("begin; truncate t; rollback", &[]),
                ],
            },
            Scenario {
                name: "several key columns, in the order that was asked for",
                setup: r#"create table t ("a ""b" text, id int, v int, primary key (id, "a ""b"));
                          select pg2kv.watch('t', 's', array['a "b', 'id'], '{v}')"#,
                steps: &[
                    (
                        r#"insert into t values ('it''s "x"', 1)"#,
                        &[r#"["it's \"x\"", 1]"#],
                    ),
                    ("update t set v = 2", &[r#"["it's \"x\"", 1]"#]),
                ],
            },
            Scenario {
                name: "a row without a key is not published",
                setup: "create table t (id int unique, a text);
                        select pg2kv.watch('t', 's', '{id}')",
                steps: &[
                    ("insert into t values (null, 'a'), (1, 'b')", &["[1]"]),
                    ("update t set a = 'c'", &["[1]"]),
                    ("update t set id = 2 where id is null", &["[2]"]),
                    ("update t set id = null where id = 1", &["[1]"]),
                    ("delete from t", &["[2]"]),
                ],
            },
        ],
    )
    .await;
}

async fn other_ways_to_change_a_row(server: Server) {
    play(
        server,
        &[
            Scenario {
                name: "copy, on conflict, merge, writable cte",
                setup: PLAIN,
                steps: &[
                    (r"copy t from program 'printf 1\\ta\\tb\\n2\\ta\\tb\\n'", &["[1]", "[2]"]),
                    ("insert into t values (1, 'x') on conflict do nothing", &[]),
                    (
                        "insert into t values (1, 'x'), (3, 'x')
                         on conflict (id) do update set a = excluded.a",
                        &["[1]", "[3]"],
                    ),
                    (
                        "merge into t using (values (1), (2), (4)) v (id) on t.id = v.id
                         when matched and v.id = 1 then delete
                         when matched then update set a = 'merged'
                         when not matched then insert values (v.id, 'merged')",
                        &["[1]", "[2]", "[4]"],
                    ),
                    (
                        "with gone as (delete from t where id = 2 returning *),
                              moved as (update t set a = 'cte' where id = 3 returning id)
                         select * from gone, moved",
                        &["[2]", "[3]"],
                    ),
                ],
            },
            Scenario {
                name: "foreign keys",
                setup: "create table parent (id int primary key);
                        create table t (id int primary key,
                            p int references parent on delete cascade on update cascade,
                            q int references parent on delete set null);
                        insert into parent values (1), (2), (3);
                        insert into t values (1, 1, 2), (2, 2, 3), (3, 2, 2);
                        select pg2kv.watch('t', 's', '{id}', '{p,q}')",
                steps: &[
                    ("update parent set id = 9 where id = 1", &["[1]"]),
                    ("delete from parent where id = 3", &["[2]"]),
                    ("delete from parent where id = 9", &["[1]"]),
                    ("truncate parent cascade", ALL),
                ],
            },
            Scenario {
                name: "session_replication_role = replica, as logical replication sets it",
                setup: PLAIN,
                steps: &[
                    ("set session_replication_role = replica", &[]),
                    ("insert into t values (1); update t set a = 'x'", &["[1]", "[1]"]),
                    ("delete from t; truncate t", &["[1]", "everything"]),
                    ("reset session_replication_role", &[]),
                ],
            },
            Scenario {
                name: "user triggers that change the row or add another change",
                setup: "create table t (id int primary key, a text, b text);
                        create function public.f() returns trigger language plpgsql
                            as $$ begin new.a := upper(new.b); return new; end $$;
                        create trigger f before update on t for each row execute function f();
                        select pg2kv.watch('t', 's', '{id}', '{a}')",
                steps: &[
                    ("insert into t values (1)", &["[1]"]),
                    ("update t set b = 'x'", &["[1]"]),
                    ("update t set b = 'X'", &[]),
                ],
            },
            Scenario {
                name: "a user trigger that sees only some of the changes",
                setup: "create table t (id int primary key, a text, b text);
                        create function public.f() returns trigger language plpgsql
                            as $$ begin new.a := upper(new.b); return new; end $$;
                        create trigger f before update of b on t for each row execute function f();
                        alter table t disable trigger f;
                        select pg2kv.watch('t', 's', '{id}', '{a}')",
                steps: &[
                    ("insert into t values (1)", &["[1]"]),
                    ("alter table t enable trigger f; update t set b = 'x'", &["[1]"]),
                ],
            },
            Scenario {
                name: "generated columns",
                setup: "create table t (id int primary key, a int, twice int generated always as (a * 2) stored);
                        select pg2kv.watch('t', 's', '{id}', '{twice}')",
                steps: &[
                    ("insert into t (id, a) values (1, 1)", &["[1]"]),
                    ("update t set a = 1", &[]),
                    ("update t set a = 2", &["[1]"]),
                ],
            },
            Scenario {
                name: "equal numbers that print differently",
                setup: "create table t (id numeric primary key, a numeric);
                        select pg2kv.watch('t', 's', '{id}', '{a}')",
                steps: &[
                    ("insert into t values (1.0, 2.0)", &["[1.0]"]),
                    ("update t set a = 2.00", &["[1.0]"]),
                    ("update t set id = 1.00", &["[1.0]", "[1.00]"]),
                ],
            },
        ],
    )
    .await;
    if server == Server::Newer {
        let virtual_column = Scenario {
            name: "virtual generated columns",
            setup: "create table t (id int primary key, a int, b int, twice int generated always as (a * 2) virtual);
                    select pg2kv.watch('t', 's', '{id}', '{twice}')",
            steps: &[
                ("insert into t (id, a) values (1, 1)", &["[1]"]),
                ("update t set b = 1", &[]),
                ("update t set a = 2", &["[1]"]),
            ],
        };
        let whole_row = Scenario {
            name: "virtual generated columns of a whole row",
            setup: "create table t (id int primary key, a int, twice int generated always as (a * 2) virtual);
                    select pg2kv.watch('t', 's', '{id}')",
            steps: &[
                ("insert into t (id, a) values (1, 1)", &["[1]"]),
                ("update t set a = 1", &[]),
                ("update t set a = 2", &["[1]"]),
            ],
        };
        play(server, &[virtual_column, whole_row]).await;
    }
}

async fn partitions(server: Server) {
    // The second leaf has its columns in another order, the third one stands a level deeper.
    const TREE: &str = "
        create table t (id int primary key, a text, b text) partition by range (id);
        create table t1 partition of t for values from (0) to (10);
        create table t2 (b text, gone int, a text, id int not null);
        alter table t2 drop column gone;
        alter table t attach partition t2 for values from (10) to (20);
        create table t3 partition of t for values from (20) to (30) partition by range (id);
        create table t30 partition of t3 for values from (20) to (25);";
    const STEPS: &[(&str, &[&str])] = &[
        (
            "insert into t values (1, 'a'), (11, 'a'), (21, 'a')",
            &["[1]", "[11]", "[21]"],
        ),
        ("update t set a = 'x' where id > 5", &["[11]", "[21]"]),
        ("insert into t1 values (2, 'direct')", &["[2]"]),
        ("update t2 set a = 'direct'", &["[11]"]),
        ("update t30 set a = 'direct'", &["[21]"]),
        ("delete from t1 where id = 2", &["[2]"]),
        ("update t set id = 12 where id = 1", &["[1]", "[12]"]),
        ("truncate t2", ALL),
        ("truncate t3", ALL),
        ("truncate t", ALL),
        (
            "create table t4 partition of t for values from (30) to (40)",
            &[],
        ),
        ("set session_replication_role = replica", &[]),
        ("insert into t4 values (31)", &["[31]"]),
        ("update t4 set a = 'x'", &["[31]"]),
        ("reset session_replication_role", &[]),
        (
            "select pg2kv.watch('t', 's', (select key_columns from pg2kv.sync), (select columns from pg2kv.sync))",
            ALL,
        ),
        ("truncate t4", ALL),
    ];
    play(
        server,
        &[
            Scenario {
                name: "a partitioned table, some columns",
                setup: watched(TREE, true),
                steps: STEPS,
            },
            Scenario {
                name: "a partitioned table, every column",
                setup: watched(TREE, false),
                steps: STEPS,
            },
            Scenario {
                name: "one leaf alone",
                setup: "create table t (id int primary key, a text) partition by range (id);
                        create table t1 partition of t for values from (0) to (10);
                        create table t2 partition of t for values from (10) to (20);
                        select pg2kv.watch('t1', 's', '{id}')",
                steps: &[
                    ("insert into t values (1, 'a'), (11, 'a')", &["[1]"]),
                    ("update t set id = id + 10 where id = 1 and false", &[]),
                    ("delete from t where id = 11", &[]),
                    ("update t set id = 11 where id = 1", &["[1]"]),
                    ("truncate t", ALL),
                ],
            },
        ],
    )
    .await;
}

/// `tree` and the call of `watch`; leaked, for it is needed until the test ends.
fn watched(tree: &str, some_columns: bool) -> &'static str {
    let columns = if some_columns { "'{a}'" } else { "null" };
    format!("{tree} select pg2kv.watch('t', 's', '{{id}}', {columns})").leak()
}

async fn changing_the_table_does_not_fail_writers(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(
        &admin,
        "create table t (id int primary key, a text, b text, c int);
         select pg2kv.watch('t', 'some', '{id}', '{a}');
         select pg2kv.watch('t', 'all_', '{id}');
         insert into t values (1)",
    )
    .await;
    let mut renamed = false;
    for ddl in [
        "alter table t add column d int not null default 7",
        "alter table t rename column b to bb",
        "alter table t alter column bb type varchar(100)",
        "alter table t alter column c type bigint",
        "alter table t drop column c",
        "alter table t rename column a to aa",
        "alter table t rename to t_",
        "alter table t_ rename to t",
        "create schema app",
        "alter table t set schema app",
        "alter table app.t set schema public",
        "alter table t drop constraint t_pkey",
    ] {
        run(&admin, ddl).await;
        let table = text(&admin, "select relation from pg2kv.status() limit 1").await;
        take_keys(&admin).await;
        run(
            &admin,
            &format!(
                "begin; insert into {table} (id) values (2); update {table} set id = 3 where id = 2;
                 delete from {table} where id = 3; commit"
            ),
        )
        .await;
        renamed |= ddl.contains("to aa");
        // The UPDATE cannot compare a column that has another name: every key instead of two.
        let some = if renamed { 3 } else { 4 };
        assert_eq!(take_keys(&admin).await.len(), 4 + some, "after {ddl}");
    }
    // Whatever a watched column is called now.
    run(&admin, "update t set aa = 'x'; update t set aa = 'x'").await;
    assert_eq!(take_keys(&admin).await, ["[1]", "everything", "[1]"]);
    // A watched column cannot go away unnoticed.
    for ddl in [
        "alter table t drop column aa",
        "alter table t alter column aa type varchar(3)",
    ] {
        let error = super::refusal(&admin, ddl).await;
        assert!(
            error.detail().unwrap().contains("zzz_pg2kv_some_update"),
            "{error}"
        );
    }
}

async fn the_bell_rings_only_for_a_sleeper(server: Server) {
    let (db, admin) = with_kit(server).await;
    run(&admin, PLAIN).await;
    let (listener, mut connection) = tokio_postgres::connect(&db.url(), NoTls).await.unwrap();
    let (heard, mut notifications) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(note) = message {
                let _ = heard.send((note.channel().to_owned(), note.payload().to_owned()));
            }
        }
    });
    run(&listener, "listen pg2kv; listen marker").await;

    for (bell, rings) in [
        ("0", false),
        ("extract(epoch from clock_timestamp())::bigint - 1", false),
        ("extract(epoch from clock_timestamp())::bigint + 60", true),
    ] {
        run(&admin, &format!("select setval('pg2kv.bell', {bell})")).await;
        for (sql, rings) in [
            ("insert into t values (1), (2)", rings),
            ("update t set a = 'x'", rings),
            ("update t set b = clock_timestamp()::text", false),
            ("delete from t", rings),
            ("truncate t", rings),
            ("select pg2kv.resync('s')", rings),
            ("select pg2kv.approve_deletes('s')", true),
        ] {
            run(&admin, sql).await;
            run(&admin, "notify marker").await;
            if rings {
                let note = notifications.recv().await.unwrap();
                assert_eq!(
                    note,
                    ("pg2kv".to_owned(), String::new()),
                    "{sql}, bell {bell}"
                );
            }
            let (channel, _) = notifications.recv().await.unwrap();
            assert_eq!(channel, "marker", "{sql}, bell {bell}");
        }
    }
}
