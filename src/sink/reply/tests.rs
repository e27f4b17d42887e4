use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::change::RateLimit;
use AmbiguousReason::{BadReply, Broken, EdgeError, ServerError, Timeout};
use Outcome::*;

fn names(names: &[&str]) -> Batch {
    Batch::Delete(
        names
            .iter()
            .map(|name| KvName::new(*name).unwrap())
            .collect(),
    )
}

fn reply(status: u16, body: Body<'_>) -> Reply<'_> {
    Reply {
        status,
        retry_after: None,
        date: None,
        rate_limit: None,
        body,
    }
}

fn outcome(status: u16, body: &str) -> Outcome {
    let batch = names(&["a", "b", "c"]);
    decode(&reply(status, Body::Whole(body.as_bytes())), &batch).outcome
}

fn envelope(success: bool, codes: &[i64], result: &str) -> String {
    let errors: Vec<String> = codes
        .iter()
        .map(|code| format!(r#"{{"code":{code},"message":"canary"}}"#))
        .collect();
    format!(
        r#"{{"success":{success},"errors":[{}],"messages":[],"result":{result}}}"#,
        errors.join(",")
    )
}

fn bulk(count: u64, listed: &str) -> String {
    format!(r#"{{"successful_key_count":{count},"unsuccessful_keys":[{listed}]}}"#)
}

const HTML: &str = "<html><head><title>524: A timeout occurred</title></head></html>";

#[test]
fn success_must_be_proven() {
    let accepted = |result: &str| outcome(200, &envelope(true, &[], result));
    for (result, expected) in [
        (bulk(3, ""), Written),
        (bulk(2, r#""b""#), Partial(vec![1])),
        (bulk(1, r#""c","a""#), Partial(vec![0, 2])),
        (bulk(2, r#""b","b""#), Partial(vec![1])),
        (bulk(0, r#""a","b","c""#), Partial(vec![0, 1, 2])),
        (r#"{"successful_key_count":3}"#.into(), Written),
        (r#"{"unsuccessful_keys":["a"]}"#.into(), Partial(vec![0])),
        (
            r#"{"unsuccessful_keys":[],"new_member":{}}"#.into(),
            Written,
        ),
        // The numbers do not account for the pairs.
        (bulk(2, ""), Ambiguous(BadReply)),
        (bulk(4, ""), Ambiguous(BadReply)),
        (bulk(3, r#""b""#), Ambiguous(BadReply)),
        (bulk(2, r#""unknown""#), Ambiguous(BadReply)),
        (bulk(3, r#""unknown""#), Ambiguous(BadReply)),
        (bulk(2, r#""a","unknown""#), Ambiguous(BadReply)),
        (r#"{"successful_key_count":2}"#.into(), Ambiguous(BadReply)),
        ("{}".into(), Ambiguous(BadReply)),
        ("null".into(), Ambiguous(BadReply)),
        ("[]".into(), Ambiguous(BadReply)),
        (
            r#"{"successful_key_count":"3"}"#.into(),
            Ambiguous(BadReply),
        ),
        (r#"{"successful_key_count":-3}"#.into(), Ambiguous(BadReply)),
    ] {
        assert_eq!(accepted(&result), expected, "{result}");
    }
    assert_eq!(outcome(202, &envelope(true, &[], &bulk(3, ""))), Written);
}

#[test]
fn a_2xx_that_is_no_success_is_in_doubt() {
    let good = envelope(true, &[], &bulk(3, ""));
    for body in [
        envelope(false, &[10_001], &bulk(3, "")),
        envelope(false, &[10_000], "null"),
        good[..good.len() - 1].to_owned(),
        format!("{good}x"),
        HTML.to_owned(),
        String::new(),
        "null".to_owned(),
        bulk(3, ""),
    ] {
        assert_eq!(outcome(200, &body), Ambiguous(BadReply), "{body}");
    }
    for reason in [Timeout, Broken, BadReply] {
        let cut = decode(&reply(200, Body::Cut(reason)), &names(&["a"]));
        assert_eq!(cut.outcome, Ambiguous(reason));
    }
}

#[test]
fn refusals_by_status_and_code() {
    let none = "null";
    for (status, codes, expected) in [
        (400, &[10_012][..], Rejected),
        (400, &[10_047], Rejected),
        (400, &[10_001], Rejected), // the local simulator's failed validation
        (400, &[], Rejected),
        (413, &[10_024], Rejected),
        (400, &[6_003], Unauthorized),
        (400, &[6_111], Unauthorized),
        (400, &[9_109], Unauthorized),
        (400, &[10_000], Unauthorized),
        (401, &[], Unauthorized),
        (403, &[10_000], Unauthorized),
        (403, &[10_013], Unauthorized),
        (404, &[10_000], Unauthorized),
        (404, &[10_013], NamespaceGone),
        (404, &[], NamespaceGone),
        (400, &[10_011], NamespaceGone),
        (404, &[7_003], Unexpected),
        (400, &[7_003], Unexpected),
        (400, &[10_006], Unexpected),
        (400, &[10_020], Unexpected),
        (405, &[10_025], Unexpected),
        (409, &[], Unexpected),
        (429, &[971], Throttled(None)),
        (400, &[10_022], Throttled(None)),
        (400, &[10_046], Throttled(None)),
        (400, &[10_048], QuotaExhausted),
        (403, &[10_048], QuotaExhausted),
        (429, &[10_048], QuotaExhausted),
        (503, &[10_048], QuotaExhausted),
        (408, &[], Ambiguous(Timeout)),
        (500, &[10_001], Ambiguous(ServerError)),
        (503, &[10_000], Ambiguous(ServerError)),
        (521, &[], Ambiguous(EdgeError)),
        (302, &[], Unexpected),
        (600, &[], Ambiguous(BadReply)),
    ] {
        assert_eq!(
            outcome(status, &envelope(false, codes, none)),
            expected,
            "{status} {codes:?}"
        );
    }
}

#[test]
fn codes_are_found_in_the_chain_and_the_message_decides_10001() {
    let chained = r#"{"success":false,"errors":[{"code":1,"message":"Invalid request headers",
        "error_chain":[{"code":6111,"message":"Invalid format for Authorization header"}]}]}"#;
    assert_eq!(outcome(400, chained), Unauthorized);
    let message = r#"{"success":false,"errors":
        [{"code":10001,"message":"Unable to authenticate request"}]}"#;
    assert_eq!(outcome(400, message), Unauthorized);
}

#[test]
fn refusals_without_an_envelope() {
    for (status, expected) in [
        (301, Unexpected),
        (304, Unexpected),
        (400, Unexpected), // an edge's own page: nothing is wrong with a pair, so no bisecting
        (401, Unauthorized),
        (403, Unauthorized),
        (404, Unexpected),
        (405, Unexpected),
        (408, Ambiguous(Timeout)),
        (413, Rejected),
        (429, Throttled(None)),
        (500, Ambiguous(ServerError)),
        (502, Ambiguous(ServerError)),
        (503, Ambiguous(ServerError)),
        (504, Ambiguous(ServerError)),
        (520, Ambiguous(EdgeError)),
        (524, Ambiguous(EdgeError)),
        (527, Ambiguous(EdgeError)),
        (528, Ambiguous(ServerError)),
        (530, Ambiguous(EdgeError)),
    ] {
        assert_eq!(outcome(status, HTML), expected, "{status}");
    }
}

#[test]
fn a_cut_refusal_counts_by_status_where_that_is_enough() {
    let cut = |status| decode(&reply(status, Body::Cut(Broken)), &names(&["a"])).outcome;
    assert_eq!(
        cut(400),
        Ambiguous(Broken),
        "the lost body may have told of a part written"
    );
    assert_eq!(cut(404), Ambiguous(Broken));
    assert_eq!(cut(401), Unauthorized);
    assert_eq!(cut(413), Rejected);
    assert_eq!(cut(429), Throttled(None));
    assert_eq!(cut(500), Ambiguous(ServerError));
}

#[test]
fn a_result_on_an_error_counts_where_it_shows_a_part_written() {
    let error = |status, result: &str| outcome(status, &envelope(false, &[10_001], result));
    for status in [400, 404, 429, 500, 524] {
        assert_eq!(
            error(status, &bulk(2, r#""b""#)),
            Partial(vec![1]),
            "{status}"
        );
    }
    // Nothing written: the status says why.
    assert_eq!(error(400, &bulk(0, r#""a","b","c""#)), Rejected);
    assert_eq!(error(400, &bulk(0, "")), Rejected);
    assert_eq!(error(429, &bulk(0, r#""a","b","c""#)), Throttled(None));
    assert_eq!(
        error(500, &bulk(0, r#""a","b","c""#)),
        Ambiguous(ServerError)
    );
    // Something written, but not said what.
    assert_eq!(error(400, &bulk(2, "")), Ambiguous(BadReply));
    assert_eq!(error(400, &bulk(3, "")), Ambiguous(BadReply));
    assert_eq!(error(500, &bulk(2, "")), Ambiguous(ServerError));
}

#[test]
fn headers_come_along() {
    let with = Reply {
        status: 429,
        retry_after: Some("30"),
        date: None,
        rate_limit: Some(r#""default";r=0;t=30"#),
        body: Body::Whole(b""),
    };
    let answer = decode(&with, &names(&["a"]));
    let wait = Duration::from_secs(30);
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

#[test]
fn details_hold_codes_and_never_the_servers_words() {
    let body = envelope(false, &[10_042, 1, 2, 3, 4], "null");
    let answer = decode(
        &reply(400, Body::Whole(body.as_bytes())),
        &names(&["canary"]),
    );
    assert_eq!(
        answer.detail,
        "HTTP 400: the content was refused (code 10042, 1, 2, 3)"
    );
}

#[test]
fn values_are_found_or_not() {
    let value = |status, body| decode_value(&reply(status, body)).map_err(|answer| answer.outcome);
    let missing = envelope(false, &[10_009], "null");
    let gone = envelope(false, &[10_013], "null");
    assert_eq!(value(200, Body::Whole(b"anything")), Ok(true));
    assert_eq!(value(404, Body::Whole(missing.as_bytes())), Ok(false));
    assert_eq!(value(404, Body::Whole(gone.as_bytes())), Err(NamespaceGone));
    assert_eq!(value(404, Body::Whole(b"nope")), Err(Unexpected));
    assert_eq!(value(200, Body::Cut(Broken)), Err(Ambiguous(Broken)));
    assert_eq!(
        value(500, Body::Whole(missing.as_bytes())),
        Err(Ambiguous(ServerError))
    );
}

#[test]
fn a_page_is_read_with_the_marks_of_pg2kv() {
    let hash = "0123456789abcdef0123456789abcdef";
    let mark = format!("{hash}.0123456789ab.01234567");
    let body = format!(
        r#"{{"success":true,"errors":[],"messages":[],"result":[
            {{"name":"a:ours","metadata":{{"own":1,"pg2kv":"{mark}"}},"expiration":5}},
            {{"name":"b:plain"}},
            {{"name":"c:null","metadata":null}},
            {{"name":"d:text","metadata":"pg2kv"}},
            {{"name":"e:number","metadata":{{"pg2kv":7}}}},
            {{"name":"f:short","metadata":{{"pg2kv":"{hash}"}}}},
            {{"name":"g:signed","metadata":{{"pg2kv":"+123456789abcdef0123456789abcdef.0123456789ab.01234567"}}}}
        ],"result_info":{{"count":7,"cursor":"next"}}}}"#
    );
    let page = decode_list(&reply(200, Body::Whole(body.as_bytes())), None).unwrap();
    let next = Position::parse(page.next.as_deref().unwrap());
    assert_eq!(next.cursor(), "next");
    let marks: Vec<_> = page.pairs.iter().map(|pair| pair.mark).collect();
    assert_eq!(marks[0].unwrap().to_string(), mark);
    assert_eq!(marks[1..], [None; 6]);
    assert_eq!(page.pairs[1].name.as_str(), "b:plain");

    let repeated = decode_list(&reply(200, Body::Whole(body.as_bytes())), Some(&next));
    assert_eq!(repeated.unwrap_err().outcome, Ambiguous(BadReply));
}

#[test]
fn the_last_page_has_no_next_and_a_bad_one_is_an_answer() {
    let list = |status, body: &str| {
        decode_list(&reply(status, Body::Whole(body.as_bytes())), None)
            .map(|page| page.next)
            .map_err(|answer| answer.outcome)
    };
    let page = |info: &str| {
        format!(r#"{{"success":true,"result":[{{"name":"a"}}],"result_info":{info}}}"#)
    };
    assert_eq!(list(200, &page(r#"{"cursor":""}"#)), Ok(None));
    assert_eq!(list(200, &page("null")), Ok(None));
    assert_eq!(
        list(200, &envelope(true, &[], "null")),
        Err(Ambiguous(BadReply))
    );
    assert_eq!(
        list(200, &envelope(true, &[], r#"[{"name":""}]"#)),
        Err(Ambiguous(BadReply))
    );
    assert_eq!(
        list(200, &envelope(false, &[1], "[]")),
        Err(Ambiguous(BadReply))
    );
    assert_eq!(
        list(404, &envelope(false, &[10_013], "null")),
        Err(NamespaceGone)
    );
    assert_eq!(list(200, HTML), Err(Ambiguous(BadReply)));
}

/// Replies that are nearly right: the documented members with values of all kinds.
fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let scalar = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        any::<i64>().prop_map(|value| value.to_string()),
        "[a-c]?".prop_map(|text| format!("{text:?}")),
        Just("[]".to_owned()),
        Just(r#"["a","b"]"#.to_owned()),
    ];
    let bulk = (scalar.clone(), scalar.clone()).prop_map(|(count, keys)| {
        format!(r#"{{"successful_key_count":{count},"unsuccessful_keys":{keys}}}"#)
    });
    let near = (scalar.clone(), scalar.clone(), prop_oneof![scalar, bulk]).prop_map(
        |(success, errors, result)| {
            let body = format!(r#"{{"success":{success},"errors":{errors},"result":{result}}}"#);
            body.into_bytes()
        },
    );
    prop_oneof![near, proptest::collection::vec(any::<u8>(), 0..80)]
}

proptest! {
    #[test]
    fn no_reply_makes_it_panic_and_only_a_2xx_writes(
        status in any::<u16>(),
        body in bodies(),
        header in proptest::option::of("\\PC{0,30}"),
    ) {
        let header = header.as_deref();
        let body = Body::Whole(&body);
        let reply = Reply { status, retry_after: header, date: header, rate_limit: header, body };
        let batch = names(&["a", "b", "c"]);
        let answer = decode(&reply, &batch);
        if answer.outcome == Written {
            prop_assert!((200..300).contains(&status));
        }
        if let Partial(positions) = answer.outcome {
            prop_assert!(!positions.is_empty() && positions.is_sorted());
            prop_assert!(positions.iter().all(|position| *position < batch.len()));
        }
        let _ = decode_read(&reply);
        let _ = decode_value(&reply);
        let _ = decode_list(&reply, header.map(Position::parse).as_ref());
    }

    #[test]
    fn deep_bodies_do_not_overflow(depth in 1_usize..100_000) {
        let body = format!(r#"{{"success":true,"result":{}"#, "[".repeat(depth));
        prop_assert_eq!(outcome(200, &body), Ambiguous(BadReply));
    }
}
