//! Documents of keys that follow one another in the index: one scan from the first to the last, instead
//! of a descent for each.
//!
//! Owns when keys can be read like that, the statement, and which row belongs to which key. The server
//! takes a quarter of the time for rows that also lie side by side, and less than half where they do not
//! (`deploy/benchmarks.md`).
//!
//! **A key counts as gone only if the scan went past it**, and, where a walk has just found it, only if a
//! read by key misses it too. Rows come in the order of the index, and so do the keys; what does not is
//! read by key.

use std::collections::HashMap;

use tokio_postgres::Row;

use super::super::SyncSource;
use super::super::error::Error;
use super::KeyTexts;
use super::by_key::{Which, listed, value_or_size};
use super::members::Members;
use super::table::{KeyColumn, Table};
use super::value::Filter;

/// With fewer keys a scan spares nothing, and its statement would have to be planned.
const KEYS_MIN: usize = 100;
/// At most so many integers for each key of a run.
const SPREAD_MAX: u64 = 2;

/// What tells whether keys can be read as a run.
#[derive(Clone, Copy)]
pub(crate) struct Runs {
    /// The key is one integer, so neighbours are known by themselves.
    integer: bool,
    /// Every row is published, so between keys that a walk found there is little else.
    unfiltered: bool,
}

impl Table {
    /// Whether, and when, keys can be read as runs: an index has their order, and texts tell them apart.
    pub(super) fn runs(&self, sync: &SyncSource) -> Option<Runs> {
        let exact = |column: &KeyColumn| column.exact && column.echoed;
        let columns = &self.columns;
        let alike = columns.first().is_some_and(|first| {
            columns
                .iter()
                .all(|column| column.at_least == first.at_least && column.at_most == first.at_most)
        });
        let whole = sync.collect.is_none() && self.width() == columns.len();
        (self.indexed && alike && whole && columns.iter().all(exact)).then(|| Runs {
            integer: matches!(columns.as_slice(), [only] if only.integer),
            unfiltered: Filter::of(sync).sql().is_empty(),
        })
    }

    /// Documents from one key to another, in the order of the index: `$1` and on are the texts of the
    /// first key's values, then those of the last, then the bytes that a value may have. Gives what
    /// [`Self::rows`] does, but the texts of the
    /// row's key in place of the key's place and columns.
    pub(super) fn run(
        &self,
        sync: &SyncSource,
        binary: bool,
        members: Option<&Members>,
        doing: &str,
    ) -> Result<String, Error> {
        let (alias, width) = (&self.alias, self.width());
        let in_order = |part: &dyn Fn(usize, &KeyColumn) -> String| -> String {
            let order = self.order.iter().map(|at| (*at, &self.columns[*at]));
            let parts: Vec<String> = order.map(|(at, column)| part(at, column)).collect();
            parts.join(", ")
        };
        let given = |from: usize| {
            in_order(&|at, column: &KeyColumn| column.of_text(&format!("${}::text", from + at)))
        };
        let own = in_order(&|_, column| format!("{alias}.{}", column.name));
        let (at_least, at_most) = self.columns.first().map_or(("", ""), |first| {
            (first.at_least.as_str(), first.at_most.as_str())
        });
        let (first, last) = (given(1), given(1 + width));
        let columns = self.columns.iter().enumerate();
        let also: String = columns
            .map(|(at, column)| format!(", {alias}.{}::text as pg2kv_c{at}", column.name))
            .collect();
        let which = Which {
            also: &also,
            matches: &format!("({own}) {at_least} ({first}) and ({own}) {at_most} ({last})"),
            end: &format!("order by {own} offset 0"),
        };
        let (document, beside) = self.of_one_row(sync, binary, members, &which, doing)?;
        let keys: Vec<_> = (0..width)
            .map(|at| format!("pg2kv_document.pg2kv_c{at}"))
            .collect();
        Ok(format!(
            "select {}, {}{beside} from ({document}) as pg2kv_document",
            listed(&keys[0], keys[1..].to_vec()),
            value_or_size(2 * width + 1),
        ))
    }
}

impl Runs {
    /// Whether to read these keys as one run. `walked`: a walk found them one after the other.
    pub(crate) fn fit(self, keys: &KeyTexts<'_>, walked: bool) -> bool {
        keys.len() >= KEYS_MIN && (walked && self.unfiltered || self.integer && dense(keys))
    }
}

/// Whether keys of one integer ascend, and leave out few between them.
fn dense(keys: &KeyTexts<'_>) -> bool {
    let at = |place| keys.values(place).next().and_then(integer);
    let Some(first) = at(0) else {
        return false;
    };
    let last = (1..keys.len()).try_fold(first, |before, place| {
        at(place).filter(|next| before < *next)
    });
    last.is_some_and(|last| last.abs_diff(first) / SPREAD_MAX < keys.len() as u64)
}

/// An integer whose text is the one that the server gives it.
fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let canonical = digits.starts_with(|first: char| first.is_ascii_digit() && first != '0');
    (canonical || text == "0")
        .then(|| text.parse().ok())
        .flatten()
}

/// Which key a row is of, where both come in the same order.
pub(crate) struct Places<'a, 'k> {
    keys: &'a KeyTexts<'k>,
    /// Number of values in a key.
    width: usize,
    /// The place behind that of the last row.
    next: usize,
    /// Made when a row is not of the next key.
    all: Option<HashMap<Vec<&'a str>, usize>>,
}

/// Where a row belongs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// To this key.
    Of(usize),
    /// To none that was asked for.
    Other,
    /// To one before the last: the order is not that of the keys.
    Behind,
}

impl<'a, 'k> Places<'a, 'k> {
    pub(crate) fn new(keys: &'a KeyTexts<'k>) -> Self {
        Self {
            keys,
            width: keys.width(),
            next: 0,
            all: None,
        }
    }

    /// The place of a row of the run.
    ///
    /// # Errors
    /// The driver's: a column of another type, which would be a mistake of ours.
    pub(crate) fn of(&mut self, row: &Row) -> Result<Place, tokio_postgres::Error> {
        let texts: Option<Vec<&str>> = (0..self.width)
            .map(|at| row.try_get(at))
            .collect::<Result<_, _>>()?;
        // A key with a NULL in it is not published.
        Ok(texts.map_or(Place::Other, |texts| self.place(&texts)))
    }

    fn place(&mut self, row: &[&str]) -> Place {
        let keys = self.keys;
        let next = self.next < keys.len() && keys.values(self.next).eq(row.iter().copied());
        let place = if next {
            self.next
        } else {
            let all = self.all.get_or_insert_with(|| {
                let places = 0..keys.len();
                places.map(|at| (keys.values(at).collect(), at)).collect()
            });
            match all.get(row) {
                None => return Place::Other,
                Some(at) if *at < self.next => return Place::Behind,
                Some(at) => *at,
            }
        };
        self.next = place + 1;
        Place::Of(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(integers: impl IntoIterator<Item = i64>) -> Vec<String> {
        let keys = integers.into_iter();
        keys.map(|key| format!("[{key}]")).collect()
    }

    fn texts(keys: &[String]) -> KeyTexts<'_> {
        KeyTexts::of(&keys.iter().map(String::as_str).collect::<Vec<_>>(), 1)
    }

    #[test]
    fn integers_that_ascend_with_few_gaps_are_a_run() {
        let integer = Runs {
            integer: true,
            unfiltered: false,
        };
        let fit = |given: &[String]| integer.fit(&texts(given), false);
        assert!(fit(&keys(-50..50)));
        assert!(fit(&keys((0..100).map(|at| at * 2))));
        assert!(!fit(&keys((0..100).map(|at| at * 3))));
        assert!(!fit(&keys(0..99)), "too few");
        assert!(!fit(&keys((0..100).rev())));
        assert!(!fit(&keys((0..99).chain([98]))), "twice");
        assert!(!fit(&keys((0..99).chain([i64::MAX]))));
        for other in [
            "[\"-0\"]", "[\"07\"]", "[\"+7\"]", "[7.0]", "[null]", "[]", "[\"\"]",
        ] {
            let mut given = keys(8..200);
            given[0] = other.to_owned();
            assert!(!fit(&given), "{other}");
        }
    }

    #[test]
    fn keys_of_a_walk_are_a_run_where_all_rows_are_published() {
        let given = keys((0..100).rev());
        for (integer, unfiltered, walked, fit) in [
            (false, true, true, true),
            (false, true, false, false),
            (true, false, true, false),
            (false, false, true, false),
        ] {
            let runs = Runs {
                integer,
                unfiltered,
            };
            assert_eq!(runs.fit(&texts(&given), walked), fit);
        }
    }

    #[test]
    fn rows_find_the_place_of_their_key() {
        let keys = keys([1, 2, 4, 5]);
        let texts = texts(&keys);
        let mut places = Places::new(&texts);
        let mut place = |text| places.place(&[text]);
        assert_eq!(place("1"), Place::Of(0));
        assert_eq!(place("3"), Place::Other);
        assert_eq!(place("4"), Place::Of(2));
        assert_eq!(place("2"), Place::Behind);
        assert_eq!(place("4"), Place::Behind);
        assert_eq!(place("5"), Place::Of(3));
        assert_eq!(place("5"), Place::Behind);
        assert_eq!(place("6"), Place::Other);
    }
}
