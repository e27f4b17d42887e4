//! What has been read of the merged tree, and what is wrong with it.
//!
//! Owns the lists of problems, warnings and values in force, and the keys that nobody knows. Knows
//! nothing of particular keys.

use std::collections::BTreeMap;

use config::{Map, Value, ValueKind};

use super::effective::Entry;
use super::layers::{Sources, variable_name};
use super::problem::{Complaint, Origin, Problem, Scope, Warning};
use super::related;
use super::section::Section;
use super::shape::Shape;

/// From this likeness on two words are near enough for "did you mean"; so are words with one slip.
const NEAR: f64 = 0.82;

/// Reads sections and collects what was found.
pub(super) struct Reader<'s> {
    pub(super) sources: &'s Sources,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Warning>,
    pub(super) entries: Vec<Entry>,
    pub(super) shapes: Vec<Shape>,
}

impl<'s> Reader<'s> {
    /// Nothing is read yet; `problems` are those of the sources.
    pub(super) fn new(sources: &'s Sources, problems: Vec<Problem>) -> Self {
        Self {
            sources,
            problems,
            warnings: Vec::new(),
            entries: Vec::new(),
            shapes: Vec::new(),
        }
    }

    /// The section at `path` (one or two names).
    pub(super) fn section(&mut self, path: &str) -> Section<'_, 's> {
        let found = match path.split_once('.') {
            None => self.sources.root.get(path),
            Some((outer, inner)) => match self.sources.root.get(outer).map(|v| &v.kind) {
                Some(ValueKind::Table(table)) => table.get(inner),
                _ => None,
            },
        };
        let table = match found.map(|value| &value.kind) {
            None => Map::new(),
            Some(ValueKind::Table(table)) => table.clone(),
            Some(_) => {
                self.problem(
                    path,
                    Complaint::new(
                        "is a value, and must be a section",
                        format!("write [{path}] on a line of its own and its keys below"),
                    ),
                );
                Map::new()
            }
        };
        Section::new(self, path, table)
    }

    /// Names of the tables below `outer`, in alphabetical order.
    pub(super) fn names(&mut self, outer: &str) -> Vec<String> {
        match self.sources.root.get(outer).map(|value| &value.kind) {
            None => Vec::new(),
            Some(ValueKind::Table(table)) => {
                let mut names: Vec<_> = table.keys().cloned().collect();
                names.sort();
                names
            }
            Some(_) => {
                self.problem(
                    outer,
                    Complaint::new(
                        "is a value, and must be a section with a name",
                        format!("write [{outer}.NAME], such as [{outer}.users]"),
                    ),
                );
                Vec::new()
            }
        }
    }

    /// Records what is wrong with the key at `path`, with the place where it was set.
    pub(super) fn problem(&mut self, path: &str, complaint: Complaint) {
        let place = match self.origin(path) {
            Origin::Default => "default".to_owned(),
            origin => origin.to_string(),
        };
        self.problems.push(Problem {
            what: format!("{path} {}", complaint.what),
            place,
            help: complaint.help,
            scope: Scope::Sql,
        });
    }

    /// Records that the key at `path` is not set though a caller of `scope` needs it.
    pub(super) fn missing(&mut self, path: &str, scope: Scope, help: impl Into<String>) {
        self.problems.push(Problem {
            what: format!("{path} is not set"),
            place: self.sources.looked_in(path),
            help: help.into(),
            scope,
        });
    }

    /// Records something allowed that is seldom meant.
    pub(super) fn warn(&mut self, path: &str, what: &str) {
        let warning = Warning {
            what: format!("{path} {what}"),
            place: self.origin(path).to_string(),
        };
        self.warnings.push(warning);
    }

    /// Whether a file or one of our variables sets the key at `path`.
    pub(super) fn is_set(&self, path: &str) -> bool {
        self.sources.origin(path) != Origin::Default
    }

    /// Where the key at `path` was set, stand-ins such as `DATABASE_URL` included.
    fn origin(&self, path: &str) -> Origin {
        self.entries
            .iter()
            .find(|e| format!("{}.{}", e.section, e.key) == path && e.origin != Origin::Default)
            .map_or_else(|| self.sources.origin(path), |entry| entry.origin.clone())
    }

    /// Records every key of the tree that nothing has read. To be called last.
    pub(super) fn finish(&mut self) {
        let mut known: BTreeMap<String, Vec<&'static str>> = BTreeMap::new();
        for Entry { section, key, .. } in &self.entries {
            known.entry(section.clone()).or_default().push(key);
        }
        let mut unknown = Vec::new();
        for (name, value) in &self.sources.root {
            if name == "sync" {
                // Sections in their own right; those that are not tables are reported already.
                let ValueKind::Table(syncs) = &value.kind else {
                    continue;
                };
                for (sync, value) in syncs {
                    unknown.extend(unread_of_sync(&format!("sync.{sync}"), value, &known));
                }
            } else if known.contains_key(name) {
                unknown.extend(unread(name, value, &known));
            } else {
                unknown.push((name.clone(), unknown_section(name, value, &known)));
            }
        }
        unknown.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, help) in unknown {
            let place = self.sources.origin(&path).to_string();
            let what = format!("{path} is not a key that pg2kv knows");
            self.problems.push(Problem {
                what,
                place,
                help,
                scope: Scope::Sql,
            });
        }
        self.warn_of_single_underscores(&known);
    }

    fn warn_of_single_underscores(&mut self, known: &BTreeMap<String, Vec<&'static str>>) {
        let keys: Vec<String> = known
            .iter()
            .flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")))
            .collect();
        for (name, key) in self.sources.nearly_ours(&keys) {
            self.warnings.push(Warning {
                what: format!(
                    "{name} is ignored; the name would be {}",
                    variable_name(key)
                ),
                place: Origin::Variable(name.to_owned()).to_string(),
            });
        }
    }
}

/// The same for a sync and the sections below it.
fn unread_of_sync(
    path: &str,
    value: &Value,
    known: &BTreeMap<String, Vec<&'static str>>,
) -> Vec<(String, String)> {
    let mut unknown = unread(path, value, known);
    let below = format!("{path}.{}", related::KEY);
    // What stands there instead of sections is reported already.
    unknown.retain(|(key, _)| *key != below);
    if let ValueKind::Table(sync) = &value.kind
        && let Some(ValueKind::Table(tables)) = sync.get(related::KEY).map(|found| &found.kind)
    {
        for (name, table) in tables {
            unknown.extend(unread(&format!("{below}.{name}"), table, known));
        }
    }
    unknown
}

/// The keys of a section that nothing has read, each with what to do.
fn unread(
    section: &str,
    value: &Value,
    known: &BTreeMap<String, Vec<&'static str>>,
) -> Vec<(String, String)> {
    let ValueKind::Table(table) = &value.kind else {
        return Vec::new();
    };
    let here = known.get(section).map(Vec::as_slice).unwrap_or_default();
    table
        .keys()
        .filter(|key| !here.contains(&key.as_str()))
        .map(|key| {
            (
                format!("{section}.{key}"),
                unknown_key(section, key, here, known),
            )
        })
        .collect()
}

fn unknown_key(
    section: &str,
    key: &str,
    here: &[&'static str],
    known: &BTreeMap<String, Vec<&'static str>>,
) -> String {
    if let Some(near) = nearest(key, here.iter().copied()) {
        return format!("did you mean {section}.{near}?");
    }
    // The right key in the wrong section. Not a sync's: each has the same keys.
    let elsewhere = known
        .iter()
        .filter(|(other, _)| !other.starts_with("sync."));
    let mut same = elsewhere.filter(|(_, keys)| keys.contains(&key));
    match (same.next(), same.next()) {
        (Some((other, _)), None) => format!("did you mean {other}.{key}?"),
        _ => format!("the keys of [{section}] are {}", here.join(", ")),
    }
}

fn unknown_section(
    name: &str,
    value: &Value,
    known: &BTreeMap<String, Vec<&'static str>>,
) -> String {
    let sections = known
        .keys()
        .map(|s| if s.starts_with("sync.") { "sync" } else { s });
    if let Some(near) = nearest(name, sections) {
        return format!("did you mean [{near}]?");
    }
    if !matches!(value.kind, ValueKind::Table(_)) {
        let mut owners = known.iter().filter(|(_, keys)| keys.contains(&name));
        if let (Some((section, _)), None) = (owners.next(), owners.next()) {
            return format!("did you mean {section}.{name}?");
        }
    }
    let mut names: Vec<_> = known
        .keys()
        .filter(|s| !s.starts_with("sync."))
        .cloned()
        .collect();
    names.push("sync.NAME".to_owned());
    format!("the sections are {}", names.join(", "))
}

/// The candidate that `word` may be a slip of.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, candidate)| {
            *likeness >= NEAR || strsim::osa_distance(word, candidate) == 1
        })
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}
