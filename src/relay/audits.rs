//! When KV is compared with the rows: one sync after the other, each once in an interval, and at once
//! where the ledger owes it. Pure.
//!
//! Owns when each sync is due and which comparison runs. What it must not disturb, `term` knows.
//!
//! Nothing here has to survive: when the last comparison ended, and whether one is owed, stands in
//! the ledger, and a comparison that was cut short begins anew under the next leader.

use std::time::Duration;

use super::{AuditFound, StatusAudit};
use crate::change::{Mono, SyncId};
use crate::ledger::AuditFacts;

/// Why a comparison runs that nobody asked for.
const REGULAR: &str = "interval";
/// Longest wait after a comparison that came to nothing.
const RETRY_MAX: Duration = Duration::from_secs(600);

/// When KV is compared with the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From the end of one comparison of a sync to the next; zero leaves only those that are owed.
    pub interval: Duration,
    /// Least time between two pages of names.
    pub page_interval: Duration,
}

/// The comparisons of all syncs.
#[derive(Debug)]
pub(super) struct Audits {
    settings: Settings,
    syncs: Vec<Planned>,
    running: Option<Running>,
    page_not_before: Mono,
}

#[derive(Debug, Default)]
struct Planned {
    due: Option<Mono>,
    owed: Option<String>,
    /// After one that came to nothing.
    not_before: Mono,
    /// When the last one ended, as its age at a moment: that may be before the clock's origin.
    ended: Option<(Mono, Duration)>,
    found: Option<AuditFound>,
}

#[derive(Debug)]
struct Running {
    sync: SyncId,
    reason: String,
    page: Page,
    /// It looks after old names of the sync, and compares nothing.
    cleans: bool,
}

/// The page of names that a comparison waits for.
#[derive(Clone, Copy, Debug)]
enum Page {
    /// None: it reads rows.
    No,
    /// It may not be listed yet.
    Wanted,
    /// It is being listed since then.
    Open(Mono),
}

impl Audits {
    pub(super) fn new(settings: Settings, now: Mono, syncs: usize, facts: Vec<AuditFacts>) -> Self {
        let mut audits = Self {
            settings,
            syncs: (0..syncs).map(|_| Planned::default()).collect(),
            running: None,
            page_not_before: Mono::ZERO,
        };
        let interval = settings.interval;
        for AuditFacts { sync, age, owed } in facts {
            let due = (!interval.is_zero()).then(|| now + interval.saturating_sub(age));
            audits.syncs[usize::from(sync.0)] = Planned {
                due,
                owed,
                ended: Some((now, age)),
                ..Planned::default()
            };
        }
        audits
    }

    /// When the sync is due, if nothing is in the way.
    pub(super) fn due_at(&self, sync: SyncId) -> Option<Mono> {
        let planned = &self.syncs[usize::from(sync.0)];
        let due = match planned.owed {
            Some(_) => Some(Mono::ZERO),
            None => planned.due,
        };
        due.map(|at| at.max(planned.not_before))
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Begins one; returns its reason.
    pub(super) fn begin(&mut self, sync: SyncId) -> String {
        let owed = self.syncs[usize::from(sync.0)].owed.clone();
        let reason = owed.unwrap_or_else(|| REGULAR.to_owned());
        self.running = Some(Running {
            sync,
            reason: reason.clone(),
            page: Page::No,
            cleans: false,
        });
        reason
    }

    /// Begins a look after old names, which has the place and the pace of a comparison.
    pub(super) fn begin_cleaning(&mut self, sync: SyncId) {
        self.running = Some(Running {
            sync,
            reason: String::new(),
            page: Page::No,
            cleans: true,
        });
    }

    /// Whether what runs is to find differences: the documents are made otherwise than before.
    pub(super) fn expects_drift(&self) -> bool {
        let running = self.running.as_ref();
        running.is_some_and(|one| super::RECONFIGURED.contains(&one.reason.as_str()))
    }

    /// Whether what runs looks after old names.
    pub(super) fn is_cleaning(&self) -> bool {
        self.running.as_ref().is_some_and(|one| one.cleans)
    }

    /// Whether the ledger owes a comparison of the sync.
    pub(super) fn is_owed(&self, sync: SyncId) -> bool {
        self.syncs[usize::from(sync.0)].owed.is_some()
    }

    /// One is owed; it is no news where one was.
    pub(super) fn owe(&mut self, sync: SyncId, reason: String) {
        self.syncs[usize::from(sync.0)].owed.get_or_insert(reason);
    }

    /// A page is wanted. Returns since when the one before was open, or `None` outside of a
    /// comparison of this sync.
    pub(super) fn want_page(&mut self, sync: SyncId) -> Option<Option<Mono>> {
        let running = self.running.as_mut().filter(|one| one.sync == sync)?;
        let before = std::mem::replace(&mut running.page, Page::Wanted);
        Some(before.since())
    }

    /// When the page that is wanted may be listed, as far as the pace goes.
    pub(super) fn page_at(&self) -> Option<Mono> {
        let running = self.running.as_ref()?;
        matches!(running.page, Page::Wanted).then_some(self.page_not_before)
    }

    /// No page before this moment.
    pub(super) fn delay_page(&mut self, until: Mono) {
        self.page_not_before = self.page_not_before.max(until);
    }

    /// The page that is wanted is being listed from now on.
    pub(super) fn allow_page(&mut self, now: Mono) {
        self.page_not_before = now + self.settings.page_interval;
        if let Some(running) = &mut self.running {
            running.page = Page::Open(now);
        }
    }

    /// The comparison is over. Returns since when its last page was open.
    pub(super) fn end(&mut self, sync: SyncId) -> Option<Mono> {
        let running = self.running.take_if(|one| one.sync == sync)?;
        running.page.since()
    }

    /// It told what it could.
    pub(super) fn done(&mut self, now: Mono, sync: SyncId, found: AuditFound) {
        let interval = self.settings.interval;
        self.syncs[usize::from(sync.0)] = Planned {
            due: (!interval.is_zero()).then(|| now + interval),
            owed: None,
            not_before: now,
            ended: Some((now, Duration::ZERO)),
            found: Some(found),
        };
    }

    /// It came to nothing; returns when it is tried again, at `until` at the earliest.
    pub(super) fn failed(&mut self, now: Mono, sync: SyncId, until: Mono) -> Mono {
        let wait = match self.settings.interval {
            Duration::ZERO => RETRY_MAX,
            interval => (interval / 10).min(RETRY_MAX),
        };
        let at = until.max(now + wait);
        self.syncs[usize::from(sync.0)].not_before = at;
        at
    }

    pub(super) fn status(&self, now: Mono, sync: SyncId) -> StatusAudit {
        let planned = &self.syncs[usize::from(sync.0)];
        let running = self.running.as_ref();
        let running = running.filter(|one| one.sync == sync && !one.cleans);
        StatusAudit {
            running: running.map(|one| one.reason.clone()),
            age: planned.ended.map(|(at, age)| age + now.since(at)),
            found: planned.found,
        }
    }
}

impl Page {
    fn since(self) -> Option<Mono> {
        match self {
            Self::Open(at) => Some(at),
            Self::No | Self::Wanted => None,
        }
    }
}
