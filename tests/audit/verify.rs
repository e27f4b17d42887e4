//! KV against Postgres: what drifted behind the daemon's back is found and mended, what is on its
//! way or somebody else's is not touched.

use std::collections::BTreeMap;

use bytes::Bytes;
use pg2kv::audit::{self, Pace, Target};
use pg2kv::change::owner::{Installation, InstallationId, Mark};
use pg2kv::change::{
    Answer, Batch, ContentHash, Document, Expiry, KvName, Outcome, Value, fingerprint,
};
use pg2kv::document::content_hash;
use pg2kv::emulator::faults::Fault;
use pg2kv::emulator::pair::Pair;
use pg2kv::sink::kv::KvClient;
use pg2kv::sink::setup::{NamespaceId, Settings};
use pg2kv::sink::token::TokenSource;
use pg2kv::source::audit::Auditor;
use serde_json::json;

use super::{DEADLINE, ID, Place, until};

const TABLE: &str = "create table item (id int primary key, n int);";
const SYNC: &str = "[sync.item]\ntable = \"public.item\"\nkey = \"item:{id}\"\n\
                    value = \"(100 / n)::text\"\nwatch = [\"n\"]\n";

impl Place {
    /// Writes to KV as anybody with a token can; `ours` says whether it looks like pg2kv's.
    pub(crate) async fn tamper(&self, name: &str, value: Option<&'static str>, ours: bool) {
        let settings = Settings {
            api_base_url: self.emulator.base_url(),
            account: Some(ID.to_owned()),
            token: TokenSource::Fixed("token".to_owned().into()),
            connect_timeout: DEADLINE,
            request_timeout: DEADLINE,
            proxy: None,
            root_certificate: None,
        };
        let name = KvName::new(name).unwrap();
        let mut batch = match value {
            None => Batch::Delete(vec![name]),
            Some(value) => {
                let value = Value::Text(Bytes::from(value));
                let owner = self.installation().await.of_sync("item").owner;
                let hash: ContentHash = content_hash(&value, Expiry::Never, "");
                let metadata = if ours {
                    format!("{{\"pg2kv\":\"{}\"}}", Mark::new(hash, owner))
                } else {
                    "{}".to_owned()
                };
                Batch::Put(vec![Document {
                    name,
                    value,
                    metadata: metadata.into(),
                    hash,
                    expiration: None,
                }])
            }
        };
        let kv = KvClient::new(settings).unwrap();
        let answer = kv.send(&NamespaceId::new(ID).unwrap(), &mut batch).await;
        assert_eq!(answer.outcome, Outcome::Written);
    }

    pub(crate) async fn installation(&self) -> Installation {
        let id = "select installation from pg2kv.meta";
        let id: String = self.client.query_one(id, &[]).await.unwrap().get(0);
        Installation {
            id: InstallationId::parse(&id).unwrap(),
            adopted: [].into(),
        }
    }

    fn snapshot(&self) -> BTreeMap<String, Pair> {
        self.emulator.store().snapshot(ID)
    }

    /// As after a walk, with nothing waiting, but without a daemon that did it.
    pub(crate) async fn settled(&self) {
        self.sql("delete from pg2kv.outbox; update pg2kv.sync set backfilled_at = now()")
            .await;
    }
}

/// The numbers of the one sync.
fn numbers(report: &serde_json::Value) -> [u64; 7] {
    [
        "equal",
        "missing",
        "stale",
        "orphaned",
        "dead_lettered",
        "pending",
        "foreign",
    ]
    .map(|name| report["syncs"][0][name].as_u64().unwrap())
}

#[tokio::test]
async fn drift_of_each_kind_is_found_and_mended() {
    let place = Place::new("drift", TABLE, SYNC).await;
    place
        .sql("insert into item select n, n from generate_series(1, 50) n")
        .await;
    let _daemon = place.daemon();
    let at_rest = "select (select count(*) from pg2kv.outbox) + (select count(*) from pg2kv.claim)
        + (select count(*) from pg2kv.backfill)
        + (select count(*) from pg2kv.sync where backfilled_at is null)";
    until("the first walk to end", async || {
        place.number(at_rest).await == 0
    })
    .await;
    let before = place.snapshot();
    let report = place.json(0, &["verify", "--json"]).await;
    assert_eq!(numbers(&report), [50, 0, 0, 0, 0, 0, 0]);

    place.tamper("item:2", None, true).await;
    place.tamper("item:3", Some("stale"), true).await;
    // Overwritten by another program, whose pair is none of ours.
    place.tamper("item:4", Some("theirs"), false).await;
    place.tamper("item:99", Some("orphan"), true).await;
    for foreign in ["item:007", "item:0060", "item:x", "item:"] {
        place.tamper(foreign, Some("foreign"), false).await;
    }
    place.tamper("other:1", Some("elsewhere"), true).await;
    let tampered = place.snapshot();

    let report = place.json(1, &["verify", "--json", "item"]).await;
    assert_eq!(numbers(&report), [47, 2, 1, 1, 0, 0, 5]);
    assert_eq!(
        (
            &report["drifted"],
            report["syncs"][0]["samples"].as_array().unwrap().len()
        ),
        (&4.into(), 4)
    );
    let text = place.says(1, &["verify"]).await;
    let stale = format!("item: stale    {}\n", fingerprint("[3]"));
    assert!(text.contains(&stale) && !text.contains("[3]"), "{text}");
    let text = place.says(1, &["verify", "--show-keys"]).await;
    assert!(text.contains("item: orphaned [99]\n"), "{text}");
    assert_eq!(place.snapshot(), tampered, "verify only looks");
    assert_eq!(place.number(at_rest).await, 0);

    // The daemon remembers what it wrote, and must write it again all the same.
    let applied = place.emulator.store().statistics().applied;
    let text = place.says(1, &["verify", "--repair"]).await;
    assert!(
        text.ends_with("4 keys; the daemon was asked to mend them\n"),
        "{text}"
    );
    until("the repair to end", async || {
        place.number(at_rest).await == 0
    })
    .await;
    assert_eq!(
        place.emulator.store().statistics().applied,
        applied + 4,
        "no other key is written"
    );
    let report = place.json(0, &["verify", "--json"]).await;
    assert_eq!(numbers(&report), [50, 0, 0, 0, 0, 0, 4]);
    let mut mended = place.snapshot();
    for (foreign, value) in [
        ("item:007", "foreign"),
        ("item:0060", "foreign"),
        ("item:x", "foreign"),
        ("item:", "foreign"),
        ("other:1", "elsewhere"),
    ] {
        assert_eq!(mended.remove(foreign).unwrap().value, value.as_bytes());
    }
    assert_eq!(mended, before);
}

#[tokio::test]
async fn what_waits_or_has_a_letter_is_no_drift() {
    let place = Place::new("waits", TABLE, SYNC).await;
    place
        .sql("insert into item values (1, 1), (2, 0), (3, 5)")
        .await;

    let walking = place.json(0, &["verify", "--json"]).await;
    assert_eq!(numbers(&walking), [0, 0, 0, 0, 0, 3, 0]);
    assert_eq!(walking["syncs"][0]["undecided"], true);

    place.settled().await;
    place.tamper("item:1", Some("100"), true).await;
    let drift = place.json(1, &["verify", "--json"]).await;
    assert_eq!(
        numbers(&drift),
        [1, 2, 0, 0, 0, 0, 0],
        "the row that fails is missing too"
    );

    place
        .sql(
            "insert into pg2kv.dead_letter (sync, key, reason) values ('item', '[2]', 'row_error')",
        )
        .await;
    let letter = place.json(1, &["verify", "--json"]).await;
    assert_eq!(numbers(&letter), [1, 1, 0, 0, 1, 0, 0]);

    place.sql("update item set n = 10 where id = 3").await;
    place.sql("delete from item where id = 1").await;
    let outbox = place.json(0, &["verify", "--json"]).await;
    assert_eq!(
        numbers(&outbox),
        [0, 0, 0, 0, 1, 2, 0],
        "an orphan can wait too"
    );

    place
        .sql(
            "insert into pg2kv.claim (epoch, sync, keys)
             select 1, sync, array_agg(key::text) from pg2kv.outbox group by sync;
             delete from pg2kv.outbox",
        )
        .await;
    let claim = place.json(0, &["verify", "--json"]).await;
    assert_eq!(numbers(&claim), [0, 0, 0, 0, 1, 2, 0]);

    place.sql("delete from pg2kv.claim").await;
    let nothing_waits = place.json(1, &["verify", "--json", "--repair"]).await;
    assert_eq!(numbers(&nothing_waits), [0, 1, 0, 1, 1, 0, 0]);
    let asked =
        ["repair_asked_for", "resync_asked_for"].map(|name| &nothing_waits["syncs"][0][name]);
    assert_eq!(asked, [&json!(true), &json!(false)]);
    let markers = "select count(*) from pg2kv.outbox
        where key in ('{\"again\": [1]}', '{\"again\": [3]}')";
    assert_eq!(place.number(markers).await, 2);
    // They wait, so they count as such, and are not asked for twice.
    let waits = place.json(0, &["verify", "--json", "--repair"]).await;
    assert_eq!(numbers(&waits), [0, 0, 0, 0, 1, 2, 0]);
    assert_eq!(place.number("select count(*) from pg2kv.outbox").await, 2);
}

#[tokio::test]
async fn a_listing_is_asked_for_again_and_then_given_up() {
    let place = Place::new("listing", TABLE, SYNC).await;
    place.settled().await;
    let fault = |fault: serde_json::Value| {
        let fault: Fault = serde_json::from_value(fault).unwrap();
        place.emulator.store().faults().add(fault).unwrap();
    };
    fault(json!({ "count": 2, "reply": "garbage" }));
    fault(json!({ "count": 1, "reply": { "status": { "status": 429, "retry_after": 1 } } }));
    let fine = place.says(0, &["verify"]).await;
    assert!(fine.ends_with("ok  nothing has drifted\n"), "{fine}");

    fault(json!({ "count": 100, "reply": { "status": { "status": 503 } } }));
    let unavailable = place.pg2kv(&["verify"]).await;
    assert_eq!(unavailable.status.code(), Some(69));
    let said = super::text_of(&unavailable.stderr);
    assert!(
        said.starts_with("error: listing the names in Workers KV: "),
        "{said}"
    );
    assert!(unavailable.stdout.is_empty(), "half a comparison is none");

    place.emulator.store().set_token(Some("another".to_owned()));
    place.says(1, &["verify"]).await;
    let unknown = place.pg2kv(&["verify", "itme"]).await;
    assert_eq!(
        super::text_of(&unknown.stderr),
        "error: no sync is named \"itme\"\n  help: the configuration has item\n"
    );
}

/// Lets a comparison go on once the outbox has been emptied: what waited when it began was written
/// only after its names were listed.
struct DrainedMeanwhile<'a>(&'a Place);

impl Pace for DrainedMeanwhile<'_> {
    async fn page(&mut self, _: Option<&Answer>) {
        self.0.sql("delete from pg2kv.outbox").await;
    }

    async fn again(&mut self) {
        unreachable!("more differ than can be looked at again")
    }
}

#[tokio::test]
async fn a_backlog_that_drains_meanwhile_is_no_drift() {
    let place = Place::new("drained", TABLE, SYNC).await;
    // As if a daemon had walked the table while it was empty.
    place
        .sql("delete from pg2kv.backfill; update pg2kv.sync set backfilled_at = now()")
        .await;
    place
        .sql("insert into item select n, 1 from generate_series(1, 100001) n")
        .await;
    let config = pg2kv::config::load(std::slice::from_ref(&place.config), []).unwrap();
    let kv = KvClient::new(config.sink_settings()).unwrap();
    let auditor = Auditor::connect(&config.source_settings()).await.unwrap();
    let syncs = config.daemon_settings().syncs;
    let target = Target {
        source: &syncs[0].source,
        template: &syncs[0].template,
        namespace: &syncs[0].namespace,
    };
    let report = audit::compare(&auditor, &kv, &target, DrainedMeanwhile(&place), |_| {})
        .await
        .unwrap();
    assert!(report.undecided, "{report:?}");
    assert_eq!((report.pending, report.missing), (100_001, 0));
}
