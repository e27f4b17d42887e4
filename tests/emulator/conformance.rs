//! The emulator and Cloudflare's own simulator, asked the same things.
//!
//! `tests/peers/conformance.json` holds the requests, the emulator's replies, and every difference of
//! the simulator's with its reason. A difference that is not listed fails, and so does a listed one
//! that is none.

use std::collections::BTreeSet;
use std::path::Path;

use pg2kv::emulator::Options;
use pg2kv::emulator::limits::Limits;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{ACCOUNT, NAMESPACE, Reply, Rig, TOKEN, send};
use crate::support::node::Peers;

#[derive(Deserialize)]
struct List {
    reasons: Map<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    #[serde(rename = "do")]
    what: String,
    #[serde(default)]
    headers: Map<String, Value>,
    json: Option<Value>,
    text: Option<String>,
    base64: Option<String>,
    generated: Option<Value>,
    form: Option<Vec<(String, Value)>>,
    reply: Value,
    simulator: Option<Difference>,
}

#[derive(Deserialize)]
struct Difference {
    because: String,
    reply: Value,
}

/// A server that is asked, and the cursor of its last reply.
struct Target {
    http: reqwest::Client,
    root: String,
    cursor: String,
}

fn list() -> List {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers/conformance.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn each_listed_difference_is_one_and_has_a_reason() {
    let List { reasons, cases } = list();
    let mut used = BTreeSet::new();
    for case in &cases {
        if let Some(difference) = &case.simulator {
            assert_ne!(difference.reply, case.reply, "{}: no difference", case.name);
            assert!(
                reasons.contains_key(&difference.because),
                "{}: no reason",
                case.name
            );
            used.insert(&difference.because);
        }
    }
    assert_eq!(
        used,
        reasons.keys().collect(),
        "a reason without a difference"
    );
    let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
    assert_eq!(names.len(), cases.len(), "two cases have one name");
}

#[tokio::test]
async fn the_emulator_replies_as_listed() {
    // The simulator knows no rates, so the list writes keys as often as it likes.
    let limits = Limits::without_rate_limits();
    let rig = Rig::with(Options {
        limits,
        ..Options::default()
    })
    .await;
    let root = format!("{}/accounts/{ACCOUNT}", rig.emulator.base_url());
    let mut target = Target {
        http: rig.http.clone(),
        root,
        cursor: String::new(),
    };
    let mut wrong = Vec::new();
    for case in &list().cases {
        target.check(case, &case.reply, &mut wrong).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    rig.emulator.stop().await;
}

#[tokio::test]
async fn the_simulator_differs_only_where_listed() {
    let peers = Peers::installed();
    let simulator = peers
        .serve("simulator.mjs", &json!({"kv": {"KV": NAMESPACE}}))
        .await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let root = simulator.ready["api"].as_str().unwrap().to_owned();
    let mut target = Target {
        http,
        root,
        cursor: String::new(),
    };
    let mut wrong = Vec::new();
    for case in &list().cases {
        let expected = case
            .simulator
            .as_ref()
            .map_or(&case.reply, |difference| &difference.reply);
        target.check(case, expected, &mut wrong).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    simulator.stop().await;
}

impl Target {
    async fn check(&mut self, case: &Case, expected: &Value, wrong: &mut Vec<String>) {
        let seen = self.ask(case).await;
        let cursor = seen["result_info"]["cursor"].as_str();
        if let Some(cursor) = cursor {
            cursor.clone_into(&mut self.cursor);
        }
        let expected = complete(expected);
        if !matches(&expected, &seen) {
            wrong.push(format!(
                "{}:\n  listed {expected}\n  seen   {seen}",
                case.name
            ));
        }
    }

    /// Makes a case's request, and puts the reply in the form of the list.
    async fn ask(&self, case: &Case) -> Value {
        let (method, path) = case.what.split_once(' ').unwrap();
        let path = path
            .replace("{ns}", &format!("{{namespaces}}/{NAMESPACE}"))
            .replace("{namespaces}", "/storage/kv/namespaces")
            .replace("{k*512}", &"k".repeat(512))
            .replace("{k*513}", &"k".repeat(513))
            .replace("{cursor}", &self.cursor);
        let method: Method = method.parse().unwrap();
        let mut request = self
            .http
            .request(method, format!("{}{path}", self.root))
            .bearer_auth(TOKEN);
        for (name, value) in &case.headers {
            request = request.header(name, value.as_str().unwrap());
        }
        if let Some(json) = &case.json {
            request = request.header(CONTENT_TYPE, "application/json");
            request = request.body(generated(json, None).to_string());
        }
        if let Some(text) = &case.text {
            request = request.body(text.clone());
        }
        if let Some(base64) = &case.base64 {
            request = request.body(decode(base64));
        }
        if let Some(text) = &case.generated {
            request = request.body(generated(text, None).as_str().unwrap().to_owned());
        }
        if let Some(fields) = &case.form {
            request = request.header(CONTENT_TYPE, "multipart/form-data; boundary=bound");
            request = request.body(form(fields));
        }
        observed(&send(request).await)
    }
}

/// A value with its generators replaced; `#` in text stands for the place in a list.
fn generated(value: &Value, place: Option<usize>) -> Value {
    match value {
        Value::Object(members) => {
            if let Some(text) = members.get("$text") {
                return text[0].as_str().unwrap().repeat(count(&text[1])).into();
            }
            if let Some(each) = members.get("$each") {
                return (0..count(&each[0]))
                    .map(|place| generated(&each[1], Some(place)))
                    .collect();
            }
            members
                .iter()
                .map(|(name, value)| (name.clone(), generated(value, place)))
                .collect()
        }
        Value::Array(items) => items.iter().map(|item| generated(item, place)).collect(),
        Value::String(text) => match place {
            Some(place) => text.replace('#', &place.to_string()).into(),
            None => value.clone(),
        },
        _ => value.clone(),
    }
}

fn count(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn form(fields: &[(String, Value)]) -> String {
    let mut body = String::new();
    for (name, value) in fields {
        let text = match value {
            Value::String(text) => text.clone(),
            json => generated(json, None).to_string(),
        };
        body += &format!(
            "--bound\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n"
        );
    }
    body + "--bound--\r\n"
}

fn decode(base64: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD
        .decode(base64)
        .unwrap()
}

fn encode(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// A reply in the form of the list, with nothing left out but the wording of messages.
fn observed(reply: &Reply) -> Value {
    let mut seen = Map::new();
    seen.insert("status".to_owned(), reply.status.into());
    if let Some(expiration) = reply.header("expiration") {
        seen.insert(
            "expiration".to_owned(),
            expiration.parse::<u64>().unwrap().into(),
        );
    }
    match serde_json::from_slice::<Value>(&reply.body) {
        Ok(Value::Object(mut envelope)) if envelope.contains_key("success") => {
            seen.insert("codes".to_owned(), reply.codes().into());
            for member in ["success", "result", "result_info"] {
                if let Some(value) = envelope.remove(member) {
                    seen.insert(member.to_owned(), value);
                }
            }
        }
        _ => match std::str::from_utf8(&reply.body) {
            Ok(text) => drop(seen.insert("text".to_owned(), text.into())),
            Err(_) => drop(seen.insert("base64".to_owned(), encode(&reply.body).into())),
        },
    }
    seen.into()
}

/// A listed reply with the members that may be left out.
fn complete(listed: &Value) -> Value {
    let mut reply = listed.as_object().unwrap().clone();
    if !reply.contains_key("text") && !reply.contains_key("base64") {
        let success = reply["status"].as_u64().unwrap() < 400;
        reply.entry("success").or_insert(success.into());
        reply.entry("codes").or_insert(json!([]));
        reply.entry("result").or_insert(Value::Null);
    }
    reply.into()
}

/// Whether a reply is the listed one.
fn matches(listed: &Value, seen: &Value) -> bool {
    match (listed, seen) {
        (Value::String(text), Value::Number(_)) => text == "$number",
        (Value::String(text), Value::String(seen)) if text == "$text" => !seen.is_empty(),
        (Value::Array(listed), Value::Array(seen)) => {
            listed.len() == seen.len() && listed.iter().zip(seen).all(|(a, b)| matches(a, b))
        }
        (Value::Object(listed), Value::Object(seen)) => {
            listed.len() == seen.len()
                && listed
                    .iter()
                    .all(|(name, value)| seen.get(name).is_some_and(|seen| matches(value, seen)))
        }
        _ => listed == seen,
    }
}
