//! The configuration file as a JSON Schema (draft 2020-12), for editors and for those who write it by
//! program.
//!
//! Keys, types, limits and defaults are noted while an almost empty configuration is read, by the code
//! that reads every other; descriptions and examples stand in `deploy/pg2kv.example.toml`. So nothing
//! here is a second list. What concerns two keys at once (`quiet` is not above `max_wait`) is left to
//! the reader, and so is what must be set: a file may be one of several, or leave a key to the
//! environment.

use serde_json::{Value, json};

use super::reference::{Told, is_chosen, place, told};
use super::section::span;
use super::sections::NAME;
use super::shape::{Form, Shape};

/// Text that is not blank.
const TEXT: &str = r"\S";

/// What the reader takes for a span of time. Held against it by a test.
const DURATION: &str = concat!(
    r"^(\s*0|(\s*[0-9]+(\.[0-9]+)?\s*(",
    "nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|mins|min|m|",
    "hours|hour|hrs|hr|h|days|day|d|weeks|week|wks|wk|w|months|month|M|years|year|yrs|yr|y",
    r"))+)\s*$"
);

/// Has one sync, and one related table below it: enough for the reader to meet every key there is.
const EVERY_SECTION: (&str, &str) = ("PG2KV__SYNC__NAME__RELATED__NAME__TABLE", "public.name");

/// The schema.
pub fn schema() -> Value {
    let (name, value) = EVERY_SECTION;
    let shapes = super::shapes([(name.into(), value.into())]);
    let told = told();
    let mut root = object("");
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("Configuration of pg2kv");
    root["description"] = json!(
        "Names, types, limits and defaults of what a configuration file may hold. No key is required \
         here: others may stand in another file or in the environment. `pg2kv check` says what is \
         missing, and what does not go together."
    );
    for shape in &shapes {
        let mut node = &mut root;
        let mut path = String::new();
        for (depth, part) in shape.section.split('.').enumerate() {
            path = if path.is_empty() {
                part.to_owned()
            } else {
                format!("{path}.{part}")
            };
            node = if is_chosen(depth) {
                &mut node["patternProperties"][NAME]
            } else {
                &mut node["properties"][part]
            };
            if node.is_null() {
                let told = told.get(&place(&path));
                *node = object(told.map_or("", |told| &told.description));
            }
        }
        let told = told.get(&format!("{}.{}", place(&shape.section), shape.key));
        node["properties"][shape.key] = key(shape, told);
    }
    root
}

/// A section that holds nothing yet.
fn object(description: &str) -> Value {
    let mut object = json!({ "type": "object", "additionalProperties": false });
    if !description.is_empty() {
        object["description"] = json!(description);
    }
    object
}

fn key(shape: &Shape, told: Option<&Told>) -> Value {
    let mut key = form(&shape.form);
    let mut description = told.map_or_else(String::new, |told| told.description.clone());
    if let Form::Duration(range) = &shape.form {
        let (from, to) = (span(*range.start()), span(*range.end()));
        description.push_str(&format!(" From {from} to {to}."));
    }
    key["description"] = json!(description);
    match (&shape.default, told.and_then(|told| told.example.as_ref())) {
        (Some(default), _) => key["default"] = default.clone(),
        (None, Some(example)) => key["examples"] = json!([example]),
        (None, None) => {}
    }
    key
}

fn form(form: &Form) -> Value {
    let list = json!({
        "type": "array",
        "items": { "type": "string", "pattern": TEXT },
        "minItems": 1,
        "uniqueItems": true,
    });
    match form {
        Form::Text => json!({ "type": "string", "pattern": TEXT }),
        Form::Secret => json!({ "type": "string", "pattern": TEXT, "writeOnly": true }),
        Form::Matching(pattern) => json!({ "type": "string", "pattern": pattern }),
        Form::OneOf(words) => json!({ "type": "string", "enum": words }),
        Form::Duration(_) => json!({ "type": "string", "pattern": DURATION }),
        Form::Integer(from, to) => json!({ "type": "integer", "minimum": from, "maximum": to }),
        Form::Share => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        Form::Boolean => json!({ "type": "boolean" }),
        Form::Names { pairs: false } => list,
        Form::Names { pairs: true } => {
            let table = json!({
                "type": "object",
                "additionalProperties": { "type": "string", "pattern": TEXT },
                "propertyNames": { "minLength": 1 },
                "minProperties": 1,
            });
            json!({ "oneOf": [list, table] })
        }
    }
}
