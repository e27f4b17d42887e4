//! Audits: a comparison of one sync with KV, each page of names let go by the relay.
//!
//! Owns the way on which a comparison asks the loop for a page, and what becomes of what it finds:
//! keys that drifted go into the outbox before the comparison counts as done, so whatever dies in
//! between, they are mended or found again.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::effects::World;
use crate::audit::{self, Pace, Report, Target};
use crate::change::{Answer, Epoch, Key, Mono, SyncId};
use crate::relay::{AuditFound, SweepFailure};
use crate::source;
use crate::source::audit::Auditor;

/// Where comparisons ask.
pub(super) struct Desk {
    pages: mpsc::Sender<PageAsked>,
    recheck_after: Duration,
}

/// A comparison that waits for a page.
pub(super) struct PageAsked {
    pub(super) sync: SyncId,
    /// How the page before came to nothing.
    pub(super) failed: Option<Answer>,
    allowed: oneshot::Sender<Mono>,
}

impl Desk {
    /// A desk, and the loop's side of it. One comparison runs at a time, and asks for one page.
    pub(super) fn new(recheck_after: Duration) -> (Self, mpsc::Receiver<PageAsked>) {
        let (pages, asked) = mpsc::channel(1);
        let desk = Self {
            pages,
            recheck_after,
        };
        (desk, asked)
    }
}

impl PageAsked {
    /// Whether the comparison still runs.
    pub(super) fn is_wanted(&self) -> bool {
        !self.allowed.is_closed()
    }

    /// Lets it go on; the lease is trusted until then.
    pub(super) fn allow(self, trusted_until: Mono) {
        // It may be gone.
        let _ = self.allowed.send(trusted_until);
    }
}

/// The pace of a comparison: the relay's.
struct Paced<'a> {
    desk: &'a Desk,
    sync: SyncId,
}

impl Desk {
    /// Waits until one request may go; returns the end of the trust in the lease.
    pub(super) async fn permission(&self, sync: SyncId, failed: Option<&Answer>) -> Mono {
        let (allowed, wait) = oneshot::channel();
        let asked = PageAsked {
            sync,
            failed: failed.cloned(),
            allowed,
        };
        if self.pages.send(asked).await.is_ok()
            && let Ok(trusted_until) = wait.await
        {
            return trusted_until;
        }
        // The leadership is over, and this task with it.
        std::future::pending().await
    }
}

impl Pace for Paced<'_> {
    async fn page(&mut self, failed: Option<&Answer>) {
        self.desk.permission(self.sync, failed).await;
    }

    async fn again(&mut self) {
        tokio::time::sleep(self.desk.recheck_after).await;
    }
}

impl World {
    /// Compares a sync with KV, and asks for what drifted to be written again.
    pub(super) async fn audit(
        &self,
        epoch: Epoch,
        sync: SyncId,
        reason: &str,
    ) -> Result<AuditFound, SweepFailure> {
        let ledger = |error: source::Error| SweepFailure::Ledger(error.into());
        let spec = self.sync(sync);
        let auditor = Auditor::connect(&self.source).await.map_err(ledger)?;
        let target = Target {
            source: &spec.source,
            template: &spec.template,
            namespace: &spec.namespace,
        };
        let pace = Paced {
            desk: &self.desk,
            sync,
        };
        let report = audit::compare(&auditor, &self.kv, &target, pace, |_| {})
            .await
            .map_err(|error| match error {
                audit::Error::Source(error) => ledger(error),
                audit::Error::Kv(answer) | audit::Error::Pair(answer) => SweepFailure::Kv(answer),
            })?;
        let mut found = found(&report);
        if report.unmade > 0 {
            let retired = auditor.retire(epoch, &spec.source).await;
            found.unmade = retired.map_err(ledger)?;
        }
        if found.everything {
            let asked = auditor.write_all_again(epoch, &spec.source).await;
            asked.map_err(ledger)?;
        } else {
            let keys: Vec<Key> = report.keys.into_iter().map(|(key, _)| key).collect();
            let asked = auditor.write_again(epoch, &spec.source, &keys).await;
            asked.map_err(ledger)?;
        }
        if !found.undecided {
            let noted = auditor.audited(epoch, &spec.source, reason).await;
            noted.map_err(ledger)?;
        }
        Ok(found)
    }
}

fn found(report: &Report) -> AuditFound {
    AuditFound {
        equal: report.equal,
        missing: report.missing,
        stale: report.stale,
        orphaned: report.orphaned + report.unmade,
        dead_lettered: report.dead_lettered,
        pending: report.pending,
        foreign: report.foreign,
        undecided: report.undecided,
        everything: report.is_cut(),
        unmade: None,
    }
}
