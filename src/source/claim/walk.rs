//! Walks: the keys of a table chunk by chunk, the next chunk while the one before is written.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;
use tokio_util::task::AbortOnDropHandle;

use super::super::SyncSource;
use super::super::error::{Error, Kind, Place};
use super::super::link::{BEGIN, ReadLink};
use super::{Prepared, Reader};
use crate::change::{Key, SyncId};
use crate::ledger::{BackfillStep, ClaimRequest, Walked};

/// What was walked ahead longer ago is walked again: it may have waited for KV since.
const AHEAD_MAX: Duration = Duration::from_secs(10);

/// Where a walk goes on, and how far.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    sync: SyncId,
    after: Option<String>,
    limit: usize,
}

/// The walk that is under way, one chunk ahead of the relay.
///
/// What changes after it was read has rows in the outbox, as what changes after any walk has.
#[derive(Default)]
pub(super) struct Ahead {
    /// Keys that the relay asked for last.
    limit: usize,
    next: Option<Walking>,
}

struct Walking {
    stretch: Stretch,
    began: Instant,
    task: AbortOnDropHandle<Result<Vec<Key>, Error>>,
}

impl Reader {
    /// See `Session::walk`.
    pub(crate) async fn walk(
        &self,
        sync: &SyncSource,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Walked, Error> {
        let stretch = Stretch {
            sync: sync.id,
            after: after.map(str::to_owned),
            limit,
        };
        let keys = match self.walked_ahead(&stretch).await {
            Some(keys) => keys,
            None => {
                let prepared = self.plan(sync).await?;
                let keys = walk(&self.link, &prepared, &doing(sync), &stretch).await;
                if let Err(error) = &keys {
                    self.forget(sync, error).await;
                }
                keys?
            }
        };
        let ended = keys.len() < limit.max(1);
        let position = keys
            .last()
            .filter(|_| !ended)
            .map(|key| key.as_str().to_owned());
        Ok(Walked { keys, position })
    }

    async fn walked_ahead(&self, stretch: &Stretch) -> Option<Vec<Key>> {
        let next = {
            let mut ahead = self.ahead.lock().await;
            ahead.limit = stretch.limit;
            ahead.next.take()
        };
        let next =
            next.filter(|next| next.stretch == *stretch && next.began.elapsed() <= AHEAD_MAX)?;
        // What failed is asked for again, and told then.
        next.task.await.ok()?.ok()
    }

    /// Begins to walk on from where a chunk ended that was claimed just now.
    pub(super) async fn walk_ahead(&self, sync: &SyncSource, request: &ClaimRequest) {
        let Some(BackfillStep::Rows { position, .. }) = &request.backfill else {
            return;
        };
        let Ok(prepared) = self.plan(sync).await else {
            return;
        };
        let mut ahead = self.ahead.lock().await;
        let stretch = Stretch {
            sync: sync.id,
            after: Some(position.clone()),
            limit: ahead.limit,
        };
        let (link, doing, next) = (self.link.clone(), doing(sync), stretch.clone());
        let walk = async move { walk(&link, &prepared, &doing, &next).await };
        let task = AbortOnDropHandle::new(tokio::spawn(walk));
        ahead.next = Some(Walking {
            stretch,
            began: Instant::now(),
            task,
        });
    }
}

fn doing(sync: &SyncSource) -> String {
    format!("walking {} for sync {}", sync.table, sync.name)
}

async fn walk(
    link: &ReadLink,
    prepared: &Prepared,
    doing: &str,
    stretch: &Stretch,
) -> Result<Vec<Key>, Error> {
    let plan = &prepared.plan;
    let keys = walk_by(&plan.walk, link, prepared, doing, stretch).await;
    if keys.as_ref().is_err_and(|error| error.kind() == Kind::Row) {
        return walk_by(&plan.walk_all, link, prepared, doing, stretch).await;
    }
    keys
}

async fn walk_by(
    statement: &Statement,
    link: &ReadLink,
    prepared: &Prepared,
    doing: &str,
    stretch: &Stretch,
) -> Result<Vec<Key>, Error> {
    let limit = i64::try_from(stretch.limit.max(1)).unwrap_or(i64::MAX);
    let parameters: [&(dyn ToSql + Sync); 2] = [&stretch.after, &limit];
    let client = link.client();
    let failed = |error| Error::from_driver(Place::Relation, doing, error);
    let rows = async { client.query(statement, &parameters).await.map_err(failed) };
    let rows = link.read_at_once(doing, 1, BEGIN, rows).await?;
    rows.iter()
        .map(|row| prepared.plan.walked_key.key(row))
        .collect::<Result<_, _>>()
        .map_err(failed)
}
