//! The command line as a whole: what every verb has in common, and what is made of the parser.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not the helpers of tests

mod administrator;
mod dry_run;
mod exit_codes;
mod grants;
mod manual;
mod schema;
mod watch;

use std::process::{Command, Output, Stdio};

/// The namespace of `crate::audit::Place`.
const NAMESPACE: &str = "0123456789abcdef0123456789abcdef";

/// The binary with these arguments, and nothing of our environment but where programs are.
fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pg2kv"));
    command.env_clear().args(arguments).stdin(Stdio::null());
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command.output().unwrap()
}

/// Standard output of a verb that succeeds.
fn printed(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
