//! Taking turns: every variant once a round, so that what changes on the machine meets all alike.

use std::collections::BTreeMap;

/// What the variants gave, round by round.
pub(crate) struct Samples<V> {
    by_variant: BTreeMap<V, Vec<f64>>,
}

impl<V: Ord> Samples<V> {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self {
            by_variant: BTreeMap::new(),
        }
    }

    /// Notes what a variant gave in this round.
    pub(crate) fn push(&mut self, variant: V, value: f64) {
        self.by_variant.entry(variant).or_default().push(value);
    }

    /// What a variant gave, in the order of the rounds.
    pub(crate) fn of(&self, variant: V) -> &[f64] {
        &self.by_variant[&variant]
    }
}

/// Every variant once a round; every other round goes backwards, so that none is always first.
pub(crate) fn turns<V: Copy>(rounds: usize, variants: &[V]) -> impl Iterator<Item = V> {
    (0..rounds).flat_map(move |round| {
        let mut order = variants.to_vec();
        if round % 2 == 1 {
            order.reverse();
        }
        order
    })
}

/// The middle one; the mean of two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value that this share of the values is below; between two of them in proportion.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (mut below, mut left) = (sorted[0], share * (sorted.len() - 1) as f64);
    for value in sorted.into_iter().skip(1) {
        if left < 1.0 {
            return below + (value - below) * left;
        }
        (below, left) = (value, left - 1.0);
    }
    below
}
