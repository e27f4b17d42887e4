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
    /// Slot of the server process; -1 for none.
    pub(crate) process: i64,
    /// Number of the transaction within the slot.
    pub(crate) transaction: i64,
}

impl Holder {
    /// Reads `3/412`, or `-1/733` for a prepared transaction without a process.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (process, transaction) = text.split_once('/')?;
        Some(Self {
            process: process.parse().ok()?,
            transaction: transaction.parse().ok()?,
        })
    }

    /// A server that does not keep the number of a transaction that is prepared (14.0) shows it as
    /// a new one without a process. Later ones keep it, and then nothing special happens here.
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::{Frontier, Holder, Range};

    /// A table, its sequence and its writers; commit order is not id order.
    #[derive(Default)]
    struct Model {
        drawn: i64,
        visible: BTreeSet<i64>,
        open: BTreeMap<Holder, Vec<i64>>,
        next: i64,
        returned: Vec<i64>,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin,
        /// One of the open transactions (by position) draws ids.
        Insert(usize, i64),
        Commit(usize),
        Abort(usize),
        Prepare(usize),
        /// Ids that nobody ever used, as after a crash.
        Skip(i64),
        /// A fetch with a limit; the steps happen between its look, page and probe.
        Fetch(usize, Vec<Step>, Vec<Step>),
    }

    impl Model {
        fn pick(&self, at: usize) -> Option<Holder> {
            let count = self.open.len();
            (count > 0)
                .then(|| self.open.keys().nth(at % count).copied())
                .flatten()
        }

        fn apply(&mut self, step: &Step, frontier: &mut Frontier) {
            match step {
                Step::Begin => {
                    self.next += 1;
                    let holder = Holder {
                        process: self.next % 5,
                        transaction: self.next,
                    };
                    self.open.insert(holder, vec![]);
                }
                Step::Insert(at, count) => {
                    if let Some(holder) = self.pick(*at).filter(|holder| !holder.is_prepared()) {
                        let ids = self.drawn + 1..=self.drawn + count;
                        self.drawn = *ids.end();
                        self.open.entry(holder).or_default().extend(ids);
                    }
                }
                Step::Commit(at) => {
                    if let Some(ids) = self.pick(*at).and_then(|holder| self.open.remove(&holder)) {
                        self.visible.extend(ids);
                    }
                }
                Step::Abort(at) => {
                    self.pick(*at).and_then(|holder| self.open.remove(&holder));
                }
                Step::Prepare(at) => {
                    if let Some(holder) = self.pick(*at).filter(|holder| !holder.is_prepared()) {
                        let ids = self.open.remove(&holder).unwrap_or_default();
                        self.next += 1;
                        let prepared = Holder {
                            process: -1,
                            transaction: self.next,
                        };
                        self.open.insert(prepared, ids);
                    }
                }
                Step::Skip(count) => self.drawn += count,
                Step::Fetch(limit, before_page, before_probe) => {
                    self.fetch(frontier, *limit, before_page, before_probe);
                }
            }
        }

        /// As `outbox` does it: look and page in one go, the probe after both.
        fn fetch(
            &mut self,
            frontier: &mut Frontier,
            limit: usize,
            before_page: &[Step],
            before_probe: &[Step],
        ) -> bool {
            // Only a transaction that has inserted holds the lock.
            let holders: BTreeSet<Holder> = self
                .open
                .iter()
                .filter(|(_, ids)| !ids.is_empty())
                .map(|(holder, _)| *holder)
                .collect();
            let looks = frontier.has_gaps();
            let high = frontier.high();
            before_page
                .iter()
                .for_each(|step| self.apply(step, frontier));
            let page: Vec<i64> = self
                .visible
                .range(high + 1..)
                .take(limit)
                .copied()
                .collect();
            before_probe
                .iter()
                .for_each(|step| self.apply(step, frontier));
            let due = if looks {
                frontier.look(&holders)
            } else {
                vec![]
            };
            let mut more = page.len() == limit;
            if !due.is_empty() {
                assert!(
                    due.windows(2).all(|pair| pair[0].high < pair[1].low),
                    "{due:?}"
                );
                let late: Vec<i64> = due
                    .iter()
                    .flat_map(|Range { low, high }| self.visible.range(low..=high).copied())
                    .take(limit)
                    .collect();
                frontier.probed(&late, late.len() < limit);
                more |= late.len() == limit;
                self.returned.extend(&late);
            }
            frontier.page(&page);
            self.returned.extend(&page);
            more
        }

        fn end_all(&mut self) {
            while let Some((_, ids)) = self.open.pop_first() {
                self.visible.extend(ids);
            }
        }

        /// Fetches until nothing is open and nothing is left.
        fn drain(&mut self, frontier: &mut Frontier) {
            self.end_all();
            for _ in 0..self.visible.len() + 8 {
                let more = self.fetch(frontier, 3, &[], &[]);
                if !more && !frontier.has_gaps() {
                    return;
                }
            }
            panic!("gaps stay open: {frontier:?}");
        }
    }

    fn writing() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Begin),
            6 => (0..8_usize, 1..4_i64).prop_map(|(at, count)| Step::Insert(at, count)),
            3 => (0..8_usize).prop_map(Step::Commit),
            1 => (0..8_usize).prop_map(Step::Abort),
            1 => (0..8_usize).prop_map(Step::Prepare),
            1 => (1..4_i64).prop_map(Step::Skip),
        ]
    }

    fn history() -> impl Strategy<Value = Vec<Step>> {
        let between = || proptest::collection::vec(writing(), 0..3);
        let fetch = (1..6_usize, between(), between())
            .prop_map(|(limit, page, probe)| Step::Fetch(limit, page, probe));
        proptest::collection::vec(prop_oneof![3 => writing(), 1 => fetch], 1..80)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 1_000,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn every_committed_id_is_returned_once(
            before in proptest::collection::vec(writing(), 0..20),
            history in history(),
        ) {
            let mut model = Model::default();
            let mut unused = Frontier::new(0);
            before.iter().for_each(|step| model.apply(step, &mut unused));
            let mut frontier = Frontier::new(model.drawn);
            history.iter().for_each(|step| model.apply(step, &mut frontier));
            model.drain(&mut frontier);
            model.returned.sort_unstable();
            let expected: Vec<i64> = model.visible.iter().copied().collect();
            prop_assert_eq!(model.returned, expected);
        }

        #[test]
        fn with_merged_ranges_nothing_is_missed_and_memory_is_bounded(history in history()) {
            let mut model = Model::default();
            let mut frontier = Frontier::with_bound(0, 2);
            for step in &history {
                model.apply(step, &mut frontier);
                prop_assert!(frontier.gaps.len() <= 2, "{:?}", frontier);
            }
            model.end_all();
            for _ in 0..8 {
                model.fetch(&mut frontier, usize::MAX, &[], &[]);
            }
            prop_assert!(!frontier.has_gaps(), "{:?}", frontier);
            let returned: BTreeSet<i64> = model.returned.iter().copied().collect();
            prop_assert_eq!(returned, model.visible);
        }
    }

    #[test]
    fn a_writer_that_stays_open_costs_one_probe() {
        let old = Holder {
            process: 1,
            transaction: 1,
        };
        let mut frontier = Frontier::new(10);
        assert_eq!(frontier.look(&BTreeSet::from([old])).len(), 1);
        frontier.probed(&[], true);
        for _ in 0..100 {
            assert_eq!(frontier.look(&BTreeSet::from([old])), []);
        }
        assert_eq!(frontier.look(&BTreeSet::new()).len(), 1);
        frontier.probed(&[4], true);
        assert!(!frontier.has_gaps());
    }

    #[test]
    fn holders_are_read_as_the_server_prints_them() {
        assert_eq!(
            Holder::parse("3/412"),
            Some(Holder {
                process: 3,
                transaction: 412
            })
        );
        assert_eq!(
            Holder::parse("-1/733"),
            Some(Holder {
                process: -1,
                transaction: 733
            })
        );
        assert_eq!(Holder::parse("x"), None);
    }
}
