//! The operator's SQL in our statements: the value, what a pair has beside it, and which rows are
//! published; and how what they give becomes a draft.
//!
//! Each expression stands on lines of its own, so that a comment in it ends with it.

use bytes::Bytes;
use tokio_postgres::Row;

use super::super::error::{Error, Kind};
use super::super::{ExpirySql, SyncSource, ValueSql};
use super::Plan;
use crate::change::{Draft, DraftValue, Expiry, Value};

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
    filter.map_or_else(String::new, |filter| format!("and (\n{filter}\n)"))
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
        ValueSql::Expression(expression) if binary => Ok(format!("(\n{expression}\n)::bytea")),
        ValueSql::Expression(expression) => Ok(format!("(\n{expression}\n)::text")),
        ValueSql::Columns(columns) => Ok(format!("{}::text", object_sql(columns, alias, doing)?)),
    }
}

/// One JSON object of columns.
pub(super) fn object_sql(
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
    Ok(format!(
        "(select row_to_json(pg2kv_object) from (select {}) as pg2kv_object)",
        list.join(", ")
    ))
}

/// What a pair has beside its value: `content_type`, `metadata` and `expires_at`.
pub(super) fn attributes_sql(sync: &SyncSource) -> String {
    let text = |expression: Option<&String>| {
        expression.map_or_else(
            || "null::text".to_owned(),
            |expression| format!("(\n{expression}\n)::text"),
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
        Some(ExpirySql::At(expression)) => Some(format!(
            "nullif((\n{expression}\n)::timestamptz, 'infinity'::timestamptz)"
        )),
        Some(ExpirySql::After(_)) | None => None,
    }
}

impl Plan {
    /// The draft in a row of [`Plan::rows`]; `None` where there is nothing to publish.
    ///
    /// # Errors
    /// The driver's: a column of another type, which would be a mistake of ours.
    pub(crate) fn draft(&self, row: &Row) -> Result<Option<Draft>, tokio_postgres::Error> {
        let at = self.columns + 1;
        let Some(bytes) = row.try_get::<_, Option<i64>>(at + 1)? else {
            return Ok(None);
        };
        let seconds = |seconds: i64| u64::try_from(seconds).unwrap_or_default();
        let whole = if self.binary {
            let value: Option<&[u8]> = row.try_get(at)?;
            value.map(|value| Value::Binary(Bytes::copy_from_slice(value)))
        } else {
            let value: Option<&str> = row.try_get(at)?;
            value.map(|value| Value::Text(Bytes::copy_from_slice(value.as_bytes())))
        };
        let twice: Option<bool> = row.try_get(at + 6)?;
        let value = match whole {
            _ if twice == Some(true) => DraftValue::Twice,
            Some(value) => DraftValue::Whole(value),
            None => DraftValue::TooLarge {
                bytes: u64::try_from(bytes).unwrap_or_default(),
                shards: self.shards,
            },
        };
        let expires_at: Option<i64> = row.try_get(at + 4)?;
        let ahead: Option<i64> = row.try_get(at + 5)?;
        Ok(Some(Draft {
            value,
            content_type: row.try_get(at + 2)?,
            metadata: row.try_get(at + 3)?,
            expiry: match (self.ttl_seconds, expires_at, ahead) {
                (Some(ttl), ..) => Expiry::After(ttl),
                (None, Some(at), Some(ahead)) => Expiry::At {
                    unix_seconds: seconds(at),
                    ahead_seconds: seconds(ahead),
                },
                _ => Expiry::Never,
            },
        }))
    }
}

/// An identifier in SQL.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
