//! The statements that read a watched table: documents by key, and keys in order.
//!
//! Owns how a key's text becomes typed columns and how a value expression becomes a statement.
//! Identifiers come quoted from the catalog, never from the configuration; the operator's value and
//! filter are put in as they are.

use tokio_postgres::Statement;

use super::error::{Error, Kind, Place};
use super::link::Link;
use super::{SyncSource, ValueSql};
use crate::change::KV_VALUE_MAX_BYTES;

/// Bytes of a row where the table's statistics say nothing.
const ROW_BYTES_GUESS: u64 = 1_024;
/// Longest identifier that PostgreSQL keeps whole.
const NAME_MAX_BYTES: usize = 63;

const RELATION: &str = "\
    select c.oid::int8, format('%I.%I', n.nspname, c.relname), quote_ident(c.relname),
      case when c.reltuples > 0
        then (pg_table_size(c.oid) / greatest(c.reltuples, 1))::int8 end
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    where c.oid = to_regclass($1::text)::oid and c.relkind in ('r', 'p', 'm')";

/// Key columns with the type to cast to, without its modifier (a cast to varchar(3) would cut), the
/// type below domains, and the equality and order of the type's default B-tree operator class: with
/// only pg_catalog in the search path a type of an extension (citext) would be compared as text.
const KEY_COLUMNS: &str = "\
    select k.name, a.attnum, quote_ident(a.attname), format_type(a.atttypid, -1), b.oid::int8,
      o.equal, o.greater
    from unnest($2::text[]) with ordinality as k(name, ord)
    left join pg_attribute as a
      on a.attrelid = $1::int8::oid and a.attname = k.name and a.attnum > 0 and not a.attisdropped
    left join lateral (
      with recursive below(oid, base) as (
        select t.oid, t.typbasetype from pg_type as t where t.oid = a.atttypid
        union all
        select t.oid, t.typbasetype from below join pg_type as t on t.oid = below.base
        where below.base <> 0
      )
      select oid from below where base = 0
    ) as b on true
    left join lateral (
      select
        max(format('operator(%I.%s)', s.nspname, p.oprname)) filter (where m.amopstrategy = 3)
          as equal,
        max(format('operator(%I.%s)', s.nspname, p.oprname)) filter (where m.amopstrategy = 5)
          as greater
      from pg_opclass as c
      join pg_am as am on am.oid = c.opcmethod and am.amname = 'btree'
      join pg_amop as m on m.amopfamily = c.opcfamily and m.amoplefttype = c.opcintype
        and m.amoprighttype = c.opcintype and m.amoppurpose = 's'
      join pg_operator as p on p.oid = m.amopopr
      join pg_namespace as s on s.oid = p.oprnamespace
      where c.opcintype = b.oid and c.opcdefault
    ) as o on true
    order by k.ord";

/// Whole, valid B-tree indexes; the walk follows one that holds exactly the key columns.
const INDEXES: &str = "\
    select array(select unnest(i.indkey) limit i.indnkeyatts)
    from pg_index as i join pg_class as c on c.oid = i.indexrelid
    join pg_am as am on am.oid = c.relam and am.amname = 'btree'
    where i.indrelid = $1::int8::oid and i.indisvalid and i.indpred is null and i.indexprs is null
      and i.indnkeyatts = $2::int4 and 0 = all (i.indoption)
    order by i.indisprimary desc, i.indisunique desc, i.indexrelid";

const TIMESTAMPTZ_OID: i64 = 1_184;
const BYTEA_OID: i64 = 17;
/// Types whose equal values have equal text: boolean, the integers, uuid, bytea, dates and times.
/// Others do not (numeric 1.0 and 1.00, citext, character, collations that ignore case).
const EXACT_OIDS: &[i64] = &[
    16,
    20,
    21,
    23,
    2_950,
    BYTEA_OID,
    1_082,
    1_083,
    1_114,
    TIMESTAMPTZ_OID,
];

/// The prepared reads of one sync on one connection.
pub(crate) struct Plan {
    /// `$1`: keys as `text[]`. Gives the key's place, its columns, the document.
    pub(crate) rows: Statement,
    /// `$1`: position or NULL, `$2`: limit.
    pub(crate) walk: Statement,
    /// The same without the filter, for when the filter fails for some row.
    pub(crate) walk_all: Statement,
    /// `$1`: the texts of the key columns, each a JSON array, as `text[]`. Gives the keys.
    pub(crate) keys: Statement,
    /// SQL. `$1`: position, `$2`: key. Whether a walk at the position has the key ahead of it.
    pub(crate) ahead: String,
    /// Number of key columns.
    pub(crate) columns: usize,
    /// Bytes of a row's document, a first guess.
    pub(crate) row_bytes: u64,
}

/// A table as the catalog has it.
struct Table {
    name: String,
    alias: String,
    columns: Vec<KeyColumn>,
    /// Key columns in the order of an index, as positions.
    order: Vec<usize>,
}

struct KeyColumn {
    name: String,
    cast: String,
    form: Form,
    /// Equal values have equal text.
    exact: bool,
    equal: String,
    greater: String,
}

/// How a column stands in a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Timestamptz,
    Bytea,
}

impl Plan {
    /// Looks the table up and prepares its statements.
    ///
    /// # Errors
    /// `Relation` where table or columns are not there or may not be read; `Connection`,
    /// `Transient`.
    pub(crate) async fn prepare(link: &Link, sync: &SyncSource) -> Result<Self, Error> {
        let doing = format!("preparing to read {} for sync {}", sync.table, sync.name);
        let (table, row_bytes) = look_up(link, sync, &doing).await?;
        let (rows, walk, walk_all, keys) = (
            table.rows(sync, &doing)?,
            table.walk(sync.filter.as_deref()),
            table.walk(None),
            table.keys(),
        );
        let client = link.client();
        let (rows, walk, walk_all, keys) = link
            .call(&doing, 4, Place::Relation, async {
                tokio::try_join!(
                    client.prepare(&rows),
                    client.prepare(&walk),
                    client.prepare(&walk_all),
                    client.prepare(&keys)
                )
            })
            .await
            .map_err(while_preparing)?;
        Ok(Self {
            rows,
            walk,
            walk_all,
            keys,
            ahead: table.ahead(),
            columns: table.columns.len(),
            row_bytes,
        })
    }

    /// Runs the read for no keys: privileges and row-level security show only when a statement runs.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub(crate) async fn try_out(&self, link: &Link, sync: &SyncSource) -> Result<(), Error> {
        let doing = format!("reading {} for sync {}", sync.table, sync.name);
        let no_keys: &[&str] = &[];
        link.call(
            &doing,
            1,
            Place::Relation,
            link.client().query(&self.rows, &[&no_keys]),
        )
        .await
        .map(drop)
    }
}

/// No row was read yet, so a constant of the expression is at fault, not a row.
fn while_preparing(error: Error) -> Error {
    if error.kind() == Kind::Row {
        error.into_relation()
    } else {
        error
    }
}

async fn look_up(link: &Link, sync: &SyncSource, doing: &str) -> Result<(Table, u64), Error> {
    let client = link.client();
    let lost = |what: String| {
        Error::new(Kind::Relation, doing, what)
            .with_hint("name the table with its schema, and columns as they are in the catalog")
    };
    let found = link
        .call(
            doing,
            2,
            Place::Relation,
            client.query_opt(RELATION, &[&sync.table]),
        )
        .await?
        .ok_or_else(|| lost("there is no such table".to_owned()))?;
    let oid: i64 = found.get(0);
    let rows = link
        .call(
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
            operator.unwrap_or_else(|| format!("operator(pg_catalog.{plain})"))
        };
        let below_domains: i64 = row.get(4);
        columns.push(KeyColumn {
            name: row.get(2),
            cast: row.get(3),
            form: match below_domains {
                TIMESTAMPTZ_OID => Form::Timestamptz,
                BYTEA_OID => Form::Bytea,
                _ => Form::Plain,
            },
            exact: EXACT_OIDS.contains(&below_domains),
            equal: or_catalog(row.get(5), "="),
            greater: or_catalog(row.get(6), ">"),
        });
    }
    let count = i32::try_from(numbers.len()).unwrap_or(i32::MAX);
    let indexes = link
        .call(
            doing,
            2,
            Place::Relation,
            client.query(INDEXES, &[&oid, &count]),
        )
        .await?;
    let order = indexes
        .iter()
        .find_map(|row| {
            row.get::<_, Vec<i16>>(0)
                .iter()
                .map(|number| numbers.iter().position(|ours| ours == number))
                .collect::<Option<Vec<_>>>()
        })
        .unwrap_or_else(|| (0..numbers.len()).collect());
    let row_bytes = found
        .get::<_, Option<i64>>(3)
        .and_then(|bytes| u64::try_from(bytes).ok());
    let table = Table {
        name: found.get(1),
        alias: found.get(2),
        columns,
        order,
    };
    Ok((
        table,
        row_bytes
            .filter(|bytes| *bytes > 0)
            .unwrap_or(ROW_BYTES_GUESS),
    ))
}

impl Table {
    /// Documents by key.
    ///
    /// `offset 0` keeps the subquery whole: keys drive a nested loop, so rows come in the order of
    /// the keys without a sort that would hold all values, and the expression is evaluated once,
    /// for rows that match only.
    fn rows(&self, sync: &SyncSource, doing: &str) -> Result<String, Error> {
        let alias = &self.alias;
        let each = |part: &dyn Fn(usize, &KeyColumn) -> String, between: &str| {
            let parts: Vec<String> = self
                .columns
                .iter()
                .enumerate()
                .map(|(at, column)| part(at, column))
                .collect();
            parts.join(between)
        };
        let texts = each(&|at, _| format!("pg2kv_key.c{at}::text"), ", ");
        let typed = each(
            &|at, column| format!("{} as c{at}", column.typed("u.key", at)),
            ", ",
        );
        // The index finds what is equal; what is equal but reads otherwise is another key, and its
        // document has another name.
        let own_key = self.key_of_row();
        let matches = each(
            &|at, column| {
                let equal = format!("{alias}.{} {} pg2kv_key.c{at}", column.name, column.equal);
                if column.exact {
                    return equal;
                }
                let own = column.typed(&own_key, at);
                format!("{equal} and ({own})::text = pg2kv_key.c{at}::text")
            },
            " and ",
        );
        let value = value_sql(&sync.value, alias, doing)?;
        let filter = filter_sql(sync.filter.as_deref());
        let name = &self.name;
        // A value over the limit is refused anyway: it need not travel, or be held, whole.
        let (max, cut) = (KV_VALUE_MAX_BYTES, KV_VALUE_MAX_BYTES + 1);
        Ok(format!(
            "select pg2kv_key.ord, {texts}, case when octet_length(pg2kv_document.value) > {max} \
             then left(pg2kv_document.value, {cut}) else pg2kv_document.value end \
             from (select u.ord, {typed} from (select k.ord, k.key::jsonb as key \
             from unnest($1::text[]) with ordinality as k(key, ord)) as u) as pg2kv_key \
             left join lateral (select {value} as value from {name} as {alias} \
             where {matches} {filter} offset 0) as pg2kv_document on true"
        ))
    }

    /// Keys of the texts that stand in names, in their order.
    fn keys(&self) -> String {
        let typed: Vec<String> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| format!("(u.names->>{at})::{} as {}", column.cast, column.name))
            .collect();
        let key: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.to_key("pg2kv_key"))
            .collect();
        format!(
            "select jsonb_build_array({})::text from (select u.ord, {} from (select k.ord, \
             k.names::jsonb as names from unnest($1::text[]) with ordinality as k(names, ord)) as u) \
             as pg2kv_key order by pg2kv_key.ord",
            key.join(", "),
            typed.join(", ")
        )
    }

    /// Keys in the order of an index. A key with a NULL in it is not published.
    fn walk(&self, filter: Option<&str>) -> String {
        let alias = &self.alias;
        let ordered: Vec<(usize, &KeyColumn)> = self
            .order
            .iter()
            .map(|at| (*at, &self.columns[*at]))
            .collect();
        let join = |part: &dyn Fn(usize, &KeyColumn) -> String, between: &str| {
            let parts: Vec<String> = ordered
                .iter()
                .map(|(at, column)| part(*at, column))
                .collect();
            parts.join(between)
        };
        let (name, key) = (&self.name, self.key_of_row());
        format!(
            "select {key}::text from {name} as {alias} \
             where {present} and ($1::text is null or {after}) {filter} order by {order} limit $2::int8",
            present = join(
                &|_, column| format!("{alias}.{} is not null", column.name),
                " and "
            ),
            after = after(alias, &ordered),
            filter = filter_sql(filter),
            order = join(&|_, column| format!("{alias}.{}", column.name), ", "),
        )
    }

    /// Whether a key stands behind a position, in the order of [`Self::walk`].
    fn ahead(&self) -> String {
        let ordered: Vec<(usize, &KeyColumn)> = self
            .order
            .iter()
            .map(|at| (*at, &self.columns[*at]))
            .collect();
        let typed: Vec<String> = ordered
            .iter()
            .map(|(at, column)| format!("{} as {}", column.typed("u.key", *at), column.name))
            .collect();
        format!(
            "select {} from (select {} from (select $2::text::jsonb as key) as u) as pg2kv_key",
            after("pg2kv_key", &ordered),
            typed.join(", ")
        )
    }

    /// The key of a row, as the trigger makes it.
    fn key_of_row(&self) -> String {
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| column.to_key(&self.alias))
            .collect();
        format!("jsonb_build_array({})", columns.join(", "))
    }
}

/// "Behind the position" in index order. A row comparison is what an index serves best; it takes
/// one operator for all columns, so with types of different schemas the comparison is spelled out.
fn after(alias: &str, ordered: &[(usize, &KeyColumn)]) -> String {
    let position = |at: usize, column: &KeyColumn| column.typed("$1::text::jsonb", at);
    let Some(((at, first), rest)) = ordered.split_first() else {
        return "true".to_owned();
    };
    if ordered
        .iter()
        .all(|(_, column)| column.greater == first.greater)
    {
        let columns: Vec<String> = ordered
            .iter()
            .map(|(_, column)| format!("{alias}.{}", column.name))
            .collect();
        let positions: Vec<String> = ordered
            .iter()
            .map(|(at, column)| position(*at, column))
            .collect();
        return format!(
            "({}) {} ({})",
            columns.join(", "),
            first.greater,
            positions.join(", ")
        );
    }
    let (name, value) = (&first.name, position(*at, first));
    let beyond = format!("{alias}.{name} {} {value}", first.greater);
    if rest.is_empty() {
        return beyond;
    }
    format!(
        "({beyond} or ({alias}.{name} {} {value} and {}))",
        first.equal,
        after(alias, rest)
    )
}

impl KeyColumn {
    /// The typed value out of a key.
    fn typed(&self, key: &str, at: usize) -> String {
        match self.form {
            // Text without an offset is UTC, as the session's time zone is.
            Form::Plain | Form::Timestamptz => format!("(({key})->>{at})::{}", self.cast),
            Form::Bytea => format!("decode(({key})->>{at}, 'hex')::{}", self.cast),
        }
    }

    /// The value as the trigger puts it into a key: independent of a writer's session settings.
    fn to_key(&self, alias: &str) -> String {
        let name = &self.name;
        match self.form {
            Form::Plain => format!("{alias}.{name}"),
            Form::Timestamptz => format!("{alias}.{name} at time zone 'UTC'"),
            Form::Bytea => format!("encode({alias}.{name}, 'hex')"),
        }
    }
}

/// The document as text.
///
/// Columns become JSON by `row_to_json`: each keeps the text that Postgres itself gives it (numeric
/// exact, timestamps ISO 8601), in the order asked for, without spaces, and with no limit on their
/// number. `jsonb` would reorder, `json_build_object` takes 50 and pads.
fn value_sql(value: &ValueSql, alias: &str, doing: &str) -> Result<String, Error> {
    match value {
        ValueSql::Expression(expression) => Ok(format!("(\n{expression}\n)::text")),
        ValueSql::Columns(columns) => {
            let mut list = Vec::with_capacity(columns.len());
            for (column, member) in columns {
                if member.is_empty() || member.len() > NAME_MAX_BYTES {
                    return Err(Error::new(
                        Kind::Relation,
                        doing,
                        format!("the name {member:?} must have 1 to {NAME_MAX_BYTES} bytes"),
                    )
                    .with_hint("give the column a shorter name, or use a value expression"));
                }
                list.push(format!("{alias}.{} as {}", quote(column), quote(member)));
            }
            Ok(format!(
                "(select row_to_json(pg2kv_object) from (select {}) as pg2kv_object)::text",
                list.join(", ")
            ))
        }
    }
}

/// Lines of their own, so that a comment in the operator's SQL ends with it.
fn filter_sql(filter: Option<&str>) -> String {
    filter.map_or_else(String::new, |filter| format!("and (\n{filter}\n)"))
}

/// An identifier in SQL.
fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
