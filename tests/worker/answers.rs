//! What the Worker answers to whatever it is asked, and to whatever it finds in KV.

use reqwest::Method;
use serde_json::json;

use crate::support::node::Peers;
use crate::support::worker::{Edge, Reply};

const HASH: &str = "0123456789abcdef0123456789abcdef";
/// As pg2kv writes it: content hash, installation, sync.
const MARK: &str = "0123456789abcdef0123456789abcdef.0123456789ab.01234567";
const ADA: &str = r#"{"username":"ada","plan":"pro","preview_features_enabled":true,"flags":null}"#;

/// A KV that fails, in front of the Worker as it is.
const BROKEN_KV: &str = r#"
    import worker from "./script.mjs";
    const KV = {
      getWithMetadata(key) {
        const error = new Error("KV GET failed: 500 secret-of-the-inside");
        // The runtime throws what is wrong with a request, and rejects where the reply is.
        if (key.startsWith("user:")) throw error;
        return Promise.reject(error);
      },
    };
    export default { fetch: (request, env, context) => worker.fetch(request, { ...env, KV }, context) };
"#;

fn heading(reply: &Reply) -> &str {
    let (_, rest) = reply.text().split_once("<h1>").unwrap();
    rest.split_once("</h1>").unwrap().0
}

#[tokio::test]
async fn the_worker_has_an_answer_to_everything() {
    let edge = Edge::start(&Peers::installed()).await;
    edge.put("user:1", ADA, json!({ "pg2kv": MARK })).await;
    // The name of a user is whatever the key column holds.
    edge.put("user:ü/2 &", "{}", json!(null)).await;
    who_is_asked_for(&edge).await;
    documents_as_json(&edge).await;
    values_that_are_no_documents(&edge).await;
    files_by_path(&edge).await;
    requests_that_are_none(&edge).await;
    let log = edge.stop().await;
    assert!(log.contains("member plan has another type"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

async fn who_is_asked_for(edge: &Edge) {
    for (path, headers, expected) in [
        ("/", vec![], "Welcome"),
        ("/?user=", vec![], "Welcome"),
        ("/?user=1", vec![], "Welcome back, ada"),
        ("/", vec![("x-user-id", "1")], "Welcome back, ada"),
        ("/", vec![("cookie", "a=b; user=1; c")], "Welcome back, ada"),
        ("/", vec![("cookie", "user=%zz")], "Welcome"),
        (
            "/",
            vec![("cookie", "user=%C3%BC%2F2%20%26")],
            "Welcome back",
        ),
        ("/?user=%C3%BC/2%20%26", vec![], "Welcome back"),
        ("/?user=none", vec![("cookie", "user=1")], "Welcome"),
    ] {
        let page = edge.request(Method::GET, path, &headers).await;
        assert_eq!(
            (page.status, heading(&page)),
            (200, expected),
            "{path} {headers:?}"
        );
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
        assert_eq!(page.header("cache-control"), "private, no-store");
        assert_eq!(page.header("x-content-type-options"), "nosniff");
        let policy = page.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'; style-src 'nonce-"),
            "{policy}"
        );
    }
    // Longer than any key: KV would throw.
    let id = "x".repeat(600);
    let page = edge.get(&format!("/?user={id}")).await;
    assert_eq!((page.status, heading(&page)), (200, "Welcome"));
    assert_eq!(edge.get(&format!("/config/{id}")).await.status, 404);
}

async fn documents_as_json(edge: &Edge) {
    let reply = edge.get("/config/1").await;
    assert_eq!((reply.status, reply.text()), (200, ADA));
    assert_eq!(reply.header("content-type"), "application/json");
    assert_eq!(reply.header("cache-control"), "private, no-cache");
    assert_eq!(reply.header("etag"), format!("\"{HASH}\""));

    let reply = edge.get("/config/%C3%BC%2F2%20%26").await;
    assert_eq!(
        (reply.status, reply.text(), reply.header("etag")),
        (200, "{}", "")
    );
    for path in ["/config/none", "/config/"] {
        let reply = edge.get(path).await;
        assert_eq!(reply.status, 404, "{path}");
        assert_eq!(reply.text(), "{\"error\":\"there is no such user\"}\n");
        assert_eq!(reply.header("content-type"), "application/json");
    }
}

/// They are told, and neither shown nor guessed at.
async fn values_that_are_no_documents(edge: &Edge) {
    for (id, value, is_object) in [
        ("cut", r#"{"plan": "secret"#, false),
        ("empty", "", false),
        ("list", "[]", false),
        ("null", "null", false),
        ("plan", r#"{"plan": 7}"#, true),
        ("preview", r#"{"preview_features_enabled": "secret"}"#, true),
        ("flags", r#"{"flags": ["secret"]}"#, true),
        ("name", r#"{"username": {"secret": 1}}"#, true),
    ] {
        edge.put(&format!("user:{id}"), value, json!(null)).await;
        let page = edge.get(&format!("/?user={id}")).await;
        assert_eq!((page.status, heading(&page)), (502, "Welcome"), "{id}");
        assert!(page.text().contains("Settings are not in order."));
        // The page needs these members; who asks for the document gets it as it is.
        let reply = edge.get(&format!("/config/{id}")).await;
        let expected = match is_object {
            true => (200, value),
            false => (502, "{\"error\":\"Settings are not in order.\"}\n"),
        };
        assert_eq!((reply.status, reply.text()), expected, "{id}");
        assert!(!page.text().contains("secret"), "{id}");
    }
    // A column that is NULL, or that is not published, is no error.
    let value = r#"{"username":null,"flags":{"a":1,"b":"true","__proto__":true}}"#;
    edge.put("user:sparse", value, json!(null)).await;
    let page = edge.get("/?user=sparse").await;
    assert_eq!((page.status, heading(&page)), (200, "Welcome back"));
    let features = "<li>Dashboards</li>\n<li>__proto__</li>\n</ul>";
    assert!(page.text().contains(features), "{}", page.text());
}

async fn files_by_path(edge: &Edge) {
    let html = "text/html; charset=utf-8";
    for (key, metadata, kind) in [
        (
            "a.css",
            json!({ "pg2kv": MARK, "content_type": "text/css" }),
            "text/css",
        ),
        ("b/c.html", json!({ "content_type": html }), html),
        ("none", json!({ "pg2kv": MARK }), "application/octet-stream"),
        ("text", json!("text"), "application/octet-stream"),
        (
            "number",
            json!({ "content_type": 7 }),
            "application/octet-stream",
        ),
        (
            "split",
            json!({ "content_type": "text/css\r\nx: y" }),
            "application/octet-stream",
        ),
        (
            "é %",
            json!({ "content_type": "image/svg+xml" }),
            "image/svg+xml",
        ),
    ] {
        edge.put(&format!("assets/{key}"), key, metadata).await;
        let path = key.replace('%', "%25").replace(' ', "%20");
        let reply = edge.get(&format!("/assets/{path}")).await;
        assert_eq!((reply.status, reply.text()), (200, key));
        assert_eq!(reply.header("content-type"), kind, "{key}");
        assert_eq!(reply.header("cache-control"), "public, no-cache");
        assert_eq!(reply.header("content-security-policy"), "sandbox");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
    }
    for path in ["/assets/", "/assets/nothing", "/assets/../user:1"] {
        assert_eq!(edge.get(path).await.status, 404, "{path}");
    }
    let other = "fedcba9876543210fedcba9876543210";
    for (condition, status) in [
        (format!("\"{HASH}\""), 304),
        (format!("\"{other}\", W/\"{HASH}\""), 304),
        ("*".to_owned(), 304),
        (format!("\"{other}\""), 200),
        (HASH.to_owned(), 200),
    ] {
        let condition = [("if-none-match", condition.as_str())];
        let reply = edge.request(Method::GET, "/assets/a.css", &condition).await;
        assert_eq!(reply.status, status, "{condition:?}");
        assert_eq!(reply.header("etag"), format!("\"{HASH}\""));
        assert_eq!(reply.body.is_empty(), status == 304);
    }
    let head = edge.request(Method::HEAD, "/assets/a.css", &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-type"), "text/css");
}

async fn requests_that_are_none(edge: &Edge) {
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        let reply = edge.request(method, "/config/1", &[]).await;
        assert_eq!((reply.status, reply.header("allow")), (405, "GET, HEAD"));
    }
    assert_eq!(edge.get("/config/%zz").await.status, 400);
    for path in ["/nothing", "/config", "/assets", "//"] {
        assert_eq!(edge.get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_kv_that_fails_is_told_without_its_inside() {
    let edge = Edge::around(&Peers::installed(), BROKEN_KV).await;
    let page = edge.get("/?user=1").await;
    assert_eq!((page.status, heading(&page)), (503, "Welcome"));
    assert!(
        page.text()
            .contains("Settings cannot be read at the moment.")
    );
    let mut replies = vec![page];
    for path in ["/config/1", "/assets/a.css"] {
        let reply = edge.get(path).await;
        assert_eq!(reply.status, 503, "{path}");
        assert_eq!(reply.header("content-type"), "application/json");
        replies.push(reply);
    }
    for reply in replies {
        let text = reply.text();
        assert!(
            !text.contains("inside") && !text.contains("    at "),
            "{text}"
        );
    }
    // Nothing has to be read for a guest.
    assert_eq!(edge.get("/").await.status, 200);
    // The cause is for whoever operates the Worker.
    let log = edge.stop().await;
    assert!(log.contains("secret-of-the-inside"), "{log}");
}
