//! Values of every type come out of the Worker byte for byte as Postgres renders them.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::Way;
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync};

/// A column's type, and a value of it as SQL. Each makes one row, NULL in all other columns.
const SAMPLES: &[(&str, &str)] = &[
    ("boolean", "false"),
    ("smallint", "-32768"),
    ("bigint", "9223372036854775807"),
    // Beyond 2^53 a program that reads JSON numbers as doubles would change them.
    ("numeric", "9007199254740993"),
    ("numeric", "-123456789012345678901234567890.123456789000"),
    ("numeric", "'NaN'"),
    ("numeric", "'-Infinity'"),
    ("numeric(12,4)", "1.5"),
    ("real", "0.1"),
    ("double precision", "0.1::float8 + 0.2"),
    ("double precision", "'-0'"),
    ("double precision", "'NaN'"),
    ("double precision", "1e308"),
    ("money", "'-1234.5'"),
    ("text", "''"),
    (
        "text",
        r#"E'quote " backslash \\ slash / tab \t line \n \u0001 \u007f </script> \u2028'"#,
    ),
    (
        "text",
        "(select string_agg(chr(c), '') from generate_series(1, 255) c)",
    ),
    // One or two characters of each plane of Unicode, private and unassigned ones too.
    (
        "text",
        "(select string_agg(chr(plane * 65536 + 257) || chr(plane * 65536 + 65533), '')
          from generate_series(0, 16) plane)",
    ),
    ("text", "U&'e\\0301 \\+01F469\\200D\\+01F4BB \\202E\\FEFF'"),
    ("varchar(8)", "'123'"),
    ("char(8)", "'123'"),
    ("name", "'a name'"),
    (
        "bytea",
        "(select string_agg(set_byte('\\x00', 0, b), '' order by b) from generate_series(0, 255) b)",
    ),
    ("bytea", "''"),
    ("date", "'infinity'"),
    ("date", "'0044-03-15 BC'"),
    ("time", "'23:59:59.999999'"),
    ("timetz", "'12:00:00+05:45'"),
    ("timestamp", "'2024-02-29 23:59:59.000001'"),
    ("timestamptz", "'2024-06-01 12:00:00.1+02'"),
    ("timestamptz", "'-infinity'"),
    ("interval", "'1 year -2 months 3 days 04:05:06.789'"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
    ("inet", "'2001:db8::1/64'"),
    ("cidr", "'10.1.0.0/16'"),
    ("macaddr", "'08-00-2B-01-02-03'"),
    (
        "json",
        r#"'{"b" : 1, "a":2,  "a": 9007199254740993, "c": 1.00 }'"#,
    ),
    // Shorter names first, the last of equal names, digits kept: what jsonb makes of it.
    (
        "jsonb",
        r#"'{"long": 1.10, "b": [1, null], "a": {"z": 1e2}, "b": [2]}'"#,
    ),
    ("jsonb", "'null'"),
    ("xml", "'<a b=\"1\">&lt;</a>'"),
    ("integer[]", "'{{1,NULL},{-3,4}}'"),
    (
        "text[]",
        r#"array['a,b', 'quo"te', 'back\slash', 'NULL', null, '']"#,
    ),
    ("numeric[]", "'[5:6]={NaN,1.0}'"),
    ("public.mood", "'so so'"),
    ("public.mood[]", "'{glad,\"so so\"}'"),
    ("public.positive", "7"),
    ("public.address", "row('Main \"St\" 1', 1234, null)"),
    ("int4range", "'[1,5]'"),
    ("tstzrange", "'[2024-01-01 00:00+00,)'"),
    ("nummultirange", "'{[1.0,2.5),(7,)}'"),
    ("bit(5)", "B'10101'"),
    ("point", "'(1.5,-2)'"),
    ("polygon", "'((0,0),(1,1),(1,0))'"),
    ("tsvector", "to_tsvector('english', 'the fat cats')"),
    ("pg_lsn", "'16/B374D848'"),
    ("jsonpath", "'$.a[*] ? (@ > 1)'"),
    // The last row is NULL in every column.
    ("boolean", "null"),
];

/// Database and role have settings that would change the texts; a daemon must not heed them.
const ODD_SETTINGS: &str = "
    alter database postgres set timezone = 'Asia/Kathmandu';
    alter database postgres set datestyle = 'German';
    alter database postgres set intervalstyle = 'sql_standard';
    alter database postgres set bytea_output = 'escape';
    alter database postgres set extra_float_digits = -10;
";

/// What pg2kv promises of the session that renders.
const PROMISED_SETTINGS: &str = "
    set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'iso_8601';
    set bytea_output = 'hex'; set extra_float_digits = 1; set lc_monetary = 'C';
";

/// The name of a type's column.
fn column(kind: &str) -> String {
    let letters = kind.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
    format!("c_{letters}")
}

fn tables(kinds: &BTreeSet<&str>) -> String {
    let mut sql = "create type public.mood as enum ('glad', 'so so');
         create domain public.positive as int check (value > 0);
         create type public.address as (street text, number int, floor int);
         create table public.sample (id int primary key"
        .to_owned();
    for kind in kinds {
        write!(sql, ", {} {kind}", column(kind)).unwrap();
    }
    sql.push_str(");\n");
    for (id, (kind, literal)) in SAMPLES.iter().enumerate() {
        let column = column(kind);
        writeln!(
            sql,
            "insert into public.sample (id, {column}) values ({id}, {literal});"
        )
        .unwrap();
    }
    sql + ODD_SETTINGS
}

#[tokio::test]
async fn every_type_comes_out_as_postgres_renders_it() {
    let kinds: BTreeSet<&str> = SAMPLES.iter().map(|(kind, _)| *kind).collect();
    let columns: Vec<String> = kinds.iter().map(|kind| column(kind)).collect();
    let each = |part: &dyn Fn(&str) -> String| {
        let parts: Vec<String> = columns.iter().map(|column| part(column)).collect();
        parts.join(", ")
    };
    let text = format!("coalesce({})", each(&|column| format!("{column}::text")));
    let documents = format!(
        "table = \"public.sample\"\nkey = \"assets/json/{{id}}\"\ncolumns = [{}]\n\
         content_type = \"'application/json'\"",
        each(&|column| format!("{column:?}")),
    );
    let texts = format!(
        "table = \"public.sample\"\nkey = \"assets/text/{{id}}\"\nvalue = \"{text}\"\n\
         content_type = \"'text/plain; charset=utf-8'\""
    );
    let sync = |name, toml: String| Sync {
        name,
        toml: toml.leak(),
        namespace: NAMESPACE,
        oracle: "",
    };
    let syncs = vec![sync("documents", documents), sync("texts", texts)];
    let way = Way::start(Plan {
        sql: tables(&kinds).leak(),
        syncs: syncs.leak(),
        settings: &[],
        limits: None,
    })
    .await;
    way.quiet().await;

    // Each member by itself: not the way in which the daemon makes an object.
    let members =
        each(&|column| format!("'\"{column}\":' || coalesce(to_json({column})::text, 'null')"));
    way.world.sql(PROMISED_SETTINGS).await;
    let oracle = format!(
        "select id::text, '{{' || concat_ws(',', {members}) || '}}', {text} from public.sample"
    );
    let mut wrong = Vec::new();
    let rows = way.world.rows(&oracle).await;
    let count = rows.len();
    assert!(count >= 50, "{count} rows");
    for row in rows {
        let id: String = row.get(0);
        for (path, mime, expected) in [
            ("json", "application/json", row.get(1)),
            (
                "text",
                "text/plain; charset=utf-8",
                row.get::<_, Option<&str>>(2),
            ),
        ] {
            let reply = way.edge.get(&format!("/assets/{path}/{id}")).await;
            // An expression that is NULL makes no document.
            let right = match expected {
                Some(expected) => {
                    reply.status == 200
                        && reply.header("content-type") == mime
                        && reply.body == expected.as_bytes()
                }
                None => reply.status == 404,
            };
            if !right {
                let body = String::from_utf8_lossy(&reply.body);
                wrong.push(format!(
                    "{path}/{id}: {} {body:?}, not {expected:?}",
                    reply.status
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    wait::say(&format!(
        "types: {count} rows of {} types, as JSON and as text, come out byte for byte",
        kinds.len()
    ));
    way.stop().await;
}
