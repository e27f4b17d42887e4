//! How far a listing is, and the check that each page takes it further.
//!
//! Owns the position that a caller hands back for the next page. It is text, so that it can be kept in
//! Postgres between two pages. Pure; knows nothing of requests.
//!
//! **Invariant:** every listing ends. Names increase strictly from page to page, and a listing without
//! names ends after [`EMPTY_PAGES_MAX`] pages, or earlier when its cursors repeat. No more is remembered
//! than the last name and two cursors.

use serde::{Deserialize, Serialize};

/// Most pages in a row without a name. Workers KV may list an empty page with a cursor where it
/// skips names that were deleted a short time ago: so many pages skip about a million of them.
const EMPTY_PAGES_MAX: u32 = 1_000;

/// Where the next page begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The cursor of Workers KV.
    cursor: String,
    /// The last name so far; the next one must be greater.
    after: Option<String>,
    /// Pages since then.
    empty_pages: u32,
    /// A cursor of one of those pages: meeting it again is a circle. It moves to pages 1, 2, 4, 8 ...,
    /// so that it stands in any circle sooner or later (Brent).
    mark: Option<String>,
}

impl Position {
    /// The position in `text`, which came with an earlier page. Any other text is a bare cursor.
    pub fn parse(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|_| Self {
            cursor: text.to_owned(),
            ..Self::default()
        })
    }

    /// The cursor to ask for the page with.
    pub(super) fn cursor(&self) -> &str {
        &self.cursor
    }

    /// The position after a page that brought `names` and the cursor `next`; `None` after the last page.
    ///
    /// # Errors
    /// The page does not take the listing further; says in what way.
    pub(super) fn advance<'a>(
        before: Option<&'a Self>,
        names: impl Iterator<Item = &'a str>,
        next: Option<String>,
    ) -> Result<Option<String>, &'static str> {
        let mut after = before.and_then(|before| before.after.as_deref());
        let mut empty = true;
        for name in names {
            empty = false;
            if after.is_some_and(|after| name <= after) {
                return Err("the listing does not advance: its names do not increase");
            }
            after = Some(name);
        }
        let Some(cursor) = next else {
            return Ok(None);
        };
        let mut position = Self {
            cursor,
            after: after.map(str::to_owned),
            empty_pages: 0,
            mark: None,
        };
        if let Some(before) = before {
            if before.cursor == position.cursor {
                return Err("the listing does not advance: its cursor repeats");
            }
            if empty {
                position.follow_empty(before)?;
            }
        }
        let text = serde_json::to_string(&position).map_err(|_| "its cursor is not text")?;
        Ok(Some(text))
    }

    fn follow_empty(&mut self, before: &Self) -> Result<(), &'static str> {
        if before.mark.as_ref() == Some(&self.cursor) {
            return Err("the listing does not advance: its cursors go round in a circle");
        }
        if before.empty_pages == EMPTY_PAGES_MAX {
            return Err("the listing does not advance: 1,000 pages in a row have no names");
        }
        self.empty_pages = before.empty_pages + 1;
        self.mark = if self.empty_pages.is_power_of_two() {
            Some(self.cursor.clone())
        } else {
            before.mark.clone()
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages until the listing ends, and how. Each page is its names and its cursor.
    fn pages<'a>(listing: impl Iterator<Item = (&'a [&'a str], String)>) -> (u32, &'static str) {
        let (mut position, mut count) = (None::<String>, 0);
        for (names, cursor) in listing.take(5_000) {
            count += 1;
            let before = position.as_deref().map(Position::parse);
            match Position::advance(before.as_ref(), names.iter().copied(), Some(cursor)) {
                Ok(next) => position = next,
                Err(what) => return (count, what),
            }
            assert!(position.as_ref().unwrap().len() < 200, "{position:?}");
        }
        (count, "no more pages")
    }

    fn circle<const N: usize>(cursors: [&str; N]) -> impl Iterator<Item = String> {
        std::iter::repeat(cursors.map(str::to_owned)).flatten()
    }

    #[test]
    fn a_circle_of_pages_ends_with_the_first_name_that_is_not_new() {
        let names: [&[&str]; 2] = [&["a", "b"], &["c"]];
        let listing = names.into_iter().cycle().zip(circle(["A", "B"]));
        let (count, what) = pages(listing);
        assert_eq!((count, what.contains("do not increase")), (3, true));
        // The same page for ever, each time with another cursor.
        let fresh = (0..).map(|number: u32| number.to_string());
        let (count, _) = pages(std::iter::repeat::<&[&str]>(&["a"]).zip(fresh));
        assert_eq!(count, 2);
        // Within one page.
        assert_eq!(
            pages(circle(["A"]).map(|cursor| (&["b", "a"][..], cursor))).0,
            1
        );
    }

    #[test]
    fn empty_pages_are_followed_as_long_as_their_cursors_are_new() {
        let empty = std::iter::repeat::<&[&str]>(&[]);
        let (count, what) = pages(empty.clone().zip(circle(["A"])));
        assert_eq!((count, what.contains("repeats")), (2, true));
        for (count, what) in [
            pages(empty.clone().zip(circle(["A", "B"]))),
            pages(empty.clone().zip(circle(["A", "B", "C", "D", "E"]))),
        ] {
            assert!(count < 20 && what.contains("circle"), "{count}: {what}");
        }
        let fresh = || (0..).map(|number: u32| number.to_string());
        let (count, what) = pages(empty.clone().zip(fresh()));
        assert_eq!((count, what.contains("no names")), (1_002, true));
        // A name begins the count anew.
        let mut names: Vec<&[&str]> = vec![&[]; 900];
        names.push(&["a"]);
        names.extend(vec![&[] as &[&str]; 900]);
        assert_eq!(pages(names.into_iter().zip(fresh())).1, "no more pages");
    }

    #[test]
    fn a_position_of_an_earlier_release_is_a_bare_cursor() {
        for text in ["AAbb==", "42", "[]", "{}"] {
            assert_eq!(Position::parse(text).cursor(), text);
        }
    }
}
