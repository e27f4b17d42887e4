//! What systemd wants to be told (`Type=notify`, `WatchdogSec=`): ready, alive, stopping.
//!
//! Each message follows a report, and only the daemon's loop makes reports, one a second at least: a
//! loop that is stuck says nothing, and systemd ends the process.

use sd_notify::NotifyState;

use crate::daemon::{Report, Watcher};
use crate::relay::Phase;

/// Tells systemd until the daemon is gone. Returns at once where nobody listens (no
/// `NOTIFY_SOCKET`).
pub async fn notify(mut watcher: Watcher) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let mut said = Said::default();
    let watched = sd_notify::watchdog_enabled().is_some();
    while let Some(report) = watcher.next().await {
        let state = said.about(&report);
        let mut message = Vec::new();
        if state.ready {
            message.push(NotifyState::Ready);
        }
        if state.stopping {
            message.push(NotifyState::Stopping);
        }
        if let Some(status) = state.status {
            message.push(NotifyState::Status(status));
        }
        if watched {
            message.push(NotifyState::Watchdog);
        }
        if message.is_empty() {
            continue;
        }
        if let Err(error) = sd_notify::notify(&message) {
            // Once: without the messages systemd restarts us, and its log says so itself.
            tracing::warn!(%error, "systemd cannot be told how it goes; look at NOTIFY_SOCKET");
            return;
        }
    }
}

/// What systemd knows already.
#[derive(Debug, Default)]
struct Said {
    ready: bool,
    stopping: bool,
    status: Option<&'static str>,
}

/// What is new.
#[derive(Debug, PartialEq, Eq)]
struct News {
    ready: bool,
    stopping: bool,
    status: Option<&'static str>,
}

impl Said {
    fn about(&mut self, report: &Report) -> News {
        let phase = report.status.phase;
        let stops = matches!(phase, Phase::Draining | Phase::Done);
        // As /readyz has it: a standby is ready.
        let ready = report.reached && !stops && !self.ready;
        let stopping = stops && !self.stopping;
        self.ready |= ready;
        self.stopping |= stopping;
        let status = match phase {
            _ if stops => "stopping: finishing what is in flight",
            Phase::Leading => "leading",
            Phase::Standby => "standing by: another process leads",
            _ if report.reached => "asking for the lease",
            _ => "Postgres was not reached yet",
        };
        let changed = self.status != Some(status);
        self.status = Some(status);
        News {
            ready,
            stopping,
            status: changed.then_some(status),
        }
    }
}
