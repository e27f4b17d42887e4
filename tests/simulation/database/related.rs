//! Related tables in the model: each row of one is a group of keys, and a change of it changes the
//! documents of all of them for the price of one marker.

use pg2kv::change::{Changed, Key, Mono, OutboxId, Related};
use pg2kv::ledger::{Expanded, Marker};

use super::{
    Address, Database, Durable, Mutant, OutboxRow, Place, Reply, Row, Transaction, number,
};

/// Rows of the related table of a sync.
pub(in super::super) const GROUPS: usize = 3;

/// A marker of a group, with the last key that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    group: usize,
    after: Option<usize>,
}

/// A change of a related row in a transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    id: i64,
    sync: usize,
    group: usize,
    content: u32,
    at: Mono,
}

impl Database {
    /// Changes the related row of a group, unless another transaction has it locked.
    pub(in super::super) fn begin_related(
        &mut self,
        now: Mono,
        transaction: u64,
        (sync, group): (usize, usize),
        content: u32,
    ) {
        let locked = self.transactions.values().any(|other| {
            let same = |change: &Change| (change.sync, change.group) == (sync, group);
            other.related.iter().any(same)
        });
        let mut begun = Transaction::default();
        if !locked {
            begun.related.push(Change {
                id: self.next_outbox_id(),
                sync,
                group,
                content,
                at: now,
            });
        }
        self.transactions.insert(transaction, begun);
    }

    /// From the commit on the documents of the group are others.
    pub(super) fn commit_related(&mut self, change: Change) -> Vec<Place> {
        let Change {
            id,
            sync,
            group,
            content,
            at,
        } = change;
        let mut places = Vec::new();
        for (key, row) in self.durable.rows[sync].iter_mut().enumerate() {
            if key % GROUPS == group && matches!(row, Some(Row::Good(_))) {
                *row = Some(Row::Good(content));
                places.push((sync, key));
            }
        }
        let after = None;
        self.durable.mark(id, sync, Group { group, after }, at);
        places
    }

    /// One transaction: the next keys of each marker, and its position.
    pub(in super::super) fn expand(
        &mut self,
        address: Address,
        sync: usize,
        markers: &[Marker],
        limit: usize,
    ) -> Reply<Expanded> {
        self.fence(address)?;
        let mut expanded = Expanded::default();
        for Marker { id, related } in markers {
            let Some(at) = self.durable.outbox.get(&id.0).map(|row| row.at) else {
                expanded.done += 1;
                continue;
            };
            self.durable.delete(id.0);
            let group = number(&related.values);
            let first = related.after.as_ref().map_or(0, |after| number(after) + 1);
            let here =
                |key: &usize| key % GROUPS == group && self.durable.rows[sync][*key].is_some();
            let keys = first..self.durable.rows[sync].len();
            let found: Vec<usize> = keys.filter(here).take(limit).collect();
            for key in &found {
                let id = self.next_outbox_id();
                let key = Some(*key);
                self.durable.insert(id, OutboxRow { sync, key, at });
                expanded.last = Some(OutboxId(id));
            }
            expanded.keys += found.len() as u64;
            if found.len() < limit || self.mutant == Some(Mutant::MarkerEndsEarly) {
                expanded.done += 1;
            } else {
                let id = self.next_outbox_id();
                let after = found.last().copied();
                self.durable.mark(id, sync, Group { group, after }, at);
                expanded.last = Some(OutboxId(id));
            }
        }
        Ok(expanded)
    }
}

impl Transaction {
    /// Whether it has inserted into the outbox.
    pub(super) fn writes(&self) -> bool {
        !(self.changes.is_empty() && self.markers.is_empty() && self.related.is_empty())
    }
}

impl Durable {
    fn mark(&mut self, id: i64, sync: usize, group: Group, at: Mono) {
        self.related.insert(id, (sync, group));
        let key = None;
        self.insert(id, OutboxRow { sync, key, at });
    }

    /// What an outbox row without a key says.
    pub(super) fn asked(&self, id: i64) -> Changed {
        let key = |number: usize| Key::new(format!("[{number}]"));
        self.related
            .get(&id)
            .map_or(Changed::Everything, |(_, marker)| {
                Changed::Related(Related {
                    table: "related".into(),
                    values: key(marker.group),
                    after: marker.after.map(key),
                })
            })
    }

    /// Whether a marker will have the key looked at.
    pub(super) fn is_related(&self, (sync, key): Place) -> bool {
        self.related.values().any(|(of, marker)| {
            *of == sync
                && key % GROUPS == marker.group
                && marker.after.is_none_or(|after| key > after)
        })
    }
}
