//! What writers lose while others learn of their changes.

use crate::Context;
use crate::report::{Figure, Report, Target};
use crate::rounds::{Samples, turns};
use crate::stage::{Stage, Way};

/// Whose throughput is compared.
const WAYS: [Way; 7] = [
    Way::Plain,
    Way::Daemon,
    Way::NotifyRow,
    Way::OutboxNotify,
    Way::Slot,
    Way::RowTrigger,
    Way::TriggersAlone,
];
const WATCHED: &str = "level = :value";
const UNWATCHED: &str = "logins = :value";

/// Single-row updates by 16 clients.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    // An UPDATE of a column without an index finds room on the row's own page, in every table alike.
    let stage = Stage::start(50).await;
    // Without a daemon is between the others; the quick round leaves it out.
    let ways = context.size(&WAYS[..], &WAYS[..6]);
    let (rounds, seconds) = context.size((5, 4), (2, 1));
    for (commit, micros, least) in [
        ("commit of 2 ms", 2_000, 0.97),
        ("commit as fast as the disk", 0, 0.80),
    ] {
        stage.commits_take(micros).await;
        let mut samples = Samples::new();
        for way in turns(rounds, ways) {
            samples.push(way, stage.writers(way, WATCHED, seconds).await);
        }
        let figure = |way: Way| {
            let name = format!("writers, {commit}: {}", way.name());
            Figure::new(name, "tx/s", samples.of(way))
        };
        for way in &ways[1..] {
            let against_plain = figure(*way).against(Way::Plain.name(), samples.of(Way::Plain));
            report.add(match way {
                Way::Daemon => against_plain.target(Target::RatioAtLeast(least)),
                _ => against_plain,
            });
        }
        if micros == 0 {
            let slot = figure(Way::Daemon).against(Way::Slot.name(), samples.of(Way::Slot));
            report.add(slot.target(Target::RatioAtLeast(0.95)));
        }
    }

    let mut samples = Samples::new();
    for way in turns(rounds, &[Way::Plain, Way::Daemon, Way::EmptyTrigger]) {
        samples.push(way, stage.writers(way, UNWATCHED, seconds).await);
    }
    for way in [Way::Daemon, Way::EmptyTrigger] {
        let name = format!("writers of a column that is not watched: {}", way.name());
        let figure = Figure::new(name, "tx/s", samples.of(way))
            .against(Way::Plain.name(), samples.of(Way::Plain));
        report.add(match way {
            Way::Daemon => figure.target(Target::RatioAtLeast(0.97)),
            _ => figure,
        });
    }
}
