//! Names that are no longer made, in the ledger: from when their configuration is replaced, or a scan
//! finds pairs of a sync whose names no key of its types makes, until no pair of theirs is left in KV.

use tokio_postgres::types::ToSql;

use super::audit::Auditor;
use super::error::{Error, Place};
use super::link::Link;
use super::{Settings, SyncSource};
use crate::change::Epoch;
use crate::ledger::{OldNames, RetiredId};

/// Names that are no longer made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retired {
    /// The namespace that they stand in.
    pub namespace: String,
    /// The template that made them.
    pub template: String,
    /// The columns whose values it takes.
    pub key_values: Vec<String>,
    /// The sync that had it.
    pub sync: String,
}

const FIND: &str = "\
    select namespace, template, key_values, sync from pg2kv.retired
    where $1::int8 is null or id = $1 order by id";

/// First everything that the outbox holds now has to be claimed, by a walk over all rows perhaps, then
/// every claim that stands by then to be settled: by then all that the comparison found is written.
const WRITTEN: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    seen as (
      select r.id, r.after_outbox,
        exists (select from pg2kv.outbox as o where o.sync = r.sync and o.id <= r.after_outbox)
          or exists (select from pg2kv.backfill as b where b.sync = r.sync) as waits,
        r.after_claim,
        exists (select from pg2kv.claim as c where c.sync = r.sync and c.id <= r.after_claim)
          as claimed
      from pg2kv.retired as r where r.id = $2
    ),
    moved as (
      update pg2kv.retired as r set
        after_outbox = coalesce(s.after_outbox, (select last_value from pg2kv.outbox_id_seq)),
        after_claim = case when s.after_outbox is not null and not s.waits
          then coalesce(s.after_claim, (select coalesce(max(c.id), 0) from pg2kv.claim as c)) end
      from seen as s
      where r.id = s.id and s.after_claim is null and exists (select from fence)
    )
    select exists (select from fence),
      exists (select from seen where after_claim is not null and not claimed)";

/// `$2`: a sync with pairs that its present template, but no key of its present types makes.
const RETIRE: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    retired as (
      insert into pg2kv.retired as r (sync, namespace, template, key_values)
      select s.name, s.configured->>'namespace_id', s.configured->>'key',
        array(select jsonb_array_elements_text(s.configured->'key_values'))
      from fence, pg2kv.sync as s
      where s.name = $2::text and s.configured ? 'namespace_id'
      -- It tells the id, and leaves alone how far the wait for the new names is.
      on conflict (sync, namespace, template, key_values) do update set sync = excluded.sync
      returning id
    )
    select exists (select from fence), (select id from retired)";

const TOUCHED: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    noted as (
      update pg2kv.retired set touched_at = clock_timestamp()
      where id = $2 and exists (select from fence)
    )
    select exists (select from fence)";

const FORGET: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    gone as (delete from pg2kv.retired where id = $2 and exists (select from fence))
    select exists (select from fence)";

/// Retires the names of a sync that none of its keys makes; returns what they are now, if the ledger
/// knows the sync.
pub(crate) async fn retire(
    settings: &Settings,
    link: &Link,
    epoch: Epoch,
    sync: &SyncSource,
) -> Result<Option<OldNames>, Error> {
    let doing = "retiring names that no key makes";
    let sql = settings.sql(RETIRE);
    let parameters: [&(dyn ToSql + Sync); 2] = [&epoch.0, &sync.name];
    let row = link.client().query_one(&sql, &parameters);
    let row = link.call(doing, 2, Place::Own, row).await?;
    if !row.get::<_, bool>(0) {
        return Err(Error::fenced(doing));
    }
    let id = row.get::<_, Option<i64>>(1).map(RetiredId);
    Ok(id.map(|id| OldNames { id, sync: sync.id }))
}

impl Auditor {
    /// Retires the names of a sync that none of its keys makes.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn retire(&self, epoch: Epoch, sync: &SyncSource) -> Result<Option<OldNames>, Error> {
        retire(self.settings(), self.link(), epoch, sync).await
    }

    /// The names of this number; `None` where they are forgotten.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`.
    pub async fn retired(&self, id: RetiredId) -> Result<Option<Retired>, Error> {
        Ok(self.find_retired(Some(id.0)).await?.pop())
    }

    /// All names that are retired.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Refused`.
    pub async fn all_retired(&self) -> Result<Vec<Retired>, Error> {
        self.find_retired(None).await
    }

    async fn find_retired(&self, id: Option<i64>) -> Result<Vec<Retired>, Error> {
        let sql = self.settings().sql(FIND);
        let parameters: [&(dyn ToSql + Sync); 1] = [&id];
        let rows = self.link().client().query(&sql, &parameters);
        let rows = self
            .link()
            .call("looking for retired names", 2, Place::Own, rows)
            .await?;
        Ok(rows
            .iter()
            .map(|row| Retired {
                namespace: row.get(0),
                template: row.get(1),
                key_values: row.get(2),
                sync: row.get(3),
            })
            .collect())
    }

    /// Whether all that was to be written when this was first asked is written.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn new_names_are_written(&self, epoch: Epoch, id: RetiredId) -> Result<bool, Error> {
        let doing = "asking whether the new names are written";
        let sql = self.settings().sql(WRITTEN);
        let parameters: [&(dyn ToSql + Sync); 2] = [&epoch.0, &id.0];
        let row = self.link().client().query_one(&sql, &parameters);
        let row = self.link().call(doing, 2, Place::Own, row).await?;
        if row.get(0) {
            Ok(row.get(1))
        } else {
            Err(Error::fenced(doing))
        }
    }

    /// Notes that pairs of these names are about to be deleted.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn touch_retired(&self, epoch: Epoch, id: RetiredId) -> Result<(), Error> {
        let doing = "noting deletes of retired names";
        self.fenced(doing, TOUCHED, &[&epoch.0, &id.0]).await
    }

    /// Forgets the names: no pair of theirs is left.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Fenced`, `Refused`.
    pub async fn forget_retired(&self, epoch: Epoch, id: RetiredId) -> Result<(), Error> {
        let doing = "forgetting retired names";
        self.fenced(doing, FORGET, &[&epoch.0, &id.0]).await
    }
}
