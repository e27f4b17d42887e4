//! The API token: where it comes from and whether it can be one at all.
//!
//! Owns the reading and checking of the secret. Knows nothing of HTTP. The secret has no `Debug`,
//! and no error repeats a part of it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use crate::secret_file;

/// Longest token, in bytes, white space around it included. Cloudflare's have 40 to about 60.
pub const TOKEN_MAX_BYTES: u64 = 4_096;

/// Where the API token is read from.
#[derive(Clone, Debug)]
pub enum TokenSource {
    /// A token that stays as it is for the life of the process.
    Fixed(SecretString),
    /// A file that holds the token and nothing else but white space around it. It is opened by its
    /// path at each reading, so a rotation shows whether the file was written, renamed over or, as
    /// Kubernetes does, reached through a symbolic link that was swapped.
    File(PathBuf),
}

impl TokenSource {
    /// Reads the token as it is now: visible ASCII without white space.
    ///
    /// Reads a small local file and blocks that long.
    ///
    /// # Errors
    /// [`TokenError`], which names the file and says what to do.
    pub fn read(&self) -> Result<SecretString, TokenError> {
        match self {
            Self::Fixed(token) => check(token.expose_secret(), "the API token"),
            Self::File(path) => {
                let place = format!("the token file {}", path.display());
                check(read_file(path)?.expose_secret(), &place)
            }
        }
    }
}

/// Why there is no token to use.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the token file {path}; let the user that runs pg2kv read it")]
    Unreadable {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is longer than any token.
    #[error(
        "the token file {path} has more than {TOKEN_MAX_BYTES} bytes; it must hold the API token \
         and nothing else"
    )]
    TooLong {
        /// The file.
        path: String,
    },
    /// There is nothing but white space.
    #[error("{place} is empty; put a Cloudflare API token with \"Workers KV Storage: Edit\" there")]
    Empty {
        /// The file, or "the API token".
        place: String,
    },
    /// White space within the token, as in `Bearer abc` or in two lines.
    #[error(
        "{place} has white space inside; it must be the bare token: one line, no \"Bearer\" before \
         it"
    )]
    InnerSpace {
        /// The file, or "the API token".
        place: String,
    },
    /// A character that no token has.
    #[error(
        "{place} has a character that is not visible ASCII; copy the token again, without quotation \
         marks of a word processor"
    )]
    NotAscii {
        /// The file, or "the API token".
        place: String,
    },
}

fn read_file(path: &Path) -> Result<SecretString, TokenError> {
    let name = || path.display().to_string();
    let unreadable = |source| TokenError::Unreadable {
        path: name(),
        source,
    };
    let mut text = String::new();
    let mut file = secret_file::open(path)
        .map_err(unreadable)?
        .take(TOKEN_MAX_BYTES + 1);
    let read = file
        .read_to_string(&mut text)
        .map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => TokenError::NotAscii {
                place: format!("the token file {}", name()),
            },
            _ => unreadable(source),
        })?;
    if read as u64 > TOKEN_MAX_BYTES {
        return Err(TokenError::TooLong { path: name() });
    }
    Ok(SecretString::from(text))
}

fn check(text: &str, place: &str) -> Result<SecretString, TokenError> {
    let token = text.trim();
    let place = || place.to_owned();
    if token.is_empty() {
        Err(TokenError::Empty { place: place() })
    } else if token.contains(char::is_whitespace) {
        Err(TokenError::InnerSpace { place: place() })
    } else if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err(TokenError::NotAscii { place: place() })
    } else {
        Ok(SecretString::from(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "v1.0-canary_0123456789";

    fn fixed(text: &str) -> TokenSource {
        TokenSource::Fixed(SecretString::from(text))
    }

    #[test]
    fn white_space_around_is_trimmed() {
        let token = fixed(&format!("\n {TOKEN}\r\n")).read().unwrap();
        assert_eq!(token.expose_secret(), TOKEN);
    }

    #[test]
    fn what_cannot_be_a_token_is_refused_without_repeating_it() {
        let inner =
            |text: String| matches!(fixed(&text).read(), Err(TokenError::InnerSpace { .. }));
        assert!(inner(format!("Bearer {TOKEN}")));
        assert!(inner(format!("{TOKEN}\n{TOKEN}")));
        assert!(matches!(fixed(" \n").read(), Err(TokenError::Empty { .. })));
        for odd in ["\u{201c}v1\u{201d}", "v1\0", "v1\u{7f}", "t\u{f6}ken"] {
            assert!(
                matches!(fixed(odd).read(), Err(TokenError::NotAscii { .. })),
                "{odd:?}"
            );
        }
        let error = fixed(&format!("Bearer {TOKEN}")).read().unwrap_err();
        assert!(!format!("{error} {error:?}").contains(TOKEN));
        assert!(!format!("{:?}", fixed(TOKEN)).contains(TOKEN));
    }

    #[test]
    fn a_file_is_read_anew_through_a_swapped_link() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (version, token) in [("one", "token-one\n"), ("two", "token-two\n")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("token"), token).unwrap();
        }
        std::os::unix::fs::symlink("one", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/token", at("token")).unwrap();
        let source = TokenSource::File(at("token"));
        assert_eq!(source.read().unwrap().expose_secret(), "token-one");

        std::os::unix::fs::symlink("two", at("..data_tmp")).unwrap();
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert_eq!(source.read().unwrap().expose_secret(), "token-two");
    }

    #[test]
    fn a_bad_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let read = || TokenSource::File(path.clone()).read().unwrap_err();
        assert!(matches!(read(), TokenError::Unreadable { .. }));
        std::fs::write(&path, "x".repeat(5_000)).unwrap();
        assert!(matches!(read(), TokenError::TooLong { .. }));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(read(), TokenError::NotAscii { .. }));
        std::fs::write(&path, "").unwrap();
        assert!(read().to_string().contains(path.to_str().unwrap()));
    }
}
