//! Which version the schema has, and whether it and this program can work together.
//!
//! Owns that verdict. Changes nothing: `pg2kv install` upgrades.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::error::{Error, Kind, Place};
use super::link::Link;
use crate::sql_kit::{self, Schema, VERSION, upgrade};

/// What a schema says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its version; 0 where it has lost the row that says so.
    pub version: i32,
    /// The oldest version of the daemon that can work with it.
    pub serves: i32,
}

/// By way of the whole row, because version 1 has no column `serves`: it serves itself only.
const STANDING: &str = "\
    select schema_version, coalesce((to_jsonb(m)->>'serves')::int4, schema_version)
    from pg2kv.meta as m";

/// Not `to_regclass`, which fails where the schema is barred.
const PRESENT: &str = "\
    select exists (
      select from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
      where n.nspname = $1::text and c.relname = 'meta')";

/// What the schema says of itself; `None` where there is none.
///
/// # Errors
/// The role may not read it, or Postgres does not answer.
pub(crate) async fn standing(schema: &str, link: &Link) -> Result<Option<Standing>, Error> {
    let named: [&(dyn ToSql + Sync); 1] = [&schema];
    let present = link.client().query_one(PRESENT, &named);
    let present = link.call(&doing(schema), 2, Place::Own, present).await?;
    if present.get(0) {
        read(schema, link).await.map(Some)
    } else {
        Ok(None)
    }
}

/// Refuses a database without our schema, or with a version of it that this program cannot work
/// with.
///
/// # Errors
/// `Schema` for another version; as for any statement.
pub(crate) async fn require(schema: &str, link: &Link) -> Result<Standing, Error> {
    let standing = read(schema, link).await?;
    judge(standing)
        .map_err(|(said, hint)| Error::new(Kind::Schema, doing(schema), said).with_hint(hint))?;
    Ok(standing)
}

async fn read(schema: &str, link: &Link) -> Result<Standing, Error> {
    verify(schema, link).await?;
    let sql = STANDING.replace("pg2kv.", &format!("{schema}."));
    let row = link.client().query_opt(&sql, &[]);
    let row = link.call(&doing(schema), 2, Place::Own, row).await?;
    Ok(row.map_or(
        Standing {
            version: 0,
            serves: 0,
        },
        |row| Standing {
            version: row.get(0),
            serves: row.get(1),
        },
    ))
}

/// Refuses a schema in which something is not ours: reading it could run a stranger's code as this role.
async fn verify(schema: &str, link: &Link) -> Result<(), Error> {
    let doing = doing(schema);
    let sql = Schema::parse(schema)
        .map(|schema| sql_kit::verify(&schema))
        .map_err(|error| Error::new(Kind::Schema, doing.as_str(), error.to_string()))?;
    let verified = async {
        let done = link.client().run_file(&sql).await;
        done.map_err(|error| match error.as_db_error() {
            Some(told) if told.code() == &SqlState::INSUFFICIENT_PRIVILEGE => {
                Error::new(Kind::Schema, doing.as_str(), told.message())
                    .with_hint(told.hint().unwrap_or_default())
            }
            _ => Error::from_driver(Place::Own, &doing, error),
        })
    };
    link.within(&doing, 1, verified).await
}

fn doing(schema: &str) -> String {
    format!("looking at the version of schema {schema}")
}

/// Whether this program can work with it; if not, why, and what to do.
fn judge(Standing { version, serves }: Standing) -> Result<(), (String, String)> {
    if version == 0 {
        return Err((
            "it does not say which one it has".to_owned(),
            "run `pg2kv install`, which puts the row of the table meta back".to_owned(),
        ));
    }
    if version < upgrade::NEEDS {
        let file = upgrade::STEPS
            .iter()
            .find(|step| step.from == version)
            .map_or_else(String::new, |step| format!(" (deploy/sql/{})", step.file()));
        return Err((
            format!(
                "it has version {version}, and this program needs version {} at least",
                upgrade::NEEDS
            ),
            format!(
                "have its owner run `pg2kv install`, or the SQL that `pg2kv sql upgrade` prints{file}; \
                 the daemon waits, and goes on by itself"
            ),
        ));
    }
    if version > VERSION && serves > VERSION {
        return Err((
            format!(
                "it has version {version} and serves programs of version {serves} or later; this one \
                 is of version {VERSION}"
            ),
            "run the release of pg2kv that upgraded the schema, or a later one".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(version: i32, serves: i32) -> Option<String> {
        judge(Standing { version, serves })
            .err()
            .map(|(said, hint)| format!("{said}; {hint}"))
    }

    #[test]
    fn a_program_works_with_what_it_needs_and_with_what_serves_it() {
        for (version, serves) in [
            (upgrade::NEEDS, 1),
            (VERSION, 1),
            (VERSION, VERSION),
            (VERSION + 1, 1),
            (VERSION + 7, VERSION),
        ] {
            assert_eq!(verdict(version, serves), None, "{version} {serves}");
        }
    }

    #[test]
    fn a_refusal_names_both_versions_and_what_to_do() {
        let newer = verdict(VERSION + 1, VERSION + 1).unwrap();
        assert!(newer.contains(&format!("of version {VERSION};")), "{newer}");
        assert!(newer.contains("release"), "{newer}");
        assert!(verdict(0, 0).unwrap().contains("pg2kv install"));
    }
}
