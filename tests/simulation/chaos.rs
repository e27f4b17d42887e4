//! Writers and faults, and their end.

use std::time::Duration;

use pg2kv::change::Mono;
use pg2kv::ledger::FailureKind;
use pg2kv::relay::{Effect, Event, Phase};

use super::checks::{Checked, Deletes};
use super::database::related::GROUPS;
use super::database::{Address, Place, Row};
use super::kv::{Gone, micros};
use super::plan::REQUEST_TIMEOUT;
use super::world::{What, World, failure};

/// A fault begins or ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// Draws the next fault.
    Draw,
    DatabaseUp,
    RelationMended(usize),
    TokenWritten,
    NamespaceBack {
        sync: usize,
        patience: u32,
    },
    QuotaAnew,
    /// A process that was told to stop must have.
    MustBeDone {
        process: usize,
        start: u64,
    },
    Snapshot,
    /// A trap strikes.
    Strike {
        process: usize,
        start: u64,
        pause: Option<Duration>,
    },
}

/// A fault that waits for the next effect of a kind, to strike between two steps of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trap {
    at: Step,
    /// Pause for so long; `None` kills.
    pause: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Fetch,
    Prepare,
    Write,
    Settle,
    StartBackfill,
    Expand,
}

impl World {
    /// Strikes if a trap waits for this effect: before it leaves the process, or just after.
    pub(super) fn spring(&mut self, process: usize, effect: &Effect) {
        let step = match effect {
            Effect::Fetch { .. } => Step::Fetch,
            Effect::Prepare { .. } => Step::Prepare,
            Effect::Write { .. } => Step::Write,
            Effect::Settle(_) => Step::Settle,
            Effect::StartBackfill { .. } => Step::StartBackfill,
            Effect::Expand { .. } => Step::Expand,
            _ => return,
        };
        let Some(trap) = self.processes[process].trap.filter(|trap| trap.at == step) else {
            return;
        };
        self.processes[process].trap = None;
        let start = self.address(process).start;
        let at = self.now + micros([0, 1, 300, 2_000, 8_000][self.rng.usize(..5)]);
        let pause = trap.pause;
        let fault = Fault::Strike {
            process,
            start,
            pause,
        };
        self.at(at, What::Fault(fault));
    }

    pub(super) fn begin_chaos(&mut self) {
        // Rows that were there before pg2kv was installed, and pairs that nobody wrote.
        for place in self.places() {
            let row = self.draw_row();
            if self.rng.bool() {
                let id = self.next_transaction();
                self.database.begin(self.now, id, &[(place, row, 1)]);
                self.database.commit(id);
            } else if self.rng.u32(..4) == 0 {
                let content = self.rng.u32(..3);
                self.kv.set(place, Some(content));
            }
        }
        for process in 0..self.plan.processes {
            let at = self.now + micros(self.rng.u64(1..2_000_000));
            self.at(at, What::Start(process));
        }
        let soon = self.now + micros(self.rng.u64(1..1_000_000));
        self.at(soon, What::Begin);
        if self.plan.faults.tampers {
            self.at(soon, What::Tamper);
        }
        if !self.plan.calm {
            self.at(soon, What::Fault(Fault::Draw));
            if self.plan.faults.failovers {
                self.at(soon, What::Fault(Fault::Snapshot));
            }
        }
    }

    fn places(&self) -> Vec<Place> {
        let keys = self.plan.keys;
        (0..self.syncs())
            .flat_map(|sync| (0..keys).map(move |key| (sync, key)))
            .collect()
    }

    fn next_transaction(&mut self) -> u64 {
        self.transactions += 1;
        self.transactions
    }

    fn draw_row(&mut self) -> Option<Row> {
        let content = self.rng.u32(..self.plan.contents);
        let bad = self.plan.faults.bad_rows;
        match self.rng.u32(..20) {
            0..3 => None,
            3 => Some(Row::Hidden),
            4 if bad => Some(Row::TooLarge),
            5 | 6 if bad => Some(Row::Refused(content)),
            7 | 8 if bad => Some(Row::Broken),
            _ => Some(Row::Good(content)),
        }
    }

    pub(super) fn begin_transaction(&mut self) {
        if self.healed {
            return;
        }
        let gap = self.plan.gap;
        let next = self.now + gap.mul_f64(2.0 * self.rng.f64());
        self.at(next, What::Begin);
        if !self.database.up {
            return;
        }
        let (faults, id) = (self.plan.faults, self.next_transaction());
        if faults.truncates && self.rng.u32(..150) == 0 {
            let (sync, empty) = (self.rng.usize(..self.syncs()), self.rng.bool());
            self.database.begin_everything(self.now, id, sync, empty);
        } else if faults.related && self.rng.u32(..12) == 0 {
            let of = (self.rng.usize(..self.syncs()), self.rng.usize(..GROUPS));
            let content = self.rng.u32(..self.plan.contents);
            self.database.begin_related(self.now, id, of, content);
        } else {
            let mut changes: Vec<(Place, Option<Row>, u32)> = Vec::new();
            for _ in 0..self.rng.u32(1..=3) {
                let hot = self.rng.u32(..self.plan.hot) == 0;
                let place = if hot {
                    (0, 0)
                } else {
                    (
                        self.rng.usize(..self.syncs()),
                        self.rng.usize(..self.plan.keys),
                    )
                };
                let storm = faults.storms && self.rng.u32(..300) == 0;
                if changes.iter().all(|(at, ..)| *at != place) {
                    let row = self.draw_row();
                    changes.push((place, row, if storm { 1_200 } else { 1 }));
                }
            }
            self.database.begin(self.now, id, &changes);
        }
        let bell = self.now + micros(self.rng.u64(1..2_000));
        self.at(bell, What::ReadBell(id));
        let longest = if faults.late_commits && self.rng.u32(..8) == 0 {
            if self.plan.calm { 300_000 } else { 5_000_000 }
        } else {
            10_000
        };
        let end = bell + micros(self.rng.u64(1..longest));
        let commit = !(faults.aborts && self.rng.u32(..6) == 0);
        self.at(
            end,
            What::End {
                transaction: id,
                commit,
            },
        );
    }

    pub(super) fn end_transaction(&mut self, id: u64, commit: bool) {
        if !commit {
            self.database.abort(id);
            return;
        }
        let (places, rings) = self.database.commit(id);
        for place in places {
            self.latency.commit(self.now, place);
            let row = self.database.row(place);
            self.tell(|| format!("commit {place:?} = {row:?}"));
        }
        if rings {
            for to in self.database.listeners() {
                self.deliver(to, Event::Rung);
            }
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) -> Checked {
        match fault {
            Fault::Draw if !self.healed => {
                let at = self.now + micros(self.rng.u64(200_000..8_000_000));
                self.at(at, What::Fault(Fault::Draw));
                return self.draw_fault();
            }
            Fault::Snapshot if !self.healed => {
                let at = self.now + micros(self.rng.u64(100_000..6_000_000));
                self.at(at, What::Fault(Fault::Snapshot));
                self.standby = Some((self.now, self.database.snapshot()));
            }
            Fault::Strike {
                process,
                start,
                pause,
            } if !self.healed && self.address(process).start == start => match pause {
                Some(pause) => self.pause(process, pause),
                None => self.kill(process),
            },
            Fault::Draw | Fault::Snapshot | Fault::Strike { .. } => {}
            Fault::DatabaseUp => self.database.up = true,
            Fault::RelationMended(sync) => self.relation_broken[sync] = false,
            Fault::TokenWritten => self.file_token = self.kv.token,
            Fault::NamespaceBack { sync, patience } => self.namespace_back(sync, patience),
            Fault::QuotaAnew => self.kv.quota_until = None,
            Fault::MustBeDone { process, start } => {
                let same = self.address(process).start == start;
                if same && self.processes[process].relay.is_some() {
                    return Err(format!(
                        "process {process} was told to stop and did not within its grace"
                    ));
                }
            }
        }
        Ok(())
    }

    fn draw_fault(&mut self) -> Checked {
        let faults = self.plan.faults;
        let process = self.rng.usize(..self.plan.processes);
        let sync = self.rng.usize(..self.syncs());
        let seconds = |rng: &mut fastrand::Rng, to: u64| micros(rng.u64(100_000..to * 1_000_000));
        let kinds = [
            faults.crashes,
            faults.pauses,
            faults.shutdowns,
            faults.restarts,
            faults.partitions,
            faults.failovers,
            faults.relation,
            faults.unauthorized,
            faults.gone,
            faults.quota,
        ];
        let on: Vec<usize> = (0..kinds.len()).filter(|kind| kinds[*kind]).collect();
        let Some(kind) = on.get(self.rng.usize(..on.len().max(1))).copied() else {
            return Ok(());
        };
        self.tell(|| format!("fault {kind} of process {process}, sync {sync}"));
        match kind {
            0 | 1 => {
                let pause = (kind == 1).then(|| seconds(&mut self.rng, 25));
                let steps = [
                    Step::Fetch,
                    Step::Prepare,
                    Step::Write,
                    Step::Settle,
                    Step::StartBackfill,
                    Step::Expand,
                ];
                let at = steps[self.rng.usize(..steps.len())];
                match pause {
                    _ if self.rng.bool() => {
                        self.processes[process].trap = Some(Trap { at, pause });
                    }
                    Some(pause) => self.pause(process, pause),
                    None => self.kill(process),
                }
            }
            2 => {
                let start = self.address(process).start;
                if self.processes[process].paused_until.is_none()
                    && self.processes[process].relay.is_some()
                {
                    let at = self.now + self.plan.settings.grace + Duration::from_secs(4);
                    // A process that is paused meanwhile cannot stop.
                    if !faults.pauses {
                        self.at(at, What::Fault(Fault::MustBeDone { process, start }));
                    }
                    return self.handle(process, Event::Shutdown);
                }
            }
            3 if self.database.up => {
                self.break_sessions();
                self.database.crash();
                let at = self.now + seconds(&mut self.rng, 4);
                self.at(at, What::Fault(Fault::DatabaseUp));
            }
            4 => {
                let until = self.now + seconds(&mut self.rng, 20);
                self.processes[process].cut_until = Some(until);
            }
            5 if self.database.up => {
                if let Some((at, standby)) = self.standby.clone()
                    && self.rng.u32(..3) == 0
                {
                    self.tell(|| format!("failover back to {:?}", at.since_origin()));
                    self.break_sessions();
                    self.database.promote(standby);
                    // What it knows of deletes is as old as the rest.
                    self.deletes = Deletes::default();
                    let at = self.now + seconds(&mut self.rng, 4);
                    self.at(at, What::Fault(Fault::DatabaseUp));
                }
            }
            6 => {
                self.relation_broken[sync] = true;
                let at = self.now + seconds(&mut self.rng, 10);
                self.at(at, What::Fault(Fault::RelationMended(sync)));
            }
            7 if self.file_token == self.kv.token => {
                self.kv.token += 1;
                let at = self.now + seconds(&mut self.rng, 10);
                self.at(at, What::Fault(Fault::TokenWritten));
            }
            8 if self.kv.gone[sync].is_none() => {
                self.kv.gone[sync] = Some(Gone {
                    since: self.now,
                    noticed: None,
                });
                self.kv.lose(sync);
                let at = self.now + REQUEST_TIMEOUT + seconds(&mut self.rng, 10);
                self.at(at, What::Fault(Fault::NamespaceBack { sync, patience: 5 }));
            }
            9 if self.kv.quota_until.is_none() => {
                let at = self.now + seconds(&mut self.rng, 15);
                self.kv.quota_until = Some(at);
                self.at(at, What::Fault(Fault::QuotaAnew));
            }
            _ => {}
        }
        Ok(())
    }

    fn pause(&mut self, process: usize, pause: Duration) {
        let until = self.now + pause;
        self.processes[process].paused_until = Some(until);
        self.at(until, What::Resume(process));
    }

    /// The processes learn that the server is gone: most at once, some only when they next ask.
    fn break_sessions(&mut self) {
        for to in self.database.listeners() {
            if self.rng.u32(..4) > 0 {
                self.deliver(to, Event::SessionLost(failure(FailureKind::Connection)));
            }
        }
    }

    /// An empty namespace stands in the place of the one that was lost. Whoever put it there asks for
    /// a resync if the leader that noticed the loss is no more.
    fn namespace_back(&mut self, sync: usize, patience: u32) {
        let Some(Gone { since, noticed }) = self.kv.gone[sync] else {
            return;
        };
        let begun = self
            .database
            .backfill(sync)
            .is_some_and(|backfill| backfill.started >= since);
        // Nor does one wait for a leader that stands still.
        let leads = |to: Address| {
            let paused = self.processes[to.process].paused_until.is_some();
            self.is_current(to) && self.leads(to) && !paused
        };
        let pending = noticed.is_some_and(leads) && !begun;
        if pending && patience > 0 && !self.healed {
            let at = self.now + Duration::from_secs(1);
            let patience = patience - 1;
            self.at(at, What::Fault(Fault::NamespaceBack { sync, patience }));
            return;
        }
        self.kv.gone[sync] = None;
        // Where all heals, nobody waits to see whether the leader gets to it.
        if !begun && (!pending || self.healed) {
            let id = self.next_transaction();
            self.database.begin_everything(self.now, id, sync, false);
            let (_, _) = self.database.commit(id);
            self.tell(|| format!("somebody asks for a resync of {sync}"));
        }
    }

    fn leads(&self, to: super::database::Address) -> bool {
        let relay = self.processes[to.process].relay.as_ref();
        relay.is_some_and(|relay| relay.phase() == Phase::Leading)
    }

    /// Ends every fault and all writing.
    pub(super) fn heal(&mut self) -> Checked {
        self.tell(|| "healed".to_owned());
        self.healed = true;
        self.database.up = true;
        self.file_token = self.kv.token;
        self.kv.quota_until = None;
        self.relation_broken.fill(false);
        for sync in 0..self.syncs() {
            self.namespace_back(sync, 0);
        }
        for process in 0..self.plan.processes {
            let state = &mut self.processes[process];
            state.cut_until = None;
            if state.paused_until.take().is_some() {
                let at: Mono = self.now;
                self.at(at, What::Resume(process));
            }
        }
        Ok(())
    }
}
