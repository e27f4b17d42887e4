//! What the processes ask of the database: an effect leaves the process, its statements take effect
//! one after the other, and the reply comes back, unless something goes wrong on the way.

use std::time::Duration;

use pg2kv::change::{ClaimId, Epoch, Mono, OutboxId, SyncId};
use pg2kv::ledger::{
    AuditFacts, BackfillStep, ClaimRequest, DeleteFacts, Failure, FailureKind, FetchMode, Marker,
    SettleRequest,
};
use pg2kv::relay::{BatchId, Campaigned, Effect, Event, Recovered, SweepFailure};

use super::checks::Checked;
use super::database::{Address, Election, Row, number, sync_id};
use super::kv;
use super::mutants::Mutant;
use super::world::{What, World, failure};

/// Names in one page of a list.
pub(super) const LIST_PAGE: usize = 5;
/// How long an approval of deletes lasts.
pub(super) const APPROVAL: Duration = Duration::from_secs(10);
/// A statement of the daemon gives up after this long.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(3);

/// A statement, or the first of a row of them.
#[derive(Debug)]
pub(super) enum Job {
    Campaign {
        began: Mono,
    },
    Heartbeat {
        began: Mono,
    },
    SetBell {
        limit: usize,
    },
    Look {
        limit: usize,
    },
    Fetch {
        mode: FetchMode,
        limit: usize,
        writers: bool,
    },
    Claim {
        batch: BatchId,
        request: ClaimRequest,
    },
    Read {
        batch: BatchId,
        request: ClaimRequest,
        claim: Option<ClaimId>,
    },
    EarlyRead {
        batch: BatchId,
        request: ClaimRequest,
    },
    LateClaim {
        batch: BatchId,
        request: ClaimRequest,
        rows: Result<Vec<Option<Row>>, FailureKind>,
    },
    Settle(SettleRequest),
    Compact(Vec<OutboxId>),
    Start {
        sync: SyncId,
        reason: String,
        markers: Vec<OutboxId>,
    },
    Walk {
        sync: SyncId,
        after: Option<String>,
        limit: usize,
    },
    Advance {
        sync: SyncId,
        step: BackfillStep,
    },
    Expand {
        sync: SyncId,
        markers: Vec<Marker>,
        limit: usize,
    },
    Release,
}

impl Job {
    /// The event that tells of its failure.
    fn failed(self, failure: Failure) -> Event {
        match self {
            Self::Campaign { .. } => Event::Campaigned(Campaigned::Failed(failure)),
            Self::Heartbeat { .. } => Event::Heartbeat(Err(failure)),
            Self::SetBell { .. } | Self::Look { .. } | Self::Fetch { .. } => {
                Event::Fetched(Err(failure))
            }
            Self::Claim { batch, .. }
            | Self::EarlyRead { batch, .. }
            | Self::LateClaim { batch, .. } => Event::Prepared {
                batch,
                claim: None,
                read: Err(failure),
            },
            Self::Read { batch, claim, .. } => Event::Prepared {
                batch,
                claim,
                read: Err(failure),
            },
            Self::Settle(_) => Event::Settled(Err(failure)),
            Self::Compact(ids) => Event::Compacted(Err((ids, failure))),
            Self::Start { sync, .. } => Event::BackfillStarted {
                sync,
                result: Err(failure),
            },
            Self::Walk { sync, .. } => Event::Walked {
                sync,
                result: Err(failure),
            },
            Self::Advance { sync, .. } => Event::Advanced {
                sync,
                result: Err(failure),
            },
            Self::Expand { sync, .. } => Event::Expanded {
                sync,
                result: Err(failure),
            },
            Self::Release => Event::Released,
        }
    }

    /// Whether it ends with a COMMIT whose reply may be lost.
    fn commits(&self) -> bool {
        matches!(
            self,
            Self::Claim { .. }
                | Self::LateClaim { .. }
                | Self::Settle(_)
                | Self::Compact(_)
                | Self::Start { .. }
                | Self::Advance { .. }
                | Self::Expand { .. }
        )
    }
}

impl World {
    /// An effect leaves the process.
    pub(super) fn leave(&mut self, from: Address, effect: Effect) -> Checked {
        let job = match effect {
            Effect::Campaign => Job::Campaign { began: self.now },
            Effect::Heartbeat(_) => Job::Heartbeat { began: self.now },
            Effect::Fetch {
                mode: FetchMode::FallingAsleep,
                limit,
            } => Job::SetBell { limit },
            Effect::Fetch { mode, limit } => Job::Fetch {
                mode,
                limit,
                writers: false,
            },
            Effect::Prepare { batch, request } if self.is(Mutant::ReadBeforeClaim) => {
                Job::EarlyRead { batch, request }
            }
            Effect::Prepare { batch, request } if request.claim.is_empty() => Job::Read {
                batch,
                request,
                claim: None,
            },
            Effect::Prepare { batch, request } => Job::Claim { batch, request },
            Effect::Settle(request) => Job::Settle(request),
            Effect::Compact(ids) => Job::Compact(ids),
            Effect::StartBackfill {
                sync,
                reason,
                markers,
            } => Job::Start {
                sync,
                reason,
                markers,
            },
            Effect::Walk { sync, after, limit } => Job::Walk { sync, after, limit },
            Effect::Advance { sync, step } => Job::Advance { sync, step },
            Effect::Expand {
                sync,
                markers,
                limit,
            } => Job::Expand {
                sync,
                markers,
                limit,
            },
            Effect::Release => Job::Release,
            Effect::Write {
                request,
                sync,
                batch,
                trusted_until,
            } => {
                return self.send(from, request, usize::from(sync.0), batch, trusted_until);
            }
            Effect::Sweep { sync, cursor } => return self.ask_for_page(from, sync, cursor, false),
            Effect::Inspect { sync, cursor } => return self.ask_for_page(from, sync, cursor, true),
            Effect::Audit { sync, .. } => {
                self.processes[from.process].audited = Some((from, usize::from(sync.0)));
                self.deliver(from, Event::PageWanted { sync, failed: None });
                return Ok(());
            }
            Effect::AllowPage { .. } => {
                let audited = self.processes[from.process].audited;
                if let Some((_, sync)) = audited.filter(|(address, _)| *address == from) {
                    let at = self.reaches(from.process) + self.delay() * 4;
                    self.at(at, What::Compare { from, sync });
                }
                return Ok(());
            }
            Effect::Clean { .. } => {
                return Err("nothing is reconfigured here, so no name is retired".to_owned());
            }
            Effect::ReloadToken => {
                if self.processes[from.process].token != self.file_token {
                    self.processes[from.process].token = self.file_token;
                    let at = self.now;
                    self.at(
                        at,
                        What::Deliver {
                            to: from,
                            event: Box::new(Event::TokenChanged),
                        },
                    );
                }
                return Ok(());
            }
            Effect::Abandon => return Ok(()),
        };
        let reaches = self.reaches(from.process);
        if reaches.since(self.now) > STATEMENT_TIMEOUT {
            // The client gives up; nobody knows whether the server saw it.
            let at = self.now + STATEMENT_TIMEOUT;
            let event = Box::new(job.failed(failure(FailureKind::Connection)));
            self.at(at, What::Deliver { to: from, event });
            return Ok(());
        }
        let at = reaches + self.delay();
        self.at(
            at,
            What::Execute {
                from,
                job: Box::new(job),
            },
        );
        Ok(())
    }

    fn ask_for_page(
        &mut self,
        from: Address,
        sync: SyncId,
        cursor: Option<String>,
        inspects: bool,
    ) -> Checked {
        let at = self.now + self.delay();
        let list = What::List {
            from,
            sync: usize::from(sync.0),
            cursor: cursor.map(|cursor| cursor.parse().expect("a cursor of the model")),
            inspects,
        };
        self.at(at, list);
        Ok(())
    }

    fn then(&mut self, from: Address, job: Job) {
        let at = self.now + self.delay() / 4;
        self.at(
            at,
            What::Execute {
                from,
                job: Box::new(job),
            },
        );
    }

    /// A statement takes effect.
    pub(super) fn execute(&mut self, from: Address, job: Job) -> Checked {
        let faults = self.plan.faults;
        if !matches!(job, Job::Campaign { .. }) && !self.database.knows(from) {
            self.deliver(from, job.failed(failure(FailureKind::Connection)));
            return Ok(());
        }
        if faults.transient
            && !self.healed
            && self.rng.u32(..20) == 0
            && !matches!(job, Job::Release)
        {
            self.deliver(from, job.failed(failure(FailureKind::Transient)));
            return Ok(());
        }
        if faults.lost_replies && !self.healed && job.commits() && self.rng.u32(..40) == 0 {
            return self.lose_reply(from, job);
        }
        match job {
            Job::Campaign { began } => self.elect(from, began),
            Job::Heartbeat { began } => {
                let result = self.database.heartbeat(self.now, from);
                if result.is_ok() {
                    self.heard(from);
                }
                let far = Duration::from_secs(86_400);
                let began = if self.is(Mutant::TrustForEver) {
                    began + far
                } else {
                    began
                };
                self.deliver(
                    from,
                    Event::Heartbeat(result.map(|()| began).map_err(failure)),
                );
                if self.plan.settings.brake.count > 0 {
                    let (at, facts) = (self.now, self.delete_facts());
                    self.deliver(from, Event::DeletesAsked { at, facts });
                }
            }
            Job::SetBell { limit } => {
                let until = self.now + self.plan.settings.poll_interval * 2;
                self.database.set_bell(until);
                self.then(from, Job::Look { limit });
            }
            Job::Look { limit } => {
                let writers = self.database.has_writers() && !self.is(Mutant::NoWritersCheck);
                self.then(
                    from,
                    Job::Fetch {
                        mode: FetchMode::FallingAsleep,
                        limit,
                        writers,
                    },
                );
            }
            Job::Fetch {
                mode,
                limit,
                writers,
            } => {
                if mode == FetchMode::Awake {
                    self.database.set_bell(Mono::ZERO);
                }
                let mut result = self.database.fetch(self.now, from, limit);
                if let Ok(fetched) = &mut result {
                    fetched.writers = writers;
                }
                self.deliver(from, Event::Fetched(result.map_err(failure)));
            }
            Job::Claim { batch, request } => match self.database.claim(from, &request) {
                Ok(claim) => {
                    if self.is(Mutant::SettledBeforeWritten) {
                        self.database.unclaim(claim);
                    }
                    self.then(
                        from,
                        Job::Read {
                            batch,
                            request,
                            claim: Some(ClaimId(claim)),
                        },
                    );
                }
                Err(kind) => {
                    let read = Err(failure(kind));
                    self.deliver(
                        from,
                        Event::Prepared {
                            batch,
                            claim: None,
                            read,
                        },
                    );
                }
            },
            Job::Read {
                batch,
                request,
                claim,
            } => {
                let rows = self.read(from, &request);
                self.prepared(from, batch, &request, claim, rows);
            }
            Job::EarlyRead { batch, request } => {
                let rows = self.read(from, &request);
                self.then(
                    from,
                    Job::LateClaim {
                        batch,
                        request,
                        rows,
                    },
                );
            }
            Job::LateClaim {
                batch,
                request,
                rows,
            } => {
                let claim = if request.claim.is_empty() {
                    Ok(None)
                } else {
                    self.database.claim(from, &request).map(Some)
                };
                match claim {
                    Ok(claim) => self.prepared(from, batch, &request, claim.map(ClaimId), rows),
                    Err(kind) => {
                        let read = Err(failure(kind));
                        self.deliver(
                            from,
                            Event::Prepared {
                                batch,
                                claim: None,
                                read,
                            },
                        );
                    }
                }
            }
            Job::Settle(request) => {
                let result = self.database.settle(self.now, from, &request);
                self.deliver(from, Event::Settled(result.map_err(failure)));
            }
            Job::Compact(ids) => {
                let result = self.database.compact(from, &ids);
                self.deliver(
                    from,
                    Event::Compacted(result.map_err(|kind| (ids, failure(kind)))),
                );
            }
            Job::Start {
                sync,
                reason,
                markers,
            } => {
                let begun = self.database.start_backfill(
                    self.now,
                    from,
                    usize::from(sync.0),
                    &reason,
                    &markers,
                );
                if self.is(Mutant::OutdatedNotReadAgain) && matches!(begun, Ok(Some(_))) {
                    let on_their_way = self.processes[from.process].checks.on_their_way();
                    let (sync, places) = (usize::from(sync.0), on_their_way);
                    self.outdated.extend(places.filter(|(of, _)| *of == sync));
                }
                match begun {
                    Ok(Some(backfill)) => self.deliver(
                        from,
                        Event::BackfillStarted {
                            sync,
                            result: Ok(backfill),
                        },
                    ),
                    Ok(None) => {}
                    Err(kind) => self.deliver(
                        from,
                        Event::BackfillStarted {
                            sync,
                            result: Err(failure(kind)),
                        },
                    ),
                }
            }
            Job::Walk { sync, after, limit } => {
                let broken = self.relation_broken[usize::from(sync.0)];
                let walked = self
                    .database
                    .walk(from, usize::from(sync.0), after.as_deref(), limit);
                let result = if broken {
                    Err(FailureKind::Relation)
                } else {
                    walked
                };
                self.deliver(
                    from,
                    Event::Walked {
                        sync,
                        result: result.map_err(failure),
                    },
                );
            }
            Job::Advance { sync, step } => {
                let result = self.database.advance(from, usize::from(sync.0), &step);
                self.deliver(
                    from,
                    Event::Advanced {
                        sync,
                        result: result.map(|()| step).map_err(failure),
                    },
                );
            }
            Job::Expand {
                sync,
                markers,
                limit,
            } => {
                let of = usize::from(sync.0);
                let result = if self.relation_broken[of] {
                    Err(FailureKind::Relation)
                } else {
                    self.database.expand(from, of, &markers, limit)
                };
                let result = result.map_err(failure);
                self.deliver(from, Event::Expanded { sync, result });
            }
            Job::Release => {
                self.database.close(from);
                self.deliver(from, Event::Released);
            }
        }
        Ok(())
    }

    /// COMMIT took effect, or did not, and the connection is gone either way.
    fn lose_reply(&mut self, from: Address, job: Job) -> Checked {
        if self.rng.bool() {
            let kept = match &job {
                Job::Claim { request, .. } | Job::LateClaim { request, .. } => {
                    self.database.claim(from, request).map(|_| ())
                }
                Job::Settle(request) => self.database.settle(self.now, from, request),
                Job::Compact(ids) => self.database.compact(from, ids),
                Job::Start {
                    sync,
                    reason,
                    markers,
                } => self
                    .database
                    .start_backfill(self.now, from, usize::from(sync.0), reason, markers)
                    .map(|_| ()),
                Job::Advance { sync, step } => {
                    self.database.advance(from, usize::from(sync.0), step)
                }
                Job::Expand {
                    sync,
                    markers,
                    limit,
                } => {
                    let of = usize::from(sync.0);
                    self.database.expand(from, of, markers, *limit).map(|_| ())
                }
                _ => Ok(()),
            };
            self.tell(|| format!("reply to COMMIT lost: {kept:?}"));
        }
        let kind = if self.is(Mutant::LostReplyIsRollback) {
            FailureKind::Transient
        } else {
            FailureKind::Connection
        };
        self.deliver(from, job.failed(failure(kind)));
        Ok(())
    }

    fn elect(&mut self, from: Address, began: Mono) {
        let campaigned = match self.database.campaign(self.now, from) {
            Err(kind) => Campaigned::Failed(failure(kind)),
            Ok(None) => Campaigned::Standby,
            Ok(Some(election)) => {
                let Election {
                    epoch,
                    claims,
                    backfills,
                    dead,
                    new_syncs,
                } = election;
                self.heard(from);
                let state = &mut self.processes[from.process];
                state.checks.recovered = claims.iter().map(|(_, _, keys)| keys.len()).sum();
                let key = |sync: usize, key: usize| self.database.key((sync, key));
                let recovered = Recovered {
                    claims: claims
                        .into_iter()
                        .map(|(id, sync, keys)| {
                            let keys = keys.into_iter().map(|of| key(sync, of)).collect();
                            (ClaimId(id), sync_id(sync), keys)
                        })
                        .collect(),
                    backfills,
                    dead,
                    new_syncs,
                    deletes: self.delete_facts(),
                    not_looked_at: self.database.not_looked_at(),
                    audits: (0..self.syncs())
                        .map(|sync| AuditFacts {
                            sync: sync_id(sync),
                            age: Duration::ZERO,
                            owed: None,
                        })
                        .collect(),
                    ..Recovered::default()
                };
                Campaigned::Elected {
                    epoch: Epoch(epoch),
                    began,
                    recovered,
                }
            }
        };
        self.deliver(from, Event::Campaigned(campaigned));
    }

    /// A person approves of deletes now and then, and of all of them in the end.
    fn delete_facts(&mut self) -> Vec<DeleteFacts> {
        let braked = self.plan.settings.brake.count > 0;
        let some = braked && !self.healed && self.rng.u32(..10) == 0;
        let approved = (some && !self.plan.nobody_approves) || (braked && self.healed);
        (0..self.syncs())
            .map(|sync| DeleteFacts {
                sync: sync_id(sync),
                keys: Some(self.plan.keys as u64),
                approved_for: approved.then_some(APPROVAL),
                held: false,
                lately: self.database.deleted_lately(self.now, sync),
            })
            .collect()
    }

    /// The server heard of the leader: it waits a ttl from now.
    fn heard(&mut self, from: Address) {
        self.processes[from.process].heard = self.now;
        let at = self.now + self.plan.settings.lease_ttl;
        self.at(at, What::LeaseCheck);
    }

    fn read(
        &mut self,
        from: Address,
        request: &ClaimRequest,
    ) -> Result<Vec<Option<Row>>, FailureKind> {
        let sync = usize::from(request.sync.0);
        if self.relation_broken[sync] {
            return Err(FailureKind::Relation);
        }
        let mut rows = Vec::new();
        for (index, key) in request.keys.iter().enumerate() {
            let place = (sync, number(key));
            let mut row = self.database.row(place);
            if self.outdated.remove(&place) && !request.claim.contains(&index) {
                // Nothing but the backfill asks for it: whatever was written stays.
                row = self.kv.get(place).map(Row::Good);
            }
            let same = match super::database::wanted(row) {
                super::database::Wanted::Pair(content) => self.kv.get(place) == Some(content),
                super::database::Wanted::Nothing => self.kv.get(place).is_none(),
                super::database::Wanted::DeadLetter => true,
            };
            self.latency.read(self.now, from, place, same);
            rows.push(row);
        }
        if rows.contains(&Some(Row::Broken)) {
            return Err(FailureKind::Row);
        }
        if self.plan.faults.short_reads && self.rng.u32(..10) == 0 {
            rows.truncate(self.rng.usize(1..=rows.len()));
        }
        Ok(rows)
    }

    fn prepared(
        &mut self,
        from: Address,
        batch: BatchId,
        request: &ClaimRequest,
        claim: Option<ClaimId>,
        rows: Result<Vec<Option<Row>>, FailureKind>,
    ) {
        let sync = usize::from(request.sync.0);
        let read = rows
            .map(|rows| {
                let keys = request.keys.iter().map(number);
                rows.into_iter()
                    .zip(keys)
                    .map(|(row, key)| kv::render((sync, key), row))
                    .collect()
            })
            .map_err(failure);
        self.deliver(from, Event::Prepared { batch, claim, read });
    }

    /// A page of names is listed, and its names are turned back into keys or only looked at.
    pub(super) fn list(
        &mut self,
        from: Address,
        sync: usize,
        cursor: Option<usize>,
        inspects: bool,
    ) {
        let token = self.processes[from.process].token;
        let mut refusal = self.kv.refusal(sync, token);
        if self.plan.faults.throttled && !self.healed && self.rng.u32(..10) == 0 {
            refusal = Some(pg2kv::change::Outcome::Throttled(Some(
                Duration::from_secs(3),
            )));
        }
        if self.plan.faults.ambiguous && !self.healed && self.rng.u32(..10) == 0 {
            refusal = Some(pg2kv::change::Outcome::Ambiguous(
                pg2kv::change::AmbiguousReason::ServerError,
            ));
        }
        if inspects {
            let refusal = refusal.map(|outcome| self.answer(from, sync, outcome));
            return self.inspect(from, sync, cursor, refusal);
        }
        let result = match refusal {
            Some(outcome) => Err(SweepFailure::Kv(self.answer(from, sync, outcome))),
            None => {
                let (mut page, next) = self.kv.list(sync, cursor, LIST_PAGE);
                let listed = page.len();
                if !self.is(Mutant::MarksIgnored) {
                    page.retain(|(key, _)| !self.kv.is_strange((sync, *key)));
                }
                let foreign = (listed - page.len()) as u64;
                Ok(pg2kv::relay::Swept {
                    keys: page
                        .into_iter()
                        .map(|(key, content)| {
                            let hash = pg2kv::change::ContentHash(u128::from(content));
                            (self.database.key((sync, key)), hash)
                        })
                        .collect(),
                    foreign,
                    unmade: None,
                    next: next.map(|key| key.to_string()),
                })
            }
        };
        let at = self.now + self.delay() * 8;
        let event = Box::new(Event::Swept {
            sync: sync_id(sync),
            result,
        });
        self.at(at, What::Deliver { to: from, event });
    }
}
