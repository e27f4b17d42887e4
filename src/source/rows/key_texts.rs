//! Keys taken apart: the texts of their values, column by column, as the reads take them. Pure.

use std::borrow::Cow;

use serde_json::value::RawValue;
use tokio_postgres::types::ToSql;

/// The values of keys as text, one list for each column. See the module.
///
/// What `->>` gives of a `jsonb` array, without the server taking each key apart: a string's own text,
/// and of all else what JSON writes.
pub(crate) struct KeyTexts<'a> {
    columns: Vec<Vec<Option<Cow<'a, str>>>>,
    width: usize,
    unreadable: bool,
}

impl<'a> KeyTexts<'a> {
    /// Of `keys`, each the text of a `jsonb` array of `width` values. What a key lacks is NULL.
    pub(crate) fn of(keys: &[&'a str], width: usize) -> Self {
        // A list of NULL tells how many keys there are where they have no values.
        let mut columns: Vec<_> = (0..width.max(1))
            .map(|_| Vec::with_capacity(keys.len()))
            .collect();
        let mut unreadable = false;
        for key in keys {
            unreadable |= !key.starts_with('[');
            let values: Vec<&RawValue> = serde_json::from_str(key).unwrap_or_default();
            for (at, column) in columns.iter_mut().enumerate() {
                column.push(values.get(at).copied().and_then(text));
            }
        }
        Self {
            columns,
            width,
            unreadable,
        }
    }

    /// The first parameters of [`super::Plan::rows`].
    pub(crate) fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.columns.iter().map(|column| column as _).collect()
    }

    /// Number of values in a key.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Whether one of the keys is known by its size and hash only. It has no values, and so no row.
    pub(crate) fn has_unreadable(&self) -> bool {
        self.unreadable
    }

    /// Number of keys.
    pub(crate) fn len(&self) -> usize {
        self.columns.first().map_or(0, Vec::len)
    }

    /// The values of one key, as the document's name takes them.
    pub(crate) fn owned(&self, place: usize) -> Vec<String> {
        self.values(place).map(str::to_owned).collect()
    }

    /// The values of one key, by its place among the keys.
    pub(crate) fn values(&self, place: usize) -> impl Iterator<Item = &str> {
        let columns = self.columns.iter().take(self.width);
        let values = columns.map(move |column| column.get(place));
        values.map(|value| value.and_then(Option::as_deref).unwrap_or_default())
    }
}

fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    match value.get() {
        "null" => None,
        json if json.starts_with('"') => {
            let plain = json
                .get(1..json.len() - 1)
                .filter(|text| !text.contains('\\'));
            plain
                .map(Cow::Borrowed)
                .or_else(|| serde_json::from_str(json).ok().map(Cow::Owned))
        }
        json => Some(Cow::Borrowed(json)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_what_postgres_takes_out_of_jsonb() {
        let keys = [
            r#"[1.00, "a\"b\u0001\n\\", null]"#,
            r#"[12345678901234567890.10, "é", true]"#,
            r#"["[1]"]"#,
        ];
        let texts = KeyTexts::of(&keys, 3);
        let row = |place| texts.values(place).collect::<Vec<_>>();
        assert_eq!(row(0), ["1.00", "a\"b\u{1}\n\\", ""]);
        assert_eq!(row(1), ["12345678901234567890.10", "é", "true"]);
        assert_eq!(row(2), ["[1]", "", ""]);
        assert_eq!(texts.columns[2], [None, Some("true".into()), None]);
    }

    #[test]
    fn keys_without_values_are_counted() {
        let texts = KeyTexts::of(&["[]", "[]"], 0);
        assert_eq!(texts.columns, [[None, None]]);
        assert_eq!(texts.values(0).count(), 0);
        assert_eq!(KeyTexts::of(&[], 2).columns.len(), 2);
    }
}
