//! What is wrong with a configuration, in the words that the operator reads.
//!
//! Owns the shape of an error: what, where, what to do. Knows nothing of particular keys. Never
//! holds the value of a secret.

use std::fmt;
use std::path::PathBuf;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// In a file.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line, from 1, where the format tells it (TOML does).
        line: Option<usize>,
    },
    /// In an environment variable of this name.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File {
                path,
                line: Some(line),
            } => write!(f, "{}, line {line}", path.display()),
            Self::File { path, line: None } => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// What a caller needs of the configuration. What it does not need may be absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// The schema and what is watched: enough to print SQL.
    Sql,
    /// And the way to the database.
    Database,
    /// And the way to Workers KV: everything.
    All,
}

/// One error of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub(super) what: String,
    pub(super) place: String,
    pub(super) help: String,
    pub(super) scope: Scope,
}

impl Problem {
    /// What is wrong: begins with the path of the key, such as `queue.quiet`.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Where it was set.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// What to do.
    pub fn help(&self) -> &str {
        &self.help
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.what)?;
        writeln!(f, "  where: {}", self.place)?;
        write!(f, "  help: {}", self.help)
    }
}

/// Everything that is wrong with a configuration, at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub(super) Vec<Problem>);

impl ConfigErrors {
    /// The errors, at least one, in the order of the keys.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// Something allowed that is seldom meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// One sentence: the key and what follows from its value.
    pub what: String,
    /// Where it was set.
    pub place: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "warning: {}", self.what)?;
        write!(f, "  where: {}", self.place)
    }
}

/// Why a value does not serve: the words after the key's path, and what to do.
pub(super) struct Complaint {
    pub(super) what: String,
    pub(super) help: String,
}

impl Complaint {
    pub(super) fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            help: help.into(),
        }
    }
}
