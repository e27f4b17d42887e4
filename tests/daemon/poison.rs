//! Rows that cannot become a pair: the others flow, and the row is not forgotten.

use pg2kv::emulator::faults::Fault;
use pg2kv::emulator::route::Operation;

use super::{DOCS, PLAN, world};
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

/// Waits until the dead letters are these: reason and length of the key.
async fn dead_letters(world: &World, expected: &[(&str, i32)]) {
    wait::until(
        &format!("the dead letters to be {expected:?}"),
        async || {
            let rows = world
                .rows(
                    "select reason, length(key ->> 0) from pg2kv.dead_letter order by reason, key",
                )
                .await;
            let found: Vec<(String, i32)> =
                rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            let same = found.len() == expected.len()
                && found
                    .iter()
                    .zip(expected)
                    .all(|(found, wanted)| (found.0.as_str(), found.1) == *wanted);
            same.then_some(())
        },
    )
    .await;
}

#[tokio::test]
async fn poison_rows_go_to_the_dead_letters_and_a_better_row_takes_them_out() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql(
            "insert into public.doc values
               ('good', 'a'), ('..', 'illegal'), ('.', 'illegal'), (repeat('k', 513), 'too long'),
               ('big', repeat('x', 26214400)), ('also good', 'b');
             insert into public.note values (1, 'flows')",
        )
        .await;
    let reasons = [
        ("illegal_key", 1),
        ("illegal_key", 2),
        ("key_too_long", 513),
        ("value_too_large", 3),
    ];
    dead_letters(&world, &reasons).await;
    world.quiet().await;
    let keys: Vec<String> = world.kv.snapshot(DOCS).into_keys().collect();
    assert_eq!(keys, ["also good", "good"]);
    world.has("note:1", Some(r#"{"text":"flows"}"#)).await;

    let details = "select string_agg(detail, E'\\n' order by reason, key) from pg2kv.dead_letter";
    let details: String = world.rows(details).await[0].get(0);
    for said in [
        "the KV key is \".\" or \"..\", which Workers KV does not allow",
        "the KV key has 513 bytes; Workers KV allows 512",
        " bytes; Workers KV allows 26214400",
    ] {
        assert!(details.contains(said), "{details}");
    }
    let line = daemon.logged("went to pg2kv.dead_letter").await;
    assert!(line.contains("\"sync\":\"doc\""), "{line}");

    // A good change of the same key, a better key, and the end of the row.
    world
        .sql(
            "update public.doc set body = 'small' where name = 'big';
             update public.doc set name = 'dots' where name = '..';
             delete from public.doc where name = '.';
             update public.doc set name = repeat('k', 512) where name = repeat('k', 513)",
        )
        .await;
    dead_letters(&world, &[]).await;
    world.converges().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_pair_that_kv_refuses_is_found_among_the_good_ones() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    // The API would refuse the whole batch for one bad pair.
    let refusal = Fault::status(400)
        .on_operation(Operation::BulkWrite)
        .on_key_prefix("note:7");
    world.kv.faults().add(refusal).unwrap();
    world
        .sql("insert into public.note select n, 'text' from generate_series(1, 40) n where n <> 70")
        .await;
    dead_letters(&world, &[("rejected", 1)]).await;
    world.quiet().await;
    assert_eq!(world.kv.snapshot(NAMESPACE).len(), 39);
    world.kv.faults().clear();
    world
        .sql("update public.note set text = 'better' where id = 7")
        .await;
    dead_letters(&world, &[]).await;
    world.converges().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_row_that_cannot_be_rendered_does_not_stop_the_others() {
    let world = World::start(Plan {
        sql: "create table public.ratio (id int primary key, a int, b int)",
        syncs: &[Sync {
            name: "ratio",
            toml: "table = \"public.ratio\"\nkey = \"ratio:{id}\"\nvalue = \"to_json(a / b)\"\n\
                   watch = [\"a\", \"b\"]",
            namespace: NAMESPACE,
            oracle: "select 'ratio:' || id, to_json(a / nullif(b, 0))::text from public.ratio where b <> 0",
        }],
        ..PLAN
    })
    .await;
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql("insert into public.ratio select n, n, n % 7 from generate_series(1, 20) n")
        .await;
    dead_letters(&world, &[("row_error", 1), ("row_error", 2)]).await;
    world.converges().await;
    world.sql("update public.ratio set b = 1 where b = 0").await;
    dead_letters(&world, &[]).await;
    world.converges().await;
    daemon.stop().await;
}
