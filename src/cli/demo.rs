//! `pg2kv demo`.

use std::process::ExitCode;

use super::DemoArgs;

/// Runs the demonstration.
pub(super) async fn execute(args: DemoArgs) -> ExitCode {
    tracing::error!(rows = args.rows, "this build holds no demonstration");
    ExitCode::FAILURE
}
