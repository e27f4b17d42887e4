//! The sections `[sync.NAME]`: what becomes a pair, and that no two syncs own the same names.

mod collect;
mod document;

use std::collections::BTreeSet;

use super::effective::quoted;
use super::problem::{Complaint, Scope};
use super::reader::Reader;
use super::related;
use super::section::Section;
use super::sections::{NAMESPACE_SOURCE, bad_name, is_name, sentence};
use super::{Sync, ValueSource};
use crate::document::Template;
use crate::sink::setup::NamespaceId;
use crate::source::{Attributes, Collect, CollectInto};
use crate::sql_kit::{RelatedSpec, WatchSpec};

/// Longest identifier of Postgres in bytes.
/// Source: PostgreSQL, NAMEDATALEN.
const IDENTIFIER_MAX_BYTES: usize = 63;

/// Most syncs of one daemon: each has its triggers and its metrics.
const SYNCS_MAX: usize = 1_000;

/// What is watched, and the syncs in full: these need a namespace, which a caller that only
/// prints SQL need not have.
pub(super) fn read(
    reader: &mut Reader<'_>,
    default_namespace: Option<&NamespaceId>,
) -> (Option<Vec<WatchSpec>>, Option<Vec<Sync>>) {
    let names = reader.names("sync");
    if names.is_empty() {
        reader.missing(
            "sync",
            Scope::Sql,
            "write at least one section [sync.NAME] with table, key and columns",
        );
    }
    if names.len() > SYNCS_MAX {
        let complaint = Complaint::new(
            format!("has {} syncs, more than {SYNCS_MAX}", names.len()),
            "divide them among several daemons, each with a schema of its own",
        );
        reader.problem("sync", complaint);
    }
    let namespace_is_set = default_namespace.is_some() || reader.is_set("kv.namespace_id");
    let mut without_namespace = Vec::new();
    let mut watches = Some(Vec::new());
    let mut syncs = Some(Vec::new());
    for name in names {
        let (parts, namespace) = one(reader, &name);
        if namespace == Some(None) && !namespace_is_set {
            without_namespace.push(format!("sync.{name}"));
        }
        let namespace = namespace.and_then(|own| own.or(default_namespace.cloned()));
        let sync = parts
            .clone()
            .zip(namespace)
            .map(|(parts, namespace_id)| Sync {
                watch: parts.watch,
                template: parts.template,
                value: parts.value,
                filter: parts.filter,
                attributes: parts.attributes,
                collect: parts.collect,
                namespace_id,
            });
        watches = watches.zip(parts).map(|(mut all, parts)| {
            all.push(parts.watch);
            all
        });
        syncs = syncs.zip(sync).map(|(mut all, sync)| {
            all.push(sync);
            all
        });
    }
    if !without_namespace.is_empty() {
        reader.missing(
            "kv.namespace_id",
            Scope::All,
            format!(
                "set it, or set namespace_id in {}; `wrangler kv namespace list` prints the ids",
                without_namespace.join(", ")
            ),
        );
    }
    if let Some(syncs) = &syncs {
        refuse_overlaps(reader, syncs);
    }
    (watches, syncs)
}

#[derive(Clone)]
struct Parts {
    watch: WatchSpec,
    template: Template,
    value: ValueSource,
    filter: Option<String>,
    attributes: Attributes,
    collect: Option<Collect>,
}

/// One sync, and the namespace that it names itself.
fn one(reader: &mut Reader<'_>, name: &str) -> (Option<Parts>, Option<Option<NamespaceId>>) {
    let path = format!("sync.{name}");
    let name_serves = is_name(name);
    if !name_serves {
        reader.problem(&path, bad_name(name));
    }
    let mut section = reader.section(&path);
    let table = section.parsed("table", None, "a table", qualified);
    if table.is_none() && !section.is_set("table") {
        section.missing(
            "table",
            Scope::Sql,
            "name the table with its schema: \"public.users\"",
        );
    }
    let key = section.text("key", None);
    if key.is_none() && !section.is_set("key") {
        section.missing(
            "key",
            Scope::Sql,
            "give the KV key as a template: \"user:{id}\"",
        );
    }
    let key_columns = section.columns("key_columns");
    let collect = collect::read(&mut section);
    let template =
        key.zip(key_columns)
            .zip(collect.as_ref())
            .and_then(|((key, columns), collect)| {
                template(&mut section, &key, columns, collect.as_ref())
            });
    let value = document::value(&mut section);
    let attributes = document::attributes(&mut section);
    let watched = section.columns("watch");
    let filter = section.text("where", None);
    let filter_serves = filter.is_some() || !section.is_set("where");
    let namespace = section
        .id("namespace_id", NAMESPACE_SOURCE)
        .map(|id| id.and_then(|id| NamespaceId::new(id).ok()));
    let related = section.take(related::KEY).map(|(found, _)| found);
    let related = related::read(reader, &path, related);

    let parts = || {
        let (template, key_columns) = template?;
        let value = value?;
        let related = related?;
        let attributes = attributes?;
        let collect = collect?;
        let ordered = collect.as_ref().is_some_and(|c| c.order_by.is_some());
        let reads_more = filter.is_some() || ordered || document::reads_columns(&attributes);
        let member = collect.as_ref().and_then(|collect| match &collect.into {
            CollectInto::Object { member } => Some(member.as_str()),
            CollectInto::List => None,
        });
        let columns = watched_columns(watched?, &value, member, reads_more)
            .map(|columns| with_matched(columns, &related));
        let watch = WatchSpec {
            sync: name.to_owned(),
            table: table?,
            key_columns,
            columns,
            collect: collect.is_some(),
            shards: collect.as_ref().and_then(|collect| collect.shards),
            related,
        };
        (name_serves && filter_serves).then_some(Parts {
            watch,
            template,
            value,
            filter,
            attributes,
            collect,
        })
    };
    (parts(), namespace)
}

/// The columns whose change counts. Those that are written always do; an expression may read any
/// column, so there it takes the operator's word to leave one out.
fn watched_columns(
    given: Option<Vec<String>>,
    value: &ValueSource,
    member: Option<&str>,
    reads_more: bool,
) -> Option<Vec<String>> {
    let mut written: Vec<String> = match value {
        ValueSource::Columns(columns) => columns.iter().map(|(column, _)| column.clone()).collect(),
        ValueSource::Expression(_) => Vec::new(),
    };
    written.extend(member.map(str::to_owned));
    let mut watched = match (given, value, reads_more) {
        (Some(given), ..) => given,
        (None, ValueSource::Columns(_), false) => Vec::new(),
        (None, ..) => return None,
    };
    for column in written {
        if !watched.contains(&column) {
            watched.push(column);
        }
    }
    Some(watched)
}

/// A row that begins to match another row of a related table takes its data from there from now on,
/// so a change of the matched columns always counts.
fn with_matched(mut columns: Vec<String>, related: &[RelatedSpec]) -> Vec<String> {
    for (own, _) in related.iter().flat_map(|related| &related.matches) {
        if !columns.contains(own) {
            columns.push(own.clone());
        }
    }
    columns
}

/// The template, and the key columns: those given, or its placeholders in order.
fn template(
    section: &mut Section<'_, '_>,
    key: &str,
    given: Option<Vec<String>>,
    collect: Option<&Collect>,
) -> Option<(Template, Vec<String>)> {
    let sharded = collect.is_some_and(|collect| collect.shards.is_some());
    if sharded && given.iter().flatten().any(|name| name == collect::SHARD) {
        let complaint = Complaint::new(
            "names shard, which stands for the number of the shard here",
            "leave it out of key_columns; a column of this name cannot be in the key with shards",
        );
        section.problem("key_columns", complaint);
        return None;
    }
    if sharded && !placeholders(key).iter().any(|name| name == collect::SHARD) {
        let complaint = Complaint::new(
            format!("= {} holds no {{shard}}, and shards is set", quoted(key)),
            "put the number of the shard into the key: \"users:{shard}\"",
        );
        section.problem("key", complaint);
        return None;
    }
    let named = given.unwrap_or_else(|| placeholders(key));
    let columns: Vec<String> = named
        .into_iter()
        .filter(|name| !(sharded && name == collect::SHARD))
        .collect();
    if columns.is_empty() && collect.is_none() {
        let complaint = Complaint::new(
            format!("= {} holds no column", quoted(key)),
            "put the column that tells rows apart in braces: \"user:{id}\"; or set collect, for one \
             document of all rows",
        );
        section.problem("key", complaint);
        return None;
    }
    let mut values = columns.clone();
    values.extend(sharded.then(|| collect::SHARD.to_owned()));
    match Template::parse(key, &values) {
        Ok(template) => Some((template, columns)),
        Err(error) => {
            let (what, help) = sentence(&error.to_string());
            section.problem(
                "key",
                Complaint::new(format!("= {}: {what}", quoted(key)), help),
            );
            None
        }
    }
}

/// What stands in single braces, in order, each once. Says nothing of mistakes: the parser of
/// templates does.
fn placeholders(key: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    key.replace("{{", "")
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(column, _)| column.to_owned())
        .filter(|column| !column.is_empty() && seen.insert(column.clone()))
        .collect()
}

impl Section<'_, '_> {
    /// A list of columns, where set. Outer `None`: a problem was recorded.
    pub(super) fn columns(&mut self, key: &'static str) -> Option<Option<Vec<String>>> {
        let names = self.names(key, false);
        if names.is_none() {
            return (!self.is_set(key)).then_some(None);
        }
        let names: Vec<_> = names?.into_iter().map(|(name, _)| name).collect();
        if let Some(long) = names.iter().find(|name| name.len() > IDENTIFIER_MAX_BYTES) {
            let complaint = Complaint::new(
                format!("has a name of {} bytes", long.len()),
                format!("identifiers of Postgres have at most {IDENTIFIER_MAX_BYTES} bytes"),
            );
            self.problem(key, complaint);
            return None;
        }
        Some(Some(names))
    }
}

/// A table with its schema, each part plain or in double quotes, as `regclass` takes it.
///
/// The schema is required: DBA and daemon may have different search paths, and would then mean
/// different tables.
pub(super) fn qualified(text: &str) -> Result<String, Complaint> {
    let parts = identifiers(text).ok_or_else(|| {
        Complaint::new(
            format!("= {} is not the name of a table", quoted(text)),
            "write schema and table with a dot between; a name with capitals or other characters \
             goes in double quotes: 'public.\"Users\"'",
        )
    })?;
    match parts {
        1 => Err(Complaint::new(
            format!("= {} names no schema", quoted(text)),
            format!(
                "write it with its schema, such as {}",
                quoted(&format!("public.{text}"))
            ),
        )),
        2 => Ok(text.to_owned()),
        _ => Err(Complaint::new(
            format!("= {} has more than two parts", quoted(text)),
            "write schema and table only: the database is part of postgres.url",
        )),
    }
}

/// The number of identifiers with dots between them, or `None` where `text` is something else.
fn identifiers(text: &str) -> Option<usize> {
    let mut rest = text;
    for count in 1.. {
        rest = match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut end = 0;
                loop {
                    end += quoted[end..].find('"')?;
                    if quoted[end + 1..].starts_with('"') {
                        end += 2;
                    } else {
                        break;
                    }
                }
                (1..=IDENTIFIER_MAX_BYTES)
                    .contains(&end)
                    .then_some(&quoted[end + 1..])?
            }
            None => {
                let end = rest
                    .find(|c: char| !(c.is_lowercase() || c.is_ascii_digit() || "_$".contains(c)))
                    .unwrap_or(rest.len());
                let starts = rest.starts_with(|c: char| c.is_lowercase() || c == '_');
                (starts && end <= IDENTIFIER_MAX_BYTES).then_some(&rest[end..])?
            }
        };
        if rest.is_empty() {
            return Some(count);
        }
        rest = rest.strip_prefix('.')?;
    }
    None
}

/// Refuses two syncs of one namespace of which one would take the other's pairs for its own, and
/// delete them when it compares KV with its table.
fn refuse_overlaps(reader: &mut Reader<'_>, syncs: &[Sync]) {
    for (i, sync) in syncs.iter().enumerate() {
        let other = syncs[..i].iter().find(|other| {
            let (a, b) = (sync.template.prefix(), other.template.prefix());
            sync.namespace_id == other.namespace_id && (a.starts_with(b) || b.starts_with(a))
        });
        let Some(other) = other else { continue };
        let complaint = Complaint::new(
            format!(
                "begins with {}, and sync.{}.key with {}, in one namespace: each could delete the \
                 other's keys",
                quoted(sync.template.prefix()),
                other.watch.sync,
                quoted(other.template.prefix()),
            ),
            "let each begin with a text of its own, or give one of them another namespace_id",
        );
        reader.problem(&format!("sync.{}.key", sync.watch.sync), complaint);
    }
}
