//! A backlog far beyond what a process may hold: one UPDATE of a whole table while no daemon runs.
//!
//! `PG2KV_BACKLOG_ROWS` makes the table larger, and `PG2KV_BINARY` names another build of the daemon.
//! The daemon is on its own here: KV is another process, so what the kernel says of its memory is
//! about it alone.

use std::fs;
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};

use super::NOTES;
use crate::support::kv::KvProcess;
use crate::support::process::Process;
use crate::support::wait::{self, DEADLINE, say};
use crate::support::world::{ACCOUNT, NAMESPACE, TOKEN, World};

/// What the process may have resident at any moment.
const RESIDENT_MAX_KIB: u64 = 128 * 1024;
/// Rows of the ordinary run.
const ROWS: usize = 100_000;
/// Rows have one of so many contents: few enough to ask for each, more than one to tell mix-ups.
const CONTENTS: usize = 7;
/// How long a request to KV takes at the least, as over a real network: while KV is slower than
/// Postgres, the queue is full.
const REQUEST_MS: u64 = 500;

#[tokio::test]
async fn a_backlog_of_any_size_drains_in_little_memory() {
    let rows = std::env::var("PG2KV_BACKLOG_ROWS").map_or(ROWS, |text| text.parse().unwrap());
    let world = World::start(NOTES).await;
    let kv = Kv::start().await;
    let settings = world.default_settings(&kv.server.base_url);
    // A daemon walks the empty table, so the sync is known: what is to be seen is the outbox.
    let daemon = world.daemon_with("first", &settings);
    let unknown =
        "select count(*) from pg2kv.sync where backfilled_at is null or configured is null";
    wait::until("the empty table to be walked", async || {
        (world.number(unknown).await == 0).then_some(())
    })
    .await;
    daemon.stop().await;
    world
        .sql(&format!(
            "alter table public.note disable trigger zzz_pg2kv_note_row;
             insert into public.note select n, 'first' from generate_series(1, {rows}) n;
             alter table public.note enable always trigger zzz_pg2kv_note_row"
        ))
        .await;
    let began = Instant::now();
    let update = format!("update public.note set text = 'text ' || id % {CONTENTS}");
    world.sql(&update).await;
    let updated = began.elapsed();
    let size = world
        .number("select pg_database_size(current_database())")
        .await;
    say(&format!(
        "one UPDATE of {rows} rows took {:.1} s; the database has {} MiB",
        updated.as_secs_f64(),
        size / 1_048_576
    ));

    let daemon = world.daemon_with("backlog", &settings);
    let began = Instant::now();
    drained(&daemon, rows).await;
    world.quiet().await;
    let (took, resident) = (began.elapsed(), resident_max_kib(&daemon));
    say(&format!(
        "drained in {:.1} s, {:.0} rows/s; at most {} MiB resident",
        took.as_secs_f64(),
        rows as f64 / took.as_secs_f64(),
        resident / 1024
    ));
    assert!(resident < RESIDENT_MAX_KIB, "{resident} KiB were resident");
    kv.has_all(rows).await;
    daemon.stop().await;
}

/// Waits until every key was looked at. It may take as long as it likes, but not stand still.
async fn drained(daemon: &Process, rows: usize) {
    let mut look = tokio::time::interval(Duration::from_millis(250));
    let (mut before, mut moved, mut told) = (0.0, Instant::now(), 0.0);
    while before < rows as f64 {
        look.tick().await;
        let written = daemon.metric("pg2kv_pairs_written_total").await;
        let now = written.unwrap_or_default();
        if now > before {
            (before, moved) = (now, Instant::now());
        }
        assert!(moved.elapsed() < DEADLINE, "it stands still at {now} rows");
        if now >= told + 1_000_000.0 {
            told = now;
            let resident = resident_max_kib(daemon) / 1024;
            say(&format!("{now} rows, at most {resident} MiB resident"));
        }
    }
}

/// The most that a process had resident since it began, as the kernel knows it.
fn resident_max_kib(daemon: &Process) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

/// Workers KV in a process of its own.
struct Kv {
    server: KvProcess,
    http: Client,
}

impl Kv {
    async fn start() -> Self {
        let kv = Self {
            server: KvProcess::start(&["--no-limits"]).await,
            http: Client::builder().no_proxy().build().unwrap(),
        };
        kv.is_as_slow_as_the_real_one().await;
        kv
    }

    async fn is_as_slow_as_the_real_one(&self) {
        let mut url = reqwest::Url::parse(&self.server.base_url).unwrap();
        url.set_path("/__emulator/faults");
        let fault = json!({
            "match": { "operation": "bulk_write" },
            "delay_ms": REQUEST_MS, "effect": "now", "reply": "served",
        });
        let added = self.http.post(url).bearer_auth(TOKEN);
        let added = added.body(fault.to_string()).send();
        added.await.unwrap().error_for_status().unwrap();
    }

    /// Every row must be there under its key, and nothing else. Of each content one value is read;
    /// the others must have the same hash in their metadata.
    async fn has_all(&self, rows: usize) {
        let mut seen = vec![false; rows];
        let mut hashes = vec![None; CONTENTS];
        let mut cursor = String::new();
        loop {
            let page = self.get(&format!("keys?cursor={cursor}")).await;
            let page: Value = serde_json::from_str(&page).unwrap();
            for pair in page["result"].as_array().unwrap() {
                let name = pair["name"].as_str().unwrap();
                let id: usize = name.strip_prefix("note:").unwrap().parse().unwrap();
                assert!(!std::mem::replace(&mut seen[id - 1], true), "{name} twice");
                let content = &mut hashes[id % CONTENTS];
                if content.is_none() {
                    let value = self.get(&format!("values/{name}")).await;
                    let text = format!(r#"{{"text":"text {}"}}"#, id % CONTENTS);
                    assert_eq!(value, text, "{name}");
                    *content = Some(pair["metadata"].clone());
                }
                assert_eq!(content.as_ref(), Some(&pair["metadata"]), "{name}");
            }
            match page["result_info"]["cursor"].as_str() {
                Some("") | None => break,
                Some(next) => next.clone_into(&mut cursor),
            }
        }
        let missing = seen.iter().filter(|seen| !**seen).count();
        assert_eq!(missing, 0, "of {rows} rows");
    }

    async fn get(&self, path: &str) -> String {
        let base = &self.server.base_url;
        let url = format!("{base}/accounts/{ACCOUNT}/storage/kv/namespaces/{NAMESPACE}/{path}");
        let reply = self.http.get(url).bearer_auth(TOKEN).send().await.unwrap();
        reply.error_for_status().unwrap().text().await.unwrap()
    }
}
