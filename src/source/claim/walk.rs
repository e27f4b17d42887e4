//! Walks: the keys of a table chunk by chunk, the next chunk while the one before is written.

use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;
use tokio_util::task::AbortOnDropHandle;

use super::super::SyncSource;
use super::super::error::{Error, Kind, Place};
use super::super::key_bytes::{Encoding, Via, undecodable};
use super::super::link::{BEGIN, ReadLink};
use super::super::rows::position_of;
use super::{Prepared, Reader};
use crate::change::{Key, SyncId};
use crate::ledger::{BackfillStep, ClaimRequest, Walked};

/// What was walked ahead longer ago is walked again: it may have waited for KV since.
const AHEAD_MAX: Duration = Duration::from_secs(10);

/// Texts of keys that one chunk reads at most.
const CHUNK_MAX_BYTES: usize = 8 << 20;

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
    task: AbortOnDropHandle<Result<Walked, Error>>,
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
        if let Some(walked) = self.walked_ahead(&stretch).await {
            return Ok(walked);
        }
        let prepared = self.plan(sync).await?;
        match walk(&self.link, &prepared, &doing(sync), &stretch).await {
            Ok(walked) => Ok(walked),
            Err(error) => Err(self.blame(&prepared, sync, error).await),
        }
    }

    async fn walked_ahead(&self, stretch: &Stretch) -> Option<Walked> {
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
) -> Result<Walked, Error> {
    let plan = &prepared.plan;
    let mut walked = walk_by(&plan.walk, link, prepared, doing, stretch).await;
    if walked.as_ref().is_err_and(Error::is_of_rows) {
        walked = walk_by(&plan.walk_all, link, prepared, doing, stretch).await;
    }
    let chunk = walked?;
    let encoding = link.encoding();
    let position = match chunk.position {
        _ if chunk.ended => None,
        Some(key) => position_of(encoding, &key),
        None => None,
    };
    if position.is_none() && !chunk.ended {
        let what =
            "there is no key among the next rows from which to go on: all of them are too long";
        return Err(Error::new(Kind::Relation, doing, what)
            .with_hint("give these rows shorter keys, or leave them out with `where`"));
    }
    let texts = encoding.texts(Via::Reads(link), chunk.unknown).await?;
    let mut texts = texts.into_iter();
    let keys = chunk.keys.into_iter().map(|key| match key {
        Found::Key(key) => key,
        Found::Bytes(undecodable) => texts.next().flatten().map_or(undecodable, Key::new),
    });
    let keys = keys.collect();
    Ok(Walked { keys, position })
}

/// What a statement of a walk gave.
#[derive(Default)]
struct Chunk {
    keys: Vec<Found>,
    /// Texts of the keys that only the server can tell, in their order.
    unknown: Vec<Vec<u8>>,
    /// The last key that can be gone on from.
    position: Option<Vec<u8>>,
    ended: bool,
}

enum Found {
    Key(Key),
    /// The key, where the server cannot tell its text either.
    Bytes(Key),
}

/// Reads until it has as many keys as are wanted, or [`CHUNK_MAX_BYTES`] of them.
async fn walk_by(
    statement: &Statement,
    link: &ReadLink,
    prepared: &Prepared,
    doing: &str,
    stretch: &Stretch,
) -> Result<Chunk, Error> {
    let wanted = stretch.limit.max(1);
    let limit = i64::try_from(wanted).unwrap_or(i64::MAX);
    let parameters: Vec<&(dyn ToSql + Sync)> = vec![&stretch.after, &limit];
    let client = link.client();
    let encoding = link.encoding();
    let failed = |error| Error::from_driver(Place::Rows, doing, error);
    let read = async {
        let rows = client.query_raw(statement, parameters).await;
        let mut rows = pin!(rows.map_err(failed)?);
        let (mut chunk, mut bytes) = (Chunk::default(), 0);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            let row = prepared.plan.walked_key.row(&row).map_err(failed)?;
            let text = row.bytes.unwrap_or_default();
            bytes += text.len();
            chunk
                .keys
                .push(match (row.oversized, encoding.text(&text)) {
                    (Some(key), _) => Found::Key(key),
                    (None, Some(text)) => Found::Key(Key::new(text)),
                    (None, None) if encoding == Encoding::Other => {
                        chunk.unknown.push(text.clone());
                        Found::Bytes(undecodable(&text))
                    }
                    (None, None) => Found::Key(undecodable(&text)),
                });
            if !text.is_empty() {
                chunk.position = Some(text);
            }
            if bytes > CHUNK_MAX_BYTES {
                return Ok(chunk);
            }
        }
        chunk.ended = chunk.keys.len() < wanted;
        Ok(chunk)
    };
    link.read_at_once(doing, 1, BEGIN, read).await
}
