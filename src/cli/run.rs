//! `pg2kv run`: the daemon.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::output::Failure;
use crate::config::Config;
use crate::daemon::Daemon;
use crate::metrics;
use crate::ops::{Server, systemd};

/// Runs until SIGTERM or SIGINT, then finishes what is in flight. A second signal exits at once.
pub(super) async fn execute(config: Config) -> Result<ExitCode, Failure> {
    let metrics = metrics::install()
        .map_err(|error| Failure::new(format!("metrics cannot start: {error}"), "report this"))?;
    let kv = super::kv_client(&config)?;
    let (daemon, watcher) = Daemon::new(config.daemon_settings(), kv);
    let listen = config.ops.listen;
    let told = watcher.clone();
    let server = Server::bind(listen, &config.ops.hosts, watcher, metrics)
        .await
        .map_err(|error| {
            Failure::unavailable(
                format!("cannot listen on {listen}: {error}"),
                "set ops.listen to an address of this machine and a port that is free",
            )
        })?;
    let shutdown = CancellationToken::new();
    stop_on_signals(shutdown.clone())?;
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
    let notified = tokio::spawn(systemd::notify(told));
    daemon.run(shutdown).await;
    served.cancel();
    // It ends within a second, and nothing of value is lost if it does not.
    let _ = server.await;
    // The daemon is gone, so it ends with the last report: that it stops is told however fast that was.
    let _ = notified.await;
    info!("stopped");
    Ok(ExitCode::SUCCESS)
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
        info!(
            signal = name,
            "stopping: finishing what is in flight; once more to exit at once"
        );
        shutdown.cancel();
        let name = next().await;
        warn!(
            signal = name,
            "exiting at once; claims in Postgres keep what was in flight"
        );
        std::process::exit(1);
    });
    Ok(())
}
