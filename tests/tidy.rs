//! The rules of the house that machines can hold: imports run one way, documents say what the code
//! does, files stay small.

mod links;
mod sql;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use pg2kv::metrics::{ALL, Type};

/// Longest file in lines, of the program and of a test. Past it a file is rarely one noun.
const LINES_MAX: [(&str, usize); 2] = [("src", 600), ("tests", 750)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Name of the room that a source file belongs to: the first part of its path below `src`.
fn room(path: &Path) -> String {
    let below = path.strip_prefix(root().join("src")).unwrap();
    let first = below
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Rooms that a file names, by `crate::room` and by `use crate::{a, b}`.
fn imports(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    for part in code.split("crate::").skip(1) {
        let part = part.trim_start();
        let names: Vec<&str> = match part.strip_prefix('{') {
            None => vec![part],
            Some(list) => {
                let mut depth = 0;
                let end = list
                    .char_indices()
                    .find(|(_, character)| {
                        depth += i32::from(*character == '{') - i32::from(*character == '}');
                        depth < 0
                    })
                    .map_or(list.len(), |(at, _)| at);
                list[..end].split(',').collect()
            }
        };
        for name in names {
            let name: String = name
                .trim()
                .chars()
                .take_while(|character| character.is_alphanumeric() || *character == '_')
                .collect();
            if !name.is_empty() {
                found.insert(name);
            }
        }
    }
    found
}

#[test]
fn imports_run_one_way() {
    let pure = ["change", "ledger"];
    let allowed: BTreeMap<&str, Vec<&str>> = BTreeMap::from([
        ("change", vec![]),
        ("ledger", vec!["change"]),
        ("document", vec!["change"]),
        ("queue", vec!["change"]),
        ("relay", vec!["change", "ledger", "queue"]),
        ("source", vec!["change", "ledger", "secret_file", "sql_kit"]),
        ("secret_file", vec![]),
        ("sink", vec!["change", "secret_file"]),
        ("audit", vec!["change", "document", "sink", "source"]),
        ("sql_kit", vec![]),
        ("metrics", vec![]),
        ("throwaway", vec![]),
        ("http_server", vec![]),
        ("emulator", vec!["change", "http_server"]),
        (
            "daemon",
            vec![
                "audit", "change", "ledger", "document", "queue", "relay", "source", "sink",
                "metrics",
            ],
        ),
        (
            "config",
            vec![
                "change",
                "document",
                "queue",
                "relay",
                "secret_file",
                "source",
                "sink",
                "daemon",
                "sql_kit",
            ],
        ),
        (
            "ops",
            vec!["daemon", "http_server", "relay", "ledger", "metrics"],
        ),
    ]);
    let mut wrong = Vec::new();
    let mut met = BTreeSet::new();
    for path in sources("src") {
        let room = room(&path);
        met.insert(room.clone());
        // The command line puts the rooms together, so it may name them all.
        if ["lib", "main", "cli"].contains(&room.as_str()) {
            continue;
        }
        let Some(allowed) = allowed.get(room.as_str()) else {
            wrong.push(format!(
                "{}: a room that this test does not know",
                path.display()
            ));
            continue;
        };
        for import in imports(&fs::read_to_string(&path).unwrap()) {
            if import != room && !allowed.contains(&import.as_str()) {
                wrong.push(format!("{} imports {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        pure.iter().all(|room| met.contains(*room)),
        "the test looked at nothing: {met:?}"
    );
}

#[test]
fn the_core_is_pure() {
    let banned = [
        "std::time::Instant",
        "Instant::now",
        "SystemTime",
        "std::env",
        "tokio",
        "async fn",
        "fastrand::u64(",
        "fastrand::Rng::new",
    ];
    let pure = ["change.rs", "ledger.rs", "document", "queue", "relay"];
    let mut wrong = Vec::new();
    for path in sources("src") {
        let room = room(&path);
        if !pure.iter().any(|name| name.trim_end_matches(".rs") == room) {
            continue;
        }
        // The crate that it wraps wants an instant for a clock that nothing reads.
        if path.ends_with("queue/backoff.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for word in banned {
            if text.contains(word) {
                wrong.push(format!("{}: {word}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_file_knows_the_backoff_crate() {
    let users: Vec<String> = sources("src")
        .iter()
        .filter(|path| {
            let text = fs::read_to_string(path).unwrap();
            text.contains("use backoff::") || text.contains("backoff::Clock")
        })
        .map(|path| path.strip_prefix(root()).unwrap().display().to_string())
        .collect();
    assert_eq!(users, ["src/queue/backoff.rs"]);
}

#[test]
fn files_stay_small_and_say_what_they_own() {
    let mut wrong = Vec::new();
    for (folder, lines_max) in LINES_MAX {
        for path in sources(folder) {
            let text = fs::read_to_string(&path).unwrap();
            let lines = text.lines().count();
            if lines > lines_max {
                wrong.push(format!("{}: {lines} lines", path.display()));
            }
            if !text.starts_with("//!") && !path.ends_with("tests.rs") {
                wrong.push(format!(
                    "{}: does not begin with what it owns",
                    path.display()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_left_to_do_and_no_test_is_skipped_or_sleeps() {
    // Put together so that this file does not find itself.
    let banned = [
        ["to", "do!("].concat(),
        ["unimplemen", "ted!("].concat(),
        ["#[ign", "ore"].concat(),
        ["FIX", "ME"].concat(),
        ["thread::sl", "eep("].concat(),
    ];
    let mut wrong = Vec::new();
    for path in sources("src").into_iter().chain(sources("tests")) {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if banned.iter().any(|word| line.contains(word)) {
                wrong.push(format!(
                    "{}:{}: {}",
                    path.display(),
                    number + 1,
                    line.trim()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_reference_lists_every_metric() {
    let reference = read("deploy/metrics.md");
    for metric in ALL {
        let kind = match metric.kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        let labels: Vec<String> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let row = format!(
            "| `{}` | {kind} | {} | {} |",
            metric.name,
            labels.join(", "),
            metric.help
        );
        assert!(
            reference.contains(&row),
            "deploy/metrics.md lacks this row:\n{row}"
        );
    }
    let listed = reference
        .lines()
        .filter(|line| line.starts_with("| `pg2kv_") && line.matches(" | ").count() == 3)
        .count();
    assert_eq!(
        listed,
        ALL.len(),
        "deploy/metrics.md lists metrics that there are not"
    );
}

#[test]
fn the_reference_lists_every_configuration_key() {
    let reference = read("deploy/configuration.md");
    let example = read("deploy/pg2kv.example.toml");
    let mut section = String::new();
    let mut count = 0;
    for line in example.lines() {
        let line = line.trim_start_matches("# ").trim_start_matches('#').trim();
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            section = match name.split('.').collect::<Vec<_>>()[..] {
                ["sync", _, "related", _] => "sync.NAME.related.NAME".to_owned(),
                ["sync", _] => "sync.NAME".to_owned(),
                _ => name.to_owned(),
            };
        } else if let Some((key, _)) = line.split_once(" = ")
            && key.chars().all(|character| {
                character.is_ascii_lowercase() || character == '_' || character.is_ascii_digit()
            })
            && !section.is_empty()
        {
            count += 1;
            let named = format!("`{section}.{key}`");
            assert!(
                reference.contains(&named),
                "deploy/configuration.md does not name {named}"
            );
        }
    }
    assert!(
        count > 30,
        "the example file was not understood: {count} keys"
    );
}

#[test]
fn the_table_of_faults_names_tests_that_exist() {
    let table = read("deploy/faults.md");
    let code: String = sources("src")
        .into_iter()
        .chain(sources("tests"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let mut named = 0;
    for line in table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("|---"))
    {
        let cell = line
            .trim_end_matches(" |")
            .rsplit(" | ")
            .next()
            .unwrap_or_default();
        if ["test", "–"].iter().any(|word| cell.starts_with(word)) {
            continue;
        }
        let tests: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test and no dash: {line}");
        for test in tests {
            named += 1;
            let known = ["simulation", "chaos"].contains(&test)
                || code.contains(&format!("fn {test}("))
                || code.contains(&format!("fn {test}(server"));
            assert!(
                known,
                "deploy/faults.md names a test that there is not: {test}"
            );
        }
    }
    assert!(named > 40, "the table was not understood: {named} tests");
}
