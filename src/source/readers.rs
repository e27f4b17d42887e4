//! The sessions that read tables of users: one for each owner of such tables.
//!
//! Owns which session reads which table. A table's owner can have code of theirs run by whoever reads the
//! table (see [`ReadLink`]), and what it does to the session lasts: settings, prepared statements. So tables
//! of different owners are never read in one session, or the owner of one table could decide what
//! the documents of all others say.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::{join_all, select_all};
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;

use super::claim::{Claims, Reader};
use super::error::{Error, Place};
use super::link::{ReadLink, Role};
use super::{Settings, SyncSource};

/// Without `to_regclass`, which fails where the schema is barred. A table that is not there has no
/// owner.
const OWNER: &str = "\
    select c.relowner::int8 from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = (parse_ident($1::text))[1] and c.relname = (parse_ident($1::text))[2]";

/// Number of a role; `None` where there is no table.
type Owner = Option<i64>;

/// The readers of a session. See the module.
pub(crate) struct Readers {
    settings: Settings,
    role: Role,
    claims: Arc<Claims>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    owners: HashMap<String, Owner>,
    readers: HashMap<Owner, Arc<Reader>>,
}

impl Readers {
    pub(crate) fn new(settings: &Settings, role: Role, claims: &Arc<Claims>) -> Self {
        Self {
            settings: settings.clone(),
            role,
            claims: Arc::clone(claims),
            open: Mutex::default(),
        }
    }

    /// What claims.
    pub(crate) fn claims(&self) -> &Arc<Claims> {
        &self.claims
    }

    /// The reader of the sync's table; connects where its owner has none.
    ///
    /// # Errors
    /// As for any connection.
    pub(crate) async fn of(&self, sync: &SyncSource) -> Result<Arc<Reader>, Error> {
        let mut open = self.open.lock().await;
        let owner = match open.owners.get(&sync.table) {
            Some(owner) => *owner,
            None => {
                let owner = self.owner(sync).await?;
                open.owners.insert(sync.table.clone(), owner);
                owner
            }
        };
        if let Some(reader) = open.readers.get(&owner) {
            return Ok(Arc::clone(reader));
        }
        let link = Arc::new(ReadLink::open(&self.settings, self.role).await?);
        let reader = Reader::new(&self.settings, Arc::clone(&self.claims), link);
        let reader = Arc::new(reader);
        open.readers.insert(owner, Arc::clone(&reader));
        Ok(reader)
    }

    async fn owner(&self, sync: &SyncSource) -> Result<Owner, Error> {
        let link = self.claims.link();
        let parameters: [&(dyn ToSql + Sync); 1] = [&sync.table];
        let row = link.client().query_opt(OWNER, &parameters);
        let doing = format!("looking for the owner of {}", sync.table);
        let row = link.call(&doing, 2, Place::Relation, row).await?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Resolves when one of the connections that are open now is gone.
    pub(crate) async fn closed(&self) {
        let links: Vec<Arc<ReadLink>> = {
            let open = self.open.lock().await;
            let readers = open.readers.values();
            readers.map(|reader| Arc::clone(reader.link())).collect()
        };
        let ends = links.iter().map(|link| Box::pin(link.closed()));
        let ends = ends.collect::<Vec<_>>();
        if ends.is_empty() {
            std::future::pending::<()>().await;
        }
        select_all(ends).await;
    }

    /// Connects for each of the syncs, so that their first reads do not wait for that.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub(crate) async fn open_for(&self, syncs: &[SyncSource]) -> Result<(), Error> {
        let opened = join_all(syncs.iter().map(|sync| self.of(sync))).await;
        opened.into_iter().try_for_each(|reader| reader.map(drop))
    }
}
