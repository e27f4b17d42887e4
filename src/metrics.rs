//! Names, labels, help texts and buckets of all metrics, as constants.
//!
//! Labels come from the configuration (`sync`) or from enums, never from data: there is no label
//! with a key, a value or an error text.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Kind of a metric, for descriptions and the reference in `deploy/metrics.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution in fixed buckets.
    Histogram,
}

/// A metric as it is described to Prometheus and in `deploy/metrics.md`.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name, base unit and `_total` included.
    pub name: &'static str,
    /// Kind.
    pub kind: Type,
    /// Label names.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)+) => {
        $(#[doc = $help] pub const $constant: &str = $name;)+
        /// All metrics of pg2kv, in the order of the reference.
        pub const ALL: &[Metric] = &[$(
            Metric { name: $name, kind: Type::$kind, labels: &[$($label),*], help: $help },
        )+];
    };
}

metrics! {
    LEADER = "pg2kv_leader", Gauge, [], "1 while this process leads, else 0.";
    EPOCH = "pg2kv_epoch", Gauge, [], "Number of this process's leadership, 0 while it does not lead.";
    LEADER_TRANSITIONS = "pg2kv_leader_transitions_total", Counter, [], "Times that this process became the leader.";
    SCHEMA_VERSION = "pg2kv_schema_version", Gauge, [], "Version of the schema in Postgres, as the leader reads it; 0 while this process does not lead.";
    POSTGRES_UP = "pg2kv_postgres_up", Gauge, [], "1 while the session with Postgres works, else 0.";
    LEDGER_FAILURES = "pg2kv_ledger_failures_total", Counter, ["kind"], "Failed statements on Postgres, and sessions lost, by what they mean.";
    WAKEUPS = "pg2kv_wakeups_total", Counter, ["cause"], "Fetches of the outbox, by what caused them.";
    BELL_RINGS = "pg2kv_bell_rings_total", Counter, [], "Notifications received from writers.";
    CHANGES_FETCHED = "pg2kv_changes_fetched_total", Counter, [], "Rows fetched from the outbox.";
    CHANGES_IGNORED = "pg2kv_changes_ignored_total", Counter, [], "Outbox rows of syncs that this daemon is not configured for; they stay there.";
    KEYS_COALESCED = "pg2kv_keys_coalesced_total", Counter, [], "Changes of a key that waited already and so cost no write of their own.";
    QUEUE_KEYS = "pg2kv_queue_keys", Gauge, [], "Distinct keys in memory.";
    QUEUE_LIMIT = "pg2kv_queue_limit_keys", Gauge, [], "Most distinct keys in memory, as configured; the rest wait in the outbox.";
    IN_FLIGHT_KEYS = "pg2kv_in_flight_keys", Gauge, [], "Keys being claimed, read or written.";
    DOUBT_KEYS = "pg2kv_doubt_keys", Gauge, [], "Keys of which an earlier write may still land late; they are written once more.";
    OLDEST_CHANGE_AGE = "pg2kv_oldest_unwritten_change_age_seconds", Gauge, [], "Age of the oldest change that is not proven to be in KV. The one number to watch.";
    MAX_WAIT = "pg2kv_max_wait_seconds", Gauge, [], "Longest that a change waits for others of its key, as configured. Ages well above it are trouble.";
    COMMIT_TO_WRITTEN = "pg2kv_commit_to_written_seconds", Histogram, ["sync"], "Time from a key's oldest change in Postgres to the proof that KV has it.";
    BATCH_PAIRS = "pg2kv_batch_pairs", Histogram, [], "Pairs in a request to KV.";
    PAIRS_WRITTEN = "pg2kv_pairs_written_total", Counter, ["sync", "op"], "Pairs proven written or deleted. Cloudflare bills each.";
    DOCUMENT_BYTES_MAX = "pg2kv_document_bytes_max", Gauge, ["sync"], "Size of the largest document made since the start. Workers KV takes 26214400 bytes.";
    KEYS_UNCHANGED = "pg2kv_keys_unchanged_total", Counter, ["sync"], "Keys whose document was in KV already, so that no write was billed.";
    KV_REQUESTS = "pg2kv_kv_requests_total", Counter, ["status_class"], "Bulk requests by status class; none where no reply came.";
    KV_REQUEST_DURATION = "pg2kv_kv_request_duration_seconds", Histogram, [], "Time from sending a bulk request to its reply.";
    RETRIES = "pg2kv_retries_total", Counter, ["reason"], "Requests whose keys must be sent again, by reason.";
    BLOCKED = "pg2kv_sending_blocked", Gauge, ["reason"], "1 while nothing is sent for this reason.";
    SYNC_ON_HOLD = "pg2kv_sync_on_hold", Gauge, ["sync", "reason"], "1 while this sync is on hold for this reason; the others flow.";
    TRIGGERS_FAULTY = "pg2kv_triggers_faulty", Gauge, ["sync"], "1 while changes of the sync are not, or not all, recorded, because its triggers are not in order.";
    DELETES_HELD = "pg2kv_deletes_held_keys", Gauge, ["sync"], "Keys that would be deleted from KV and are held by the brake until somebody approves.";
    BUDGET_LEFT = "pg2kv_budget_left_requests", Gauge, [], "Requests that may go now without touching the reserve.";
    BUDGET_LIMIT = "pg2kv_budget_limit_requests", Gauge, [], "Requests that may go in 5 minutes without touching the reserve, as configured; absent where there is no limit.";
    DEAD_LETTERED = "pg2kv_dead_lettered_total", Counter, ["sync", "reason"], "Keys that went to the dead letters.";
    DEAD_LETTERS = "pg2kv_dead_letters", Gauge, ["sync", "reason"], "Keys in the dead letters.";
    OUTBOX_ROWS = "pg2kv_outbox_rows", Gauge, [], "Rows in the outbox, estimated from statistics where there are many.";
    OUTBOX_OLDEST_AGE = "pg2kv_oldest_outbox_row_age_seconds", Gauge, [], "Age of the oldest row of the outbox, those of syncs that are not configured included.";
    OUTBOX_DEAD_ROWS = "pg2kv_outbox_dead_rows", Gauge, [], "Dead row versions of the outbox that autovacuum has not removed.";
    CLAIMS = "pg2kv_claims", Gauge, [], "Claims that are not settled.";
    NOTIFICATION_QUEUE_USAGE = "pg2kv_notification_queue_usage_ratio", Gauge, [], "Share of the server's notification queue that is in use, 0 to 1.";
    OLDEST_TRANSACTION_AGE = "pg2kv_oldest_transaction_age_seconds", Gauge, [], "Age of the oldest open transaction of the database. Old ones keep dead rows from being removed.";
    BACKFILL_RUNNING = "pg2kv_backfill_running", Gauge, ["sync"], "1 while a backfill of the sync runs.";
    BACKFILL_DONE = "pg2kv_backfill_done_rows", Gauge, ["sync"], "Rows and names that the running backfill has done.";
    BACKFILL_ESTIMATE = "pg2kv_backfill_estimate_rows", Gauge, ["sync"], "Rows that the running backfill has in all, estimated.";
    BACKFILL_LEFT = "pg2kv_backfill_left_seconds", Gauge, ["sync"], "Time that the running walk over rows still takes at its pace so far, 0 while that cannot be said.";
    BACKFILLS = "pg2kv_backfills_total", Counter, ["sync"], "Backfills that were done to the end.";
    RECONFIGURATIONS = "pg2kv_configuration_changes_total", Counter, ["sync"], "Times that this process took over with another configuration of the sync than the leader before.";
    OLD_NAMES = "pg2kv_old_names", Gauge, ["sync"], "Keys in KV under names of an earlier configuration, as last counted; they are deleted, or wait for approval.";
    OLD_NAMES_DELETED = "pg2kv_old_names_deleted_total", Counter, ["sync"], "Keys deleted because an earlier configuration had made them.";
    AUDITS = "pg2kv_audits_total", Counter, ["sync"], "Comparisons of KV with the rows that were done to the end.";
    AUDIT_DRIFTED_KEYS = "pg2kv_audit_drifted_keys_total", Counter, ["sync", "drift"], "Keys that differed between KV and the rows for no reason, by how; each is written again.";
    AUDIT_KEYS = "pg2kv_audit_keys", Gauge, ["sync", "state"], "Keys as the last comparison found them.";
    AUDIT_LAST_SUCCESS = "pg2kv_audit_last_success_timestamp_seconds", Gauge, ["sync"], "Unix time at which the last comparison ended, by whichever process; missing before the first.";
    AUDIT_INTERVAL = "pg2kv_audit_interval_seconds", Gauge, [], "Time from one comparison of KV with the rows to the next, as configured; 0 where it is off.";
    RELATED_CHANGES = "pg2kv_related_changes_total", Counter, ["sync"], "Changes of related tables of which all keys were recorded. Changes with the same values count once while they wait.";
    RELATED_KEYS = "pg2kv_related_keys_total", Counter, ["sync"], "Keys that were recorded because a related table changed.";
    RELATED_WAITING = "pg2kv_related_changes_waiting", Gauge, ["sync"], "Changes of related tables of which not all keys are recorded yet.";
    BUILD_INFO = "pg2kv_build_info", Gauge, ["version", "revision"], "Always 1; the labels say what runs.";
    LOOP_AGE = "pg2kv_loop_age_seconds", Gauge, [], "Time since the daemon's loop went round last. Above 15 it is stuck, and its other gauges are old.";
    START_TIME = "pg2kv_start_time_seconds", Gauge, [], "Unix time at which the process started.";
}

const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0, 1800.0,
];
const PAIRS: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0];

/// Installs the process-wide recorder.
///
/// # Errors
/// When a recorder is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Full(BATCH_PAIRS.to_owned()), PAIRS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    for metric in ALL {
        let unit = if metric.name.contains("_seconds") {
            Unit::Seconds
        } else {
            Unit::Count
        };
        match metric.kind {
            Type::Counter => describe_counter!(metric.name, unit, metric.help),
            Type::Gauge => describe_gauge!(metric.name, unit, metric.help),
            Type::Histogram => describe_histogram!(metric.name, unit, metric.help),
        }
    }
    let revision = option_env!("PG2KV_REVISION").filter(|revision| !revision.is_empty());
    let revision = revision.unwrap_or("unknown");
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION"), "revision" => revision).set(1.0);
    let started = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64());
    gauge!(START_TIME).set(started);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        for metric in ALL {
            assert!(metric.name.starts_with("pg2kv_"), "{}", metric.name);
            let total = metric.name.ends_with("_total");
            assert_eq!(total, metric.kind == Type::Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
        let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
