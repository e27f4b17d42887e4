//! The SQL that a database needs, as text: the files of `deploy/sql` for any schema name, and the
//! statements for each sync.
//!
//! Owns quoting and renaming. Runs nothing and knows no connection, so that what `pg2kv sql` prints
//! is what `pg2kv install` runs.

pub mod grants;
pub mod upgrade;

use std::fmt;

const INSTALL: &str = include_str!("../deploy/sql/install.sql");
const UNINSTALL: &str = include_str!("../deploy/sql/uninstall.sql");
/// The version of the schema that [`install`] makes (`pg2kv.meta`), and so that of this program.
pub const VERSION: i32 = 1;
/// The schema name in the files. Every object of ours begins with it, and nothing else does.
const NAME_IN_FILES: &str = "pg2kv";

/// Name of the schema that holds everything of one installation.
///
/// The roles `<name>_owner` and `<name>_daemon`, the triggers `zzz_<name>_…` and the channel that
/// the daemon listens on are named after it too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Schema(String);

/// A name that cannot be the schema's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name the schema: a lower-case letter, then up to 30 lower-case letters, digits and \
     underscores, and not pg_… at the start"
)]
pub struct SchemaError(String);

impl Schema {
    /// Checks `name`.
    ///
    /// # Errors
    /// When it would need quotes in SQL, is longer than 31 characters, or is PostgreSQL's own.
    pub fn parse(name: &str) -> Result<Self, SchemaError> {
        if is_plain_name(name) && !name.starts_with("pg_") {
            Ok(Self(name.to_owned()))
        } else {
            Err(SchemaError(name.to_owned()))
        }
    }

    /// The name; it needs no quotes in SQL.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The role that the daemon's login role must be a member of.
    pub fn daemon_role(&self) -> String {
        format!("{}_daemon", self.0)
    }

    /// `text` with our schema name in place of the one in the files.
    fn rename(&self, text: &str) -> String {
        text.replace(NAME_IN_FILES, &self.0)
    }
}

impl Default for Schema {
    fn default() -> Self {
        Self(NAME_IN_FILES.to_owned())
    }
}

impl fmt::Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What `watch()` is told about one sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchSpec {
    /// Name of the sync.
    pub sync: String,
    /// The table as SQL names it, `public.users` or `"Odd Schema".users`.
    pub table: String,
    /// Columns that tell rows apart, as stored, without quotes.
    pub key_columns: Vec<String>,
    /// Columns whose change counts, besides the key; `None` for every column.
    pub columns: Option<Vec<String>>,
    /// Whether all rows of one key are one document.
    pub collect: bool,
    /// Among how many documents the rows of one key are divided.
    pub shards: Option<u32>,
    /// Other tables that its documents take data from.
    pub related: Vec<RelatedSpec>,
}

/// What `watch_related()` is told about a table that documents of a sync take data from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelatedSpec {
    /// Its name within the sync.
    pub name: String,
    /// The table as SQL names it.
    pub table: String,
    /// A column of the sync's table and the column of this one that equals it, in the order of the
    /// former. There is at least one.
    pub matches: Vec<(String, String)>,
    /// Columns whose change counts, besides those matched; `None` for every column.
    pub columns: Option<Vec<String>>,
}

/// Everything that a database needs once: schema, roles, tables, functions. One transaction, to be
/// sent as one simple query; harmless to repeat, and refused by a schema of another version. After an error the connection is in a failed
/// transaction: roll back, or drop it.
pub fn install(schema: &Schema) -> String {
    schema.rename(INSTALL)
}

/// Fails when something in the schema, or one of its roles, is not as [`install`] makes it: it could run code
/// as whoever reads it. Reads nothing but the catalog, and belongs before whatever reads or calls anything
/// in the schema. One statement.
pub fn verify(schema: &Schema) -> String {
    let marker = "$verify$";
    let block = INSTALL.split(marker).nth(1).unwrap_or_default();
    schema.rename(&format!("do {marker}{block}{marker}"))
}

/// Removes what [`install`] and [`watch`] made. One transaction, to be sent as one simple query;
/// as for [`install`] after an error.
pub fn uninstall(schema: &Schema) -> String {
    schema.rename(UNINSTALL)
}

/// Has the changes of one table, and of those that its documents take data from, recorded; harmless
/// to repeat. The daemon's role may read the key and the watched columns afterwards.
pub fn watch(schema: &Schema, spec: &WatchSpec) -> String {
    let mut collect = String::new();
    if spec.collect {
        collect.push_str(",\n  collect => true");
    }
    if let Some(shards) = spec.shards {
        collect.push_str(&format!(",\n  shards => {shards}"));
    }
    let mut sql = format!(
        "select {schema}.watch(\n  {},\n  sync => {},\n  key => {},\n  columns => {}{collect}\n);\n",
        quote_literal(&spec.table),
        quote_literal(&spec.sync),
        text_array(&spec.key_columns),
        columns(spec.columns.as_deref()),
    );
    for related in &spec.related {
        sql.push_str(&format!(
            "select {schema}.watch_related(\n  {},\n  sync => {},\n  name => {},\n  match => {},\n  \
             columns => {}\n);\n",
            quote_literal(&related.table),
            quote_literal(&spec.sync),
            quote_literal(&related.name),
            quote_literal(&related.match_object().to_string()),
            columns(related.columns.as_deref()),
        ));
    }
    sql
}

impl RelatedSpec {
    /// The matched columns as the JSON object that `watch_related()` takes.
    pub fn match_object(&self) -> serde_json::Value {
        let pairs = self.matches.iter();
        pairs
            .map(|(own, theirs)| (own.clone(), theirs.clone().into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

/// Undoes [`watch`]; harmless to repeat.
pub fn unwatch(schema: &Schema, sync: &str) -> String {
    format!("select {schema}.unwatch({});\n", quote_literal(sync))
}

/// Lets `login` do what the daemon does.
pub fn grant_daemon(schema: &Schema, login: &str) -> String {
    format!(
        "grant {} to {};\n",
        schema.daemon_role(),
        quote_identifier(login)
    )
}

/// `name` as an SQL identifier. Always quoted: which words need no quotes changes with the version.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as an SQL string constant, whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

fn columns(names: Option<&[String]>) -> String {
    names.map_or_else(|| "null".to_owned(), text_array)
}

fn text_array(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quote_literal(item)).collect();
    format!("array[{}]::text[]", items.join(", "))
}

/// `^[a-z][a-z0-9_]{0,30}$`
fn is_plain_name(name: &str) -> bool {
    name.len() <= 31
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_verify_the_schema_before_they_read_it() {
        let verify = verify(&Schema::default());
        assert!(verify.contains("raise exception"), "{verify}");
        for file in [INSTALL, UNINSTALL] {
            let (_, commands) = file.split_once("\nbegin;\n").unwrap();
            let (before, _) = commands.split_once(&verify).expect("the block");
            assert!(!before.contains("pg2kv."), "{before}");
        }
    }

    #[test]
    fn schema_names_that_need_no_quotes_are_taken() {
        for good in ["pg2kv", "a", "edge_eu_2", &"x".repeat(31)] {
            assert_eq!(Schema::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "Pg2kv",
            "2kv",
            "pg_kv",
            "a-b",
            "a b",
            "é",
            "a;drop",
            &"x".repeat(32),
        ] {
            assert!(Schema::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn renaming_leaves_no_trace_of_the_default_name() {
        let schema = Schema::parse("edge").unwrap();
        for text in [install(&schema), uninstall(&schema)] {
            assert!(!text.contains(NAME_IN_FILES));
            assert!(text.contains("edge_owner"));
        }
    }

    #[test]
    fn quoting_keeps_text_inside_its_quotes() {
        assert_eq!(quote_identifier(r#"a"b"#), r#""a""b""#);
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\'b"), r"E'a\\''b'");
    }

    #[test]
    fn watch_names_every_argument() {
        let spec = WatchSpec {
            sync: "users".into(),
            table: "public.users".into(),
            key_columns: vec!["id".into()],
            columns: Some(vec!["plan".into(), "it's".into()]),
            collect: false,
            shards: None,
            related: Vec::new(),
        };
        assert_eq!(
            watch(&Schema::default(), &spec),
            "select pg2kv.watch(\n  'public.users',\n  sync => 'users',\n  key => array['id']::text[],\n  \
             columns => array['plan', 'it''s']::text[]\n);\n"
        );
        let all = WatchSpec {
            columns: None,
            ..spec
        };
        assert!(watch(&Schema::default(), &all).contains("columns => null\n"));
        let whole = WatchSpec {
            key_columns: Vec::new(),
            collect: true,
            shards: Some(8),
            ..all
        };
        assert!(watch(&Schema::default(), &whole).ends_with(
            "key => array[]::text[],\n  columns => null,\n  collect => true,\n  shards => 8\n);\n"
        ));
    }

    #[test]
    fn related_tables_follow_the_table_of_their_sync() {
        let spec = WatchSpec {
            sync: "users".into(),
            table: "public.users".into(),
            key_columns: vec!["id".into()],
            columns: None,
            related: vec![RelatedSpec {
                name: "tenants".into(),
                table: "public.tenants".into(),
                matches: vec![("it's".into(), "id".into()), ("region".into(), "r".into())],
                columns: Some(vec!["plan".into()]),
            }],
            collect: false,
            shards: None,
        };
        let sql = watch(&Schema::parse("edge").unwrap(), &spec);
        assert!(
            sql.ends_with(
                "select edge.watch_related(\n  'public.tenants',\n  sync => 'users',\n  \
                 name => 'tenants',\n  match => '{\"it''s\":\"id\",\"region\":\"r\"}',\n  \
                 columns => array['plan']::text[]\n);\n"
            ),
            "{sql}"
        );
    }
}
