//! The reads of a watched table: documents by key, and keys in order.
//!
//! Owns how a sync becomes prepared statements (`table` looks it up, `by_key`, `collect` and `walk`
//! write the SQL) and how a row of theirs becomes a draft (`value`). Identifiers come quoted from the
//! catalog, never from the configuration; the operator's expressions are put in as they are.

mod by_key;
mod collect;
pub(crate) mod expand;
mod key_texts;
mod members;
mod run;
mod table;
mod value;
mod walk;

use tokio_postgres::Statement;
use tokio_postgres::types::Type;

pub(crate) use self::key_texts::KeyTexts;
use self::members::Members;
use self::run::Runs;
pub(crate) use self::run::{Place as RowPlace, Places};
use self::value::{Beside, Filter};
pub(crate) use self::walk::{WalkedKey, position_of};
use super::error::{Error, Kind, Place};
use super::link::{BEGIN, ReadLink};
use super::{ExpirySql, Settings, SyncSource, ValueSql};
use crate::change::KV_VALUE_MAX_BYTES;

/// The prepared reads of one sync on one connection.
pub(crate) struct Plan {
    /// `$1` and on: the values of the keys, see [`KeyTexts`], and the bytes of a value that has room.
    /// Gives the key's place, its columns unless
    /// [`Self::echoes`], and what [`Self::draft`] takes.
    pub(crate) rows: Statement,
    /// The same for keys that follow one another, where they can be read as runs.
    pub(crate) run: Option<Run>,
    /// How a transaction of [`Self::rows`] begins.
    pub(crate) begin: &'static str,
    /// `$1`: position or NULL, `$2`: limit. Gives [`Self::walked_key`].
    pub(crate) walk: Statement,
    /// The same without the filter, for when the filter fails for some row.
    pub(crate) walk_all: Statement,
    /// What the walks give.
    pub(crate) walked_key: WalkedKey,
    /// `$1`: the texts of the key columns, each a JSON array, as `text[]`. Gives the keys.
    pub(crate) keys: Statement,
    /// SQL. `$1`: position, `$2`: key. Whether a walk at the position has the key ahead of it.
    pub(crate) ahead: String,
    /// Number of values in a key.
    pub(crate) columns: usize,
    /// The texts of a key are those of its columns.
    pub(crate) echoes: bool,
    /// Bytes of a row's document, a first guess.
    pub(crate) row_bytes: u64,
    /// The value is bytes, not text.
    binary: bool,
    /// The value is made here, of these columns.
    members: Option<Members>,
    beside: Beside,
    /// Seconds that a pair stands after each write, where that is limited.
    ttl_seconds: Option<u32>,
    /// Among how many documents the rows of one key are divided; `None` where a row is a document.
    shards: Option<u32>,
}

/// The read of a run of keys.
pub(crate) struct Run {
    /// `$1` and on: the texts of the first key's values, then those of the last, and the bytes of a value
    /// that has room. Gives the texts of each row's key, and what [`Plan::draft_of_run`] takes.
    pub(crate) statement: Statement,
    when: Runs,
}

impl Plan {
    /// Looks the table up and prepares its statements.
    ///
    /// # Errors
    /// `Relation` where table or columns are not there or may not be read; `Connection`,
    /// `Transient`.
    pub(crate) async fn prepare(
        settings: &Settings,
        link: &ReadLink,
        sync: &SyncSource,
    ) -> Result<Self, Error> {
        let doing = format!("preparing to read {} for sync {}", sync.table, sync.name);
        let (table, row_bytes) = table::look_up(settings, link, sync, &doing).await?;
        let client = link.client();
        let binary = match &sync.value {
            // A list or an object of many is JSON whatever its entries are.
            _ if sync.collect.is_some() => false,
            ValueSql::Columns(_) => false,
            ValueSql::Expression(expression) => {
                let probe = table.probe(expression);
                let probe = link
                    .read(&doing, 1, Place::Relation, client.prepare(&probe))
                    .await
                    .map_err(while_preparing)?;
                // A domain is told as the type below it.
                probe.columns().iter().all(|c| *c.type_() == Type::BYTEA)
            }
        };
        let members = match &sync.value {
            ValueSql::Columns(columns)
                if !columns.is_empty() && Beside::of(sync) == Beside::Nothing =>
            {
                let probe = table.probe_columns(columns);
                let probe = link
                    .read(&doing, 1, Place::Relation, client.prepare(&probe))
                    .await?;
                let types = probe.columns().iter().map(|column| column.type_());
                Some(Members::of(columns, types, &table.alias))
            }
            _ => None,
        };
        let walked_key = table.walked_key(sync.collect.is_some());
        let walk = |filter: &Filter| match sync.collect {
            None => table.walk(filter, &walked_key),
            Some(_) => table.walk_groups(filter),
        };
        let runs = table.runs(sync);
        let run = runs.map(|_| table.run(sync, binary, members.as_ref(), &doing));
        let (run, rows, walk, walk_all, keys) = (
            run.transpose()?,
            table.rows(sync, binary, members.as_ref(), &doing)?,
            walk(&Filter::of(sync)),
            walk(&Filter::default()),
            table.keys(),
        );
        let (run, rows, walk, walk_all, keys) = link
            .read(&doing, 5, Place::Relation, async {
                // In order: the first that fails says why, and all others are refused after it.

                tokio::try_join!(
                    biased;
                    async {
                        match &run {
                            Some(run) => client.prepare(run).await.map(Some),
                            None => Ok(None),
                        }
                    },
                    client.prepare(&rows),
                    client.prepare(&walk),
                    client.prepare(&walk_all),
                    client.prepare(&keys)
                )
            })
            .await
            .map_err(while_preparing)?;
        let ttl_seconds = match sync.attributes.expiry {
            Some(ExpirySql::After(seconds)) => Some(seconds),
            Some(ExpirySql::At(_)) | None => None,
        };
        Ok(Self {
            rows,
            run: run
                .zip(runs)
                .map(|(statement, when)| Run { statement, when }),
            // Else an index is better, whatever the statistics say; here all rows are read.
            begin: match table.width() {
                0 => BEGIN_WHOLE,
                _ => BEGIN,
            },
            walk,
            walk_all,
            walked_key,
            keys,
            ahead: table.ahead(),
            columns: table.width(),
            echoes: table.echoes(),
            // How many rows a document has is not known before one was read; a document too many
            // in a read is one that the server puts together for nothing.
            row_bytes: match sync.collect {
                None => row_bytes,
                Some(_) => KV_VALUE_MAX_BYTES as u64,
            },
            binary,
            members,
            beside: Beside::of(sync),
            ttl_seconds,
            shards: sync
                .collect
                .as_ref()
                .map(|collect| collect.shards.unwrap_or(1)),
        })
    }

    /// Whether to read these keys as a run. `walked`: a walk found them one after the other.
    pub(crate) fn reads_run(&self, keys: &KeyTexts<'_>, walked: bool) -> bool {
        let run = self.run.as_ref();
        // A key that cannot be carried has no place among the others.
        let readable = !keys.has_unreadable();
        readable && run.is_some_and(|run| run.when.fit(keys, walked))
    }

    /// Runs the read for no keys: privileges and row-level security show only when a statement runs.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub(crate) async fn try_out(&self, link: &ReadLink, sync: &SyncSource) -> Result<(), Error> {
        let doing = format!("reading {} for sync {}", sync.table, sync.name);
        let no_keys = KeyTexts::of(&[], self.columns);
        let mut parameters = no_keys.parameters();
        parameters.push(&0_i64);
        let rows = link.client().query(&self.rows, &parameters);
        link.read(&doing, 1, Place::Relation, rows)
            .await
            .map(drop)
            .map_err(while_preparing)
    }
}

/// [`BEGIN`] of reads that read all rows.
const BEGIN_WHOLE: &str =
    "begin isolation level read committed read only; set local enable_seqscan = on";

/// No row was read yet, so a constant of the expression is at fault, not a row.
fn while_preparing(error: Error) -> Error {
    if error.kind() == Kind::Row {
        error.into_kind(Kind::Relation)
    } else {
        error
    }
}
