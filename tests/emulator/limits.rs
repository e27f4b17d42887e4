//! Sizes, counts and rates, each at its edge.

use std::time::Duration;

use pg2kv::emulator::Options;
use pg2kv::emulator::clock::Clock;
use pg2kv::emulator::limits::{Limits, RequestLimit};
use reqwest::Method;
use serde_json::{Value, json};

use super::{NAMESPACE, Rig, pairs, send};

fn stopped_clock() -> Clock {
    Clock::stopped_at(Duration::from_secs(1_800_000_000))
}

#[tokio::test]
async fn a_key_takes_one_write_per_second() {
    let clock = stopped_clock();
    let rig = Rig::with(Options {
        clock: clock.clone(),
        ..Options::default()
    })
    .await;
    assert_eq!(rig.put("k", "one").await.status, 200);
    clock.advance(Duration::from_millis(999));
    let refused = rig.put("k", "two").await;
    assert_eq!((refused.status, refused.codes()), (429, vec![10022]));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(rig.put("another", "one").await.status, 200);

    // In a bulk write the key is listed and its neighbours are written.
    let bulk = rig.bulk(&pairs(["j", "k", "l"], "two")).await;
    assert_eq!(bulk.status, 200);
    let expected = json!({"successful_key_count": 2, "unsuccessful_keys": ["k"]});
    assert_eq!(bulk.json()["result"], expected);
    assert_eq!(rig.value("k").as_deref(), Some("one"));

    // A refused write does not begin a second of its own; a delete does.
    clock.advance(Duration::from_millis(1));
    assert_eq!(
        send(rig.request(Method::DELETE, "/values/k")).await.status,
        200
    );
    assert_eq!(rig.put("k", "three").await.status, 429);
    let delete = send(
        rig.request(Method::POST, "/bulk/delete")
            .body(r#"["k","m"]"#),
    )
    .await;
    assert_eq!(delete.json()["result"]["unsuccessful_keys"], json!(["k"]));
    clock.advance(Duration::from_secs(1));
    assert_eq!(rig.put("k", "three").await.status, 200);
    assert_eq!(rig.store.statistics().counts.refused_by_key_interval, 4);
    rig.emulator.stop().await;
}

#[tokio::test]
async fn the_request_limit_is_counted_shown_and_enforced() {
    let clock = stopped_clock();
    let requests = Some(RequestLimit {
        quota: 3,
        window: Duration::from_secs(300),
    });
    let limits = Limits {
        requests,
        ..Limits::default()
    };
    let rig = Rig::with(Options {
        clock: clock.clone(),
        limits,
        ..Options::default()
    })
    .await;
    let ask = || send(rig.request(Method::GET, "/keys"));

    let first = ask().await;
    assert_eq!(first.header("ratelimit"), Some("\"default\";r=2;t=300"));
    assert_eq!(
        first.header("ratelimit-policy"),
        Some("\"default\";q=3;w=300")
    );
    assert_eq!(first.header("retry-after"), None);
    clock.advance(Duration::from_millis(10_500));
    // Refusals of the operation count, and carry the headers too.
    let second = send(rig.request(Method::GET, "/values/none")).await;
    assert_eq!(
        (second.status, second.header("ratelimit")),
        (404, Some("\"default\";r=1;t=290"))
    );
    // A wrong token's requests are not this token's.
    let url = format!(
        "{}/accounts/a/storage/kv/namespaces",
        rig.emulator.base_url()
    );
    assert_eq!(
        send(rig.http.get(url).bearer_auth("wrong")).await.status,
        403
    );
    assert_eq!(
        ask().await.header("ratelimit"),
        Some("\"default\";r=0;t=290")
    );

    // The next one blocks the token for the whole of the next five minutes.
    let blocked = ask().await;
    assert_eq!((blocked.status, blocked.codes()), (429, vec![971]));
    assert_eq!(blocked.header("retry-after"), Some("300"));
    clock.advance(Duration::from_millis(299_999));
    let blocked = rig.put("k", "v").await;
    assert_eq!(
        (blocked.status, blocked.header("retry-after")),
        (429, Some("1"))
    );
    assert_eq!(rig.value("k"), None);
    clock.advance(Duration::from_millis(1));
    assert_eq!(
        ask().await.header("ratelimit"),
        Some("\"default\";r=2;t=300")
    );
    assert_eq!(rig.store.statistics().counts.refused_by_request_limit, 2);
    rig.emulator.stop().await;
}

#[tokio::test]
async fn limits_can_be_switched_off() {
    let limits = Limits::without_rate_limits();
    let rig = Rig::with(Options {
        limits,
        ..Options::default()
    })
    .await;
    for value in ["one", "two"] {
        let reply = rig.put("k", value).await;
        assert_eq!((reply.status, reply.header("ratelimit")), (200, None));
    }
    assert_eq!(rig.value("k").as_deref(), Some("two"));
    rig.emulator.stop().await;
}

#[tokio::test]
async fn a_bulk_request_takes_ten_thousand_pairs_and_no_more() {
    let rig = Rig::new().await;
    let keys = |count: usize| (0..count).map(|n| format!("k{n}"));
    let full = rig.bulk(&pairs(keys(10_000), "v")).await;
    assert_eq!(full.json()["result"]["successful_key_count"], 10_000);
    let over = rig.bulk(&pairs(keys(10_001), "w")).await;
    assert_eq!((over.status, over.codes()), (400, vec![10012]));
    let message = over.json()["errors"][0]["message"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        message,
        "bulk put: 'received 10001 key/value pairs, but max allowed per request is: 10000'"
    );
    assert_eq!(rig.value("k0").as_deref(), Some("v"));

    let delete = async |count| {
        let names: Value = keys(count).collect();
        send(
            rig.request(Method::POST, "/bulk/delete")
                .body(names.to_string()),
        )
        .await
    };
    assert_eq!(delete(10_001).await.status, 400);
    rig.store.clock().advance(Duration::from_secs(1));
    assert_eq!(
        delete(10_000).await.json()["result"]["successful_key_count"],
        10_000
    );
    assert_eq!(rig.store.snapshot(NAMESPACE).len(), 0);
    rig.emulator.stop().await;
}

#[tokio::test]
async fn a_body_over_a_hundred_megabytes_is_refused_and_the_connection_lives_on() {
    let rig = Rig::new().await;
    let body_of = |bytes: usize| {
        let shell = r#"[{"key":"k","value":"v","base64":false}]"#;
        // Blanks after the array are part of the body, so the size can be met exactly.
        format!("{shell}{}", " ".repeat(bytes - shell.len()))
    };
    let over = send(rig.request(Method::PUT, "/bulk").body(body_of(100_000_001))).await;
    assert_eq!((over.status, over.codes()), (413, vec![10024]));
    assert_eq!(rig.value("k"), None);
    let full = send(rig.request(Method::PUT, "/bulk").body(body_of(100_000_000))).await;
    assert_eq!(full.status, 200, "{}", String::from_utf8_lossy(&full.body));
    assert_eq!(rig.value("k").as_deref(), Some("v"));
    rig.emulator.stop().await;
}

#[tokio::test]
async fn values_take_25_mebibytes_and_metadata_1024_bytes() {
    let rig = Rig::new().await;
    let limit = 26_214_400;
    assert_eq!(rig.put("k", &"v".repeat(limit)).await.status, 200);
    let over = rig.put("l", &"v".repeat(limit + 1)).await;
    assert_eq!((over.status, over.codes()), (413, vec![10024]));

    // Two bytes of base64 more than the value: the limit is for what is stored.
    let bulk = rig
        .bulk(&json!([{"key": "m", "value": "v".repeat(limit + 1)}]))
        .await;
    assert_eq!((bulk.status, bulk.codes()), (400, vec![10024]));

    let metadata =
        |bytes: usize| json!([{"key": "n", "value": "", "metadata": "m".repeat(bytes - 2)}]);
    assert_eq!(rig.bulk(&metadata(1_024)).await.status, 200);
    let over = rig.bulk(&metadata(1_025)).await;
    assert_eq!((over.status, over.codes()), (413, vec![10047]));
    let blanks = format!(
        r#"[{{"key":"o","value":"","metadata":[{}1]}}]"#,
        " ".repeat(2_000)
    );
    let blanks = send(rig.request(Method::PUT, "/bulk").body(blanks)).await;
    assert_eq!(blanks.status, 200, "blanks in the JSON are not metadata");
    assert_eq!(
        rig.store.get(NAMESPACE, "o").unwrap().metadata.as_deref(),
        Some("[1]")
    );
    rig.emulator.stop().await;
}

#[tokio::test]
async fn smaller_limits_hold_too() {
    let limits = Limits {
        key_bytes: 4,
        value_bytes: 5,
        body_bytes: 100,
        bulk_pairs: 2,
        namespaces: 1,
        ..Limits::default()
    };
    let rig = Rig::with(Options {
        limits,
        ..Options::default()
    })
    .await;
    assert_eq!(rig.put("12345", "v").await.status, 414);
    assert_eq!(rig.put("k", "123456").await.status, 413);
    assert_eq!(rig.bulk(&pairs(["a", "b", "c"], "v")).await.status, 400);
    assert_eq!(rig.put("k", &"v".repeat(101)).await.status, 413);
    let another = send(rig.namespaces(Method::POST, "").body(r#"{"title":"b"}"#)).await;
    assert_eq!((another.status, another.codes()), (400, vec![10018]));
    rig.emulator.stop().await;
}
