//! What a seed does: its settings, its load, and the random subset of faults that it switches on.

use std::time::Duration;

use pg2kv::change::Mono;
use pg2kv::queue;
use pg2kv::queue::{backoff, budget};
use pg2kv::relay::{Settings, audits, brake};

use super::mutants::Mutant;

/// Longest time that KV takes for a reply; after it the request is given up.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A request may land this long after it was sent, less a microsecond.
pub(super) const LATE_WRITE_WINDOW: Duration = Duration::from_secs(15);

/// Faults that may happen. Swarm testing: a run with few kinds of faults reaches states that a run
/// with all of them never sees.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    pub(super) late_commits: bool,
    pub(super) aborts: bool,
    pub(super) truncates: bool,
    pub(super) bad_rows: bool,
    pub(super) storms: bool,
    pub(super) crashes: bool,
    pub(super) pauses: bool,
    pub(super) shutdowns: bool,
    pub(super) restarts: bool,
    pub(super) partitions: bool,
    pub(super) failovers: bool,
    pub(super) lost_replies: bool,
    pub(super) transient: bool,
    pub(super) relation: bool,
    pub(super) slow_database: bool,
    pub(super) ambiguous: bool,
    pub(super) partial: bool,
    pub(super) throttled: bool,
    pub(super) not_sent: bool,
    pub(super) slow_kv: bool,
    pub(super) unauthorized: bool,
    pub(super) gone: bool,
    pub(super) quota: bool,
    pub(super) unexpected: bool,
    pub(super) short_reads: bool,
    /// Somebody else writes to KV.
    pub(super) tampers: bool,
    /// Rows of related tables change.
    pub(super) related: bool,
}

/// What a seed does.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) settings: Settings,
    pub(super) processes: usize,
    pub(super) keys: usize,
    /// Distinct contents of a row: few make contents come back, many make old ones show.
    pub(super) contents: u32,
    /// Mean time between transactions.
    pub(super) gap: Duration,
    /// One in this many transactions changes key 0 of sync 0.
    pub(super) hot: u32,
    /// While there are faults nobody approves of deletes, and what is deleted is counted.
    pub(super) nobody_approves: bool,
    /// Until then another installation has pairs under the names of all syncs.
    pub(super) taken_until: Mono,
    /// How long faults and writers go on.
    pub(super) chaos: Duration,
    pub(super) faults: Faults,
    /// No fault at all: latency is checked too.
    pub(super) calm: bool,
}

impl Plan {
    /// The plan of a seed, with the faults that show up the variant `aim`.
    pub(super) fn new(rng: &mut fastrand::Rng, aim: Option<Mutant>) -> Self {
        let calm = match aim {
            Some(Mutant::NoWaitCap | Mutant::NoWritersCheck) => true,
            Some(_) => false,
            None => rng.u32(..8) == 0,
        };
        // Of its own, so that what else a seed does stays the same.
        let mut brakes = fastrand::Rng::with_seed(rng.clone().u64(..));
        let braked = !calm && (brakes.u32(..4) == 0 || aim.is_some_and(Mutant::is_of_brakes));
        let millis = |ms: u64| Duration::from_millis(ms);
        let pick = |rng: &mut fastrand::Rng, of: &[u64]| of[rng.usize(..of.len())];
        let mut others = fastrand::Rng::with_seed(!rng.clone().u64(..));
        let scarce = aim == Some(Mutant::NoBudget) || (!calm && rng.u32(..12) == 0);
        let tampers =
            !calm && !scarce && (aim.is_some_and(Mutant::is_of_audits) || others.u32(..4) == 0);
        let related = aim == Some(Mutant::MarkerEndsEarly) || others.u32(..3) == 0;
        let taken = aim == Some(Mutant::TakenIsFree) || (!calm && others.u32(..8) == 0);
        let taken = millis(if taken { others.u64(1..12_000) } else { 0 });
        let taken_until = start() + taken;
        let syncs = rng.usize(1..=2);
        let keys = if calm {
            rng.usize(2..=8)
        } else {
            rng.usize(2..=16)
        };
        let chunk = rng.usize(1..=6);
        let backoff = backoff::Settings {
            initial: millis(pick(rng, &[50, 200])),
            max: millis(pick(rng, &[2_000, 5_000])),
        };
        let settings = Settings {
            queue: queue::Settings {
                quiet: millis(pick(rng, &[0, 20, 100])),
                max_wait: millis(pick(rng, &[200, 1_000])),
                grain: millis(pick(rng, &[0, 20])),
                key_interval: KEY_INTERVAL,
                keys_max: if calm || scarce {
                    1_000
                } else {
                    chunk + rng.usize(10..=30)
                },
                leading: rng.bool(),
                backoff,
            },
            backoff,
            budget: budget::Settings {
                requests_per_window: if scarce { SCARCE_REQUESTS } else { 1_200 },
                reserve_requests: if scarce { 6 } else { 60 },
            },
            syncs: (0..syncs).map(|sync| format!("s{sync}")).collect(),
            pairs_max: rng.usize(2..=12),
            body_max_bytes: 1_000_000,
            in_flight_max: rng.usize(1..=6),
            late_write_window: LATE_WRITE_WINDOW,
            lease_ttl: Duration::from_secs(10),
            campaign_interval: millis(3_000),
            poll_interval: if calm {
                Duration::from_secs(30)
            } else {
                millis(pick(rng, &[2_000, 10_000]))
            },
            linger: millis(pick(rng, &[2, 10, 25])),
            doorbell: calm || rng.u32(..8) > 0,
            backfill_chunk: chunk,
            fetch_max: rng.usize(8..=40),
            grace: Duration::from_secs(8),
            seen_max: if rng.bool() { 1_000 } else { 4 },
            brake: brake::Settings {
                share: if brakes.bool() { 0.3 } else { 0.0 },
                count: if braked { brakes.u64(1..=4) } else { 0 },
                window: millis(5_000),
            },
            audit: audits::Settings {
                interval: Duration::from_secs(if tampers { others.u64(2..=15) } else { 86_400 }),
                page_interval: millis(pick(&mut others, &[0, 200, 1_000])),
            },
        };
        Self {
            settings,
            processes: if calm { 1 } else { rng.usize(1..=3) },
            keys,
            contents: if rng.bool() { 3 } else { 1_000_000 },
            gap: millis(match (scarce, calm) {
                (true, _) => 400,
                (false, true) => pick(rng, &[20, 100]),
                (false, false) => pick(rng, &[60, 150, 400]),
            }),
            hot: if calm {
                rng.u32(1..=4)
            } else {
                rng.u32(2..=10)
            },
            nobody_approves: aim.is_some_and(Mutant::is_of_brakes),
            taken_until,
            chaos: Duration::from_secs(if scarce {
                400
            } else if calm {
                20
            } else {
                rng.u64(15..=50)
            }),
            faults: if calm {
                Faults {
                    late_commits: aim != Some(Mutant::NoWaitCap) && rng.bool(),
                    aborts: rng.bool(),
                    related,
                    ..Faults::default()
                }
            } else {
                Faults {
                    tampers,
                    related,
                    ..Faults::draw(rng, aim)
                }
            },
            calm,
        }
    }

    /// The settings of the relays: those of the plan, unless the variant is in them.
    pub(super) fn settings_of(&self, mutant: Option<Mutant>) -> Settings {
        let mut settings = self.settings.clone();
        match mutant {
            Some(Mutant::NoWaitCap) => settings.queue.max_wait = Duration::from_secs(86_400),
            Some(Mutant::NoKeyInterval) => settings.queue.key_interval = Duration::ZERO,
            Some(Mutant::NoLateWindow) => settings.late_write_window = Duration::ZERO,
            Some(Mutant::NoBudget) => settings.budget.requests_per_window = 0,
            Some(Mutant::BrakeIgnored) => settings.brake.count = 0,
            _ => {}
        }
        settings
    }

    /// After the faults end, all must be well within this time: the lease may have to run out, the
    /// waits between tries may be at their longest, a doubt may begin anew with each leader, and the
    /// budget may be used up.
    pub(super) fn deadline(&self) -> Duration {
        let settings = &self.settings;
        let scarce = settings.budget.requests_per_window == SCARCE_REQUESTS;
        let budget = budget::WINDOW * if scarce { 3 } else { 1 };
        let audits = if self.faults.tampers {
            settings.audit.interval * 4 + Duration::from_secs(60)
        } else {
            Duration::ZERO
        };
        audits
            + settings.lease_ttl * 3
            + settings.backoff.max * 8
            + LATE_WRITE_WINDOW * 4
            + settings.poll_interval
            + RETRY_AFTER_MAX * 2
            + Duration::from_secs(60)
            + budget
    }

    /// A change must be in KV within this time while nothing fails.
    pub(super) fn calm_latency(&self) -> Duration {
        self.settings.queue.max_wait.min(Duration::from_secs(1))
            + KEY_INTERVAL
            + Duration::from_millis(1_500)
    }
}

/// When a run begins.
pub(super) fn start() -> Mono {
    Mono::from_origin(Duration::from_secs(1_000))
}

/// Least time between two writes of a key.
pub(super) const KEY_INTERVAL: Duration = Duration::from_secs(1);
/// Requests in five minutes of a seed with a small budget.
pub(super) const SCARCE_REQUESTS: u32 = 60;
/// Longest `Retry-After` of the model.
pub(super) const RETRY_AFTER_MAX: Duration = Duration::from_secs(20);

impl Faults {
    fn draw(rng: &mut fastrand::Rng, mutant: Option<Mutant>) -> Self {
        let density = [2, 3, 6][rng.usize(..3)];
        let mut on = || rng.u32(..density) == 0;
        let mut faults = Self {
            late_commits: on(),
            aborts: on(),
            truncates: on(),
            bad_rows: on(),
            storms: on(),
            crashes: on(),
            pauses: on(),
            shutdowns: on(),
            restarts: on(),
            partitions: on(),
            failovers: on(),
            lost_replies: on(),
            transient: on(),
            relation: on(),
            slow_database: on(),
            ambiguous: on(),
            partial: on(),
            throttled: on(),
            not_sent: on(),
            slow_kv: on(),
            unauthorized: on(),
            gone: on(),
            quota: on(),
            unexpected: on(),
            short_reads: on(),
            tampers: false,
            related: false,
        };
        // A variant can only be caught where its fault happens.
        match mutant {
            Some(Mutant::ClaimsNotPersisted | Mutant::RecoveredClaimsDropped) => {
                faults.crashes = true;
                faults.ambiguous = true;
            }
            Some(Mutant::AmbiguousIsWritten | Mutant::NoLateWindow) => faults.ambiguous = true,
            Some(Mutant::ThrottledIsWritten) => faults.throttled = true,
            Some(Mutant::RejectedIsWritten | Mutant::DeadLettersNotWritten) => {
                faults.bad_rows = true;
            }
            Some(Mutant::PartialIsWritten) => faults.partial = true,
            Some(Mutant::FenceIgnored | Mutant::TrustForEver) => faults.pauses = true,
            Some(Mutant::GivesUpEarly) => faults.slow_kv = true,
            Some(Mutant::FetchMissesLateCommits) => faults.late_commits = true,
            Some(Mutant::MarkerWithoutBackfill | Mutant::BrakeIgnored) => faults.truncates = true,
            Some(Mutant::DeletesForgotten) => {
                faults.truncates = true;
                faults.crashes = true;
            }
            Some(Mutant::OutdatedNotReadAgain) => {
                faults.truncates = true;
                faults.slow_kv = true;
            }
            Some(Mutant::IdentityIgnored) => faults.failovers = true,
            Some(Mutant::LostReplyIsRollback) => faults.lost_replies = true,
            Some(Mutant::NamespaceGoneIsThrottled) => faults.gone = true,
            Some(Mutant::ReadBeforeClaim) => faults.slow_database = true,
            _ => {}
        }
        faults
    }
}
