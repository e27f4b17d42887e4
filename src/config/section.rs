//! Typed reading of one section, key by key.
//!
//! Owns types. Each method that reads a key also makes the key known, notes its shape, and enters it
//! among the values in force, so the list of keys cannot differ from what is read. Knows nothing of particular keys.
//!
//! A method gives `None` only where it has recorded a problem, or where the key is optional and not
//! set; the caller goes on to the next key, so that all problems come to light at once.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use config::{Map, Value, ValueKind};
use serde_json::Value as Json;

use super::effective::{Entry, Shown, quoted};
use super::problem::{Complaint, Origin, Scope};
use super::reader::Reader;
use super::shape::{Form, Shape};

/// One section, such as `queue` or `sync.users`.
pub(super) struct Section<'r, 's> {
    reader: &'r mut Reader<'s>,
    path: String,
    table: Map<String, Value>,
    /// Keys that took their value from a variable that other tools know.
    stand_ins: Vec<(&'static str, &'static str)>,
}

/// What [`Section::plain`] found.
enum Plain<N> {
    /// Nothing: the default holds.
    Default,
    /// No number at all, which is recorded as a problem.
    Wrong,
    /// A number, or the text of a variable that is none, and how to show it.
    Given(Result<N, String>, Shown),
}

impl<'r, 's> Section<'r, 's> {
    /// The section at `path`, which holds `table`.
    pub(super) fn new(reader: &'r mut Reader<'s>, path: &str, table: Map<String, Value>) -> Self {
        Self {
            reader,
            path: path.to_owned(),
            table,
            stand_ins: Vec::new(),
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn shapes(&mut self) -> &mut Vec<Shape> {
        &mut self.reader.shapes
    }

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

    pub(super) fn origin(&self, key: &str) -> Origin {
        match self.stand_ins.iter().find(|(stood, _)| *stood == key) {
            Some((_, name)) => Origin::Variable((*name).to_owned()),
            None => self.reader.sources.origin(&self.at(key)),
        }
    }

    pub(super) fn take(&self, key: &str) -> Option<(ValueKind, Origin)> {
        let value = self.table.get(key)?.kind.clone();
        Some((value, self.origin(key)))
    }

    pub(super) fn enter(&mut self, key: &'static str, shown: Shown, origin: Origin) {
        self.reader.entries.push(Entry {
            section: self.path.clone(),
            key,
            shown,
            origin,
        });
    }

    /// Shows that the key is set, and not its value.
    pub(super) fn hide(&mut self, key: &'static str) {
        for entry in &mut self.reader.entries {
            if entry.section == self.path && entry.key == key && entry.shown != Shown::Unset {
                entry.shown = Shown::Secret;
            }
        }
    }

    pub(super) fn enter_default(&mut self, key: &'static str, shown: Option<Shown>) {
        self.enter(key, shown.unwrap_or(Shown::Unset), Origin::Default);
    }

    pub(super) fn wrong_type(
        &mut self,
        key: &'static str,
        found: &ValueKind,
        origin: Origin,
        expects: &str,
    ) {
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
        self.note(key, Form::Text, default.map(Json::from));
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
        let found = self.parsed(
            key,
            Some(default),
            "a duration such as \"5s\" or \"100ms\"",
            |text| duration_within(text, &range),
        );
        self.form(Form::Duration(range));
        found
    }

    /// A whole number within `range`.
    pub(super) fn number<T>(
        &mut self,
        key: &'static str,
        default: T,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: Copy + Display + PartialOrd + TryFrom<i64> + Into<Json>,
    {
        const EXPECTS: &str = "a whole number";
        let form = Form::Integer((*range.start()).into(), (*range.end()).into());
        self.note(key, form, Some(default.into()));
        let (number, shown) = match self.plain(key, default, EXPECTS, |found| match found {
            ValueKind::I64(number) => Some(*number),
            _ => None,
        }) {
            Plain::Default => return Some(default),
            Plain::Wrong => return None,
            Plain::Given(number, shown) => (number, shown),
        };
        let checked = match number.map(T::try_from) {
            Ok(Ok(number)) if range.contains(&number) => return Some(number),
            Err(_) => format!("= {shown} is not {EXPECTS}"),
            Ok(_) => format!("= {shown} is out of range"),
        };
        let help = format!("choose from {} to {}", range.start(), range.end());
        self.problem(key, Complaint::new(checked, help));
        None
    }

    /// The same where it is set, without a default. Outer `None`: a problem was recorded.
    pub(super) fn number_if_set<T>(
        &mut self,
        key: &'static str,
        range: RangeInclusive<T>,
    ) -> Option<Option<T>>
    where
        T: Copy + Display + PartialOrd + TryFrom<i64> + Into<Json>,
    {
        if self.is_set(key) {
            return self.number(key, *range.start(), range).map(Some);
        }
        let form = Form::Integer((*range.start()).into(), (*range.end()).into());
        self.note(key, form, None);
        self.enter_default(key, None);
        Some(None)
    }

    /// A number as it was written, entered among the values in force. A variable is always text, so
    /// there its text is parsed, and kept where it is no number.
    fn plain<N: FromStr + Display>(
        &mut self,
        key: &'static str,
        default: impl Display,
        expects: &str,
        read: impl Fn(&ValueKind) -> Option<N>,
    ) -> Plain<N> {
        let Some((found, origin)) = self.take(key) else {
            self.enter_default(key, Some(Shown::Bare(default.to_string())));
            return Plain::Default;
        };
        let number = match (read(&found), found, &origin) {
            (Some(number), ..) => Ok(number),
            (None, ValueKind::String(text), Origin::Variable(_)) => {
                text.trim().parse().map_err(|_| text)
            }
            (None, found, _) => {
                self.wrong_type(key, &found, origin, expects);
                return Plain::Wrong;
            }
        };
        let shown = match &number {
            Ok(number) => Shown::Bare(number.to_string()),
            Err(text) => Shown::Text(text.clone()),
        };
        self.enter(key, shown.clone(), origin);
        Plain::Given(number, shown)
    }

    /// A share of a whole, from 0 to 1.
    pub(super) fn share(&mut self, key: &'static str, default: f64) -> Option<f64> {
        const EXPECTS: &str = "a number from 0 to 1";
        self.note(key, Form::Share, Some(default.into()));
        let (number, shown) = match self.plain(key, default, EXPECTS, |found| match found {
            ValueKind::Float(number) => Some(*number),
            ValueKind::I64(number @ (0 | 1)) => Some(*number as f64),
            _ => None,
        }) {
            Plain::Default => return Some(default),
            Plain::Wrong => return None,
            Plain::Given(number, shown) => (number, shown),
        };
        match number {
            Ok(number) if (0.0..=1.0).contains(&number) => Some(number),
            _ => {
                let complaint = Complaint::new(
                    format!("= {shown} is not {EXPECTS}"),
                    "write a share such as 0.3, which is 30 %",
                );
                self.problem(key, complaint);
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> Option<bool> {
        self.note(key, Form::Boolean, Some(default.into()));
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
        self.note(key, Form::Names { pairs }, None);
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
        match crate::secret_file::open(&path) {
            Ok(_) => Some(path),
            Err(error) => {
                self.unreadable(key, &path, &error, scope);
                None
            }
        }
    }

    /// Records that a file cannot be read.
    pub(super) fn unreadable(
        &mut self,
        key: &str,
        path: &Path,
        error: &std::io::Error,
        scope: Scope,
    ) {
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
}

/// A span of time in words, within `range`.
pub(super) fn duration_within(
    text: &str,
    range: &RangeInclusive<Duration>,
) -> Result<Duration, Complaint> {
    let duration = humantime::parse_duration(text).map_err(|_| {
        Complaint::new(
            format!("= {} is not a duration", quoted(text)),
            "write a number with its unit, such as \"100ms\", \"5s\" or \"2m 30s\"",
        )
    })?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let short = duration < *range.start();
    Err(Complaint::new(
        format!(
            "= {} is too {}",
            quoted(text),
            if short { "short" } else { "long" }
        ),
        format!(
            "choose from {} to {}",
            span(*range.start()),
            span(*range.end())
        ),
    ))
}

/// A span of time in words, by one unit where that is exact.
pub(super) fn span(time: Duration) -> String {
    const DAY_SECONDS: u64 = 86_400;
    let words = humantime::format_duration(time).to_string();
    if words.contains(' ') && time.subsec_nanos() == 0 && time.as_secs().is_multiple_of(DAY_SECONDS)
    {
        return format!("{}d", time.as_secs() / DAY_SECONDS);
    }
    words
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
