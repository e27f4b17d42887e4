//! What processes use, as the kernel counts it: memory and processor time.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// How often a tree of processes is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Ticks in a second of what the kernel says of processor time. It is 100 wherever Rust runs on Linux.
const TICKS: f64 = 100.0;

/// Processor time that a process and its children have used since they began, in seconds. Children
/// that have ended count where their parent has waited for them.
pub(crate) fn processor_seconds(pid: u32) -> f64 {
    let stats = family(pid).into_iter().filter_map(|member| {
        let stat = fs::read_to_string(format!("/proc/{member}/stat")).ok()?;
        // The name before the last parenthesis may have blanks.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: Option<Vec<f64>> = fields.get(11..15)?.iter().map(|n| n.parse().ok()).collect();
        Some(ticks?.iter().sum::<f64>())
    });
    stats.sum::<f64>() / TICKS
}

/// Memory that a process has resident now, and the most that it ever had, in KiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resident {
    pub(crate) now_kib: u64,
    pub(crate) peak_kib: u64,
}

/// The memory of a process; `None` once it has ended.
pub(crate) fn resident(pid: u32) -> Option<Resident> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Resident {
        now_kib: field("VmRSS:")?,
        peak_kib: field("VmHWM:")?,
    })
}

/// Watches a process and its children: the sum of what each had at most.
pub(crate) struct Watch {
    stop: oneshot::Sender<()>,
    watching: JoinHandle<u64>,
}

impl Watch {
    /// Begins.
    pub(crate) fn start(pid: u32) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let watching = tokio::spawn(async move {
            let mut peaks = BTreeMap::new();
            let mut look = tokio::time::interval(LOOK_EVERY);
            loop {
                for member in family(pid) {
                    if let Some(Resident { peak_kib, .. }) = resident(member) {
                        peaks.insert(member, peak_kib);
                    }
                }
                tokio::select! {
                    _ = look.tick() => {}
                    _ = &mut stopped => return peaks.values().sum(),
                }
            }
        });
        Self { stop, watching }
    }

    /// Ends it; returns the sum in KiB.
    pub(crate) async fn peak_kib(self) -> u64 {
        let _ = self.stop.send(());
        self.watching.await.unwrap()
    }
}

/// A process and all below it.
fn family(pid: u32) -> Vec<u32> {
    let mut members = vec![pid];
    let mut next = 0;
    while let Some(parent) = members.get(next) {
        let threads = fs::read_dir(format!("/proc/{parent}/task"))
            .into_iter()
            .flatten()
            .flatten();
        for thread in threads {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            members.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    members
}
