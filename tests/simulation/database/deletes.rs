//! What the ledger of the model knows of deletes, and of the names that were looked at.

use std::time::Duration;

use pg2kv::change::{Mono, SyncId};
use pg2kv::ledger::SettleRequest;

use super::{Address, Database, Mutant, Reply, sync_id};

/// What was noted for each sync.
#[derive(Clone, Debug)]
pub(super) struct Noted {
    /// Pairs that were deleted, and when.
    lately: Vec<Vec<(Mono, u64)>>,
    /// No other installation had pairs under its names.
    free: Vec<bool>,
}

impl Noted {
    pub(super) fn new(syncs: usize) -> Self {
        Self {
            lately: vec![Vec::new(); syncs],
            free: vec![false; syncs],
        }
    }

    pub(super) fn note(&mut self, now: Mono, request: &SettleRequest) {
        for (sync, lately) in &request.deleted {
            let lately = lately.iter().map(|(age, pairs)| (now.before(*age), *pairs));
            self.lately[usize::from(sync.0)] = lately.collect();
        }
    }
}

impl Database {
    /// How long ago how many pairs of a sync were deleted.
    pub(in super::super) fn deleted_lately(&self, now: Mono, sync: usize) -> Vec<(Duration, u64)> {
        if self.mutant == Some(Mutant::DeletesForgotten) {
            return Vec::new();
        }
        let lately = self.durable.deletes.lately[sync].iter();
        lately.map(|(at, pairs)| (now.since(*at), *pairs)).collect()
    }

    /// Syncs whose names were not looked at.
    pub(in super::super) fn not_looked_at(&self) -> Vec<SyncId> {
        let free = self.durable.deletes.free.iter().enumerate();
        free.filter(|(_, free)| !**free)
            .map(|(sync, _)| sync_id(sync))
            .collect()
    }

    pub(in super::super) fn note_free(&mut self, address: Address, sync: usize) -> Reply<()> {
        self.fence(address)?;
        self.durable.deletes.free[sync] = true;
        Ok(())
    }
}
