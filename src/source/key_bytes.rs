//! Keys as they stand in the database, in whatever encoding that has.
//!
//! The server converts each text that it sends to UTF-8, and one that it cannot convert fails the whole
//! statement. So a statement that reads the keys of many rows takes their bytes, and each is decoded for
//! itself: one that is no text in UTF-8 becomes a [`Key`] that says so, and fails nothing.

use md5::{Digest as _, Md5};
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql, Type};

use super::error::{Error, Place};
use super::link::{Link, ReadLink};
use crate::change::{Key, Unreadable};

/// Makes texts of bytes; `$1` is an array of `bytea`.
const DECODE: &str = "\
    select convert_from(k.bytes, getdatabaseencoding()) \
    from unnest($1::bytea[]) with ordinality as k(bytes, ord) order by k.ord";

/// Which connection asks the server for texts.
#[derive(Clone, Copy)]
pub(crate) enum Via<'a> {
    Own(&'a Link),
    Reads(&'a ReadLink),
}

impl Via<'_> {
    async fn decode(self, bytes: &[&[u8]]) -> Result<Vec<Row>, Error> {
        let parameters: [&(dyn ToSql + Sync); 1] = [&bytes];
        let doing = "decoding keys";
        match self {
            Self::Own(link) => {
                let rows = link.client().query(DECODE, &parameters);
                link.call(doing, 2, Place::Rows, rows).await
            }
            Self::Reads(link) => {
                let rows = link.client().query(DECODE, &parameters);
                link.read(doing, 2, Place::Rows, rows).await
            }
        }
    }
}

/// The encoding of a database, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Texts arrive as they stand.
    Utf8,
    /// Texts are whatever bytes a client wrote.
    SqlAscii,
    /// The server knows how to convert, where there is such a character. All of these have ASCII in them.
    Other,
}

impl Encoding {
    /// Of `server_encoding`.
    pub(crate) fn of(name: &str) -> Self {
        match name {
            "UTF8" => Self::Utf8,
            "SQL_ASCII" => Self::SqlAscii,
            _ => Self::Other,
        }
    }

    /// SQL for the bytes of a text as they stand in the database.
    pub(crate) fn raw(self, text: &str) -> String {
        match self {
            Self::Utf8 => text.to_owned(),
            Self::SqlAscii | Self::Other => {
                format!("convert_to({text}, getdatabaseencoding())")
            }
        }
    }

    /// A text, if it can be told here what it is.
    pub(crate) fn text(self, bytes: &[u8]) -> Option<&str> {
        let text = std::str::from_utf8(bytes).ok()?;
        (self != Self::Other || text.is_ascii()).then_some(text)
    }

    /// Texts of bytes that stand in the database; `None` for what is none in UTF-8.
    ///
    /// # Errors
    /// `Connection`, `Transient`.
    pub(crate) async fn texts(
        self,
        via: Via<'_>,
        all: Vec<Vec<u8>>,
    ) -> Result<Vec<Option<String>>, Error> {
        let mut texts: Vec<Option<String>> = all
            .iter()
            .map(|bytes| self.text(bytes).map(str::to_owned))
            .collect();
        if self != Self::Other {
            return Ok(texts);
        }
        let unknown: Vec<usize> = (0..all.len()).filter(|at| texts[*at].is_none()).collect();
        let mut parts = vec![unknown];
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let bytes: Vec<&[u8]> = part.iter().map(|at| all[*at].as_slice()).collect();
            match via.decode(&bytes).await {
                Ok(rows) => {
                    for (at, row) in part.iter().zip(&rows) {
                        texts[*at] = row.try_get(0).ok();
                    }
                }
                Err(error) if !error.is_of_rows() => return Err(error),
                // A character that UTF-8 does not have.
                Err(_) if part.len() == 1 => {}
                Err(_) => {
                    let right = part.split_off(part.len() / 2);
                    parts.extend([part, right]);
                }
            }
        }
        Ok(texts)
    }
}

/// The key of bytes that are the text of no key in UTF-8.
pub(crate) fn undecodable(bytes: &[u8]) -> Key {
    let why = Unreadable::Undecodable(bytes.len() as u64);
    Key::of_unreadable(why, &hex(&Md5::digest(bytes)))
}

/// The key that is too long; `about` is its size and its md5, as [`about`] makes them.
pub(crate) fn oversized(about: &str) -> Key {
    let (bytes, md5) = about.split_once(' ').unwrap_or_default();
    let why = Unreadable::Oversized(bytes.parse().unwrap_or_default());
    Key::of_unreadable(why, md5)
}

/// SQL for what is told of a key that is too long.
pub(crate) fn about(bytes: &str, text: &str) -> String {
    format!("concat(({bytes})::text, ' ', md5({text}))")
}

/// Digits of bytes, as `encode(…, 'hex')` makes them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 0x0f)]);
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)]);
    digits.collect()
}

/// The bytes of a text, or of a `bytea`.
pub(crate) struct Raw<'a>(pub(crate) &'a [u8]);

impl Raw<'_> {
    /// The bytes in a column, where it is not NULL.
    ///
    /// # Errors
    /// The driver's: a column of another type, which would be a mistake of ours.
    pub(crate) fn at(row: &Row, at: usize) -> Result<Option<&[u8]>, tokio_postgres::Error> {
        Ok(row.try_get::<_, Option<Raw<'_>>>(at)?.map(|raw| raw.0))
    }
}

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(of_type: &Type) -> bool {
        matches!(*of_type, Type::TEXT | Type::BYTEA)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_told_where_its_encoding_tells_it() {
        let cases: [(&[u8], bool, bool); 3] = [
            (b"[\"cafe\"]", true, true),
            ("[\"café\"]".as_bytes(), true, false),
            (b"[\"caf\xe9\"]", false, false),
        ];
        for (bytes, utf8, other) in cases {
            assert_eq!(Encoding::Utf8.text(bytes).is_some(), utf8);
            assert_eq!(Encoding::SqlAscii.text(bytes).is_some(), utf8);
            assert_eq!(Encoding::Other.text(bytes).is_some(), other);
        }
    }

    #[test]
    fn a_key_that_cannot_be_carried_is_known_by_size_and_hash() {
        let key = undecodable(b"[\"caf\xe9\"]");
        assert_eq!(
            key.as_str(),
            r#"{"md5": "b6eb23b4833f4793a49699bc4c992625", "undecodable": 8}"#
        );
        let key = oversized("200000 0a1b");
        assert_eq!(key.as_str(), r#"{"md5": "0a1b", "oversized": 200000}"#);
    }
}
