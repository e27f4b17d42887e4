//! Each conclusion that `pg2kv explain` can come to, and what it prints and keeps to itself.

use pg2kv::emulator::faults::Fault;
use serde_json::{Value, json};

use super::{ID, Place, text_of, until};

const TABLE: &str = "create table item (id int primary key, n int, live boolean default true);";
const SYNC: &str = "[sync.item]\ntable = \"public.item\"\nkey = \"item:{id}\"\n\
                    value = \"(100 / n) || ' canary'\"\nwhere = \"live\"\nwatch = [\"n\", \"live\"]\n";

impl Place {
    /// Verdict and sentence on a key of the one sync.
    async fn explained(&self, code: i32, key: &str) -> (String, String) {
        let told = self.json(code, &["explain", key, "--json"]).await;
        let conclusion = &told["syncs"][0]["conclusion"];
        let text = |name: &str| conclusion[name].as_str().unwrap().to_owned();
        assert_eq!(conclusion["good"], code == 0);
        (text("verdict"), text("sentence"))
    }

    async fn verdict(&self, code: i32, key: &str) -> String {
        self.explained(code, key).await.0
    }

    fn fault(&self, fault: Value) {
        let fault: Fault = serde_json::from_value(fault).unwrap();
        self.emulator.store().faults().add(fault).unwrap();
    }

    async fn at_rest(&self) {
        until("nothing to be left to do", async || {
            self.number(
                "select (select count(*) from pg2kv.outbox) + (select count(*) from pg2kv.claim)
                 + (select count(*) from pg2kv.backfill)
                 + (select count(*) from pg2kv.sync where backfilled_at is null)",
            )
            .await
                == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_key_is_explained_and_its_value_kept_back() {
    let place = Place::new("explain", TABLE, SYNC).await;
    place
        .sql(
            "insert into item values (1, 1, true), (2, 0, true), (3, 3, true),
             (4, null, true), (5, 5, false)",
        )
        .await;
    let _daemon = place.daemon();
    place.at_rest().await;

    let text = place.says(0, &["explain", "item:1"]).await;
    assert!(
        text.ends_with("\nok  KV says what Postgres says\n"),
        "{text}"
    );
    assert!(text.contains("id = 1: there\n"), "{text}");
    assert!(!text.contains("canary"), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let hashes: Vec<&str> = ["Postgres", "KV  "]
        .iter()
        .filter_map(|what| lines.iter().find(|line| line.starts_with(what)))
        .filter_map(|line| line.split("hash ").nth(1))
        .collect();
    assert!(hashes.len() == 2 && hashes[0] == hashes[1], "{text}");
    let told = place.json(0, &["explain", "item:1", "--json"]).await;
    assert!(!told.to_string().contains("canary"), "{told}");
    assert_eq!(told["syncs"][0]["key"], json!([1]));
    assert_eq!(told["syncs"][0]["postgres"]["bytes"], 10);
    let shown = place
        .says(0, &["explain", "item:1", "--show-values", "--sync", "item"])
        .await;
    assert_eq!(shown.matches("100 canary").count(), 2, "{shown}");

    // Of a row that makes no document there is no pair, for one reason or another.
    for (key, why) in [
        ("item:4", "null"),
        ("item:5", "not_published"),
        ("item:77", "no_row"),
    ] {
        let told = place.json(0, &["explain", key, "--json"]).await;
        assert_eq!(told["syncs"][0]["postgres"]["document"], why, "{key}");
        assert_eq!(told["syncs"][0]["conclusion"]["verdict"], "equal");
    }
    let nothing = place.explained(0, "item:77").await.1;
    assert!(
        nothing.ends_with("there is nothing for this key"),
        "{nothing}"
    );

    assert_eq!(place.verdict(1, "item:2").await, "dead_letter");
    let text = place.says(1, &["explain", "item:2"]).await;
    assert!(
        text.contains("row_error") && text.contains("pg2kv dead-letters retry item item:2`\n"),
        "{text}"
    );

    let (verdict, sentence) = place.explained(1, "item:007").await;
    assert_eq!(verdict, "not_made");
    assert!(sentence.ends_with("would make item:7"), "{sentence}");
    let (verdict, sentence) = place.explained(1, "item:x").await;
    assert_eq!(
        (verdict.as_str(), sentence.as_str()),
        ("not_made", "no row of item can make this key")
    );

    let nobodys = place.says(1, &["explain", "other:1"]).await;
    assert!(
        nobodys.starts_with("look  no sync makes this key\n"),
        "{nobodys}"
    );
    place.tamper("other:1", Some("left over"), true).await;
    let nobodys = place.says(1, &["explain", "other:1"]).await;
    assert!(
        nobodys.contains(ID) && nobodys.contains("no sync makes this key; pg2kv wrote it for"),
        "{nobodys}"
    );

    place.tamper("item:1", Some("stale"), true).await;
    assert_eq!(place.verdict(1, "item:1").await, "differs");
    place.tamper("item:3", None, true).await;
    assert_eq!(place.verdict(1, "item:3").await, "differs");
    place.tamper("item:88", Some("left over"), true).await;
    assert_eq!(place.verdict(1, "item:88").await, "differs");
    place.tamper("item:89", Some("theirs"), false).await;
    assert_eq!(place.verdict(1, "item:89").await, "foreign");
    let theirs = place.says(1, &["explain", "item:89"]).await;
    assert!(
        theirs.contains("6 bytes, not written by pg2kv\n"),
        "{theirs}"
    );
}

#[tokio::test]
async fn what_is_on_its_way_is_told_from_where_it_is() {
    let place = Place::new("explain_way", TABLE, SYNC).await;
    place.sql("insert into item values (1, 1), (2, 2)").await;
    let daemon = place.daemon();
    place.at_rest().await;
    drop(daemon);
    // One that lets changes wait.
    let hour = [
        ("PG2KV__QUEUE__QUIET", "1h"),
        ("PG2KV__QUEUE__MAX_WAIT", "1h"),
    ];
    let daemon = place.daemon_with(&hour);
    place.sql("update item set n = 50 where id = 1").await;
    until("it to lead", async || {
        place.pg2kv(&["explain", "item:1"]).await.status.success()
    })
    .await;
    let (verdict, sentence) = place.explained(0, "item:1").await;
    assert_eq!(verdict, "on_its_way");
    assert!(
        sentence.starts_with("a change from ") && sentence.ends_with(" ago is on its way"),
        "{sentence}"
    );
    // From here on KV answers nothing of use, so what is claimed stays so.
    place.fault(json!({ "count": 1000, "match": { "operation": "bulk_write" }, "reply": { "status": { "status": 503 } } }));
    drop(daemon);
    let daemon = place.daemon();
    until("the claim", async || {
        place.number("select count(*) from pg2kv.claim").await == 1
    })
    .await;
    let (verdict, sentence) = place.explained(0, "item:1").await;
    assert_eq!(verdict, "on_its_way");
    assert!(sentence.starts_with("a change was claimed "), "{sentence}");

    drop(daemon);
    until("the lease to be free", async || {
        let told = place.pg2kv(&["explain", "item:1"]).await;
        told.status.code() == Some(1)
    })
    .await;
    let (_, sentence) = place.explained(1, "item:1").await;
    assert!(
        sentence.contains("earlier leader") && sentence.ends_with("but no daemon leads"),
        "{sentence}"
    );
}

#[tokio::test]
async fn without_a_daemon_the_ledger_alone_tells() {
    let place = Place::new("explain_ledger", TABLE, SYNC).await;
    place
        .sql("insert into item values (1, 1), (2, 2), (3, 3)")
        .await;
    place.sql("delete from pg2kv.outbox").await;
    let sentence = place.explained(1, "item:1").await.1;
    assert_eq!(
        sentence,
        "the sync's first backfill will come to it, but no daemon leads"
    );

    place.settled().await;
    assert_eq!(place.verdict(1, "item:1").await, "differs");
    place
        .sql("insert into pg2kv.backfill (sync, reason, phase, position) values ('item', 'resync', 'rows', '[2]')")
        .await;
    assert_eq!(
        place.verdict(1, "item:2").await,
        "differs",
        "the walk has passed it"
    );
    assert_eq!(place.verdict(1, "item:3").await, "stalled");
    let text = place.says(1, &["explain", "item:3"]).await;
    assert!(text.contains("this key is still ahead of it\n"), "{text}");
    place.tamper("item:9", Some("left over"), true).await;
    let sentence = place.explained(1, "item:9").await.1;
    assert!(
        sentence.starts_with("the backfill under way will come to it"),
        "{sentence}"
    );
    place.sql("delete from pg2kv.backfill").await;

    place.sql("select pg2kv.resync('item')").await;
    let sentence = place.explained(1, "item:1").await.1;
    assert!(
        sentence.starts_with("a look at all keys, asked for "),
        "{sentence}"
    );
    place.settled().await;

    place.sql("alter table item disable trigger all").await;
    assert_eq!(place.verdict(1, "item:1").await, "unrecorded");
    place.sql("select pg2kv.unwatch('item')").await;
    assert_eq!(place.verdict(1, "item:1").await, "unwatched");

    let unknown = place.pg2kv(&["explain", "item:1", "--sync", "itme"]).await;
    assert_eq!(
        text_of(&unknown.stderr),
        "error: no sync is named \"itme\"\n  help: the configuration has item\n"
    );
    let long = "k".repeat(513);
    let refused = place.pg2kv(&["explain", &long]).await;
    assert_eq!(refused.status.code(), Some(2));
}
