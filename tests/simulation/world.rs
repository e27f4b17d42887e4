//! Virtual time: one heap of events, several processes that each run a relay, one database, one KV.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use pg2kv::change::{Batch, Mono};
use pg2kv::ledger::{Failure, FailureKind};
use pg2kv::relay::{Campaigned, Effect, Event, Phase, Recovered, Relay, SweepFailure};

use super::chaos::{Fault, Trap};
use super::checks::{self, Checked, Deletes, Latency, Spent, Term};
use super::database::{Address, Database, Durable, Place};
use super::kv::{Kv, STRANGE, micros, pairs};
use super::mutants::Mutant;
use super::plan::{self, Plan};
use super::statements::{APPROVAL, Job, LIST_PAGE};

/// More events than this in one run are a busy loop.
const EVENTS_MAX: u64 = 400_000;

/// Something that happens at a moment.
#[derive(Debug)]
pub(super) enum What {
    /// A writer begins a transaction.
    Begin,
    ReadBell(u64),
    End {
        transaction: u64,
        commit: bool,
    },
    /// An effect leaves the process, unless that is paused.
    Leave {
        from: Address,
        effect: Box<Effect>,
    },
    /// A statement takes effect in the database.
    Execute {
        from: Address,
        job: Box<Job>,
    },
    /// A reply reaches the process.
    Deliver {
        to: Address,
        event: Box<Event>,
    },
    Tick {
        process: usize,
        nonce: u64,
    },
    /// The server notices that a connection was closed.
    Closed(Address),
    LeaseCheck,
    /// Pairs of a request take effect in KV.
    Apply {
        shot: u64,
        which: Vec<usize>,
    },
    Reply {
        shot: u64,
    },
    /// A page of names is listed.
    List {
        from: Address,
        sync: usize,
        cursor: Option<usize>,
        inspects: bool,
    },
    /// An audit compares a sync with KV.
    Compare {
        from: Address,
        sync: usize,
    },
    /// Somebody else writes to KV.
    Tamper,
    Start(usize),
    Resume(usize),
    Fault(Fault),
}

/// One daemon.
pub(super) struct Process {
    pub(super) relay: Option<Relay>,
    start: u64,
    term: u64,
    nonce: u64,
    tick_at: Option<Mono>,
    pub(super) paused_until: Option<Mono>,
    /// Cut off from the database until then.
    pub(super) cut_until: Option<Mono>,
    pub(super) token: u32,
    /// Server time of the last statement that renewed the lease.
    pub(super) heard: Mono,
    /// A fault that strikes at the next effect of a kind.
    pub(super) trap: Option<Trap>,
    pub(super) checks: Term,
    pub(super) spent: Spent,
    /// The sync that is being compared.
    pub(super) audited: Option<(Address, usize)>,
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) mutant: Option<Mutant>,
    pub(super) now: Mono,
    pub(super) rng: fastrand::Rng,
    heap: BinaryHeap<Reverse<(Mono, u64)>>,
    events: BTreeMap<u64, What>,
    serial: u64,
    pub(super) serial_shot: u64,
    pub(super) transactions: u64,
    handled: u64,
    pub(super) database: Database,
    pub(super) kv: Kv,
    pub(super) processes: Vec<Process>,
    pub(super) standby: Option<(Mono, Durable)>,
    pub(super) relation_broken: Vec<bool>,
    pub(super) file_token: u32,
    pub(super) healed: bool,
    pub(super) latency: Latency,
    pub(super) deletes: Deletes,
    /// What was on its way when a backfill began, for the variant that forgets it.
    pub(super) outdated: BTreeSet<Place>,
    trace: DefaultHasher,
    verbose: bool,
}

/// What came of a run.
pub(super) struct Report {
    pub(super) trace: u64,
    pub(super) events: u64,
    pub(super) failure: Option<String>,
}

impl World {
    /// The world of a seed in which the variant `aim` would show, and that is broken by `mutant`.
    pub(super) fn new(seed: u64, aim: Option<Mutant>, mutant: Option<Mutant>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let plan = Plan::new(&mut rng, aim);
        let syncs = plan.settings.syncs.len();
        let trouble = if plan.calm {
            0.0
        } else {
            [0.1, 0.3, 0.8][rng.usize(..3)]
        };
        let processes = (0..plan.processes).map(|_| Process::new()).collect();
        Self {
            mutant,
            now: plan::start(),
            rng,
            heap: BinaryHeap::new(),
            events: BTreeMap::new(),
            serial: 0,
            serial_shot: 0,
            transactions: 0,
            handled: 0,
            database: Database::new(syncs, plan.keys + STRANGE, mutant),
            kv: Kv::new(syncs, plan.keys, trouble),
            processes,
            standby: None,
            relation_broken: vec![false; syncs],
            file_token: 0,
            healed: false,
            latency: Latency::default(),
            deletes: Deletes::default(),
            outdated: BTreeSet::new(),
            trace: DefaultHasher::new(),
            verbose: false,
            plan,
        }
    }

    /// Prints all that happens.
    pub(super) fn verbose(mut self) -> Self {
        self.verbose = true;
        self.say(&format!("{:#?}", self.plan));
        self
    }

    /// Runs chaos, then healing, until KV equals the table or the deadline has passed.
    pub(super) fn run(mut self) -> Report {
        let failure = self
            .try_run()
            .err()
            .map(|why| format!("at {:?}: {why}", self.now.since_origin()));
        Report {
            trace: self.trace.finish(),
            events: self.handled,
            failure,
        }
    }

    fn try_run(&mut self) -> Checked {
        self.begin_chaos();
        let heal_at = self.now + self.plan.chaos;
        self.until(heal_at, false)?;
        self.heal()?;
        let deadline = self.now + self.plan.deadline();
        if self.until(deadline, true)? {
            return Ok(());
        }
        checks::equal(&self.database, &self.kv, self.syncs(), self.plan.keys).map_err(|why| {
            format!(
                "not converged {:?} after healing: {why}",
                self.plan.deadline()
            )
        })
    }

    /// Runs events until a moment, or until all is well.
    fn until(&mut self, end: Mono, stop_when_equal: bool) -> Result<bool, String> {
        while let Some(Reverse((at, serial))) = self.heap.peek().copied() {
            if at > end {
                break;
            }
            self.heap.pop();
            let Some(what) = self.events.remove(&serial) else {
                continue;
            };
            self.now = at;
            self.handled += 1;
            if self.handled > EVENTS_MAX {
                return Err("too many events: something runs in circles".to_owned());
            }
            let touches = matches!(
                what,
                What::End { .. } | What::Execute { .. } | What::Apply { .. } | What::Compare { .. }
            );
            self.happen(what)?;
            if touches {
                checks::others_are_left_alone(&self.kv)?;
                checks::ledger_covers(&self.database, &self.kv, self.syncs(), self.plan.keys)?;
                if self.plan.calm {
                    self.latency.check(self.now, self.plan.calm_latency())?;
                }
                if stop_when_equal && self.is_over() {
                    return Ok(true);
                }
            }
        }
        self.now = end;
        Ok(stop_when_equal && self.is_over())
    }

    fn is_over(&self) -> bool {
        let still_lands = || {
            self.events
                .values()
                .any(|what| matches!(what, What::Apply { .. }))
        };
        !self.database.has_open_transactions()
            && checks::equal(&self.database, &self.kv, self.syncs(), self.plan.keys).is_ok()
            && !still_lands()
    }

    fn happen(&mut self, what: What) -> Checked {
        match what {
            What::Begin => self.begin_transaction(),
            What::ReadBell(id) => self.database.read_bell(self.now, id),
            What::End {
                transaction,
                commit,
            } => self.end_transaction(transaction, commit),
            What::Leave { from, effect } => {
                if let Some(at) = self.frozen(from.process) {
                    self.at(at, What::Leave { from, effect });
                } else if self.is_current(from) {
                    return self.leave(from, *effect);
                }
            }
            What::Execute { from, job } => return self.execute(from, *job),
            What::Deliver { to, event } => {
                if let Some(at) = self.frozen(to.process) {
                    self.at(at, What::Deliver { to, event });
                } else if self.is_current(to) {
                    return self.handle(to.process, *event);
                }
            }
            What::Tick { process, nonce } => {
                if self.processes[process].nonce == nonce {
                    if let Some(at) = self.frozen(process) {
                        self.at(at, What::Tick { process, nonce });
                    } else {
                        self.processes[process].tick_at = None;
                        return self.handle(process, Event::Tick);
                    }
                }
            }
            What::Closed(address) => self.database.close(address),
            What::LeaseCheck => {
                let ttl = self.plan.settings.lease_ttl;
                if let Some(silent) = self.database.release_silent(self.now, ttl) {
                    self.deliver(silent, Event::SessionLost(failure(FailureKind::Connection)));
                }
            }
            What::Apply { shot, which } => self.apply(shot, &which),
            What::Reply { shot } => self.reply(shot),
            What::List {
                from,
                sync,
                cursor,
                inspects,
            } => self.list(from, sync, cursor, inspects),
            What::Compare { from, sync } => self.compare(from, sync),
            What::Tamper => self.tamper(),
            What::Start(process) => return self.start(process),
            What::Resume(process) => {
                if self.processes[process]
                    .paused_until
                    .is_some_and(|at| at <= self.now)
                {
                    self.processes[process].paused_until = None;
                }
            }
            What::Fault(fault) => return self.fault(fault),
        }
        Ok(())
    }

    /// Gives an event to a relay and carries out what it says.
    ///
    /// A relay that wants a tick at this very moment must do something with it.
    pub(super) fn handle(&mut self, process: usize, event: Event) -> Checked {
        self.before(process, &event);
        self.trace_event(process, &event);
        let now = self.now;
        let mut event = event;
        for round in 0..10 {
            let Some(relay) = &mut self.processes[process].relay else {
                return Ok(());
            };
            let output = relay.handle(now, event);
            let (phase, wake) = (relay.phase(), relay.wake_at(now));
            for notice in output.notices {
                self.tell(|| format!("p{process}   {notice:?}"));
            }
            let idle = output.effects.is_empty();
            for effect in output.effects {
                self.trace_effect(process, &effect);
                self.emit(process, effect)?;
            }
            if phase == Phase::Done {
                return self.done(process);
            }
            match wake {
                Some(at) if at > now => {
                    self.tick(process, at);
                    return self.memory_is_bounded(process);
                }
                Some(_) if round > 0 && idle => {
                    return Err(format!(
                        "process {process} wants tick after tick and does nothing"
                    ));
                }
                Some(_) => event = Event::Tick,
                None => {
                    self.processes[process].tick_at = None;
                    self.processes[process].nonce += 1;
                    return Ok(());
                }
            }
        }
        Err(format!(
            "process {process} wants ten ticks at the same moment"
        ))
    }

    /// The queue holds what it may, what an election found, and the chunks under way.
    fn memory_is_bounded(&mut self, process: usize) -> Checked {
        let (now, settings) = (self.now, &self.plan.settings);
        let chunks = settings.syncs.len() * settings.backfill_chunk.max(LIST_PAGE);
        let state = &mut self.processes[process];
        let bound = settings.queue.keys_max + chunks + state.checks.recovered;
        let Some(relay) = &mut state.relay else {
            return Ok(());
        };
        let status = relay.status(now);
        // Deletes that a brake holds take no room from the others, nor do they when it lets them go.
        let braked = settings.brake.count > 0;
        let bound = bound + if braked { settings.queue.keys_max } else { 0 };
        let held = status.queue_keys;
        if held > bound {
            return Err(format!(
                "process {process} holds {held} keys, more than {bound}"
            ));
        }
        Ok(())
    }

    fn tick(&mut self, process: usize, at: Mono) {
        let state = &mut self.processes[process];
        if state.tick_at == Some(at) {
            return;
        }
        state.tick_at = Some(at);
        state.nonce += 1;
        let nonce = state.nonce;
        self.at(at, What::Tick { process, nonce });
    }

    /// Takes note of an effect and lets it leave the process a little later.
    fn emit(&mut self, process: usize, effect: Effect) -> Checked {
        let now = self.now;
        let limit = self.plan.settings.budget.requests_per_window;
        let state = &mut self.processes[process];
        match &effect {
            Effect::Abandon => {
                let old = self.address(process);
                self.processes[process].term += 1;
                self.processes[process].checks = Term::default();
                let delay = self.delay();
                let at = self.reaches(process).max(now) + delay;
                self.at(at, What::Closed(old));
                return Ok(());
            }
            Effect::Prepare { batch, request } => state.checks.prepare(*batch, request)?,
            Effect::Write { request, batch, .. } => {
                let places = pairs(batch).into_iter().map(|(place, _)| place).collect();
                if now < self.plan.taken_until {
                    return Err("names of another installation are written".to_owned());
                }
                state.checks.write(now, *request, places)?;
                if self.plan.nobody_approves && matches!(batch, Batch::Delete(_)) {
                    let (keys, brake) = (self.plan.keys, self.plan.settings.brake);
                    let places = state.checks.of(*request);
                    self.deletes.deletes(places, keys, brake)?;
                }
                state.spent.one(now, limit)?;
            }
            Effect::Sweep { .. } | Effect::AllowPage { .. } | Effect::Inspect { .. } => {
                state.checks.may_ask(now)?;
                state.spent.one(now, limit)?;
            }
            _ => {}
        }
        let from = self.address(process);
        self.spring(process, &effect);
        let at = now + micros(self.rng.u64(1..200));
        self.at(
            at,
            What::Leave {
                from,
                effect: Box::new(effect),
            },
        );
        Ok(())
    }

    fn before(&mut self, process: usize, event: &Event) {
        let now = self.now;
        let checks = &mut self.processes[process].checks;
        match event {
            Event::Prepared { batch, read, .. } => {
                let read = read.as_deref().unwrap_or_default();
                checks.prepared(now, *batch, read, &mut self.deletes);
            }
            Event::DeletesAsked { facts, .. }
            | Event::Campaigned(Campaigned::Elected {
                recovered: Recovered { deletes: facts, .. },
                ..
            }) if facts.iter().any(|fact| fact.approved_for.is_some()) => {
                self.deletes.approved(now + APPROVAL);
            }
            Event::Answered {
                request, answer, ..
            } => checks.answered(now, *request, &answer.outcome),
            Event::PageWanted {
                failed: Some(answer),
                ..
            }
            | Event::Swept {
                result: Err(SweepFailure::Kv(answer)),
                ..
            }
            | Event::Inspected {
                result: Err(SweepFailure::Kv(answer)),
                ..
            }
            | Event::Audited {
                result: Err(SweepFailure::Kv(answer)),
                ..
            } => {
                checks.throttled(now, &answer.outcome);
            }
            _ => {}
        }
    }

    /// The relay has stopped: the process exits.
    fn done(&mut self, process: usize) -> Checked {
        let old = self.address(process);
        self.processes[process].stop();
        let delay = self.delay();
        self.at(self.now + delay, What::Closed(old));
        let again = self.now + Duration::from_millis(self.rng.u64(50..3_000));
        self.at(again, What::Start(process));
        Ok(())
    }

    fn start(&mut self, process: usize) -> Checked {
        if self.processes[process].relay.is_some() {
            return Ok(());
        }
        let seed = self.rng.u64(..);
        let token = self.file_token;
        let settings = self.plan.settings_of(self.mutant);
        let state = &mut self.processes[process];
        state.stop();
        state.token = token;
        state.relay = Some(Relay::new(settings, seed));
        self.handle(process, Event::Tick)
    }

    /// Ends a process at once.
    pub(super) fn kill(&mut self, process: usize) {
        if self.processes[process].relay.is_none() {
            return;
        }
        let old = self.address(process);
        self.processes[process].stop();
        let delay = self.delay();
        let at = self.reaches(process).max(self.now) + delay;
        self.at(at, What::Closed(old));
        let again = self.now + Duration::from_millis(self.rng.u64(50..3_000));
        self.at(again, What::Start(process));
    }

    // Small things.

    pub(super) fn syncs(&self) -> usize {
        self.plan.settings.syncs.len()
    }

    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(super) fn at(&mut self, at: Mono, what: What) {
        self.serial += 1;
        self.heap.push(Reverse((at, self.serial)));
        self.events.insert(self.serial, what);
    }

    pub(super) fn deliver(&mut self, to: Address, event: Event) {
        let delay = self.delay();
        let at = self.reaches(to.process).max(self.now) + delay;
        self.at(
            at,
            What::Deliver {
                to,
                event: Box::new(event),
            },
        );
    }

    /// When something that is sent now between this process and the database arrives.
    pub(super) fn reaches(&self, process: usize) -> Mono {
        self.processes[process]
            .cut_until
            .map_or(self.now, |at| at.max(self.now))
    }

    pub(super) fn address(&self, process: usize) -> Address {
        let state = &self.processes[process];
        Address {
            process,
            start: state.start,
            term: state.term,
        }
    }

    pub(super) fn is_current(&self, address: Address) -> bool {
        self.processes[address.process].relay.is_some() && self.address(address.process) == address
    }

    /// When a paused process goes on.
    fn frozen(&self, process: usize) -> Option<Mono> {
        self.processes[process]
            .paused_until
            .filter(|at| *at > self.now)
    }

    /// Time on the way to the database or back.
    pub(super) fn delay(&mut self) -> Duration {
        if self.plan.faults.slow_database && self.rng.u32(..10) == 0 {
            return micros(self.rng.u64(50..800_000));
        }
        micros(self.rng.u64(50..1_500))
    }

    fn trace_event(&mut self, process: usize, event: &Event) {
        self.tell(|| format!("p{process} < {event:?}"));
        (self.now, process, std::mem::discriminant(event)).hash(&mut self.trace);
    }

    /// Effects go into the trace with what could depend on an order.
    fn trace_effect(&mut self, process: usize, effect: &Effect) {
        self.tell(|| format!("p{process} > {effect:?}"));
        (process, std::mem::discriminant(effect)).hash(&mut self.trace);
        match effect {
            Effect::Prepare { batch, request } => {
                (
                    batch,
                    request.sync,
                    &request.keys,
                    &request.claim,
                    &request.ids,
                )
                    .hash(&mut self.trace);
            }
            Effect::Write { request, batch, .. } => (request, pairs(batch)).hash(&mut self.trace),
            Effect::Settle(request) => {
                (&request.claims, &request.cleared, request.dead.len()).hash(&mut self.trace);
            }
            Effect::Compact(ids) => ids.hash(&mut self.trace),
            Effect::Walk { sync, after, limit } => (sync, after, limit).hash(&mut self.trace),
            _ => {}
        }
    }

    /// Tells what happens, to whoever reads along.
    pub(super) fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.verbose {
            let at = self.now.since_origin();
            let text = text();
            self.say(&format!("{at:?} -- {text}"));
        }
    }

    #[allow(clippy::print_stderr)]
    fn say(&self, text: &str) {
        eprintln!("{text}");
    }
}

impl Process {
    fn new() -> Self {
        Self {
            relay: None,
            start: 0,
            term: 0,
            nonce: 0,
            tick_at: None,
            paused_until: None,
            cut_until: None,
            token: 0,
            heard: Mono::ZERO,
            trap: None,
            checks: Term::default(),
            spent: Spent::default(),
            audited: None,
        }
    }

    fn stop(&mut self) {
        self.relay = None;
        self.start += 1;
        self.nonce += 1;
        self.tick_at = None;
        self.checks = Term::default();
        self.spent = Spent::default();
    }
}

pub(super) fn failure(kind: FailureKind) -> Failure {
    Failure {
        kind,
        detail: "of the model".to_owned(),
        hint: None,
    }
}
