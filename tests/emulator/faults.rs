//! Scripted faults, as the client sees them and as the store knows better.

use std::time::{Duration, Instant};

use pg2kv::emulator::faults::{Effect, Fault, Matcher, PartialReply, Reply as Answer, StatusReply};
use pg2kv::emulator::limits::Limits;
use pg2kv::emulator::record::Subscription;
use pg2kv::emulator::route::Operation;
use pg2kv::emulator::{Options, record::Applied};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{DEADLINE, NAMESPACE, Rig, pairs, send, try_send};

/// How much later a late write lands.
const LATE: Duration = Duration::from_millis(2_000);
/// Long enough for a reply to come over loopback, short enough to wait for one that must not come.
const PATIENCE: Duration = Duration::from_millis(1_000);

async fn unlimited() -> Rig {
    Rig::with(Options {
        limits: Limits::without_rate_limits(),
        ..Options::default()
    })
    .await
}

async fn next(watched: &mut Subscription) -> Applied {
    timeout(DEADLINE, watched.next()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_status_takes_no_effect_and_is_used_up() {
    let rig = Rig::new().await;
    let scripted = StatusReply {
        status: 429,
        retry_after: Some(7),
        ..StatusReply::default()
    };
    rig.store
        .faults()
        .add(Fault::new(Answer::Status(scripted)).times(1))
        .unwrap();
    rig.store
        .faults()
        .add(Fault::status(503).after(1).times(1))
        .unwrap();
    let html = StatusReply {
        status: 502,
        body: Some("<html>".to_owned()),
        content_type: Some("text/html".to_owned()),
        retry_after: None,
    };
    rig.store
        .faults()
        .add(Fault::new(Answer::Status(html)).after(1).times(1))
        .unwrap();

    let first = rig.put("k", "v").await;
    assert_eq!((first.status, first.codes()), (429, vec![971]));
    assert_eq!(first.header("retry-after"), Some("7"));
    assert!(first.header("ratelimit").is_some());
    assert_eq!(rig.value("k"), None);
    // The second passes both remaining faults, each of which lets one pass.
    assert_eq!(rig.put("k", "v").await.status, 200);
    let third = rig.put("l", "v").await;
    assert_eq!((third.status, third.codes()), (503, vec![10001]));
    let fourth = rig.put("m", "v").await;
    assert_eq!(
        (fourth.status, fourth.header("content-type")),
        (502, Some("text/html"))
    );
    assert_eq!(rig.put("n", "v").await.status, 200);
    let met: Vec<u64> = rig
        .store
        .faults()
        .list()
        .iter()
        .map(|fault| fault.met)
        .collect();
    assert_eq!(met, [1, 1, 1]);
    rig.emulator.stop().await;
}

#[tokio::test]
async fn replies_that_do_not_parse() {
    let rig = unlimited().await;
    for (answer, status) in [
        (Answer::Garbage, 200),
        (Answer::EdgeTimeout, 524),
        (
            Answer::Redirect {
                location: "https://example.com/".to_owned(),
            },
            307,
        ),
    ] {
        rig.store
            .faults()
            .add(Fault::new(answer.clone()).times(1))
            .unwrap();
        let reply = rig.put("k", "v").await;
        assert_eq!(reply.status, status, "{answer:?}");
        assert!(
            serde_json::from_slice::<Value>(&reply.body).is_err(),
            "{answer:?}"
        );
        assert_eq!(rig.value("k"), None, "{answer:?}");
    }
    rig.store
        .faults()
        .add(Fault::new(Answer::SuccessFalse).times(1))
        .unwrap();
    let reply = rig.put("k", "v").await;
    assert_eq!(
        (reply.status, &reply.json()["success"]),
        (200, &json!(false))
    );

    rig.store
        .faults()
        .add(Fault::new(Answer::Truncated).effect(Effect::Now).times(1))
        .unwrap();
    let request = rig
        .request(Method::PUT, "/values/k")
        .body("v")
        .timeout(DEADLINE);
    let truncated = request.send().await.unwrap();
    assert_eq!(truncated.status(), 200);
    assert!(
        truncated.bytes().await.is_err(),
        "the body ends before its length"
    );
    assert_eq!(rig.value("k").as_deref(), Some("v"));
    rig.emulator.stop().await;
}

#[tokio::test]
async fn a_delay_is_a_delay() {
    let rig = Rig::new().await;
    rig.store
        .faults()
        .add(Fault::delay(Duration::from_millis(120)).times(1))
        .unwrap();
    let began = Instant::now();
    assert_eq!(rig.put("k", "v").await.status, 200);
    assert!(began.elapsed() >= Duration::from_millis(120));
    rig.emulator.stop().await;
}

#[tokio::test]
async fn applied_but_never_answered() {
    let rig = Rig::with(Options {
        record_history: 10,
        ..Options::default()
    })
    .await;
    let mut watched = rig.store.subscribe();
    let id = rig.store.faults().add(Fault::apply_then_hang()).unwrap();
    let request = rig
        .request(Method::PUT, "/values/k")
        .body("v")
        .timeout(PATIENCE);
    let error = request.send().await.unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(&*next(&mut watched).await.key, "k");
    assert_eq!(rig.value("k").as_deref(), Some("v"));
    let record = &rig.store.requests()[0];
    assert_eq!(
        (record.fault, record.status, record.replied_unix_micros),
        (Some(id), None, None)
    );

    // A client that still waits does not keep the emulator from stopping.
    let hanging = tokio::spawn(try_send(rig.request(Method::PUT, "/values/l").body("v")));
    next(&mut watched).await;
    timeout(DEADLINE, rig.emulator.stop()).await.unwrap();
    assert!(hanging.await.unwrap().is_err());
}

#[tokio::test]
async fn a_late_write_lands_over_a_newer_one() {
    for late in [
        Fault::hang_then_apply(LATE),
        Fault::status(500).effect(Effect::AfterMs(2_000)),
    ] {
        // With the limit on: a late write was accepted before and is not refused when it lands.
        let rig = Rig::with(Options {
            record_history: 10,
            ..Options::default()
        })
        .await;
        let mut watched = rig.store.subscribe();
        rig.store.faults().add(late.times(1)).unwrap();
        let old = rig
            .request(Method::PUT, "/bulk")
            .body(pairs(["k"], "old").to_string());
        match old.timeout(PATIENCE).send().await {
            Ok(reply) => assert_eq!(reply.status(), 500),
            Err(error) => assert!(error.is_timeout(), "{error}"),
        }
        assert_eq!(rig.put("k", "new").await.status, 200);
        assert_eq!(rig.value("k").as_deref(), Some("new"));
        assert_eq!(next(&mut watched).await.request, 2);
        assert_eq!(next(&mut watched).await.request, 1);
        assert_eq!(rig.value("k").as_deref(), Some("old"));
        rig.emulator.stop().await;
    }
}

#[tokio::test]
async fn a_stopped_emulator_applies_nothing_late() {
    let rig = Rig::new().await;
    rig.store
        .faults()
        .add(Fault::status(500).effect(Effect::AfterMs(60_000)))
        .unwrap();
    assert_eq!(rig.put("k", "v").await.status, 500);
    let store = rig.store.clone();
    let mut watched = store.subscribe();
    rig.emulator.stop().await;
    // Once the late write is gone, so is the last holder of the emulator but this handle.
    drop((rig.store, store));
    assert_eq!(timeout(DEADLINE, watched.next()).await.unwrap(), None);
}

#[tokio::test]
async fn a_reset_is_a_reset() {
    let rig = unlimited().await;
    for (effect, value) in [(Effect::Never, None), (Effect::Now, Some("v"))] {
        rig.store
            .faults()
            .add(Fault::new(Answer::Reset).effect(effect).times(1))
            .unwrap();
        let error = try_send(rig.request(Method::PUT, "/values/k").body("v"))
            .await
            .unwrap_err();
        let mut causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
            error.source()
        });
        let reset = causes.any(|cause| {
            cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        });
        assert!(reset, "{error:?}");
        assert_eq!(rig.value("k").as_deref(), value);
    }
    rig.emulator.stop().await;
}

#[tokio::test]
async fn a_partial_reply_lists_a_share_of_the_keys() {
    let rig = unlimited().await;
    let keys: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
    for (fault, written, left) in [
        (Fault::partial(0.35), false, 6),
        (Fault::partial_but_written(0.35), true, 10),
    ] {
        let fault = fault.on_operation(Operation::BulkWrite).times(1);
        rig.store.faults().add(fault).unwrap();
        let reply = rig.bulk(&pairs(keys.clone(), "v")).await.json();
        assert_eq!(reply["success"], true);
        assert_eq!(reply["result"]["successful_key_count"], 6);
        let listed = reply["result"]["unsuccessful_keys"]
            .as_array()
            .unwrap()
            .clone();
        assert_eq!(listed.len(), 4);
        assert_eq!(rig.store.snapshot(NAMESPACE).len(), left);
        for key in listed {
            assert_eq!(rig.value(key.as_str().unwrap()).is_some(), written);
        }
        let emptied = rig
            .request(Method::DELETE, "/bulk")
            .body(json!(keys).to_string());
        assert_eq!(
            send(emptied).await.json()["result"]["successful_key_count"],
            10
        );
    }

    // Some keys by name, and the result on an error status.
    let partial = PartialReply {
        share: 1.0,
        written: false,
        status: 400,
    };
    let fault = Fault::new(Answer::Partial(partial))
        .on_key_prefix("k9")
        .times(1);
    rig.store.faults().add(fault).unwrap();
    let other = rig.bulk(&pairs(["a"], "v")).await;
    assert_eq!(other.status, 200, "no key begins with k9");
    let reply = rig.bulk(&pairs(keys, "v")).await;
    assert_eq!(
        (reply.status, &reply.json()["success"]),
        (400, &json!(false))
    );
    assert_eq!(reply.json()["result"]["unsuccessful_keys"], json!(["k9"]));
    assert_eq!(rig.store.snapshot(NAMESPACE).len(), 10);
    rig.emulator.stop().await;
}

#[tokio::test]
async fn a_matcher_chooses_by_method_path_operation_key_and_chance() {
    let rig = unlimited().await;
    let meets = async |matcher: Matcher| {
        rig.store.faults().clear();
        rig.store
            .faults()
            .add(Fault::status(599).on(matcher))
            .unwrap();
        let statuses = [
            rig.put("user:1", "v").await.status,
            send(rig.request(Method::GET, "/values/user:1"))
                .await
                .status,
            rig.bulk(&pairs(["other", "user:2"], "v")).await.status,
            send(
                rig.request(Method::POST, "/bulk/delete")
                    .body(r#"["user:3"]"#),
            )
            .await
            .status,
            send(
                rig.request(Method::POST, "/bulk/get")
                    .body(r#"{"keys":["o"]}"#),
            )
            .await
            .status,
        ];
        statuses.map(|status| status == 599)
    };
    let any = Matcher::default;
    let method = Matcher {
        method: Some("PUT".to_owned()),
        ..any()
    };
    assert_eq!(meets(method).await, [true, false, true, false, false]);
    let path = Matcher {
        path: Some("/bulk".to_owned()),
        ..any()
    };
    assert_eq!(meets(path).await, [false, false, true, true, true]);
    let operation = Matcher {
        operation: Some(Operation::ReadValue),
        ..any()
    };
    assert_eq!(meets(operation).await, [false, true, false, false, false]);
    let prefix = |text: &str| Matcher {
        key_prefix: Some(text.to_owned()),
        ..any()
    };
    assert_eq!(
        meets(prefix("user:")).await,
        [true, true, true, true, false]
    );
    assert_eq!(
        meets(prefix("user:2")).await,
        [false, false, true, false, false]
    );
    let never = Matcher {
        probability: Some(0.0),
        ..any()
    };
    assert_eq!(meets(never).await, [false; 5]);
    let chance = |seed| Matcher {
        probability: Some(0.5),
        seed,
        ..any()
    };
    let drawn = meets(chance(1)).await;
    assert_eq!(
        meets(chance(1)).await,
        drawn,
        "the same seed meets the same requests"
    );
    let mut others = Vec::new();
    for seed in 2..10 {
        others.push(meets(chance(seed)).await);
    }
    assert!(
        others.iter().any(|other| *other != drawn),
        "other seeds meet others"
    );
    rig.emulator.stop().await;
}

#[tokio::test]
async fn faults_are_scripted_over_http() {
    let rig = unlimited().await;
    let script = json!([
        {"match": {"operation": "write_value"}, "count": 1, "reply": {"status": {"status": 503}}},
        {"match": {"key_prefix": "k"}, "effect": {"after_ms": 0}, "reply": "edge_timeout"},
    ]);
    let add =
        async |body: &str| send(rig.control(Method::POST, "/faults").body(body.to_owned())).await;
    assert_eq!(
        add(&script.to_string()).await.json(),
        json!({"ids": [1, 2]})
    );
    assert_eq!(
        add(r#"{"reply": "reset", "skip": 9}"#).await.json(),
        json!({"ids": [3]})
    );
    for (wrong, why) in [
        (r#"{"reply": "sing"}"#, "unknown variant `sing`"),
        (r#"{"repyl": "hang"}"#, "unknown field `repyl`"),
        (
            r#"{"reply": "served", "effect": "never"}"#,
            "need the effect `now`",
        ),
        (
            r#"{"reply": {"partial": {"share": 2}}}"#,
            "`share` must be from 0 to 1",
        ),
        (
            r#"{"reply": {"status": {"status": 99}}}"#,
            "`status` must be",
        ),
        (
            r#"{"reply": "hang", "match": {"probability": -1}}"#,
            "`probability` must be",
        ),
        (
            r#"[{"reply": "hang"}, {"reply": "served", "effect": "never"}]"#,
            "need the effect",
        ),
    ] {
        let refused = add(wrong).await;
        let text = String::from_utf8(refused.body).unwrap();
        assert!(
            refused.status == 400 && text.contains(why),
            "{wrong}: {text}"
        );
    }
    assert_eq!(rig.put("k", "v").await.status, 503);
    let mut watched = rig.store.subscribe();
    assert_eq!(rig.put("k", "v").await.status, 524);
    assert_eq!(&*next(&mut watched).await.key, "k");

    let listed = send(rig.control(Method::GET, "/faults")).await.json();
    assert_eq!(listed[0]["met"], 1);
    assert_eq!(listed[1]["fault"]["effect"]["after_ms"], 0);
    assert_eq!(
        listed.as_array().unwrap().len(),
        3,
        "a refused script adds none of its faults"
    );
    assert_eq!(
        send(rig.control(Method::DELETE, "/faults/2")).await.status,
        204
    );
    assert_eq!(
        send(rig.control(Method::DELETE, "/faults/2")).await.status,
        404
    );
    assert_eq!(rig.put("k", "v").await.status, 200);
    assert_eq!(
        send(rig.control(Method::DELETE, "/faults")).await.status,
        204
    );
    assert!(rig.store.faults().list().is_empty());
    rig.emulator.stop().await;
}
