//! `pg2kv sql upgrade`, and the upgrade that `pg2kv install` begins with: the same steps, printed or
//! run.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;

use super::args::UpgradeArgs;
use super::output::{Failure, GOOD};
use crate::config;
use crate::source::admin::Admin;
use crate::sql_kit::upgrade::{NoPath, Path, Step, path};
use crate::sql_kit::{Schema, VERSION};

/// The steps as text for psql, with the order of everything as comments.
pub(super) async fn text(
    files: &[PathBuf],
    schema: &Schema,
    args: UpgradeArgs,
) -> Result<String, Failure> {
    let from = match args.from {
        Some(from) => from,
        None => {
            let config = config::load_database(files, std::env::vars_os())?;
            let admin = Admin::connect(&config.source_settings()).await?;
            let standing = admin.schema().await?;
            standing.ok_or_else(|| no_schema(schema))?.version
        }
    };
    Ok(printed(schema, from, &way(from)?))
}

/// Runs the steps that may run now; returns those that must wait until the daemons are replaced.
/// Where there is no schema, there is nothing to upgrade.
pub(super) async fn run(
    admin: &Admin,
    schema: &Schema,
    out: &mut impl Write,
) -> Result<Vec<Step>, Failure> {
    // 0 is a schema that has lost the row that says so; `install` puts it back.
    let Some(standing) = admin
        .schema()
        .await?
        .filter(|standing| standing.version > 0)
    else {
        return Ok(Vec::new());
    };
    let Path { now, later } = way(standing.version)?;
    for step in now {
        let doing = format!("upgrading the schema to version {}", step.to());
        admin.run(&doing, &step.sql(schema)).await?;
        writeln!(
            out,
            "{GOOD}ok{GOOD:#}  schema {schema} from version {} to {}",
            step.from,
            step.to()
        )?;
    }
    Ok(later)
}

/// What has to be done before this step.
pub(super) fn what_is_left(step: &Step) -> String {
    format!(
        "The step to version {} of the schema is left. It no longer serves daemons older than version \
         {}: first replace them all by those of this program.",
        step.to(),
        step.serves
    )
}

fn way(from: i32) -> Result<Path, Failure> {
    path(from).map_err(|error| {
        let help = match error {
            NoPath::Newer(_) => "use the release of pg2kv that upgraded it, or a later one",
            NoPath::Unknown(_) => {
                "`select schema_version from pg2kv.meta` says which it is; `pg2kv install` puts the \
                 row back where it is lost"
            }
        };
        Failure::new(error.to_string(), help)
    })
}

fn no_schema(schema: &Schema) -> Failure {
    Failure::new(
        format!("there is no schema {schema} to upgrade"),
        "`pg2kv install` makes it, or the SQL that `pg2kv sql` prints",
    )
}

fn printed(schema: &Schema, from: i32, path: &Path) -> String {
    let Path { now, later } = path;
    if now.is_empty() && later.is_empty() {
        return format!(
            "-- The schema {schema} has version {from} already: nothing is to be done.\n"
        );
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |words: &str| {
        let _ = writeln!(text, "{words}");
    };
    line(&format!(
        "-- The schema {schema} from version {from} to version {VERSION}, in this order:"
    ));
    let mut number = 0;
    let mut item = |words: String| {
        number += 1;
        line(&format!("--   {number}. {words}"));
    };
    if let Some(last) = now.last() {
        item(format!(
            "Run what stands below, as a superuser or a member of {schema}_owner. It leads to version {}; \
             daemons go on.",
            last.to()
        ));
    }
    item("Replace the daemons by those of this release, one by one.".to_owned());
    if let Some(step) = later.first() {
        item(format!(
            "Run what `pg2kv sql upgrade --from {}` prints. Daemons older than version {} cannot work \
             after it.",
            step.from, step.serves
        ));
    }
    line(
        "-- Each step is one transaction; where it cannot be had, nothing is changed: run it again.",
    );
    for step in now {
        line(&format!("\n-- {}", step.file()));
        line(&step.sql(schema));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_wait_is_named_and_not_printed() {
        let step = |from, serves, sql| Step {
            from,
            serves,
            file: "file.sql",
            sql,
        };
        let path = Path {
            now: vec![step(1, 1, "select 'pg2kv.now';\n")],
            later: vec![step(2, 2, "select 'pg2kv.later';\n")],
        };
        let edge = Schema::parse("edge").unwrap();
        let text = printed(&edge, 1, &path);
        assert!(text.contains("select 'edge.now';"), "{text}");
        assert!(!text.contains("later"), "{text}");
        let order = [
            "1. Run what stands below",
            "2. Replace the daemons",
            "3. Run what `pg2kv sql upgrade --from 2` prints. Daemons older than version 2 cannot work",
        ];
        let found: Vec<_> = order.iter().map(|words| text.find(words)).collect();
        assert!(
            found.iter().all(Option::is_some) && found.is_sorted(),
            "{text}"
        );
        // psql must take all but the steps for comments.
        let rest = text
            .lines()
            .filter(|line| !line.starts_with("--") && !line.is_empty());
        assert_eq!(rest.collect::<Vec<_>>(), ["select 'edge.now';"]);

        let left = what_is_left(&path.later[0]);
        assert!(
            left.contains("older than version 2: first replace them all"),
            "{left}"
        );
    }
}
