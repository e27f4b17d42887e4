//! What the daemon's role may do, as text for those who grant it by hand or review it.
//!
//! Owns nothing of what is granted: on our own tables it is the last part of `install.sql`, on watched
//! ones what `grant_statements()` makes there. A test holds both against a database.

use super::{INSTALL, Schema, WatchSpec, grant_daemon, quote_identifier, quote_literal};

/// Where that part begins and ends in the file.
const BEGINS: &str = "-- What each role may do ---";
const ENDS: &str = "\nreset role;";

/// Everything that the daemon needs, and where `login` is named, that it may be the daemon. One
/// transaction; revokes nothing, and harmless to repeat. The schema must be installed.
pub fn grants(schema: &Schema, watches: &[WatchSpec], login: Option<&str>) -> String {
    let role = schema.daemon_role();
    let mut text = format!(
        "-- What the daemon may do: all of it goes to the role {role}, which nobody logs in as.\n\
         -- Harmless to repeat.\n\nbegin;\n\n\
         -- Our own tables and functions: the outbox, claims, and what else the daemon notes.\n"
    );
    for statement in ours() {
        text.push_str(&schema.rename(statement));
        text.push_str(";\n");
    }
    for spec in watches {
        text.push_str(&format!("\n-- Sync {}: {}\n", spec.sync, reads(spec)));
        text.push_str(&usage(&spec.table, &role));
        if spec.shards.is_some() {
            // Only the database knows the primary key.
            let table = quote_literal(&spec.table);
            text.push_str(&format!(
                "do $$\ndeclare\n  statement text;\nbegin\n  \
                 foreach statement in array {schema}.grant_statements(current_user, {table}::regclass) loop\n    \
                 execute statement;\n  end loop;\nend\n$$;\n"
            ));
        } else {
            text.push_str(&select(
                &spec.table,
                &spec.key_columns,
                &spec.columns,
                &role,
            ));
        }
        for related in &spec.related {
            let theirs: Vec<_> = related.matches.iter().map(|(_, to)| to.clone()).collect();
            text.push_str(&format!(
                "\n-- Sync {}, related {}: the columns that are matched, and those that are watched.\n",
                spec.sync, related.name
            ));
            text.push_str(&usage(&related.table, &role));
            text.push_str(&select(&related.table, &theirs, &related.columns, &role));
        }
    }
    match login {
        Some(login) => {
            text.push_str("\n-- The role that the daemon logs in as.\n");
            text.push_str(&grant_daemon(schema, login));
        }
        None => text.push_str(&format!(
            "\n-- The role that the daemon logs in as: grant {role} to that role, or name it with \
             --login.\n"
        )),
    }
    text.push_str("\ncommit;\n");
    text
}

/// The statements of the file that grant something to the daemon.
fn ours() -> impl Iterator<Item = &'static str> {
    let part = INSTALL.split_once(BEGINS).map_or("", |(_, part)| part);
    let part = part.split_once(ENDS).map_or(part, |(part, _)| part);
    part.split(";\n")
        .filter_map(|statement| Some(&statement[statement.find("grant ")?..]))
        .filter(|statement| statement.ends_with("to pg2kv_daemon"))
}

fn reads(spec: &WatchSpec) -> &'static str {
    match (&spec.columns, spec.shards) {
        (_, Some(_)) => {
            "its key, the watched columns, and the primary key, which divides its rows."
        }
        (Some(_), None) => "its key and the watched columns.",
        (None, None) => "all columns, because all are watched.",
    }
}

fn usage(table: &str, role: &str) -> String {
    format!("grant usage on schema {} to {role};\n", schema_of(table))
}

fn select(table: &str, key: &[String], columns: &Option<Vec<String>>, role: &str) -> String {
    let Some(columns) = columns else {
        return format!("grant select on table {table} to {role};\n");
    };
    let mut named: Vec<_> = key
        .iter()
        .chain(columns)
        .map(|name| quote_identifier(name))
        .collect();
    named.sort();
    named.dedup();
    format!(
        "grant select ({}) on table {table} to {role};\n",
        named.join(", ")
    )
}

/// The first part of a table's name, as it is written.
fn schema_of(table: &str) -> &str {
    let mut in_quotes = false;
    let dot = table.find(|c| {
        in_quotes ^= c == '"';
        c == '.' && !in_quotes
    });
    dot.map_or(table, |dot| &table[..dot])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql_kit::RelatedSpec;

    fn users() -> WatchSpec {
        WatchSpec {
            sync: "users".into(),
            table: "public.users".into(),
            key_columns: vec!["id".into()],
            columns: Some(vec!["plan".into(), "id".into()]),
            collect: false,
            shards: None,
            related: vec![RelatedSpec {
                name: "tenants".into(),
                table: r#""Odd . ""Schema".tenants"#.into(),
                matches: vec![("tenant_id".into(), "id".into())],
                columns: None,
            }],
        }
    }

    #[test]
    fn every_grant_of_the_installation_is_found() {
        let granted = INSTALL.matches(" to pg2kv_daemon;").count();
        assert!(granted > 5, "{granted}");
        assert_eq!(ours().count(), granted);
    }

    #[test]
    fn each_table_has_its_grants() {
        let text = grants(&Schema::parse("edge").unwrap(), &[users()], Some("app"));
        for line in [
            "grant select on edge.related to edge_daemon;",
            "grant usage on schema public to edge_daemon;",
            r#"grant select ("id", "plan") on table public.users to edge_daemon;"#,
            r#"grant usage on schema "Odd . ""Schema" to edge_daemon;"#,
            r#"grant select on table "Odd . ""Schema".tenants to edge_daemon;"#,
            r#"grant edge_daemon to "app";"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("pg2kv_"), "{text}");
        assert!(!text.contains("revoke"), "{text}");
    }

    #[test]
    fn a_divided_table_leaves_its_primary_key_to_the_database() {
        let spec = WatchSpec {
            shards: Some(4),
            related: Vec::new(),
            ..users()
        };
        let text = grants(&Schema::default(), &[spec], None);
        let call = "pg2kv.grant_statements(current_user, 'public.users'::regclass)";
        assert!(text.contains(call), "{text}");
        assert!(text.contains("grant pg2kv_daemon to that role"), "{text}");
    }
}
