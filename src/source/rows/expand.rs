//! The statement that turns a marker of a related table into keys: the next ones in key order, into
//! the outbox, together with the marker's new position.

use super::table::{Table, look_up};
use super::value::Filter;
use super::walk::WalkedKey;
use crate::source::error::{Error, Place};
use crate::source::key_bytes::Encoding;
use crate::source::link::Link;
use crate::source::names::verbatim;
use crate::source::{Settings, SyncSource};
use crate::sql_kit::RelatedSpec;
use tokio_postgres::Statement;

/// `$1` position or NULL, `$2` most keys, `$3` values, `$4` epoch, `$5` the marker's row, `$6` sync,
/// `$7` related table. Gives whether the epoch holds, the number of keys, whether the marker is at
/// its end, and the highest new id.
///
/// The marker goes first: where somebody else had it (unwatch did), nothing is written. Its time goes
/// on with the keys, so that their age is that of the change. No filter: a row that is not published
/// any more may have been, and its pair must go.
const EXPAND: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $4::int8 for share),
    taken as materialized (select pg2kv.take(array[$5::int8], array[$5]) as at from fence),
    gone as (select t.at from taken as t where t.at is not null),
    found as materialized (
      -- The walk is in order, and numbered as it comes.
      select {key} as key, w.about, row_number() over () as place from ({walk}) as w(key, about)
    ),
    written as (
      insert into pg2kv.outbox (sync, key, at)
      select $6::text, case when f.about is null then f.key
          else jsonb_build_object('oversized', split_part(f.about, ' ', 1)::int8,
            'md5', split_part(f.about, ' ', 2)) end,
        g.at
      from gone as g, found as f order by f.place
      returning id
    ),
    moved as (
      insert into pg2kv.outbox (sync, key, at)
      select $6, jsonb_build_object('related', $7::text, 'values', $3::text::jsonb,
        'after', (select f.key from found as f where f.key is not null order by f.place desc limit 1)), g.at
      from gone as g where (select count(*) from found) >= $2::int8
      returning id
    )
    select exists (select from fence), (select count(*) from written),
      not exists (select from moved),
      (select max(n.id) from (select id from written union all select id from moved) as n)";

/// Prepares the statement of one related table of a sync.
///
/// # Errors
/// `Relation` where the matched columns are not there or may not be read; `Connection`, `Transient`.
pub(crate) async fn prepare(
    settings: &Settings,
    link: &Link,
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
    let key = match link.encoding() {
        Encoding::Utf8 => "w.key::jsonb",
        Encoding::SqlAscii | Encoding::Other => "convert_from(w.key, getdatabaseencoding())::jsonb",
    };
    let sql = settings.sql(EXPAND).replace("{key}", key);
    let sql = sql.replace("{walk}", &walk);
    link.call(doing, 2, Place::Relation, link.client().prepare(&sql))
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
