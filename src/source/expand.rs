//! Expanding markers of related tables: the keys of the rows that match go into the outbox.
//!
//! The keys are read over the connection of the backfill, so that no live change waits for it, and then
//! written over the one to our own tables. A row that comes to match after the read has its own row
//! in the outbox. The connection that writes counts as a writer of the outbox: ids that it has
//! drawn may become visible late.
//!
//! One transaction for all markers of a call, without waiting for the disk: a crash that loses it
//! loses keys and positions alike, and the next synchronous commit, such as the claim of these keys,
//! takes it along.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use super::error::{Error, Kind, Place};
use super::link::{self, Link, ReadLink};
use super::names::Client;
use super::rows::WalkedKey;
use super::rows::expand::prepare;
use super::{Settings, SyncSource};
use crate::change::{Epoch, Key, OutboxId, SyncId};
use crate::ledger::{Expanded, Marker};

const BEGIN: &str = "begin; set local synchronous_commit = off";

/// `$1` epoch, `$2` the marker's row, `$3` sync, `$4` keys, `$5` related table, `$6` values, `$7` whether
/// there may be more. Gives whether the epoch holds, the number of keys, whether the marker is at its
/// end, and the highest new id.
///
/// Keys are bytes, because the database may have another encoding than UTF-8. One that is too long is an
/// object with its size, from which no walk can go on.
///
/// The marker goes first, also where no key is found, which is why the last column asks for it: where
/// somebody else had it (unwatch did), nothing is written. Its time goes
/// on with the keys, so that their age is that of the change.
const WRITE: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1::int8 for share),
    taken as materialized (select pg2kv.take(array[$2::int8], array[$2]) as at from fence),
    gone as (select t.at from taken as t where t.at is not null),
    found as materialized (
      select convert_from(w.key, getdatabaseencoding())::jsonb as key, w.place
      from unnest($4::bytea[]) with ordinality as w(key, place)
    ),
    written as (
      insert into pg2kv.outbox (sync, key, at)
      select $3::text, f.key, g.at from gone as g, found as f order by f.place
      returning id
    ),
    moved as (
      insert into pg2kv.outbox (sync, key, at)
      select $3, jsonb_build_object('related', $5::text, 'values', $6::text::jsonb,
        'after', (select f.key from found as f where jsonb_typeof(f.key) = 'array'
          order by f.place desc limit 1)), g.at
      from gone as g where $7::bool
      returning id
    )
    select exists (select from fence), (select count(*) from written),
      not exists (select from moved),
      (select max(n.id) from (select id from written union all select id from moved) as n),
      (select t.at from taken as t)";

/// The statements that expand markers. See the module.
pub(crate) struct Expander {
    settings: Settings,
    write: Statement,
    plans: Mutex<HashMap<(SyncId, Arc<str>), Statement>>,
}

impl Expander {
    pub(crate) async fn open(settings: &Settings, own: &Link) -> Result<Self, Error> {
        let doing = "preparing to expand markers of related tables";
        let sql = settings.sql(WRITE);
        let write = own.client().prepare(&sql);
        Ok(Self {
            settings: settings.clone(),
            write: own.call(doing, 2, Place::Own, write).await?,
            plans: Mutex::default(),
        })
    }

    /// See `Session::expand`.
    pub(crate) async fn expand(
        &self,
        (link, own): (&ReadLink, &Link),
        epoch: Epoch,
        sync: &SyncSource,
        markers: &[Marker],
        limit: usize,
    ) -> Result<Expanded, Error> {
        let expanded = self
            .try_expand((link, own), epoch, sync, markers, limit)
            .await;
        if let Err(error) = &expanded
            && error.kind() == Kind::Relation
        {
            // It may have changed, so the catalog is read again next time.
            self.plans.lock().await.clear();
        }
        expanded
    }

    async fn try_expand(
        &self,
        (link, own): (&ReadLink, &Link),
        epoch: Epoch,
        sync: &SyncSource,
        markers: &[Marker],
        limit: usize,
    ) -> Result<Expanded, Error> {
        let doing = format!(
            "looking for rows of {} that match a related row",
            sync.table
        );
        let mut statements = Vec::with_capacity(markers.len());
        for marker in markers {
            let table = &marker.related.table;
            statements.push(self.statement(link, sync, table, &doing).await?);
        }
        let limit = i64::try_from(limit.max(1)).unwrap_or(i64::MAX);
        let count = u32::try_from(markers.len()).unwrap_or(u32::MAX);
        let client = link.client();
        let found = link
            .read_at_once(&doing, count, link::BEGIN, async {
                let walks = markers.iter().zip(&statements);
                let walks = walks.map(|(marker, walk)| keys(client, marker, walk, limit));
                // The first that failed says why; it is followed by refusals of all others.
                let found: Result<Vec<_>, _> = join_all(walks).await.into_iter().collect();
                found.map_err(|error| Error::from_driver(Place::Rows, &doing, error))
            })
            .await?;
        let stuck = |keys: &Vec<_>| are_more(keys, limit) && !keys.iter().any(|key| is_array(key));
        if found.iter().any(stuck) {
            let what = "all keys among the next rows are too long, so there is none to go on from";
            return Err(Error::new(Kind::Relation, &doing, what)
                .with_hint("give these rows shorter keys, or leave them out with `where`"));
        }
        let client = own.client();
        let rows = own
            .call(&doing, count.saturating_add(2), Place::Own, async {
                let (begun, rows, committed) = tokio::join!(
                    biased;
                    client.batch_execute(BEGIN),
                    join_all(markers.iter().zip(&found).map(|(marker, keys)| {
                        self.write(client, epoch, sync, marker, keys, limit)
                    })),
                    client.batch_execute("commit"),
                );
                begun?;
                let rows = rows.into_iter().collect::<Result<Vec<Row>, _>>()?;
                committed?;
                Ok(rows)
            })
            .await?;
        let mut expanded = Expanded::default();
        for row in &rows {
            if !row.get::<_, bool>(0) {
                return Err(Error::fenced(&doing));
            }
            expanded.keys += u64::try_from(row.get::<_, i64>(1)).unwrap_or(0);
            expanded.done += u64::from(row.get::<_, bool>(2));
            expanded.last = expanded
                .last
                .max(row.get::<_, Option<i64>>(3).map(OutboxId));
        }
        Ok(expanded)
    }

    async fn write(
        &self,
        client: &Client,
        epoch: Epoch,
        sync: &SyncSource,
        marker: &Marker,
        keys: &[Vec<u8>],
        limit: i64,
    ) -> Result<Row, tokio_postgres::Error> {
        let related = &marker.related;
        let (values, table) = (related.values.as_str(), &*related.table);
        let more = are_more(keys, limit);
        let parameters: [&(dyn ToSql + Sync); 7] = [
            &epoch.0,
            &marker.id.0,
            &sync.name,
            &keys,
            &table,
            &values,
            &more,
        ];
        client.query_one(&self.write, &parameters).await
    }

    async fn statement(
        &self,
        link: &ReadLink,
        sync: &SyncSource,
        table: &Arc<str>,
        doing: &str,
    ) -> Result<Statement, Error> {
        let mut plans = self.plans.lock().await;
        let name = (sync.id, Arc::clone(table));
        if let Some(statement) = plans.get(&name) {
            return Ok(statement.clone());
        }
        let related = sync
            .related
            .iter()
            .find(|related| *related.name == **table)
            .ok_or_else(|| {
                Error::new(
                    Kind::Relation,
                    doing,
                    format!(
                        "sync {} has no related table {table} in the configuration",
                        sync.name
                    ),
                )
                .with_hint("add it there, or run pg2kv.unwatch_related")
            })?;
        let statement = prepare(&self.settings, link, sync, related, doing).await?;
        plans.insert(name, statement.clone());
        Ok(statement)
    }
}

/// Whether a walk that gave these keys may have more.
fn are_more(keys: &[Vec<u8>], limit: i64) -> bool {
    i64::try_from(keys.len()).is_ok_and(|found| found >= limit)
}

fn is_array(key: &[u8]) -> bool {
    key.starts_with(b"[")
}

/// The next keys of a marker, in the encoding of the database.
async fn keys(
    client: &Client,
    marker: &Marker,
    walk: &Statement,
    limit: i64,
) -> Result<Vec<Vec<u8>>, tokio_postgres::Error> {
    let related = &marker.related;
    let after = related.after.as_ref().map(Key::as_str);
    let values = related.values.as_str();
    let parameters: [&(dyn ToSql + Sync); 3] = [&after, &limit, &values];
    let rows = client.query(walk, &parameters).await?;
    rows.iter()
        .map(|row| {
            let walked = WalkedKey::Whole.row(row)?;
            let oversized = walked.oversized.map(|key| key.as_str().as_bytes().to_vec());
            Ok(oversized.or(walked.bytes).unwrap_or_default())
        })
        .collect()
}
