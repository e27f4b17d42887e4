//! The statements that are given keys, or the texts of names: documents by key, keys of names.

use super::super::error::Error;
use super::super::{SyncSource, ValueSql};
use super::members::Members;
use super::table::Table;
use super::value::{
    Beside, attributes_sql, expression as own, filter_sql, object_sql, quote, value_sql,
};

/// Longest text beside a value that travels. Metadata may have 1,024 bytes, but not before the white
/// space between its tokens is taken out.
const BESIDE_MAX_BYTES: usize = 16_384;

impl Table {
    /// What the value of the operator is, told when it is prepared.
    pub(super) fn probe(&self, expression: &str) -> String {
        format!(
            "select {} from {} as {}",
            own(expression),
            self.name,
            self.alias
        )
    }

    /// The columns that are to be members, whose types are told when it is prepared.
    pub(super) fn probe_columns(&self, columns: &[(String, String)]) -> String {
        let columns = columns.iter();
        let columns: Vec<String> = columns
            .map(|(column, _)| format!("{}.{}", self.alias, quote(column)))
            .collect();
        format!(
            "select {} from {} as {}",
            columns.join(", "),
            self.name,
            self.alias
        )
    }

    /// Documents by key: `$1` and on are the texts of the key's values, an array for each, and behind
    /// them stands how many bytes a value may have to travel. With
    /// `members` the columns of the document come instead of it.
    ///
    /// `offset 0` keeps the subquery whole: keys drive a nested loop, so rows come in the order of
    /// the keys without a sort that would hold all values, and each expression is evaluated once,
    /// for rows that match only.
    pub(super) fn rows(
        &self,
        sync: &SyncSource,
        binary: bool,
        members: Option<&Members>,
        doing: &str,
    ) -> Result<String, Error> {
        // One array tells how many keys there are even where a key has no values.
        let width = self.width().max(1);
        let arrays: Vec<_> = (1..=width).map(|at| format!("${at}::text[]")).collect();
        let given: Vec<_> = (0..width).map(|at| format!("c{at}")).collect();
        let typed = self.parts(
            |at, column| format!("{} as c{at}", column.of_text(&format!("k.c{at}"))),
            |at| format!("k.c{at}::int4 as c{at}"),
        );
        let texts = if self.echoes() {
            Vec::new()
        } else {
            self.parts(
                |at, _| format!("pg2kv_key.c{at}::text"),
                |at| format!("pg2kv_key.c{at}::text"),
            )
        };
        let matches = self.matches();
        let which = Which::of_key(&matches);
        let (document, beside) = match &sync.collect {
            Some(collect) => (
                self.collected(sync, collect, &matches, doing)?,
                ", pg2kv_document.twice".to_owned(),
            ),
            None => self.of_one_row(sync, binary, members, &which, doing)?,
        };
        Ok(format!(
            "select {keys}, {value}{beside} \
             from (select {typed} from unnest({arrays}) with ordinality as k({given}, ord)) as pg2kv_key \
             left join lateral ({document}) as pg2kv_document on true",
            keys = listed("pg2kv_key.ord", texts),
            value = value_or_size(width + 1),
            typed = listed("k.ord", typed),
            arrays = arrays.join(", "),
            given = given.join(", "),
        ))
    }

    /// The rows of a key. The index finds what is equal; what is equal but reads otherwise is
    /// another key, and its document has another name.
    fn matches(&self) -> String {
        let alias = &self.alias;
        let own_key = self.key_of_row();
        let matches = self.parts(
            |at, column| {
                let equal = format!("{alias}.{} {} pg2kv_key.c{at}", column.name, column.equal);
                if column.exact {
                    return equal;
                }
                let own = column.typed(&own_key, at);
                format!("{equal} and ({own})::text = pg2kv_key.c{at}::text")
            },
            |at| format!("{} = pg2kv_key.c{at}", self.shard_sql()),
        );
        if matches.is_empty() {
            "true".to_owned()
        } else {
            matches.join(" and ")
        }
    }

    /// The document of one row, and what the statement around it selects beside value and size.
    pub(super) fn of_one_row(
        &self,
        sync: &SyncSource,
        binary: bool,
        members: Option<&Members>,
        which: &Which<'_>,
        doing: &str,
    ) -> Result<(String, String), Error> {
        if Beside::of(sync) == Beside::Attributes {
            let document = self.with_attributes(sync, binary, which, doing)?;
            let beside = format!(
                ", {}, {}, \
                 case when pg2kv_document.expires_at <> 'infinity'::timestamptz then \
                 ceil(extract(epoch from pg2kv_document.expires_at))::int8 end, \
                 case when pg2kv_document.expires_at <> 'infinity'::timestamptz then \
                 ceil(extract(epoch from pg2kv_document.expires_at - statement_timestamp()))::int8 end, \
                 {}, {}",
                text_sql("content_type", "<=", "pg2kv_document.content_type"),
                text_sql("metadata", "<=", "pg2kv_document.metadata"),
                text_sql(
                    "content_type",
                    ">",
                    "octet_length(pg2kv_document.content_type)"
                ),
                text_sql("metadata", ">", "octet_length(pg2kv_document.metadata)"),
            );
            return Ok((document, beside));
        }
        let document = self.single(sync, binary, members, which, doing)?;
        let beside =
            members.map_or_else(String::new, |members| members.of_document("pg2kv_document"));
        Ok((document, beside))
    }

    /// The document of one row that has nothing beside its value, or its columns.
    fn single(
        &self,
        sync: &SyncSource,
        binary: bool,
        members: Option<&Members>,
        which: &Which<'_>,
        doing: &str,
    ) -> Result<String, Error> {
        let row = match (&sync.value, members) {
            (ValueSql::Columns(columns), Some(members)) => {
                members.of_row(&object_sql(columns, &self.alias, doing)?)
            }
            _ => {
                let value = value_sql(&sync.value, binary, &self.alias, doing)?;
                format!("{value} as value")
            }
        };
        Ok(format!(
            "select pg2kv_row.*, octet_length(pg2kv_row.value)::int8 as bytes from (\
             select {row}{}) as pg2kv_row",
            self.from(sync, which)
        ))
    }

    /// The document of one row, with what a pair has beside its value.
    fn with_attributes(
        &self,
        sync: &SyncSource,
        binary: bool,
        which: &Which<'_>,
        doing: &str,
    ) -> Result<String, Error> {
        let value = value_sql(&sync.value, binary, &self.alias, doing)?;
        let attributes = attributes_sql(sync);
        Ok(format!(
            "select pg2kv_row.*, octet_length(pg2kv_row.value)::int8 as bytes \
             from (select {value} as value, {attributes}{}) as pg2kv_row \
             where coalesce(pg2kv_row.expires_at > statement_timestamp(), true) offset 0",
            self.from(sync, which)
        ))
    }

    /// What follows the select list of a row: its key where that is asked for, and which rows.
    fn from(&self, sync: &SyncSource, which: &Which<'_>) -> String {
        let (name, alias) = (&self.name, &self.alias);
        let Which { also, matches, end } = which;
        let filter = filter_sql(sync.filter.as_deref());
        format!("{also} from {name} as {alias} where {matches} {filter} {end}")
    }

    /// Keys of the texts that stand in names, in their order.
    pub(super) fn keys(&self) -> String {
        let typed = self.parts(
            |at, column| format!("(u.names->>{at})::{} as {}", column.cast, column.name),
            |at| format!("(u.names->>{at})::int4 as pg2kv_shard"),
        );
        let key = self.parts(
            |_, column| column.to_key("pg2kv_key"),
            |_| "pg2kv_key.pg2kv_shard".to_owned(),
        );
        format!(
            "select jsonb_build_array({})::text from (select {} from (select k.ord, \
             k.names::jsonb as names from unnest($1::text[]) with ordinality as k(names, ord)) as u) \
             as pg2kv_key order by pg2kv_key.pg2kv_ord",
            key.join(", "),
            listed("u.ord as pg2kv_ord", typed)
        )
    }
}

/// Which rows become documents.
pub(super) struct Which<'a> {
    /// More of the select list, each behind a comma.
    pub(super) also: &'a str,
    pub(super) matches: &'a str,
    /// What ends the query, so that it stays a whole.
    pub(super) end: &'a str,
}

impl<'a> Which<'a> {
    /// The rows of a key.
    fn of_key(matches: &'a str) -> Self {
        Self {
            also: "",
            matches,
            end: "offset 0",
        }
    }
}

/// The value of a document, and its size where that is over the limit of the read, parameter `max`: of
/// what has no room only the size travels.
pub(super) fn value_or_size(max: usize) -> String {
    format!(
        "case when pg2kv_document.bytes <= ${max}::int8 then pg2kv_document.value end, \
         case when pg2kv_document.bytes > ${max}::int8 then pg2kv_document.bytes end"
    )
}

/// Something of a text beside the value, where its size is `than` what is worth to be carried.
fn text_sql(column: &str, than: &str, what: &str) -> String {
    format!(
        "case when octet_length(pg2kv_document.{column}) {than} {BESIDE_MAX_BYTES} then {what} end"
    )
}

/// A select list.
pub(super) fn listed(first: &str, rest: Vec<String>) -> String {
    std::iter::once(first.to_owned())
        .chain(rest)
        .collect::<Vec<_>>()
        .join(", ")
}
