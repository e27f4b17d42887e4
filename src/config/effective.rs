//! The configuration in force, for people to read.
//!
//! Owns how a value and its origin are printed. A secret is never kept here, only that it is set.

use std::fmt;

use super::problem::Origin;

/// A value as it is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Text, printed in quotes.
    Text(String),
    /// A number, a boolean or a list, printed as TOML.
    Bare(String),
    /// A secret that is set.
    Secret,
    /// Not set, and without a default.
    Unset,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Bare(text) => f.write_str(text),
            Self::Secret => f.write_str("\"[redacted]\""),
            Self::Unset => Ok(()),
        }
    }
}

/// `text` as a basic string of TOML.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            // The origin may be anything; a control character must not reach a terminal.
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A key, its value and where that was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(super) section: String,
    pub(super) key: &'static str,
    pub(super) shown: Shown,
    pub(super) origin: Origin,
}

impl Entry {
    /// The section, such as `queue` or `sync.users`.
    pub fn section(&self) -> &str {
        &self.section
    }

    /// The key within its section.
    pub fn key(&self) -> &str {
        self.key
    }

    /// The value as TOML, or `None` where it is not set and has no default. Secrets are redacted.
    pub fn value(&self) -> Option<String> {
        match &self.shown {
            Shown::Unset => None,
            shown => Some(shown.to_string()),
        }
    }

    /// Where the value was set.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

/// Every key with its value in force. `Display` prints it as TOML with the origin of each value as
/// a comment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effective(pub(super) Vec<Entry>);

impl Effective {
    /// The keys, section by section.
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, section) in self.0.chunk_by(|a, b| a.section == b.section).enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            writeln!(f, "[{}]", section[0].section)?;
            let keys = section.iter().map(|e| e.key.len()).max().unwrap_or(0);
            let values = section
                .iter()
                .map(|e| e.shown.to_string().len())
                .max()
                .unwrap_or(0);
            // One very long value must not push every comment off the screen.
            let values = values.min(40);
            for Entry {
                key, shown, origin, ..
            } in section
            {
                match shown {
                    Shown::Unset if *origin == Origin::Default => {
                        writeln!(f, "# {key} is not set")?;
                    }
                    Shown::Unset => writeln!(f, "# {key} cannot be used: {origin}")?,
                    shown => {
                        let shown = shown.to_string();
                        writeln!(f, "{key:<keys$} = {shown:<values$}  # {origin}")?;
                    }
                }
            }
        }
        Ok(())
    }
}
