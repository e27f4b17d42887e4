//! A watched table as the catalog has it, and how its key columns stand in a key.
//!
//! Owns the look into the catalog. Makes no statement that reads the table.

use super::super::error::{Error, Kind, Place};
use super::super::key_bytes::{Encoding, about};
use super::super::link::ReadLink;
use super::super::names::verbatim;
use super::super::{Settings, SyncSource};
use crate::change::KEY_MAX_BYTES;

/// Bytes of a row where the table's statistics say nothing.
const ROW_BYTES_GUESS: u64 = 1_024;

const RELATION: &str = "\
    select c.oid::int8, format('%I.%I', n.nspname, c.relname), quote_ident(c.relname),
      case when c.reltuples > 0
        then (pg_table_size(c.oid) / greatest(c.reltuples, 1))::int8 end
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where c.oid = to_regclass($1::text)::oid and c.relkind = any ('{r,p,m}'::pg_catalog.\"char\"[])";

/// Key columns with the type to cast to, without its modifier (a cast to varchar(3) would cut), the
/// type below domains, and the equality and order of the type's default B-tree operator class: with
/// only pg_catalog in the search path a type of an extension (citext) would be compared as text.
const KEY_COLUMNS: &str = "\
    select k.name, a.attnum, quote_ident(a.attname), format_type(a.atttypid, -1), b.oid::int8,
      o.equal, o.greater, o.at_least, o.at_most, coalesce(l.collisdeterministic, true),
      coalesce(b.varies, true)
    from unnest($2::text[]) with ordinality as k(name, ord)
    left join pg_attribute as a
      on a.attrelid = $1::int8::oid and a.attname = k.name and a.attnum > 0 and not a.attisdropped
    left join pg_collation as l on l.oid = a.attcollation
    left join lateral (
      with recursive below(oid, base) as (
        select t.oid, t.typbasetype from pg_type as t where t.oid = a.atttypid
        union all
        select t.oid, t.typbasetype from below join pg_type as t on t.oid = below.base
        where below.base <> 0
      )
      select below.oid, y.typlen = -1 as varies
      from below join pg_type as y on y.oid = below.oid where below.base = 0
    ) as b on true
    left join lateral (
      select
        max(format('operator(%I.%s)', s.nspname, p.oprname)) filter (where m.amopstrategy = 3)
          as equal,
        max(format('operator(%I.%s)', s.nspname, p.oprname)) filter (where m.amopstrategy = 5)
          as greater,
        max(format('operator(%I.%s)', s.nspname, p.oprname)) filter (where m.amopstrategy = 4)
          as at_least,
        max(format('operator(%I.%s)', s.nspname, p.oprname)) filter (where m.amopstrategy = 2)
          as at_most
      from pg_opclass as c
      join pg_am as am on am.oid = c.opcmethod and am.amname = 'btree'
      join pg_amop as m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype
        and m.amoprighttype = c.opcintype and m.amoppurpose = 's'
      join pg_operator as p on p.oid = m.amopopr
      join pg_namespace as s on s.oid = p.oprnamespace
      where c.opcintype = b.oid and c.opcdefault
    ) as o on true
    order by k.ord";

/// SQL for the shard of a row, as the triggers compute it.
const SHARD: &str = "\
    select pg2kv.shard_expression(s.relation, s.shard_key, $2::int4, $3::text)
    from pg2kv.sync as s where s.name = $1";

/// Whole, valid B-tree indexes; the walk follows one that holds exactly the key columns, or, with
/// many rows in one document (`$3`), that begins with them in their order.
const INDEXES: &str = "\
    select array(select unnest(i.indkey) limit $2::int4)
    from pg_index as i join pg_class as c on c.oid = i.indexrelid
    join pg_am as am on am.oid = c.relam and am.amname = 'btree'
    where i.indrelid = $1::int8::oid and i.indisvalid and i.indpred is null
      and (i.indnkeyatts = $2::int4 and i.indexprs is null or $3::bool and i.indnkeyatts > $2::int4)
      and 0 = all (i.indoption)
    order by i.indisprimary desc, i.indisunique desc, i.indexrelid";

/// Types that did not come with PostgreSQL have this number or a higher one (FirstNormalObjectId).
const FIRST_OID_OF_USERS: i64 = 16_384;
const TIMESTAMPTZ_OID: i64 = 1_184;
const BYTEA_OID: i64 = 17;
const TEXT_OID: i64 = 25;
const VARCHAR_OID: i64 = 1_043;
const BPCHAR_OID: i64 = 1_042;
/// Types whose equal values have equal text: boolean, the integers, uuid, bytea, dates and times; and
/// text where its collation is deterministic. Others do not (numeric 1.0 and 1.00, citext, character,
/// collations that ignore case).
const EXACT_OIDS: &[i64] = &[
    16,
    20,
    21,
    23,
    2_950,
    TEXT_OID,
    VARCHAR_OID,
    BYTEA_OID,
    1_082,
    1_083,
    1_114,
    TIMESTAMPTZ_OID,
];

/// Types whose values read the same in a key and in a name: boolean, the integers, uuid, text.
const ECHOED_OIDS: &[i64] = &[16, 20, 21, 23, 2_950, TEXT_OID, VARCHAR_OID];
/// Types whose text stands in a key without quotes.
const BARE_OIDS: &[i64] = &[16, 20, 21, 23];
/// The integers.
const INTEGER_OIDS: &[i64] = &[20, 21, 23];

/// A table as the catalog has it.
pub(super) struct Table {
    pub(super) name: String,
    pub(super) alias: String,
    pub(super) columns: Vec<KeyColumn>,
    /// Key columns in the order of an index, as positions.
    pub(super) order: Vec<usize>,
    /// There is such an index.
    pub(super) indexed: bool,
    /// SQL for the shard of a row, which stands behind the key columns.
    shard: Option<String>,
    pub(super) encoding: Encoding,
}

pub(super) struct KeyColumn {
    pub(super) name: String,
    pub(super) cast: String,
    pub(super) form: Form,
    /// Equal values have equal text.
    pub(super) exact: bool,
    /// A name has the text that the key has, and so has the server's `::text`.
    pub(super) echoed: bool,
    pub(super) equal: String,
    pub(super) greater: String,
    pub(super) at_least: String,
    pub(super) at_most: String,
    /// It is an integer, so its neighbours are known.
    pub(super) integer: bool,
    /// Its text stands in a key without quotes.
    pub(super) bare: bool,
    /// SQL for the bytes of a value, where these differ from row to row; `{}` stands for the value.
    pub(super) size: Option<&'static str>,
}

/// How a column stands in a key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    /// The output of its type, because JSON's own functions look for a cast that the type's owner made.
    Output,
    Timestamptz,
    Bytea,
}

/// The table, and about how many bytes a row of it has.
///
/// # Errors
/// `Relation` where table or columns are not there; `Connection`, `Transient`.
pub(super) async fn look_up(
    settings: &Settings,
    link: &ReadLink,
    sync: &SyncSource,
    doing: &str,
) -> Result<(Table, u64), Error> {
    let client = link.client();
    let lost = |what: String| {
        Error::new(Kind::Relation, doing, what)
            .with_hint("name the table with its schema, and columns as they are in the catalog")
    };
    let found = link
        .read(
            doing,
            2,
            Place::Relation,
            client.query_opt(RELATION, &[&sync.table]),
        )
        .await?
        .ok_or_else(|| lost("there is no such table".to_owned()))?;
    let oid: i64 = found.get(0);
    let rows = link
        .read(
            doing,
            2,
            Place::Relation,
            client.query(KEY_COLUMNS, &[&oid, &sync.key_columns]),
        )
        .await?;
    let mut columns = Vec::new();
    let mut numbers = Vec::new();
    for row in &rows {
        let number: Option<i16> = row.get(1);
        let number =
            number.ok_or_else(|| lost(format!("there is no column {}", row.get::<_, &str>(0))))?;
        numbers.push(number);
        let or_catalog = |operator: Option<String>, plain: &str| {
            verbatim(&operator.unwrap_or_else(|| format!("operator(pg_catalog.{plain})")))
        };
        let below_domains: i64 = row.get(4);
        columns.push(KeyColumn {
            name: verbatim(row.get(2)),
            cast: verbatim(row.get(3)),
            form: match below_domains {
                TIMESTAMPTZ_OID => Form::Timestamptz,
                BYTEA_OID => Form::Bytea,
                FIRST_OID_OF_USERS.. => Form::Output,
                _ => Form::Plain,
            },
            exact: EXACT_OIDS.contains(&below_domains) && row.get(9),
            echoed: ECHOED_OIDS.contains(&below_domains),
            equal: or_catalog(row.get(5), "="),
            greater: or_catalog(row.get(6), ">"),
            at_least: or_catalog(row.get(7), ">="),
            at_most: or_catalog(row.get(8), "<="),
            bare: BARE_OIDS.contains(&below_domains),
            integer: INTEGER_OIDS.contains(&below_domains),
            size: match below_domains {
                _ if !row.get::<_, bool>(10) => None,
                BYTEA_OID => Some("octet_length({}) * 2"),
                TEXT_OID | VARCHAR_OID | BPCHAR_OID => Some("octet_length({})"),
                _ => Some("octet_length(format('%s', {}))"),
            },
        });
    }
    let count = i32::try_from(numbers.len()).unwrap_or(i32::MAX);
    let indexes = link
        .read(
            doing,
            2,
            Place::Relation,
            client.query(INDEXES, &[&oid, &count, &sync.collect.is_some()]),
        )
        .await?;
    let mut orders = indexes.iter().filter_map(|row| {
        let columns: Vec<i16> = row.get(0);
        columns
            .iter()
            .map(|number| numbers.iter().position(|ours| ours == number))
            .collect::<Option<Vec<_>>>()
    });
    // Documents of many rows are walked in the order of their columns, with an index or without: a
    // walk may begin before there is one.
    let in_order = |order: &Vec<usize>| sync.collect.is_none() || order.is_sorted();
    let indexed = orders.find(in_order);
    let row_bytes = found
        .get::<_, Option<i64>>(3)
        .and_then(|bytes| u64::try_from(bytes).ok());
    let alias: String = found.get(2);
    let shard = match sync.collect.as_ref().and_then(|collect| collect.shards) {
        None => None,
        Some(shards) => Some(shard(settings, link, sync, shards, &alias, doing).await?),
    };
    let table = Table {
        name: verbatim(found.get(1)),
        alias: verbatim(&alias),
        indexed: indexed.is_some(),
        order: indexed.unwrap_or_else(|| (0..columns.len()).collect()),
        columns,
        shard,
        encoding: link.encoding(),
    };
    Ok((
        table,
        row_bytes
            .filter(|bytes| *bytes > 0)
            .unwrap_or(ROW_BYTES_GUESS),
    ))
}

async fn shard(
    settings: &Settings,
    link: &ReadLink,
    sync: &SyncSource,
    shards: u32,
    alias: &str,
    doing: &str,
) -> Result<String, Error> {
    let shards = i32::try_from(shards).unwrap_or(i32::MAX);
    let sql = settings.sql(SHARD);
    let row = link
        .read(
            doing,
            2,
            Place::Own,
            link.client()
                .query_opt(&sql, &[&sync.name, &shards, &alias]),
        )
        .await?;
    row.and_then(|row| row.get::<_, Option<&str>>(0).map(verbatim))
        .ok_or_else(|| {
            Error::new(
                Kind::Relation,
                doing,
                "the table is not watched with shards",
            )
            .with_hint("run `pg2kv install`")
        })
}

impl Table {
    /// Number of values in a key.
    pub(super) fn width(&self) -> usize {
        self.columns.len() + usize::from(self.shard.is_some())
    }

    /// Whether the texts in a key are those of its columns, so that the server need not tell them.
    pub(super) fn echoes(&self) -> bool {
        self.columns.iter().all(|column| column.echoed)
    }

    /// Something for each value of a key, with its position: the columns, and the shard.
    pub(super) fn parts(
        &self,
        column: impl Fn(usize, &KeyColumn) -> String,
        shard: impl Fn(usize) -> String,
    ) -> Vec<String> {
        let columns = self.columns.iter().enumerate();
        columns
            .map(|(at, each)| column(at, each))
            .chain(self.shard.iter().map(|_| shard(self.columns.len())))
            .collect()
    }

    /// The shard of a row; empty where there are none.
    pub(super) fn shard_sql(&self) -> &str {
        self.shard.as_deref().unwrap_or_default()
    }

    /// SQL for the bytes of a row's key, as the trigger counts them; `None` where no key is long.
    pub(super) fn key_size(&self) -> Option<String> {
        let columns = self.columns.iter();
        let sizes: Vec<String> = columns
            .filter_map(|column| {
                let value = format!("{}.{}", self.alias, column.name);
                Some(format!("({})", column.size?.replace("{}", &value)))
            })
            .collect();
        (!sizes.is_empty()).then(|| sizes.join(" + "))
    }

    /// SQL for what is told of a row whose key is too long, as the trigger tells it; NULL of others.
    pub(super) fn about_key(&self) -> String {
        let Some(size) = self.key_size() else {
            return "null::text".to_owned();
        };
        let columns = self.columns.iter();
        let values: Vec<String> = columns
            .map(|column| format!("{}.{}", self.alias, column.name))
            .collect();
        let about = about(&size, &format!("concat_ws(',', {})", values.join(", ")));
        format!("case when ({size}) > {KEY_MAX_BYTES} then {about} end")
    }

    /// The key of a row, as the trigger makes it.
    pub(super) fn key_of_row(&self) -> String {
        let values = self.parts(
            |_, column| column.to_key(&self.alias),
            |_| self.shard_sql().to_owned(),
        );
        format!("jsonb_build_array({})", values.join(", "))
    }
}

impl KeyColumn {
    /// The typed value out of a key.
    pub(super) fn typed(&self, key: &str, at: usize) -> String {
        self.of_text(&format!("(({key})->>{at})"))
    }

    /// The typed value of the text that a key has for it.
    pub(super) fn of_text(&self, text: &str) -> String {
        match self.form {
            // Text without an offset is UTC, as the session's time zone is.
            Form::Plain | Form::Output | Form::Timestamptz => format!("{text}::{}", self.cast),
            Form::Bytea => format!("decode({text}, 'hex')::{}", self.cast),
        }
    }

    /// The value as the trigger puts it into a key: independent of a writer's session settings.
    pub(super) fn to_key(&self, alias: &str) -> String {
        let name = &self.name;
        match self.form {
            Form::Plain => format!("{alias}.{name}"),
            Form::Output => format!("format('%s', {alias}.{name})"),
            Form::Timestamptz => format!("{alias}.{name} at time zone 'UTC'"),
            Form::Bytea => format!("encode({alias}.{name}, 'hex')"),
        }
    }
}
