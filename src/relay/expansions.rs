//! Changes of related tables that wait to be expanded into the keys that they concern. Pure.
//!
//! Owns which markers of the outbox wait, which are out, and that the outbox is not flooded: the next
//! chunk is asked for only once the keys of the last one have been fetched. Each step of a marker
//! takes its outbox row's place by another one with the position, so what waits here also stands
//! there, and a term that ends loses nothing.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::change::{Change, Key, Mono, OutboxId, Related, SyncId};
use crate::ledger::{Expanded, Marker};

/// Markers of one sync in memory. Where more wait, a walk over all of its rows is the shorter way.
const MARKERS_MAX: usize = 10_000;
/// Markers that share a chunk: many small ones cost one round trip.
const MARKERS_PER_CHUNK: usize = 100;
/// Failures that may pass before a walk takes over: without an index the search may never end in time.
const TRIES_MAX: u32 = 3;

/// Table and values of a marker.
type Group = (Arc<str>, Key);

/// The markers of one group, each with the moment of its change.
#[derive(Debug, Default)]
struct Waiting {
    /// Under way, with the position: the search for these began before a fresh one was written, so
    /// they go to their end and the fresh one goes all the way after them.
    begun: Vec<(OutboxId, Mono, Key)>,
    /// Not begun. One stands for all that come until it begins.
    fresh: Option<(OutboxId, Mono)>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.fresh.is_none()
    }
}

/// What is out.
#[derive(Debug)]
struct Out {
    sync: SyncId,
    markers: Vec<(Marker, Mono)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Expansions {
    waiting: Vec<IndexMap<Group, Waiting>>,
    out: Option<Out>,
    /// The keys of the last chunk have ids up to this one, and are yet to be fetched.
    fetch_to: Option<OutboxId>,
    not_before: Mono,
    /// Failures in a row.
    tries: u32,
    /// The sync that is looked at first.
    turn: usize,
    /// Outbox rows that may go because another one stands for them.
    redundant: Vec<OutboxId>,
    /// Keys made since the sync was idle.
    made: Vec<u64>,
}

/// What to do with markers that are not to be expanded: one walk in place of all of them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Instead {
    pub(super) sync: SyncId,
    pub(super) markers: Vec<OutboxId>,
}

impl Expansions {
    pub(super) fn new(syncs: usize) -> Self {
        Self {
            waiting: (0..syncs).map(|_| IndexMap::new()).collect(),
            out: None,
            fetch_to: None,
            not_before: Mono::ZERO,
            tries: 0,
            turn: 0,
            redundant: Vec::new(),
            made: vec![0; syncs],
        }
    }

    /// Takes in a marker of a change made at `at`. Where too many wait, all of the sync's come back.
    pub(super) fn offer(&mut self, sync: SyncId, marker: Marker, at: Mono) -> Option<Instead> {
        let Marker { id, related } = marker;
        let index = usize::from(sync.0);
        if related.after.is_none() && self.progress(sync).is_none() {
            self.made[index] = 0;
        }
        let waiting = self.waiting[index]
            .entry((related.table, related.values))
            .or_default();
        match (related.after, &mut waiting.fresh) {
            (Some(after), _) => waiting.begun.push((id, at, after)),
            (None, Some((fresh, since))) => {
                // The same row again is one row.
                self.redundant
                    .extend((*fresh != id).then_some(id.max(*fresh)));
                *fresh = id.min(*fresh);
                *since = at.min(*since);
            }
            (None, fresh @ None) => *fresh = Some((id, at)),
        }
        if self.waiting[index].len() <= MARKERS_MAX {
            return None;
        }
        let all = self.waiting[index].drain(..);
        let ids = all.flat_map(|(_, waiting)| {
            let begun = waiting.begun.into_iter().map(|(id, ..)| id);
            begun.chain(waiting.fresh.map(|(id, _)| id))
        });
        let markers = ids.collect();
        Some(Instead { sync, markers })
    }

    /// Outbox rows that may be deleted because an older one with the same values stays.
    pub(super) fn take_redundant(&mut self) -> Vec<OutboxId> {
        std::mem::take(&mut self.redundant)
    }

    /// When the next chunk may be asked for; `None` while nothing waits, or for an answer.
    pub(super) fn ready_at(&self) -> Option<Mono> {
        let waits = self.waiting.iter().any(|waiting| !waiting.is_empty());
        (waits && self.out.is_none() && self.fetch_to.is_none()).then_some(self.not_before)
    }

    /// Takes the markers of the next chunk: those of one sync, in turn.
    pub(super) fn take(&mut self, chunk: usize) -> Option<(SyncId, Vec<Marker>)> {
        let syncs = self.waiting.len();
        let index = (0..syncs)
            .map(|step| (self.turn + step) % syncs)
            .find(|index| !self.waiting[*index].is_empty())?;
        self.turn = index + 1;
        // The configuration allows far fewer syncs than u16::MAX.
        let sync = SyncId(u16::try_from(index).unwrap_or(u16::MAX));
        let waiting = &mut self.waiting[index];
        let count = waiting.len().min(MARKERS_PER_CHUNK).min(chunk);
        let first: Vec<_> = waiting.drain(..count).collect();
        let mut markers = Vec::with_capacity(count);
        for ((table, values), mut group) in first {
            let (id, at, after) = match group.begun.pop() {
                Some((id, at, after)) => (id, at, Some(after)),
                None => match group.fresh.take() {
                    Some((id, at)) => (id, at, None),
                    None => continue,
                },
            };
            if !group.is_empty() {
                // Behind the others.
                waiting.insert((Arc::clone(&table), values.clone()), group);
            }
            let related = Related {
                table,
                values,
                after,
            };
            markers.push((Marker { id, related }, at));
        }
        let asked = markers.iter().map(|(marker, _)| marker.clone()).collect();
        self.out = Some(Out { sync, markers });
        Some((sync, asked))
    }

    /// The chunk stands in the outbox. Returns whether there is something to fetch.
    pub(super) fn done(&mut self, expanded: &Expanded) -> bool {
        self.tries = 0;
        self.fetch_to = expanded.last;
        if let Some(out) = self.out.take() {
            self.made[usize::from(out.sync.0)] += expanded.keys;
        }
        self.fetch_to.is_some()
    }

    /// The chunk failed for a reason that may pass: again from `at` on, unless that was tried often.
    pub(super) fn failed(&mut self, at: Mono) -> Option<Instead> {
        self.tries += 1;
        self.not_before = at;
        if self.tries >= TRIES_MAX {
            return self.give_up();
        }
        let out = self.out.take()?;
        let mut instead = None;
        for (marker, at) in out.markers {
            instead = instead.or(self.offer(out.sync, marker, at));
        }
        instead
    }

    /// The chunk cannot be had.
    pub(super) fn give_up(&mut self) -> Option<Instead> {
        self.tries = 0;
        let out = self.out.take()?;
        Some(Instead {
            sync: out.sync,
            markers: out.markers.iter().map(|(marker, _)| marker.id).collect(),
        })
    }

    /// A fetch returned these; `more` may wait.
    pub(super) fn fetched(&mut self, changes: &[Change], more: bool) {
        if let Some(last) = self.fetch_to
            && (!more || changes.iter().any(|change| change.id >= last))
        {
            self.fetch_to = None;
        }
    }

    /// Markers of a sync that are not done with, and keys made of such since it was idle.
    pub(super) fn progress(&self, sync: SyncId) -> Option<(usize, u64)> {
        let index = usize::from(sync.0);
        let out = self.out.as_ref().filter(|out| out.sync == sync);
        let markers = self.waiting[index].len() + out.map_or(0, |out| out.markers.len());
        (markers > 0).then(|| (markers, self.made[index]))
    }

    /// When the oldest change was made that waits here.
    pub(super) fn oldest_change(&self) -> Option<Mono> {
        let groups = self.waiting.iter().flat_map(IndexMap::values);
        let waiting = groups.flat_map(|group| {
            let begun = group.begun.iter().map(|(_, at, _)| *at);
            begun.chain(group.fresh.map(|(_, at)| at))
        });
        let out = self.out.iter().flat_map(|out| &out.markers);
        waiting.chain(out.map(|(_, at)| *at)).min()
    }
}
