//! Deterministic simulation of the pure core: relays, a model database and a model KV on one heap of
//! events in virtual time. A seed fixes the settings, the load, the faults and every delay.
//!
//! `PG2KV_SIM_SEEDS` sets how many seeds run (default 2,000), `PG2KV_SIM_FIRST` the first of them.
//! A failure names its seed; `PG2KV_SIM_FIRST=<seed> PG2KV_SIM_SEEDS=1 PG2KV_SIM_TRACE=1` prints all
//! that happened in it.

mod audit;
mod chaos;
mod checks;
mod database;
mod edge;
mod kv;
mod mutants;
mod plan;
mod statements;
mod world;

use self::mutants::Mutant;
use self::world::World;

/// Seeds of the ordinary test run.
const SEEDS: u64 = 2_000;
/// A broken variant must be caught within this many seeds.
const SEEDS_PER_MUTANT: u64 = 4_000;

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")),
        Err(_) => default,
    }
}

#[test]
fn converges_whatever_fails() {
    let first = number("PG2KV_SIM_FIRST", 1);
    let seeds = number("PG2KV_SIM_SEEDS", SEEDS);
    let verbose = std::env::var_os("PG2KV_SIM_TRACE").is_some();
    let mut failed = Vec::new();
    let mut events = 0;
    for seed in first..first + seeds {
        let world = World::new(seed, None, None);
        let report = if verbose { world.verbose() } else { world }.run();
        events += report.events;
        if let Some(why) = report.failure {
            failed.push(format!("seed {seed} {why}"));
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {seeds} seeds failed ({events} events in all); replay one with \
         PG2KV_SIM_FIRST=<seed> PG2KV_SIM_SEEDS=1 PG2KV_SIM_TRACE=1:\n{}",
        failed.len(),
        failed
            .iter()
            .take(30)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n"),
    );
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 1..=60 {
        let one = World::new(seed, None, None).run();
        let two = World::new(seed, None, None).run();
        assert_eq!(
            (one.trace, one.events),
            (two.trace, two.events),
            "seed {seed}"
        );
    }
}

/// The first seed that shows the variant. The same seed without it must be well.
fn caught(mutant: Mutant) -> Option<(u64, String)> {
    let (seed, why) = (1..=SEEDS_PER_MUTANT).find_map(|seed| {
        let report = World::new(seed, Some(mutant), Some(mutant)).run();
        Some((seed, report.failure?))
    })?;
    let control = World::new(seed, Some(mutant), None).run();
    assert_eq!(
        control.failure, None,
        "seed {seed} of {mutant:?} without it"
    );
    Some((seed, why))
}

#[test]
fn every_broken_variant_is_caught() {
    let mut missed = Vec::new();
    for mutant in mutants::ALL {
        if caught(mutant).is_none() {
            missed.push(mutant);
        }
    }
    assert!(
        missed.is_empty(),
        "not caught within {SEEDS_PER_MUTANT} seeds: {missed:?}"
    );
}
