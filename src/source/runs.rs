//! Ids as runs without a gap, which one descent of an index finds. Pure.
//!
//! **Invariant:** a run holds no id that was not given. An id between two others may belong to a
//! transaction that has not committed, and must outlive what is done to the run.

use crate::change::OutboxId;

/// The first and the last id of each run, ascending.
pub(super) fn runs(ids: impl IntoIterator<Item = OutboxId>) -> (Vec<i64>, Vec<i64>) {
    let mut ids: Vec<i64> = ids.into_iter().map(|id| id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.chunk_by(|before, next| before.checked_add(1) == Some(*next))
        .filter_map(|run| Some((*run.first()?, *run.last()?)))
        .unzip()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(ids: &[i64]) -> Vec<(i64, i64)> {
        let (low, high) = runs(ids.iter().copied().map(OutboxId));
        low.into_iter().zip(high).collect()
    }

    #[test]
    fn neighbours_are_one_run() {
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[7]), [(7, 7)]);
        assert_eq!(of(&[3, 1, 2, 2, 5]), [(1, 3), (5, 5)]);
        assert_eq!(
            of(&[i64::MAX, i64::MIN]),
            [(i64::MIN, i64::MIN), (i64::MAX, i64::MAX)]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]
        #[test]
        fn the_runs_hold_what_was_given_and_nothing_else(ids in prop::collection::vec(0_i64..60, 0..40)) {
            let runs = of(&ids);
            let held: BTreeSet<i64> = runs.iter().flat_map(|(low, high)| *low..=*high).collect();
            prop_assert_eq!(held, ids.iter().copied().collect());
            prop_assert!(runs.windows(2).all(|two| two[0].1 + 1 < two[1].0));
        }
    }
}
