//! Reading secrets: in place, or from files. No value of one is kept for printing.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use config::ValueKind;
use secrecy::{ExposeSecret as _, SecretString};

use super::effective::Shown;
use super::problem::{Complaint, Scope};
use super::section::Section;
use super::shape::Form;
use crate::secret_file;

/// Largest secret file in bytes: a wrong path must not fill the memory.
const SECRET_FILE_MAX_BYTES: u64 = 65_536;

/// Where a secret was found.
pub(super) enum FoundSecret {
    /// The text itself.
    Inline(SecretString),
    /// In a file, not yet read.
    File(PathBuf),
}

impl Section<'_, '_> {
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
        self.note(key, Form::Secret, None);
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
                Ok(text) => {
                    self.warn_exposed(file_key, &path);
                    (file_key, text)
                }
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

    /// Warns of a secret that others on this machine may read or replace.
    pub(super) fn warn_exposed(&mut self, file_key: &str, path: &Path) {
        if let Some(what) = secret_file::exposure(path) {
            self.warn(file_key, &format!("names {}, which {what}", path.display()));
        }
    }
}

fn read_secret(path: &Path) -> std::io::Result<SecretString> {
    let mut text = String::new();
    let read = secret_file::open(path)?
        .take(SECRET_FILE_MAX_BYTES + 1)
        .read_to_string(&mut text)?;
    if read as u64 > SECRET_FILE_MAX_BYTES {
        return Err(std::io::Error::other("it is larger than any secret"));
    }
    Ok(SecretString::from(text))
}
