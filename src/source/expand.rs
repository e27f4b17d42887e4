//! Expanding markers of related tables: the keys of the rows that match go into the outbox.
//!
//! It runs on the connection of the backfill, so that no live change waits for it. That connection
//! counts as a writer of the outbox: ids that it has drawn may become visible late.
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
use super::link::Link;
use super::names::Client;
use super::rows::expand::prepare;
use super::{Settings, SyncSource};
use crate::change::{Epoch, Key, OutboxId, SyncId};
use crate::ledger::{Expanded, Marker};

const BEGIN: &str = "begin; set local synchronous_commit = off";

/// The statements that expand markers. See the module.
pub(crate) struct Expander {
    settings: Settings,
    plans: Mutex<HashMap<(SyncId, Arc<str>), Statement>>,
}

impl Expander {
    pub(crate) fn open(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
            plans: Mutex::default(),
        }
    }

    /// See `Session::expand`.
    pub(crate) async fn expand(
        &self,
        link: &Link,
        epoch: Epoch,
        sync: &SyncSource,
        markers: &[Marker],
        limit: usize,
    ) -> Result<Expanded, Error> {
        let expanded = self.try_expand(link, epoch, sync, markers, limit).await;
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
        link: &Link,
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
        let rows = link
            .call(&doing, count.saturating_add(2), Place::Rows, async {
                let (begun, rows, committed) = tokio::join!(
                    biased;
                    client.batch_execute(BEGIN),
                    join_all(markers.iter().zip(&statements).map(|(marker, statement)| {
                        one(client, epoch, sync, marker, statement, limit)
                    })),
                    client.batch_execute("commit"),
                );
                begun?;
                // The first that failed says why; it is followed by refusals of all others.
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

    async fn statement(
        &self,
        link: &Link,
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

async fn one(
    client: &Client,
    epoch: Epoch,
    sync: &SyncSource,
    marker: &Marker,
    statement: &Statement,
    limit: i64,
) -> Result<Row, tokio_postgres::Error> {
    let related = &marker.related;
    let after = related.after.as_ref().map(Key::as_str);
    let (values, table) = (related.values.as_str(), &*related.table);
    let parameters: [&(dyn ToSql + Sync); 7] = [
        &after,
        &limit,
        &values,
        &epoch.0,
        &marker.id.0,
        &sync.name,
        &table,
    ];
    client.query_one(statement, &parameters).await
}
