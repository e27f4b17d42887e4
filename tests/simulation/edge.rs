//! What the processes send to KV, and what comes back.

use pg2kv::change::{Answer, Batch, Mono, NotSentReason, Outcome};
use pg2kv::relay::{Event, RequestId};

use super::checks::Checked;
use super::database::Address;
use super::kv::{Course, Gone, Shot, pairs};
use super::mutants::Mutant;
use super::plan::Faults;
use super::world::{What, World};

impl World {
    /// A request leaves the process, if it is still trusted at this moment.
    pub(super) fn send(
        &mut self,
        from: Address,
        request: RequestId,
        sync: usize,
        batch: Batch,
        trusted_until: Mono,
    ) -> Checked {
        if self.now >= trusted_until {
            let outcome = Outcome::NotSent(NotSentReason::Fenced);
            self.reply_with(from, request, sync, batch, outcome);
            return Ok(());
        }
        let (heard, ttl) = (
            self.processes[from.process].heard,
            self.plan.settings.lease_ttl,
        );
        if self.now >= heard + ttl {
            return Err(format!(
                "process {} sends {:?} after the server heard of it",
                from.process,
                self.now.since(heard)
            ));
        }
        let pairs = pairs(&batch);
        for (place, _) in &pairs {
            if !self.kv.running.insert((from, *place)) {
                return Err(format!(
                    "{place:?} is sent while another request for it runs"
                ));
            }
        }
        let token = self.processes[from.process].token;
        let faults = if self.healed {
            Faults::default()
        } else {
            self.plan.faults
        };
        let Course {
            outcome,
            applies,
            reply,
        } = self
            .kv
            .course(&mut self.rng, &faults, self.now, sync, token, &pairs);
        self.tell(|| format!("{request:?} of {from:?} will be {outcome:?}, applied {applies:?}, answered {reply:?}"));
        if self.is(Mutant::GivesUpEarly) && reply.since(self.now).as_millis() > 1_000 {
            let outcome = Outcome::NotSent(NotSentReason::Connect);
            self.reply_with(from, request, sync, batch.clone(), outcome);
        }
        self.serial_shot += 1;
        let shot = self.serial_shot;
        for (at, which) in applies {
            self.at(at, What::Apply { shot, which });
        }
        self.at(reply, What::Reply { shot });
        self.kv.shots.insert(
            shot,
            Shot {
                from,
                request,
                sync,
                batch,
                pairs,
                outcome,
                missed: false,
            },
        );
        Ok(())
    }

    pub(super) fn apply(&mut self, shot: u64, which: &[usize]) {
        let Some(shot) = self.kv.shots.get_mut(&shot) else {
            return;
        };
        if self.kv.gone[shot.sync].is_some() {
            shot.missed = true;
            return;
        }
        let (from, pairs): (Address, Vec<_>) = (
            shot.from,
            which.iter().map(|one| shot.pairs[*one]).collect(),
        );
        for (place, content) in pairs {
            self.kv.set(place, content);
            self.latency.applied(from, place);
            self.tell(|| format!("KV {place:?} = {content:?}"));
        }
    }

    pub(super) fn reply(&mut self, number: u64) {
        let Some(shot) = self.kv.shots.get(&number) else {
            return;
        };
        for (place, _) in &shot.pairs {
            self.kv.running.remove(&(shot.from, *place));
        }
        let proof = matches!(shot.outcome, Outcome::Written | Outcome::Partial(_));
        let missed = shot.missed && proof;
        let (from, request, sync, batch) = (shot.from, shot.request, shot.sync, shot.batch.clone());
        let outcome = shot.outcome.clone();
        let outcome = if missed {
            // A refusal: nothing of it takes effect any more.
            self.kv.shots.remove(&number);
            Outcome::NamespaceGone
        } else {
            outcome
        };
        let outcome = match (self.mutant, outcome) {
            (Some(Mutant::AmbiguousIsWritten), Outcome::Ambiguous(_)) => Outcome::Written,
            (Some(Mutant::ThrottledIsWritten), Outcome::Throttled(_)) => Outcome::Written,
            (Some(Mutant::RejectedIsWritten), Outcome::Rejected) => Outcome::Written,
            (Some(Mutant::PartialIsWritten), Outcome::Partial(_)) => Outcome::Written,
            (_, outcome) => outcome,
        };
        self.reply_with(from, request, sync, batch, outcome);
    }

    fn reply_with(
        &mut self,
        to: Address,
        request: RequestId,
        sync: usize,
        batch: Batch,
        outcome: Outcome,
    ) {
        let answer = self.answer(to, sync, outcome);
        let until_midnight = self
            .kv
            .quota_until
            .map_or_else(Default::default, |at| at.since(self.now));
        let event = Box::new(Event::Answered {
            request,
            batch,
            answer,
            until_midnight,
        });
        let at = self.now;
        self.at(at, What::Deliver { to, event });
    }

    /// The answer to a request, which also tells that a namespace is gone.
    pub(super) fn answer(&mut self, to: Address, sync: usize, outcome: Outcome) -> Answer {
        let mut outcome = outcome;
        if outcome == Outcome::NamespaceGone {
            if let Some(Gone { noticed, .. }) = &mut self.kv.gone[sync]
                && self.processes[to.process].relay.is_some()
            {
                *noticed = Some(to);
            }
            if self.is(Mutant::NamespaceGoneIsThrottled) {
                outcome = Outcome::Throttled(None);
            }
        }
        Answer {
            outcome,
            limit: None,
            status: None,
            detail: "of the model".to_owned(),
        }
    }
}
