//! A Workers KV, or something in between, whose listings never end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::audit::Place;
use crate::support::process::Process;
use crate::support::wait;

/// Requests for pages that a listing in a circle may cost: a circle is known after a few, and each verb
/// tries four times.
const PAGES_MAX: usize = 40;

#[derive(Deserialize)]
struct Page {
    cursor: Option<String>,
}

/// Answers a page with names and with the cursor of the next one.
type Pages = fn(Option<&str>) -> (Vec<&'static str>, &'static str);

#[derive(Clone)]
struct Endless {
    pages: Pages,
    asked: Arc<AtomicUsize>,
}

/// A server that lists pages as told, for ever, and takes every write.
struct Server {
    base_url: String,
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(pages: Pages) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let endless = Endless {
            pages,
            asked: Arc::clone(&asked),
        };
        let keys = "/accounts/{account}/storage/kv/namespaces/{namespace}/keys";
        let app = Router::new()
            .route(keys, get(list))
            .fallback(write)
            .with_state(endless);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self {
            base_url,
            asked,
            task,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn list(State(endless): State<Endless>, Query(page): Query<Page>) -> Json<Value> {
    endless.asked.fetch_add(1, Ordering::Relaxed);
    let (names, cursor) = (endless.pages)(page.cursor.as_deref());
    let metadata = json!({ "pg2kv": "0123456789abcdef0123456789abcdef" });
    let listed = names
        .iter()
        .map(|name| json!({ "name": name, "metadata": metadata }));
    Json(json!({
        "success": true, "errors": [], "result": listed.collect::<Vec<_>>(),
        "result_info": { "count": names.len(), "cursor": cursor },
    }))
}

async fn write(request: Request) -> Json<Value> {
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await;
    let pairs: Vec<Value> = serde_json::from_slice(&body.unwrap()).unwrap_or_default();
    Json(json!({
        "success": true, "errors": [],
        "result": { "successful_key_count": pairs.len(), "unsuccessful_keys": [] },
    }))
}

/// Two pages with the same names, over and over.
fn names_in_a_circle(cursor: Option<&str>) -> (Vec<&'static str>, &'static str) {
    match cursor {
        Some("A") => (vec!["user:3", "user:4"], "B"),
        _ => (vec!["user:1", "user:2"], "A"),
    }
}

/// Two cursors without a name.
fn cursors_in_a_circle(cursor: Option<&str>) -> (Vec<&'static str>, &'static str) {
    match cursor {
        Some("A") => (vec![], "B"),
        _ => (vec![], "A"),
    }
}

fn no_names(_: Option<&str>) -> (Vec<&'static str>, &'static str) {
    (vec![], "")
}

const TABLES: &str = "create table public.users (id bigint primary key, plan text)";
const SYNCS: &str =
    "[sync.users]\ntable = \"public.users\"\nkey = \"user:{id}\"\ncolumns = [\"plan\"]\n";

#[tokio::test]
async fn a_listing_in_a_circle_ends_with_an_error() {
    let place = Place::new("attacks_listing", TABLES, SYNCS).await;
    for pages in [names_in_a_circle, cursors_in_a_circle] {
        let server = Server::start(pages).await;
        let base = ("PG2KV__KV__API_BASE_URL", server.base_url.as_str());
        let verify = place.command(&["verify"]).env(base.0, base.1).output();
        let verify = tokio::time::timeout(wait::DEADLINE, verify).await;
        let verify = verify.expect("the listing ends").unwrap();
        let told = String::from_utf8(verify.stderr).unwrap();
        assert!(told.contains("the listing does not advance"), "{told}");
        assert_eq!(verify.status.code(), Some(69), "{told}");
        let asked = server.asked.swap(0, Ordering::Relaxed);
        assert!(asked <= PAGES_MAX, "{asked} pages");
    }
}

#[tokio::test]
async fn a_daemon_says_that_its_listing_goes_in_a_circle() {
    let place = Place::new("attacks_listing", TABLES, SYNCS).await;
    // The first looks for names of other installations, and writes nothing before it has.
    for (pages, ends) in [
        (no_names as Pages, true),
        (names_in_a_circle, false),
        (cursors_in_a_circle, false),
    ] {
        let server = Server::start(pages).await;
        let daemon = Process::run_with(
            &place.config,
            &[("PG2KV__KV__API_BASE_URL", server.base_url.as_ref())],
        );
        daemon.leads().await;
        if !ends {
            // The names are listed once the rows are through.
            place.pg2kv(&["resync", "users", "--no-wait"]).await;
            daemon.logged("the listing does not advance").await;
        }
        // It goes on with changes, which wait for no listing.
        place.sql("insert into public.users values (1, 'a') on conflict (id) do update set plan = users.plan || 'a'").await;
        wait::until("the change", async || {
            let waits =
                "select (select count(*) from pg2kv.outbox) + (select count(*) from pg2kv.claim)";
            (place.number(waits).await == 0).then_some(())
        })
        .await;
        daemon.stop().await;
    }
}
