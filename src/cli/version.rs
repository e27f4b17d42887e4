//! `pg2kv version`.

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::LazyLock;

use super::args::VersionArgs;
use super::output::Failure;
use crate::sql_kit;

/// Version of the package.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Revision of the source, where the build was told.
const REVISION: Option<&str> = match option_env!("PG2KV_REVISION") {
    Some(revision) if !revision.is_empty() => Some(revision),
    _ => None,
};

/// What `--version` prints after the name.
pub(super) static SHORT: LazyLock<String> = LazyLock::new(|| match REVISION {
    Some(revision) => format!("{VERSION} ({revision})"),
    None => VERSION.to_owned(),
});

pub(super) fn print(args: &VersionArgs) -> Result<ExitCode, Failure> {
    let mut out = anstream::stdout();
    if args.json {
        let version = serde_json::json!({
            "version": VERSION,
            "revision": REVISION,
            "schema_version": sql_kit::VERSION,
            "target": target(),
        });
        writeln!(out, "{version}")?;
    } else {
        writeln!(out, "pg2kv {}", *SHORT)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What this was compiled for, as the compiler names it.
fn target() -> String {
    use std::env::consts::{ARCH, OS};
    match OS {
        "linux" if cfg!(target_env = "musl") => format!("{ARCH}-unknown-linux-musl"),
        "linux" => format!("{ARCH}-unknown-linux-gnu"),
        "macos" => format!("{ARCH}-apple-darwin"),
        other => format!("{ARCH}-unknown-{other}"),
    }
}
