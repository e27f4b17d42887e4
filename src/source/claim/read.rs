//! The reads: by key, or as a run where keys follow one another.

use std::pin::pin;
use std::sync::atomic::Ordering;

use futures_util::TryStreamExt as _;
use tokio_postgres::types::ToSql;

use super::super::SyncSource;
use super::super::error::{Error, Kind, Place};
use super::super::rows::{KeyTexts, Places, RowPlace};
use super::super::session::Row;
use super::{Prepared, Reader};
use crate::change::Draft;

/// Statements of [`Reader::read`] at most: two transactions.
pub(super) const STATEMENTS: u32 = 6;

/// What one read gave.
pub(super) struct Read<T> {
    /// Of the first keys, one for each.
    pub(super) rows: Vec<T>,
    pub(super) bytes: usize,
    /// Bytes that the server made, those that it kept included.
    made: u64,
    /// It stopped before the end of the keys that were asked for.
    pub(super) full: bool,
}

impl<T> Read<T> {
    fn of(keys: usize) -> Self {
        Self {
            rows: Vec::with_capacity(keys),
            bytes: 0,
            made: 0,
            full: false,
        }
    }

    /// Whether there is room for the draft. The first has it, whatever its size.
    fn takes(&mut self, draft: Option<&Draft>, max_bytes: usize) -> bool {
        let size = draft.map_or(0, Draft::weight);
        if !self.rows.is_empty() && self.bytes + size > max_bytes {
            self.full = true;
            return false;
        }
        self.bytes += size;
        self.made += draft.map_or(0, Draft::made);
        true
    }
}

impl Reader {
    /// Reads documents of the first of `keys`, as many as `max_bytes` allow. `walked`: a walk found
    /// these keys one after the other.
    pub(super) async fn read<T>(
        &self,
        prepared: &Prepared,
        sync: &SyncSource,
        keys: &[&str],
        walked: bool,
        max_bytes: usize,
        make: &(impl Fn(Row) -> T + Sync),
    ) -> Result<Read<T>, Error> {
        let doing = format!("reading {} for sync {}", sync.table, sync.name);
        let texts = KeyTexts::of(keys, prepared.plan.columns);
        if prepared.plan.reads_run(&texts, walked) {
            let run = self.run(prepared, &texts, max_bytes, &doing, make);
            match self.transaction(prepared, &doing, run).await {
                Ok(Some(read)) => return Ok(read),
                // A row that was not asked for may be the one that fails, or that takes too long.
                Ok(None) => {}
                Err(error) if matches!(error.kind(), Kind::Row | Kind::Transient) => {}
                Err(error) => return Err(error),
            }
        }
        let rows = self.rows(prepared, &texts, max_bytes, &doing, make);
        self.transaction(prepared, &doing, rows).await
    }

    /// A read-only transaction of its own: the operator's expressions cannot write. Begin, read and
    /// commit are sent in one go.
    async fn transaction<R>(
        &self,
        prepared: &Prepared,
        doing: &str,
        read: impl Future<Output = Result<R, Error>>,
    ) -> Result<R, Error> {
        let client = self.link.client();
        let (begun, read, committed) = tokio::join!(
            biased;
            client.batch_execute(prepared.plan.begin),
            read,
            client.batch_execute("commit"),
        );
        begun.map_err(|error| Error::from_driver(Place::Own, doing, error))?;
        let read = read?;
        committed.map_err(|error| Error::from_driver(Place::Own, doing, error))?;
        Ok(read)
    }

    async fn rows<T>(
        &self,
        prepared: &Prepared,
        texts: &KeyTexts<'_>,
        max_bytes: usize,
        doing: &str,
        make: &(impl Fn(Row) -> T + Sync),
    ) -> Result<Read<T>, Error> {
        let failed = |error| Error::from_driver(Place::Relation, doing, error);
        let plan = &prepared.plan;
        let mut read = Read::of(texts.len());
        let client = self.link.client();
        let rows = client
            .query_raw(&plan.rows, texts.parameters())
            .await
            .map_err(failed)?;
        let mut rows = pin!(rows);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            let place: i64 = row.try_get(0).map_err(failed)?;
            if usize::try_from(place) != Ok(read.rows.len() + 1) {
                return Err(Error::new(
                    Kind::Relation,
                    doing,
                    "the key columns are not unique: two rows have the same key",
                )
                .with_hint("put a unique index on the key columns"));
            }
            let columns = if plan.echoes {
                texts.owned(read.rows.len())
            } else {
                (1..=plan.columns)
                    .map(|at| {
                        row.try_get::<_, Option<String>>(at)
                            .map(Option::unwrap_or_default)
                    })
                    .collect::<Result<_, _>>()
                    .map_err(failed)?
            };
            let draft = plan.draft(&row).map_err(failed)?;
            if !read.takes(draft.as_ref(), max_bytes) {
                // Dropping the stream lets the driver throw away what still comes.
                break;
            }
            read.rows.push(make(Row { columns, draft }));
        }
        Ok(read)
    }

    /// `None` where rows do not come in the order of the keys.
    async fn run<T>(
        &self,
        prepared: &Prepared,
        texts: &KeyTexts<'_>,
        max_bytes: usize,
        doing: &str,
        make: &(impl Fn(Row) -> T + Sync),
    ) -> Result<Option<Read<T>>, Error> {
        let failed = |error| Error::from_driver(Place::Relation, doing, error);
        let plan = &prepared.plan;
        let (Some(run), Some(last)) = (&plan.run, texts.len().checked_sub(1)) else {
            return Ok(None);
        };
        let (first, last) = (texts.owned(0), texts.owned(last));
        let ends = first.iter().chain(&last);
        let ends: Vec<&(dyn ToSql + Sync)> = ends.map(|text| text as _).collect();
        let gone = |read: &mut Read<T>, until: usize| {
            for place in read.rows.len()..until {
                let columns = texts.owned(place);
                read.rows.push(make(Row {
                    columns,
                    draft: None,
                }));
            }
        };
        let mut read = Read::of(texts.len());
        let mut places = Places::new(texts);
        let client = self.link.client();
        let rows = client
            .query_raw(&run.statement, ends)
            .await
            .map_err(failed)?;
        let mut rows = pin!(rows);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            let place = match places.of(&row).map_err(failed)? {
                RowPlace::Of(place) => place,
                RowPlace::Other => continue,
                RowPlace::Behind => return Ok(None),
            };
            let draft = plan.draft_of_run(&row).map_err(failed)?;
            gone(&mut read, place);
            if !read.takes(draft.as_ref(), max_bytes) {
                return Ok(Some(read));
            }
            let columns = texts.owned(place);
            read.rows.push(make(Row { columns, draft }));
        }
        gone(&mut read, texts.len());
        Ok(Some(read))
    }
}

impl Prepared {
    /// How many of `keys` to read at once so that about `max_bytes` come back. The price of a wrong
    /// guess is a read that is cut short: what is behind the limit was rendered for nothing.
    pub(super) fn chunk(&self, keys: usize, max_bytes: usize) -> usize {
        let row_bytes = usize::try_from(self.row_bytes.load(Ordering::Relaxed))
            .unwrap_or(1)
            .max(1);
        (max_bytes / row_bytes).clamp(1, keys.max(1)).min(keys)
    }

    /// Moves the guess halfway to what was seen.
    pub(super) fn learn<T>(&self, read: &Read<T>) {
        if let Some(seen) = read.made.checked_div(read.rows.len() as u64) {
            let before = self.row_bytes.load(Ordering::Relaxed);
            self.row_bytes.store(
                (before / 2).saturating_add(seen / 2).max(1),
                Ordering::Relaxed,
            );
        }
    }
}
