//! What one UPDATE of many rows takes longer.

use crate::Context;
use crate::report::{Figure, Report, Target};
use crate::rounds::{Samples, turns};
use crate::stage::{ROWS, Stage, Way};

const WAYS: [Way; 4] = [
    Way::Plain,
    Way::TriggersAlone,
    Way::RowTrigger,
    Way::StatementTrigger,
];

/// One UPDATE of every row. No daemon runs: it would see nothing before the commit.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let stage = Stage::start().await;
    // Each has been updated once before anything counts.
    for way in WAYS {
        stage.update_of_all(way).await;
    }
    let mut samples = Samples::new();
    for way in turns(context.size(9, 3), &WAYS) {
        samples.push(way, stage.update_of_all(way).await);
    }
    for way in &WAYS[1..] {
        let what = match way {
            Way::TriggersAlone => "pg2kv",
            other => other.name(),
        };
        let name = format!("one UPDATE of {ROWS} rows: {what}");
        let figure = Figure::new(name, "ms", samples.of(*way))
            .against(Way::Plain.name(), samples.of(Way::Plain));
        report.add(match way {
            Way::TriggersAlone => figure.target(Target::RatioAtMost(2.0)),
            _ => figure,
        });
    }
}
