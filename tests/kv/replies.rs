//! Each row of the table of replies, from the bytes on the wire to the outcome.

use std::time::Duration;

use pg2kv::change::AmbiguousReason::{BadReply, Broken, EdgeError, ServerError, Timeout};
use pg2kv::change::Outcome::{self, *};
use pg2kv::change::RateLimit;

use super::server::{Server, Step, bulk, envelope, http, written};
use super::{client, delete, large_put, put, send, settings};

const HTML: &str = "<html><head><title>canary-key</title></head><body>error</body></html>";

/// The outcome of a batch of two where the server gets the request whole and replies like this. The
/// request must come once, whatever the reply.
async fn outcome(what: &str, reply: Vec<Step>) -> Outcome {
    let script = std::iter::once(Step::Receive).chain(reply).collect();
    let server = Server::once(script).await;
    let answer = send(&client(server.base_url()), &put(2)).await;
    assert_eq!(server.requests().len(), 1, "{what}");
    assert_eq!(server.connections(), 1, "{what}: sent again");
    answer.outcome
}

async fn check(rows: Vec<(&str, Vec<u8>, Outcome)>) {
    for (what, reply, expected) in rows {
        assert_eq!(
            outcome(what, vec![Step::Send(reply)]).await,
            expected,
            "{what}"
        );
    }
}

#[tokio::test]
async fn successes() {
    let ok = |body: String| http("200 OK", "content-type: application/json\r\n", body);
    let one_left = bulk(1, &["canary-key/1"]);
    let early = b"HTTP/1.1 100 Continue\r\n\r\n";
    let chunked = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        envelope(true, None, &bulk(2, &[])).len(),
        body = envelope(true, None, &bulk(2, &[])),
    );
    let unsized_reply = format!(
        "HTTP/1.0 200 OK\r\n\r\n{}",
        envelope(true, None, &bulk(2, &[]))
    );
    check(vec![
        ("all written", written(2), Written),
        (
            "one left",
            ok(envelope(true, None, &one_left)),
            Partial(vec![1]),
        ),
        (
            "an interim reply before",
            [early, &written(2)[..]].concat(),
            Written,
        ),
        ("chunked", chunked.into(), Written),
        ("ends with the connection", unsized_reply.into(), Written),
        (
            "says failure",
            ok(envelope(false, Some(10_001), "null")),
            Ambiguous(BadReply),
        ),
        (
            "counts do not agree",
            ok(envelope(true, None, &bulk(1, &[]))),
            Ambiguous(BadReply),
        ),
        (
            "no result",
            ok(envelope(true, None, "null")),
            Ambiguous(BadReply),
        ),
        (
            "cut JSON",
            ok(r#"{"success":true,"result":{"successful_key"#.into()),
            Ambiguous(BadReply),
        ),
        ("a page", ok(HTML.into()), Ambiguous(BadReply)),
        (
            "no content",
            http("204 No Content", "", ""),
            Ambiguous(BadReply),
        ),
    ])
    .await;
}

#[tokio::test]
async fn refusals() {
    let api = |status, code| http(status, "", envelope(false, Some(code), "null"));
    let page = |status| http(status, "server: cloudflare\r\n", HTML);
    let partly = envelope(false, Some(10_001), &bulk(1, &["canary-key/0"]));
    check(vec![
        ("content", api("400 Bad Request", 10_012), Rejected),
        (
            "an authorization header",
            api("400 Bad Request", 6_003),
            Unauthorized,
        ),
        ("a proxy's 400", page("400 Bad Request"), Unexpected),
        (
            "partly, with an error",
            http("400 Bad Request", "", &partly),
            Partial(vec![0]),
        ),
        ("no token", api("401 Unauthorized", 10_000), Unauthorized),
        ("revoked token", api("403 Forbidden", 10_000), Unauthorized),
        ("blocked by the edge", page("403 Forbidden"), Unauthorized),
        (
            "namespace gone",
            api("404 Not Found", 10_013),
            NamespaceGone,
        ),
        ("wrong address", page("404 Not Found"), Unexpected),
        ("no such route", api("404 Not Found", 7_003), Unexpected),
        ("too large", page("413 Payload Too Large"), Rejected),
        (
            "quota",
            api("429 Too Many Requests", 10_048),
            QuotaExhausted,
        ),
        ("unknown", api("418 I'm a teapot", 1), Unexpected),
    ])
    .await;
}

#[tokio::test]
async fn failures_of_the_server_and_the_edge() {
    for status in [
        500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 526, 527, 530,
    ] {
        let expected = if status < 520 { ServerError } else { EdgeError };
        let reply = http(&format!("{status} Broken"), "", HTML);
        check(vec![("a page", reply, Ambiguous(expected))]).await;
    }
    let partly = envelope(false, Some(10_001), &bulk(1, &["canary-key/0"]));
    check(vec![(
        "partly",
        http("500 Broken", "", &partly),
        Partial(vec![0]),
    )])
    .await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let other = Server::once(vec![Step::Receive, Step::Send(written(2))]).await;
    for status in [
        "301 Moved",
        "302 Found",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let location = format!("location: {}\r\n", other.base_url());
        check(vec![(status, http(status, &location, ""), Unexpected)]).await;
    }
    assert_eq!(other.connections(), 0, "the token would have gone along");
}

#[tokio::test]
async fn a_throttled_reply_says_how_long() {
    let headers = "date: Mon, 23 Nov 2026 12:00:00 GMT\r\nratelimit: \"default\";r=0;t=60\r\n";
    for retry_after in ["60", "Mon, 23 Nov 2026 12:01:00 GMT"] {
        let headers = format!("{headers}retry-after: {retry_after}\r\n");
        let reply = http(
            "429 Too Many Requests",
            &headers,
            envelope(false, Some(971), "null"),
        );
        let server = Server::once(vec![Step::Receive, Step::Send(reply)]).await;
        let answer = send(&client(server.base_url()), &put(2)).await;
        let wait = Duration::from_secs(60);
        assert_eq!(answer.outcome, Throttled(Some(wait)));
        assert_eq!(
            answer.limit,
            Some(RateLimit {
                remaining: 0,
                reset: wait
            })
        );
        assert_eq!(answer.status, Some(429));
    }
}

#[tokio::test]
async fn a_reply_over_the_cap_is_dropped() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let chunk = [&b"10000\r\n"[..], &[b' '; 0x10000], b"\r\n"].concat();
    let endless = vec![Step::Send(head), Step::Repeat(chunk)];
    assert_eq!(outcome("endless", endless).await, Ambiguous(BadReply));
}

#[tokio::test]
async fn broken_replies() {
    let reply = written(2);
    let cut = |at: usize| vec![Step::Send(reply[..at].to_vec())];
    let reset = |at: usize| vec![Step::Send(reply[..at].to_vec()), Step::Reset];
    let bytes = |bytes: &[u8]| vec![Step::Send(bytes.to_vec())];
    for (what, steps) in [
        ("closed without a byte", vec![]),
        ("reset without a byte", vec![Step::Reset]),
        ("closed in the status line", cut(5)),
        ("closed in the head", cut(20)),
        ("closed in the body", cut(reply.len() - 1)),
        ("reset in the head", reset(20)),
        ("not HTTP", bytes(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
        (
            "a bad chunk",
            bytes(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
        ),
    ] {
        assert_eq!(outcome(what, steps).await, Ambiguous(Broken), "{what}");
    }
}

#[tokio::test]
async fn a_request_cut_short_is_in_doubt() {
    for (what, script) in [
        (
            "reset in the head",
            vec![Step::ReceiveBytes(10), Step::Reset],
        ),
        (
            "reset in the body",
            vec![Step::ReceiveBytes(1_000_000), Step::Reset],
        ),
        ("closed in the body", vec![Step::ReceiveBytes(1_000_000)]),
    ] {
        let server = Server::once(script).await;
        let answer = send(&client(server.base_url()), &large_put()).await;
        assert_eq!(answer.outcome, Ambiguous(Broken), "{what}");
        assert_eq!(server.connections(), 1, "{what}: sent again");
    }
}

#[tokio::test]
async fn a_refusal_before_the_body_is_through_is_understood() {
    let reply = http("413 Payload Too Large", "", HTML);
    let script = vec![Step::ReceiveBytes(1_000), Step::Send(reply), Step::Hang];
    let server = Server::once(script).await;
    let answer = send(&client(server.base_url()), &large_put()).await;
    assert_eq!(answer.outcome, Rejected);
}

#[tokio::test]
async fn silence_ends_in_a_timeout() {
    let reply = written(2);
    let half = |at: usize| Step::Send(reply[..at].to_vec());
    for (what, script) in [
        ("no reply", vec![Step::Receive, Step::Hang]),
        ("half a head", vec![Step::Receive, half(20), Step::Hang]),
        (
            "half a body",
            vec![Step::Receive, half(reply.len() - 1), Step::Hang],
        ),
        ("takes nothing", vec![Step::Ignore]),
    ] {
        let server = Server::once(script).await;
        let mut settings = settings(server.base_url());
        settings.request_timeout = Duration::from_millis(500);
        let client = pg2kv::sink::kv::KvClient::new(settings).unwrap();
        let answer = send(&client, &large_put()).await;
        assert_eq!(answer.outcome, Ambiguous(Timeout), "{what}");
        assert_eq!(server.connections(), 1, "{what}: sent again");
    }
}

#[tokio::test]
async fn a_slow_reply_is_a_reply() {
    assert_eq!(
        outcome("byte by byte", vec![Step::Drip(written(2))]).await,
        Written
    );
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let script = vec![
        Step::Receive,
        Step::Send(written(2)),
        Step::Receive,
        Step::Send(http("403 Forbidden", "", HTML)),
        Step::Receive,
        Step::Send(written(3)),
    ];
    let server = Server::once(script).await;
    let client = client(server.base_url());
    assert_eq!(send(&client, &put(2)).await.outcome, Written);
    assert_eq!(send(&client, &put(2)).await.outcome, Unauthorized);
    assert_eq!(send(&client, &delete(3)).await.outcome, Written);
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn connection_close_is_heeded() {
    let closing = http(
        "200 OK",
        "connection: close\r\n",
        envelope(true, None, &bulk(2, &[])),
    );
    let once = || vec![Step::Receive, Step::Send(closing.clone())];
    let server = Server::start(vec![once(), once()]).await;
    let client = client(server.base_url());
    assert_eq!(send(&client, &put(2)).await.outcome, Written);
    assert_eq!(send(&client, &put(2)).await.outcome, Written);
    assert_eq!(server.connections(), 2);
}

/// The server has the whole request when it closes a kept connection, so it may have applied it:
/// sending it once more on a new connection would be a second write.
#[tokio::test]
async fn a_kept_connection_that_breaks_is_not_tried_again() {
    for ending in [vec![], vec![Step::Reset]] {
        let mut script = vec![Step::Receive, Step::Send(written(2)), Step::Receive];
        script.extend(ending);
        let second = vec![Step::Receive, Step::Send(written(2))];
        let server = Server::start(vec![script, second]).await;
        let client = client(server.base_url());
        assert_eq!(send(&client, &put(2)).await.outcome, Written);
        assert_eq!(send(&client, &put(2)).await.outcome, Ambiguous(Broken));
        assert_eq!(server.requests().len(), 2);
        assert_eq!(server.connections(), 1, "sent again");
    }
}

/// The server closes the kept connection at the moment when the client may use it again. Whichever
/// comes first, the pair of outcome and requests received must be true.
#[tokio::test]
async fn a_connection_that_closes_while_idle_gives_no_false_answer() {
    for _ in 0..20 {
        let first = vec![Step::Receive, Step::Send(written(2))];
        let second = vec![Step::Receive, Step::Send(written(2))];
        let server = Server::start(vec![first, second]).await;
        let client = client(server.base_url());
        assert_eq!(send(&client, &put(2)).await.outcome, Written);
        let outcome = send(&client, &put(2)).await.outcome;
        let expected = match server.requests().len() {
            1 => Ambiguous(Broken), // written into the closing connection
            _ => Written,
        };
        assert_eq!(outcome, expected);
    }
}
