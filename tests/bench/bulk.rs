//! What one UPDATE of many rows takes longer.

use crate::Context;
use crate::report::{Figure, Report, Target};
use crate::rounds::{Samples, turns};
use crate::stage::{ROWS, Stage, Way};

const WAYS: [Way; 5] = [
    Way::Plain,
    Way::Daemon,
    Way::TriggersAlone,
    Way::RowTrigger,
    Way::StatementTrigger,
];

/// One UPDATE of every row. The daemon sleeps when it begins, and sees nothing of it before its commit.
/// Tables are filled as they are by default.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let stage = Stage::start(100).await;
    // Each table has been updated once before anything counts.
    for way in WAYS.into_iter().filter(|way| *way != Way::Daemon) {
        stage.update_of_all(way).await;
    }
    let mut samples = Samples::new();
    for way in turns(context.size(7, 2), &WAYS) {
        samples.push(way, stage.update_of_all(way).await);
    }
    for way in &WAYS[1..] {
        let name = format!("one UPDATE of {ROWS} rows: {}", way.name());
        let figure = Figure::new(name, "ms", samples.of(*way))
            .against(Way::Plain.name(), samples.of(Way::Plain));
        report.add(match way {
            Way::Daemon => figure.target(Target::RatioAtMost(2.0)),
            _ => figure,
        });
    }
}
