//! How large documents are: a gauge, and a warning before one is too large for Workers KV.
//!
//! Bounded: one number for each sync, and at most one line of the log for each percent of the limit.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::gauge;
use tracing::warn;

use crate::change::{KV_VALUE_MAX_BYTES, Rendered, SyncId};
use crate::metrics as names;

/// From this share of the limit on a document counts as nearly too large.
const NEAR_PERCENT: u64 = 80;

/// The largest document of each sync since the start, in bytes.
#[derive(Debug)]
pub(super) struct Sizes(Vec<(String, AtomicU64)>);

impl Sizes {
    pub(super) fn new(syncs: impl Iterator<Item = String>) -> Self {
        Self(syncs.map(|name| (name, AtomicU64::new(0))).collect())
    }

    /// Notes the sizes of what was read.
    pub(super) fn note(&self, sync: SyncId, rendered: &[Rendered]) {
        let largest = rendered.iter().map(size).max().unwrap_or(0);
        let Some((name, known)) = self.0.get(usize::from(sync.0)) else {
            return;
        };
        let before = known.fetch_max(largest, Ordering::Relaxed);
        if largest <= before {
            return;
        }
        gauge!(names::DOCUMENT_BYTES_MAX, "sync" => name.clone()).set(largest as f64);
        if let Some(percent) = news(before, largest) {
            warn!(
                sync = name,
                bytes = largest,
                percent,
                hint = "divide its rows among several documents with shards before it is too \
                        large, or leave something out",
                "a document nears the largest value that Workers KV takes"
            );
        }
    }
}

fn size(rendered: &Rendered) -> u64 {
    match rendered {
        Rendered::Put(document) => document.value.bytes().len() as u64,
        Rendered::Delete(_) | Rendered::Nothing | Rendered::Poison(_) | Rendered::Large => 0,
    }
}

/// Whole percents of the limit, where they are many and more than before.
fn news(before: u64, now: u64) -> Option<u64> {
    let percent = |bytes: u64| bytes * 100 / KV_VALUE_MAX_BYTES as u64;
    (percent(now) >= NEAR_PERCENT && percent(now) > percent(before)).then(|| percent(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_that_nears_the_limit_is_told_once_for_each_percent() {
        let limit = KV_VALUE_MAX_BYTES as u64;
        let share = |percent: u64| limit * percent / 100 + 1;
        assert_eq!(news(0, share(79)), None);
        assert_eq!(news(share(79), share(80)), Some(80));
        assert_eq!(news(share(80), share(80) + 5), None);
        assert_eq!(news(share(80), limit), Some(100));
    }
}
