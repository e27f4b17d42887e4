//! What a daemon holds that has nothing to do.

use std::time::Duration;

use super::stand::{Kv, Pace, Stand, USERS, insert_users};
use super::usage::resident;
use crate::Context;
use crate::report::{Figure, Report, Target};

/// How long it has led when it is looked at.
const LEADING: Duration = Duration::from_secs(5);
/// Rows of the table. They do not matter.
const ROWS: u64 = 1_000;

/// Runs the part.
pub(crate) async fn run(context: &Context, report: &mut Report) {
    let stand = Stand::start(USERS).await;
    let kv = Kv::start(Pace::Free).await;
    stand.sql(&insert_users(1, ROWS)).await;
    stand.install().await;
    stand.get_known(&kv).await;
    let (mut now, mut peak) = (Vec::new(), Vec::new());
    for _ in 0..context.size(3, 1) {
        let daemon = stand.daemon(&kv, Pace::Limited);
        daemon.leads().await;
        tokio::time::sleep(LEADING).await;
        let resident = resident(daemon.pid()).unwrap();
        now.push(resident.now_kib as f64 / 1024.0);
        peak.push(resident.peak_kib as f64 / 1024.0);
        daemon.stop().await;
    }
    report.add(
        Figure::new("memory, idle: at most resident", "MiB", &peak).target(Target::AtMost(20.0)),
    );
    report.add(Figure::new("memory, idle: resident after 5 s", "MiB", &now));
}
