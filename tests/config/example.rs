//! deploy/pg2kv.example.toml is the reference of all keys: it must not rot.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Files, environment};
use pg2kv::config::{Origin, inspect, load};

/// The example, with the section that is commented out as a whole in force.
fn example() -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "deploy", "pg2kv.example.toml"]
        .iter()
        .collect();
    let text = std::fs::read_to_string(path).unwrap();
    let (before, section) = text.split_once("# [sync.").unwrap();
    let lines: Vec<_> = section
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.starts_with("table = ") || key.starts_with("match = ") => key,
            _ => line,
        })
        .collect();
    format!("{before}[sync.{}\n", lines.join("\n"))
}

/// How a key stands in the example.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// In force, or a default that is commented out.
    Value(String),
    /// An example of a key without default.
    Example,
}

/// Every key of the text, commented out or not, by its path.
fn lines(text: &str) -> BTreeMap<String, Line> {
    let mut section = String::new();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = name.to_owned();
            continue;
        }
        let (line, example) = match line.strip_prefix("# e.g. ") {
            Some(line) => (line, true),
            None => (line.strip_prefix("# ").unwrap_or(line), false),
        };
        let Some((key, value)) = line.split_once(" = ") else {
            continue;
        };
        if key
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        {
            let line = if example {
                Line::Example
            } else {
                Line::Value(value.to_owned())
            };
            let twice = found.insert(format!("{section}.{key}"), line);
            assert_eq!(twice, None, "{section}.{key} stands there twice");
        }
    }
    found
}

#[test]
fn the_example_is_complete_and_says_the_defaults() {
    let text = example();
    let mut lines = lines(&text);
    let files = Files::new();
    let path = files.write("example.toml", &text);
    // Without its token it is the one thing short of a complete configuration.
    let (effective, warnings, errors) = inspect(std::slice::from_ref(&path), environment(&[]));
    assert_eq!(warnings, []);
    assert_eq!(errors.unwrap().problems().len(), 1);
    assert!(load(&[path], environment(&[("CLOUDFLARE_API_TOKEN", "token")])).is_ok());

    for entry in effective.entries() {
        let key = format!("{}.{}", entry.section(), entry.key());
        let line = lines.remove(&key);
        let Some(line) = line else {
            panic!("{key} is missing in the example")
        };
        match (entry.origin(), entry.value()) {
            // Its default is of this process.
            (Origin::Default, Some(_)) if key == "lease.holder" => assert_eq!(line, Line::Example),
            (Origin::Default, Some(value)) => assert_eq!(line, Line::Value(value), "{key}"),
            (Origin::Default, None) => assert_eq!(line, Line::Example, "{key}"),
            _ => assert!(matches!(line, Line::Value(_)), "{key}"),
        }
    }
    assert_eq!(lines, BTreeMap::new(), "keys that pg2kv does not know");
}

fn in_sync(lines: &mut Vec<String>, line: &str) {
    let section = lines.iter().position(|line| line == "[sync.users]");
    lines.insert(section.unwrap() + 1, line.to_owned());
}

#[test]
fn every_example_value_serves() {
    let text = example();
    // One at a time: some exclude each other.
    for (number, line) in text.lines().enumerate() {
        let Some(example) = line.strip_prefix("# e.g. ") else {
            continue;
        };
        let key = example.split(' ').next().unwrap();
        let mut copy: Vec<_> = text.lines().map(str::to_owned).collect();
        match key {
            // Files that are not here, and a token that is none.
            "url_file" | "password_file" | "root_certificate" | "api_token_file" | "api_token" => {
                continue;
            }
            "value" => copy.retain(|line| !line.starts_with("columns = ")),
            // These need each other.
            "member" => in_sync(&mut copy, "collect = \"object\""),
            "order_by" => in_sync(&mut copy, "collect = \"list\""),
            "shards" => {
                in_sync(&mut copy, "collect = \"list\"");
                for line in &mut copy {
                    if line.starts_with("key = ") {
                        *line = "key = \"users:{shard}\"".to_owned();
                    }
                }
            }
            _ => {}
        }
        let number = number - usize::from(copy.len() < text.lines().count());
        let at = copy
            .iter()
            .position(|other| other == line)
            .unwrap_or(number);
        copy[at] = example.to_owned();
        let variables = [("CLOUDFLARE_API_TOKEN", "token")];
        let found = super::errors(&copy.join("\n"), &variables);
        assert_eq!(found, [] as [&str; 0], "{example}");
    }
}
