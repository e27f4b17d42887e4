//! The password that stands in a file: read for each connection, so that a rotation needs no restart.
//!
//! Owns the reading of that file. Nothing repeats a part of it.

use std::io::Read as _;
use std::path::PathBuf;

use secrecy::SecretString;

use super::error::{Error, Kind};
use crate::secret_file;

/// Longest file, in bytes.
const FILE_MAX_BYTES: u64 = 65_536;

/// A file that holds the password, and nothing else but white space around it.
#[derive(Clone, Debug)]
pub struct PasswordFile(pub PathBuf);

impl PasswordFile {
    /// Reads the password as it is now. It is opened by its path at each reading, so a rotation shows
    /// whether the file was written, renamed over, or reached through a link that was swapped.
    ///
    /// Reads a small local file and blocks that long.
    ///
    /// # Errors
    /// `Refused`: it cannot be read, or holds no password.
    pub(super) fn read(&self) -> Result<SecretString, Error> {
        let wrong = |what: String| {
            let doing = format!("reading the password file {}", self.0.display());
            Error::new(Kind::Refused, doing, what).with_hint(
                "put the one line of the password there, and let the user that runs pg2kv read it",
            )
        };
        let unreadable = |error: std::io::Error| wrong(error.to_string());
        let mut text = String::new();
        secret_file::open(&self.0)
            .and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text))
            .map_err(unreadable)?;
        let password = text.trim();
        if password.is_empty() || password.chars().any(char::is_control) {
            return Err(wrong("it does not hold exactly one line".to_owned()));
        }
        Ok(SecretString::from(password))
    }
}
