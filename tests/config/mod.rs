//! Configuration and command line, as an operator meets them.

mod cli;
mod described;
mod documents;
mod errors;
mod example;
mod related;
mod secrets;
mod sources;
mod upgrade;
mod verbs;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pg2kv::config::{Config, ConfigErrors, load};
use tempfile::TempDir;

/// The least that is complete.
const BASE: &str = r#"
[postgres]
url = "postgres://daemon@localhost/app"
[kv]
namespace_id = "0123456789abcdef0123456789abcdef"
api_token = "canary-token-0123456789"
[sync.users]
table = "public.users"
key = "user:{id}"
columns = ["plan"]
"#;

/// Files of a test, gone with it.
struct Files {
    directory: TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Loads `text` as a TOML file.
fn read(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let files = Files::new();
    let path = files.write("pg2kv.toml", text);
    load(&[path], environment(variables))
}

/// [`read`] of a text that is right.
fn good(text: &str, variables: &[(&str, &str)]) -> Config {
    read(text, variables).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The errors of `text`, with FILE in place of the file's name.
fn errors(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let files = Files::new();
    let path = files.write("pg2kv.toml", text);
    match load(std::slice::from_ref(&path), environment(variables)) {
        Ok(_) => Vec::new(),
        Err(errors) => shown(&errors, &path),
    }
}

fn shown(errors: &ConfigErrors, file: &Path) -> Vec<String> {
    let name = file.display().to_string();
    errors
        .problems()
        .iter()
        .map(|problem| problem.to_string().replace(&name, "FILE"))
        .collect()
}
