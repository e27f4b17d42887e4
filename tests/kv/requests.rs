//! What goes out: paths, headers and bodies, and the reads.

use pg2kv::change::{AmbiguousReason, Batch, KvName, Outcome};
use pg2kv::sink::kv::{KvClient, TokenReload};
use pg2kv::sink::token::TokenSource;

use super::server::{Server, Step, envelope, http, written};
use super::{ACCOUNT, NAMESPACE, TOKEN, client, delete, discreet, namespace, put, send, settings};

fn answering(replies: Vec<Vec<u8>>) -> Vec<Step> {
    replies
        .into_iter()
        .flat_map(|reply| [Step::Receive, Step::Send(reply)])
        .collect()
}

#[tokio::test]
async fn bulk_requests_are_as_documented() {
    let server = Server::once(answering(vec![written(2), written(2)])).await;
    let client = client(server.base_url());
    assert_eq!(send(&client, &put(2)).await.outcome, Outcome::Written);
    assert_eq!(send(&client, &delete(2)).await.outcome, Outcome::Written);
    let [put, delete] = &server.requests()[..] else {
        panic!("two requests")
    };

    let path = format!("/client/v4/accounts/{ACCOUNT}/storage/kv/namespaces/{NAMESPACE}");
    assert_eq!(put.line(), format!("PUT {path}/bulk"));
    assert_eq!(delete.line(), format!("POST {path}/bulk/delete"));
    for request in [put, delete] {
        assert_eq!(
            request.header("authorization"),
            Some(&*format!("Bearer {TOKEN}"))
        );
        assert_eq!(request.header("content-type"), Some("application/json"));
        let version = concat!("pg2kv/", env!("CARGO_PKG_VERSION"));
        assert_eq!(request.header("user-agent"), Some(version));
        assert_eq!(
            request.header("accept-encoding"),
            None,
            "a packed reply could unpack to any size"
        );
    }
    let pairs: serde_json::Value = serde_json::from_slice(&put.body).unwrap();
    assert_eq!(pairs[1]["key"], "canary-key/1");
    assert_eq!(pairs[1]["value"], "canary-value");
    assert_eq!(delete.body, br#"["canary-key/0","canary-key/1"]"#);
}

#[tokio::test]
async fn a_batch_that_was_sent_keeps_no_contents() {
    let server = Server::once(answering(vec![written(2)])).await;
    let before = put(2);
    let mut batch = before.clone();
    let answer = client(server.base_url())
        .send(&namespace(), &mut batch)
        .await;
    assert_eq!(answer.outcome, Outcome::Written);
    let (Batch::Put(before), Batch::Put(after)) = (before, batch) else {
        panic!("it became another batch")
    };
    for (before, after) in before.iter().zip(&after) {
        assert_eq!((&after.name, after.hash), (&before.name, before.hash));
        assert!(after.value.bytes().is_empty() && after.metadata.is_empty());
    }
    assert_eq!(after.len(), 2);
}

#[tokio::test]
async fn without_an_account_the_path_has_none() {
    let server = Server::once(answering(vec![written(1)])).await;
    let mut settings = settings(format!(
        "http://{}/cdn-cgi/local/explorer/api/",
        server.address()
    ));
    settings.account = None;
    let client = KvClient::new(settings).unwrap();
    assert_eq!(send(&client, &put(1)).await.outcome, Outcome::Written);
    let path = "/cdn-cgi/local/explorer/api/storage/kv/namespaces";
    assert_eq!(
        server.requests()[0].line(),
        format!("PUT {path}/{NAMESPACE}/bulk")
    );
}

#[tokio::test]
async fn a_batch_over_a_limit_is_not_sent() {
    let server = Server::start(vec![]).await;
    let client = client(server.base_url());
    let Batch::Put(mut documents) = put(4) else {
        unreachable!()
    };
    for document in &mut documents {
        document.value = pg2kv::change::Value::Text(vec![b'x'; 25_000_000].into());
    }
    for batch in [put(10_001), delete(10_001), Batch::Put(documents)] {
        let answer = send(&client, &batch).await;
        assert_eq!(answer.outcome, Outcome::Rejected, "its halves may pass");
        assert_eq!(answer.status, None);
    }
    assert_eq!(server.connections(), 0);
}

#[tokio::test]
async fn a_listing_goes_page_by_page() {
    let page = |names: &[&str], cursor: &str| {
        let names: Vec<_> = names
            .iter()
            .map(|name| format!(r#"{{"name":"{name}"}}"#))
            .collect();
        let body = format!(
            r#"{{"success":true,"result":[{}],"result_info":{{"count":0,"cursor":"{cursor}"}}}}"#,
            names.join(",")
        );
        http("200 OK", "", body)
    };
    let server = Server::once(answering(vec![
        page(&["a&/1", "a&/2"], "x+/=="),
        page(&["a&/3"], ""),
    ]))
    .await;
    let client = client(server.base_url());
    let first = client.list(&namespace(), "a&/", None).await.unwrap();
    assert_eq!(first.pairs.len(), 2);
    let second = client
        .list(&namespace(), "a&/", first.next.as_deref())
        .await
        .unwrap();
    assert_eq!(second.pairs[0].name, KvName::new("a&/3").unwrap());
    assert_eq!(second.next, None);
    let queries: Vec<_> = server
        .requests()
        .iter()
        .map(|request| request.line().split_once("/keys?").unwrap().1.to_owned())
        .collect();
    assert_eq!(
        queries,
        [
            "limit=1000&prefix=a%26%2F",
            "limit=1000&prefix=a%26%2F&cursor=x%2B%2F%3D%3D"
        ]
    );
}

#[tokio::test]
async fn a_value_is_read_or_is_not_there() {
    let big = vec![b'x'; pg2kv::change::KV_VALUE_MAX_BYTES];
    let missing = http("404 Not Found", "", envelope(false, Some(10_009), "null"));
    let server = Server::once(answering(vec![
        http("200 OK", "", b"\x00\xff"),
        http("200 OK", "", &big),
        http("200 OK", "", ""),
        missing,
        http("200 OK", "connection: close\r\n", [&big[..], b"x"].concat()),
    ]))
    .await;
    let client = client(server.base_url());
    let name = KvName::new("canary-key/../%2e?#").unwrap();
    let get = async || client.get(&namespace(), &name).await;
    assert_eq!(get().await.unwrap().unwrap(), &b"\x00\xff"[..]);
    assert_eq!(get().await.unwrap().unwrap(), big);
    assert_eq!(get().await.unwrap().unwrap(), &b""[..]);
    assert_eq!(get().await.unwrap(), None);
    let over = get().await.unwrap_err();
    assert_eq!(over.outcome, Outcome::Ambiguous(AmbiguousReason::BadReply));
    discreet(&format!("{over:?}"));
    let line = server.requests()[0].line().to_owned();
    assert!(
        line.ends_with("/values/canary-key%2F..%2F%252e%3F%23"),
        "{line}"
    );
}

#[tokio::test]
async fn a_probe_tells_token_and_namespace_apart() {
    let api = |status: &str, success, code| http(status, "", envelope(success, code, "[]"));
    let server = Server::once(answering(vec![
        api("200 OK", true, None),
        api("403 Forbidden", false, Some(10_000)),
        api("404 Not Found", false, Some(10_013)),
    ]))
    .await;
    let client = client(server.base_url());
    for expected in [
        Outcome::Written,
        Outcome::Unauthorized,
        Outcome::NamespaceGone,
    ] {
        assert_eq!(client.probe(&namespace()).await.outcome, expected);
    }
    let request = &server.requests()[0];
    assert!(request.line().starts_with("GET ") && request.line().ends_with("/keys?limit=10"));
}

#[tokio::test]
async fn a_rotated_token_is_used_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, "canary-token-one\n").unwrap();
    let server = Server::once(answering(vec![written(1); 3])).await;
    let mut settings = settings(server.base_url());
    settings.token = TokenSource::File(path.clone());
    let client = KvClient::new(settings).unwrap();

    assert_eq!(client.reload_token(), TokenReload::Same);
    send(&client, &put(1)).await;
    std::fs::write(&path, "canary-token-two\n").unwrap();
    assert_eq!(client.reload_token(), TokenReload::Changed);
    assert_eq!(client.reload_token(), TokenReload::Same);
    send(&client, &put(1)).await;
    std::fs::write(&path, "").unwrap();
    let TokenReload::Failed(why) = client.reload_token() else {
        panic!("an empty file")
    };
    assert!(
        why.contains(path.to_str().unwrap()) && !why.contains("canary"),
        "{why}"
    );
    send(&client, &put(1)).await;

    let requests = server.requests();
    let tokens: Vec<_> = requests
        .iter()
        .map(|request| request.header("authorization").unwrap())
        .collect();
    let [one, two] = ["Bearer canary-token-one", "Bearer canary-token-two"];
    assert_eq!(
        tokens,
        [one, two, two],
        "a bad file leaves the token that was good"
    );
}
