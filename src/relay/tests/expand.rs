//! Changes of related tables: markers become keys, chunk by chunk.

use super::*;
use crate::change::Related;
use crate::ledger::{Expanded, Marker};

impl Bench {
    /// A related row changes and its writer rings; `after` is the position of a marker under way.
    fn relate(&mut self, values: u32, after: Option<u32>) -> OutboxId {
        let id = self.put(values, after);
        self.give(Event::Rung);
        id
    }

    fn put(&mut self, values: u32, after: Option<u32>) -> OutboxId {
        self.next_id += 1;
        let id = OutboxId(self.next_id);
        let what = Changed::Related(Related {
            table: "tenants".into(),
            values: key(values),
            after: after.map(key),
        });
        self.outbox.push_back(Change {
            id,
            sync: SYNC,
            what,
            age: Duration::ZERO,
        });
        id
    }

    fn expansions(&mut self) -> Vec<(Vec<Marker>, usize)> {
        let (expansions, others) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|effect| matches!(effect, Effect::Expand { .. }));
        self.open = others;
        let markers = expansions.into_iter().filter_map(|effect| match effect {
            Effect::Expand { markers, limit, .. } => Some((markers, limit)),
            _ => None,
        });
        markers.collect()
    }

    fn expansion(&mut self) -> Vec<Marker> {
        let mut expansions = self.expansions();
        assert_eq!(expansions.len(), 1, "{expansions:?}");
        expansions.remove(0).0
    }

    fn expanded(&mut self, result: Result<Expanded, FailureKind>) {
        let result = result.map_err(failure);
        self.give(Event::Expanded { sync: SYNC, result });
    }

    fn backfill_of(&mut self) -> Vec<OutboxId> {
        let at = self
            .open
            .iter()
            .position(|effect| matches!(effect, Effect::StartBackfill { .. }));
        match at.map(|at| self.open.remove(at)) {
            Some(Effect::StartBackfill { markers, .. }) => markers,
            _ => panic!("no walk began: {:?}", self.open),
        }
    }
}

fn ids(markers: &[Marker]) -> Vec<OutboxId> {
    markers.iter().map(|marker| marker.id).collect()
}

fn wrote(keys: u64, last: OutboxId) -> Result<Expanded, FailureKind> {
    Ok(Expanded {
        keys,
        done: 0,
        last: Some(last),
    })
}

#[test]
fn a_marker_goes_on_from_where_its_last_row_says() {
    let mut bench = Bench::leader();
    let first = bench.relate(7, None);
    let markers = bench.expansion();
    assert_eq!(ids(&markers), [first]);
    assert_eq!(markers[0].related.after, None);

    // The ledger wrote keys, and the marker with its position in place of the first one.
    bench.next_id += 50;
    let second = bench.put(7, Some(50));
    bench.expanded(wrote(50, second));
    let markers = bench.expansion();
    assert_eq!(ids(&markers), [second]);
    assert_eq!(markers[0].related.after, Some(key(50)));

    bench.expanded(Ok(Expanded {
        keys: 3,
        done: 1,
        last: None,
    }));
    assert_eq!(bench.expansions(), []);
    assert_eq!(bench.relay.status(bench.now).syncs[0].expansion, None);
}

#[test]
fn changes_that_wait_are_one_and_those_under_way_go_to_their_end_first() {
    let mut bench = Bench::leader();
    let first = bench.relate(7, None);
    assert_eq!(ids(&bench.expansion()), [first]);
    // While the first is out, others come: it may have looked at keys before they were written.
    let (second, third) = (bench.put(7, None), bench.put(7, None));
    bench.give(Event::Rung);
    let redundant = bench.open.iter().find_map(|effect| match effect {
        Effect::Compact(ids) => Some(ids.clone()),
        _ => None,
    });
    assert_eq!(redundant, Some(vec![third]));
    let position = bench.put(7, Some(50));
    bench.expanded(wrote(50, position));
    assert_eq!(ids(&bench.expansion()), [position]);
    bench.expanded(Ok(Expanded::default()));
    assert_eq!(ids(&bench.expansion()), [second], "all the way again");
}

#[test]
fn many_share_a_chunk() {
    let mut bench = Bench::leader();
    let markers: Vec<OutboxId> = (0..60).map(|values| bench.put(values, None)).collect();
    bench.give(Event::Rung);
    let chunk = settings().backfill_chunk;
    let (first, limit) = bench.expansions().remove(0);
    assert_eq!(ids(&first), markers[..chunk]);
    assert_eq!(limit, 1);
    bench.expanded(Ok(Expanded::default()));
    let (rest, limit) = bench.expansions().remove(0);
    assert_eq!(ids(&rest), markers[chunk..]);
    assert_eq!(limit, chunk / 10);
}

#[test]
fn the_next_chunk_waits_until_the_last_one_is_fetched_and_there_is_room() {
    let mut settings = settings();
    settings.queue.keys_max = settings.backfill_chunk;
    let mut bench = Bench::leading(settings, Recovered::default());
    bench.relate(7, None);
    bench.expansion();
    bench.change(1..=10);
    let more = bench.relate(8, None);
    let (batch, request) = bench.prepare();
    bench.expanded(wrote(5, OutboxId(bench.next_id + 5)));
    assert_eq!(bench.expansions(), [], "keys are in the queue");

    bench.prepared(batch, &request);
    let (request, batch) = bench.write();
    bench.answered(request, batch, Outcome::Written);
    assert_eq!(ids(&bench.expansion()), [more]);
}

#[test]
fn the_next_chunk_waits_while_too_many_keys_wait_out_their_interval() {
    let mut settings = settings();
    settings.queue.keys_max = settings.backfill_chunk;
    let chunk = u32::try_from(settings.backfill_chunk).unwrap();
    let mut bench = Bench::leading(settings, Recovered::default());
    for first in (0..5).map(|number| number * chunk) {
        bench.change(first..first + chunk);
        let (batch, request) = bench.prepare();
        bench.prepared(batch, &request);
        let (request, batch) = bench.write();
        bench.answered(request, batch, Outcome::Written);
        bench.settled();
    }
    let marker = bench.relate(7, None);
    assert_eq!(
        bench.expansions(),
        [],
        "five times as many keys were written"
    );
    // They are forgotten when their interval is over, without any event.
    bench.until_effect(Duration::from_secs(2));
    assert_eq!(ids(&bench.expansion()), [marker]);
}

#[test]
fn what_cannot_be_expanded_is_walked() {
    for kind in [FailureKind::Relation, FailureKind::Row] {
        let mut bench = Bench::leader();
        let marker = bench.relate(7, None);
        bench.expansion();
        bench.expanded(Err(kind));
        assert_eq!(bench.backfill_of(), [marker], "{kind:?}");
    }
}

#[test]
fn a_failure_that_does_not_pass_ends_in_a_walk() {
    let mut bench = Bench::leader();
    let marker = bench.relate(7, None);
    for _ in 0..2 {
        bench.expansion();
        bench.expanded(Err(FailureKind::Transient));
        assert_eq!(bench.expansions(), [], "after a wait only");
        bench.until_effect(Duration::from_secs(5));
    }
    bench.expansion();
    bench.expanded(Err(FailureKind::Transient));
    assert_eq!(bench.backfill_of(), [marker]);
}

#[test]
fn more_markers_than_memory_holds_are_one_walk() {
    let mut settings = settings();
    settings.fetch_max = 20_000;
    settings.queue.keys_max = 20_000;
    let mut bench = Bench::leading(settings, Recovered::default());
    let markers: Vec<OutboxId> = (0..10_001).map(|values| bench.put(values, None)).collect();
    bench.give(Event::Rung);
    assert_eq!(bench.backfill_of(), markers);
    assert_eq!(bench.expansions(), []);
}
