//! What the relay asked for, done: each effect is one task that ends in one event.
//!
//! Owns the translation between the relay's words and the rooms at the edges. Retries nothing: what
//! came of it goes back to the relay.

use std::sync::Arc;

use super::audits::Desk;
use super::sizes::Sizes;
use super::{SyncSpec, clock};
use crate::change::{Answer, Epoch, Mono, NotSentReason, Outcome, Rendered, SyncId};
use crate::document;
use crate::ledger::{ClaimRequest, Failure, FailureKind};
use crate::relay::{Campaigned, Effect, Event, Inspected, Recovered, SweepFailure, Swept};
use crate::sink::kv::KvClient;
use crate::source::lease::Candidate;
use crate::source::session::{Claimed, PrepareError};
use crate::source::{self, Doorbell, Gauges, Session};

/// What every task may use.
pub(super) struct World {
    pub(super) source: source::Settings,
    pub(super) syncs: Vec<SyncSpec>,
    pub(super) kv: KvClient,
    pub(super) holder: String,
    pub(super) desk: Desk,
    pub(super) sizes: Sizes,
}

/// What a task ends in.
pub(super) enum Done {
    /// Something for the relay.
    Event(Event),
    /// The end of a campaign, with the connections to keep.
    Campaigned {
        leadership: Option<Box<Leadership>>,
        campaigned: Campaigned,
    },
    /// Gauges of the ledger, and when it was asked.
    Gauges(Mono, Gauges),
    /// Nothing came of it, and nothing follows.
    Nothing,
}

/// The connections of a leader, or of a standby that will ask again.
pub(super) struct Leadership {
    candidate: Arc<Candidate>,
    leading: Option<(Arc<Session>, Doorbell)>,
}

/// What the tasks of a leader use.
#[derive(Clone)]
pub(super) struct Leader {
    candidate: Arc<Candidate>,
    session: Arc<Session>,
}

impl Leadership {
    /// The connection to campaign with again.
    pub(super) fn into_candidate(self) -> Option<Candidate> {
        Arc::into_inner(self.candidate)
    }

    pub(super) fn leader(&self) -> Option<Leader> {
        self.leading.as_ref().map(|(session, _)| Leader {
            candidate: Arc::clone(&self.candidate),
            session: Arc::clone(session),
        })
    }

    /// The next ring, or the loss of a connection. Cancel-safe.
    pub(super) async fn next(&mut self) -> Event {
        // A standby finds out when it asks again.
        let Some((session, doorbell)) = &mut self.leading else {
            return std::future::pending().await;
        };
        let lost = |which: &str| {
            Event::SessionLost(Failure {
                kind: FailureKind::Connection,
                detail: format!("the {which} connection to Postgres is gone"),
                hint: None,
            })
        };
        tokio::select! {
            rung = doorbell.rung() => match rung {
                Some(()) => Event::Rung,
                None => lost("listening"),
            },
            () = self.candidate.closed() => lost("lease"),
            () = session.closed() => lost("working"),
        }
    }

    /// Gives the lease up, so that a standby need not wait for it to run out.
    pub(super) async fn release(self) {
        drop(self.leading);
        if let Some(candidate) = Arc::into_inner(self.candidate) {
            candidate.release().await;
        }
    }
}

impl World {
    pub(super) async fn campaign(&self, candidate: Option<Candidate>) -> Done {
        match self.try_campaign(candidate).await {
            Ok((leadership, campaigned)) => Done::Campaigned {
                leadership: Some(Box::new(leadership)),
                campaigned,
            },
            Err(error) => Done::Campaigned {
                leadership: None,
                campaigned: Campaigned::Failed(error.into()),
            },
        }
    }

    async fn try_campaign(
        &self,
        candidate: Option<Candidate>,
    ) -> Result<(Leadership, Campaigned), source::Error> {
        let began = clock::now();
        let mut candidate = match candidate {
            Some(candidate) => candidate,
            None => Candidate::connect(&self.source).await?,
        };
        let Some(epoch) = candidate.campaign(&self.holder).await? else {
            let leadership = Leadership {
                candidate: Arc::new(candidate),
                leading: None,
            };
            return Ok((leadership, Campaigned::Standby));
        };
        let sources: Vec<_> = self.syncs.iter().map(|sync| sync.source.clone()).collect();
        let (session, doorbell, recovered) = Session::open(&self.source, &sources, epoch).await?;
        let leadership = Leadership {
            candidate: Arc::new(candidate),
            leading: Some((Arc::new(session), doorbell)),
        };
        Ok((
            leadership,
            Campaigned::Elected {
                epoch,
                began,
                recovered: recovered_of(recovered),
            },
        ))
    }

    /// Runs an effect that ends in exactly one event.
    pub(super) async fn run(&self, leader: Leader, effect: Effect) -> Event {
        let session = &leader.session;
        match effect {
            Effect::Heartbeat(epoch) => heartbeat(&leader, epoch).await,
            Effect::Fetch { mode, limit } => {
                Event::Fetched(session.fetch(mode, limit).await.map_err(Failure::from))
            }
            Effect::Prepare { batch, request } => match self.prepare(session, &request).await {
                Ok(claimed) => {
                    self.sizes.note(request.sync, &claimed.rows);
                    Event::Prepared {
                        batch,
                        claim: claimed.claim,
                        read: Ok(claimed.rows),
                    }
                }
                Err(failed) => Event::Prepared {
                    batch,
                    claim: failed.claim,
                    read: Err(failed.error.into()),
                },
            },
            Effect::Write {
                request,
                sync,
                mut batch,
                trusted_until,
            } => {
                // The last look before the bytes go: this task may have been frozen since the relay
                // asked for it.
                let answer = if clock::now() < trusted_until {
                    self.kv.send(&self.sync(sync).namespace, &mut batch).await
                } else {
                    not_trusted()
                };
                let until_midnight = clock::until_midnight();
                Event::Answered {
                    request,
                    batch,
                    answer,
                    until_midnight,
                }
            }
            Effect::Settle(request) => {
                Event::Settled(session.settle(&request).await.map_err(Failure::from))
            }
            Effect::Compact(ids) => Event::Compacted(match session.compact(&ids).await {
                Ok(()) => Ok(()),
                Err(error) => Err((ids, error.into())),
            }),
            Effect::StartBackfill {
                sync,
                reason,
                markers,
            } => Event::BackfillStarted {
                sync,
                result: session
                    .start_backfill(sync, &reason, &markers)
                    .await
                    .map_err(Failure::from),
            },
            Effect::Walk { sync, after, limit } => Event::Walked {
                sync,
                result: session
                    .walk(sync, after.as_deref(), limit)
                    .await
                    .map_err(Failure::from),
            },
            Effect::Sweep { sync, cursor } => Event::Swept {
                sync,
                result: self.sweep(&leader, sync, cursor).await,
            },
            Effect::Advance { sync, step } => Event::Advanced {
                sync,
                result: session
                    .advance_backfill(sync, &step)
                    .await
                    .map(|()| step)
                    .map_err(Failure::from),
            },
            Effect::Inspect { sync, cursor } => Event::Inspected {
                sync,
                result: self.inspect(&leader, sync, cursor).await,
            },
            Effect::Expand {
                sync,
                markers,
                limit,
            } => Event::Expanded {
                sync,
                result: session
                    .expand(sync, &markers, limit)
                    .await
                    .map_err(Failure::from),
            },
            Effect::Clean { old, step } => Event::Cleaned {
                old,
                result: self.clean(session.epoch(), old, step).await,
            },
            Effect::Audit { sync, reason } => Event::Audited {
                sync,
                result: self.audit(session.epoch(), sync, &reason).await,
            },
            // These are the loop's own; it never hands them on.
            Effect::Campaign
            | Effect::AllowPage { .. }
            | Effect::ReloadToken
            | Effect::Abandon
            | Effect::Release => Event::Tick,
        }
    }

    /// Claims and reads, and renders each row while the server goes on with the next.
    async fn prepare(
        &self,
        session: &Session,
        request: &ClaimRequest,
    ) -> Result<Claimed<Rendered>, PrepareError> {
        let template = &self.sync(request.sync).template;
        let owner = session
            .ownership(request.sync)
            .map_err(|error| PrepareError { claim: None, error })?
            .owner;
        let render =
            |row: source::session::Row| document::render(template, owner, &row.columns, row.draft);
        let mut claimed = session.prepare_with(request, render).await?;
        for (rendered, key) in claimed.rows.iter_mut().zip(&request.keys) {
            if let Some(poison) = document::unreadable(key) {
                *rendered = Rendered::Poison(poison);
            }
        }
        Ok(claimed)
    }

    /// One page of the names under the sync's prefix. Only names that the sync wrote become keys:
    /// whatever else stands there is somebody else's.
    async fn sweep(
        &self,
        leader: &Leader,
        sync: SyncId,
        cursor: Option<String>,
    ) -> Result<Swept, SweepFailure> {
        let spec = self.sync(sync);
        let page = self
            .kv
            .list(&spec.namespace, spec.template.prefix(), cursor.as_deref())
            .await
            .map_err(SweepFailure::Kv)?;
        let ledger = |error: source::Error| SweepFailure::Ledger(error.into());
        let ownership = leader.session.ownership(sync).map_err(ledger)?;
        let (mut foreign, mut unmade) = (0, false);
        let (mut columns, mut listed) = (Vec::new(), Vec::new());
        for pair in page.pairs {
            match (ownership.hash(pair.mark), spec.template.reverse(&pair.name)) {
                (Some(hash), Some(values)) => {
                    listed.push((hash, pair.mark));
                    columns.push(values);
                }
                _ => foreign += 1,
            }
        }
        let keys = leader
            .session
            .keys_of(sync, &columns)
            .await
            .map_err(ledger)?;
        let mut found = Vec::with_capacity(keys.len());
        for (key, (hash, mark)) in keys.into_iter().zip(listed) {
            match key {
                Some(key) => found.push((key, hash)),
                // Its own, and yet of no key: the types of its columns were others.
                None if ownership.wrote(mark) => unmade = true,
                None => foreign += 1,
            }
        }
        let unmade = if unmade {
            leader.session.retire(sync).await.map_err(ledger)?
        } else {
            None
        };
        Ok(Swept {
            keys: found,
            foreign,
            unmade,
            next: page.next,
        })
    }

    /// Looks on one page of the names under the sync's prefix for pairs of another installation that
    /// have a name of this sync: its keys, by their types, make it. After the last page notes in the
    /// ledger that there are none.
    async fn inspect(
        &self,
        leader: &Leader,
        sync: SyncId,
        cursor: Option<String>,
    ) -> Result<Inspected, SweepFailure> {
        let ledger = |error: source::Error| SweepFailure::Ledger(error.into());
        let (spec, session) = (self.sync(sync), &leader.session);
        // Somebody may have adopted the other one since.
        session.reload_installation().await.map_err(ledger)?;
        let ownership = session.ownership(sync).map_err(ledger)?;
        let page = self
            .kv
            .list(&spec.namespace, spec.template.prefix(), cursor.as_deref())
            .await
            .map_err(SweepFailure::Kv)?;
        let (others, columns): (Vec<_>, Vec<_>) = page
            .pairs
            .into_iter()
            .filter_map(|listed| {
                let other = ownership.other(listed.mark)?;
                Some((other, spec.template.reverse(&listed.name)?))
            })
            .unzip();
        if !columns.is_empty() {
            let keys = session.keys_of(sync, &columns).await.map_err(ledger)?;
            let mut theirs = others.into_iter().zip(keys);
            if let Some((other, _)) = theirs.find(|(_, key)| key.is_some()) {
                return Ok(Inspected::Taken(other));
            }
        }
        Ok(match page.next {
            Some(cursor) => Inspected::Next(cursor),
            None => {
                session.note_free(sync).await.map_err(ledger)?;
                Inspected::Free
            }
        })
    }

    pub(super) fn sync(&self, id: SyncId) -> &SyncSpec {
        &self.syncs[usize::from(id.0)]
    }
}

async fn heartbeat(leader: &Leader, epoch: Epoch) -> Event {
    // Trust counts from before the question: the answer may take long.
    let began = clock::now();
    Event::Heartbeat(match leader.candidate.heartbeat(epoch).await {
        Ok(()) => Ok(began),
        Err(error) => Err(error.into()),
    })
}

pub(super) async fn examine(leader: Leader) -> Done {
    let examined = leader.session.examine().await;
    Done::Event(Event::Examined(examined.map_err(Failure::from)))
}

/// `held`: keys of each sync that wait for approval of their deletes.
pub(super) async fn gauges(leader: Leader, held: Vec<(SyncId, Option<u64>)>) -> Done {
    let began = clock::now();
    match leader.session.gauges().await {
        Ok(gauges) => {
            if let Err(error) = leader.session.note_held(&held).await {
                tracing::debug!(%error, "what is held could not be noted");
            }
            Done::Gauges(began, gauges)
        }
        Err(error) => {
            tracing::debug!(%error, "the gauges of the ledger could not be read");
            Done::Nothing
        }
    }
}

pub(super) fn not_trusted() -> Answer {
    Answer {
        outcome: Outcome::NotSent(NotSentReason::Fenced),
        limit: None,
        status: None,
        detail: "not sent: the lease may have passed to another process".to_owned(),
    }
}

fn recovered_of(found: source::session::Recovered) -> Recovered {
    Recovered {
        claims: found.claims,
        backfills: found.backfills,
        dead: found.dead,
        new_syncs: found.new_syncs,
        deletes: found.deletes,
        audits: found.audits,
        changed: found.changed,
        retired: found.retired,
        unsure: found.unsure,
        not_looked_at: found.not_looked_at,
    }
}
