//! The keys of `[sync.NAME]` that make one document of many rows.

use super::super::effective::quoted;
use super::super::problem::{Complaint, Scope};
use super::super::section::Section;
use super::super::shape::Form;
use super::IDENTIFIER_MAX_BYTES;
use crate::source::{Collect, CollectInto};

/// What stands in a key template for the number of a shard.
pub(super) const SHARD: &str = "shard";
/// The two kinds of documents of many rows.
const OBJECT: &str = "object";
const LIST: &str = "list";
/// Most documents that the rows of one key are divided among: 25 GB, if all are full.
const SHARDS_MAX: u32 = 1_000;

/// Outer `None`: a problem was recorded.
pub(super) fn read(section: &mut Section<'_, '_>) -> Option<Option<Collect>> {
    let kind = section.parsed(
        "collect",
        None,
        "\"object\" or \"list\"",
        |text| match text {
            OBJECT => Ok(true),
            LIST => Ok(false),
            other => Err(Complaint::new(
                format!("= {} is neither of two", quoted(other)),
                "write \"object\" for a JSON object with a member for each row, or \"list\"",
            )),
        },
    );
    section.form(Form::OneOf(vec![OBJECT, LIST]));
    let member = section.parsed("member", None, "a column", |name| {
        if name.len() <= IDENTIFIER_MAX_BYTES {
            return Ok(name.to_owned());
        }
        Err(Complaint::new(
            format!("has {} bytes", name.len()),
            format!("identifiers of Postgres have at most {IDENTIFIER_MAX_BYTES} bytes"),
        ))
    });
    let order_by = section.text("order_by", None);
    let shards = section.number_if_set("shards", 1..=SHARDS_MAX);
    if !section.is_set("collect") {
        return alone(section);
    }
    let object = kind?;
    let into = match (object, section.is_set("member")) {
        (true, true) => CollectInto::Object { member: member? },
        (true, false) => {
            section.missing(
                "member",
                Scope::Sql,
                "name the column whose value names a row's member in the object, such as \"id\"",
            );
            return None;
        }
        (false, true) => {
            let complaint = Complaint::new(
                format!("is set, and {} is \"list\"", section.at("collect")),
                "elements of a list have no names: leave member out, or set collect = \"object\"",
            );
            section.problem("member", complaint);
            return None;
        }
        (false, false) => CollectInto::List,
    };
    if !one_row_has_no_say(section) {
        return None;
    }
    if order_by.is_none() && section.is_set("order_by") {
        return None;
    }
    Some(Some(Collect {
        into,
        order_by,
        shards: shards?,
    }))
}

/// Without `collect` the others mean nothing.
fn alone(section: &mut Section<'_, '_>) -> Option<Option<Collect>> {
    let set = ["member", "order_by", "shards"]
        .into_iter()
        .filter(|key| section.is_set(key));
    let set: Vec<_> = set.collect();
    for key in &set {
        let complaint = Complaint::new(
            "is set, and collect is not",
            "set collect = \"object\" or \"list\" for one document of many rows, or leave it out",
        );
        section.problem(key, complaint);
    }
    set.is_empty().then_some(None)
}

/// What each row says for itself cannot be said of the document of many.
fn one_row_has_no_say(section: &mut Section<'_, '_>) -> bool {
    let mut serves = true;
    for key in ["content_type", "metadata", "expires_at"] {
        if section.is_set(key) {
            let complaint = Complaint::new(
                format!("and {} are both set", section.at("collect")),
                "a document of many rows has no one row to take it from; leave one of them out",
            );
            section.problem(key, complaint);
            serves = false;
        }
    }
    serves
}
