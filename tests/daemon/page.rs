//! The status page, as a person sees it in a browser.

use std::fs;
use std::path::{Path, PathBuf};

use pg2kv::emulator::faults::Fault;
use pg2kv::emulator::route::Operation;
use reqwest::{Method, StatusCode, header};
use serde_json::{Value, json};

use super::{PLAN, world};
use crate::support::node::Peers;
use crate::support::process::Process;
use crate::support::world::{Plan, World};

fn picture(name: &str) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("status");
    fs::create_dir_all(&directory).unwrap();
    directory.join(name)
}

fn texts(seen: &Value, what: &str) -> String {
    let lines = seen[what].as_array().unwrap().iter();
    let lines: Vec<&str> = lines.map(|line| line.as_str().unwrap()).collect();
    lines.join("\n")
}

/// Every field of the status stands in its reference.
async fn documented(daemon: &Process) {
    let (_, text) = daemon.get("/api/status").await;
    let reference = include_str!("../../deploy/status.md");
    let status: Value = serde_json::from_str(&text).unwrap();
    let mut fields = Vec::new();
    paths("", &status, &mut fields);
    assert!(fields.len() > 20, "{text}");
    for field in fields {
        assert!(reference.contains(&format!("\n| `{field}` | ")), "{field}");
    }
}

fn paths(at: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = match at {
                    "" => name.clone(),
                    at => format!("{at}.{name}"),
                };
                found.push(path.clone());
                paths(&path, member, found);
            }
        }
        Value::Array(elements) => {
            for element in elements {
                paths(&format!("{at}[]"), element, found);
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn the_page_tells_how_it_is() {
    let world = world().await;
    let leader = world.daemon();
    leader.leads().await;
    let standby = world.daemon_with("standby", &world.settings());
    standby.logged("another process leads").await;
    world
        .sql("insert into public.note select n, 'text' from generate_series(1, 1000) n")
        .await;
    world.converges().await;

    let profile = tempfile::tempdir().unwrap();
    let browser = json!({ "profile": profile.path() });
    let mut browser = Peers::installed().serve("status.mjs", &browser).await;

    // Fresh.
    let fresh = json!({
        "open": leader.url("/").await, "until": "KV says what Postgres says",
        "screenshot": picture("fresh.png"),
    });
    let seen = browser.ask(&fresh).await;
    assert!(seen["who"].as_str().unwrap().contains("leading, epoch 1"));
    assert_eq!(texts(&seen, "troubles"), "");
    assert!(texts(&seen, "syncs").contains("flowing"), "{seen}");
    assert!(texts(&seen, "syncs").contains("1,000"), "{seen}");
    assert_eq!(seen["links"], json!(["JSON", "Metrics", "Readiness"]));
    assert_eq!(seen["overflows"], false);

    // A row that cannot be written: work for a person, but nothing is in the way.
    world
        .sql("insert into public.doc values ('..', '<script>alert(1)</script>')")
        .await;
    leader.logged("went to pg2kv.dead_letter").await;

    // Incident: the token does not serve any more.
    world.kv.set_token(Some("another-token".to_owned()));
    world
        .sql("update public.note set text = 'new' where id <= 200")
        .await;
    let incident = json!({ "until": "in the way", "screenshot": picture("incident.png") });
    let seen = browser.ask(&incident).await;
    assert!(texts(&seen, "troubles").contains("Nothing is sent to KV"));
    assert!(
        texts(&seen, "hints").contains("kv.api_token_file"),
        "{seen}"
    );
    assert!(texts(&seen, "syncs").contains("blocked"), "{seen}");
    assert!(texts(&seen, "recent").contains("dead letters"), "{seen}");
    documented(&leader).await;
    let narrow = json!({ "width": 360, "scheme": "dark", "screenshot": picture("narrow.png") });
    let seen = browser.ask(&narrow).await;
    assert_eq!(seen["overflows"], false, "{seen}");

    // It heals while the page watches, and the page was never loaded again.
    let slow = Fault::status(503)
        .on_operation(Operation::BulkWrite)
        .times(1);
    world.kv.faults().add(slow).unwrap();
    world.set_token("another-token");
    let healed = json!({
        "width": 1000, "scheme": "light", "until": "KV says what Postgres says",
        "trouble": "1 key cannot be written",
    });
    let seen = browser.ask(&healed).await;
    assert!(
        !texts(&seen, "troubles").contains("Nothing is sent"),
        "{seen}"
    );
    assert!(
        texts(&seen, "recent").contains("nothing was sent to KV"),
        "{seen}"
    );

    // Standby.
    let other = json!({
        "open": standby.url("/").await, "until": "Standing by",
        "screenshot": picture("standby.png"),
    });
    let seen = browser.ask(&other).await;
    assert_eq!(texts(&seen, "syncs"), "");
    // Of the whole time.
    assert_eq!(seen["complaints"], json!([]));
    assert_eq!(seen["elsewhere"], json!([]));
    browser.stop().await;
    leader.stop().await;
    standby.stop().await;
}

#[tokio::test]
async fn the_page_shows_a_backfill() {
    // Four requests at a time are far from all rows, so the walk stands in their midst.
    let plan = Plan {
        settings: &[("backfill.chunk", "100")],
        ..PLAN
    };
    let world = World::start(plan).await;
    let daemon = world.daemon();
    daemon.leads().await;
    let profile = tempfile::tempdir().unwrap();
    let browser = json!({ "profile": profile.path() });
    let mut browser = Peers::installed().serve("status.mjs", &browser).await;
    world
        .sql(
            "insert into public.note select n, 'text' from generate_series(1, 20000) n;
             analyze public.note",
        )
        .await;
    world.converges().await;
    // Missed by the triggers, so that the walk has something to write, and KV fails.
    let hold = Fault::status(503).on_operation(Operation::BulkWrite);
    world.kv.faults().add(hold).unwrap();
    world
        .sql(
            "begin; alter table public.note disable trigger user;
             update public.note set text = 'new';
             alter table public.note enable always trigger zzz_pg2kv_note_row,
               enable always trigger zzz_pg2kv_note_update,
               enable always trigger zzz_pg2kv_note_truncate; commit;
             select pg2kv.resync('note')",
        )
        .await;
    let open = json!({
        "open": daemon.url("/").await, "until": "in the way",
        "screenshot": picture("backfill.png"),
    });
    let seen = browser.ask(&open).await;
    assert!(texts(&seen, "syncs").contains("of about 20,000"), "{seen}");
    documented(&daemon).await;
    world.kv.faults().clear();
    let done = json!({ "until": "KV says what Postgres says" });
    browser.ask(&done).await;
    browser.stop().await;
    daemon.stop().await;
}

#[tokio::test]
async fn pages_answer_to_our_names_and_to_get_only() {
    let world = world().await;
    let daemon = world.daemon();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for path in ["/", "/page/page.js", "/api/status", "/api/events"] {
        let url = daemon.url(path).await;
        let foreign = client.get(&url).header(header::HOST, "evil.example");
        let reply = foreign.send().await.unwrap();
        assert_eq!(reply.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
        for method in [Method::POST, Method::PUT, Method::DELETE] {
            let reply = client.request(method, &url).send().await.unwrap();
            assert_eq!(reply.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        }
    }
    let page = client.get(daemon.url("/").await).send().await.unwrap();
    let policy = page.headers()[header::CONTENT_SECURITY_POLICY].to_str();
    assert!(policy.unwrap().starts_with("default-src 'none';"));
    daemon.stop().await;
}
