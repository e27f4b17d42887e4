//! What every verb prints alike: failures, tables.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::{EXIT_CONFIG, EXIT_UNAVAILABLE, EXIT_USAGE};
use crate::config::ConfigErrors;
use crate::source::{Error, Kind};

pub(super) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(super) const DOUBT: Style = AnsiColor::Yellow.on_default().bold();
pub(super) const DIM: Style = Style::new().dimmed();

/// Why a verb did not do its work.
#[derive(Debug)]
pub(super) enum Failure {
    /// The configuration is wrong.
    Config(ConfigErrors),
    /// Something else is.
    Other {
        /// Exit code.
        code: u8,
        /// What is wrong.
        what: String,
        /// What to do, where it is known.
        help: Option<String>,
    },
    /// The reader of our output is gone: there is nobody to tell.
    Unread,
}

impl Failure {
    /// A failure with exit code 1.
    pub(super) fn new(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Other {
            code: 1,
            what: what.into(),
            help: Some(help.into()),
        }
    }

    /// A failure because something that is needed does not answer.
    pub(super) fn unavailable(what: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Other {
            code: EXIT_UNAVAILABLE,
            what: what.into(),
            help: Some(help.into()),
        }
    }

    /// A failure because an argument cannot be used.
    pub(super) fn usage(what: impl Into<String>) -> Self {
        Self::Other {
            code: EXIT_USAGE,
            what: what.into(),
            help: None,
        }
    }

    /// A failure because no sync has this name.
    pub(super) fn unknown_sync<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Self {
        let known: Vec<_> = known.collect();
        Self::new(
            format!("no sync is named {name:?}"),
            format!("the configuration has {}", known.join(", ")),
        )
    }

    /// Says it on standard error.
    pub(super) fn report(&self) -> ExitCode {
        let mut text = String::new();
        let mut add = |what: &str, place: Option<&str>, help: Option<&str>| {
            text.push_str(&format!("{BAD}error:{BAD:#} {what}\n"));
            for (label, words) in [("where", place), ("help", help)] {
                if let Some(words) = words {
                    text.push_str(&format!("  {DIM}{label}:{DIM:#} {words}\n"));
                }
            }
        };
        let code = match self {
            Self::Config(errors) => {
                for problem in errors.problems() {
                    add(problem.what(), Some(problem.place()), Some(problem.help()));
                }
                if errors.problems().len() > 1 {
                    text.push_str(&format!("\n{} errors\n", errors.problems().len()));
                }
                EXIT_CONFIG
            }
            Self::Other { code, what, help } => {
                add(what, None, help.as_deref());
                *code
            }
            Self::Unread => 0,
        };
        // Where standard error is closed too, the exit code has to do.
        let _ = anstream::stderr().write_all(text.as_bytes());
        ExitCode::from(code)
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self::Config(errors)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            Kind::Connection | Kind::Transient | Kind::RowTransient => EXIT_UNAVAILABLE,
            Kind::Fenced | Kind::Row | Kind::Relation | Kind::Refused | Kind::Schema => 1,
        };
        let help = error.hint().map(str::to_owned);
        let what = without_hint(&error.to_string(), help.as_deref());
        Self::Other { code, what, help }
    }
}

/// A message of the Postgres edge without the hint at its end, which gets a line of its own.
pub(super) fn without_hint(message: &str, hint: Option<&str>) -> String {
    hint.and_then(|hint| message.strip_suffix(hint)?.strip_suffix("; "))
        .unwrap_or(message)
        .to_owned()
}

/// Errors of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Unread,
            _ => Self::Other {
                code: 1,
                what: format!("cannot write to standard output: {error}"),
                help: None,
            },
        }
    }
}

/// Writes rows with their columns aligned, two spaces between; the first row is the heading.
pub(super) fn write_table(out: &mut impl Write, rows: &[Vec<String>]) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
        })
        .map(Option::unwrap_or_default)
        .collect();
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<_> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        let line = cells.join("  ");
        let line = line.trim_end();
        if i == 0 {
            writeln!(out, "{DIM}{line}{DIM:#}")?;
        } else {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// Seconds in words, coarse enough to read at a glance.
pub(super) fn age(seconds: f64) -> String {
    let age = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default();
    let coarse = match age.as_secs() {
        0 => Duration::from_millis(u64::try_from(age.as_millis()).unwrap_or_default()),
        seconds => Duration::from_secs(seconds),
    };
    humantime::format_duration(coarse).to_string()
}

/// `1 key`, `2 keys`.
pub(super) fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}
