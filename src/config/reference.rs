//! What `deploy/pg2kv.example.toml` says of each section and key: the one place where they are
//! described for people.
//!
//! A description is the comment right above its line, up to an empty line or another key. Tests see to
//! it that every key stands there and that its default is right. Knows nothing of particular keys.

use std::collections::BTreeMap;

use serde_json::Value;

const EXAMPLE: &str = include_str!("../../deploy/pg2kv.example.toml");

/// What is said of a section or a key.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// A few sentences.
    pub(super) description: String,
    /// The value that stands there, where it is a key.
    pub(super) example: Option<Value>,
}

/// Everything that is said, by [`place`].
pub(super) fn told() -> BTreeMap<String, Told> {
    let (mut section, mut comment) = (String::new(), Vec::new());
    let mut found = BTreeMap::new();
    for line in EXAMPLE.lines() {
        let text = line.strip_prefix("# ").unwrap_or(line);
        let text = text.strip_prefix("e.g. ").unwrap_or(text);
        if let Some(name) = header(text) {
            section = place(name);
            let description = std::mem::take(&mut comment).join(" ");
            let told = Told {
                description,
                example: None,
            };
            found.insert(section.clone(), told);
        } else if let Some(key) = key(text) {
            let description = std::mem::take(&mut comment).join(" ");
            let told = Told {
                description,
                example: value(key, text),
            };
            found.insert(format!("{section}.{key}"), told);
        } else if line.starts_with('#') {
            comment.push(text);
        } else {
            comment.clear();
        }
    }
    found
}

/// A section's path with `*` in place of the names that operators choose: `sync.*.related.*`.
pub(super) fn place(section: &str) -> String {
    let parts = section.split('.').enumerate();
    let parts: Vec<_> = parts
        .map(|(depth, part)| if is_chosen(depth) { "*" } else { part })
        .collect();
    parts.join(".")
}

/// Whether the part of a section's path at this depth is a name that operators choose.
pub(super) fn is_chosen(depth: usize) -> bool {
    depth % 2 == 1
}

fn header(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

fn key(text: &str) -> Option<&str> {
    let (key, _) = text.split_once(" = ")?;
    let is_word = |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
    (!key.is_empty() && key.bytes().all(is_word)).then_some(key)
}

/// What a line of TOML sets a key to.
fn value(key: &str, line: &str) -> Option<Value> {
    let source = config::File::from_str(line, config::FileFormat::Toml);
    let read = config::Config::builder().add_source(source).build().ok()?;
    read.get(key).ok()
}
