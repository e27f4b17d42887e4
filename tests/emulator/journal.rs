//! What outlives the process.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pg2kv::emulator::clock::Clock;
use pg2kv::emulator::{Emulator, Options};
use reqwest::Method;
use serde_json::json;

use super::{NAMESPACE, Rig, pairs, send};

fn in_directory(path: &Path, clock: &Clock) -> Options {
    Options {
        data_dir: Some(path.to_owned()),
        clock: clock.clone(),
        ..Options::default()
    }
}

#[tokio::test]
async fn pairs_and_namespaces_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Clock::stopped_at(Duration::from_secs(1_800_000_000));
    let rig = Rig::with(in_directory(directory.path(), &clock)).await;
    rig.bulk(&json!([
        {"key": "a", "value": "one", "metadata": {"b": [1, 2.50]}},
        {"key": "bytes", "value": "/wA=", "base64": true},
        {"key": "short", "value": "s", "expiration_ttl": 60},
        {"key": "long", "value": "l", "expiration_ttl": 600},
        {"key": "gone", "value": "g"},
        {"key": "line\nbreak", "value": "\u{2028}\n"},
    ]))
    .await;
    clock.advance(Duration::from_secs(1));
    assert_eq!(
        send(rig.request(Method::DELETE, "/values/gone"))
            .await
            .status,
        200
    );
    assert_eq!(rig.put("a", "two").await.status, 200);
    assert_eq!(
        rig.bulk(&json!([{"key": "b", "value": "", "metadata": {"c": "é"}}]))
            .await
            .status,
        200
    );
    let made = send(
        rig.namespaces(Method::POST, "")
            .body(r#"{"title":"second"}"#),
    )
    .await
    .json();
    let second = made["result"]["id"].as_str().unwrap().to_owned();
    let path = format!("/{second}");
    let renamed = send(
        rig.namespaces(Method::PUT, &path)
            .body(r#"{"title":"renamed"}"#),
    )
    .await;
    assert_eq!(renamed.json()["result"]["title"], "renamed");
    let removed = send(
        rig.namespaces(Method::POST, "")
            .body(r#"{"title":"third"}"#),
    )
    .await
    .json();
    let removed = format!("/{}", removed["result"]["id"].as_str().unwrap());
    assert_eq!(
        send(rig.namespaces(Method::DELETE, &removed)).await.status,
        200
    );
    let mut before = rig.store.snapshot(NAMESPACE);
    rig.emulator.stop().await;
    drop(rig.store);

    clock.advance(Duration::from_secs(60));
    let rig = Rig::with(in_directory(directory.path(), &clock)).await;
    before.remove("short");
    assert_eq!(rig.store.snapshot(NAMESPACE), before);
    let journal = fs::read_to_string(directory.path().join(format!("{NAMESPACE}.jsonl"))).unwrap();
    assert!(
        !journal.contains("\"short\""),
        "what has expired leaves the journal"
    );
    let listed = send(rig.namespaces(Method::GET, "?order=title"))
        .await
        .json();
    let titles: Vec<_> = listed["result"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| &n["title"])
        .collect();
    assert_eq!(titles, ["KV", "renamed"]);
    clock.advance(Duration::from_secs(600));
    assert_eq!(rig.value("long"), None, "what was loaded expires too");
    rig.emulator.stop().await;
}

#[tokio::test]
async fn a_line_cut_short_is_dropped_and_any_other_damage_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join(format!("{NAMESPACE}.jsonl"));
    let clock = Clock::running();
    let rig = Rig::with(in_directory(directory.path(), &clock)).await;
    rig.bulk(&pairs(["a", "b"], "v")).await;
    rig.emulator.stop().await;
    drop(rig.store);

    // As a process leaves it that was killed while it wrote the last line.
    let whole = fs::read(&journal).unwrap();
    fs::write(&journal, &whole[..whole.len() - 3]).unwrap();
    let rig = Rig::with(in_directory(directory.path(), &clock)).await;
    let left: Vec<_> = rig.store.snapshot(NAMESPACE).into_keys().collect();
    assert_eq!(left, ["a"]);
    assert_eq!(rig.put("c", "v").await.status, 200);
    rig.emulator.stop().await;
    drop(rig.store);

    let text = fs::read_to_string(&journal).unwrap();
    assert!(text.ends_with('\n'), "the cut line is gone from the file");
    fs::write(&journal, text.replacen("{\"put\"", "{\"pot\"", 1)).unwrap();
    let error = Emulator::start(in_directory(directory.path(), &clock))
        .await
        .err()
        .unwrap();
    assert!(error.to_string().contains(".jsonl, line 2:"), "{error}");
}

#[tokio::test]
async fn overwritten_pairs_leave_the_journal_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join(format!("{NAMESPACE}.jsonl"));
    let clock = Clock::stopped_at(Duration::from_secs(1_800_000_000));
    let rig = Rig::with(in_directory(directory.path(), &clock)).await;
    for value in ["one", "two", "three"] {
        assert_eq!(rig.put("k", value).await.status, 200);
        clock.advance(Duration::from_secs(1));
    }
    rig.emulator.stop().await;
    drop(rig.store);
    assert_eq!(fs::read_to_string(&journal).unwrap().lines().count(), 4);
    let rig = Rig::with(in_directory(directory.path(), &clock)).await;
    assert_eq!(fs::read_to_string(&journal).unwrap().lines().count(), 2);
    assert_eq!(rig.value("k").as_deref(), Some("three"));
    rig.emulator.stop().await;
}

#[tokio::test]
async fn two_emulators_do_not_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let rig = Rig::with(in_directory(directory.path(), &Clock::running())).await;
    let options = in_directory(directory.path(), &Clock::running());
    let error = Emulator::start(options.clone()).await.err().unwrap();
    assert!(
        error.to_string().contains("in use by another emulator"),
        "{error}"
    );
    rig.emulator.stop().await;
    drop(rig.store);
    Emulator::start(options).await.unwrap().stop().await;
}
