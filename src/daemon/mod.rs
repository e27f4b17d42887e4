//! The shell of the relay: waits for the next event, lets the relay decide, and has the effects run.
//!
//! Owns the one loop, the clock, the tasks and the connections. Decides nothing itself.
//!
//! All that runs for a leadership is a task in one set; when the relay abandons the leadership the
//! set is aborted, so no late reply of an earlier one can reach a later one.

mod audits;
mod cleaning;
mod clock;
mod effects;
mod history;
mod series;
mod sizes;
mod telling;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::audits::{Desk, PageAsked};
use self::effects::{Done, Leadership, World};
use self::history::History;
use self::sizes::Sizes;
use self::telling::Teller;
use crate::change::SyncId;
use crate::document::Template;
use crate::ledger::{Failure, FailureKind};
use crate::relay::{Effect, Event, Notice, Phase, Relay, Status, StatusSync};
use crate::sink::kv::{KvClient, TokenReload};
use crate::sink::setup::NamespaceId;
use crate::source::{self, SyncSource};

pub use self::history::Trouble;

/// How often the status is published and the gauges of memory are set.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How often the gauges of the ledger are read.
const GAUGES_INTERVAL: Duration = Duration::from_secs(10);
/// How often the token file is compared, so that a new token works before the old one fails.
const TOKEN_INTERVAL: Duration = Duration::from_secs(10);

/// What a sync is to the daemon.
pub struct SyncSpec {
    /// What it reads.
    pub source: SyncSource,
    /// How its KV keys are made.
    pub template: Template,
    /// Where its pairs stand.
    pub namespace: NamespaceId,
}

/// What a daemon needs to run.
pub struct Settings {
    /// The decider's limits and times.
    pub relay: crate::relay::Settings,
    /// The connection to Postgres.
    pub source: source::Settings,
    /// The syncs; a `SyncId` is a position here.
    pub syncs: Vec<SyncSpec>,
    /// Name of this process in the lease, for people.
    pub holder: String,
    /// Whether logs name keys in clear text instead of by fingerprint.
    pub log_keys: bool,
    /// How often the leader looks whether the triggers are in order.
    pub check_interval: Duration,
    /// An audit looks again after this long at what differs.
    pub recheck_after: Duration,
}

/// What the daemon shows of itself.
#[derive(Clone, Debug)]
pub struct Report {
    /// The relay's memory.
    pub status: Status,
    /// Names of the syncs, in the order of `status.syncs`.
    pub syncs: Arc<Vec<String>>,
    /// The ledger, as last read by the leader.
    pub gauges: Option<source::Gauges>,
    /// Whether Postgres was reached since the start.
    pub reached: bool,
    /// The last failure of the session, while it lasts.
    pub failure: Option<Failure>,
    /// Name of this process in the lease.
    pub holder: Arc<str>,
    /// Pairs written and deleted since the process started, in the order of `status.syncs`.
    pub written: Vec<u64>,
    /// Pairs written and deleted a second, over the last minute.
    pub written_per_second: f64,
    /// Time that each backfill still takes, where that can be said.
    pub backfills_left: Vec<Option<Duration>>,
    /// What went wrong lately, the latest first.
    pub troubles: Vec<Trouble>,
}

impl Report {
    /// Whether the schema has a version that this program cannot work with, as far as was seen.
    pub fn is_barred(&self) -> bool {
        let kind = self.failure.as_ref().map(|failure| failure.kind);
        kind == Some(FailureKind::Schema)
    }
}

/// A look at a running daemon from outside its loop.
#[derive(Clone, Debug)]
pub struct Watcher {
    report: watch::Receiver<Report>,
    ticked_ms: Arc<AtomicU64>,
}

impl Watcher {
    /// The last report.
    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    /// Waits for a report that satisfies `wanted`; `None` once the daemon is gone.
    pub async fn wait_for(&mut self, wanted: impl FnMut(&Report) -> bool) -> Option<Report> {
        self.report
            .wait_for(wanted)
            .await
            .ok()
            .map(|report| report.clone())
    }

    /// Makes the next [`Self::changed`] return at once.
    pub fn mark_changed(&mut self) {
        self.report.mark_changed();
    }

    /// Waits for the next report, of which there is one a second at least; `None` once the daemon is
    /// gone.
    pub async fn next(&mut self) -> Option<Report> {
        self.report.changed().await.ok()?;
        Some(self.report.borrow_and_update().clone())
    }

    /// Time since the loop went round last.
    pub fn loop_age(&self) -> Duration {
        let ticked = Duration::from_millis(self.ticked_ms.load(Ordering::Relaxed));
        clock::now().since_origin().saturating_sub(ticked)
    }
}

/// The daemon.
pub struct Daemon {
    relay: Relay,
    world: Arc<World>,
    teller: Teller,
    history: History,
    tasks: JoinSet<Done>,
    leadership: Option<Leadership>,
    report: watch::Sender<Report>,
    ticked_ms: Arc<AtomicU64>,
    check_interval: Duration,
    /// The gauges are being read, and whether they are to be read again after that.
    gauges_out: Option<bool>,
    /// Audits that ask for a page of names.
    pages: mpsc::Receiver<PageAsked>,
    /// The one that was not let go yet.
    page: Option<PageAsked>,
}

impl Daemon {
    /// A daemon that has not started, and a look at it.
    pub fn new(settings: Settings, kv: KvClient) -> (Self, Watcher) {
        let names: Vec<String> = settings
            .syncs
            .iter()
            .map(|sync| sync.source.name.clone())
            .collect();
        let teller = Teller::new(names.clone(), settings.log_keys);
        teller.tell_limits(&settings.relay);
        let mut relay = Relay::new(settings.relay, fastrand::u64(..));
        let report = Report {
            status: relay.status(clock::now()),
            syncs: Arc::new(names.clone()),
            gauges: None,
            reached: false,
            failure: None,
            holder: settings.holder.as_str().into(),
            written: vec![0; names.len()],
            written_per_second: 0.0,
            backfills_left: vec![None; names.len()],
            troubles: Vec::new(),
        };
        let (report, receiver) = watch::channel(report);
        let ticked_ms = Arc::new(AtomicU64::new(millis()));
        let watcher = Watcher {
            report: receiver,
            ticked_ms: Arc::clone(&ticked_ms),
        };
        let (desk, pages) = Desk::new(settings.recheck_after);
        let world = World {
            desk,
            source: settings.source,
            syncs: settings.syncs,
            kv,
            holder: settings.holder,
            sizes: Sizes::new(names.iter().cloned()),
        };
        let daemon = Self {
            relay,
            world: Arc::new(world),
            history: History::new(names.len()),
            teller,
            tasks: JoinSet::new(),
            leadership: None,
            report,
            ticked_ms,
            check_interval: settings.check_interval,
            gauges_out: None,
            pages,
            page: None,
        };
        (daemon, watcher)
    }

    /// Runs until `shutdown` is cancelled and what is in flight is finished, or the grace is over.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut status = tokio::time::interval(STATUS_INTERVAL);
        let mut gauges = tokio::time::interval(GAUGES_INTERVAL);
        let mut token = tokio::time::interval(TOKEN_INTERVAL);
        let mut check = tokio::time::interval(self.check_interval);
        for interval in [&mut status, &mut gauges, &mut token, &mut check] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        let mut stopping = false;
        self.handle(Event::Tick);
        while self.relay.phase() != Phase::Done {
            self.ticked_ms.store(millis(), Ordering::Relaxed);
            let now = clock::now();
            let wait = self.relay.wake_at(now).map(|at| at.since(now));
            // Cancel-safety: every branch but the tasks' is a timer, a flag or a channel; a task
            // that is not joined in one round is joined in the next.
            tokio::select! {
                () = shutdown.cancelled(), if !stopping => {
                    stopping = true;
                    self.handle(Event::Shutdown);
                }
                Some(done) = self.tasks.join_next() => self.finished(done),
                event = next_of(&mut self.leadership) => self.handle(event),
                Some(asked) = self.pages.recv() => self.page_asked(asked),
                () = sleep(wait) => self.handle(Event::Tick),
                _ = status.tick() => self.publish(),
                _ = gauges.tick() => self.read_gauges(),
                _ = token.tick() => self.reload_token(),
                _ = check.tick() => self.examine(),
            }
        }
        self.publish();
    }

    fn handle(&mut self, event: Event) {
        if matches!(event, Event::Rung) && self.holds_deletes() {
            // It may be a person who approves of them.
            self.read_gauges();
        }
        let before = self.relay.phase();
        let out = self.relay.handle(clock::now(), event);
        if let Some(failure) = out.notices.iter().find_map(failure_of) {
            let failure = failure.clone();
            self.report
                .send_modify(|report| report.failure = Some(failure));
        }
        let unix_seconds = clock::unix_seconds();
        for notice in &out.notices {
            self.history.note(unix_seconds, notice);
        }
        // Before it is logged: who reads the log and asks a probe then must find the same there.
        if out.notices.iter().any(is_news) || self.relay.phase() != before {
            self.publish();
        }
        if out.notices.iter().any(is_brake) {
            self.read_gauges();
        }
        for notice in out.notices {
            self.teller.tell(notice);
        }
        for effect in out.effects {
            self.run_effect(effect);
        }
    }

    fn run_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Campaign => {
                let world = Arc::clone(&self.world);
                let candidate = self.leadership.take().and_then(Leadership::into_candidate);
                self.tasks
                    .spawn(async move { world.campaign(candidate).await });
            }
            Effect::AllowPage { trusted_until } => {
                if let Some(asked) = self.page.take() {
                    asked.allow(trusted_until);
                }
            }
            Effect::Abandon => {
                self.page = None;
                self.gauges_out = None;
                self.tasks = JoinSet::new();
                self.leadership = None;
            }
            Effect::Release => {
                let leadership = self.leadership.take();
                self.gauges_out = None;
                self.tasks = JoinSet::new();
                self.tasks.spawn(async move {
                    if let Some(leadership) = leadership {
                        leadership.release().await;
                    }
                    Done::Event(Event::Released)
                });
            }
            Effect::ReloadToken => self.reload_token(),
            effect => {
                let Some(leader) = self.leadership.as_ref().and_then(Leadership::leader) else {
                    return;
                };
                let world = Arc::clone(&self.world);
                self.tasks
                    .spawn(async move { Done::Event(world.run(leader, effect).await) });
            }
        }
    }

    fn finished(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Event(event)) => self.handle(event),
            Ok(Done::Campaigned {
                leadership,
                campaigned,
            }) => {
                self.leadership = leadership.map(|leadership| *leadership);
                let reached = !matches!(campaigned, crate::relay::Campaigned::Failed(_));
                if reached {
                    self.report.send_modify(|report| {
                        report.reached = true;
                        report.failure = None;
                    });
                }
                self.handle(Event::Campaigned(campaigned));
                // Now, because the first of the regular looks may be far away.
                self.read_gauges();
                self.examine();
            }
            Ok(Done::Gauges(at, gauges)) => {
                self.gauges_read();
                self.teller.tell_gauges(&gauges);
                let facts = gauges.deletes.clone();
                self.handle(Event::DeletesAsked { at, facts });
                self.report
                    .send_modify(|report| report.gauges = Some(gauges));
            }
            Ok(Done::Nothing) => self.gauges_read(),
            // A task that panicked leaves its part of the leadership unknown: drop all of it.
            Err(error) if error.is_panic() => self.handle(Event::SessionLost(Failure {
                kind: FailureKind::Connection,
                detail: "a task failed unexpectedly; please report this with the log".to_owned(),
                hint: None,
            })),
            Err(_) => {}
        }
    }

    fn page_asked(&mut self, mut asked: PageAsked) {
        // One of a leadership that is over may still stand in the channel.
        if asked.is_wanted() {
            let (sync, failed) = (asked.sync, asked.failed.take());
            self.page = Some(asked);
            self.handle(Event::PageWanted { sync, failed });
        }
    }

    fn publish(&mut self) {
        let now = clock::now();
        let status = self.relay.status(now);
        self.history.sample(now, &status);
        let backfills_left = self.history.left(now, &status);
        self.teller.tell_status(&status, &backfills_left);
        self.report.send_modify(|report| {
            report.written = self.history.written();
            report.written_per_second = self.history.rate();
            report.troubles = self.history.troubles();
            report.backfills_left = backfills_left;
            if status.phase != Phase::Leading {
                report.gauges = None;
            }
            report.status = status;
        });
    }

    /// One reading at a time: whoever notifies while deletes are held has them read.
    fn read_gauges(&mut self) {
        if let Some(again) = &mut self.gauges_out {
            *again = true;
            return;
        }
        if let Some(leader) = self.leadership.as_ref().and_then(Leadership::leader) {
            let held = self.held_deletes();
            self.gauges_out = Some(false);
            self.tasks
                .spawn(async move { effects::gauges(leader, held).await });
        }
    }

    fn gauges_read(&mut self) {
        if self.gauges_out.take() == Some(true) {
            self.read_gauges();
        }
    }

    fn examine(&mut self) {
        if let Some(leader) = self.leadership.as_ref().and_then(Leadership::leader) {
            self.tasks
                .spawn(async move { effects::examine(leader).await });
        }
    }

    /// Whether the last report says that deletes of a sync are held.
    fn holds_deletes(&self) -> bool {
        let report = self.report.borrow();
        let mut syncs = report.status.syncs.iter();
        syncs.any(|sync| sync.deletes_held.is_some() || sync.old_names.is_some_and(|old| old.held))
    }

    /// Keys of each sync that wait for approval of their deletes, as of the last report.
    fn held_deletes(&self) -> Vec<(SyncId, Option<u64>)> {
        let report = self.report.borrow();
        let held = |sync: &StatusSync| sync.deletes_held.map(|held| held.keys as u64 + held.ahead);
        (0..)
            .map(SyncId)
            .zip(report.status.syncs.iter().map(held))
            .collect()
    }

    fn reload_token(&mut self) {
        match self.world.kv.reload_token() {
            TokenReload::Changed => {
                tracing::info!("the API token was read anew");
                self.handle(Event::TokenChanged);
            }
            TokenReload::Same => {}
            TokenReload::Failed(error) => self.teller.token_failed(&error),
        }
    }
}

fn failure_of(notice: &Notice) -> Option<&Failure> {
    match notice {
        Notice::SessionFailed(failure) => Some(failure),
        _ => None,
    }
}

/// Whether the brake has closed or opened, which stands in the ledger too.
fn is_brake(notice: &Notice) -> bool {
    matches!(
        notice,
        Notice::DeletesHeld { .. } | Notice::DeletesResumed { .. }
    )
}

/// Whether the report must not wait for its second: these are rare, and a probe tells of them.
fn is_news(notice: &Notice) -> bool {
    matches!(
        notice,
        Notice::Held { .. }
            | Notice::Faulty { .. }
            | Notice::Mended { .. }
            | Notice::Resumed { .. }
            | Notice::DeletesHeld { .. }
            | Notice::DeletesResumed { .. }
            | Notice::Blocked { .. }
            | Notice::Unblocked
            | Notice::NotifyQueue { .. }
            | Notice::BackfillStarted { .. }
            | Notice::BackfillDone { .. }
            | Notice::AuditStarted { .. }
            | Notice::Audited { .. }
            | Notice::AuditFailed { .. }
            | Notice::Reconfigured(_)
            | Notice::OldNames { .. }
            | Notice::Cleaned { .. }
            | Notice::Clean { .. }
            | Notice::CleaningFailed { .. }
    )
}

/// The next ring, or the end of a connection; never resolves while there is no leadership.
async fn next_of(leadership: &mut Option<Leadership>) -> Event {
    match leadership {
        Some(leadership) => leadership.next().await,
        None => std::future::pending().await,
    }
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(Duration::ZERO) => {}
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn millis() -> u64 {
    u64::try_from(clock::now().since_origin().as_millis()).unwrap_or(u64::MAX)
}
