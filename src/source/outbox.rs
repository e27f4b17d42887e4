//! The outbox: fetching what is new, falling asleep, and deleting what is redundant.
//!
//! Owns the order of steps that makes both safe (the bell, the look at holders, the fetch); which
//! ids may still turn up is `frontier`'s. Sees keys only, never rows.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row as DriverRow, Statement};

use super::Settings;
use super::error::{Error, Kind, Place};
use super::frontier::{Frontier, Holder, Range};
use super::key_bytes::{Encoding, Raw, Via, about, oversized};
use super::link::Link;
use super::marker;
use super::runs::runs;
use crate::change::{Change, Changed, Epoch, KEY_MAX_BYTES, OutboxId, SyncId};
use crate::ledger::{FetchMode, Fetched};

/// A page of what is new. Age by the server's clock, so that clocks need not agree.
const PAGE: &str = "\
    select {row} from (
      select id, sync, key, key::text as text, at
      from pg2kv.outbox where id > $1 order by id limit $2
    ) as o";

/// Longest text of a row that is read: a key of [`KEY_MAX_BYTES`], each byte of it escaped in JSON.
const TEXT_MAX_BYTES: usize = 8 * KEY_MAX_BYTES;
/// Text of a page at most, so that no rows can be larger together than this process may be.
const PAGE_MAX_BYTES: usize = 8 << 20;

/// Ids that turned up late. The ranges are ascending and disjoint, so the nested loop gives the
/// rows in order of their ids.
const PROBE: &str = "\
    select {row} from unnest($1::int8[], $2::int8[]) as r(low, high)
    cross join lateral (
      select id, sync, key, key::text as text, at
      from pg2kv.outbox where id >= r.low and id <= r.high order by id limit $3
    ) as o
    limit $3";

/// Of a row: what it says as bytes, unless that is longer than any key that a trigger records. Then its
/// size and hash, if it is about one key.
fn row_sql(encoding: Encoding) -> String {
    let raw = encoding.raw("o.text");
    let key = "coalesce(o.key->'again', o.key)";
    let about = about(
        &format!("octet_length({key}::text)"),
        &format!("{key}::text"),
    );
    format!(
        "o.id, o.sync, case when octet_length(o.text) <= {TEXT_MAX_BYTES} then {raw} end, \
         date_part('epoch', clock_timestamp() - o.at), \
         case when octet_length(o.text) <= {TEXT_MAX_BYTES} then null \
           when jsonb_typeof({key}) = 'array' then {about} else '' end"
    )
}

/// Who may have drawn ids that are not visible yet. Of our own sessions, these delete only.
const LOOK: &str = "\
    select virtualtransaction from pg_locks
    where locktype = 'relation' and mode = 'RowExclusiveLock' and granted
      and relation = $1::text::regclass::oid
      and database = (select oid from pg_database where datname = current_database())
      and (pid is null or pid <> all ($2::int4[]))";

/// `synchronous_commit` is off for this one transaction: a bell that a crash forgets is set anew by
/// the next session, and the flush would cost each falling asleep a wait for the disk.
///
/// While the server's notification queue is more than half full, the bell stays silent: once the queue is
/// full, every transaction that has notified fails at its commit.
const RING_UNTIL: &str = "\
    select set_config('synchronous_commit', 'off', true),
      setval('pg2kv.bell', case when pg_notification_queue_usage() <= 0.5
        then ceil(extract(epoch from clock_timestamp()) + $1::float8)::int8 else 0 end)";

const SILENCE: &str = "\
    select set_config('synchronous_commit', 'off', true), setval('pg2kv.bell', 0)";

/// A sequence that was never called has handed out nothing.
const DRAWN: &str = "\
    select case when is_called then last_value else last_value - 1 end from pg2kv.outbox_id_seq";

const COMPACT: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    gone as materialized (select pg2kv.take($2::int8[], $3::int8[]) as at from fence)
    select exists (select from fence), (select at from gone)";

/// The outbox as one session sees it. See the module.
pub(crate) struct Outbox {
    page: Statement,
    probe: Statement,
    look: Statement,
    ring_until: Statement,
    silence: Statement,
    compact: Statement,
    name: String,
    /// Server processes of this session that write nothing into the outbox.
    own: Vec<i32>,
    doorbell: bool,
    /// How long one setting of the bell lasts.
    ring_for: Duration,
    syncs: HashMap<String, SyncId>,
    state: Mutex<State>,
}

struct State {
    frontier: Frontier,
    /// Until when the bell was set, or `None` where it is known to be silent.
    bell: Bell,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bell {
    /// A session before this one may have left it set.
    Unknown,
    Silent,
    SetUntil(Instant),
}

impl Outbox {
    /// Prepares the statements and notes where the sequence stands.
    pub(crate) async fn open(
        settings: &Settings,
        link: &Link,
        own: Vec<i32>,
        syncs: HashMap<String, SyncId>,
    ) -> Result<Self, Error> {
        let doing = "preparing to read the outbox";
        let row = row_sql(link.encoding());
        let with_row = |sql: &str| settings.sql(&sql.replace("{row}", &row));
        let (page, probe, look) = (with_row(PAGE), with_row(PROBE), settings.sql(LOOK));
        let (ring_until, silence) = (settings.sql(RING_UNTIL), settings.sql(SILENCE));
        let (compact, drawn) = (settings.sql(COMPACT), settings.sql(DRAWN));
        let client = link.client();
        let (page, probe, look, ring_until, silence, compact, drawn) = link
            .call(doing, 8, Place::Own, async {
                tokio::try_join!(
                    client.prepare(&page),
                    client.prepare(&probe),
                    client.prepare(&look),
                    client.prepare(&ring_until),
                    client.prepare(&silence),
                    client.prepare(&compact),
                    client.query_one(&drawn, &[]),
                )
            })
            .await?;
        let state = State {
            frontier: Frontier::new(drawn.get(0)),
            bell: Bell::Unknown,
        };
        Ok(Self {
            page,
            probe,
            look,
            ring_until,
            silence,
            compact,
            name: settings.sql("pg2kv.outbox"),
            own,
            doorbell: settings.doorbell,
            ring_for: settings.poll_interval * 2,
            syncs,
            state: Mutex::new(state),
        })
    }

    /// See `Session::fetch`.
    ///
    /// Cancel-safety: the frontier moves after the last await, so a dropped fetch returns its rows
    /// to the next one.
    pub(crate) async fn fetch(
        &self,
        link: &Link,
        mode: FetchMode,
        limit: usize,
    ) -> Result<Fetched, Error> {
        let mut state = self.state.lock().await;
        let asleep = mode == FetchMode::FallingAsleep && self.doorbell;
        let looks = asleep || state.frontier.has_gaps();
        let rows_max = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
        let high = state.frontier.high();
        // Half of its time is left at the least, however long the next poll takes to come.
        let set_bell = asleep
            && !matches!(state.bell, Bell::SetUntil(end)
                if end.saturating_duration_since(Instant::now()) > self.ring_for.mul_f32(0.75));

        // Bell, look, page: sent in this order in one go, and the server keeps the order. A writer
        // that the look does not show read the bell after it was set, or is visible to the page.
        let after: Vec<&(dyn ToSql + Sync)> = vec![&high, &rows_max];
        let set_at = Instant::now();
        let (crowded, holders, page) = link
            .call("fetching from the outbox", 3, Place::Own, async {
                let (crowded, holders, page) = tokio::try_join!(
                    biased;
                    self.set_bell(link, set_bell),
                    self.look(link, looks),
                    read_page(link, &self.page, after),
                )?;
                Ok((crowded, holders, page))
            })
            .await?;
        if set_bell {
            state.bell = match crowded {
                Some(true) => Bell::Silent,
                _ => Bell::SetUntil(set_at + self.ring_for),
            };
        }

        let due = if looks {
            state.frontier.look(&holders)
        } else {
            Vec::new()
        };
        let late = if due.is_empty() {
            Page::default()
        } else {
            let late = self.probe(link, &due, rows_max).await?;
            state.frontier.probed(&late.ids()?, !late.is_full(limit));
            late
        };
        let ids = page.ids()?;
        let (page_full, late_full) = (page.is_full(limit), late.is_full(limit));
        let rows = late.rows.into_iter().chain(page.rows).collect();
        let (changes, ignored) = self.changes(link, rows).await?;
        state.frontier.page(&ids);

        if mode == FetchMode::Awake && self.doorbell && state.bell != Bell::Silent {
            // After the rows, which must not wait for it. It is sent before this returns, so a
            // later setting of the bell comes later on the server too. Whether it worked does not
            // matter: a bell left set costs writers a NOTIFY and runs out by itself.
            let silence = link.client().query(&self.silence, &[]);
            let _ = futures_util::FutureExt::now_or_never(silence);
            state.bell = Bell::Silent;
        }

        Ok(Fetched {
            changes,
            ignored,
            more: page_full || late_full,
            writers: asleep && !holders.is_empty(),
            notify_queue_full: crowded,
        })
    }

    /// Whether the notification queue is too full to set it; `None` if that was not wanted.
    async fn set_bell(
        &self,
        link: &Link,
        wanted: bool,
    ) -> Result<Option<bool>, tokio_postgres::Error> {
        if !wanted {
            return Ok(None);
        }
        let seconds = self.ring_for.as_secs_f64();
        let set = link
            .client()
            .query_one(&self.ring_until, &[&seconds])
            .await?;
        Ok(Some(set.try_get::<_, i64>(1)? == 0))
    }

    async fn look(
        &self,
        link: &Link,
        wanted: bool,
    ) -> Result<BTreeSet<Holder>, tokio_postgres::Error> {
        if !wanted {
            return Ok(BTreeSet::new());
        }
        let rows = link
            .client()
            .query(&self.look, &[&self.name, &self.own])
            .await?;
        Ok(rows
            .iter()
            .filter_map(|row| Holder::parse(row.get(0)))
            .collect())
    }

    async fn probe(&self, link: &Link, ranges: &[Range], rows_max: i64) -> Result<Page, Error> {
        let low: Vec<i64> = ranges.iter().map(|range| range.low).collect();
        let high: Vec<i64> = ranges.iter().map(|range| range.high).collect();
        link.call(
            "looking for late changes in the outbox",
            1,
            Place::Own,
            read_page(link, &self.probe, vec![&low, &high, &rows_max]),
        )
        .await
    }

    /// What rows ask for, and how many of them ask nothing of this process.
    async fn changes(
        &self,
        link: &Link,
        rows: Vec<DriverRow>,
    ) -> Result<(Vec<Change>, u64), Error> {
        let mut changes = Vec::with_capacity(rows.len());
        let mut ignored = 0;
        // Places of the rows whose text only the server can tell.
        let mut unknown: Vec<(usize, Vec<u8>)> = Vec::new();
        for row in &rows {
            let (id, sync, said, age) = self.row(row, link.encoding()).map_err(unreadable)?;
            let what = match said {
                Said::Bytes(bytes) => {
                    unknown.push((changes.len(), bytes));
                    Some(Changed::Everything)
                }
                Said::Known(what) => what,
            };
            let (Some(sync), Some(what)) = (sync, what) else {
                ignored += 1;
                continue;
            };
            // Negative where the server's clock was set back.
            let age = Duration::try_from_secs_f64(age).unwrap_or_default();
            let id = OutboxId(id);
            changes.push(Change {
                id,
                sync,
                what,
                age,
            });
        }
        let (places, bytes): (Vec<usize>, Vec<Vec<u8>>) = unknown.into_iter().unzip();
        let mut gone = Vec::new();
        if !places.is_empty() {
            let texts = link.encoding().texts(Via::Own(link), bytes.clone()).await?;
            for ((place, bytes), text) in places.into_iter().zip(&bytes).zip(texts) {
                let what = match text {
                    Some(text) => marker::asked(Some(&text)),
                    None => Some(marker::asked_of_bytes(bytes)),
                };
                match what {
                    Some(what) => changes[place].what = what,
                    None => gone.push(place),
                }
            }
        }
        ignored += gone.len() as u64;
        for place in gone.into_iter().rev() {
            changes.remove(place);
        }
        Ok((changes, ignored))
    }

    fn row(
        &self,
        row: &DriverRow,
        encoding: Encoding,
    ) -> Result<(i64, Option<SyncId>, Said, f64), tokio_postgres::Error> {
        // A name that is no text is none that is configured.
        let sync = Raw::at(row, 1)?.and_then(|name| std::str::from_utf8(name).ok());
        let sync = sync.and_then(|name| self.syncs.get(name)).copied();
        let said = match (Raw::at(row, 2)?, row.try_get::<_, Option<&str>>(4)?) {
            (_, Some("")) => Said::Known(Some(Changed::Everything)),
            (_, Some(about)) => Said::Known(Some(Changed::Key(oversized(about)))),
            (None, None) => Said::Known(marker::asked(None)),
            (Some(bytes), None) => match encoding.text(bytes) {
                Some(text) => Said::Known(marker::asked(Some(text))),
                None if sync.is_none() => Said::Known(None),
                None => Said::Bytes(bytes.to_vec()),
            },
        };
        Ok((row.try_get(0)?, sync, said, row.try_get(3)?))
    }

    /// See `Session::compact`.
    pub(crate) async fn compact(
        &self,
        link: &Link,
        epoch: Epoch,
        ids: &[OutboxId],
    ) -> Result<(), Error> {
        let doing = "deleting redundant rows of the outbox";
        let (low, high) = runs(ids.iter().copied());
        let row = link
            .call(
                doing,
                1,
                Place::Own,
                link.client()
                    .query_one(&self.compact, &[&epoch.0, &low, &high]),
            )
            .await?;
        if row.get(0) {
            Ok(())
        } else {
            Err(Error::fenced(doing))
        }
    }
}

/// What a row says.
enum Said {
    /// `None`: nothing that this version knows.
    Known(Option<Changed>),
    /// Only the server can tell which text that is.
    Bytes(Vec<u8>),
}

/// Rows of the outbox.
#[derive(Default)]
struct Page {
    rows: Vec<DriverRow>,
    /// It was cut where it had [`PAGE_MAX_BYTES`].
    cut: bool,
}

impl Page {
    fn ids(&self) -> Result<Vec<i64>, Error> {
        self.rows
            .iter()
            .map(|row| row.try_get(0).map_err(unreadable))
            .collect()
    }

    /// Whether more may wait behind it.
    fn is_full(&self, limit: usize) -> bool {
        self.cut || self.rows.len() >= limit
    }
}

async fn read_page(
    link: &Link,
    statement: &Statement,
    parameters: Vec<&(dyn ToSql + Sync)>,
) -> Result<Page, tokio_postgres::Error> {
    let rows = link.client().query_raw(statement, parameters).await?;
    let mut rows = pin!(rows);
    let (mut page, mut bytes) = (Page::default(), 0);
    while let Some(row) = rows.try_next().await? {
        bytes += Raw::at(&row, 2)?.map_or(0, <[u8]>::len);
        page.rows.push(row);
        if bytes > PAGE_MAX_BYTES {
            // Dropping the stream lets the driver throw away what still comes.
            page.cut = true;
            break;
        }
    }
    Ok(page)
}

fn unreadable(error: tokio_postgres::Error) -> Error {
    // Our own tables with columns of other types: somebody changed them.
    Error::new(Kind::Refused, "reading the outbox", error.to_string())
        .with_hint("compare the schema with install.sql of this version")
}
