//! The daemon's report as sentences and as JSON.

use serde::Serialize;

use crate::daemon::Report;
use crate::ledger::{BackfillPhase, Examined};
use crate::relay::{Phase, Status, StatusAudit, StatusSync};

/// `/api/status`. Times are in seconds, counts are plain numbers.
#[derive(Debug, Serialize)]
pub(super) struct StatusJson {
    version: &'static str,
    /// Name of this process in the lease.
    holder: String,
    /// `starting`, `standby`, `leading`, `draining` or `done`.
    phase: &'static str,
    epoch: Option<i64>,
    /// As this leader reads it every ten seconds.
    schema_version: Option<i32>,
    queue_keys: usize,
    in_flight_keys: usize,
    doubt_keys: usize,
    oldest_unwritten_change_age_seconds: Option<f64>,
    /// Over the last minute.
    written_per_second: f64,
    /// `null` where there is no limit.
    budget_left_requests: Option<u64>,
    blocked: Option<BlockJson>,
    /// Why the outbox is polled, while it is.
    polling: Option<ErrorJson>,
    postgres_error: Option<ErrorJson>,
    syncs: Vec<SyncJson>,
    recent: Vec<TroubleJson>,
}

/// Something that went wrong lately; the latest stands first.
#[derive(Debug, Serialize)]
struct TroubleJson {
    at_unix_seconds: u64,
    sync: Option<String>,
    what: &'static str,
    error: String,
    hint: Option<String>,
    times: u64,
}

#[derive(Debug, Serialize)]
struct BlockJson {
    reason: &'static str,
    error: String,
    hint: &'static str,
    retry_in_seconds: f64,
}

#[derive(Debug, Serialize)]
struct ErrorJson {
    error: String,
    hint: Option<String>,
}

#[derive(Debug, Serialize)]
struct SyncJson {
    name: String,
    waiting_keys: usize,
    /// Since this process started, deletes included.
    written_pairs: u64,
    dead_letters: Vec<DeadLettersJson>,
    hold: Option<HoldJson>,
    /// What is wrong with its triggers.
    triggers_error: Option<ErrorJson>,
    deletes_held: Option<DeletesJson>,
    old_names: Option<OldNamesJson>,
    backfill: Option<BackfillJson>,
    /// Changes of related tables, while some are not done with.
    related: Option<RelatedJson>,
    audit: AuditJson,
}

#[derive(Debug, Serialize)]
struct RelatedJson {
    /// Changes that are not done with.
    changes: usize,
    /// Keys recorded for such since there were none.
    keys: u64,
}

#[derive(Debug, Serialize)]
struct AuditJson {
    /// Why one runs now.
    running: Option<String>,
    /// Since the last one ended, or since the sync was watched.
    age_seconds: Option<f64>,
    /// `null` until this leader has done one.
    found: Option<FoundJson>,
}

#[derive(Debug, Serialize)]
struct FoundJson {
    equal: u64,
    missing: u64,
    stale: u64,
    orphaned: u64,
    dead_lettered: u64,
    pending: u64,
    foreign: u64,
}

impl From<&StatusAudit> for AuditJson {
    fn from(audit: &StatusAudit) -> Self {
        Self {
            running: audit.running.clone(),
            age_seconds: audit.age.map(|age| age.as_secs_f64()),
            found: audit.found.map(|found| FoundJson {
                equal: found.equal,
                missing: found.missing,
                stale: found.stale,
                orphaned: found.orphaned,
                dead_lettered: found.dead_lettered,
                pending: found.pending,
                foreign: found.foreign,
            }),
        }
    }
}

#[derive(Debug, Serialize)]
struct DeadLettersJson {
    reason: String,
    keys: u64,
}

#[derive(Debug, Serialize)]
struct DeletesJson {
    /// Keys that wait to be deleted.
    keys: usize,
    /// Orphans that the backfill is about to find in KV, about.
    ahead: u64,
    error: String,
    hint: String,
}

#[derive(Debug, Serialize)]
struct HoldJson {
    reason: &'static str,
    error: String,
    hint: String,
}

#[derive(Debug, Serialize)]
struct OldNamesJson {
    keys: u64,
    held: bool,
}

#[derive(Debug, Serialize)]
struct BackfillJson {
    reason: String,
    phase: &'static str,
    done_rows: u64,
    estimate_rows: Option<u64>,
    /// At the pace so far; `null` where that cannot be said.
    left_seconds: Option<f64>,
}

impl StatusJson {
    pub(super) fn new(report: &Report) -> Self {
        let status = &report.status;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            holder: report.holder.to_string(),
            phase: phase(status.phase),
            epoch: status.epoch.map(|epoch| epoch.0),
            schema_version: report.gauges.as_ref().map(|gauges| gauges.schema_version),
            queue_keys: status.queue_keys,
            in_flight_keys: status.in_flight_keys,
            doubt_keys: status.doubt_keys,
            oldest_unwritten_change_age_seconds: status
                .oldest_change_age
                .map(|age| age.as_secs_f64()),
            written_per_second: report.written_per_second,
            budget_left_requests: Some(status.budget_left).filter(|left| *left != u64::MAX),
            blocked: status.blocked.as_ref().map(|block| BlockJson {
                reason: block.reason.as_str(),
                error: block.detail.clone(),
                hint: block.reason.hint(),
                retry_in_seconds: block.retry_in.as_secs_f64(),
            }),
            polling: status.notify_queue_full.then(|| {
                let (error, hint) = Status::NOTIFY_QUEUE_FULL;
                ErrorJson {
                    error: error.to_owned(),
                    hint: Some(hint.to_owned()),
                }
            }),
            postgres_error: report.failure.as_ref().map(|failure| ErrorJson {
                error: failure.detail.clone(),
                hint: failure.hint.clone(),
            }),
            syncs: report
                .syncs
                .iter()
                .zip(&status.syncs)
                .enumerate()
                .map(|(index, (name, sync))| SyncJson::new(report, index, name, sync))
                .collect(),
            recent: report
                .troubles
                .iter()
                .map(|trouble| TroubleJson {
                    at_unix_seconds: trouble.at_unix_seconds,
                    sync: trouble
                        .sync
                        .and_then(|sync| report.syncs.get(usize::from(sync.0)).cloned()),
                    what: trouble.what,
                    error: trouble.error.clone(),
                    hint: trouble.hint.clone(),
                    times: trouble.times,
                })
                .collect(),
        }
    }
}

impl SyncJson {
    fn new(report: &Report, index: usize, name: &str, sync: &StatusSync) -> Self {
        let dead_letters = report
            .gauges
            .iter()
            .flat_map(|gauges| &gauges.dead_letters)
            .filter(|(sync, ..)| usize::from(sync.0) == index)
            .map(|(_, reason, keys)| DeadLettersJson {
                reason: reason.clone(),
                keys: *keys,
            });
        let left = report.backfills_left.get(index).copied().flatten();
        Self {
            name: name.to_owned(),
            waiting_keys: sync.waiting_keys,
            written_pairs: report.written.get(index).copied().unwrap_or(0),
            dead_letters: dead_letters.collect(),
            hold: sync.hold.as_ref().map(|(reason, error, hint)| HoldJson {
                reason: reason.as_str(),
                error: error.clone(),
                hint: hint.clone(),
            }),
            triggers_error: sync.fault.as_ref().map(|fault| ErrorJson {
                error: fault.clone(),
                hint: Some(Examined::HINT.to_owned()),
            }),
            deletes_held: sync.deletes_held.map(|held| {
                let (error, hint) = held.told(name);
                DeletesJson {
                    keys: held.keys,
                    ahead: held.ahead,
                    error,
                    hint,
                }
            }),
            old_names: sync.old_names.map(|old| OldNamesJson {
                keys: old.names,
                held: old.held,
            }),
            backfill: sync.backfill.as_ref().map(|backfill| BackfillJson {
                reason: backfill.reason.clone(),
                phase: match backfill.phase {
                    BackfillPhase::Rows => "rows",
                    BackfillPhase::Keys => "keys",
                },
                done_rows: backfill.done,
                estimate_rows: backfill.estimate,
                left_seconds: left.map(|left| left.as_secs_f64()),
            }),
            related: sync.expansion.map(|expansion| RelatedJson {
                changes: expansion.changes,
                keys: expansion.keys,
            }),
            audit: AuditJson::from(&sync.audit),
        }
    }
}

/// One sentence on who leads, then one line for each thing that is wrong.
pub(super) fn readiness(report: &Report) -> String {
    let status = &report.status;
    let mut lines = vec![match (status.phase, status.epoch) {
        (Phase::Leading, Some(epoch)) => format!("ok: leading, epoch {}", epoch.0),
        (Phase::Draining | Phase::Done, _) => "stopping: finishing what is in flight".to_owned(),
        (Phase::Standby, _) => "ok: standing by, another process leads".to_owned(),
        _ if report.is_barred() => {
            "not ready: this program cannot work with the schema in Postgres".to_owned()
        }
        _ if report.reached => "ok: Postgres was reached, reconnecting".to_owned(),
        _ => "not ready: Postgres was not reached yet".to_owned(),
    }];
    if let Some(failure) = &report.failure {
        lines.push(format!("postgres: {}", failure.detail));
        lines.extend(failure.hint.iter().map(|hint| format!("  help: {hint}")));
    }
    if status.notify_queue_full {
        let (error, hint) = Status::NOTIFY_QUEUE_FULL;
        lines.push(format!("polling: {error}"));
        lines.push(format!("  help: {hint}"));
    }
    if let Some(block) = &status.blocked {
        lines.push(format!(
            "sending blocked ({}): {}",
            block.reason.as_str(),
            block.detail
        ));
        lines.push(format!("  help: {}", block.reason.hint()));
    }
    for (name, sync) in report.syncs.iter().zip(&status.syncs) {
        if let Some((reason, detail, hint)) = &sync.hold {
            lines.push(format!(
                "sync {name} on hold ({}): {detail}",
                reason.as_str()
            ));
            lines.push(format!("  help: {hint}"));
        }
        if let Some(fault) = &sync.fault {
            lines.push(format!("sync {name}: changes are not recorded: {fault}"));
            lines.push(format!("  help: {}", Examined::HINT));
        }
        if let Some(old) = sync.old_names.filter(|old| old.held) {
            let (detail, hint) = old.told(name);
            lines.push(format!("old names of {name}: {detail}"));
            lines.push(format!("  help: {hint}"));
        }
        if let Some(held) = &sync.deletes_held {
            let (detail, hint) = held.told(name);
            lines.push(format!("deletes of {name} on hold: {detail}; writes go on"));
            lines.push(format!("  help: {hint}"));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Standby => "standby",
        Phase::Leading => "leading",
        Phase::Draining => "draining",
        Phase::Done => "done",
    }
}
