//! Which installation this is, and which names were seen to be free of pairs of another one.

use std::collections::HashSet;

use tokio_postgres::types::ToSql;

use super::error::{Error, Kind, Place};
use super::link::Link;
use super::{Settings, SyncSource};
use crate::change::owner::{Installation, InstallationId};
use crate::change::{Epoch, SyncId};

const INSTALLATION: &str = "select installation, adopted from pg2kv.meta";

/// Syncs whose names are those that were looked at last.
const LOOKED_AT: &str = "\
    select name from pg2kv.sync
    where names_free = concat_ws(' ', configured->>'namespace_id', configured->>'key')";

/// `$2`: the sync whose names, as they are configured now, are free.
const NOTE_FREE: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    noted as (
      update pg2kv.sync
      set names_free = concat_ws(' ', configured->>'namespace_id', configured->>'key')
      where name = $2::text and exists (select from fence)
    )
    select exists (select from fence)";

/// Reads which installation this is.
///
/// # Errors
/// `Refused` if the schema does not say; as for any statement.
pub(crate) async fn load(settings: &Settings, link: &Link) -> Result<Installation, Error> {
    let doing = "asking which installation this is";
    let sql = settings.sql(INSTALLATION);
    let row = link.client().query_opt(&sql, &[]);
    let row = link.call(doing, 2, Place::Own, row).await?;
    let parse = |text: &str| {
        InstallationId::parse(text).ok_or_else(|| {
            let schema = &settings.schema;
            Error::new(
                Kind::Refused,
                doing,
                format!("{schema}.meta names an installation that is not 12 hexadecimal digits"),
            )
            .with_hint("correct the columns installation and adopted of that table")
        })
    };
    let Some(row) = row else {
        return Err(Error::new(Kind::Refused, doing, "the table meta is empty")
            .with_hint("run `pg2kv install`, which puts the row of the table meta back"));
    };
    Ok(Installation {
        id: parse(row.get(0))?,
        adopted: row
            .get::<_, Vec<&str>>(1)
            .into_iter()
            .map(parse)
            .collect::<Result<_, _>>()?,
    })
}

/// Syncs whose names, as they are configured, were not looked at yet.
pub(crate) async fn not_looked_at(
    settings: &Settings,
    link: &Link,
    syncs: &[SyncSource],
) -> Result<Vec<SyncId>, Error> {
    let doing = "asking which names were looked at";
    let sql = settings.sql(LOOKED_AT);
    let rows = link.client().query(&sql, &[]);
    let rows = link.call(doing, 2, Place::Own, rows).await?;
    let free: HashSet<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(syncs
        .iter()
        .filter(|sync| !free.contains(sync.name.as_str()))
        .map(|sync| sync.id)
        .collect())
}

/// Notes that no pair of another installation has a name of this sync.
pub(crate) async fn note_free(
    settings: &Settings,
    link: &Link,
    epoch: Epoch,
    sync: &SyncSource,
) -> Result<(), Error> {
    let doing = "noting that names are free";
    let sql = settings.sql(NOTE_FREE);
    let parameters: [&(dyn ToSql + Sync); 2] = [&epoch.0, &sync.name];
    let row = link.client().query_one(&sql, &parameters);
    let row = link.call(doing, 2, Place::Own, row).await?;
    if row.get(0) {
        Ok(())
    } else {
        Err(Error::fenced(doing))
    }
}
