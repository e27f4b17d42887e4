//! The statement that finds the keys of a marker of a related table: the next ones in key order.

use super::table::{Table, look_up};
use super::value::Filter;
use super::walk::WalkedKey;
use crate::source::error::{Error, Place};
use crate::source::link::ReadLink;
use crate::source::names::verbatim;
use crate::source::{Settings, SyncSource};
use crate::sql_kit::RelatedSpec;
use tokio_postgres::Statement;

/// Prepares the statement of one related table of a sync. `$1`: position or NULL, `$2`: most keys,
/// `$3`: values. Gives the keys.
///
/// No filter: a row that is not published any more may have been, and its pair must go.
///
/// # Errors
/// `Relation` where the matched columns are not there or may not be read; `Connection`, `Transient`.
pub(crate) async fn prepare(
    settings: &Settings,
    link: &ReadLink,
    sync: &SyncSource,
    related: &RelatedSpec,
    doing: &str,
) -> Result<Statement, Error> {
    let (table, _) = look_up(settings, link, sync, doing).await?;
    let own = related.matches.iter().map(|(own, _)| own.clone()).collect();
    let columns = SyncSource {
        key_columns: own,
        collect: None,
        ..sync.clone()
    };
    let (matched, _) = look_up(settings, link, &columns, doing).await?;
    let matching = Filter::on(&table.matches_of(&matched));
    let walk = match sync.collect {
        None => table.walk(&matching, &WalkedKey::Whole),
        Some(_) => table.walk_groups(&matching),
    };
    link.read(doing, 1, Place::Relation, link.client().prepare(&walk))
        .await
}

impl Table {
    /// Rows of this table whose columns `of` have the values `$3`.
    fn matches_of(&self, of: &Self) -> String {
        let narrow = ["smallint", "integer"].map(verbatim);
        let equal: Vec<String> = of
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let value = if narrow.contains(&column.cast) {
                    // The related column may be a wider number, whose value no row here has.
                    format!("(($3::text::jsonb)->>{at})::bigint")
                } else {
                    column.typed("$3::text::jsonb", at)
                };
                format!("{}.{} {} {value}", self.alias, column.name, column.equal)
            })
            .collect();
        equal.join(" and ")
    }
}
