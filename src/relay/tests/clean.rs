//! Old names: when they are counted, deleted and forgotten.

use super::*;
use crate::ledger::{OldNames, RetiredId};

const OLD: OldNames = OldNames {
    id: RetiredId(7),
    sync: SYNC,
};

fn retired() -> Recovered {
    Recovered {
        retired: vec![OLD],
        ..Recovered::default()
    }
}

/// The step that is asked for next.
fn step(bench: &mut Bench) -> CleanStep {
    let found = bench
        .open
        .iter()
        .position(|effect| matches!(effect, Effect::Clean { .. }));
    let found = found.unwrap_or_else(|| panic!("no step: {:?}", bench.open));
    match bench.open.remove(found) {
        Effect::Clean { step, .. } => step,
        other => panic!("{other:?}"),
    }
}

fn is_idle(bench: &Bench) -> bool {
    !bench
        .open
        .iter()
        .any(|effect| matches!(effect, Effect::Clean { .. }))
}

fn give(bench: &mut Bench, cleaned: Cleaned) {
    bench.give(Event::Cleaned {
        old: OLD,
        result: Ok(cleaned),
    });
}

#[test]
fn names_are_forgotten_only_once_nothing_can_bring_one_back() {
    let mut bench = Bench::leading(settings(), retired());
    assert_eq!(step(&mut bench), CleanStep::Count { last: false });
    give(&mut bench, Cleaned::NotYet);
    assert!(is_idle(&bench), "the new names are not written");
    bench.until_effect(Duration::from_secs(30));
    assert_eq!(step(&mut bench), CleanStep::Count { last: false });
    give(&mut bench, Cleaned::Counted(3));
    assert_eq!(step(&mut bench), CleanStep::Delete { most: 3 });
    give(&mut bench, Cleaned::Deleted(3));
    // A delete in doubt, or a write of the leader before, may land until then.
    bench.until_effect(Duration::from_secs(179));
    assert!(is_idle(&bench));
    bench.until_effect(Duration::from_secs(2));
    assert_eq!(step(&mut bench), CleanStep::Count { last: true });
    give(&mut bench, Cleaned::Counted(1));
    assert_eq!(step(&mut bench), CleanStep::Delete { most: 1 });
    give(&mut bench, Cleaned::Deleted(1));
    bench.until_effect(Duration::from_secs(181));
    assert_eq!(step(&mut bench), CleanStep::Count { last: true });
    give(&mut bench, Cleaned::Forgotten);
    bench.until_effect(Duration::from_secs(10_000));
    assert!(is_idle(&bench));
}

#[test]
fn a_comparison_that_is_owed_comes_first() {
    let mut recovered = retired();
    recovered.audits = vec![crate::ledger::AuditFacts {
        sync: SYNC,
        age: Duration::ZERO,
        owed: Some(RECONFIGURED[0].to_owned()),
    }];
    let mut bench = Bench::leading(settings(), recovered);
    assert!(is_idle(&bench));
    bench
        .open
        .retain(|effect| !matches!(effect, Effect::Audit { .. }));
    bench.give(Event::Audited {
        sync: SYNC,
        result: Ok(AuditFound::default()),
    });
    assert!(
        bench
            .notices
            .iter()
            .any(|notice| matches!(notice, Notice::Audited { expected: true, .. }))
    );
    assert_eq!(step(&mut bench), CleanStep::Count { last: false });
}

#[test]
fn a_failure_is_tried_again_later_and_closes_nothing() {
    let mut bench = Bench::leading(settings(), retired());
    assert_eq!(step(&mut bench), CleanStep::Count { last: false });
    bench.give(Event::Cleaned {
        old: OLD,
        result: Err(SweepFailure::Kv(Answer {
            outcome: Outcome::Unauthorized,
            limit: None,
            status: Some(403),
            detail: "no".to_owned(),
        })),
    });
    let status = bench.relay.status(bench.now);
    assert!(status.blocked.is_none() && status.syncs[0].hold.is_none());
    bench.until_effect(Duration::from_secs(29));
    assert!(is_idle(&bench));
    bench.until_effect(Duration::from_secs(2));
    assert_eq!(step(&mut bench), CleanStep::Count { last: false });
}

#[test]
fn names_that_are_too_many_wait_for_approval_and_hold_nothing_else() {
    let mut settings = settings();
    settings.brake.count = 10;
    let mut bench = Bench::leading(settings, retired());
    assert_eq!(step(&mut bench), CleanStep::Count { last: false });
    give(&mut bench, Cleaned::Counted(50));
    assert!(is_idle(&bench));
    let status = bench.relay.status(bench.now);
    let old = status.syncs[0].old_names.unwrap();
    assert_eq!((old.names, old.held), (50, true));
    assert!(status.syncs[0].deletes_held.is_none());
    let facts = vec![crate::ledger::DeleteFacts {
        sync: SYNC,
        keys: Some(50),
        approved_for: Some(Duration::from_secs(60)),
        held: false,
        lately: Vec::new(),
    }];
    let at = bench.now;
    bench.give(Event::DeletesAsked { at, facts });
    assert_eq!(step(&mut bench), CleanStep::Delete { most: 50 });
}
