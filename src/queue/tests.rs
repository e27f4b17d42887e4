//! The queue against a model that looks at every key each time, and the rules one by one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SYNC: SyncId = SyncId(0);

const SETTINGS: Settings = Settings {
    quiet: Duration::from_millis(100),
    max_wait: Duration::from_millis(1_000),
    grain: Duration::ZERO,
    key_interval: Duration::from_millis(1_000),
    keys_max: 100,
    leading: false,
    backoff: backoff::Settings {
        initial: Duration::from_millis(200),
        max: Duration::from_millis(5_000),
    },
};

#[test]
fn keys_that_are_due_at_about_the_same_time_are_due_together() {
    let settings = Settings {
        grain: Duration::from_millis(20),
        ..SETTINGS
    };
    let mut queue = Queue::new(settings, 1);
    for (n, ms) in [(1, 1), (2, 7), (3, 20), (4, 21)] {
        queue.offer(at(ms), SYNC, key(n), OutboxId(i64::from(n)), at(ms));
    }
    assert_eq!(queue.due_at(SYNC), Some(at(120)));
    assert_eq!(queue.take(at(119), SYNC, 9).len(), 0);
    assert_eq!(queue.take(at(120), SYNC, 9).len(), 3);
    assert_eq!(queue.due_at(SYNC), Some(at(140)));

    let taken = queue.take(at(140), SYNC, 9).remove(0);
    queue.resolve(at(153), taken.slot, written(141), 0.5);
    queue.offer(at(160), SYNC, key(4), OutboxId(5), at(160));
    let due = queue.due_at(SYNC);
    assert_eq!(due, Some(at(1_160)), "at the end of its interval too");

    let leading = Settings {
        leading: true,
        ..settings
    };
    let mut queue = Queue::new(leading, 1);
    queue.offer(at(1), SYNC, key(1), OutboxId(1), at(1));
    assert_eq!(queue.due_at(SYNC), Some(at(1)), "at once is at once");
}

fn at(ms: u64) -> Mono {
    Mono::from_origin(Duration::from_millis(ms))
}

fn key(n: u8) -> Key {
    Key::new(format!("[{n}]"))
}

fn queue(settings: Settings) -> Queue {
    Queue::new(settings, 1)
}

fn offer(queue: &mut Queue, ms: u64, n: u8, id: i64) -> Offered {
    queue.offer(at(ms), SYNC, key(n), OutboxId(id), at(ms))
}

fn take_one(queue: &mut Queue, ms: u64) -> Taken {
    let mut taken = queue.take(at(ms), SYNC, 10);
    assert_eq!(taken.len(), 1, "exactly one key is due at {ms} ms");
    taken.remove(0)
}

fn written(ms: u64) -> Verdict {
    Verdict::Written { sent_at: at(ms) }
}

#[test]
fn a_quiet_key_is_due_after_quiet_and_a_busy_one_after_max_wait() {
    let mut queue = queue(SETTINGS);
    assert_eq!(offer(&mut queue, 0, 1, 1), Offered::New);
    assert_eq!(queue.due_at(SYNC), Some(at(100)));
    for n in 1..30 {
        let id = i64::try_from(n).unwrap() + 1;
        assert_eq!(offer(&mut queue, n * 50, 1, id), Offered::Coalesced);
    }
    assert_eq!(queue.due_at(SYNC), Some(at(1_000)));
    assert!(queue.take(at(999), SYNC, 10).is_empty());
    assert_eq!(take_one(&mut queue, 1_000).ids.len(), 30);
}

#[test]
fn keys_due_at_the_same_moment_are_taken_in_the_order_in_which_they_came() {
    let mut queue = queue(SETTINGS);
    for n in 0..20 {
        offer(&mut queue, 0, n, i64::from(n) + 1);
    }
    let taken = queue.take(at(100), SYNC, 20);
    for n in 0..20 {
        let slot = taken[n * 7 % 20].slot;
        queue.resolve(at(110), slot, written(100), 0.5);
    }
    let later: Vec<Key> = (100..120).map(key).collect();
    for n in 100..120 {
        offer(&mut queue, 5_000, n, i64::from(n));
    }
    let taken = queue.take(at(5_100), SYNC, 20);
    let taken: Vec<Key> = taken.into_iter().map(|taken| taken.key).collect();
    assert_eq!(
        taken, later,
        "in places that became vacant in another order"
    );
}

#[test]
fn leading_sends_an_idle_key_at_once_and_debounces_its_repeats() {
    let mut queue = queue(Settings {
        leading: true,
        ..SETTINGS
    });
    offer(&mut queue, 0, 1, 1);
    let slot = take_one(&mut queue, 0).slot;
    offer(&mut queue, 5, 1, 2);
    queue.resolve(at(10), slot, written(0), 0.5);
    assert_eq!(queue.due_at(SYNC), Some(at(1_010)), "the interval holds");
    take_one(&mut queue, 1_010);
}

#[test]
fn a_key_in_flight_is_not_taken_again_until_its_interval_is_over() {
    let mut queue = queue(SETTINGS);
    offer(&mut queue, 0, 1, 1);
    let slot = take_one(&mut queue, 100).slot;
    offer(&mut queue, 110, 1, 2);
    assert_eq!(queue.due_at(SYNC), None);
    assert!(queue.take(at(9_999), SYNC, 10).is_empty());
    let resolved = queue.resolve(at(400), slot, written(100), 0.5).unwrap();
    assert_eq!(resolved.waited, Some(Duration::from_millis(400)));
    assert_eq!(queue.due_at(SYNC), Some(at(1_400)));
}

#[test]
fn what_is_in_flight_when_a_backfill_begins_is_looked_at_once_more() {
    let mut queue = Queue::new(SETTINGS, 2);
    offer(&mut queue, 0, 1, 1);
    let slot = take_one(&mut queue, 100).slot;
    queue.claimed(slot, ClaimId(5));
    offer(&mut queue, 120, 2, 2);
    queue.outdate(SyncId(1));
    queue.outdate(SYNC);
    // Proven to be in KV, but read before the backfill began: its claim stays.
    assert_eq!(queue.resolve(at(150), slot, written(100), 0.5), None);
    assert_eq!(take_one(&mut queue, 220).key, key(2), "it only waited");
    assert_eq!(queue.due_at(SYNC), Some(at(1_150)), "the interval holds");
    let again = take_one(&mut queue, 1_150);
    assert_eq!((again.slot, again.ids.len()), (slot, 0));
    let resolved = queue.resolve(at(1_200), slot, written(1_150), 0.5).unwrap();
    assert_eq!(resolved.claim, Some(ClaimId(5)));
}

#[test]
fn a_backfill_of_another_sync_outdates_nothing() {
    let mut queue = Queue::new(SETTINGS, 2);
    offer(&mut queue, 0, 1, 1);
    let slot = take_one(&mut queue, 100).slot;
    queue.outdate(SyncId(1));
    assert!(queue.resolve(at(150), slot, written(100), 0.5).is_some());
}

#[test]
fn a_written_key_is_held_for_its_interval_and_then_dropped() {
    let mut queue = queue(SETTINGS);
    offer(&mut queue, 0, 1, 1);
    let slot = take_one(&mut queue, 100).slot;
    queue.resolve(at(200), slot, written(100), 0.5);
    assert_eq!((queue.len(), queue.next_cool()), (1, Some(at(1_200))));
    queue.cool(at(1_199));
    assert_eq!(queue.len(), 1);
    queue.cool(at(1_200));
    assert!(queue.is_empty());
    assert_eq!(queue.next_cool(), None);
}

#[test]
fn room_is_what_the_keys_leave_that_something_is_to_be_done_with() {
    let mut queue = queue(Settings {
        keys_max: 3,
        ..SETTINGS
    });
    offer(&mut queue, 0, 1, 1);
    offer(&mut queue, 0, 2, 2);
    offer(&mut queue, 0, 2, 3);
    assert_eq!(queue.room(), 1);
    let taken = queue.take(at(100), SYNC, 10);
    assert_eq!(queue.room(), 1, "what is in flight is held too");
    for one in taken {
        queue.resolve(at(150), one.slot, written(100), 0.5);
    }
    assert_eq!((queue.len(), queue.active()), (2, 0));
    assert_eq!(queue.room(), 3, "what waits out its interval takes none");
    for n in 3..=14 {
        offer(&mut queue, 200, n, i64::from(n) + 1);
    }
    for one in queue.take(at(300), SYNC, 20) {
        queue.resolve(at(350), one.slot, written(300), 0.5);
    }
    assert_eq!(queue.len(), 14);
    assert_eq!(queue.room(), 1, "but for those beyond four times as many");
    queue.cool(at(1_150));
    assert_eq!((queue.len(), queue.room()), (12, 3));
}

#[test]
fn what_was_not_claimed_goes_back_with_its_rows() {
    let mut queue = queue(SETTINGS);
    offer(&mut queue, 0, 1, 1);
    let taken = take_one(&mut queue, 100);
    offer(&mut queue, 150, 1, 7);
    queue.give_back(taken.slot, taken.ids, at(300));
    assert_eq!(queue.in_flight(), 0);
    assert_eq!(queue.due_at(SYNC), Some(at(300)));
    let again = take_one(&mut queue, 300);
    assert_eq!(again.ids[..], [OutboxId(1), OutboxId(7)]);
    let resolved = queue.resolve(at(350), again.slot, written(300), 0.5);
    assert_eq!(resolved.unwrap().waited, Some(Duration::from_millis(350)));
}

#[test]
fn a_backfill_key_that_was_not_claimed_leaves_nothing_behind() {
    let mut queue = queue(SETTINGS);
    let slot = queue.take_idle(SYNC, &key(1)).unwrap();
    assert_eq!(queue.take_idle(SYNC, &key(1)), None, "it is in flight");
    queue.give_back(slot, OutboxIds::new(), at(500));
    assert!(queue.is_empty());
}

#[test]
fn a_key_that_a_backfill_gives_back_keeps_its_interval() {
    let mut queue = queue(SETTINGS);
    offer(&mut queue, 0, 1, 1);
    let slot = take_one(&mut queue, 100).slot;
    queue.resolve(at(200), slot, written(100), 0.5);
    let slot = queue.take_idle(SYNC, &key(1)).unwrap();
    queue.give_back(slot, OutboxIds::new(), at(5_000));
    offer(&mut queue, 300, 1, 2);
    assert_eq!(queue.due_at(SYNC), Some(at(1_200)));
}

#[test]
fn a_backfill_takes_a_key_within_its_interval_but_not_one_that_waits() {
    let mut queue = queue(SETTINGS);
    offer(&mut queue, 0, 1, 1);
    assert_eq!(queue.take_idle(SYNC, &key(1)), None);
    let slot = take_one(&mut queue, 100).slot;
    queue.resolve(at(200), slot, written(100), 0.5);
    let slot = queue.take_idle(SYNC, &key(1)).unwrap();
    assert_eq!(queue.not_before(slot), at(1_200));
    queue.cool(at(1_200));
    assert_eq!(queue.len(), 1, "what is in flight is not dropped");
}

#[test]
fn a_doubtful_key_is_written_again_and_once_more_after_the_window() {
    let mut queue = queue(SETTINGS);
    offer(&mut queue, 0, 1, 1);
    let slot = take_one(&mut queue, 100).slot;
    queue.claimed(slot, ClaimId(5));
    let doubt = Verdict::Doubt { until: at(20_000) };
    assert_eq!(queue.resolve(at(200), slot, doubt, 1.0), None);
    assert_eq!(queue.in_doubt(), 1);
    assert!(queue.is_in_doubt(slot));
    // The interval is longer than the first wait: the doubtful write may have counted.
    assert_eq!(queue.due_at(SYNC), Some(at(1_200)));
    assert!(take_one(&mut queue, 1_200).ids.is_empty());
    assert_eq!(queue.resolve(at(1_300), slot, written(1_200), 0.5), None);
    assert_eq!(queue.due_at(SYNC), Some(at(20_000)));
    take_one(&mut queue, 20_000);
    let resolved = queue.resolve(at(20_100), slot, written(20_000), 0.5);
    assert_eq!(resolved.unwrap().claim, Some(ClaimId(5)));
    assert_eq!(queue.in_doubt(), 0);
}

#[test]
fn a_dead_letter_waits_for_the_end_of_the_doubt() {
    let mut queue = queue(SETTINGS);
    queue.recover(at(0), SYNC, key(1), ClaimId(1), at(5_000));
    let slot = take_one(&mut queue, 0).slot;
    assert_eq!(queue.resolve(at(10), slot, Verdict::Dead, 0.5), None);
    assert_eq!(queue.due_at(SYNC), Some(at(5_000)));
    take_one(&mut queue, 5_000);
    let resolved = queue.resolve(at(5_010), slot, Verdict::Dead, 0.5);
    assert_eq!(resolved.unwrap().claim, Some(ClaimId(1)));
}

#[test]
fn the_newest_claim_of_a_key_takes_the_place_of_the_older() {
    let mut queue = queue(SETTINGS);
    let recover =
        |queue: &mut Queue, claim| queue.recover(at(0), SYNC, key(1), ClaimId(claim), at(1));
    assert_eq!(recover(&mut queue, 1), None);
    assert_eq!(recover(&mut queue, 2), Some(ClaimId(1)));
    let slot = take_one(&mut queue, 0).slot;
    assert_eq!(queue.claimed(slot, ClaimId(3)), Some(ClaimId(2)));
}

#[test]
fn redundant_rows_go_and_the_oldest_stays() {
    let mut queue = queue(SETTINGS);
    let last = i64::try_from(IDS_PER_KEY_MAX).unwrap() + 1;
    for id in 1..=last {
        offer(&mut queue, 0, 1, id);
    }
    assert_eq!(queue.take_redundant().len(), IDS_PER_KEY_MAX);
    assert!(queue.take_redundant().is_empty());
    assert_eq!(take_one(&mut queue, 1_000).ids[..], [OutboxId(1)]);
}

#[test]
fn a_late_commit_with_a_smaller_id_is_kept_in_order() {
    let mut queue = queue(SETTINGS);
    offer(&mut queue, 0, 1, 5);
    offer(&mut queue, 10, 1, 3);
    assert_eq!(offer(&mut queue, 20, 1, 5), Offered::Repeated);
    assert_eq!(
        take_one(&mut queue, 110).ids[..],
        [OutboxId(3), OutboxId(5)]
    );
}

/// What the model knows of a key.
#[derive(Clone, Debug, Default)]
struct Model {
    dirty: Option<(Mono, Mono, bool, Vec<OutboxId>)>,
    slot: Option<Slot>,
    taken: Vec<OutboxId>,
    waiting_since: Option<Mono>,
    retry_at: Option<Mono>,
    doubt: Option<Mono>,
    not_before: Mono,
}

impl Model {
    fn due(&self, settings: &Settings) -> Option<Mono> {
        if self.slot.is_some() {
            return None;
        }
        let dirty = self.dirty.as_ref().map(|(first, last, at_once, _)| {
            let debounced = (*last + settings.quiet).min(*first + settings.max_wait);
            if *at_once { *first } else { debounced }
        });
        let due = [dirty, self.retry_at].into_iter().flatten().min()?;
        Some(due.max(self.not_before))
    }

    fn held(&self, now: Mono) -> bool {
        let busy = self.slot.is_some() || self.dirty.is_some() || self.retry_at.is_some();
        busy || self.not_before > now
    }
}

#[derive(Clone, Debug)]
enum Op {
    Offer { key: u8, age: u64 },
    Later(u64),
    Take(usize),
    Written { which: usize, took: u64 },
    Doubt { which: usize, window: u64 },
    Again { which: usize, wait: u64 },
    Dead { which: usize },
    GiveBack { which: usize, wait: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let which = 0..8_usize;
    prop_oneof![
        6 => (0..6_u8, 0..300_u64).prop_map(|(key, age)| Op::Offer { key, age }),
        4 => (1..700_u64).prop_map(Op::Later),
        4 => (1..4_usize).prop_map(Op::Take),
        4 => (which.clone(), 0..100_u64).prop_map(|(which, took)| Op::Written { which, took }),
        2 => (which.clone(), 1..3_000_u64).prop_map(|(which, window)| Op::Doubt { which, window }),
        1 => (which.clone(), 0..500_u64).prop_map(|(which, wait)| Op::Again { which, wait }),
        1 => which.clone().prop_map(|which| Op::Dead { which }),
        1 => (which, 0..500_u64).prop_map(|(which, wait)| Op::GiveBack { which, wait }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn does_what_the_model_does(leading: bool, ops in prop::collection::vec(op(), 1..120)) {
        let settings = Settings { leading, ..SETTINGS };
        let mut queue = queue(settings);
        let mut model: BTreeMap<u8, Model> = BTreeMap::new();
        let mut now = at(10_000);
        let mut next_id = 0;
        for op in ops {
            let mut flying: Vec<u8> = Vec::new();
            flying.extend(model.iter().filter(|(_, m)| m.slot.is_some()).map(|(key, _)| *key));
            let pick = |which: usize| flying.get(which % flying.len().max(1)).copied();
            match op {
                Op::Later(ms) => now = now + Duration::from_millis(ms),
                Op::Offer { key: n, age } => {
                    next_id += 1;
                    let changed = now.before(Duration::from_millis(age));
                    let entry = model.entry(n).or_default();
                    let idle = entry.slot.is_none() && entry.retry_at.is_none() && entry.not_before <= now;
                    match &mut entry.dirty {
                        None => entry.dirty = Some((changed, changed, leading && idle, vec![OutboxId(next_id)])),
                        Some((first, last, _, ids)) => {
                            *first = (*first).min(changed);
                            *last = (*last).max(changed);
                            ids.push(OutboxId(next_id));
                        }
                    }
                    queue.offer(now, SYNC, key(n), OutboxId(next_id), changed);
                }
                Op::Take(max) => {
                    let mut due: Vec<Mono> = model.values().filter_map(|m| m.due(&settings)).filter(|at| *at <= now).collect();
                    due.sort();
                    due.truncate(max);
                    let taken = queue.take(now, SYNC, max);
                    prop_assert_eq!(taken.len(), due.len());
                    for (one, due) in taken.into_iter().zip(due) {
                        let n = one.key.as_str().trim_matches(['[', ']']).parse().unwrap();
                        let entry = model.get_mut(&n).unwrap();
                        prop_assert_eq!(entry.due(&settings), Some(due), "in order of time");
                        entry.slot = Some(one.slot);
                        entry.retry_at = None;
                        let dirty = entry.dirty.take();
                        let (first, ids) = dirty.map(|(first, _, _, ids)| (first, ids)).unzip();
                        entry.waiting_since = entry.waiting_since.into_iter().chain(first).min();
                        entry.taken = ids.unwrap_or_default();
                        prop_assert_eq!(&one.ids[..], &entry.taken[..]);
                    }
                }
                Op::Written { which, took } => if let Some(n) = pick(which) {
                    let entry = model.get_mut(&n).unwrap();
                    let sent_at = now.before(Duration::from_millis(took));
                    entry.not_before = now + settings.key_interval;
                    entry.retry_at = entry.doubt.filter(|until| sent_at < *until);
                    end(&mut queue, entry, now, Verdict::Written { sent_at })?;
                },
                Op::Doubt { which, window } => if let Some(n) = pick(which) {
                    let entry = model.get_mut(&n).unwrap();
                    let until = now + Duration::from_millis(window);
                    entry.doubt = entry.doubt.max(Some(until));
                    entry.not_before = now + settings.key_interval;
                    // All waits are shorter than the interval here but for long rows of failures.
                    let slot = entry.slot.take().unwrap();
                    prop_assert_eq!(queue.resolve(now, slot, Verdict::Doubt { until }, 0.0), None);
                    entry.retry_at = queue.entry(slot).unwrap().retry_at;
                    prop_assert!(entry.retry_at > Some(now));
                },
                Op::Again { which, wait } => if let Some(n) = pick(which) {
                    let entry = model.get_mut(&n).unwrap();
                    let at = now + Duration::from_millis(wait);
                    entry.retry_at = Some(at);
                    end(&mut queue, entry, now, Verdict::Again { at })?;
                },
                Op::Dead { which } => if let Some(n) = pick(which) {
                    let entry = model.get_mut(&n).unwrap();
                    entry.retry_at = entry.doubt.filter(|until| now < *until);
                    end(&mut queue, entry, now, Verdict::Dead)?;
                },
                Op::GiveBack { which, wait } => if let Some(n) = pick(which) {
                    let entry = model.get_mut(&n).unwrap();
                    if entry.taken.is_empty() {
                        continue;
                    }
                    let at = now + Duration::from_millis(wait);
                    let since = entry.waiting_since.unwrap();
                    let ids = std::mem::take(&mut entry.taken);
                    queue.give_back(entry.slot.take().unwrap(), ids.clone().into(), at);
                    let (first, last, at_once, mut all) = entry.dirty.take().unwrap_or((since, since, false, Vec::new()));
                    all.extend(ids);
                    all.sort_unstable();
                    entry.dirty = Some((first.min(since), last, at_once, all));
                    entry.not_before = entry.not_before.max(at);
                },
            }
            queue.cool(now);
            model.retain(|_, entry| entry.held(now));
            let due = model.values().filter_map(|entry| entry.due(&settings)).min();
            prop_assert_eq!(queue.due_at(SYNC), due);
            prop_assert_eq!(queue.len(), model.len());
            prop_assert_eq!(queue.in_flight(), model.values().filter(|m| m.slot.is_some()).count());
            prop_assert_eq!(queue.in_doubt(), model.values().filter(|m| m.doubt.is_some()).count());
        }
    }
}

/// Ends a try in both; the key is at rest where nothing asks for another.
fn end(
    queue: &mut Queue,
    entry: &mut Model,
    now: Mono,
    verdict: Verdict,
) -> Result<(), TestCaseError> {
    let slot = entry.slot.take().unwrap();
    let resolved = queue.resolve(now, slot, verdict, 0.0);
    prop_assert_eq!(resolved.is_some(), entry.retry_at.is_none());
    if entry.retry_at.is_none() {
        let since = entry.waiting_since.take();
        prop_assert_eq!(
            resolved.unwrap().waited,
            since.map(|since| now.since(since))
        );
        entry.doubt = None;
    }
    Ok(())
}
