//! The sections `[sync.NAME.related.NAME]`: other tables that documents of a sync take data from.

use config::{Map, Value, ValueKind};

use super::problem::{Complaint, Scope};
use super::reader::Reader;
use super::section::Section;
use super::sections::{bad_name, is_name};
use super::syncs::qualified;
use crate::sql_kit::RelatedSpec;

/// Key of a sync below which these sections stand.
pub(super) const KEY: &str = "related";

/// The related tables of the sync at `path`, in alphabetical order; `found` is what stands at its
/// key `related`. `None`: a problem was recorded.
pub(super) fn read(
    reader: &mut Reader<'_>,
    path: &str,
    found: Option<ValueKind>,
) -> Option<Vec<RelatedSpec>> {
    let path = format!("{path}.{KEY}");
    let tables = match found {
        None => return Some(Vec::new()),
        Some(ValueKind::Table(tables)) => tables,
        Some(_) => {
            reader.problem(&path, not_a_section(&path));
            return None;
        }
    };
    let mut names: Vec<_> = tables.into_iter().collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    let mut all = Some(Vec::new());
    for (name, value) in names {
        let spec = one(reader, &format!("{path}.{name}"), &name, value);
        all = all.zip(spec).map(|(mut all, spec)| {
            all.push(spec);
            all
        });
    }
    all
}

fn one(reader: &mut Reader<'_>, path: &str, name: &str, value: Value) -> Option<RelatedSpec> {
    let name_serves = is_name(name);
    if !name_serves {
        reader.problem(path, bad_name(name));
    }
    let ValueKind::Table(table) = value.kind else {
        let parent = path.strip_suffix(name)?.strip_suffix('.')?.to_owned();
        reader.problem(path, not_a_section(&parent));
        return None;
    };
    let (table, matches, columns) = keys(reader, path, table);
    Some(RelatedSpec {
        name: name_serves.then(|| name.to_owned())?,
        table: table?,
        matches: matches?,
        columns: columns?,
    })
}

type Keys = (
    Option<String>,
    Option<Vec<(String, String)>>,
    Option<Option<Vec<String>>>,
);

fn keys(reader: &mut Reader<'_>, path: &str, table: Map<String, Value>) -> Keys {
    let mut section = Section::new(reader, path, table);
    let table = section.parsed("table", None, "a table", qualified);
    if table.is_none() && !section.is_set("table") {
        section.missing(
            "table",
            Scope::Sql,
            "name the related table with its schema: \"public.tenants\"",
        );
    }
    let matches = section.names("match", true).map(|mut matches| {
        // The order of the values that the triggers write.
        matches.sort();
        matches
    });
    if matches.is_none() && !section.is_set("match") {
        section.missing(
            "match",
            Scope::Sql,
            "say which column of the sync's table equals which of the related one: \
             { tenant_id = \"id\" }",
        );
    }
    let columns = section.columns("watch");
    (table, matches, columns)
}

fn not_a_section(path: &str) -> Complaint {
    Complaint::new(
        "is a value, and must be a section with a name",
        format!("write [{path}.NAME] on a line of its own and its keys below"),
    )
}
