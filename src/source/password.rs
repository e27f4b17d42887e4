//! The password that stands in a file: read for each connection, so that a rotation needs no restart.
//!
//! Owns the reading of that file. Nothing repeats a part of it.

use std::io::Read as _;
use std::path::PathBuf;

use secrecy::SecretString;

use super::error::{Error, Kind};
use super::url::parse_url;
use crate::secret_file;

/// Longest file, in bytes.
const FILE_MAX_BYTES: u64 = 65_536;

/// A file that holds the password.
#[derive(Clone, Debug)]
pub enum PasswordFile {
    /// Nothing else but white space around it.
    Alone(PathBuf),
    /// A connection string, with the password as a part of it or without one.
    InUrl(PathBuf),
}

impl PasswordFile {
    /// Reads the password as it is now. It is opened by its path at each reading, so a rotation shows
    /// whether the file was written, renamed over, or reached through a link that was swapped.
    ///
    /// Reads a small local file and blocks that long.
    ///
    /// # Errors
    /// `Refused`: it cannot be read, or does not hold what it should.
    pub(super) fn read(&self) -> Result<Option<SecretString>, Error> {
        let (path, name, what_it_holds) = match self {
            Self::Alone(path) => (path, "password file", "the one line of the password"),
            Self::InUrl(path) => (path, "connection string's file", "the connection string"),
        };
        let wrong = |what: String| {
            let doing = format!("reading the {name} {}", path.display());
            Error::new(Kind::Refused, doing, what).with_hint(format!(
                "put {what_it_holds} there, and let the user that runs pg2kv read it"
            ))
        };
        let unreadable = |error: std::io::Error| wrong(error.to_string());
        let mut text = String::new();
        secret_file::open(path)
            .and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text))
            .map_err(unreadable)?;
        let text = text.trim();
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(wrong("it does not hold exactly one line".to_owned()));
        }
        match self {
            Self::Alone(_) => Ok(Some(SecretString::from(text))),
            Self::InUrl(_) => {
                // Hosts, user and TLS are those of the start; only the password is taken from here.
                let (config, _) =
                    parse_url(text, None, true).map_err(|error| wrong(error.to_string()))?;
                let password = config.get_password().map(String::from_utf8_lossy);
                Ok(password.map(|text| SecretString::from(text.into_owned())))
            }
        }
    }
}
