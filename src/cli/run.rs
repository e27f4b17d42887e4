//! `pg2kv run`: the daemon.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{assemble, exit, report};
use crate::config::Config;
use crate::daemon::Daemon;
use crate::metrics;
use crate::ops::Server;
use crate::sink::kv::KvClient;

/// Runs until SIGTERM or SIGINT, then finishes what is in flight. A second signal exits at once.
pub async fn execute(config: Config) -> ExitCode {
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let settings = match assemble::daemon(&config) {
        Ok(settings) => settings,
        Err(error) => return report::failure(exit::CONFIG, &error, Some("postgres.url")),
    };
    let kv = match KvClient::new(assemble::kv(&config.kv)) {
        Ok(kv) => kv,
        Err(error) => return report::failure(exit::CONFIG, &error, Some("[kv]")),
    };
    let metrics = match metrics::install() {
        Ok(handle) => handle,
        Err(error) => return report::failure(exit::FAILED, &error, None),
    };
    let (daemon, watcher) = Daemon::new(settings, kv);
    let listen = config.ops.listen;
    let server = match Server::bind(listen, watcher, metrics).await {
        Ok(server) => server,
        Err(error) => {
            let place = format!("ops.listen = \"{listen}\"");
            return report::failure(exit::UNAVAILABLE, &error, Some(&place));
        }
    };
    let shutdown = CancellationToken::new();
    if let Err(error) = stop_on_signals(shutdown.clone()) {
        return report::failure(exit::FAILED, &error, None);
    }
    if let Ok(addr) = server.addr() {
        info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = %addr,
            syncs = config.syncs.len(),
            "pg2kv started"
        );
    }
    let served = CancellationToken::new();
    let server = tokio::spawn(server.serve(served.clone()));
    daemon.run(shutdown).await;
    served.cancel();
    // It ends within a second, and nothing of value is lost if it does not.
    let _ = server.await;
    info!("stopped; nothing is in flight");
    ExitCode::SUCCESS
}

fn stop_on_signals(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            }
        };
        let name = next().await;
        info!(signal = name, "stopping: finishing what is in flight; once more to exit at once");
        shutdown.cancel();
        let name = next().await;
        warn!(signal = name, "exiting at once; claims in Postgres keep what was in flight");
        std::process::exit(i32::from(exit::FAILED));
    });
    Ok(())
}
