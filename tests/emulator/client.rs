//! Cloudflare's own clients find in the emulator what they expect of the API.

use std::time::Duration;

use pg2kv::emulator::Options;
use pg2kv::emulator::clock::Clock;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{ACCOUNT, DEADLINE, NAMESPACE, Rig, TOKEN};
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

#[tokio::test]
async fn wrangler_works_unchanged() {
    let peers = Peers::installed();
    let rig = Rig::new().await;
    let directory = tempfile::tempdir().unwrap();
    let wrangler = async |arguments: &[&str]| {
        let mut command = peers.command("node_modules/wrangler/bin/wrangler.js");
        command
            .args(arguments)
            .args(["--namespace-id", NAMESPACE, "--remote"])
            .env("CLOUDFLARE_API_BASE_URL", rig.emulator.base_url())
            .env("CLOUDFLARE_API_TOKEN", TOKEN)
            .env("CLOUDFLARE_ACCOUNT_ID", ACCOUNT)
            .env("WRANGLER_SEND_METRICS", "false")
            .env("CI", "1")
            // Its logs and caches go where they are removed again.
            .env("XDG_CONFIG_HOME", directory.path());
        let output = timeout(DEADLINE, command.output()).await.unwrap().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let pairs: Value = (0..1_500)
        .map(|n| json!({"key": format!("k{n}"), "value": "v"}))
        .collect();
    let file = directory.path().join("pairs.json");
    std::fs::write(&file, pairs.to_string()).unwrap();
    wrangler(&["kv", "bulk", "put", file.to_str().unwrap()]).await;
    assert_eq!(rig.store.snapshot(NAMESPACE).len(), 1_500);

    let listed: Value = serde_json::from_str(&wrangler(&["kv", "key", "list"]).await).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1_500);
    // It deletes by the deprecated request, and does not look for keys that were refused.
    rig.store.clock().advance(Duration::from_secs(1));
    let names: Value = (0..1_500).map(|n| json!(format!("k{n}"))).collect();
    std::fs::write(&file, names.to_string()).unwrap();
    wrangler(&["kv", "bulk", "delete", file.to_str().unwrap(), "--force"]).await;
    assert_eq!(rig.store.snapshot(NAMESPACE).len(), 0);
    rig.emulator.stop().await;
}
