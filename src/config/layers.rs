//! Files and environment, merged into one tree that remembers where each value came from.
//!
//! Owns precedence, the names of environment variables and line numbers. Knows nothing of
//! particular keys.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use config::{FileFormat, Format as _, Map, Source, Value, ValueKind};

use super::problem::{Origin, Problem, Scope};

/// What the names of our environment variables begin with. A double underscore, because Kubernetes
/// sets `PG2KV_PORT` and the like in every pod beside a Service named `pg2kv`.
const PREFIX: &str = "PG2KV__";

/// Deepest nesting of tables that line numbers are kept for; the model needs four.
const DEPTH_MAX: usize = 8;

/// The merged tree, and what is needed to say where a value came from.
#[derive(Debug)]
pub(super) struct Sources {
    /// Sections by name.
    pub(super) root: Map<String, Value>,
    files: Vec<File>,
    /// Our variables, by the path of their key.
    variables: BTreeMap<String, String>,
    /// All variables whose name and value are Unicode.
    environment: BTreeMap<String, String>,
}

/// A file that was read. As a [`Source`] it gives its tree.
#[derive(Clone, Debug)]
struct File {
    path: PathBuf,
    root: Map<String, Value>,
    /// Line of each key, by its path.
    lines: HashMap<String, usize>,
}

impl Source for File {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.root.clone())
    }
}

impl Sources {
    /// Reads the files in order (later ones win) and then the environment (which wins over all).
    pub(super) fn read(
        paths: &[PathBuf],
        environment: impl IntoIterator<Item = (OsString, OsString)>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut files = Vec::new();
        for path in paths {
            match File::read(path) {
                Ok(file) => files.push(file),
                Err(problem) => problems.push(problem),
            }
        }
        let environment = unicode(environment, problems);
        let variables = ours(&environment, problems);

        let mut builder = config::Config::builder();
        for file in &files {
            builder = builder.add_source(file.clone());
        }
        let source = config::Environment::with_prefix("PG2KV")
            .prefix_separator("__")
            .separator("__")
            // Never `try_parsing`: it would read an id of 32 decimal digits as a number.
            .source(Some(
                variables
                    .values()
                    .filter_map(|name| Some((name.clone(), environment.get(name)?.clone())))
                    .collect(),
            ));
        let root = match builder.add_source(source).build().and_then(|c| c.collect()) {
            Ok(root) => root,
            Err(error) => {
                problems.push(Problem {
                    what: "the configuration cannot be merged".to_owned(),
                    place: "files and environment".to_owned(),
                    help: error.to_string(),
                    scope: Scope::Sql,
                });
                Map::new()
            }
        };
        Self {
            root,
            files,
            variables,
            environment,
        }
    }

    /// Where the value at `path` was set.
    pub(super) fn origin(&self, path: &str) -> Origin {
        // A table may be set piece by piece; the last piece stands for it.
        let below = format!("{path}.");
        if let Some((_, name)) = self
            .variables
            .iter()
            .find(|(key, _)| *key == path || key.starts_with(&below))
        {
            return Origin::Variable(name.clone());
        }
        match self.files.iter().rev().find(|file| file.holds(path)) {
            Some(file) => Origin::File {
                path: file.path.clone(),
                line: file.lines.get(path).copied(),
            },
            None => Origin::Default,
        }
    }

    /// The value of a variable that is not ours, such as `DATABASE_URL`.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str)
    }

    /// Variables that begin with one underscore where two are meant, each with the key whose name
    /// it spells.
    pub(super) fn nearly_ours<'a>(
        &'a self,
        keys: &'a [String],
    ) -> impl Iterator<Item = (&'a str, &'a str)> {
        let bare = |text: &str| text.to_lowercase().replace(['_', '.'], "");
        self.environment.keys().filter_map(move |name| {
            let rest = name
                .strip_prefix("PG2KV_")
                .filter(|rest| !rest.starts_with('_'))?;
            let key = keys.iter().find(|key| bare(key) == bare(rest))?;
            Some((name.as_str(), key.as_str()))
        })
    }

    /// "FILE, FILE and the environment": where a key was looked for.
    pub(super) fn looked_in(&self, path: &str) -> String {
        let files = match self.files.as_slice() {
            [] => "no configuration file was read".to_owned(),
            files => {
                let names: Vec<_> = files.iter().map(|f| f.path.display().to_string()).collect();
                format!("not in {}", names.join(", "))
            }
        };
        format!("{files}, and {} is not set", variable_name(path))
    }
}

/// The environment variable that sets the key at `path`.
pub(super) fn variable_name(path: &str) -> String {
    format!("{PREFIX}{}", path.to_uppercase().replace('.', "__"))
}

/// The pairs whose name and value are Unicode; of ours, the others are problems.
fn unicode(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (name, value) in environment {
        let Ok(name) = name.into_string() else {
            continue;
        };
        match value.into_string() {
            Ok(value) => {
                all.insert(name, value);
            }
            // The value is not printed: it may be a secret.
            Err(_) if name.to_uppercase().starts_with(PREFIX) => problems.push(Problem {
                what: format!("{name} is not valid UTF-8"),
                place: Origin::Variable(name).to_string(),
                help: "set it to UTF-8 text, or put the secret into a file and name that with the \
                       `_file` key"
                    .to_owned(),
                scope: Scope::Sql,
            }),
            Err(_) => {}
        }
    }
    all
}

/// Our variables by the path of their key. Case does not count, so two may mean one key.
fn ours(
    environment: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> BTreeMap<String, String> {
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in environment {
        let upper = name.to_uppercase();
        let Some(rest) = upper.strip_prefix(PREFIX) else {
            continue;
        };
        let path = rest.to_lowercase().replace("__", ".");
        if value.is_empty() {
            problems.push(Problem {
                what: format!("{path} is set to nothing"),
                place: Origin::Variable(name.clone()).to_string(),
                help: "give the variable a value, or unset it to use the file or the default"
                    .to_owned(),
                scope: Scope::Sql,
            });
            continue;
        }
        if let Some(other) = variables.insert(path.clone(), name.clone()) {
            problems.push(Problem {
                what: format!("{path} is set by two variables"),
                place: format!("environment variables {other} and {name}"),
                help: "unset one of them".to_owned(),
                scope: Scope::Sql,
            });
        }
    }
    variables
}

impl File {
    fn read(path: &Path) -> Result<Self, Problem> {
        let place = path.display().to_string();
        let fail = |what: String, help: &str| Problem {
            what,
            place: place.clone(),
            help: help.to_owned(),
            scope: Scope::Sql,
        };
        let format = match path.extension().and_then(|e| e.to_str()) {
            Some("toml") => FileFormat::Toml,
            Some("yaml" | "yml") => FileFormat::Yaml,
            _ => {
                return Err(fail(
                    "the configuration file has no known extension".to_owned(),
                    "name it .toml, .yaml or .yml",
                ));
            }
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            fail(
                format!("the configuration file cannot be read: {error}"),
                "check the path and that this user may read it",
            )
        })?;
        let root = format.parse(Some(&place), &text).map_err(|error| {
            fail(
                format!(
                    "the configuration file cannot be parsed: {}",
                    without_text(&*error)
                ),
                match format {
                    FileFormat::Toml => {
                        "correct the syntax; text needs quotes, ids and durations too"
                    }
                    _ => "correct the syntax; put ids in quotes",
                },
            )
        })?;
        let lines = match format {
            FileFormat::Toml => lines(&text),
            _ => HashMap::new(),
        };
        Ok(Self {
            path: path.to_owned(),
            root,
            lines,
        })
    }

    /// Whether the file sets the key at `path`.
    fn holds(&self, path: &str) -> bool {
        let mut parts = path.split('.');
        let Some(mut value) = parts.next().and_then(|part| self.root.get(part)) else {
            return false;
        };
        for part in parts {
            match &value.kind {
                ValueKind::Table(table) => match table.get(part) {
                    Some(inner) => value = inner,
                    None => return false,
                },
                _ => return false,
            }
        }
        true
    }
}

/// A parser's message without the lines that quote the file: one may hold a secret.
fn without_text(error: &(dyn std::error::Error + Send + Sync)) -> String {
    let message = error.to_string();
    let kept: Vec<_> = message
        .lines()
        .map(str::trim)
        .filter(|line| {
            let line = line
                .trim_start_matches(|c: char| c.is_ascii_digit())
                .trim_start();
            !line.is_empty() && !line.starts_with('|')
        })
        .collect();
    kept.join(": ")
}

/// The line of each key of a TOML text, by the path of the key.
fn lines(text: &str) -> HashMap<String, usize> {
    fn walk(
        table: &toml::de::DeTable<'_>,
        prefix: &str,
        depth: usize,
        starts: &[usize],
        lines: &mut HashMap<String, usize>,
    ) {
        for (key, value) in table {
            let path = match prefix {
                "" => key.get_ref().to_string(),
                prefix => format!("{prefix}.{}", key.get_ref()),
            };
            lines.insert(
                path.clone(),
                starts.partition_point(|s| *s <= key.span().start),
            );
            if let toml::de::DeValue::Table(inner) = value.get_ref()
                && depth < DEPTH_MAX
            {
                walk(inner, &path, depth + 1, starts, lines);
            }
        }
    }
    let starts: Vec<_> = std::iter::once(0)
        .chain(text.match_indices('\n').map(|(at, _)| at + 1))
        .collect();
    let mut found = HashMap::new();
    if let Ok(root) = toml::de::DeTable::parse(text) {
        walk(root.get_ref(), "", 0, &starts, &mut found);
    }
    found
}
