//! The reads: by key, or as a run where keys follow one another.

use std::pin::pin;
use std::sync::atomic::Ordering;

use futures_util::TryStreamExt as _;
use tokio_postgres::types::ToSql;

use super::super::SyncSource;
use super::super::error::{Error, Place};
use super::super::link::ReadLink;
use super::super::rows::{KeyTexts, Places, Plan, RowPlace};
use super::super::session::Row;
use super::{Prepared, Reader};
use crate::change::{Draft, KV_VALUE_MAX_BYTES};

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

/// Bytes that a read may bring.
#[derive(Clone, Copy)]
pub(super) struct Room {
    /// All of it, about: the first row comes whatever its size.
    pub(super) bytes: usize,
    /// One value. Of a larger one only the size travels.
    pub(super) value: usize,
}

/// What a scan gave.
struct Scanned<T> {
    read: Read<T>,
    /// Places of the keys that it did not find.
    gone: Vec<usize>,
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

/// A read, whichever way it goes.
struct Reading<'a, F> {
    link: &'a ReadLink,
    plan: &'a Plan,
    texts: &'a KeyTexts<'a>,
    room: Room,
    doing: &'a str,
    make: &'a F,
}

impl Reader {
    /// Reads documents of the first of `keys`, as many as there is room for. `walked`: a walk found
    /// these keys one after the other.
    pub(super) async fn read<T>(
        &self,
        prepared: &Prepared,
        sync: &SyncSource,
        keys: &[&str],
        walked: bool,
        room: Room,
        make: &(impl Fn(Row) -> T + Sync),
    ) -> Result<Read<T>, Error> {
        let plan = &prepared.plan;
        let texts = KeyTexts::of(keys, plan.columns);
        let reading = Reading {
            link: &self.link,
            plan,
            texts: &texts,
            room,
            doing: &format!("reading {} for sync {}", sync.table, sync.name),
            make,
        };
        if plan.reads_run(&texts, walked) {
            match reading.transaction(reading.run()).await {
                Ok(Some(Scanned { read, gone })) => {
                    let gone: Vec<&str> = gone.into_iter().map(|place| keys[place]).collect();
                    if !walked || reading.are_gone(&gone).await? {
                        return Ok(read);
                    }
                }
                Ok(None) => {}
                // A row that was not asked for may be the one that fails, or that takes too long.
                Err(error) if error.is_of_rows() => {}
                Err(error) => return Err(error),
            }
        }
        reading.transaction(reading.by_key()).await
    }
}

impl<T, F: Fn(Row) -> T + Sync> Reading<'_, F> {
    /// A transaction of its own: neither the operator's expressions nor the owner's functions can write.
    async fn transaction<R>(
        &self,
        read: impl Future<Output = Result<R, Error>>,
    ) -> Result<R, Error> {
        let begin = self.plan.begin;
        self.link.read_at_once(self.doing, 1, begin, read).await
    }

    async fn by_key(&self) -> Result<Read<T>, Error> {
        let Self { plan, texts, .. } = self;
        let failed = |error| Error::from_driver(Place::Rows, self.doing, error);
        let mut read = Read::of(texts.len());
        // The row of the last key: whether it is the only one, the next row tells.
        let mut last: Option<Row> = None;
        let value_max = self.value_max();
        let mut parameters = texts.parameters();
        parameters.push(&value_max);
        let rows = self
            .link
            .client()
            .query_raw(&plan.rows, parameters)
            .await
            .map_err(failed)?;
        let mut rows = pin!(rows);
        while let Some(row) = rows.try_next().await.map_err(failed)? {
            let place: i64 = row.try_get(0).map_err(failed)?;
            let before = read.rows.len() + usize::from(last.is_some());
            if usize::try_from(place) == Ok(before)
                && let Some(last) = &mut last
            {
                last.draft = Some(Draft::duplicate());
                continue;
            }
            if let Some(last) = last.take()
                && !self.takes(&mut read, last)
            {
                // Dropping the stream lets the driver throw away what still comes.
                return Ok(read);
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
            last = Some(Row { columns, draft });
        }
        if let Some(last) = last {
            self.takes(&mut read, last);
        }
        Ok(read)
    }

    /// Bytes of a value that has room.
    fn value_max(&self) -> i64 {
        i64::try_from(self.room.value.min(KV_VALUE_MAX_BYTES)).unwrap_or(i64::MAX)
    }

    /// Adds a row, if there is room for it.
    fn takes(&self, read: &mut Read<T>, row: Row) -> bool {
        let takes = read.takes(row.draft.as_ref(), self.room.bytes);
        if takes {
            read.rows.push((self.make)(row));
        }
        takes
    }

    /// `None` where rows do not come in the order of the keys.
    async fn run(&self) -> Result<Option<Scanned<T>>, Error> {
        let Self { plan, texts, .. } = self;
        let failed = |error| Error::from_driver(Place::Rows, self.doing, error);
        let (Some(run), Some(last)) = (&plan.run, texts.len().checked_sub(1)) else {
            return Ok(None);
        };
        let (first, last) = (texts.owned(0), texts.owned(last));
        let ends = first.iter().chain(&last);
        let mut ends: Vec<&(dyn ToSql + Sync)> = ends.map(|text| text as _).collect();
        let value_max = self.value_max();
        ends.push(&value_max);
        let mut scanned = Scanned {
            read: Read::of(texts.len()),
            gone: Vec::new(),
        };
        let mut places = Places::new(texts);
        let rows = self
            .link
            .client()
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
            self.pass(&mut scanned, place);
            if !scanned.read.takes(draft.as_ref(), self.room.bytes) {
                return Ok(Some(scanned));
            }
            let columns = texts.owned(place);
            scanned.read.rows.push((self.make)(Row { columns, draft }));
        }
        self.pass(&mut scanned, texts.len());
        Ok(Some(scanned))
    }

    /// The scan went past the keys before `place` that it did not find.
    fn pass(&self, scanned: &mut Scanned<T>, place: usize) {
        for at in scanned.read.rows.len()..place {
            let columns = self.texts.owned(at);
            let draft = None;
            scanned.read.rows.push((self.make)(Row { columns, draft }));
            scanned.gone.push(at);
        }
    }

    /// Whether a read by key finds none of these either. A walk has found them a moment ago, so they
    /// are few. If they are many, the index may not have the order that the server compares by: after
    /// a change of the C library's collations an index of texts has not until it is built anew.
    async fn are_gone(&self, keys: &[&str]) -> Result<bool, Error> {
        if keys.is_empty() {
            return Ok(true);
        }
        let reading = Reading {
            link: self.link,
            plan: self.plan,
            texts: &KeyTexts::of(keys, self.plan.columns),
            room: Room {
                bytes: usize::MAX,
                value: 0,
            },
            doing: self.doing,
            make: &|row: Row| row.draft.is_some(),
        };
        let found = reading.transaction(reading.by_key()).await?;
        Ok(!found.rows.contains(&true))
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
