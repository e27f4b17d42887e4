//! The keys of `[sync.NAME]` that say what a pair holds: its value and what it has beside it.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::ValueSource;
use super::super::problem::{Complaint, Scope};
use super::super::section::{Section, duration_within};
use super::super::shape::Form;
use crate::change::KV_TTL_MIN_SECONDS;
use crate::source::{Attributes, ExpirySql};

/// How long a pair may stand after a write.
const TTL: RangeInclusive<Duration> =
    Duration::from_secs(KV_TTL_MIN_SECONDS as u64)..=Duration::from_secs(315_576_000); // ten years

pub(super) fn value(section: &mut Section<'_, '_>) -> Option<ValueSource> {
    let columns = section.names("columns", true);
    let expression = section.text("value", None);
    match (section.is_set("columns"), section.is_set("value")) {
        (true, true) => {
            let complaint = Complaint::new(
                format!("and {} are both set", section.at("columns")),
                "keep columns for a JSON object of columns, or value for an SQL expression",
            );
            section.problem("value", complaint);
            None
        }
        (false, false) => {
            section.missing(
                "columns",
                Scope::Sql,
                "list the columns of the document, or give an SQL expression with value",
            );
            None
        }
        (true, false) => columns.map(ValueSource::Columns),
        (false, true) => expression.map(ValueSource::Expression),
    }
}

/// What a pair has beside its value. `None`: a problem was recorded.
pub(super) fn attributes(section: &mut Section<'_, '_>) -> Option<Attributes> {
    let content_type = section.text("content_type", None);
    let metadata = section.text("metadata", None);
    let expires_at = section.text("expires_at", None);
    let ttl = section.parsed("ttl", None, "a duration such as \"1h\"", |text| {
        let ttl = duration_within(text, &TTL)?;
        match u32::try_from(ttl.as_secs()) {
            Ok(seconds) if ttl.subsec_nanos() == 0 => Ok(seconds),
            _ => Err(Complaint::new(
                "has a part of a second",
                "write whole seconds: Workers KV counts no smaller ones",
            )),
        }
    });
    section.form(Form::Duration(TTL));
    let serves = [
        ("content_type", content_type.is_some()),
        ("metadata", metadata.is_some()),
        ("expires_at", expires_at.is_some()),
        ("ttl", ttl.is_some()),
    ]
    .iter()
    .all(|(key, read)| *read || !section.is_set(key));
    if section.is_set("ttl") && section.is_set("expires_at") {
        let complaint = Complaint::new(
            format!("and {} are both set", section.at("expires_at")),
            "keep expires_at for a moment that each row names, or ttl for a time after each write",
        );
        section.problem("ttl", complaint);
        return None;
    }
    serves.then_some(Attributes {
        content_type,
        metadata,
        expiry: match (expires_at, ttl) {
            (Some(at), _) => Some(ExpirySql::At(at)),
            (None, ttl) => ttl.map(ExpirySql::After),
        },
    })
}

/// Whether an expression other than value and filter may read columns.
pub(super) fn reads_columns(attributes: &Attributes) -> bool {
    attributes.content_type.is_some()
        || attributes.metadata.is_some()
        || matches!(attributes.expiry, Some(ExpirySql::At(_)))
}
