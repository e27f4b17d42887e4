//! What must hold at every step, whatever fails.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use pg2kv::change::{Mono, Outcome, Rendered};
use pg2kv::ledger::ClaimRequest;
use pg2kv::queue::budget;
use pg2kv::relay::{BatchId, RequestId, brake};

use super::database::{Address, Database, Place, Wanted, number, wanted};
use super::kv::Kv;
use super::plan::KEY_INTERVAL;

/// What one term of one process has under way.
#[derive(Debug, Default)]
pub(super) struct Term {
    busy: BTreeSet<Place>,
    batches: BTreeMap<BatchId, Vec<Place>>,
    requests: BTreeMap<RequestId, Vec<Place>>,
    answered: BTreeMap<Place, Mono>,
    silent_until: Mono,
    /// Keys of claims that were found at the election.
    pub(super) recovered: usize,
}

pub(super) type Checked = Result<(), String>;

/// What is deleted, whoever leads.
#[derive(Debug, Default)]
pub(super) struct Deletes {
    /// When a row was last found gone, unless somebody had approved of deletes then.
    found_gone: BTreeMap<Place, Mono>,
    /// Of those that were deleted: when that was first decided.
    deleted: BTreeMap<Place, Mono>,
    approved_until: Mono,
}

impl Deletes {
    fn found(&mut self, now: Mono, places: Vec<Place>, read: &[Rendered]) {
        for (place, rendered) in places.into_iter().zip(read) {
            if matches!(rendered, Rendered::Delete(_)) && now >= self.approved_until {
                self.found_gone.insert(place, now);
            } else {
                // There again: whoever leads next does not find its delete.
                self.found_gone.remove(&place);
                self.deleted.remove(&place);
            }
        }
    }

    /// A person approved of deletes until this moment at the latest.
    pub(super) fn approved(&mut self, until: Mono) {
        self.approved_until = self.approved_until.max(until);
    }

    /// No more deletes may be decided on within the window than the brake lets go. A tenth of the
    /// window may be forgotten at once.
    pub(super) fn deletes(
        &mut self,
        places: &[Place],
        keys: usize,
        brake: brake::Settings,
    ) -> Checked {
        if brake.count == 0 {
            return Ok(());
        }
        for place in places {
            if let Some(at) = self.found_gone.get(place) {
                self.deleted.entry(*place).or_insert(*at);
            }
        }
        let window = brake.window.mul_f64(0.9);
        let limit = (brake.count as f64).max(brake.share * keys as f64);
        for ((sync, _), end) in &self.deleted {
            let within = self
                .deleted
                .iter()
                .filter(|((of, _), at)| of == sync && *at <= end && end.since(**at) < window);
            let count = within.count();
            if count as f64 > limit {
                return Err(format!(
                    "{count} keys of sync {sync} are deleted within {window:?}, {limit} may be"
                ));
            }
        }
        Ok(())
    }
}

impl Term {
    pub(super) fn prepare(&mut self, batch: BatchId, request: &ClaimRequest) -> Checked {
        let sync = usize::from(request.sync.0);
        let places: Vec<Place> = request.keys.iter().map(|key| (sync, number(key))).collect();
        self.occupy(&places)?;
        self.batches.insert(batch, places);
        Ok(())
    }

    pub(super) fn prepared(
        &mut self,
        now: Mono,
        batch: BatchId,
        read: &[Rendered],
        deletes: &mut Deletes,
    ) {
        let places = self.batches.remove(&batch).unwrap_or_default();
        for place in &places {
            self.busy.remove(place);
        }
        deletes.found(now, places, read);
    }

    pub(super) fn of(&self, request: RequestId) -> &[Place] {
        self.requests.get(&request).map_or(&[], Vec::as_slice)
    }

    /// Keys of requests that were sent and are not answered.
    pub(super) fn on_their_way(&self) -> impl Iterator<Item = Place> {
        self.requests.values().flatten().copied()
    }

    pub(super) fn write(&mut self, now: Mono, request: RequestId, places: Vec<Place>) -> Checked {
        self.occupy(&places)?;
        for place in &places {
            if let Some(at) = self.answered.get(place)
                && now.since(*at) < KEY_INTERVAL
            {
                return Err(format!(
                    "{place:?} written {:?} after its last write came back",
                    now.since(*at)
                ));
            }
        }
        self.requests.insert(request, places);
        self.may_ask(now)
    }

    /// No request may go while the server asked for silence.
    pub(super) fn may_ask(&self, now: Mono) -> Checked {
        if now < self.silent_until {
            return Err(format!(
                "a request {:?} before Retry-After ended",
                self.silent_until.since(now)
            ));
        }
        Ok(())
    }

    pub(super) fn answered(&mut self, now: Mono, request: RequestId, outcome: &Outcome) {
        let places = self.requests.remove(&request).unwrap_or_default();
        for place in &places {
            self.busy.remove(place);
        }
        if matches!(
            outcome,
            Outcome::Written | Outcome::Partial(_) | Outcome::Ambiguous(_)
        ) {
            self.answered
                .extend(places.into_iter().map(|place| (place, now)));
        }
        self.throttled(now, outcome);
    }

    pub(super) fn throttled(&mut self, now: Mono, outcome: &Outcome) {
        if let Outcome::Throttled(Some(wait)) = outcome {
            self.silent_until = self.silent_until.max(now + *wait);
        }
    }

    fn occupy(&mut self, places: &[Place]) -> Checked {
        for place in places {
            if !self.busy.insert(*place) {
                return Err(format!("{place:?} is in flight twice"));
            }
        }
        Ok(())
    }
}

/// Requests of one process since its start.
#[derive(Debug, Default)]
pub(super) struct Spent(VecDeque<Mono>);

impl Spent {
    pub(super) fn one(&mut self, now: Mono, limit: u32) -> Checked {
        self.0.push_back(now);
        while self
            .0
            .front()
            .is_some_and(|at| now.since(*at) >= budget::WINDOW)
        {
            self.0.pop_front();
        }
        if self.0.len() > limit as usize {
            return Err(format!(
                "{} requests within five minutes, {limit} are allowed",
                self.0.len()
            ));
        }
        Ok(())
    }
}

/// The invariant: nothing is deleted that another installation wrote.
pub(super) fn others_are_left_alone(kv: &Kv) -> Checked {
    kv.robbed().map_or(Ok(()), |place| {
        Err(format!(
            "the pair {place:?} of another installation was deleted"
        ))
    })
}

/// The invariant: whatever KV may have wrong is named in the ledger.
pub(super) fn ledger_covers(database: &Database, kv: &Kv, syncs: usize, keys: usize) -> Checked {
    for sync in 0..syncs {
        if kv.gone[sync].is_some() {
            continue;
        }
        for key in 0..keys {
            let place = (sync, key);
            if has_drifted(database, kv, place) && !kv.tampered.contains(&place) {
                return Err(format!(
                    "{place:?} is {:?} in the table and {:?} in KV, and nothing in the ledger says so",
                    database.row(place),
                    kv.get(place),
                ));
            }
        }
    }
    Ok(())
}

/// Whether KV does not have what it should, and the ledger does not say so.
pub(super) fn has_drifted(database: &Database, kv: &Kv, place: Place) -> bool {
    let have = kv.get(place);
    let equal = match wanted(database.row(place)) {
        Wanted::Pair(content) => have == Some(content),
        Wanted::Nothing => have.is_none(),
        Wanted::DeadLetter => false,
    };
    !equal && !database.covers(place, have.is_some())
}

/// Final equality: the ledger is at rest, and KV holds what the rows say.
pub(super) fn equal(database: &Database, kv: &Kv, syncs: usize, keys: usize) -> Checked {
    if let Some(unrest) = database.unrest() {
        return Err(unrest);
    }
    for place in (0..syncs).flat_map(|sync| (0..keys).map(move |key| (sync, key))) {
        let (have, dead) = (kv.get(place), database.is_dead(place));
        let fine = match wanted(database.row(place)) {
            Wanted::Pair(content) => have == Some(content) && !dead,
            Wanted::Nothing => have.is_none() && !dead,
            Wanted::DeadLetter => dead,
        };
        if !fine {
            let row = database.row(place);
            return Err(format!(
                "{place:?} is {row:?} in the table and {have:?} in KV; dead letter: {dead}"
            ));
        }
    }
    Ok(())
}

/// How long changes take while nothing fails.
#[derive(Debug, Default)]
pub(super) struct Latency {
    /// Commits that no write covers yet, oldest first.
    open: BTreeMap<Place, VecDeque<Mono>>,
    read: BTreeMap<(Address, Place), Mono>,
}

impl Latency {
    pub(super) fn commit(&mut self, now: Mono, place: Place) {
        self.open.entry(place).or_default().push_back(now);
    }

    /// The row was read, and KV may have the same already.
    pub(super) fn read(&mut self, now: Mono, address: Address, place: Place, same: bool) {
        self.read.insert((address, place), now);
        if same {
            self.cover(place, now);
        }
    }

    pub(super) fn applied(&mut self, address: Address, place: Place) {
        if let Some(read) = self.read.get(&(address, place)).copied() {
            self.cover(place, read);
        }
    }

    fn cover(&mut self, place: Place, until: Mono) {
        if let Some(open) = self.open.get_mut(&place) {
            while open.front().is_some_and(|at| *at <= until) {
                open.pop_front();
            }
        }
    }

    pub(super) fn check(&self, now: Mono, bound: Duration) -> Checked {
        for (place, open) in &self.open {
            if let Some(at) = open.front()
                && now.since(*at) > bound
            {
                return Err(format!(
                    "a change of {place:?} was not in KV after {:?}",
                    now.since(*at)
                ));
            }
        }
        Ok(())
    }
}
