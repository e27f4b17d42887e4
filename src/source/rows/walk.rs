//! The statements that read keys in the order of an index.

use super::table::{KeyColumn, Table};
use super::value::Filter;

impl Table {
    /// Keys in the order of an index. A key with a NULL in it is not published.
    pub(super) fn walk(&self, filter: &Filter) -> String {
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
            filter = filter.sql(),
            order = join(&|_, column| format!("{alias}.{}", column.name), ", "),
        )
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
