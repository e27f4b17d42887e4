//! `pg2kv emulator`.

use std::io::Write as _;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::args::EmulatorArgs;
use super::output::{DIM, Failure, GOOD};
use crate::emulator::clock::Clock;
use crate::emulator::limits::Limits;
use crate::emulator::{Emulator, Namespace, Options};

/// Runs until SIGINT or SIGTERM.
pub(super) async fn execute(args: EmulatorArgs) -> Result<ExitCode, Failure> {
    // First, so that a signal between the ready line and here is not missed.
    let mut terminate = signal(SignalKind::terminate())?;
    let namespaces = args
        .namespace
        .iter()
        .map(|id| Namespace {
            id: id.clone(),
            title: "pg2kv".to_owned(),
        })
        .collect();
    let emulator = Emulator::start(Options {
        listen: args.listen,
        token: args.token.clone(),
        account: args.account.clone(),
        namespaces,
        data_dir: args.data_dir.clone(),
        limits: if args.no_limits {
            Limits::without_rate_limits()
        } else {
            Limits::default()
        },
        record_history: 0,
        clock: Clock::running(),
    })
    .await
    .map_err(|error| {
        Failure::unavailable(
            format!("the emulator cannot start: {error}"),
            "choose another --listen address, or correct --namespace and --data-dir",
        )
    })?;
    writeln!(
        anstream::stdout(),
        "{GOOD}ready{GOOD:#} {} {DIM}account {}; namespace {}; {}; {}; Ctrl-C stops it{DIM:#}",
        emulator.base_url(),
        args.account
            .as_deref()
            .unwrap_or("any 32 hexadecimal digits"),
        args.namespace.join(", "),
        if args.token.is_some() {
            "token required"
        } else {
            "any token"
        },
        match &args.data_dir {
            Some(directory) => format!("kept in {}", directory.display()),
            None => "in memory".to_owned(),
        },
    )?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    emulator.stop().await;
    Ok(ExitCode::SUCCESS)
}
