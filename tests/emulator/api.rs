//! Operations, credentials, and what the store shows of them.

use std::time::Duration;

use pg2kv::emulator::Options;
use pg2kv::emulator::clock::Clock;
use pg2kv::emulator::record::{Op, value_hash};
use reqwest::Method;
use serde_json::json;

use super::{ACCOUNT, NAMESPACE, Rig, TOKEN, pairs, send};

#[tokio::test]
async fn credentials_are_checked_as_the_api_checks_them() {
    let rig = Rig::new().await;
    let url = format!(
        "{}/accounts/{ACCOUNT}/storage/kv/namespaces/{NAMESPACE}/keys",
        rig.emulator.base_url()
    );
    let ask = |headers: &[(&str, &str)]| {
        let request = rig.http.get(&url);
        headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        })
    };
    let good = format!("Bearer {TOKEN}");
    for (headers, status, code) in [
        (&[][..], 400, Some(9106)),
        (&[("authorization", TOKEN)][..], 400, Some(6003)),
        (
            &[("authorization", "Bearer two words")][..],
            400,
            Some(6003),
        ),
        (&[("authorization", "Bearer another")][..], 403, Some(10000)),
        (&[("authorization", good.as_str())][..], 200, None),
        (&[("x-auth-key", TOKEN)][..], 400, Some(9106)),
        (
            &[("x-auth-key", TOKEN), ("x-auth-email", "a@example.com")][..],
            200,
            None,
        ),
        (
            &[("x-auth-key", "other"), ("x-auth-email", "a@example.com")][..],
            403,
            Some(10000),
        ),
    ] {
        let reply = send(ask(headers)).await;
        assert_eq!(
            (reply.status, reply.codes().first().copied()),
            (status, code),
            "{headers:?}"
        );
    }

    let verified = send(rig.root(Method::GET, "/user/tokens/verify")).await;
    assert_eq!(verified.json()["result"]["status"], "active");
    let changed = send(
        rig.control(Method::PUT, "/token")
            .body(r#"{"token": "new"}"#),
    )
    .await;
    assert_eq!(changed.status, 204);
    let refused = send(rig.root(Method::GET, "/user/tokens/verify")).await;
    assert_eq!((refused.status, refused.codes()), (401, vec![1000]));
    let refused = send(rig.request(Method::GET, "/keys")).await;
    assert_eq!((refused.status, refused.codes()), (403, vec![10000]));
    rig.store.set_token(None);
    assert_eq!(send(rig.http.get(&url)).await.status, 200);
    rig.emulator.stop().await;
}

#[tokio::test]
async fn another_account_and_unknown_paths_are_refused() {
    let rig = Rig::new().await;
    let other = rig.root(Method::GET, "/accounts/another/storage/kv/namespaces");
    let other = send(other).await;
    assert_eq!((other.status, other.codes()), (403, vec![10000]));
    for path in [
        "/zones",
        "/accounts/",
        "/accounts/a/storage/kv",
        "/accounts/a/storage/kv/other",
    ] {
        let unknown = send(rig.root(Method::GET, path)).await;
        assert_eq!(
            (unknown.status, unknown.codes()),
            (404, vec![7003]),
            "{path}"
        );
    }
    let accountless = send(rig.root(Method::GET, "/storage/kv/namespaces")).await;
    assert_eq!(accountless.codes(), [7003]);
    let message = accountless.json()["errors"][0]["message"].to_string();
    assert!(
        message.contains("begins with /accounts/ACCOUNT_ID"),
        "{message}"
    );
    let listed = send(rig.root(Method::GET, "/accounts?page=1")).await;
    assert_eq!(listed.json()["result"][0]["id"], ACCOUNT);
    let listed = send(rig.root(Method::GET, "/memberships?page=1")).await;
    assert_eq!(listed.json()["result"][0]["account"]["id"], ACCOUNT);
    rig.emulator.stop().await;
}

#[tokio::test]
async fn namespaces_are_listed_in_pages_and_orders() {
    let rig = Rig::new().await;
    for title in ["c", "b", "d"] {
        let made = send(
            rig.namespaces(Method::POST, "")
                .body(json!({ "title": title }).to_string()),
        )
        .await;
        assert_eq!(made.json()["result"]["title"], title);
    }
    let page = send(rig.namespaces(Method::GET, "?order=title&per_page=3&page=1"))
        .await
        .json();
    let titles: Vec<_> = page["result"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["title"])
        .collect();
    assert_eq!(titles, ["KV", "b", "c"]);
    assert_eq!(page["result_info"]["total_count"], 4);
    assert_eq!(page["result_info"]["total_pages"], 2);
    let page = send(rig.namespaces(Method::GET, "?order=title&per_page=3&page=2"))
        .await
        .json();
    assert_eq!(page["result"][0]["title"], "d");
    let page = send(rig.namespaces(Method::GET, "?order=title&direction=desc"))
        .await
        .json();
    assert_eq!(page["result"][0]["title"], "d");
    for (query, code) in [
        ("?page=0", 10007),
        ("?per_page=x", 10008),
        ("?order=size", 10043),
        ("?direction=up", 10044),
    ] {
        let refused = send(rig.namespaces(Method::GET, query)).await;
        assert_eq!(
            (refused.status, refused.codes()),
            (400, vec![code]),
            "{query}"
        );
    }
    rig.emulator.stop().await;
}

#[tokio::test]
async fn an_expired_pair_is_gone_everywhere() {
    let clock = Clock::stopped_at(Duration::from_secs(1_800_000_000));
    let rig = Rig::with(Options {
        clock: clock.clone(),
        ..Options::default()
    })
    .await;
    let written = rig
        .bulk(&json!([
            {"key": "ttl", "value": "a", "expiration_ttl": 60},
            {"key": "both", "value": "b", "expiration_ttl": 60, "expiration": 1_800_009_999},
            {"key": "moment", "value": "c", "expiration": 1_800_000_120},
            {"key": "never", "value": "d"},
        ]))
        .await;
    assert_eq!(written.json()["result"]["successful_key_count"], 4);
    let read = send(rig.request(Method::GET, "/values/moment")).await;
    assert_eq!(read.header("expiration"), Some("1800000120"));

    clock.advance(Duration::from_secs(59));
    assert_eq!(rig.store.snapshot(NAMESPACE).len(), 4);
    clock.advance(Duration::from_secs(1));
    let left: Vec<_> = rig.store.snapshot(NAMESPACE).into_keys().collect();
    assert_eq!(left, ["moment", "never"]);
    assert_eq!(
        send(rig.request(Method::GET, "/values/ttl")).await.status,
        404
    );

    // Writing without an expiration makes it last; deleting and writing again does too.
    assert_eq!(rig.put("moment", "e").await.status, 200);
    clock.advance(Duration::from_secs(3_600));
    assert_eq!(rig.value("moment").as_deref(), Some("e"));
    let listed = send(rig.request(Method::GET, "/keys")).await.json();
    assert_eq!(
        listed["result"],
        json!([{"name": "moment"}, {"name": "never"}])
    );
    rig.emulator.stop().await;
}

#[tokio::test]
async fn history_and_subscription_show_each_write_once_and_in_order() {
    let rig = Rig::with(Options {
        record_history: 3,
        ..Options::default()
    })
    .await;
    let mut watched = rig.store.subscribe();
    let before = std::time::Instant::now();
    rig.bulk(&pairs(["a", "b"], "one")).await;
    let deleted = rig
        .request(Method::POST, "/bulk/delete")
        .body(r#"["c", "d"]"#);
    assert_eq!(
        send(deleted).await.json()["result"]["successful_key_count"],
        2
    );

    let mut seen = Vec::new();
    for _ in 0..4 {
        let applied = watched.next().await.unwrap();
        assert!(applied.at >= before && applied.at <= std::time::Instant::now());
        seen.push(applied);
    }
    let put = Op::Put {
        hash: value_hash(b"one"),
        bytes: 3,
    };
    let expected = [
        (1, "a", put, 1),
        (2, "b", put, 1),
        (3, "c", Op::Delete, 2),
        (4, "d", Op::Delete, 2),
    ];
    for (applied, (seq, key, op, request)) in seen.iter().zip(expected) {
        assert_eq!((applied.seq, &*applied.key, applied.op), (seq, key, op));
        assert_eq!((applied.request, &*applied.namespace), (request, NAMESPACE));
    }

    // Three are kept, and the oldest was forgotten.
    assert_eq!(rig.store.history(), seen[1..]);
    let page = send(rig.control(Method::GET, "/history?since=2&limit=1"))
        .await
        .json();
    assert_eq!((&page["last"], &page["forgotten"]), (&json!(4), &json!(1)));
    assert_eq!(page["entries"].as_array().unwrap().len(), 1);
    assert_eq!(page["entries"][0]["seq"], 3);
    assert_eq!(page["entries"][0]["op"], "delete");
    let requests = send(rig.control(Method::GET, "/requests?since=1"))
        .await
        .json();
    assert_eq!(requests["entries"][0]["operation"], "bulk_delete");
    assert_eq!(requests["entries"][0]["status"], 200);
    let stats = send(rig.control(Method::GET, "/stats")).await.json();
    assert_eq!(
        (&stats["requests"], &stats["applied"]),
        (&json!(2), &json!(4))
    );
    assert_eq!(stats["pairs"][NAMESPACE], 2);
    rig.emulator.stop().await;
    assert_eq!(
        rig.store.snapshot(NAMESPACE).len(),
        2,
        "the handle outlives the emulator"
    );
}

#[tokio::test]
async fn a_dump_shows_text_bytes_metadata_and_expiration() {
    let rig = Rig::new().await;
    rig.bulk(&json!([
        {"key": "text", "value": "é", "metadata": {"a": 1}, "expiration": 4_000_000_000_u64},
        {"key": "bytes", "value": "/wA=", "base64": true},
    ]))
    .await;
    let dump = send(rig.control(Method::GET, &format!("/dump/{NAMESPACE}")))
        .await
        .json();
    let expected = json!({
        "bytes": {"base64": "/wA="},
        "text": {"value": "é", "metadata": {"a": 1}, "expiration": 4_000_000_000_u64},
    });
    assert_eq!(dump, expected);
    let missing = send(rig.control(Method::GET, "/dump/ffffffffffffffffffffffffffffffff")).await;
    assert_eq!(missing.status, 404);
    rig.emulator.stop().await;
}

#[tokio::test]
async fn a_namespace_id_that_workers_kv_would_not_give_is_refused_at_start() {
    let rig = Rig::new().await;
    let error = rig.store.create_namespace("production").unwrap_err();
    assert!(
        error.to_string().contains("32 hexadecimal digits"),
        "{error}"
    );
    rig.store
        .create_namespace("ffffffffffffffffffffffffffffffff")
        .unwrap();
    let listed = send(rig.namespaces(Method::GET, "")).await.json();
    assert_eq!(listed["result_info"]["total_count"], 2);
    rig.emulator.stop().await;
}
