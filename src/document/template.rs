//! Key templates: how the key columns become the name of a pair, and back.
//!
//! Owns the syntax of templates. Knows nothing of values.

use std::fmt;

use crate::change::{KV_NAME_MAX_BYTES, KvName, Poison, PoisonReason};

/// How the values of the key columns make the name of a KV pair: `user:{id}`.
///
/// `{column}` stands for the value of a key column as Postgres prints it; `{{` and `}}` stand for
/// the braces themselves. Every key column is used at least once, and text stands between two
/// placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    prefix: String,
    placeholders: Vec<Placeholder>,
    columns: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Placeholder {
    /// Position in the key columns.
    column: usize,
    /// The text up to the next placeholder or the end.
    after: String,
}

/// Why a text is not a template. Positions count characters from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{` without `}`.
    #[error("`{{` at character {at} is not closed; write `{{column}}`, or `{{{{` for a brace")]
    Unclosed {
        /// Where the brace stands.
        at: usize,
    },
    /// `}` without `{`.
    #[error("`}}` at character {at} closes nothing; write `}}}}` for a brace")]
    Stray {
        /// Where the brace stands.
        at: usize,
    },
    /// A placeholder for something that is not a key column.
    #[error("`{{{column}}}` at character {at} is not a key column; the key columns are: {columns}")]
    UnknownColumn {
        /// Where the placeholder begins.
        at: usize,
        /// What it says.
        column: String,
        /// The key columns, with commas between.
        columns: String,
    },
    /// Two placeholders with nothing between them.
    #[error(
        "the placeholder at character {at} follows another one directly, so names could not be \
         told apart; put a text such as `:` between them"
    )]
    Adjacent {
        /// Where the second placeholder begins.
        at: usize,
    },
    /// A key column that is not used, so that different rows would share one name.
    #[error(
        "the key column `{column}` is not used; without `{{{column}}}` rows would share a name"
    )]
    Unused {
        /// The column.
        column: String,
    },
    /// The fixed text alone is over the limit for a name, or is one that Workers KV refuses.
    #[error("no KV key can be made of this template: {0}")]
    Impossible(String),
}

impl Template {
    /// Parses `text` for a sync with these key columns, in the order that [`Self::render`] gets
    /// their values. Without key columns the text is the one name.
    ///
    /// # Errors
    /// [`TemplateError`], which names the position.
    pub fn parse(text: &str, key_columns: &[String]) -> Result<Self, TemplateError> {
        let mut prefix = String::new();
        let mut placeholders: Vec<Placeholder> = Vec::new();
        let mut characters = text.chars().zip(1..).peekable();
        while let Some((character, at)) = characters.next() {
            let doubled =
                characters.next_if(|(next, _)| *next == character && "{}".contains(*next));
            let literal = match placeholders.last_mut() {
                Some(placeholder) => &mut placeholder.after,
                None => &mut prefix,
            };
            match character {
                '{' if doubled.is_none() => {
                    let column =
                        placeholder_name(&mut characters).ok_or(TemplateError::Unclosed { at })?;
                    if placeholders
                        .last()
                        .is_some_and(|last| last.after.is_empty())
                    {
                        return Err(TemplateError::Adjacent { at });
                    }
                    let column = key_columns
                        .iter()
                        .position(|key| *key == column)
                        .ok_or_else(|| TemplateError::UnknownColumn {
                            at,
                            column: column.clone(),
                            columns: key_columns.join(", "),
                        })?;
                    placeholders.push(Placeholder {
                        column,
                        after: String::new(),
                    });
                }
                '}' if doubled.is_none() => return Err(TemplateError::Stray { at }),
                _ => literal.push(character),
            }
        }
        let unused = (0..key_columns.len()).find(|column| {
            !placeholders
                .iter()
                .any(|placeholder| placeholder.column == *column)
        });
        if let Some(column) = unused {
            return Err(TemplateError::Unused {
                column: key_columns[column].clone(),
            });
        }
        let template = Self {
            prefix,
            placeholders,
            columns: key_columns.to_vec(),
        };
        template.check_fixed_text()?;
        Ok(template)
    }

    /// The columns whose values make a name, in the order that [`Self::render`] takes them.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The text before the first placeholder: every name of the sync begins with it.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The name for these values of the key columns.
    ///
    /// # Errors
    /// [`Poison`] where the name is over a limit of Workers KV, or where it could be read back as
    /// other values: of `{a}:{b}` the value of `a` must not contain the `:`.
    ///
    /// # Panics
    /// Where the number of values is not the number of key columns.
    pub fn render(&self, columns: &[String]) -> Result<KvName, Poison> {
        assert_eq!(
            columns.len(),
            self.columns.len(),
            "one value for each key column"
        );
        let mut name = self.prefix.clone();
        for (index, placeholder) in self.placeholders.iter().enumerate() {
            let value_begins = name.len();
            name.push_str(&columns[placeholder.column]);
            let value_ends = name.len();
            name.push_str(&placeholder.after);
            // The last placeholder is read back from the end, so it may hold any value. The others
            // end at the first match of the text after them. A value such as `a:` before `::` makes
            // a match that begins within the value although the value does not contain the text.
            let is_last = index + 1 == self.placeholders.len();
            if !is_last && find(&name, value_begins, &placeholder.after) != Some(value_ends) {
                return Err(Poison::new(
                    PoisonReason::IllegalKey,
                    format!(
                        "the value of key column `{}` runs into the text {:?} that follows it in \
                         the key template, so the KV key could stand for another row too; choose \
                         a separator that the values do not contain",
                        self.columns[placeholder.column], placeholder.after
                    ),
                ));
            }
        }
        KvName::new(name)
    }

    /// The values of the key columns that make this name, or `None` where none do: then the pair is
    /// not of this sync.
    pub fn reverse(&self, name: &KvName) -> Option<Vec<String>> {
        let mut rest = name.as_str().strip_prefix(&self.prefix)?;
        let mut columns: Vec<Option<&str>> = vec![None; self.columns.len()];
        for (index, placeholder) in self.placeholders.iter().enumerate() {
            let value;
            if index + 1 == self.placeholders.len() {
                value = rest.strip_suffix(placeholder.after.as_str())?;
                rest = "";
            } else {
                (value, rest) = rest.split_once(placeholder.after.as_str())?;
            }
            let column = &mut columns[placeholder.column];
            if column.is_some_and(|earlier| earlier != value) {
                return None; // the template uses the column twice, the name shows two values
            }
            *column = Some(value);
        }
        if !rest.is_empty() {
            return None;
        }
        columns
            .into_iter()
            .map(|value| value.map(str::to_owned))
            .collect()
    }

    fn check_fixed_text(&self) -> Result<(), TemplateError> {
        if self.placeholders.is_empty() {
            return match KvName::new(self.prefix.as_str()) {
                Ok(_) => Ok(()),
                Err(poison) => Err(TemplateError::Impossible(poison.detail)),
            };
        }
        let after: usize = self.placeholders.iter().map(|part| part.after.len()).sum();
        let fixed = self.prefix.len() + after;
        if fixed > KV_NAME_MAX_BYTES {
            return Err(TemplateError::Impossible(format!(
                "its fixed text has {fixed} bytes; Workers KV allows {KV_NAME_MAX_BYTES}"
            )));
        }
        Ok(())
    }
}

/// The text that [`Template::parse`] takes.
impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |text: &str| text.replace('{', "{{").replace('}', "}}");
        f.write_str(&escaped(&self.prefix))?;
        for part in &self.placeholders {
            let column = &self.columns[part.column];
            write!(f, "{{{column}}}{}", escaped(&part.after))?;
        }
        Ok(())
    }
}

/// The text up to the closing brace, which is taken too.
fn placeholder_name(characters: &mut impl Iterator<Item = (char, usize)>) -> Option<String> {
    let mut name = String::new();
    for (character, _) in characters {
        match character {
            '}' => return Some(name),
            '{' => return None,
            _ => name.push(character),
        }
    }
    None
}

fn find(text: &str, from: usize, what: &str) -> Option<usize> {
    text[from..].find(what).map(|at| from + at)
}
