//! The model database: rows, outbox, claims, dead letters, backfills, lease and bell, with the
//! properties of Postgres that matter: ids are drawn before commits become visible, a statement sees
//! what was committed before it began, and a crash keeps what was committed.
//!
//! Knows nothing of the relay's reasons, latencies or faults: `world` calls it at the moment at which
//! a statement takes effect.

mod deletes;
pub(super) mod related;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pg2kv::change::{Change, Changed, Key, Mono, OutboxId, SyncId};
use pg2kv::ledger::{
    Backfill, BackfillPhase, BackfillStep, ClaimRequest, FailureKind, Fetched, SettleRequest,
    Walked,
};

use super::mutants::Mutant;

/// A sync and a key of it.
pub(super) type Place = (usize, usize);

/// A process's connection, by process, its start and its term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) process: usize,
    pub(super) start: u64,
    pub(super) term: u64,
}

/// What stands in a watched table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Good(u32),
    /// The filter is false.
    Hidden,
    TooLarge,
    /// Workers KV answers 400 to any batch with it.
    Refused(u32),
    /// The value expression fails.
    Broken,
}

/// What KV must hold for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Pair(u32),
    Nothing,
    DeadLetter,
}

pub(super) fn wanted(row: Option<Row>) -> Wanted {
    match row {
        Some(Row::Good(content)) => Wanted::Pair(content),
        None | Some(Row::Hidden) => Wanted::Nothing,
        Some(Row::TooLarge | Row::Refused(_) | Row::Broken) => Wanted::DeadLetter,
    }
}

#[derive(Clone, Debug)]
struct OutboxRow {
    sync: usize,
    /// `None`: everything.
    key: Option<usize>,
    at: Mono,
}

#[derive(Clone, Debug)]
pub(super) struct BackfillRow {
    pub(super) reason: String,
    pub(super) phase: BackfillPhase,
    pub(super) position: Option<usize>,
    pub(super) cursor: Option<usize>,
    pub(super) started: Mono,
    done: u64,
}

/// What survives a crash.
#[derive(Clone, Debug)]
pub(super) struct Durable {
    rows: Vec<Vec<Option<Row>>>,
    outbox: BTreeMap<i64, OutboxRow>,
    /// Those that ask for a write whatever is known.
    again: BTreeSet<i64>,
    /// Outbox rows without a key that stand for a group.
    related: BTreeMap<i64, (usize, related::Group)>,
    /// Outbox rows of each key.
    waiting: Vec<Vec<u32>>,
    /// Outbox rows that stand for everything.
    markers: Vec<u32>,
    claims: BTreeMap<i64, (usize, Vec<usize>)>,
    claimed: Vec<Vec<u32>>,
    /// When each dead letter was written last.
    dead: BTreeMap<Place, Mono>,
    deletes: deletes::Noted,
    backfills: Vec<Option<BackfillRow>>,
    backfilled: Vec<bool>,
    epoch: i64,
    noted_identity: u64,
    next_outbox: i64,
    next_claim: i64,
}

#[derive(Debug)]
struct Session {
    epoch: i64,
    returned: BTreeSet<i64>,
    high: i64,
}

#[derive(Debug, Default)]
struct Transaction {
    changes: Vec<(i64, Place, Option<Row>, Mono)>,
    markers: Vec<(i64, usize, bool, Mono)>,
    related: Vec<related::Change>,
    rings: bool,
}

#[derive(Debug)]
struct Lease {
    holder: Address,
    heard: Mono,
}

/// What a campaign finds.
pub(super) struct Election {
    pub(super) epoch: i64,
    pub(super) claims: Vec<(i64, usize, Vec<usize>)>,
    pub(super) backfills: Vec<Backfill>,
    pub(super) dead: Vec<(SyncId, u64)>,
    pub(super) new_syncs: Vec<SyncId>,
}

#[derive(Debug)]
pub(super) struct Database {
    durable: Durable,
    identity: u64,
    lease: Option<Lease>,
    sessions: BTreeMap<Address, Session>,
    transactions: BTreeMap<u64, Transaction>,
    bell_until: Mono,
    mutant: Option<Mutant>,
    keys: Vec<Vec<Key>>,
    pub(super) up: bool,
}

type Reply<T> = Result<T, FailureKind>;

impl Database {
    pub(super) fn new(syncs: usize, keys: usize, mutant: Option<Mutant>) -> Self {
        let zeros = vec![vec![0; keys]; syncs];
        Self {
            durable: Durable {
                rows: vec![vec![None; keys]; syncs],
                outbox: BTreeMap::new(),
                again: BTreeSet::new(),
                related: BTreeMap::new(),
                waiting: zeros.clone(),
                markers: vec![0; syncs],
                claims: BTreeMap::new(),
                claimed: zeros,
                dead: BTreeMap::new(),
                deletes: deletes::Noted::new(syncs),
                backfills: vec![None; syncs],
                backfilled: vec![false; syncs],
                epoch: 0,
                noted_identity: 0,
                next_outbox: 1,
                next_claim: 1,
            },
            identity: 0,
            lease: None,
            sessions: BTreeMap::new(),
            transactions: BTreeMap::new(),
            bell_until: Mono::ZERO,
            mutant,
            keys: vec![(0..keys).map(|key| Key::new(format!("[{key}]"))).collect(); syncs],
            up: true,
        }
    }

    pub(super) fn row(&self, (sync, key): Place) -> Option<Row> {
        self.durable.rows[sync][key]
    }

    pub(super) fn key(&self, (sync, key): Place) -> Key {
        self.keys[sync][key].clone()
    }

    pub(super) fn is_dead(&self, place: Place) -> bool {
        self.durable.dead.contains_key(&place)
    }

    pub(super) fn backfill(&self, sync: usize) -> Option<&BackfillRow> {
        self.durable.backfills[sync].as_ref()
    }

    pub(super) fn has_open_transactions(&self) -> bool {
        !self.transactions.is_empty()
    }

    /// Whether the ledger says that `place` is to be looked at, or cannot be written.
    pub(super) fn covers(&self, place: Place, in_kv: bool) -> bool {
        let (sync, key) = place;
        let durable = &self.durable;
        let walk_ahead = durable.backfills[sync].as_ref().is_some_and(|backfill| {
            match backfill.phase {
                // The names in KV are looked through after the rows.
                BackfillPhase::Rows => in_kv || backfill.position.is_none_or(|at| key > at),
                BackfillPhase::Keys => in_kv && backfill.cursor.is_none_or(|at| key > at),
            }
        });
        durable.waiting[sync][key] > 0
            || durable.markers[sync] > 0
            || durable.is_related(place)
            || durable.claimed[sync][key] > 0
            || durable.dead.contains_key(&place)
            || !durable.backfilled[sync]
            || durable.noted_identity != self.identity
            || walk_ahead
    }

    /// What keeps the ledger from rest, if anything.
    pub(super) fn unrest(&self) -> Option<String> {
        let durable = &self.durable;
        let backfills = durable.backfills.iter().flatten().count();
        if durable.outbox.is_empty()
            && durable.claims.is_empty()
            && backfills == 0
            && durable.backfilled.iter().all(|done| *done)
            && durable.noted_identity == self.identity
        {
            return None;
        }
        Some(format!(
            "{} outbox rows, claims {:?}, backfills {:?}, ever begun {:?}, identity noted: {}",
            durable.outbox.len(),
            durable.claims,
            durable.backfills,
            durable.backfilled,
            durable.noted_identity == self.identity,
        ))
    }

    // Writers.

    /// Inserts outbox rows and holds the row locks; visible only from the commit on. Places that
    /// another transaction has locked are left out.
    pub(super) fn begin(&mut self, now: Mono, id: u64, changes: &[(Place, Option<Row>, u32)]) {
        let mut transaction = Transaction::default();
        for (place, row, times) in changes {
            let locked = self.transactions.values().any(|other| {
                let row = other.changes.iter().any(|(_, at, ..)| at == place);
                row || other.markers.iter().any(|(_, sync, ..)| *sync == place.0)
            });
            for _ in 0..if locked { 0 } else { *times } {
                let outbox_id = self.next_outbox_id();
                transaction.changes.push((outbox_id, *place, *row, now));
            }
        }
        self.transactions.insert(id, transaction);
    }

    /// TRUNCATE, or `pg2kv.resync` where it does not `empty` the table.
    pub(super) fn begin_everything(&mut self, now: Mono, id: u64, sync: usize, empty: bool) {
        let mut transaction = Transaction::default();
        let locked = self.transactions.values().any(|other| {
            other.changes.iter().any(|(_, place, ..)| place.0 == sync) || !other.markers.is_empty()
        });
        if !(empty && locked) {
            let outbox_id = self.next_outbox_id();
            transaction.markers.push((outbox_id, sync, empty, now));
        }
        self.transactions.insert(id, transaction);
    }

    /// The trigger reads the bell after its insert.
    pub(super) fn read_bell(&mut self, now: Mono, id: u64) {
        let asleep = self.bell_until > now;
        if let Some(transaction) = self.transactions.get_mut(&id) {
            transaction.rings |= asleep;
        }
    }

    /// Returns the places that changed and whether the listeners are to be told.
    pub(super) fn commit(&mut self, id: u64) -> (Vec<Place>, bool) {
        let Some(transaction) = self.transactions.remove(&id) else {
            return (Vec::new(), false);
        };
        let mut places = Vec::new();
        for (outbox_id, place, row, at) in transaction.changes {
            self.durable.rows[place.0][place.1] = row;
            let (sync, key) = (place.0, Some(place.1));
            self.durable.insert(outbox_id, OutboxRow { sync, key, at });
            places.push(place);
        }
        for (outbox_id, sync, empty, at) in transaction.markers {
            if empty {
                self.durable.rows[sync].fill(None);
            }
            let key = None;
            self.durable.insert(outbox_id, OutboxRow { sync, key, at });
        }
        for change in transaction.related {
            places.extend(self.commit_related(change));
        }
        (places, transaction.rings)
    }

    pub(super) fn abort(&mut self, id: u64) {
        self.transactions.remove(&id);
    }

    fn next_outbox_id(&mut self) -> i64 {
        self.durable.next_outbox += 1;
        self.durable.next_outbox
    }

    // Faults.

    pub(super) fn snapshot(&self) -> Durable {
        self.durable.clone()
    }

    /// Open transactions, sessions and the lease are gone; what was committed stays.
    pub(super) fn crash(&mut self) {
        self.up = false;
        self.lease = None;
        self.sessions.clear();
        self.transactions.clear();
        self.bell_until = Mono::ZERO;
    }

    /// A standby that lacks the last commits takes over.
    pub(super) fn promote(&mut self, standby: Durable) {
        self.crash();
        self.durable = standby;
        self.identity += 1;
    }

    pub(super) fn close(&mut self, address: Address) {
        self.sessions.remove(&address);
        if self.holder() == Some(address) {
            self.lease = None;
        }
    }

    pub(super) fn holder(&self) -> Option<Address> {
        self.lease.as_ref().map(|lease| lease.holder)
    }

    pub(super) fn listeners(&self) -> Vec<Address> {
        self.sessions.keys().copied().collect()
    }

    /// The server ends a lease session that has been silent for `ttl`.
    pub(super) fn release_silent(&mut self, now: Mono, ttl: Duration) -> Option<Address> {
        let silent = self
            .lease
            .as_ref()
            .is_some_and(|lease| now.since(lease.heard) >= ttl);
        if silent {
            self.lease.take().map(|lease| lease.holder)
        } else {
            None
        }
    }

    // The daemon's statements.

    /// Whether statements of this session reach a server that knows it.
    pub(super) fn knows(&self, address: Address) -> bool {
        self.up && self.sessions.contains_key(&address)
    }

    pub(super) fn campaign(&mut self, now: Mono, address: Address) -> Reply<Option<Election>> {
        if !self.up {
            return Err(FailureKind::Connection);
        }
        if self.lease.is_some() {
            return Ok(None);
        }
        let durable = &mut self.durable;
        durable.epoch += 1;
        if durable.noted_identity != self.identity {
            durable.noted_identity = self.identity;
            if self.mutant != Some(Mutant::IdentityIgnored) {
                // A sync that seems never to have been backfilled may have been, after all.
                for sync in 0..durable.backfills.len() {
                    durable.backfilled[sync] = true;
                    durable.start(now, sync, pg2kv::relay::IDENTITY_CHANGED);
                }
            }
        }
        self.lease = Some(Lease {
            holder: address,
            heard: now,
        });
        let session = Session {
            epoch: durable.epoch,
            returned: BTreeSet::new(),
            high: 0,
        };
        self.sessions.insert(address, session);
        if self.mutant == Some(Mutant::RecoveredClaimsDropped) {
            durable.claims.clear();
            durable.claimed.iter_mut().for_each(|of| of.fill(0));
        }
        let of = |sync: usize| {
            self.durable
                .dead
                .iter()
                .filter(|(dead, _)| dead.0 == sync)
                .count()
        };
        let durable = &self.durable;
        Ok(Some(Election {
            epoch: durable.epoch,
            claims: durable
                .claims
                .iter()
                .map(|(id, (sync, keys))| (*id, *sync, keys.clone()))
                .collect(),
            backfills: (0..durable.backfills.len())
                .filter_map(|sync| self.backfill_value(sync))
                .collect(),
            dead: (0..durable.rows.len())
                .map(|sync| (sync_id(sync), of(sync) as u64))
                .filter(|(_, count)| *count > 0)
                .collect(),
            new_syncs: (0..durable.backfilled.len())
                .filter(|sync| !durable.backfilled[*sync])
                .map(sync_id)
                .collect(),
        }))
    }

    pub(super) fn heartbeat(&mut self, now: Mono, address: Address) -> Reply<()> {
        match &mut self.lease {
            Some(lease) if lease.holder == address => {
                lease.heard = now;
                Ok(())
            }
            _ => Err(FailureKind::Connection),
        }
    }

    pub(super) fn set_bell(&mut self, until: Mono) {
        self.bell_until = until;
    }

    pub(super) fn has_writers(&self) -> bool {
        self.transactions.values().any(Transaction::writes)
    }

    pub(super) fn fetch(&mut self, now: Mono, address: Address, limit: usize) -> Reply<Fetched> {
        let session = self
            .sessions
            .get_mut(&address)
            .ok_or(FailureKind::Connection)?;
        let misses = self.mutant == Some(Mutant::FetchMissesLateCommits);
        let after = if misses { session.high } else { 0 };
        let mut fetched = Fetched::default();
        for (id, row) in self.durable.outbox.range(after + 1..) {
            if session.returned.contains(id) {
                continue;
            }
            if fetched.changes.len() == limit {
                fetched.more = true;
                break;
            }
            let again = self.durable.again.contains(id) && self.mutant != Some(Mutant::AgainIsKey);
            let what = match row.key {
                Some(key) if again => Changed::Again(self.keys[row.sync][key].clone()),
                Some(key) => Changed::Key(self.keys[row.sync][key].clone()),
                None => self.durable.asked(*id),
            };
            fetched.changes.push(Change {
                id: OutboxId(*id),
                sync: sync_id(row.sync),
                what,
                age: now.since(row.at),
            });
        }
        for change in &fetched.changes {
            session.returned.insert(change.id.0);
            session.high = session.high.max(change.id.0);
        }
        Ok(fetched)
    }

    pub(super) fn fence(&self, address: Address) -> Reply<()> {
        let session = self.sessions.get(&address).ok_or(FailureKind::Connection)?;
        if session.epoch == self.durable.epoch || self.mutant == Some(Mutant::FenceIgnored) {
            Ok(())
        } else {
            Err(FailureKind::Fenced)
        }
    }

    /// One transaction: insert the claim, delete the outbox rows, advance the backfill.
    pub(super) fn claim(&mut self, address: Address, request: &ClaimRequest) -> Reply<i64> {
        self.fence(address)?;
        let sync = usize::from(request.sync.0);
        let keys: Vec<usize> = request
            .claim
            .iter()
            .map(|at| number(&request.keys[*at]))
            .collect();
        let durable = &mut self.durable;
        durable.next_claim += 1;
        let id = durable.next_claim;
        let forgotten = match self.mutant {
            Some(Mutant::ClaimsNotPersisted) => true,
            Some(Mutant::BackfillWithoutClaim) => request.backfill.is_some(),
            _ => false,
        };
        if !forgotten {
            for key in &keys {
                durable.claimed[sync][*key] += 1;
            }
            durable.claims.insert(id, (sync, keys));
        }
        for id in &request.ids {
            durable.delete(id.0);
        }
        if self.mutant == Some(Mutant::ReadBeforeClaim) {
            let named = request.keys.iter().map(|key| (sync, number(key)));
            durable.delete_by_key(named.collect());
        }
        if let Some(step) = &request.backfill {
            durable.advance(sync, step);
        }
        Ok(id)
    }

    pub(super) fn settle(
        &mut self,
        now: Mono,
        address: Address,
        request: &SettleRequest,
    ) -> Reply<()> {
        self.fence(address)?;
        let durable = &mut self.durable;
        for claim in &request.claims {
            let ended = durable.unclaim(claim.0);
            if self.mutant == Some(Mutant::OutboxDeletedByKey) {
                durable.delete_by_key(ended);
            }
        }
        for letter in &request.dead {
            if self.mutant != Some(Mutant::DeadLettersNotWritten) {
                durable
                    .dead
                    .insert((usize::from(letter.sync.0), number(&letter.key)), now);
            }
        }
        for (sync, key) in &request.cleared {
            durable.dead.remove(&(usize::from(sync.0), number(key)));
        }
        durable.deletes.note(now, request);
        Ok(())
    }

    /// A key that is to be written whatever is known.
    pub(super) fn insert_again(&mut self, at: Mono, (sync, key): Place) {
        let id = self.next_outbox_id();
        let key = Some(key);
        self.durable.again.insert(id);
        self.durable.insert(id, OutboxRow { sync, key, at });
    }

    /// For variants that settle too early.
    pub(super) fn unclaim(&mut self, claim: i64) {
        self.durable.unclaim(claim);
    }

    pub(super) fn compact(&mut self, address: Address, ids: &[OutboxId]) -> Reply<()> {
        self.fence(address)?;
        for id in ids {
            self.durable.delete(id.0);
        }
        Ok(())
    }

    pub(super) fn start_backfill(
        &mut self,
        now: Mono,
        address: Address,
        sync: usize,
        reason: &str,
        markers: &[OutboxId],
    ) -> Reply<Option<Backfill>> {
        self.fence(address)?;
        for marker in markers {
            self.durable.delete(marker.0);
        }
        if self.mutant == Some(Mutant::MarkerWithoutBackfill) && !markers.is_empty() {
            return Ok(None);
        }
        self.durable.backfilled[sync] = true;
        self.durable.start(now, sync, reason);
        Ok(self.backfill_value(sync))
    }

    pub(super) fn advance(
        &mut self,
        address: Address,
        sync: usize,
        step: &BackfillStep,
    ) -> Reply<()> {
        self.fence(address)?;
        self.durable.advance(sync, step);
        Ok(())
    }

    pub(super) fn walk(
        &self,
        address: Address,
        sync: usize,
        after: Option<&str>,
        limit: usize,
    ) -> Reply<Walked> {
        self.sessions.get(&address).ok_or(FailureKind::Connection)?;
        let first = after.map_or(0, |after| number_of(after) + 1);
        let here = |key: &usize| self.durable.rows[sync][*key].is_some();
        let found: Vec<usize> = (first..self.durable.rows[sync].len())
            .filter(here)
            .take(limit)
            .collect();
        let position = found.last().filter(|_| found.len() == limit);
        Ok(Walked {
            position: position.map(|key| format!("[{key}]")),
            keys: found
                .iter()
                .map(|key| self.keys[sync][*key].clone())
                .collect(),
        })
    }

    fn backfill_value(&self, sync: usize) -> Option<Backfill> {
        self.durable.backfills[sync].as_ref().map(|row| Backfill {
            sync: sync_id(sync),
            reason: row.reason.clone(),
            phase: row.phase,
            position: row.position.map(|key| format!("[{key}]")),
            cursor: row.cursor.map(|key| key.to_string()),
            done: row.done,
            estimate: None,
        })
    }
}

impl Durable {
    fn insert(&mut self, id: i64, row: OutboxRow) {
        match row.key {
            Some(key) => self.waiting[row.sync][key] += 1,
            None => self.markers[row.sync] += u32::from(!self.related.contains_key(&id)),
        }
        self.outbox.insert(id, row);
    }

    fn delete(&mut self, id: i64) {
        if let Some(row) = self.outbox.remove(&id) {
            match row.key {
                Some(key) => self.waiting[row.sync][key] -= 1,
                None => self.markers[row.sync] -= u32::from(self.related.remove(&id).is_none()),
            }
        }
    }

    fn unclaim(&mut self, claim: i64) -> Vec<Place> {
        let Some((sync, keys)) = self.claims.remove(&claim) else {
            return Vec::new();
        };
        for key in &keys {
            self.claimed[sync][*key] -= 1;
        }
        keys.into_iter().map(|key| (sync, key)).collect()
    }

    fn delete_by_key(&mut self, places: Vec<Place>) {
        let ids: Vec<i64> = self
            .outbox
            .iter()
            .filter(|(_, row)| row.key.is_some_and(|key| places.contains(&(row.sync, key))))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.delete(id);
        }
    }

    fn start(&mut self, now: Mono, sync: usize, reason: &str) {
        self.backfills[sync] = Some(BackfillRow {
            reason: reason.to_owned(),
            phase: BackfillPhase::Rows,
            position: None,
            cursor: None,
            started: now,
            done: 0,
        });
    }

    fn advance(&mut self, sync: usize, step: &BackfillStep) {
        if *step == BackfillStep::Done {
            if let Some(row) = self.backfills[sync].take() {
                self.dead
                    .retain(|place, at| place.0 != sync || *at >= row.started);
            }
            return;
        }
        let Some(row) = &mut self.backfills[sync] else {
            return;
        };
        match step {
            BackfillStep::Rows { position, done } => {
                row.position = Some(number_of(position));
                row.done = *done;
            }
            BackfillStep::EnterKeys { done } => {
                row.phase = BackfillPhase::Keys;
                row.done = *done;
            }
            BackfillStep::Keys { cursor, done } => {
                row.cursor = cursor.parse().ok();
                row.done = *done;
            }
            BackfillStep::Done => {}
        }
    }
}

pub(super) fn sync_id(sync: usize) -> SyncId {
    SyncId(u16::try_from(sync).expect("few syncs"))
}

/// The number of a key, which is `[number]`.
pub(super) fn number(key: &Key) -> usize {
    number_of(key.as_str())
}

fn number_of(text: &str) -> usize {
    text.trim_matches(['[', ']'])
        .parse()
        .expect("a key of the model")
}
