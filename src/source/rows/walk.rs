//! The statements that read keys in order: of an index, or of what documents share.

use tokio_postgres::Row;

use super::super::key_bytes::{Encoding, Raw, hex, oversized};
use super::table::{KeyColumn, Table};
use super::value::Filter;
use crate::change::Key;

/// Longest key that a walk reads, to go on from there. An index entry cannot be longer, compressed.
const READ_MAX_BYTES: usize = 1 << 20;

/// How a row of a walk becomes a key.
pub(crate) enum WalkedKey {
    /// The server made it.
    Whole,
    /// Of the texts of the columns, each with or without quotes: `jsonb` would take the server twice as
    /// long as the rest of the walk.
    Texts { bare: Vec<bool> },
}

/// A row of a walk.
pub(crate) struct WalkedRow {
    /// The text of its key, as bytes; `None` where that is far too long.
    pub(crate) bytes: Option<Vec<u8>>,
    /// The key, if it is too long.
    pub(crate) oversized: Option<Key>,
}

impl WalkedKey {
    /// What a row of the walk gives.
    ///
    /// # Errors
    /// The driver's: a column of another type, which would be a mistake of ours.
    pub(crate) fn row(&self, row: &Row) -> Result<WalkedRow, tokio_postgres::Error> {
        let (bytes, columns) = match self {
            Self::Whole => (Raw::at(row, 0)?.map(<[u8]>::to_vec), 1),
            Self::Texts { bare } => (texts(row, bare)?, bare.len()),
        };
        let about: Option<&str> = row.try_get(columns)?;
        Ok(WalkedRow {
            bytes,
            oversized: about.map(oversized),
        })
    }
}

fn texts(row: &Row, bare: &[bool]) -> Result<Option<Vec<u8>>, tokio_postgres::Error> {
    let mut key = Vec::with_capacity(16 + 32 * bare.len());
    for (at, bare) in bare.iter().enumerate() {
        key.extend_from_slice(if at == 0 { b"[" } else { b", " });
        let Some(text) = Raw::at(row, at)? else {
            return Ok(None);
        };
        if *bare {
            key.extend_from_slice(text);
        } else {
            string(text, &mut key);
        }
    }
    key.push(b']');
    Ok(Some(key))
}

/// A string in JSON, as `jsonb` prints it.
fn string(text: &[u8], json: &mut Vec<u8>) {
    json.push(b'"');
    for byte in text {
        match byte {
            b'"' | b'\\' => json.extend_from_slice(&[b'\\', *byte]),
            0x08 => json.extend_from_slice(b"\\b"),
            0x0c => json.extend_from_slice(b"\\f"),
            b'\n' => json.extend_from_slice(b"\\n"),
            b'\r' => json.extend_from_slice(b"\\r"),
            b'\t' => json.extend_from_slice(b"\\t"),
            0..=0x1f => json.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => json.push(*byte),
        }
    }
    json.push(b'"');
}

/// The position of a walk behind a key, as `jsonb`: the key, or, where that is no text in UTF-8, its
/// bytes in a string; `None` where the database has no such bytes either.
pub(crate) fn position_of(encoding: Encoding, key: &[u8]) -> Option<String> {
    match encoding.text(key) {
        Some(text) => Some(text.to_owned()),
        None if encoding == Encoding::Utf8 => None,
        None => Some(format!("\"{}\"", hex(key))),
    }
}

impl Table {
    /// What a walk gives.
    pub(super) fn walked_key(&self, groups: bool) -> WalkedKey {
        let whole = groups || self.columns.is_empty() || !self.echoes();
        if whole || self.encoding != Encoding::Utf8 {
            return WalkedKey::Whole;
        }
        let columns = self.columns.iter();
        WalkedKey::Texts {
            bare: columns.map(|column| column.bare).collect(),
        }
    }

    /// Text of a key, unless it is longer than any that is worth to be read.
    fn unless_long(&self, text: &str) -> String {
        match self.key_size() {
            None => text.to_owned(),
            Some(size) => format!("case when ({size}) <= {READ_MAX_BYTES} then {text} end"),
        }
    }

    /// Keys in the order of an index. A key with a NULL in it is not published.
    pub(super) fn walk(&self, filter: &Filter, given: &WalkedKey) -> String {
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
        let name = &self.name;
        let key = match given {
            WalkedKey::Whole => {
                let text = format!("{}::text", self.key_of_row());
                self.unless_long(&self.encoding.raw(&text))
            }
            WalkedKey::Texts { .. } => {
                let columns = self.columns.iter();
                let texts: Vec<_> = columns
                    .map(|column| format!("{alias}.{}::text", column.name))
                    .map(|text| self.unless_long(&text))
                    .collect();
                texts.join(", ")
            }
        };
        let about = self.about_key();
        format!(
            "select {key}, {about} from {name} as {alias} \
             where {present} and ($1::text is null or {after}) {filter} order by {order} limit $2::int8",
            present = join(
                &|_, column| format!("{alias}.{} is not null", column.name),
                " and "
            ),
            after = after(alias, &ordered, &|at, column| self.position(at, column)),
            filter = filter.sql(),
            order = join(&|_, column| format!("{alias}.{}", column.name), ", "),
        )
    }
}

impl Table {
    /// Keys of documents of many rows, each once, in the order of their columns and then of their
    /// text: values that are equal may read otherwise, and make other keys.
    pub(super) fn walk_groups(&self, filter: &Filter) -> String {
        if self.indexed && !self.columns.is_empty() {
            self.walk_by_index(filter)
        } else {
            self.walk_whole(filter)
        }
    }

    /// From group to group by the index, whatever number of rows each has. No plan but one step
    /// after the other can give these rows, so they come in order, and the limit ends the steps.
    fn walk_by_index(&self, filter: &Filter) -> String {
        let (name, alias, filter) = (&self.name, &self.alias, filter.sql());
        let ordered: Vec<(usize, &KeyColumn)> = self
            .order
            .iter()
            .map(|at| (*at, &self.columns[*at]))
            .collect();
        let columns = |part: &dyn Fn(usize, &KeyColumn) -> String| -> Vec<String> {
            ordered
                .iter()
                .map(|(at, column)| part(*at, column))
                .collect()
        };
        let selected =
            columns(&|at, column| format!("{alias}.{} as c{at}", column.name)).join(", ");
        let order = columns(&|_, column| format!("{alias}.{}", column.name)).join(", ");
        let next = after(alias, &ordered, &|at, _| format!("pg2kv_group.c{at}"));
        let same = columns(&|at, column| {
            format!("{alias}.{} {} pg2kv_group.c{at}", column.name, column.equal)
        });
        let (key, about) = (self.key_text(), self.about_key());
        let read = self.read_key("pg2kv_key.key", "pg2kv_key.about");
        // Where equal values have equal text, one row tells the key of its group.
        let one = self.shard_sql().is_empty() && self.columns.iter().all(|column| column.exact);
        let (distinct, end) = if one {
            ("", "limit 1")
        } else {
            ("distinct ", "order by 1")
        };
        format!(
            "with recursive pg2kv_group as ((select {selected} from {name} as {alias} \
             where {present} and {from} {filter} order by {order} limit 1) \
             union all select pg2kv_next.* from pg2kv_group cross join lateral (\
             select {selected} from {name} as {alias} where {present} and {next} {filter} \
             order by {order} limit 1) as pg2kv_next) \
             select {read}, pg2kv_key.about from pg2kv_group cross join lateral (\
             select {distinct}{key} as key, {about} as about from {name} as {alias} \
             where {same} and {behind} {filter} {end}) as pg2kv_key limit $2::int8",
            present = self.present().join(" and "),
            from = self.at_or_behind(&ordered),
            same = same.join(" and "),
            behind = self.behind(),
        )
    }

    /// All keys of the table, of which a part is taken: a walk over the whole table for each part.
    fn walk_whole(&self, filter: &Filter) -> String {
        let alias = &self.alias;
        let columns = |part: &dyn Fn(usize, &KeyColumn) -> String| -> Vec<String> {
            let all = self.columns.iter().enumerate();
            all.map(|(at, column)| part(at, column)).collect()
        };
        let mut conditions = self.present();
        conditions.push(self.behind());
        let mut selected = columns(&|at, column| format!("{alias}.{} as c{at}", column.name));
        selected.push(format!("{} as key", self.key_text()));
        selected.push(format!("{} as about", self.about_key()));
        let mut order = columns(&|at, _| format!("pg2kv_group.c{at}"));
        order.push("pg2kv_group.key".to_owned());
        format!(
            "select {read}, pg2kv_group.about from (select distinct {selected} from {name} as {alias} \
             where {conditions} {filter}) as pg2kv_group order by {order} limit $2::int8",
            read = self.read_key("pg2kv_group.key", "pg2kv_group.about"),
            selected = selected.join(", "),
            name = self.name,
            conditions = conditions.join(" and "),
            filter = filter.sql(),
            order = order.join(", "),
        )
    }

    /// A key with a NULL in it is not published.
    fn present(&self) -> Vec<String> {
        let alias = &self.alias;
        let columns = self.columns.iter();
        columns
            .map(|column| format!("{alias}.{} is not null", column.name))
            .collect()
    }

    /// The key of a group as it is read: not where it is far too long, of which it was told.
    fn read_key(&self, key: &str, about: &str) -> String {
        let raw = self.encoding.raw(key);
        format!(
            "case when {about} is null or octet_length({key}) <= {READ_MAX_BYTES} then {raw} end"
        )
    }

    /// The position of a walk, `$1`.
    fn position_json(&self) -> String {
        if self.encoding == Encoding::Utf8 {
            return "$1::text::jsonb".to_owned();
        }
        "(case when jsonb_typeof($1::text::jsonb) = 'string' then \
         convert_from(decode($1::text::jsonb #>> '{}'::text[], 'hex'), getdatabaseencoding())::jsonb \
         else $1::text::jsonb end)"
            .to_owned()
    }

    /// The value of a column in the position.
    fn position(&self, at: usize, column: &KeyColumn) -> String {
        column.typed(&self.position_json(), at)
    }

    fn key_text(&self) -> String {
        format!("({}::text collate \"C\")", self.key_of_row())
    }

    /// Behind the position: in a later group, or in the same one with a later text.
    fn behind(&self) -> String {
        let ordered: Vec<(usize, &KeyColumn)> = self
            .order
            .iter()
            .map(|at| (*at, &self.columns[*at]))
            .collect();
        let mut same: Vec<String> = ordered
            .iter()
            .map(|(at, column)| {
                let (name, equal) = (&column.name, &column.equal);
                format!(
                    "{}.{name} {equal} {}",
                    self.alias,
                    self.position(*at, column)
                )
            })
            .collect();
        let position = self.position_json();
        same.push(format!("{} > ({position})::text", self.key_text()));
        let same = same.join(" and ");
        if ordered.is_empty() {
            return format!("($1::text is null or {same})");
        }
        let position = |at, column: &KeyColumn| self.position(at, column);
        let later = after(&self.alias, &ordered, &position);
        format!("($1::text is null or {later} or ({same}))")
    }

    /// The group of the position, and those behind it.
    fn at_or_behind(&self, ordered: &[(usize, &KeyColumn)]) -> String {
        let alias = &self.alias;
        let each = |part: &dyn Fn(usize, &KeyColumn) -> String, between: &str| {
            let parts: Vec<String> = ordered.iter().map(|(at, each)| part(*at, each)).collect();
            parts.join(between)
        };
        let first = ordered.first().map(|(_, column)| &column.at_least);
        let from = match first {
            Some(at_least) if ordered.iter().all(|(_, each)| each.at_least == *at_least) => {
                format!(
                    "({}) {at_least} ({})",
                    each(&|_, column| format!("{alias}.{}", column.name), ", "),
                    each(&|at, column| self.position(at, column), ", ")
                )
            }
            _ => format!(
                "{} or {}",
                after(alias, ordered, &|at, column| self.position(at, column)),
                each(
                    &|at, column| {
                        let (name, equal) = (&column.name, &column.equal);
                        format!("{alias}.{name} {equal} {}", self.position(at, column))
                    },
                    " and "
                )
            ),
        };
        format!("($1::text is null or {from})")
    }
}

impl Table {
    /// Whether a key stands behind a position, in the order of the walks. `$1`: position, `$2`: key.
    pub(super) fn ahead(&self) -> String {
        let ordered: Vec<(usize, &KeyColumn)> = self
            .order
            .iter()
            .map(|at| (*at, &self.columns[*at]))
            .collect();
        let mut selected: Vec<String> = ordered
            .iter()
            .map(|(at, column)| format!("{} as {}", column.typed("u.key", *at), column.name))
            .collect();
        selected.push("u.key::text collate \"C\" as pg2kv_text".to_owned());
        let mut same: Vec<String> = ordered
            .iter()
            .map(|(at, column)| {
                let (name, equal) = (&column.name, &column.equal);
                format!("pg2kv_key.{name} {equal} {}", self.position(*at, column))
            })
            .collect();
        same.push(format!(
            "pg2kv_key.pg2kv_text > ({})::text",
            self.position_json()
        ));
        let later = if ordered.is_empty() {
            String::new()
        } else {
            format!(
                "{} or ",
                after("pg2kv_key", &ordered, &|at, column| self
                    .position(at, column))
            )
        };
        format!(
            "select {later}({}) from (select {} from (select $2::text::jsonb as key) as u) \
             as pg2kv_key",
            same.join(" and "),
            selected.join(", ")
        )
    }
}

/// Behind `given` in index order. A row comparison is what an index serves best; it takes one
/// operator for all columns, so with types of different schemas the comparison is spelled out.
fn after(
    alias: &str,
    ordered: &[(usize, &KeyColumn)],
    given: &dyn Fn(usize, &KeyColumn) -> String,
) -> String {
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
        let values: Vec<String> = ordered
            .iter()
            .map(|(at, column)| given(*at, column))
            .collect();
        return format!(
            "({}) {} ({})",
            columns.join(", "),
            first.greater,
            values.join(", ")
        );
    }
    let (name, value) = (&first.name, given(*at, first));
    let beyond = format!("{alias}.{name} {} {value}", first.greater);
    if rest.is_empty() {
        return beyond;
    }
    format!(
        "({beyond} or ({alias}.{name} {} {value} and {}))",
        first.equal,
        after(alias, rest, given)
    )
}
