//! What a person sees in a browser after a change in Postgres.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::Way;
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync};

const ADA: &str = "a3bb1896-7d54-4e42-8d0f-0c7f1c6d2a11";

/// The table of `deploy/sql/examples/users.sql`.
const PLAN: Plan = Plan {
    sql: "create table public.users (
            id uuid primary key default gen_random_uuid(),
            username text not null unique,
            email text not null,
            preview_features_enabled boolean not null default false,
            plan text not null default 'free',
            flags jsonb not null default '{}',
            updated_at timestamptz not null default now()
          );
          insert into public.users (id, username, email)
          values ('a3bb1896-7d54-4e42-8d0f-0c7f1c6d2a11', 'ada', 'ada@example.com')",
    syncs: &[Sync {
        name: "users",
        toml: "table = \"public.users\"\nkey = \"user:{id}\"\n\
               columns = [\"username\", \"plan\", \"flags\", \"preview_features_enabled\"]",
        namespace: NAMESPACE,
        oracle: "",
    }],
    settings: &[],
    limits: None,
};

#[tokio::test]
async fn the_page_follows_the_row() {
    let way = Way::start(PLAN).await;
    let pictures = Path::new(env!("CARGO_TARGET_TMPDIR")).join("worker");
    let profile = tempfile::tempdir().unwrap();
    let browser = json!({ "profile": profile.path() });
    let mut browser = way.peers.serve("browser.mjs", &browser).await;
    way.quiet().await;

    let url = way.edge.url(&format!("/?user={ADA}"));
    let seen = browser.ask(&json!({ "open": url })).await;
    let expected = json!({
        "status": 200, "plan": "free", "heading": "Welcome back, ada", "notice": null,
        "preview": false, "features": ["Dashboards"], "styled": true, "complaints": [],
    });
    assert_eq!(seen, expected);
    let picture = pictures.join("before.png");
    browser.ask(&json!({ "screenshot": picture })).await;

    // One reload after the change is proven written; it is not tried again.
    let began = Instant::now();
    let change = "update public.users set plan = 'pro', preview_features_enabled = true,
                  flags = '{\"beta\": true, \"slow\": false}'";
    way.world.sql(change).await;
    way.quiet().await;
    let seen = browser.ask(&json!({ "reload": true })).await;
    let took = began.elapsed();
    let expected = json!({
        "status": 200, "plan": "pro", "heading": "Welcome back, ada", "notice": null,
        "preview": true, "features": ["Dashboards", "Live queries", "beta"], "styled": true,
        "complaints": [],
    });
    assert_eq!(seen, expected);
    let picture = pictures.join("page.png");
    browser.ask(&json!({ "screenshot": picture })).await;
    let bytes = fs::read(&picture).unwrap();
    assert!(bytes.starts_with(b"\x89PNG"), "{}", picture.display());
    let shown = picture.strip_prefix(env!("CARGO_MANIFEST_DIR"));
    wait::say(&format!(
        "page: after the UPDATE and one reload Chromium {} shows \"pro\", {} ms; {}",
        browser.ready["version"].as_str().unwrap(),
        took.as_millis(),
        shown.unwrap_or(&picture).display()
    ));

    // Text from a row is text on the page, whatever it looks like.
    let name = "</h1><script>document.title = 1</script><img src=x onerror='alert(1)'>&amp;\"";
    let change = format!(
        "update public.users set username = $text${name}$text$, plan = '<b>',
         flags = '{{\"<i>\": true}}'"
    );
    way.world.sql(&change).await;
    way.quiet().await;
    let seen = browser.ask(&json!({ "reload": true })).await;
    assert_eq!(seen["heading"], format!("Welcome back, {name}"));
    assert_eq!(seen["plan"], "<b>");
    assert_eq!(
        seen["features"],
        json!(["Dashboards", "Live queries", "<i>"])
    );
    assert_eq!(seen["complaints"], json!([]));

    way.world.sql("delete from public.users").await;
    way.quiet().await;
    let seen = browser.ask(&json!({ "reload": true })).await;
    let expected = json!({
        "status": 200, "plan": "guest", "heading": "Welcome",
        "notice": "We do not know this user.", "preview": false, "features": ["Dashboards"],
        "styled": true, "complaints": [],
    });
    assert_eq!(seen, expected);
    let reply = way.edge.get(&format!("/config/{ADA}")).await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.text(), "{\"error\":\"there is no such user\"}\n");
    assert_eq!(way.edge.keys().await, Vec::<String>::new());

    browser.stop().await;
    way.stop().await;
}
