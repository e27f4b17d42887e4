//! Notices → logs and metrics: the one place that logs what happens, and how often.
//!
//! Logs hold no key, no value and no body; the details that come here were made without them.

use std::collections::HashMap;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tracing::{error, info, warn};

use super::{clock, series};
use crate::change::{AmbiguousReason, Answer, Mono, NotSentReason, Outcome, SyncId, fingerprint};
use crate::ledger::{Examined, Reconfigured};
use crate::metrics as names;
use crate::relay::{self, AuditFound, BlockReason, Notice, Phase, Status};
use crate::source::Gauges;

/// The same kind of trouble is logged this often at most; metrics count each.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

const BLOCK_REASONS: [BlockReason; 5] = [
    BlockReason::Failing,
    BlockReason::Unreachable,
    BlockReason::Throttled,
    BlockReason::Unauthorized,
    BlockReason::Quota,
];

/// Tells people what happens.
#[derive(Debug)]
pub(super) struct Teller {
    syncs: Vec<String>,
    /// Whether logs name keys in clear text.
    log_keys: bool,
    /// When each kind of trouble was logged, and how often it was not since.
    logged: HashMap<&'static str, (Mono, u64)>,
    /// Series of the dead letters gauge that are not 0.
    dead_letters_told: Vec<(SyncId, String)>,
}

impl Teller {
    /// Counters begin at 0: a rate cannot see one that appears with its first event.
    pub(super) fn new(syncs: Vec<String>, log_keys: bool) -> Self {
        series::begin(&syncs);
        Self {
            syncs,
            log_keys,
            logged: HashMap::new(),
            dead_letters_told: Vec::new(),
        }
    }

    /// What the configuration allows, so that alerts and panels need no copy of it.
    pub(super) fn tell_limits(&self, limits: &relay::Settings) {
        gauge!(names::QUEUE_LIMIT).set(limits.queue.keys_max as f64);
        gauge!(names::MAX_WAIT).set(limits.queue.max_wait.as_secs_f64());
        gauge!(names::AUDIT_INTERVAL).set(limits.audit.interval.as_secs_f64());
        let budget = limits.budget;
        if budget.requests_per_window > 0 {
            let usable = budget
                .requests_per_window
                .saturating_sub(budget.reserve_requests);
            gauge!(names::BUDGET_LIMIT).set(f64::from(usable));
        }
    }

    pub(super) fn tell(&mut self, notice: Notice) {
        match notice {
            Notice::Elected {
                epoch,
                claimed_keys,
            } => {
                counter!(names::LEADER_TRANSITIONS).increment(1);
                gauge!(names::POSTGRES_UP).set(1.0);
                info!(epoch = epoch.0, claimed_keys, "this process leads");
            }
            Notice::Standby => {
                gauge!(names::POSTGRES_UP).set(1.0);
                info!("another process leads; this one stands by");
            }
            Notice::NotifyQueue { full: true } => {
                let (error, hint) = Status::NOTIFY_QUEUE_FULL;
                warn!(error, hint, "polling instead of waiting for notifications");
            }
            Notice::NotifyQueue { full: false } => info!("waiting for notifications again"),
            Notice::SessionFailed(failure) => {
                gauge!(names::POSTGRES_UP).set(0.0);
                counter!(names::LEDGER_FAILURES, "kind" => failure.kind.as_str()).increment(1);
                if let Some(skipped) = self.due("session") {
                    warn!(
                        error = failure.detail,
                        hint = failure.hint,
                        skipped,
                        "no session with Postgres; trying again"
                    );
                }
            }
            Notice::Fetched {
                changes,
                coalesced,
                ignored,
            } => {
                counter!(names::CHANGES_FETCHED).increment(changes as u64);
                counter!(names::KEYS_COALESCED).increment(coalesced as u64);
                counter!(names::CHANGES_IGNORED).increment(ignored);
                if ignored > 0
                    && let Some(skipped) = self.due("ignored")
                {
                    warn!(
                        rows = ignored,
                        skipped,
                        "the outbox holds rows of syncs that are not configured here, or of a newer \
                         version; add them, or run pg2kv.unwatch"
                    );
                }
            }
            Notice::Woken(cause) => {
                counter!(names::WAKEUPS, "cause" => cause.as_str()).increment(1);
            }
            Notice::Rung => counter!(names::BELL_RINGS).increment(1),
            Notice::Written {
                sync,
                puts,
                deletes,
                waited,
            } => {
                let sync = self.name(sync);
                counter!(names::PAIRS_WRITTEN, "sync" => sync.clone(), "op" => "put")
                    .increment(puts as u64);
                counter!(names::PAIRS_WRITTEN, "sync" => sync.clone(), "op" => "delete")
                    .increment(deletes as u64);
                let histogram = histogram!(names::COMMIT_TO_WRITTEN, "sync" => sync);
                for waited in waited {
                    histogram.record(waited);
                }
            }
            Notice::Unchanged { sync, keys } => {
                counter!(names::KEYS_UNCHANGED, "sync" => self.name(sync)).increment(keys as u64);
            }
            Notice::Answered {
                pairs,
                answer,
                took,
                ..
            } => self.answered(pairs, &answer, took),
            Notice::LedgerFailed(failure) => {
                counter!(names::LEDGER_FAILURES, "kind" => failure.kind.as_str()).increment(1);
                if let Some(skipped) = self.due("ledger") {
                    warn!(
                        error = failure.detail,
                        hint = failure.hint,
                        skipped,
                        "a statement on Postgres failed; trying again"
                    );
                }
            }
            Notice::Dead { sync, key, poison } => {
                let sync = self.name(sync);
                let reason = poison.reason.as_str();
                let labels = [("sync", sync.clone()), ("reason", reason.to_owned())];
                counter!(names::DEAD_LETTERED, &labels).increment(1);
                if let Some(skipped) = self.due("dead letter") {
                    let key = if self.log_keys {
                        key.as_str().to_owned()
                    } else {
                        fingerprint(key.as_str())
                    };
                    warn!(
                        sync,
                        key,
                        reason,
                        error = poison.detail,
                        skipped,
                        "a key cannot be written and went to pg2kv.dead_letter; a later change of \
                         its row takes it out again"
                    );
                }
            }
            Notice::Held {
                sync,
                reason,
                detail,
                hint,
            } => warn!(
                sync = self.name(sync),
                reason = reason.as_str(),
                error = detail,
                hint,
                "sync on hold; the others flow"
            ),
            Notice::Resumed { sync } => info!(sync = self.name(sync), "sync flows again"),
            Notice::Faulty { sync, fault } => error!(
                sync = self.name(sync),
                error = fault,
                hint = Examined::HINT,
                "changes of this sync are not recorded"
            ),
            Notice::Mended { sync } => info!(
                sync = self.name(sync),
                "changes of this sync are recorded again; what was missed follows"
            ),
            Notice::DeletesHeld { sync } => {
                let sync = self.name(sync);
                warn!(
                    hint =
                        format!("`pg2kv approve-deletes {sync}` lets them go; /readyz says more"),
                    sync, "deletes on hold: too many in too short a time; writes go on"
                );
            }
            Notice::DeletesResumed { sync } => {
                info!(sync = self.name(sync), "deletes are no longer on hold");
            }
            Notice::Blocked {
                reason,
                pause,
                detail,
            } => warn!(
                reason = reason.as_str(),
                retry_in = %humantime::format_duration(round(pause)),
                error = detail,
                hint = reason.hint(),
                "nothing is sent to KV for a while; changes wait in Postgres"
            ),
            Notice::Unblocked => info!("sending to KV works again"),
            Notice::BackfillStarted { sync, reason } => {
                info!(sync = self.name(sync), reason, "backfill started");
            }
            Notice::BackfillDone {
                sync,
                done,
                foreign,
            } => {
                let sync = self.name(sync);
                counter!(names::BACKFILLS, "sync" => sync.clone()).increment(1);
                info!(sync, done, foreign, "backfill done");
            }
            Notice::Expanded {
                sync,
                markers,
                keys,
            } => {
                let sync = self.name(sync);
                counter!(names::RELATED_CHANGES, "sync" => sync.clone()).increment(markers);
                counter!(names::RELATED_KEYS, "sync" => sync).increment(keys);
            }
            Notice::AuditStarted { sync, reason } => {
                info!(sync = self.name(sync), reason, "audit started");
            }
            Notice::Audited {
                sync,
                found,
                expected,
            } => audited(self.name(sync), &found, expected),
            Notice::Reconfigured(Reconfigured { sync, options }) => {
                let sync = self.name(sync);
                counter!(names::RECONFIGURATIONS, "sync" => sync.clone()).increment(1);
                info!(
                    sync,
                    options = options.join(", "),
                    "the configuration is another than before; KV is compared with the rows, and \
                     what differs is written"
                );
            }
            Notice::OldNames { sync, names, held } => {
                let sync = self.name(sync);
                if held {
                    let hint = format!(
                        "`pg2kv approve-deletes {sync}` once nobody reads them; /readyz says more"
                    );
                    warn!(
                        hint,
                        names,
                        sync,
                        "keys of an earlier configuration wait for approval of their delete"
                    );
                } else {
                    info!(sync, names, "keys of an earlier configuration stand in KV");
                }
            }
            Notice::Cleaned {
                sync,
                names: deleted,
            } => {
                let sync = self.name(sync);
                counter!(names::OLD_NAMES_DELETED, "sync" => sync.clone()).increment(deleted);
                info!(
                    sync,
                    names = deleted,
                    "keys of an earlier configuration were deleted"
                );
            }
            Notice::Clean { sync } => info!(
                sync = self.name(sync),
                "nothing is left in KV of an earlier configuration"
            ),
            Notice::CleaningFailed {
                sync,
                detail,
                retry_in,
            } => warn!(
                sync = self.name(sync),
                error = detail,
                retry_in = %humantime::format_duration(round(retry_in)),
                "keys of an earlier configuration could not be looked after; trying again"
            ),
            Notice::AuditFailed {
                sync,
                detail,
                retry_in,
            } => warn!(
                sync = self.name(sync),
                error = detail,
                retry_in = %humantime::format_duration(round(retry_in)),
                "audit came to nothing; trying again"
            ),
        }
    }

    /// `left` is the time that the backfill of each sync still takes, where that can be said.
    pub(super) fn tell_status(&mut self, status: &Status, left: &[Option<Duration>]) {
        let leading = status.phase == Phase::Leading || status.phase == Phase::Draining;
        gauge!(names::LEADER).set(series::flag(leading));
        gauge!(names::EPOCH).set(status.epoch.map_or(0.0, |epoch| epoch.0 as f64));
        gauge!(names::QUEUE_KEYS).set(status.queue_keys as f64);
        gauge!(names::IN_FLIGHT_KEYS).set(status.in_flight_keys as f64);
        gauge!(names::DOUBT_KEYS).set(status.doubt_keys as f64);
        if status.budget_left != u64::MAX {
            gauge!(names::BUDGET_LEFT).set(status.budget_left as f64);
        }
        for reason in BLOCK_REASONS {
            let blocked = status
                .blocked
                .as_ref()
                .is_some_and(|block| block.reason == reason);
            gauge!(names::BLOCKED, "reason" => reason.as_str()).set(series::flag(blocked));
        }
        for (index, name) in self.syncs.iter().enumerate() {
            series::of_sync(
                name,
                status.syncs.get(index),
                left.get(index).copied().flatten(),
            );
        }
        let age = status.oldest_change_age.unwrap_or_default();
        gauge!(names::OLDEST_CHANGE_AGE).set(age.as_secs_f64());
        if !leading {
            // What it read while it led is no longer its to tell.
            self.tell_gauges(&Gauges::default());
        }
    }

    /// The ledger, as the leader reads it every ten seconds.
    pub(super) fn tell_gauges(&mut self, gauges: &Gauges) {
        gauge!(names::SCHEMA_VERSION).set(f64::from(gauges.schema_version));
        gauge!(names::OUTBOX_ROWS).set(gauges.outbox_rows as f64);
        let age = gauges.oldest_age.unwrap_or_default();
        gauge!(names::OUTBOX_OLDEST_AGE).set(age.as_secs_f64());
        gauge!(names::OUTBOX_DEAD_ROWS).set(gauges.outbox_dead_rows as f64);
        gauge!(names::CLAIMS).set(gauges.claims as f64);
        gauge!(names::NOTIFICATION_QUEUE_USAGE).set(gauges.notify_queue_usage);
        let age = gauges.oldest_transaction_age.unwrap_or_default();
        gauge!(names::OLDEST_TRANSACTION_AGE).set(age.as_secs_f64());
        for (sync, at) in &gauges.audited {
            gauge!(names::AUDIT_LAST_SUCCESS, "sync" => self.name(*sync)).set(*at);
        }
        // A reason that is gone must read 0, not its last count.
        for (sync, reason) in std::mem::take(&mut self.dead_letters_told) {
            dead_letters(&self.name(sync), reason).set(0.0);
        }
        for (sync, reason, count) in &gauges.dead_letters {
            dead_letters(&self.name(*sync), reason.clone()).set(*count as f64);
            self.dead_letters_told.push((*sync, reason.clone()));
        }
    }

    pub(super) fn token_failed(&mut self, error: &dyn std::fmt::Display) {
        if let Some(skipped) = self.due("token") {
            warn!(
                %error,
                skipped, "the API token could not be read anew; the old one stays in use"
            );
        }
    }

    fn answered(&mut self, pairs: usize, answer: &Answer, took: Duration) {
        histogram!(names::BATCH_PAIRS).record(pairs as f64);
        histogram!(names::KV_REQUEST_DURATION).record(took);
        let class = match answer.status {
            None => "none",
            Some(100..=199) => "1xx",
            Some(200..=299) => "2xx",
            Some(300..=399) => "3xx",
            Some(400..=499) => "4xx",
            Some(_) => "5xx",
        };
        counter!(names::KV_REQUESTS, "status_class" => class).increment(1);
        let Some(reason) = retry_reason(&answer.outcome) else {
            return;
        };
        counter!(names::RETRIES, "reason" => reason).increment(1);
        if let Some(skipped) = self.due(reason) {
            warn!(
                reason,
                pairs,
                status = answer.status,
                detail = answer.detail,
                skipped,
                "a request to KV came to nothing certain"
            );
        }
    }

    /// Whether this kind of trouble may be logged now, and how often it was not since the last time.
    fn due(&mut self, kind: &'static str) -> Option<u64> {
        let now = clock::now();
        match self.logged.get_mut(kind) {
            Some((at, skipped)) if now.since(*at) < LOG_INTERVAL => {
                *skipped += 1;
                None
            }
            Some((at, skipped)) => {
                *at = now;
                Some(std::mem::take(skipped))
            }
            None => {
                self.logged.insert(kind, (now, 0));
                Some(0)
            }
        }
    }

    fn name(&self, sync: SyncId) -> String {
        self.syncs
            .get(usize::from(sync.0))
            .cloned()
            .unwrap_or_default()
    }
}

/// Drift has a cause: somebody else writes to the namespace, or changes were missed.
fn audited(sync: String, found: &AuditFound, expected: bool) {
    counter!(names::AUDITS, "sync" => sync.clone()).increment(1);
    for (drift, keys) in drifts(found).into_iter().filter(|_| !expected) {
        counter!(names::AUDIT_DRIFTED_KEYS, "sync" => sync.clone(), "drift" => drift)
            .increment(keys);
    }
    let rest = [
        ("equal", found.equal),
        ("dead_lettered", found.dead_lettered),
        ("pending", found.pending),
        ("foreign", found.foreign),
    ];
    for (state, keys) in rest.into_iter().chain(drifts(found)) {
        let labels = [("sync", sync.clone()), ("state", state.to_owned())];
        gauge!(names::AUDIT_KEYS, &labels).set(keys as f64);
    }
    let AuditFound {
        equal,
        missing,
        stale,
        orphaned,
        dead_lettered,
        pending,
        foreign,
        ..
    } = *found;
    if found.drifted() == 0 {
        info!(
            sync,
            equal, dead_lettered, pending, foreign, "audit done; nothing has drifted"
        );
        return;
    }
    if expected {
        info!(
            sync,
            equal,
            missing,
            stale,
            orphaned,
            dead_lettered,
            pending,
            foreign,
            "audit done after a change of the configuration; what differs is written"
        );
        return;
    }
    let mended = if found.everything {
        "every key of the sync is written again"
    } else {
        "these keys are written again"
    };
    warn!(
        sync,
        equal,
        missing,
        stale,
        orphaned,
        dead_lettered,
        pending,
        foreign,
        mended,
        "audit done; KV had drifted from the rows: look for others that write to the namespace"
    );
}

/// Keys that drifted, by how.
pub(super) fn drifts(found: &AuditFound) -> [(&'static str, u64); 3] {
    [
        ("missing", found.missing),
        ("stale", found.stale),
        ("orphaned", found.orphaned),
    ]
}

fn dead_letters(sync: &str, reason: String) -> metrics::Gauge {
    let labels = [("sync", sync.to_owned()), ("reason", reason)];
    gauge!(names::DEAD_LETTERS, &labels)
}

/// Why the keys of a request must be sent again, as a label.
fn retry_reason(outcome: &Outcome) -> Option<&'static str> {
    Some(match outcome {
        Outcome::Written => return None,
        Outcome::Partial(_) => "partial",
        Outcome::Ambiguous(reason) => AmbiguousReason::as_str(*reason),
        Outcome::NotSent(reason) => NotSentReason::as_str(*reason),
        Outcome::Rejected => "rejected",
        Outcome::Throttled(_) => "throttled",
        Outcome::Unauthorized => "unauthorized",
        Outcome::NamespaceGone => "namespace_gone",
        Outcome::QuotaExhausted => "quota",
        Outcome::Unexpected => "unexpected",
    })
}

/// To what a person wants to read.
fn round(duration: Duration) -> Duration {
    if duration >= Duration::from_secs(1) {
        Duration::from_secs(duration.as_secs())
    } else {
        Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(0))
    }
}
