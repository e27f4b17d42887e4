//! Somebody else who writes to KV, and the audit that finds it.

use pg2kv::change::owner::InstallationId;
use pg2kv::change::{Answer, Outcome};
use pg2kv::relay::{AuditFound, Event, Inspected, SweepFailure};

use super::checks;
use super::database::{Address, sync_id};
use super::kv::micros;
use super::mutants::Mutant;
use super::statements::LIST_PAGE;
use super::world::{What, World, failure};

impl World {
    /// Writes or deletes a pair, as if it were ours.
    pub(super) fn tamper(&mut self) {
        if self.healed {
            return;
        }
        let at = self.now + micros(self.rng.u64(50_000..4_000_000));
        self.at(at, What::Tamper);
        let place = (
            self.rng.usize(..self.syncs()),
            self.rng.usize(..self.plan.keys),
        );
        let content = self.rng.bool().then(|| self.rng.u32(..self.plan.contents));
        if self.kv.gone[place.0].is_none() {
            self.kv.tamper(place, content);
            self.tell(|| format!("somebody else: KV {place:?} = {content:?}"));
        }
    }

    /// A page of names is looked at: whether pairs of another installation have names of the sync.
    pub(super) fn inspect(
        &mut self,
        from: Address,
        sync: usize,
        cursor: Option<usize>,
        refusal: Option<Answer>,
    ) {
        let next = self.kv.list(sync, cursor, LIST_PAGE).1;
        let taken = self.now < self.plan.taken_until && !self.is(Mutant::TakenIsFree);
        let result = match (refusal, next) {
            (Some(answer), _) => Err(SweepFailure::Kv(answer)),
            (None, _) if taken => Ok(Inspected::Taken(
                InstallationId::parse("ffffffffffff").expect("a number of an installation"),
            )),
            (None, Some(cursor)) => Ok(Inspected::Next(cursor.to_string())),
            (None, None) => match self.database.note_free(from, sync) {
                Ok(()) => Ok(Inspected::Free),
                Err(kind) => Err(SweepFailure::Ledger(failure(kind))),
            },
        };
        let at = self.now + self.delay() * 8;
        let sync = sync_id(sync);
        let event = Box::new(Event::Inspected { sync, result });
        self.at(at, What::Deliver { to: from, event });
    }

    /// The whole comparison at one moment: what differs and does not wait is asked for again.
    pub(super) fn compare(&mut self, from: Address, sync: usize) {
        let token = self.processes[from.process].token;
        let mut refusal = self.kv.refusal(sync, token);
        let faults = self.plan.faults;
        if faults.throttled && !self.healed && self.rng.u32(..10) == 0 {
            refusal = Some(Outcome::Throttled(Some(micros(3_000_000))));
        }
        if let Some(outcome) = refusal {
            let answer = self.answer(from, sync, outcome);
            let sync = sync_id(sync);
            let event = if self.rng.bool() {
                let failed = Some(answer);
                Event::PageWanted { sync, failed }
            } else {
                let result = Err(SweepFailure::Kv(answer));
                Event::Audited { sync, result }
            };
            return self.deliver(from, event);
        }
        let mut drifted: Vec<usize> = (0..self.plan.keys)
            .filter(|key| checks::has_drifted(&self.database, &self.kv, (sync, *key)))
            .collect();
        if self.is(Mutant::AuditOnlyLooks) {
            drifted.clear();
        }
        let result = match self.database.fence(from) {
            Ok(()) => {
                for key in &drifted {
                    self.database.insert_again(self.now, (sync, *key));
                    self.kv.tampered.remove(&(sync, *key));
                }
                Ok(AuditFound {
                    stale: drifted.len() as u64,
                    undecided: self.database.backfill(sync).is_some(),
                    ..AuditFound::default()
                })
            }
            Err(kind) => Err(SweepFailure::Ledger(failure(kind))),
        };
        self.tell(|| format!("an audit of {sync} found {drifted:?}"));
        let sync = sync_id(sync);
        self.deliver(from, Event::Audited { sync, result });
    }
}
