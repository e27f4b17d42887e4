//! Cloudflare's official npm client finds in the emulator what it expects of the API.

use std::time::Duration;

use pg2kv::emulator::Options;
use pg2kv::emulator::clock::Clock;
use serde_json::{Value, json};

use super::{ACCOUNT, NAMESPACE, Rig, TOKEN};
use crate::support::node::Peers;

#[tokio::test]
async fn the_official_client_works_unchanged() {
    let peers = Peers::installed();
    // The clock stands still, so that two writes of a key are always within one second.
    let clock = Clock::stopped_at(Duration::from_secs(4_000_000_000));
    let rig = Rig::with(Options {
        clock,
        ..Options::default()
    })
    .await;
    let input = json!({
        "base_url": rig.emulator.base_url(),
        "token": TOKEN,
        "account": ACCOUNT,
        "namespace": NAMESPACE,
    });
    let seen = peers.run("client.mjs", &input).await;

    let id = seen["created"]["id"].clone();
    let titled = |title| json!({"id": id, "title": title, "supports_url_encoding": true});
    let listed_first = json!({"name": "bulk:0000", "metadata": {"name": "bulk:0000"}});
    let value_of = |key: &str| Value::from(format!("value of {key}"));
    for (call, expected) in [
        ("created", titled("from the client")),
        ("created_again", json!({"status": 400, "codes": [10014]})),
        ("renamed", titled("renamed")),
        ("got", titled("renamed")),
        ("deleted", json!({})),
        ("got_deleted", json!({"status": 404, "codes": [10013]})),
        ("put", json!({})),
        ("read", json!({"text": "text", "expires": true})),
        ("metadata", json!({"a": 1})),
        ("value_deleted", json!({})),
        ("read_missing", json!({"status": 404, "codes": [10009]})),
        (
            "bulk_put",
            json!({"successful_key_count": 2_500, "unsuccessful_keys": []}),
        ),
        ("listed", json!({"count": 2_500, "in_order": true})),
        ("listed_first", listed_first),
        ("small_pages", json!(100)),
        (
            "bulk_get",
            json!({"values": {"bulk:0001": value_of("bulk:0001"), "none": null}}),
        ),
        ("put_too_soon", json!({"status": 429, "codes": [10022]})),
        (
            "bulk_delete_too_soon",
            json!({"successful_key_count": 1, "unsuccessful_keys": ["bulk:0000"]}),
        ),
        ("too_many", json!({"status": 400, "codes": [10012]})),
        ("another_token", json!({"status": 403, "codes": [10000]})),
    ] {
        assert_eq!(seen[call], expected, "{call}");
    }
    let mut titles = seen["namespaces"].as_array().unwrap().clone();
    titles.sort_by_key(Value::to_string);
    assert_eq!(titles, ["KV", "renamed"]);
    let with_metadata = json!({"value": value_of("bulk:0002"), "metadata": {"name": "bulk:0002"}});
    assert_eq!(
        seen["bulk_get_metadata"],
        json!({"values": {"bulk:0002": with_metadata, "none": null}})
    );
    assert_eq!(seen["verified"]["status"], "active");
    assert_eq!(
        rig.value("bulk:0000").as_deref(),
        Some("value of bulk:0000")
    );
    rig.emulator.stop().await;
}
