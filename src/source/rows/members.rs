//! Documents that are columns of one row: the server sends the columns, and the JSON is made here.
//!
//! Owns how a column travels and how it becomes a member. The bytes are those that `row_to_json` makes;
//! there it takes the server as long as finding the row does. Pure but for the look at the types.

use std::io::Write as _;

use bytes::Bytes;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Kind as TypeKind, Type};

use super::value::quote;
use crate::change::{DraftValue, KV_VALUE_MAX_BYTES, Value};

/// Above this many bytes in the table, compressed, the server makes the document as a whole and says how
/// long it is: what is too long for KV does not travel.
const WIDE_BYTES: usize = 65_536;

/// The members of an object, in order.
pub(super) struct Members(Vec<Member>);

struct Member {
    /// What stands before the value: a brace or a comma, and the name.
    lead: String,
    /// SQL for the value as it travels.
    sql: String,
    /// SQL for the bytes that it takes in the table, where that differs from row to row.
    size: Option<String>,
}

/// How a value travels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Bool,
    Int2,
    Int4,
    Int8,
    Uuid,
    /// The text of a string.
    Text,
    /// JSON as it is.
    Json,
    /// The same behind the number of the format.
    Jsonb,
}

impl Members {
    /// Of columns and the names of their members, with the types that the server says they have.
    pub(super) fn of<'a>(
        columns: &[(String, String)],
        types: impl Iterator<Item = &'a Type>,
        alias: &str,
    ) -> Self {
        let members = columns.iter().zip(types);
        let members = members.enumerate().map(|(at, ((column, name), of_type))| {
            let column = format!("{alias}.{}", quote(column));
            let form = Form::of(of_type);
            let fixed = matches!(
                form,
                Some(Form::Bool | Form::Int2 | Form::Int4 | Form::Int8 | Form::Uuid)
            );
            Member {
                lead: format!(
                    "{}{}:",
                    if at == 0 { '{' } else { ',' },
                    serde_json::Value::from(name.as_str())
                ),
                sql: match form {
                    Some(_) => column.clone(),
                    None => format!("to_json({column})"),
                },
                size: (!fixed).then(|| format!("coalesce(pg_column_size({column}), 0)")),
            }
        });
        Self(members.collect())
    }

    /// What is selected from the row; `object` makes the whole document.
    pub(super) fn of_row(&self, object: &str) -> String {
        let sizes: Vec<&str> = self.0.iter().filter_map(|m| m.size.as_deref()).collect();
        let whole = if sizes.is_empty() {
            "null::text".to_owned()
        } else {
            format!(
                "case when ({}) > {WIDE_BYTES} then {object}::text end",
                sizes.join(" + ")
            )
        };
        let members = self.0.iter().enumerate();
        let members: String = members
            .map(|(at, member)| format!(", {} as m{at}", member.sql))
            .collect();
        format!("true as there, {whole} as value{members}")
    }

    /// What is selected from a row of those, behind the value and its size.
    pub(super) fn of_document(&self, document: &str) -> String {
        let members = (0..self.0.len())
            .map(|at| format!(", case when {document}.value is null then {document}.m{at} end"));
        format!(", {document}.there{}", members.collect::<String>())
    }

    /// The document in a row, from the column that says whether there is one.
    ///
    /// # Errors
    /// The driver's: a column of another type, which would be a mistake of ours.
    pub(super) fn document(
        &self,
        row: &Row,
        at: usize,
    ) -> Result<Option<DraftValue>, tokio_postgres::Error> {
        if row.try_get::<_, Option<bool>>(at)?.is_none() {
            return Ok(None);
        }
        let mut json = Vec::with_capacity(self.0.len() * 24);
        for (place, member) in self.0.iter().enumerate() {
            json.extend_from_slice(member.lead.as_bytes());
            match row.try_get::<_, Option<Raw<'_>>>(at + 1 + place)? {
                None => json.extend_from_slice(b"null"),
                Some(Raw(form, raw)) => form.write(raw, &mut json),
            }
        }
        json.push(b'}');
        Ok(Some(if json.len() > KV_VALUE_MAX_BYTES {
            DraftValue::TooLarge {
                bytes: json.len() as u64,
                shards: None,
            }
        } else {
            DraftValue::Whole(Value::Text(Bytes::from(json)))
        }))
    }
}

impl Form {
    /// Of a type, where its values can be written here as the server would write them.
    fn of(of_type: &Type) -> Option<Self> {
        Some(match *of_type {
            Type::BOOL => Self::Bool,
            Type::INT2 => Self::Int2,
            Type::INT4 => Self::Int4,
            Type::INT8 => Self::Int8,
            Type::UUID => Self::Uuid,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR => Self::Text,
            Type::JSON => Self::Json,
            Type::JSONB => Self::Jsonb,
            _ if matches!(of_type.kind(), TypeKind::Enum(_)) => Self::Text,
            _ => return None,
        })
    }

    /// Whether a value has this binary form.
    fn fits(self, raw: &[u8]) -> bool {
        match self {
            Self::Bool => raw.len() == 1,
            Self::Int2 => raw.len() == 2,
            Self::Int4 => raw.len() == 4,
            Self::Int8 => raw.len() == 8,
            Self::Uuid => raw.len() == 16,
            Self::Text | Self::Json => std::str::from_utf8(raw).is_ok(),
            Self::Jsonb => {
                matches!(raw, [1, json @ ..] if std::str::from_utf8(json).is_ok())
            }
        }
    }

    /// Writes the JSON of a value in its binary form, as PostgreSQL's manual has it.
    fn write(self, raw: &[u8], json: &mut Vec<u8>) {
        // Writing into memory does not fail.
        let _ = match self {
            Self::Bool if raw == [0] => json.write_all(b"false"),
            Self::Bool => json.write_all(b"true"),
            Self::Int2 => write!(json, "{}", i16::from_be_bytes(fixed(raw))),
            Self::Int4 => write!(json, "{}", i32::from_be_bytes(fixed(raw))),
            Self::Int8 => write!(json, "{}", i64::from_be_bytes(fixed(raw))),
            Self::Uuid => {
                let hex = u128::from_be_bytes(fixed(raw));
                let (a, b) = (hex >> 96, hex >> 80 & 0xffff);
                let (c, d) = (hex >> 64 & 0xffff, hex >> 48 & 0xffff);
                let e = hex & 0xffff_ffff_ffff;
                write!(json, "\"{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}\"")
            }
            Self::Text => {
                let text = String::from_utf8_lossy(raw);
                serde_json::to_writer(&mut *json, text.as_ref()).map_err(Into::into)
            }
            Self::Json => json.write_all(raw),
            Self::Jsonb => json.write_all(raw.get(1..).unwrap_or_default()),
        };
    }
}

/// A value whose length was looked at before.
fn fixed<const N: usize>(raw: &[u8]) -> [u8; N] {
    raw.try_into().unwrap_or([0; N])
}

/// A value in its binary form, and which one that is.
struct Raw<'a>(Form, &'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(
        of_type: &Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        match Form::of(of_type) {
            Some(form) if form.fits(raw) => Ok(Self(form, raw)),
            _ => Err(format!("not the binary form of {of_type} that is known here").into()),
        }
    }

    fn accepts(of_type: &Type) -> bool {
        Form::of(of_type).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(form: Form, raw: &[u8]) -> String {
        let mut json = Vec::new();
        form.write(raw, &mut json);
        String::from_utf8(json).unwrap()
    }

    #[test]
    fn values_are_written_as_postgres_writes_them() {
        assert_eq!(written(Form::Bool, &[1]), "true");
        assert_eq!(written(Form::Bool, &[0]), "false");
        assert_eq!(written(Form::Int2, &i16::MIN.to_be_bytes()), "-32768");
        assert_eq!(written(Form::Int4, &(-7_i32).to_be_bytes()), "-7");
        let large = written(Form::Int8, &i64::MAX.to_be_bytes());
        assert_eq!(large, "9223372036854775807");
        let uuid = written(
            Form::Uuid,
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255],
        );
        assert_eq!(uuid, r#""00010203-0405-0607-0809-0a0b0c0d0eff""#);
        let text = written(
            Form::Text,
            "a\"\\/\u{8}\u{c}\n\r\t\u{1}\u{1f}\u{7f}é\u{2028}".as_bytes(),
        );
        assert_eq!(
            text,
            "\"a\\\"\\\\/\\b\\f\\n\\r\\t\\u0001\\u001f\u{7f}é\u{2028}\""
        );
        assert_eq!(written(Form::Json, b"[1.00, 2]"), "[1.00, 2]");
        assert_eq!(written(Form::Jsonb, b"\x01{\"a\": 1}"), r#"{"a": 1}"#);
    }

    #[test]
    fn what_is_no_value_of_its_type_is_an_error() {
        let cases: [(Type, &[u8], &[u8]); 8] = [
            (Type::BOOL, &[1], &[]),
            (Type::INT2, &[0; 2], &[0; 4]),
            (Type::INT4, &[0; 4], &[0; 2]),
            (Type::INT8, &[0; 8], &[0; 9]),
            (Type::UUID, &[0; 16], &[0; 15]),
            (Type::TEXT, "é".as_bytes(), b"\xff"),
            (Type::JSON, b"{}", b"\xff"),
            (Type::JSONB, b"\x01{}", b"\x02{}"),
        ];
        for (of_type, good, bad) in cases {
            assert!(Raw::from_sql(&of_type, good).is_ok(), "{of_type}");
            assert!(Raw::from_sql(&of_type, bad).is_err(), "{of_type}");
        }
        assert!(!<Raw<'_> as FromSql>::accepts(&Type::NUMERIC));
    }

    #[test]
    fn types_that_are_not_known_here_are_written_by_the_server() {
        let columns = [
            ("n".to_owned(), "n".to_owned()),
            ("t".to_owned(), "a\"b".to_owned()),
        ];
        let members = Members::of(&columns, [Type::NUMERIC, Type::INT4].iter(), "t");
        assert_eq!(
            members.of_row("whole"),
            "true as there, case when (coalesce(pg_column_size(t.\"n\"), 0)) > 65536 then whole::text end \
             as value, to_json(t.\"n\") as m0, t.\"t\" as m1"
        );
        assert_eq!(members.0[1].lead, r#","a\"b":"#);
        let fixed = Members::of(&columns[1..], [Type::INT4].iter(), "t");
        assert_eq!(
            fixed.of_row("whole"),
            "true as there, null::text as value, t.\"t\" as m0"
        );
    }
}
