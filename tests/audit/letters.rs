//! Dead letters: counted, shown without their keys, tried again, dropped.

use pg2kv::change::fingerprint;

use super::{Place, until};

const LETTERS: &str = "select count(*) from pg2kv.dead_letter";

/// Each document fails while the divisor is zero, which no trigger sees.
async fn place() -> Place {
    let place = Place::new(
        "letters",
        "create table item (id text primary key, n int);
         create table divisor (d int); insert into divisor values (0);
         grant select on divisor to public;",
        "[sync.item]\ntable = \"public.item\"\nkey = \"item:{id}\"\n\
         value = \"(n / (select d from public.divisor))::text\"\nwatch = [\"n\"]\n",
    )
    .await;
    place
        .sql("insert into item values ('canary-a', 7), ('canary-b', 8), ('canary-c', 9)")
        .await;
    place
}

#[tokio::test]
async fn letters_are_retried_one_by_one_and_dropped() {
    let place = place().await;
    assert_eq!(
        place.says(0, &["dead-letters", "list"]).await,
        "ok  there are no dead letters\n"
    );
    let _daemon = place.daemon();
    until("three dead letters", async || {
        place.number(LETTERS).await == 3
    })
    .await;

    let list = place.json(0, &["dead-letters", "list", "--json"]).await;
    let group = &list["dead_letters"][0];
    assert_eq!(
        (&group["sync"], &group["reason"], &group["count"]),
        (&"item".into(), &"row_error".into(), &3.into())
    );
    let list = place.says(0, &["dead-letters", "list"]).await;
    assert!(
        list.starts_with("SYNC  REASON     COUNT  OLDEST\n"),
        "{list}"
    );

    let [a, b] = ["[\"canary-a\"]", "[\"canary-b\"]"].map(fingerprint);
    let shown = place.says(0, &["dead-letters", "show", "item"]).await;
    assert!(shown.contains(&a) && !shown.contains("canary"), "{shown}");
    let shown = place
        .json(0, &["dead-letters", "show", "item", "--json"])
        .await;
    assert!(!shown.to_string().contains("canary"), "{shown}");
    let shown = place
        .says(
            0,
            &[
                "dead-letters",
                "show",
                "item",
                "--show-keys",
                "--limit",
                "1",
            ],
        )
        .await;
    assert_eq!(shown.matches("canary").count(), 1, "{shown}");
    assert!(
        shown.ends_with("and 2 more: --limit shows them\n"),
        "{shown}"
    );

    let retry = |more: &'static [&str]| [&["dead-letters", "retry", "item"], more].concat();
    let dry = place.says(0, &retry(&["--dry-run"])).await;
    assert_eq!(dry, "would retry 3 keys\n");
    let other = place.says(0, &retry(&["--reason", "rejected"])).await;
    assert_eq!(
        other,
        "no dead letter of item matches; nothing was changed\n"
    );
    assert_eq!(place.number("select count(*) from pg2kv.outbox").await, 0);

    place.sql("update divisor set d = 1").await;
    // With other spaces than Postgres prints, and the daemon asleep.
    place.says(0, &retry(&["[ \"canary-a\" ]"])).await;
    until("the retried document", async || {
        place.value("item:canary-a").is_some()
    })
    .await;
    until("its letter to go", async || {
        place.number(LETTERS).await == 2
    })
    .await;
    assert_eq!(place.value("item:canary-b"), None);

    let refused = place.pg2kv(&["dead-letters", "drop", "item", &b]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(super::text_of(&refused.stderr).contains("add --yes"));
    let dry = ["dead-letters", "drop", "item", &b, "--dry-run"];
    assert_eq!(place.says(0, &dry).await, "would drop 1 dead letter\n");
    assert_eq!(place.number(LETTERS).await, 2);
    place
        .says(0, &["dead-letters", "drop", "item", &b, "--yes"])
        .await;
    assert_eq!(place.number(LETTERS).await, 1);

    place.says(0, &retry(&["--reason", "row_error"])).await;
    until("no letter", async || place.number(LETTERS).await == 0).await;
    assert_eq!(place.value("item:canary-c").as_deref(), Some("9"));
    assert_eq!(place.value("item:canary-b"), None, "it was dropped");
}

#[tokio::test]
async fn a_sync_that_is_not_there_is_a_mistake_unless_it_left_letters() {
    let place = place().await;
    place
        .sql("insert into pg2kv.dead_letter (sync, key, reason) values ('gone', '[1]', 'rejected')")
        .await;
    for verb in ["show", "retry", "drop"] {
        let output = place.pg2kv(&["dead-letters", verb, "itme"]).await;
        assert_eq!(output.status.code(), Some(1), "{verb}");
        assert_eq!(
            super::text_of(&output.stderr),
            "error: no sync is named \"itme\"\n  help: the configuration has item\n"
        );
    }
    place.says(1, &["dead-letters", "retry", "gone"]).await;
    place
        .says(0, &["dead-letters", "drop", "gone", "--yes"])
        .await;
    assert_eq!(place.number(LETTERS).await, 0);
}
