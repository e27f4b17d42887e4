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
    let watched = sd_notify::watchdog_enabled().is_some();
    let mut known = Known::default();
    let mut warned = false;
    while let Some(report) = watcher.next().await {
        let state = Known::from(&report, known);
        let mut message = state.message(known);
        if watched {
            message.push(NotifyState::Watchdog);
        }
        if message.is_empty() {
            continue;
        }
        match sd_notify::notify(&message) {
            // What could not be told is told with the next report.
            Ok(()) => known = state,
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(%error, "systemd cannot be told how it goes; look at NOTIFY_SOCKET");
            }
            Err(_) => {}
        }
    }
}

/// What systemd knows of us, or should.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    ready: bool,
    stopping: bool,
    status: &'static str,
}

impl Known {
    /// What it should know by this report. A standby is ready, as /readyz has it, and ready is for
    /// good.
    fn from(report: &Report, before: Self) -> Self {
        let phase = report.status.phase;
        let stopping = matches!(phase, Phase::Draining | Phase::Done);
        Self {
            ready: before.ready || (report.reached && !stopping),
            stopping,
            status: match phase {
                Phase::Draining | Phase::Done => "stopping: finishing what is in flight",
                Phase::Leading => "leading",
                Phase::Standby => "standing by: another process leads",
                Phase::Starting if report.is_barred() => "waiting: the schema does not fit",
                Phase::Starting if report.reached => "asking for the lease",
                Phase::Starting => "Postgres was not reached yet",
            },
        }
    }

    /// What is new to one who knows `before`.
    fn message(self, before: Self) -> Vec<NotifyState<'static>> {
        let mut message = Vec::new();
        if self.ready && !before.ready {
            message.push(NotifyState::Ready);
        }
        if self.stopping && !before.stopping {
            message.push(NotifyState::Stopping);
        }
        if self.status != before.status {
            message.push(NotifyState::Status(self.status));
        }
        message
    }
}
