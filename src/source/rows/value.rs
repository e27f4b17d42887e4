//! The operator's SQL in our statements: the value, what a pair has beside it, and which rows are
//! published; and how what they give becomes a draft.
//!
//! Each expression stands on lines of its own, so that a comment in it ends with it.

use bytes::Bytes;
use tokio_postgres::Row;

use super::super::error::{Error, Kind};
use super::super::names::verbatim;
use super::super::{ExpirySql, SyncSource, ValueSql};
use super::Plan;
use crate::change::{Draft, DraftText, DraftValue, Expiry, Value};

/// Longest identifier that PostgreSQL keeps whole.
const NAME_MAX_BYTES: usize = 63;

/// Which rows are published, as conditions that follow others.
///
/// A row whose time is over is none: KV has dropped its pair by itself, and a walk that made a
/// delete of each would pay for every row that ever expired.
#[derive(Default)]
pub(super) struct Filter(String);

impl Filter {
    pub(super) fn of(sync: &SyncSource) -> Self {
        let published = filter_sql(sync.filter.as_deref());
        let current = match expires_at(sync) {
            None => String::new(),
            Some(at) => format!(" and coalesce({at} > statement_timestamp(), true)"),
        };
        Self(published + &current)
    }

    /// A condition that is ours.
    pub(super) fn on(condition: &str) -> Self {
        Self(format!("and ({condition})"))
    }

    pub(super) fn sql(&self) -> &str {
        &self.0
    }
}

/// The condition of the sync's own, as it follows others.
pub(super) fn filter_sql(filter: Option<&str>) -> String {
    filter.map_or_else(String::new, |filter| format!("and {}", expression(filter)))
}

/// The document, as text or as bytes.
///
/// Columns become JSON by `row_to_json`: each keeps the text that Postgres itself gives it (numeric
/// exact, timestamps ISO 8601), in the order asked for, without spaces, and with no limit on their
/// number. `jsonb` would reorder, `json_build_object` takes 50 and pads.
pub(super) fn value_sql(
    value: &ValueSql,
    binary: bool,
    alias: &str,
    doing: &str,
) -> Result<String, Error> {
    match value {
        ValueSql::Expression(sql) if binary => Ok(format!("{}::bytea", expression(sql))),
        ValueSql::Expression(sql) => Ok(format!("{}::text", expression(sql))),
        ValueSql::Columns(columns) => Ok(format!("{}::text", object_sql(columns, alias, doing)?)),
    }
}

/// One JSON object of columns.
pub(super) fn object_sql(
    columns: &[(String, String)],
    alias: &str,
    doing: &str,
) -> Result<String, Error> {
    Ok(format!(
        "(select row_to_json(pg2kv_object) from (select {}) as pg2kv_object)",
        object_columns(columns, alias, doing)?
    ))
}

/// The members of such an object, as a select list.
pub(super) fn object_columns(
    columns: &[(String, String)],
    alias: &str,
    doing: &str,
) -> Result<String, Error> {
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
    Ok(list.join(", "))
}

/// What a read gives beside a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Beside {
    Nothing,
    /// `content_type`, `metadata`, and the moment of its end in two ways.
    Attributes,
    /// Whether two rows of the document have the same member.
    Twice,
}

impl Beside {
    pub(super) fn of(sync: &SyncSource) -> Self {
        let attributes = &sync.attributes;
        if sync.collect.is_some() {
            Self::Twice
        } else if attributes.content_type.is_some()
            || attributes.metadata.is_some()
            || matches!(attributes.expiry, Some(ExpirySql::At(_)))
        {
            Self::Attributes
        } else {
            Self::Nothing
        }
    }
}

/// What a pair has beside its value: `content_type`, `metadata` and `expires_at`.
pub(super) fn attributes_sql(sync: &SyncSource) -> String {
    let text = |sql: Option<&String>| {
        sql.map_or_else(
            || "null::text".to_owned(),
            |sql| format!("{}::text", expression(sql)),
        )
    };
    format!(
        "{} as content_type, {} as metadata, {} as expires_at",
        text(sync.attributes.content_type.as_ref()),
        text(sync.attributes.metadata.as_ref()),
        expires_at(sync).unwrap_or_else(|| "null::timestamptz".to_owned())
    )
}

/// The moment when the pair ends; NULL and infinity are never.
fn expires_at(sync: &SyncSource) -> Option<String> {
    match &sync.attributes.expiry {
        Some(ExpirySql::At(sql)) => Some(format!("{}::timestamptz", expression(sql))),
        Some(ExpirySql::After(_)) | None => None,
    }
}

impl Plan {
    /// The draft in a row of [`Plan::rows`]; `None` where there is nothing to publish.
    ///
    /// # Errors
    /// The driver's: a column of another type, which would be a mistake of ours.
    pub(crate) fn draft(&self, row: &Row) -> Result<Option<Draft>, tokio_postgres::Error> {
        self.draft_at(row, 1 + if self.echoes { 0 } else { self.columns })
    }

    /// The draft in a row of [`Plan::run`].
    ///
    /// # Errors
    /// As [`Self::draft`].
    pub(crate) fn draft_of_run(&self, row: &Row) -> Result<Option<Draft>, tokio_postgres::Error> {
        self.draft_at(row, self.columns)
    }

    fn draft_at(&self, row: &Row, at: usize) -> Result<Option<Draft>, tokio_postgres::Error> {
        let whole = if self.binary {
            let value: Option<&[u8]> = row.try_get(at)?;
            value.map(|value| Value::Binary(Bytes::copy_from_slice(value)))
        } else {
            let value: Option<&str> = row.try_get(at)?;
            value.map(|value| Value::Text(Bytes::copy_from_slice(value.as_bytes())))
        };
        let twice =
            self.beside == Beside::Twice && row.try_get::<_, Option<bool>>(at + 2)? == Some(true);
        let value = match (whole, row.try_get::<_, Option<i64>>(at + 1)?) {
            (None, None) => {
                let members = self.members.as_ref();
                match members.map(|members| members.document(row, at + 2)) {
                    None => return Ok(None),
                    Some(made) => match made? {
                        None => return Ok(None),
                        Some(value) => value,
                    },
                }
            }
            _ if twice => DraftValue::Twice,
            (Some(value), _) => DraftValue::Whole(value),
            (None, Some(bytes)) => DraftValue::TooLarge {
                bytes: u64::try_from(bytes).unwrap_or_default(),
                shards: self.shards,
            },
        };
        let mut draft = Draft {
            value,
            content_type: None,
            metadata: None,
            expiry: self.ttl_seconds.map_or(Expiry::Never, Expiry::After),
        };
        if self.beside == Beside::Attributes {
            draft.content_type = text_at(row, at + 2, at + 6)?;
            draft.metadata = text_at(row, at + 3, at + 7)?;
            if let (None, Some(end), Some(ahead)) = (
                self.ttl_seconds,
                row.try_get::<_, Option<i64>>(at + 4)?,
                row.try_get::<_, Option<i64>>(at + 5)?,
            ) {
                draft.expiry = Expiry::At {
                    unix_seconds: u64::try_from(end).unwrap_or_default(),
                    ahead_seconds: u64::try_from(ahead).unwrap_or_default(),
                };
            }
        }
        Ok(Some(draft))
    }
}

/// An expression of the operator's.
pub(super) fn expression(sql: &str) -> String {
    verbatim(&format!("(\n{sql}\n)"))
}

/// A text that stands beside a value, or its size where only that travelled.
fn text_at(
    row: &Row,
    text: usize,
    bytes: usize,
) -> Result<Option<DraftText>, tokio_postgres::Error> {
    if let Some(bytes) = row.try_get::<_, Option<i32>>(bytes)? {
        let bytes = u64::try_from(bytes).unwrap_or_default();
        return Ok(Some(DraftText::TooLarge { bytes }));
    }
    Ok(row
        .try_get::<_, Option<String>>(text)?
        .map(DraftText::Whole))
}

/// An identifier in SQL.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
