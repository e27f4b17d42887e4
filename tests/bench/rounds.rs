//! Taking turns: every variant once a round, so that what changes on the machine meets all alike.

use std::collections::BTreeMap;

/// What the variants gave, round by round.
#[derive(Default)]
pub(crate) struct Samples {
    by_variant: BTreeMap<&'static str, Vec<f64>>,
}

impl Samples {
    /// Notes what a variant gave in this round.
    pub(crate) fn push(&mut self, variant: &'static str, value: f64) {
        self.by_variant.entry(variant).or_default().push(value);
    }

    /// What a variant gave, in the order of the rounds.
    pub(crate) fn of(&self, variant: &str) -> &[f64] {
        &self.by_variant[variant]
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

/// The value that this share of the values is below, between neighbours in proportion.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = share * (sorted.len() - 1) as f64;
    let (below, above) = (
        sorted[position.floor() as usize],
        sorted[position.ceil() as usize],
    );
    below + (above - below) * position.fract()
}
