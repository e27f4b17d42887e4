//! `pg2kv config schema`, held against the reader of the configuration and a validator of others.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use config::FileFormat;
use pg2kv::config::{Origin, Problem, inspect};
use serde_json::{Value, json};

use super::printed;
use crate::deploy::tools::{said, tool};

/// Prints what is wrong with each document. It comes with what judges the manifests.
const VALIDATE: &str = "\
import json, sys
from jsonschema import Draft202012Validator as Validator
given = json.load(sys.stdin)
Validator.check_schema(given['schema'])
validator = Validator(given['schema'])
say = lambda e: '.'.join(map(str, e.absolute_path)) + ': ' + e.message
print(json.dumps([[say(e) for e in validator.iter_errors(d)] for d in given['documents']]))
";

fn schema() -> Value {
    serde_json::from_str(&printed(&["config", "schema"])).unwrap()
}

/// What the schema finds wrong with each document.
fn validate(documents: &[Value]) -> Vec<Vec<String>> {
    let given = json!({ "schema": schema(), "documents": documents });
    let mut child = tool("python")
        .args(["-c", VALIDATE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It reads everything before it says a word.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(given.to_string().as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn parsed(toml: &str) -> Value {
    let source = config::File::from_str(toml, FileFormat::Toml);
    let read = config::Config::builder().add_source(source).build();
    read.unwrap().try_deserialize().unwrap()
}

fn example() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join("deploy/pg2kv.example.toml")).unwrap()
}

/// Sets a key of a document. `*` in the section stands for a name.
fn put(document: &mut Value, section: &str, key: &str, value: Value) {
    let mut node = document;
    for part in section.split('.') {
        node = &mut node[if part == "*" { "name" } else { part }];
    }
    node[key] = value;
}

/// Section and key of everything in the schema, with what it says of the key.
fn keys(schema: &Value) -> Vec<(String, String, Value)> {
    fn walk(node: &Value, path: &str, found: &mut Vec<(String, String, Value)>) {
        let below = |name: &str| match path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        };
        for (name, inner) in node["properties"].as_object().into_iter().flatten() {
            let is_section = inner.get("properties").or(inner.get("patternProperties"));
            match is_section {
                Some(_) => walk(inner, &below(name), found),
                None => found.push((path.to_owned(), name.clone(), inner.clone())),
            }
        }
        for (_, inner) in node["patternProperties"].as_object().into_iter().flatten() {
            walk(inner, &below("*"), found);
        }
        let closed = node["additionalProperties"] == false;
        assert!(closed, "{path} takes any key");
    }
    let mut found = Vec::new();
    walk(schema, "", &mut found);
    found
}

#[test]
fn the_example_is_valid_with_each_of_its_values() {
    let text = example();
    let mut documents = vec![parsed(&text)];
    // Each value that is commented out, in the place of its line: one at a time, as in TOML no key may
    // stand twice.
    let lines: Vec<_> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let Some(value) = line.strip_prefix("# ") else {
            continue;
        };
        let value = value.strip_prefix("e.g. ").unwrap_or(value);
        let is_key = value
            .split_once(" = ")
            .is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        if is_key {
            let mut copy = lines.clone();
            copy[number] = value;
            // Of the section that is commented out as a whole.
            let copy: Vec<_> = copy
                .iter()
                .map(|line| {
                    line.strip_prefix("# [")
                        .map_or((*line).to_owned(), |rest| format!("[{rest}"))
                })
                .collect();
            documents.push(parsed(&copy.join("\n")));
        }
    }
    assert!(documents.len() > 50, "{} documents", documents.len());
    for (document, wrong) in documents.iter().zip(validate(&documents)) {
        assert_eq!(wrong, [] as [&str; 0], "{document:#}");
    }
}

#[test]
fn no_section_takes_a_key_that_is_unknown() {
    let mut sections: Vec<_> = keys(&schema())
        .into_iter()
        .map(|(section, ..)| section)
        .collect();
    sections.dedup();
    assert!(
        sections.contains(&"sync.*.related.*".to_owned()),
        "{sections:?}"
    );
    let mut documents: Vec<_> = sections
        .iter()
        .map(|section| {
            let mut document = json!({});
            put(&mut document, section, "nonsense", json!("x"));
            document
        })
        .collect();
    documents.push(json!({ "nonsense": {} }));
    documents.push(json!({ "sync": { "Not-A-Name": { "key": "x" } } }));
    for (document, wrong) in documents.iter().zip(validate(&documents)) {
        assert_eq!(wrong.len(), 1, "{document}: {wrong:?}");
    }
}

#[test]
fn it_says_the_defaults_that_are_in_force_and_something_of_each_key() {
    let environment = [(
        "PG2KV__SYNC__NAME__RELATED__NAME__TABLE".into(),
        "public.x".into(),
    )];
    let (effective, ..) = inspect(&[], environment);
    let keys = keys(&schema());
    assert_eq!(effective.entries().len(), keys.len());
    for entry in effective.entries() {
        let section = entry.section().replace(".name", ".*");
        let name = format!("{section}.{}", entry.key());
        let found = keys
            .iter()
            .find(|(at, key, _)| *at == section && key == entry.key());
        let (_, _, told) = found.unwrap_or_else(|| panic!("{name} is missing"));
        let default = match entry.value() {
            // Each process has its own.
            Some(_) if name == "lease.holder" => Value::Null,
            Some(value) if *entry.origin() == Origin::Default => {
                parsed(&format!("value = {value}"))["value"].clone()
            }
            _ => Value::Null,
        };
        assert_eq!(told["default"], default, "{name}");
        let description = told["description"].as_str().unwrap();
        let is_sentence =
            description.starts_with(char::is_uppercase) && description.ends_with(['.', ')']);
        assert!(is_sentence, "{name}: {description:?}");
        assert!(!description.contains('…'), "{name}: {description:?}");
        if default.is_null() && name != "kv.api_token" {
            assert!(told["examples"].is_array(), "{name} has no example");
        }
    }
}

/// What a value may be, and what it may not.
fn values() -> Vec<Value> {
    let mut values = vec![
        json!(-1),
        json!(0),
        json!(1),
        json!(7),
        json!(1_000_000_000_000_u64),
        json!(0.5),
        json!(1.5),
        json!(true),
        json!([]),
        json!(["a"]),
        json!(["a", "a"]),
        json!([1]),
        json!([""]),
        json!({}),
        json!({ "a": "b" }),
        json!({ "a": 1 }),
        json!({ "": "b" }),
    ];
    for text in [
        "",
        " ",
        "x",
        "X",
        "auto",
        "text",
        "list",
        "object",
        "true",
        "5",
        "5s",
        "5 s",
        " 5s ",
        "1m 30s",
        "1h30m",
        "1.5h",
        "s5",
        "5x",
        "5 parsecs",
        "2days",
        "1 month",
        "7M",
        "3µs",
        "0",
        "0s",
        ".5s",
        "5..1s",
        "0123456789abcdef0123456789abcdef",
        "0123456789ABCDEF0123456789abcdef",
        "0123456789abcdef",
        "public.users",
        "users:{id}",
        "https://localhost/x",
        "a_name",
        "1_name",
        "abcdefghijklmnopqrstuvwxyz01234",
        "abcdefghijklmnopqrstuvwxyz012345",
    ] {
        values.push(json!(text));
    }
    values
}

/// Complaints of the reader about what a schema can know.
const FORMAL: [&str; 10] = [
    "and must be",
    "is not a duration",
    "an id has",
    "is not a format",
    "is neither of two",
    "is out of range",
    "is empty",
    "holds an empty name",
    "is not a name that can be used",
    "is not a number",
];

#[test]
fn it_refuses_what_the_reader_refuses_and_nothing_that_it_takes() {
    let keys = keys(&schema());
    // Every key has the same value: what is wrong is told for each.
    let documents: Vec<_> = values()
        .into_iter()
        .map(|value| {
            let mut document = json!({});
            for (section, key, _) in &keys {
                put(&mut document, section, key, value.clone());
            }
            document
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    // JSON is YAML.
    let path = folder.path().join("pg2kv.yaml");
    let (mut refused, mut taken) = (0, 0);
    for ((document, wrong), value) in documents.iter().zip(validate(&documents)).zip(values()) {
        std::fs::write(&path, document.to_string()).unwrap();
        let (_, _, errors) = inspect(std::slice::from_ref(&path), []);
        let errors = errors.unwrap();
        for (section, key, _) in &keys {
            let name = format!("{}.{key}", section.replace('*', "name"));
            let begins = [format!("{name}: "), format!("{name}.")];
            let by_schema: Vec<_> = wrong
                .iter()
                .filter(|wrong| begins.iter().any(|name| wrong.starts_with(name)))
                .collect();
            let of_key = format!("{name} ");
            let by_reader: Vec<_> = errors
                .problems()
                .iter()
                .map(Problem::what)
                .filter(|what| what.starts_with(&of_key) && !what.ends_with("is not set"))
                .collect();
            let is_formal = |what: &&str| FORMAL.iter().any(|word| what.contains(word));
            if by_schema.is_empty() {
                taken += 1;
                let formal = by_reader.iter().find(|what| is_formal(what));
                assert_eq!(formal, None, "only the reader refuses {name} = {value}");
            } else {
                refused += 1;
                assert!(
                    !by_reader.is_empty(),
                    "only the schema refuses {name} = {value}: {by_schema:?}"
                );
            }
        }
    }
    assert!(
        refused > 500 && taken > 500,
        "{refused} refused, {taken} taken"
    );
}
