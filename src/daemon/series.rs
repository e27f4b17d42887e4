//! Series that show from the start, and the gauges of one sync.
//!
//! A counter that first shows at 1 has no rise for Prometheus, so each begins at 0.

use std::time::Duration;

use metrics::{counter, gauge};

use super::telling::drifts;
use crate::change::PoisonReason;
use crate::ledger::FailureKind;
use crate::metrics as names;
use crate::relay::{AuditFound, HoldReason, StatusSync};

const HOLD_REASONS: [HoldReason; 4] = [
    HoldReason::Relation,
    HoldReason::NamespaceGone,
    HoldReason::Unexpected,
    HoldReason::AnotherInstallation,
];
const POISON_REASONS: [PoisonReason; 7] = [
    PoisonReason::IllegalKey,
    PoisonReason::KeyTooLong,
    PoisonReason::ValueTooLarge,
    PoisonReason::BadMetadata,
    PoisonReason::BadExpiry,
    PoisonReason::RowError,
    PoisonReason::Rejected,
];
const FAILURE_KINDS: [FailureKind; 8] = [
    FailureKind::Connection,
    FailureKind::Fenced,
    FailureKind::Row,
    FailureKind::RowTransient,
    FailureKind::Relation,
    FailureKind::Transient,
    FailureKind::Refused,
    FailureKind::Schema,
];
const STATUS_CLASSES: [&str; 4] = ["none", "2xx", "4xx", "5xx"];

/// Begins what is only told when something happens.
pub(super) fn begin(syncs: &[String]) {
    for sync in syncs {
        for reason in POISON_REASONS {
            let labels = [
                ("sync", sync.clone()),
                ("reason", reason.as_str().to_owned()),
            ];
            counter!(names::DEAD_LETTERED, &labels).absolute(0);
        }
        for op in ["put", "delete"] {
            counter!(names::PAIRS_WRITTEN, "sync" => sync.clone(), "op" => op).absolute(0);
        }
        counter!(names::KEYS_UNCHANGED, "sync" => sync.clone()).absolute(0);
        counter!(names::BACKFILLS, "sync" => sync.clone()).absolute(0);
        counter!(names::AUDITS, "sync" => sync.clone()).absolute(0);
        for (drift, _) in drifts(&AuditFound::default()) {
            counter!(names::AUDIT_DRIFTED_KEYS, "sync" => sync.clone(), "drift" => drift)
                .absolute(0);
        }
        counter!(names::RECONFIGURATIONS, "sync" => sync.clone()).absolute(0);
        counter!(names::OLD_NAMES_DELETED, "sync" => sync.clone()).absolute(0);
        counter!(names::RELATED_CHANGES, "sync" => sync.clone()).absolute(0);
        counter!(names::RELATED_KEYS, "sync" => sync.clone()).absolute(0);
        gauge!(names::DELETES_HELD, "sync" => sync.clone()).set(0.0);
        gauge!(names::BACKFILL_DONE, "sync" => sync.clone()).set(0.0);
        gauge!(names::BACKFILL_ESTIMATE, "sync" => sync.clone()).set(0.0);
        gauge!(names::BACKFILL_LEFT, "sync" => sync.clone()).set(0.0);
    }
    for name in [
        names::CHANGES_FETCHED,
        names::CHANGES_IGNORED,
        names::KEYS_COALESCED,
        names::BELL_RINGS,
        names::LEADER_TRANSITIONS,
    ] {
        counter!(name).absolute(0);
    }
    for kind in FAILURE_KINDS {
        counter!(names::LEDGER_FAILURES, "kind" => kind.as_str()).absolute(0);
    }
    for class in STATUS_CLASSES {
        counter!(names::KV_REQUESTS, "status_class" => class).absolute(0);
    }
}

/// The gauges of one sync; all 0 where this process does not lead.
pub(super) fn of_sync(name: &str, sync: Option<&StatusSync>, left: Option<Duration>) {
    let left = left.unwrap_or_default().as_secs_f64();
    gauge!(names::BACKFILL_LEFT, "sync" => name.to_owned()).set(left);
    for reason in HOLD_REASONS {
        let held = sync
            .and_then(|sync| sync.hold.as_ref())
            .is_some_and(|(why, ..)| *why == reason);
        let labels = [
            ("sync", name.to_owned()),
            ("reason", reason.as_str().to_owned()),
        ];
        gauge!(names::SYNC_ON_HOLD, &labels).set(flag(held));
    }
    let faulty = sync.is_some_and(|sync| sync.fault.is_some());
    gauge!(names::TRIGGERS_FAULTY, "sync" => name.to_owned()).set(flag(faulty));
    let held = sync
        .and_then(|sync| sync.deletes_held)
        .map_or(0, |held| held.keys as u64 + held.ahead);
    gauge!(names::DELETES_HELD, "sync" => name.to_owned()).set(held as f64);
    let old = sync
        .and_then(|sync| sync.old_names)
        .map_or(0, |old| old.names);
    gauge!(names::OLD_NAMES, "sync" => name.to_owned()).set(old as f64);
    let waiting = sync
        .and_then(|sync| sync.expansion)
        .map_or(0, |expansion| expansion.changes);
    gauge!(names::RELATED_WAITING, "sync" => name.to_owned()).set(waiting as f64);
    let backfill = sync.and_then(|sync| sync.backfill.as_ref());
    gauge!(names::BACKFILL_RUNNING, "sync" => name.to_owned()).set(flag(backfill.is_some()));
    let (done, estimate) = backfill.map_or((0, 0), |backfill| {
        (backfill.done, backfill.estimate.unwrap_or(0))
    });
    gauge!(names::BACKFILL_DONE, "sync" => name.to_owned()).set(done as f64);
    gauge!(names::BACKFILL_ESTIMATE, "sync" => name.to_owned()).set(estimate as f64);
}

/// 1 or 0.
pub(super) fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}
