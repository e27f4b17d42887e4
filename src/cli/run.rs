//! `pg2kv run`.

use std::process::ExitCode;

use crate::config::Config;

/// Runs the daemon.
pub(super) async fn execute(config: Config) -> ExitCode {
    tracing::error!(syncs = config.syncs.len(), "this build holds no daemon");
    ExitCode::FAILURE
}
