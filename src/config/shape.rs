//! What a key may hold, as far as that can be said without looking at other keys.
//!
//! [`Section`] notes a shape for each key that it reads, from the very arguments that it reads it by.
//! So the JSON Schema that is made of these cannot name other keys, types, limits or defaults than are
//! in force. Knows nothing of particular keys, nor of JSON Schema.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::Value;

use super::section::Section;

/// One key.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// The section, such as `queue` or `sync.users`.
    pub(super) section: String,
    pub(super) key: &'static str,
    pub(super) form: Form,
    /// What holds where the key is not set; `None` where nothing does, or where it is another on each
    /// machine.
    pub(super) default: Option<Value>,
}

/// What is written in the place of a value.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// Text that is not empty.
    Text,
    /// The same, and not to be shown.
    Secret,
    /// Text of this regular expression.
    Matching(&'static str),
    /// One of these words.
    OneOf(Vec<&'static str>),
    /// A span of time in words, from and to.
    Duration(RangeInclusive<Duration>),
    /// A whole number, from and to.
    Integer(Value, Value),
    /// A share of a whole, from 0 to 1.
    Share,
    /// `true` or `false`.
    Boolean,
    /// A list of names, or a table of names to names where `pairs` allows one.
    Names {
        /// Whether it does.
        pairs: bool,
    },
}

impl Section<'_, '_> {
    /// Notes the shape of a key that is about to be read.
    pub(super) fn note(&mut self, key: &'static str, form: Form, default: Option<Value>) {
        let section = self.path().to_owned();
        self.shapes().push(Shape {
            section,
            key,
            form,
            default,
        });
    }

    /// Says more of the form of the key that was read last than that it is text.
    pub(super) fn form(&mut self, form: Form) {
        if let Some(shape) = self.shapes().last_mut() {
            shape.form = form;
        }
    }

    /// Says that the default of the key that was read last is another on each machine.
    pub(super) fn default_varies(&mut self) {
        if let Some(shape) = self.shapes().last_mut() {
            shape.default = None;
        }
    }
}
