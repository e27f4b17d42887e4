//! `pg2kv verify`: KV against Postgres.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::args::VerifyArgs;
use super::output::{BAD, DIM, Failure, GOOD, count, write_table};
use super::progress::Progress;
use super::{EXIT_UNAVAILABLE, kv_client};
use crate::audit::{self, Drift, Pace, Report, Target};
use crate::change::{Answer, Key, Outcome, fingerprint};
use crate::config;
use crate::source::admin::Admin;
use crate::source::audit::Auditor;

/// Least time between two requests to KV. One token may send four in a second on average; the
/// daemon's writes need most of them.
const LIST_INTERVAL: Duration = Duration::from_millis(500);
/// Wait after a 429 that does not say how long.
const THROTTLE_WAIT: Duration = Duration::from_secs(30);
/// Longest wait that a 429 can ask for: the window of the limit.
const THROTTLE_WAIT_MAX: Duration = Duration::from_secs(300);
/// Most keys that a report names.
const SAMPLES_MAX: usize = 20;

pub(super) async fn execute(files: &[PathBuf], args: &VerifyArgs) -> Result<ExitCode, Failure> {
    let config = config::load(files, std::env::vars_os())?;
    let syncs = super::syncs(&config, args.sync.as_deref())?;
    let kv = kv_client(&config)?;
    let settings = config.source_settings();
    let auditor = Auditor::connect(&settings).await?;
    let mut pace = Calm::new();
    let progress = Progress::new();
    let mut found = Vec::new();
    for sync in &syncs {
        let name = sync.source.name.as_str();
        let target = Target {
            source: &sync.source,
            template: &sync.template,
            namespace: &sync.namespace,
        };
        let compared = audit::compare(&auditor, &kv, &target, &mut pace, |at| {
            let round = if at.again {
                "looking again"
            } else {
                "comparing"
            };
            let text = format!("{name}: {round}, {} names, {} rows", at.names, at.rows);
            progress.say(text);
        })
        .await;
        progress.clear();
        found.push((name, compared?));
    }

    let drifted = found.iter().any(|(_, report)| report.drifted() > 0);
    if args.repair && !args.dry_run && drifted {
        let admin = Admin::connect(&settings).await?;
        for (name, report) in &found {
            if report.is_cut() {
                admin.resync(name).await?;
            } else if report.drifted() > 0 {
                let keys: Vec<&Key> = report.keys.iter().map(|(key, _)| key).collect();
                admin.write_again(name, &keys).await?;
                if report.unmade > 0 {
                    admin.owe_audit(name).await?;
                }
            }
        }
    }
    if args.json {
        writeln!(anstream::stdout(), "{}", as_json(&found, args))?;
    } else {
        print(&found, args)?;
    }
    Ok(if drifted {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn print(found: &[(&str, Report)], args: &VerifyArgs) -> Result<(), Failure> {
    let mut out = anstream::stdout();
    let heading = [
        "SYNC", "EQUAL", "MISSING", "STALE", "ORPHANED", "DEAD", "PENDING", "FOREIGN",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(found.iter().map(|(name, report)| {
        let numbers = [
            report.equal,
            report.missing,
            report.stale,
            report.orphaned + report.unmade,
            report.dead_lettered,
            report.pending,
            report.foreign,
        ];
        let mut row = vec![(*name).to_owned()];
        row.extend(numbers.map(|number| number.to_string()));
        row
    }));
    write_table(&mut out, &rows)?;
    writeln!(out)?;
    for (name, report) in found {
        if report.expired > 0 {
            writeln!(
                out,
                "{name}: {} of its documents are not in KV, which is where ttl ends them; they are \
                 written again when their rows change",
                report.expired
            )?;
        }
        if let Some(other) = report.other {
            writeln!(
                out,
                "{name}: installation {other} of pg2kv has pairs under its prefix; they count as \
                 foreign and are left alone"
            )?;
        }
        if report.undecided {
            writeln!(
                out,
                "{name}: a walk over all rows or many changes wait, so differences count as \
                 pending; `pg2kv status` shows how far it is"
            )?;
        }
        for (key, drift) in samples(report) {
            let key = if args.show_keys {
                // Escaped as JSON by Postgres already.
                key.as_str().to_owned()
            } else {
                fingerprint(key.as_str())
            };
            writeln!(out, "{name}: {DIM}{:<8}{DIM:#} {key}", drift.as_str())?;
        }
        let more = report.drifted() - samples(report).len() as u64;
        if more > 0 {
            writeln!(out, "{name}: {DIM}and {more} more{DIM:#}")?;
        }
    }
    let drifted: u64 = found.iter().map(|(_, report)| report.drifted()).sum();
    if drifted == 0 {
        writeln!(out, "{GOOD}ok{GOOD:#}  nothing has drifted")?;
    } else if args.dry_run {
        let whole: Vec<_> = found
            .iter()
            .filter(|(_, report)| report.is_cut())
            .map(|(name, _)| *name)
            .collect();
        let whole = match whole[..] {
            [] => String::new(),
            _ => format!(", and every document of {}", whole.join(", ")),
        };
        writeln!(
            out,
            "{BAD}drift{BAD:#}  would ask the daemon to mend {}{whole}; nothing was changed",
            count(drifted, "key")
        )?;
    } else if args.repair {
        writeln!(
            out,
            "{BAD}drift{BAD:#}  {}; the daemon was asked to mend them",
            count(drifted, "key")
        )?;
    } else {
        writeln!(
            out,
            "{BAD}drift{BAD:#}  {}; `pg2kv verify --repair` has the daemon mend them",
            count(drifted, "key")
        )?;
    }
    Ok(())
}

fn as_json(found: &[(&str, Report)], args: &VerifyArgs) -> serde_json::Value {
    let asks = args.repair && !args.dry_run;
    let syncs: Vec<_> = found
        .iter()
        .map(|(name, report)| {
            let samples: Vec<_> = samples(report)
                .iter()
                .map(|(key, drift)| {
                    let mut sample = json!({
                        "drift": drift.as_str(),
                        "fingerprint": fingerprint(key.as_str()),
                    });
                    if args.show_keys {
                        sample["key"] = serde_json::from_str(key.as_str()).unwrap_or_default();
                    }
                    sample
                })
                .collect();
            json!({
                "sync": name,
                "equal": report.equal,
                "missing": report.missing,
                "expired": report.expired,
                "stale": report.stale,
                "orphaned": report.orphaned + report.unmade,
                "dead_lettered": report.dead_lettered,
                "pending": report.pending,
                "foreign": report.foreign,
                "other_installation": report.other.map(|other| other.to_string()),
                "undecided": report.undecided,
                "repair_asked_for": asks && report.drifted() > 0,
                "resync_asked_for": asks && report.is_cut(),
                "samples": samples,
            })
        })
        .collect();
    let drifted: u64 = found.iter().map(|(_, report)| report.drifted()).sum();
    json!({ "drifted": drifted, "syncs": syncs })
}

impl From<audit::Error> for Failure {
    fn from(error: audit::Error) -> Self {
        let answer = match error {
            audit::Error::Source(error) => return error.into(),
            audit::Error::Kv(ref answer) | audit::Error::Pair(ref answer) => answer,
        };
        let (code, help) = match answer.outcome {
            Outcome::Unauthorized | Outcome::NamespaceGone | Outcome::Unexpected => {
                (1, "`pg2kv check` says what is not in order")
            }
            _ => (
                EXIT_UNAVAILABLE,
                "run it again later; `pg2kv check` says whether Workers KV answers",
            ),
        };
        Self::Other {
            code,
            what: error.to_string(),
            help: Some(help.to_owned()),
        }
    }
}

/// Some of the keys that drifted.
fn samples(report: &Report) -> &[(Key, Drift)] {
    &report.keys[..report.keys.len().min(SAMPLES_MAX)]
}

/// A pace that leaves the request budget to the daemon.
struct Calm {
    pages: Interval,
}

impl Calm {
    fn new() -> Self {
        let mut pages = interval(LIST_INTERVAL);
        pages.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { pages }
    }
}

impl Pace for &mut Calm {
    async fn page(&mut self, failed: Option<&Answer>) {
        if let Some(Outcome::Throttled(wait)) = failed.map(|answer| &answer.outcome) {
            let wait = wait.unwrap_or(THROTTLE_WAIT).min(THROTTLE_WAIT_MAX);
            tokio::time::sleep(wait).await;
        }
        self.pages.tick().await;
    }

    /// Somebody waits for the answer.
    async fn again(&mut self) {}
}
