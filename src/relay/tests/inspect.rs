//! Names that another installation may have.

use super::*;
use crate::change::owner::InstallationId;

fn bench() -> Bench {
    let recovered = Recovered {
        not_looked_at: vec![SYNC],
        ..Default::default()
    };
    Bench::leading(settings(), recovered)
}

/// The page that is looked at.
fn page(bench: &mut Bench) -> Option<String> {
    let of = |effect: &Effect| matches!(effect, Effect::Inspect { .. });
    let found = bench.open.iter().position(of);
    let found = found.unwrap_or_else(|| panic!("no look: {:?}", bench.open));
    match bench.open.remove(found) {
        Effect::Inspect { cursor, .. } => cursor,
        other => panic!("{other:?}"),
    }
}

fn give(bench: &mut Bench, inspected: Inspected) {
    bench.give(Event::Inspected {
        sync: SYNC,
        result: Ok(inspected),
    });
}

fn hold(bench: &mut Bench) -> Option<HoldReason> {
    let status = bench.relay.status(bench.now);
    status.syncs[0].hold.as_ref().map(|(reason, ..)| *reason)
}

#[test]
fn nothing_is_sent_until_the_names_are_free() {
    let mut bench = bench();
    bench.change([1]);
    bench.until_effect(Duration::from_secs(5));
    assert_eq!(page(&mut bench), None);
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    give(&mut bench, Inspected::Next("more".to_owned()));
    assert_eq!(page(&mut bench), Some("more".to_owned()));
    assert!(bench.open.is_empty(), "{:?}", bench.open);
    assert_eq!(hold(&mut bench), None);
    give(&mut bench, Inspected::Free);
    let (_, batch) = bench.next_write();
    assert_eq!(batch.len(), 1);
}

#[test]
fn a_sync_whose_names_are_taken_waits_for_a_person() {
    let mut bench = bench();
    let other = InstallationId::parse("ffffffffffff").unwrap();
    assert_eq!(page(&mut bench), None);
    give(&mut bench, Inspected::Taken(other));
    assert_eq!(hold(&mut bench), Some(HoldReason::AnotherInstallation));
    bench.change([1]);
    for _ in 0..3 {
        bench.until_effect(Duration::from_secs(300));
        assert_eq!(page(&mut bench), None);
        assert!(bench.open.is_empty(), "{:?}", bench.open);
        give(&mut bench, Inspected::Taken(other));
        assert!(bench.open.is_empty(), "not at once");
    }
    // Somebody has adopted the other one.
    bench.until_effect(Duration::from_secs(300));
    assert_eq!(page(&mut bench), None);
    give(&mut bench, Inspected::Free);
    assert_eq!(hold(&mut bench), None);
    let (_, batch) = bench.next_write();
    assert_eq!(batch.len(), 1);
}
