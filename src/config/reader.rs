//! Typed reading of the merged tree, key by key, collecting every problem on the way.
//!
//! Owns types, "unknown key" and the list of what is in force. Each method of [`Section`] that reads
//! a key also makes the key known, so the list of keys cannot differ from what is read. Knows
//! nothing of particular keys.
//!
//! A method gives `None` only where it has recorded a problem, or where the key is optional and not
//! set; the caller goes on to the next key, so that all problems come to light at once.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{Map, Value, ValueKind};
use secrecy::{ExposeSecret as _, SecretString};

use super::effective::{Entry, Shown, quoted};
use super::layers::{Sources, variable_name};
use super::problem::{Complaint, Origin, Problem, Scope, Warning};

/// From here on two keys are near enough for "did you mean".
const NEAR: f64 = 0.82;

/// Largest secret file in bytes: a wrong path must not fill the memory.
const SECRET_FILE_MAX_BYTES: u64 = 65_536;

/// Reads sections and collects what was found.
pub(super) struct Reader<'s> {
    pub(super) sources: &'s Sources,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Warning>,
    pub(super) entries: Vec<Entry>,
}

/// One section, such as `queue` or `sync.users`.
pub(super) struct Section<'r, 's> {
    reader: &'r mut Reader<'s>,
    path: String,
    table: Map<String, Value>,
    /// Keys that took their value from a variable that other tools know.
    stand_ins: Vec<(&'static str, &'static str)>,
}

/// Where a secret was found.
pub(super) enum FoundSecret {
    /// The text itself.
    Inline(SecretString),
    /// In a file, not yet read.
    File(PathBuf),
}

impl<'s> Reader<'s> {
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
        Section {
            reader: self,
            path: path.to_owned(),
            table,
            stand_ins: Vec::new(),
        }
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
                    unknown.extend(unread(&format!("sync.{sync}"), value, &known));
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
        .filter(|(likeness, _)| *likeness >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

impl Section<'_, '_> {
    /// Path of one of this section's keys.
    pub(super) fn at(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    /// Whether the key is set, in whatever way.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Records what is wrong with a key.
    pub(super) fn problem(&mut self, key: &str, complaint: Complaint) {
        let path = self.at(key);
        self.reader.problem(&path, complaint);
    }

    /// Records what is wrong with a key, for callers of `scope` only.
    pub(super) fn scoped_problem(&mut self, key: &str, complaint: Complaint, scope: Scope) {
        self.problem(key, complaint);
        if let Some(problem) = self.reader.problems.last_mut() {
            problem.scope = scope;
        }
    }

    /// Records that a key is not set though a caller of `scope` needs it.
    pub(super) fn missing(&mut self, key: &str, scope: Scope, help: impl Into<String>) {
        let path = self.at(key);
        self.reader.missing(&path, scope, help);
    }

    /// Records something allowed that is seldom meant.
    pub(super) fn warn(&mut self, key: &str, what: &str) {
        let path = self.at(key);
        self.reader.warn(&path, what);
    }

    /// Lets the variable `name`, which other tools know, set `key` where nothing else does.
    pub(super) fn stand_in(&mut self, key: &'static str, name: &'static str) {
        if let Some(text) = self.reader.sources.variable(name)
            && !self.is_set(key)
        {
            self.table.insert(key.to_owned(), Value::new(None, text));
            self.stand_ins.push((key, name));
        }
    }

    fn origin(&self, key: &str) -> Origin {
        match self.stand_ins.iter().find(|(stood, _)| *stood == key) {
            Some((_, name)) => Origin::Variable((*name).to_owned()),
            None => self.reader.sources.origin(&self.at(key)),
        }
    }

    fn take(&self, key: &str) -> Option<(ValueKind, Origin)> {
        let value = self.table.get(key)?.kind.clone();
        Some((value, self.origin(key)))
    }

    fn enter(&mut self, key: &'static str, shown: Shown, origin: Origin) {
        self.reader.entries.push(Entry {
            section: self.path.clone(),
            key,
            shown,
            origin,
        });
    }

    fn enter_default(&mut self, key: &'static str, shown: Option<Shown>) {
        self.enter(key, shown.unwrap_or(Shown::Unset), Origin::Default);
    }

    fn wrong_type(&mut self, key: &'static str, found: &ValueKind, origin: Origin, expects: &str) {
        self.enter(key, Shown::Unset, origin);
        let what = format!("is {}, and must be {expects}", kind_name(found));
        let help = match found {
            ValueKind::I64(_) | ValueKind::U64(_) | ValueKind::Float(_) | ValueKind::Boolean(_)
                if !expects.contains("number") && !expects.contains("true") =>
            {
                format!("put it in quotes: {key} = \"…\"")
            }
            ValueKind::String(_) if expects.contains("number") || expects.contains("true") => {
                "write it without quotes".to_owned()
            }
            _ => format!("give it {expects}"),
        };
        self.problem(key, Complaint::new(what, help));
    }

    /// Text that `parse` accepts, or `default`, or nothing where there is no default.
    ///
    /// Numbers are never taken for text: an id such as `12e34…` is a float in YAML, and its digits
    /// are gone by then.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        default: Option<&str>,
        expects: &str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<T> {
        let (text, origin) = match self.take(key) {
            Some((ValueKind::String(text), origin)) => (text, origin),
            Some((found, origin)) => {
                self.wrong_type(key, &found, origin, expects);
                return None;
            }
            None => match default {
                Some(text) => (text.to_owned(), Origin::Default),
                None => {
                    self.enter_default(key, None);
                    return None;
                }
            },
        };
        self.enter(key, Shown::Text(text.clone()), origin);
        let parsed = match text.trim() {
            "" => Err(Complaint::new(
                "is empty",
                format!("give it {expects}, or leave it out"),
            )),
            text => parse(text),
        };
        parsed
            .map_err(|complaint| self.problem(key, complaint))
            .ok()
    }

    /// Any text that is not empty.
    pub(super) fn text(&mut self, key: &'static str, default: Option<&str>) -> Option<String> {
        self.parsed(key, default, "text", |text| Ok(text.to_owned()))
    }

    /// A span of time in words, within `range`.
    pub(super) fn duration(
        &mut self,
        key: &'static str,
        default: &str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        self.parsed(
            key,
            Some(default),
            "a duration such as \"5s\" or \"100ms\"",
            |text| {
                let duration = humantime::parse_duration(text).map_err(|_| {
                    Complaint::new(
                        format!("= {} is not a duration", quoted(text)),
                        "write a number with its unit, such as \"100ms\", \"5s\" or \"2m 30s\"",
                    )
                })?;
                let show = |d: &Duration| humantime::format_duration(*d).to_string();
                if range.contains(&duration) {
                    Ok(duration)
                } else {
                    Err(Complaint::new(
                        format!(
                            "= {} is too {}",
                            quoted(text),
                            if duration < *range.start() {
                                "short"
                            } else {
                                "long"
                            }
                        ),
                        format!(
                            "choose from {} to {}",
                            show(range.start()),
                            show(range.end())
                        ),
                    ))
                }
            },
        )
    }

    /// A whole number within `range`.
    pub(super) fn number<T>(
        &mut self,
        key: &'static str,
        default: T,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: Copy + Display + PartialOrd + TryFrom<i64>,
    {
        const EXPECTS: &str = "a whole number";
        let (number, origin) = match self.take(key) {
            None => {
                self.enter_default(key, Some(Shown::Bare(default.to_string())));
                return Some(default);
            }
            Some((ValueKind::I64(number), origin)) => (Ok(number), origin),
            // A variable is always text.
            Some((ValueKind::String(text), origin @ Origin::Variable(_))) => {
                (text.trim().parse::<i64>().map_err(|_| text), origin)
            }
            Some((found, origin)) => {
                self.wrong_type(key, &found, origin, EXPECTS);
                return None;
            }
        };
        let shown = match &number {
            Ok(number) => Shown::Bare(number.to_string()),
            Err(text) => Shown::Text(text.clone()),
        };
        self.enter(key, shown.clone(), origin);
        let checked = match number.map(T::try_from) {
            Ok(Ok(number)) if range.contains(&number) => return Some(number),
            Err(_) => format!("= {shown} is not {EXPECTS}"),
            Ok(_) => format!("= {shown} is out of range"),
        };
        let help = format!("choose from {} to {}", range.start(), range.end());
        self.problem(key, Complaint::new(checked, help));
        None
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> Option<bool> {
        let (value, origin) = match self.take(key) {
            None => {
                self.enter_default(key, Some(Shown::Bare(default.to_string())));
                return Some(default);
            }
            Some((ValueKind::Boolean(value), origin)) => (value, origin),
            Some((ValueKind::String(text), origin @ Origin::Variable(_))) => {
                let Ok(value) = text.trim().to_lowercase().parse() else {
                    self.enter(key, Shown::Text(text.clone()), origin);
                    let what = format!("= {} is neither true nor false", quoted(&text));
                    self.problem(key, Complaint::new(what, "set it to true or false"));
                    return None;
                };
                (value, origin)
            }
            Some((found, origin)) => {
                self.wrong_type(key, &found, origin, "true or false");
                return None;
            }
        };
        self.enter(key, Shown::Bare(value.to_string()), origin);
        Some(value)
    }

    /// A list of names, or a table of names to names where `pairs` allows one. A variable lists
    /// names with commas.
    ///
    /// A table has no order of its own, so its pairs come in the order of their names: the document
    /// must not differ from one start to the next.
    pub(super) fn names(
        &mut self,
        key: &'static str,
        pairs: bool,
    ) -> Option<Vec<(String, String)>> {
        let expects = if pairs {
            "a list or a table of column names"
        } else {
            "a list of column names"
        };
        let (found, origin) = match self.take(key) {
            None => {
                self.enter_default(key, None);
                return None;
            }
            Some(found) => found,
        };
        let names = match &found {
            ValueKind::Array(items) => items
                .iter()
                .map(|item| Some((as_text(item)?, as_text(item)?)))
                .collect::<Option<Vec<_>>>(),
            ValueKind::Table(table) if pairs => {
                let mut names = table
                    .iter()
                    .map(|(name, to)| Some((name.clone(), as_text(to)?)))
                    .collect::<Option<Vec<_>>>();
                if let Some(names) = &mut names {
                    names.sort();
                }
                names
            }
            ValueKind::String(text) if matches!(origin, Origin::Variable(_)) => Some(
                text.split(',')
                    .map(|name| (name.trim().to_owned(), name.trim().to_owned()))
                    .collect(),
            ),
            _ => None,
        };
        let Some(names) = names else {
            self.wrong_type(key, &found, origin, expects);
            return None;
        };
        let shown = match found {
            ValueKind::Table(_) => {
                let pairs: Vec<_> = names
                    .iter()
                    .map(|(a, b)| format!("{} = {}", quoted(a), quoted(b)))
                    .collect();
                format!("{{ {} }}", pairs.join(", "))
            }
            _ => {
                let names: Vec<_> = names.iter().map(|(name, _)| quoted(name)).collect();
                format!("[{}]", names.join(", "))
            }
        };
        self.enter(key, Shown::Bare(shown), origin);
        for (names, what) in [
            (names.iter().map(|(a, _)| a).collect::<Vec<_>>(), "column"),
            (names.iter().map(|(_, b)| b).collect(), "name"),
        ] {
            let twice = names
                .iter()
                .enumerate()
                .find(|(i, name)| names[..*i].contains(name));
            if let Some((_, name)) = twice {
                let complaint = Complaint::new(
                    format!("has the {what} {} twice", quoted(name)),
                    "leave one of them out",
                );
                self.problem(key, complaint);
                return None;
            }
        }
        if names.is_empty() || names.iter().any(|(a, b)| a.is_empty() || b.is_empty()) {
            let what = if names.is_empty() {
                "is empty"
            } else {
                "holds an empty name"
            };
            let complaint = Complaint::new(what, format!("give it {expects}, or leave it out"));
            self.problem(key, complaint);
            return None;
        }
        Some(names)
    }

    /// A file that can be opened by this user, where set.
    pub(super) fn file(&mut self, key: &'static str, scope: Scope) -> Option<PathBuf> {
        let path = PathBuf::from(self.text(key, None)?);
        match std::fs::File::open(&path) {
            Ok(_) => Some(path),
            Err(error) => {
                self.unreadable(key, &path, &error, scope);
                None
            }
        }
    }

    fn unreadable(&mut self, key: &str, path: &Path, error: &std::io::Error, scope: Scope) {
        let complaint = Complaint::new(
            format!("names {}, which cannot be read: {error}", path.display()),
            "check the path and that this user may read the file",
        );
        self.scoped_problem(key, complaint, scope);
    }

    /// What `parse` makes of text. Outer `None`: a problem was recorded; inner `None`: not set.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        expects: &str,
        parse: impl Fn(&str) -> Result<T, Complaint>,
    ) -> Option<Option<T>> {
        match self.parsed(key, None, expects, parse) {
            Some(value) => Some(Some(value)),
            None => (!self.is_set(key)).then_some(None),
        }
    }

    /// A secret given in place (`key`) or in a file (`file_key`); both is a problem. Reads no file.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        file_key: &'static str,
    ) -> Option<FoundSecret> {
        if self.is_set(key) && self.is_set(file_key) {
            let complaint = Complaint::new(
                format!("and {} are both set", self.at(file_key)),
                format!(
                    "keep one of them; the file is set in: {}",
                    self.origin(file_key)
                ),
            );
            self.problem(key, complaint);
        }
        let inline = self.inline_secret(key);
        let file = self.text(file_key, None);
        match (inline, file) {
            (Some(text), _) => Some(FoundSecret::Inline(text)),
            (None, Some(path)) => Some(FoundSecret::File(PathBuf::from(path))),
            (None, None) => None,
        }
    }

    /// A secret given in place, as it is.
    pub(super) fn inline_secret(&mut self, key: &'static str) -> Option<SecretString> {
        match self.take(key) {
            Some((ValueKind::String(text), origin)) => {
                self.enter(key, Shown::Secret, origin);
                Some(SecretString::from(text))
            }
            Some((found, origin)) => {
                self.wrong_type(key, &found, origin, "text");
                None
            }
            None => {
                self.enter_default(key, None);
                None
            }
        }
    }

    /// Reads what [`Self::secret`] found: one line of text, without the white space around it.
    /// What is wrong with it concerns only a caller of `scope`.
    pub(super) fn reveal(
        &mut self,
        (key, file_key): (&str, &str),
        found: FoundSecret,
        scope: Scope,
    ) -> Option<SecretString> {
        let (key, text) = match found {
            FoundSecret::Inline(text) => (key, text),
            FoundSecret::File(path) => match read_secret(&path) {
                Ok(text) => (file_key, text),
                Err(error) => {
                    self.unreadable(file_key, &path, &error, scope);
                    return None;
                }
            },
        };
        let trimmed = text.expose_secret().trim();
        let what = if trimmed.is_empty() {
            "is empty"
        } else if trimmed.chars().any(char::is_control) {
            "holds a control character or more than one line"
        } else {
            return Some(SecretString::from(trimmed));
        };
        let complaint = Complaint::new(what, "give it the one line of the secret");
        self.scoped_problem(key, complaint, scope);
        None
    }
}

fn read_secret(path: &Path) -> std::io::Result<SecretString> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(SECRET_FILE_MAX_BYTES)
        .read_to_string(&mut text)?;
    Ok(SecretString::from(text))
}

fn as_text(value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(text) => Some(text.trim().to_owned()),
        _ => None,
    }
}

fn kind_name(kind: &ValueKind) -> &'static str {
    match kind {
        ValueKind::Nil => "empty",
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) | ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_) => {
            "a number"
        }
        ValueKind::Float(_) => "a number with a fraction",
        ValueKind::String(_) => "text",
        ValueKind::Table(_) => "a section",
        ValueKind::Array(_) => "a list",
    }
}
