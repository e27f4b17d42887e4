//! Which ids of the outbox were returned, and which may still turn up below them. Pure.
//!
//! Ids come from a sequence, so a transaction that commits late brings ids below those already
//! returned. The frontier keeps them as gaps: ids at or below [`Frontier::high`] that were not
//! seen. The transaction that drew such an id holds RowExclusiveLock on the outbox from before it
//! drew the id until its outcome is visible. So a gap is done with once every transaction that held
//! the lock at a look after the gap was noticed is gone, and a probe after that finds nothing.
//!
//! A probe is needed only when one of those transactions has ended: a writer that stays open costs
//! nothing, and rows that are dead or were returned are never read again.
//!
//! **Invariant:** an id at or below `high` was returned, lies in a gap, or belongs to a transaction
//! that has ended without it.

use std::collections::BTreeSet;

/// Ranges kept at most; over it the nearest ones are merged, and ids returned between them may be
/// returned again.
const GAPS_MAX: usize = 512;

/// A transaction that holds RowExclusiveLock on the outbox: `virtualtransaction` of `pg_locks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Holder {
    /// Slot of the server process; -1 for a prepared transaction.
    pub(crate) process: i64,
    /// Number of the transaction within the slot.
    pub(crate) transaction: i64,
}

impl Holder {
    /// Reads `3/412`, or `-1/733` for a prepared transaction.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (process, transaction) = text.split_once('/')?;
        Some(Self {
            process: process.parse().ok()?,
            transaction: transaction.parse().ok()?,
        })
    }

    /// A transaction that was prepared changes its identity: it leaves its process.
    fn is_prepared(self) -> bool {
        self.process < 0
    }
}

/// Ids from `low` to `high`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) low: i64,
    pub(crate) high: i64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Frontier {
    high: i64,
    /// Ascending, disjoint.
    gaps: Vec<Gap>,
    /// Holders of the last look.
    last_look: BTreeSet<Holder>,
    gaps_max: usize,
}

#[derive(Clone, Debug)]
struct Gap {
    range: Range,
    /// Transactions that may have drawn these ids and have not ended; `None` until the first look
    /// after the gap was noticed.
    waits_for: Option<BTreeSet<Holder>>,
    /// Whether one of them has ended since the last probe.
    due: bool,
}

impl Frontier {
    /// Begins with every id up to `drawn` unseen: the sequence's last value, read before any look.
    pub(crate) fn new(drawn: i64) -> Self {
        Self::with_bound(drawn, GAPS_MAX)
    }

    fn with_bound(drawn: i64, gaps_max: usize) -> Self {
        let mut frontier = Self {
            high: drawn.max(0),
            gaps: Vec::new(),
            last_look: BTreeSet::new(),
            gaps_max,
        };
        if drawn > 0 {
            frontier.gaps.push(Gap {
                range: Range {
                    low: 1,
                    high: drawn,
                },
                waits_for: None,
                due: false,
            });
        }
        frontier
    }

    /// Everything above this id is new.
    pub(crate) fn high(&self) -> i64 {
        self.high
    }

    /// Whether ids below [`Self::high`] may still turn up: the next fetch needs a look.
    pub(crate) fn has_gaps(&self) -> bool {
        !self.gaps.is_empty()
    }

    /// Takes a look at the holders, and gives the ranges to probe now, ascending. The probe must
    /// take its snapshot after the look, and its answer must go to [`Self::probed`].
    pub(crate) fn look(&mut self, holders: &BTreeSet<Holder>) -> Vec<Range> {
        let newly_prepared: BTreeSet<Holder> = holders
            .iter()
            .copied()
            .filter(|holder| holder.is_prepared() && !self.last_look.contains(holder))
            .collect();
        for gap in &mut self.gaps {
            let Some(waits_for) = &mut gap.waits_for else {
                gap.waits_for = Some(holders.clone());
                gap.due = true;
                continue;
            };
            let before = waits_for.len();
            let mut left_its_process = false;
            waits_for.retain(|holder| {
                let holds = holders.contains(holder);
                left_its_process |= !holds && !holder.is_prepared();
                holds
            });
            gap.due |= waits_for.len() < before;
            if left_its_process {
                // It has ended, or it goes on as one of the prepared ones that are new here.
                // Prepared transactions have no further identity, so this comes to an end.
                waits_for.extend(&newly_prepared);
            }
        }
        self.last_look.clone_from(holders);
        self.gaps
            .iter()
            .filter(|gap| gap.due)
            .map(|gap| gap.range)
            .collect()
    }

    /// Takes what a probe of the ranges of the last [`Self::look`] found, ascending. `complete` is
    /// false where the probe stopped at its limit: nothing is then known beyond its last id.
    pub(crate) fn probed(&mut self, found: &[i64], complete: bool) {
        let known_to = if complete {
            i64::MAX
        } else {
            found.last().copied().unwrap_or(i64::MIN)
        };
        let mut found = found.iter().copied().peekable();
        let mut left = Vec::with_capacity(self.gaps.len());
        for gap in std::mem::take(&mut self.gaps) {
            if !gap.due {
                left.push(gap);
                continue;
            }
            let mut low = gap.range.low;
            let mut keep = |low: i64, high: i64, due: bool| {
                // Nobody is left who could bring these ids, and the probe saw them missing.
                let done = !due && gap.waits_for.as_ref().is_some_and(BTreeSet::is_empty);
                if low <= high && !done {
                    let range = Range { low, high };
                    left.push(Gap {
                        range,
                        waits_for: gap.waits_for.clone(),
                        due,
                    });
                }
            };
            while let Some(id) = found.next_if(|id| *id <= gap.range.high) {
                if id < low {
                    continue; // below the range: belongs to no gap of ours
                }
                keep(low, id - 1, false);
                low = id + 1;
            }
            let known = known_to.min(gap.range.high);
            keep(low, known, false);
            keep(low.max(known.saturating_add(1)), gap.range.high, true);
        }
        self.gaps = left;
        self.bound();
    }

    /// Takes the ids of a page of rows above [`Self::high`], ascending.
    pub(crate) fn page(&mut self, ids: &[i64]) {
        for &id in ids {
            if id <= self.high {
                continue;
            }
            if id > self.high + 1 {
                let range = Range {
                    low: self.high + 1,
                    high: id - 1,
                };
                self.gaps.push(Gap {
                    range,
                    waits_for: None,
                    due: false,
                });
            }
            self.high = id;
        }
        self.bound();
    }

    /// Merges neighbours, nearest first, until there are no more gaps than the bound.
    fn bound(&mut self) {
        if self.gaps.len() <= self.gaps_max {
            return;
        }
        // Down to three quarters, so that the cost of a merge is spread over many new gaps.
        let target = self.gaps_max * 3 / 4;
        let mut distances: Vec<i64> = self
            .gaps
            .windows(2)
            .map(|pair| pair[1].range.low - pair[0].range.high)
            .collect();
        let merges = self.gaps.len() - target.max(1);
        let mut sorted = distances.clone();
        sorted.sort_unstable();
        let farthest = sorted[merges - 1];
        // Equal distances: as many as are needed, so that the bound holds exactly.
        let mut at_farthest = sorted[..merges].iter().filter(|d| **d == farthest).count();
        let mut merged: Vec<Gap> = Vec::with_capacity(self.gaps.len());
        distances.insert(0, i64::MAX);
        for (gap, distance) in std::mem::take(&mut self.gaps).into_iter().zip(distances) {
            let join = match distance.cmp(&farthest) {
                std::cmp::Ordering::Less => true,
                std::cmp::Ordering::Equal if at_farthest > 0 => {
                    at_farthest -= 1;
                    true
                }
                _ => false,
            };
            match merged.last_mut() {
                Some(last) if join => last.join(gap),
                _ => merged.push(gap),
            }
        }
        self.gaps = merged;
    }
}

impl Gap {
    /// Takes the next gap and the ids between into this one.
    fn join(&mut self, next: Self) {
        self.range.high = next.range.high;
        self.due |= next.due;
        self.waits_for = match (self.waits_for.take(), next.waits_for) {
            (Some(mut ours), Some(theirs)) => {
                ours.extend(theirs);
                Some(ours)
            }
            // One of the two was not looked at yet, so the whole was not: the next look decides.
            _ => None,
        };
    }
}
