//! The statements that read keys in order: of an index, or of what documents share.

use tokio_postgres::Row;

use super::table::{KeyColumn, Table};
use super::value::Filter;
use crate::change::Key;

/// How a row of a walk becomes a key.
pub(crate) enum WalkedKey {
    /// The server made it.
    Whole,
    /// Of the texts of the columns, each with or without quotes: `jsonb` would take the server twice as
    /// long as the rest of the walk.
    Texts { bare: Vec<bool> },
}

impl WalkedKey {
    /// The key in a row of the walk.
    ///
    /// # Errors
    /// The driver's: a column of another type, which would be a mistake of ours.
    pub(crate) fn key(&self, row: &Row) -> Result<Key, tokio_postgres::Error> {
        let Self::Texts { bare } = self else {
            return row.try_get(0).map(|key: &str| Key::new(key));
        };
        let mut key = String::with_capacity(16 + 32 * bare.len());
        for (at, bare) in bare.iter().enumerate() {
            key.push_str(if at == 0 { "[" } else { ", " });
            let text: &str = row.try_get(at)?;
            if *bare {
                key.push_str(text);
            } else {
                key.push_str(&serde_json::Value::from(text).to_string());
            }
        }
        key.push(']');
        Ok(Key::new(key))
    }
}

impl Table {
    /// What a walk gives.
    pub(super) fn walked_key(&self, groups: bool) -> WalkedKey {
        if groups || self.columns.is_empty() || !self.echoes() {
            return WalkedKey::Whole;
        }
        let columns = self.columns.iter();
        WalkedKey::Texts {
            bare: columns.map(|column| column.bare).collect(),
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
            WalkedKey::Whole => format!("{}::text", self.key_of_row()),
            WalkedKey::Texts { .. } => {
                let columns = self.columns.iter();
                let texts: Vec<_> = columns
                    .map(|column| format!("{alias}.{}::text", column.name))
                    .collect();
                texts.join(", ")
            }
        };
        format!(
            "select {key} from {name} as {alias} \
             where {present} and ($1::text is null or {after}) {filter} order by {order} limit $2::int8",
            present = join(
                &|_, column| format!("{alias}.{} is not null", column.name),
                " and "
            ),
            after = after(alias, &ordered, &position),
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
        let key = self.key_text();
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
             select pg2kv_key.key from pg2kv_group cross join lateral (\
             select {distinct}{key} as key from {name} as {alias} \
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
        let mut order = columns(&|at, _| format!("pg2kv_group.c{at}"));
        order.push("pg2kv_group.key".to_owned());
        format!(
            "select pg2kv_group.key from (select distinct {selected} from {name} as {alias} \
             where {conditions} {filter}) as pg2kv_group order by {order} limit $2::int8",
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
                format!("{}.{name} {equal} {}", self.alias, position(*at, column))
            })
            .collect();
        same.push(format!("{} > $1::text", self.key_text()));
        let same = same.join(" and ");
        if ordered.is_empty() {
            return format!("($1::text is null or {same})");
        }
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
                    each(&position, ", ")
                )
            }
            _ => format!(
                "{} or {}",
                after(alias, ordered, &position),
                each(
                    &|at, column| {
                        let (name, equal) = (&column.name, &column.equal);
                        format!("{alias}.{name} {equal} {}", position(at, column))
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
                format!("pg2kv_key.{name} {equal} {}", position(*at, column))
            })
            .collect();
        same.push("pg2kv_key.pg2kv_text > $1::text".to_owned());
        let later = if ordered.is_empty() {
            String::new()
        } else {
            format!("{} or ", after("pg2kv_key", &ordered, &position))
        };
        format!(
            "select {later}({}) from (select {} from (select $2::text::jsonb as key) as u) \
             as pg2kv_key",
            same.join(" and "),
            selected.join(", ")
        )
    }
}

/// The value of a column in the position.
fn position(at: usize, column: &KeyColumn) -> String {
    column.typed("$1::text::jsonb", at)
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
