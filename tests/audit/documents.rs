//! Pairs with more than a text: bytes, metadata, an end. By the real binary, into the emulator.

use std::time::Duration;

use super::{ID, Place, until};

const PAGES: &str = "create table page (
       path text primary key, body bytea, kind text, about jsonb, until timestamptz);
     insert into page values
       ('logo.png', '\\x89504e470d0a1a0a00ff', 'image/png', '{\"width\": 16}', null),
       ('plain', 'plain', null, null, 'infinity'),
       ('later', 'later', null, null, '2100-01-01 00:00:00+00'),
       ('soon', 'soon', null, null, clock_timestamp() + '170 seconds'),
       ('over', 'over', null, null, clock_timestamp() - interval '1 second'),
       ('list', 'list', null, '[]', null),
       ('ours', 'ours', null, '{\"pg2kv\": 1}', null),
       ('long', 'long', null, jsonb_build_object('x', repeat('x', 1000)), null);";

const PAGE: &str = "[sync.page]\ntable = \"public.page\"\nkey = \"/{path}\"\nvalue = \"body\"\n\
    content_type = \"kind\"\nmetadata = \"about\"\nexpires_at = \"until\"\n\
    watch = [\"body\", \"kind\", \"about\", \"until\"]\n";

const SESSIONS: &str = "create table session (id int primary key, seen int, note text);
     insert into session values (1, 0), (2, 0);";

const SESSION: &str = "[sync.session]\ntable = \"public.session\"\nkey = \"session:{id}\"\n\
    columns = [\"id\"]\nwatch = [\"seen\"]\nttl = \"2m\"\n";

#[tokio::test]
async fn bytes_metadata_and_ends_arrive() {
    let place = Place::new("pages", PAGES, PAGE).await;
    let daemon = place.daemon();
    place.walked("page").await;
    let store = place.emulator.store();
    let names: Vec<String> = store.snapshot(ID).into_keys().collect();
    assert_eq!(names, ["/later", "/logo.png", "/plain", "/soon"]);
    let pair = |name: &str| store.get(ID, name).unwrap();
    let own = |name: &str| {
        let metadata: serde_json::Value =
            serde_json::from_str(&pair(name).metadata.unwrap()).unwrap();
        let mut members = metadata.as_object().unwrap().clone();
        assert!(members.remove("pg2kv").is_some());
        serde_json::Value::from(members).to_string()
    };
    assert_eq!(&pair("/logo.png").value[..], b"\x89PNG\r\n\x1a\n\x00\xff");
    assert_eq!(
        own("/logo.png"),
        r#"{"content_type":"image/png","width":16}"#
    );
    assert_eq!(own("/plain"), "{}");
    assert_eq!(pair("/plain").expiration, None);
    assert_eq!(pair("/later").expiration, Some(4_102_444_800));
    let now = store.clock().unix_micros() / 1_000_000;
    let end = pair("/soon").expiration.unwrap();
    assert!((now..=now + 171).contains(&end), "{end} at {now}");

    let letters =
        "select string_agg(key->>0 || ': ' || reason, ', ' order by key) from pg2kv.dead_letter";
    let letters: String = place.client.query_one(letters, &[]).await.unwrap().get(0);
    assert_eq!(
        letters,
        "list: bad_metadata, long: bad_metadata, ours: bad_metadata"
    );

    // A row whose time is moved into the past is gone at once; one that is changed is whole again.
    place
        .sql(
            "update page set until = '2001-01-01' where path = 'later';
             update page set about = '{\"v\": 2}' where path in ('list', 'plain')",
        )
        .await;
    until("the changes to arrive", async || {
        store.get(ID, "/later").is_none() && store.get(ID, "/list").is_some()
    })
    .await;
    assert_eq!(own("/list"), r#"{"v":2}"#);
    place.walked("page").await;
    let found = place.json(0, &["verify", "--json"]).await;
    assert_eq!(found["drifted"], 0, "{found}");
    drop(daemon);
}

#[tokio::test]
async fn what_ttl_ended_is_no_drift_and_comes_back_with_a_change() {
    let place = Place::new("sessions", SESSIONS, SESSION).await;
    let daemon = place.daemon();
    place.walked("session").await;
    let store = place.emulator.store();
    let expiration = |name: &str| store.get(ID, name).and_then(|pair| pair.expiration);
    let first = expiration("session:1").unwrap();
    let now = store.clock().unix_micros() / 1_000_000;
    assert!((now..=now + 121).contains(&first), "{first} at {now}");

    // A change that leaves the document as it is starts its time again.
    store.clock().advance(Duration::from_secs(60));
    place.sql("update session set seen = 1 where id = 1").await;
    until("the pair to be renewed", async || {
        expiration("session:1") > Some(first + 30)
    })
    .await;

    store.clock().advance(Duration::from_secs(100));
    assert_eq!(expiration("session:2"), None, "it has ended");
    let found = place.json(0, &["verify", "--json", "--repair"]).await;
    assert_eq!(
        (&found["drifted"], &found["syncs"][0]["expired"]),
        (&0.into(), &1.into())
    );
    place.walked("session").await;
    assert_eq!(expiration("session:2"), None, "nobody wrote it again");

    place.sql("update session set seen = 1 where id = 2").await;
    until("the pair to come back", async || {
        expiration("session:2").is_some()
    })
    .await;
    drop(daemon);
}

impl Place {
    /// Waits until a first walk is done and nothing waits.
    async fn walked(&self, sync: &str) {
        until("the ledger to become empty", async || {
            let sql = format!(
                "select (select count(*) from pg2kv.outbox) + (select count(*) from pg2kv.claim) \
                 + (select count(*) from pg2kv.backfill) + (select count(*) from pg2kv.sync \
                 where name = '{sync}' and backfilled_at is null)"
            );
            self.number(&sql).await == 0
        })
        .await;
    }
}
