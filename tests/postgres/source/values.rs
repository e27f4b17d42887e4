//! Values: every type renders exactly, the same each time, and what a pair has beside its value.

use pg2kv::change::{Draft, DraftText, DraftValue, Expiry, SyncId, Value};
use pg2kv::source::{Attributes, ExpirySql, Kind, SyncSource, ValueSql, check};

use super::{Bench, items, key, text};
use crate::support::postgres::Server;

/// Type, value as SQL, its text, and how it stands in JSON. Written by hand from PostgreSQL's
/// documentation of each type, so that nothing but people vouches for them.
const CASES: &[(&str, &str, &str, &str)] = &[
    ("bool", "true", "true", "true"),
    ("int2", "-32768", "-32768", "-32768"),
    (
        "int8",
        "9223372036854775807",
        "9223372036854775807",
        "9223372036854775807",
    ),
    (
        "numeric",
        "9007199254740993.10",
        "9007199254740993.10",
        "9007199254740993.10",
    ),
    ("numeric(6,3)", "1.5", "1.500", "1.500"),
    ("numeric", "'NaN'", "NaN", r#""NaN""#),
    ("numeric", "'-Infinity'", "-Infinity", r#""-Infinity""#),
    (
        "float8",
        "0.1::float8 + 0.2",
        "0.30000000000000004",
        "0.30000000000000004",
    ),
    ("float8", "'-0'", "-0", "-0"),
    ("float8", "1e301", "1e+301", "1e+301"),
    ("float8", "'Infinity'", "Infinity", r#""Infinity""#),
    ("float4", "'NaN'", "NaN", r#""NaN""#),
    ("float4", "0.1", "0.1", "0.1"),
    ("money", "'1234.5'", "$1,234.50", r#""$1,234.50""#),
    ("text", "''", "", r#""""#),
    (
        "text",
        "E'\\t\"\\\\/\\n\\x7f'",
        "\t\"\\/\n\u{7f}",
        "\"\\t\\\"\\\\/\\n\u{7f}\"",
    ),
    (
        "text",
        "U&'A\\00E9\\4E2D\\FFFD\\+01F600\\+020000\\+030000\\+040000\\+0E0001\\+0F0000\\+10FFFD'",
        "A\u{e9}\u{4e2d}\u{fffd}\u{1f600}\u{20000}\u{30000}\u{40000}\u{e0001}\u{f0000}\u{10fffd}",
        "\"A\u{e9}\u{4e2d}\u{fffd}\u{1f600}\u{20000}\u{30000}\u{40000}\u{e0001}\u{f0000}\u{10fffd}\"",
    ),
    ("char(4)", "'ab'", "ab", r#""ab  ""#),
    ("varchar(3)", "'abc'", "abc", r#""abc""#),
    ("mood", "'so so'", "so so", r#""so so""#),
    (
        "uuid",
        "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        r#""a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11""#,
    ),
    ("date", "'2026-02-28'", "2026-02-28", r#""2026-02-28""#),
    ("date", "'infinity'", "infinity", r#""infinity""#),
    (
        "date",
        "'0044-03-15 BC'",
        "0044-03-15 BC",
        r#""0044-03-15 BC""#,
    ),
    (
        "time",
        "'04:05:06.789'",
        "04:05:06.789",
        r#""04:05:06.789""#,
    ),
    ("timetz", "'04:05:06+02'", "04:05:06+02", r#""04:05:06+02""#),
    (
        "timestamp",
        "'2026-01-02 03:04:05.123456'",
        "2026-01-02 03:04:05.123456",
        r#""2026-01-02T03:04:05.123456""#,
    ),
    (
        "timestamptz",
        "'2026-01-02 03:04:05+05:45'",
        "2026-01-01 21:19:05+00",
        r#""2026-01-01T21:19:05+00:00""#,
    ),
    ("timestamptz", "'-infinity'", "-infinity", r#""-infinity""#),
    (
        "interval",
        "'1 year 2 mons 3 days 04:05:06'",
        "P1Y2M3DT4H5M6S",
        r#""P1Y2M3DT4H5M6S""#,
    ),
    (
        "jsonb",
        r#"'{"b": 1, "aa": [1.10, null], "a": "é"}'"#,
        r#"{"a": "é", "b": 1, "aa": [1.10, null]}"#,
        r#"{"a": "é", "b": 1, "aa": [1.10, null]}"#,
    ),
    (
        "json",
        r#"'{ "b":1, "b":2e5 }'"#,
        r#"{ "b":1, "b":2e5 }"#,
        r#"{ "b":1, "b":2e5 }"#,
    ),
    (
        "int4[]",
        "'{{1,2},{3,NULL}}'",
        "{{1,2},{3,NULL}}",
        "[[1,2],[3,null]]",
    ),
    ("int4[]", "'{}'", "{}", "[]"),
    (
        "text[]",
        "array['a,b', 'c\"d', null, '']",
        r#"{"a,b","c\"d",NULL,""}"#,
        r#"["a,b","c\"d",null,""]"#,
    ),
    (
        "timestamptz[]",
        "array['2026-01-02 03:04:05+01']::timestamptz[]",
        r#"{"2026-01-02 02:04:05+00"}"#,
        r#"["2026-01-02T02:04:05+00:00"]"#,
    ),
    (
        "pair",
        "row(1, 'x y')",
        r#"(1,"x y")"#,
        r#"{"a":1,"b":"x y"}"#,
    ),
    (
        "pair[]",
        "array[row(1, null)::pair]",
        r#"{"(1,)"}"#,
        r#"[{"a":1,"b":null}]"#,
    ),
    ("int4range", "'[1,5]'", "[1,6)", r#""[1,6)""#),
    (
        "tstzrange",
        "'[2026-01-01 00:00:00+01,)'",
        r#"["2025-12-31 23:00:00+00",)"#,
        r#""[\"2025-12-31 23:00:00+00\",)""#,
    ),
    (
        "int4multirange",
        "'{[1,3),[7,9)}'",
        "{[1,3),[7,9)}",
        r#""{[1,3),[7,9)}""#,
    ),
    ("age", "7", "7", "7"),
    (
        "moment",
        "'2026-01-02 03:04:05+00'",
        "2026-01-02 03:04:05+00",
        r#""2026-01-02T03:04:05+00:00""#,
    ),
    ("inet", "'10.0.0.1'", "10.0.0.1/32", r#""10.0.0.1""#),
    ("cidr", "'10.1.0.0/16'", "10.1.0.0/16", r#""10.1.0.0/16""#),
    (
        "macaddr",
        "'08-00-2B-01-02-03'",
        "08:00:2b:01:02:03",
        r#""08:00:2b:01:02:03""#,
    ),
    ("bit(3)", "B'101'", "101", r#""101""#),
    ("point", "'(1,2.5)'", "(1,2.5)", r#""(1,2.5)""#),
    ("tsvector", "'b a'", "'a' 'b'", r#""'a' 'b'""#),
    ("regtype", "'int4'", "integer", r#""integer""#),
    ("pg_lsn", "'16/B374D848'", "16/B374D848", r#""16/B374D848""#),
];

#[tokio::test]
async fn values_of_every_type_are_exact_and_independent_of_settings() {
    every_type(Server::Installed).await;
}

#[tokio::test]
async fn values_of_every_type_are_exact_on_postgresql_18_too() {
    every_type(Server::Newer).await;
}

async fn every_type(server: Server) {
    let bench = Bench::on(server).await;
    let columns: Vec<String> = (0..CASES.len())
        .map(|number| format!("c{number}"))
        .collect();
    let gone = "gone".to_owned();
    let declared: Vec<String> = columns
        .iter()
        .zip(CASES)
        .map(|(column, (kind, ..))| format!("{column} {kind}"))
        .collect();
    let values: Vec<&str> = CASES.iter().map(|(_, value, ..)| *value).collect();
    bench
        .sql(&format!(
            "create type mood as enum ('glad', 'so so'); create type pair as (a int, b text);
             create domain age as int; create domain moment as timestamptz;
             set timezone = 'UTC';
             create table kinds (id int primary key, gone text, {});
             insert into kinds values (1, null, {});
             select pg2kv.watch('public.kinds', sync => 'kinds', key => '{{id}}');
             do $$ begin execute format(
               'alter database %1$I set timezone = ''Asia/Kathmandu'';
                alter database %1$I set datestyle = ''German'';
                alter database %1$I set bytea_output = ''escape'';
                alter database %1$I set intervalstyle = ''sql_standard'';
                alter database %1$I set extra_float_digits = -10;
                alter database %1$I set quote_all_identifiers = on;
                alter database %1$I set standard_conforming_strings = off;
                alter database %1$I set search_path = public', current_database()); end $$",
            declared.join(", "),
            values.join(", "),
        ))
        .await;
    let kinds = |id, value| SyncSource {
        id: SyncId(id),
        name: "kinds".to_owned(),
        table: "public.kinds".to_owned(),
        value,
        ..items("")
    };
    let object = columns
        .iter()
        .chain([&gone])
        .map(|c| (c.clone(), c.clone()));
    let mut syncs = vec![kinds(0, ValueSql::Columns(object.collect()))];
    for (id, column) in (1..).zip(columns.iter().chain([&gone])) {
        syncs.push(kinds(id, ValueSql::Expression(column.clone())));
    }
    let leader = bench.lead(&syncs).await;
    let members: Vec<String> = columns
        .iter()
        .zip(CASES)
        .map(|(column, (.., json))| format!("\"{column}\":{json}"))
        .collect();
    let expected = format!("{{{},\"gone\":null}}", members.join(","));
    for _ in 0..2 {
        assert_eq!(leader.values(&["[1]"]).await, [Some(expected.clone())]);
    }
    for (id, (kind, value, expected, _)) in (1..).zip(CASES) {
        let claimed = leader.read_of(SyncId(id), &["[1]"]).await.unwrap();
        assert_eq!(text(&claimed.rows[0]), Some(*expected), "{kind} {value}");
    }
    let last = SyncId(u16::try_from(CASES.len()).unwrap() + 1);
    let claimed = leader.read_of(last, &["[1]"]).await.unwrap();
    assert_eq!(claimed.rows[0].draft, None, "NULL is no document");
}

fn draft(value: Value) -> Option<Draft> {
    Some(Draft::of(value))
}

#[tokio::test]
async fn bytes_are_bytes_also_below_a_domain() {
    let bench = Bench::new().await;
    bench
        .sql(
            "create domain image as bytea; create domain icon as image;
             create table pictures (id int primary key, body icon);
             insert into pictures values (1, '\\x00ff1080'), (2, ''), (3, null);
             select pg2kv.watch('public.pictures', sync => 'pictures', key => '{id}')",
        )
        .await;
    let pictures = |id, value: &str| SyncSource {
        id: SyncId(id),
        name: "pictures".to_owned(),
        table: "public.pictures".to_owned(),
        ..items(value)
    };
    let leader = bench
        .lead(&[
            pictures(0, "body -- the picture"),
            pictures(1, "decode(encode(body, 'base64'), 'base64')"),
            pictures(2, "convert_to(repeat('x', 40000000), 'UTF8')"),
        ])
        .await;
    for sync in [SyncId(0), SyncId(1)] {
        let keys = ["[1]", "[2]", "[3]", "[4]"];
        let claimed = leader.read_of(sync, &keys).await.unwrap();
        let drafts: Vec<_> = claimed.rows.into_iter().map(|row| row.draft).collect();
        let bytes = |bytes: &'static [u8]| draft(Value::Binary(bytes.into()));
        assert_eq!(drafts, [bytes(b"\x00\xff\x10\x80"), bytes(b""), None, None]);
    }
    let claimed = leader.read_of(SyncId(2), &["[1]"]).await.unwrap();
    let value = claimed.rows[0].draft.clone().unwrap().value;
    assert_eq!(
        value,
        DraftValue::TooLarge {
            bytes: 40_000_000,
            shards: None
        }
    );
}

#[tokio::test]
async fn what_a_pair_has_beside_its_value_comes_with_it() {
    let bench = Bench::new().await;
    bench
        .sql(
            "create table page (id int primary key, body text, kind text, about jsonb, until timestamptz);
             insert into page values
               (1, 'a', 'text/html', '{\"b\": 1.10, \"a\": null}', '2100-01-01 00:00:00.5+00'),
               (2, 'b', null, null, null),
               (3, 'c', null, '[1]', 'infinity'),
               (4, 'gone', null, null, '2001-01-01'),
               (5, 'gone', null, null, '-infinity'),
               (6, 'soon', null, null, clock_timestamp() + '30 minutes');
             select pg2kv.watch('public.page', sync => 'page', key => '{id}')",
        )
        .await;
    let page = |id, expiry| SyncSource {
        id: SyncId(id),
        name: "page".to_owned(),
        table: "public.page".to_owned(),
        attributes: Attributes {
            content_type: Some("kind".to_owned()),
            metadata: Some("about".to_owned()),
            expiry,
        },
        ..items("body")
    };
    let until = ExpirySql::At("until -- then".to_owned());
    let leader = bench
        .lead(&[page(0, Some(until)), page(1, Some(ExpirySql::After(3_600)))])
        .await;
    let keys = ["[1]", "[2]", "[3]", "[4]", "[5]", "[6]"];
    let claimed = leader.read_of(SyncId(0), &keys).await.unwrap();
    let drafts: Vec<_> = claimed.rows.into_iter().map(|row| row.draft).collect();
    let first = drafts[0].clone().unwrap();
    assert_eq!(
        first.content_type,
        Some(DraftText::Whole("text/html".to_owned()))
    );
    let metadata = r#"{"a": null, "b": 1.10}"#.to_owned();
    assert_eq!(first.metadata, Some(DraftText::Whole(metadata)));
    let Expiry::At {
        unix_seconds,
        ahead_seconds,
    } = first.expiry
    else {
        panic!("{:?}", first.expiry);
    };
    // 2100-01-01 00:00:01, rounded up.
    assert_eq!(unix_seconds, 4_102_444_801);
    assert!(ahead_seconds > 1_000_000_000);
    let plain = |text: &'static str| Draft::of(Value::Text(text.into()));
    assert_eq!(drafts[1], Some(plain("b")));
    let list = Draft {
        metadata: Some(DraftText::Whole("[1]".to_owned())),
        ..plain("c")
    };
    assert_eq!(drafts[2], Some(list));
    assert_eq!(drafts[3..5], [None, None], "their time is over");
    let Expiry::At { ahead_seconds, .. } = drafts[5].clone().unwrap().expiry else {
        panic!("{:?}", drafts[5]);
    };
    assert!((1..=1_800).contains(&ahead_seconds), "{ahead_seconds}");

    let walked = leader.session.walk(SyncId(0), None, 10).await.unwrap();
    assert_eq!(
        walked.keys,
        ["[1]", "[2]", "[3]", "[6]"].map(key),
        "no deletes of what expired"
    );
    let walked = leader.session.walk(SyncId(1), None, 10).await.unwrap();
    assert_eq!(walked.keys.len(), 6);
    let claimed = leader.read_of(SyncId(1), &["[4]"]).await.unwrap();
    let expiry = claimed.rows[0].draft.as_ref().unwrap().expiry;
    assert_eq!(expiry, Expiry::After(3_600));
}

#[tokio::test]
async fn a_column_that_is_not_watched_cannot_be_read_and_check_says_so() {
    let bench = Bench::new().await;
    bench
        .sql(
            "create table page (id int primary key, body text, kind text);
             select pg2kv.watch('public.page', sync => 'page', key => '{id}', columns => '{body}')",
        )
        .await;
    let page = |attributes| SyncSource {
        name: "page".to_owned(),
        table: "public.page".to_owned(),
        attributes,
        ..items("body")
    };
    let unreadable = [
        Attributes {
            content_type: Some("kind".to_owned()),
            ..Attributes::default()
        },
        Attributes {
            metadata: Some("json_build_object('kind', kind)".to_owned()),
            ..Attributes::default()
        },
        Attributes {
            expiry: Some(ExpirySql::At("kind::timestamptz".to_owned())),
            ..Attributes::default()
        },
    ];
    for attributes in unreadable {
        let findings = check(&bench.settings, &[page(attributes.clone())]).await;
        let finding = findings
            .iter()
            .find(|f| f.what == "sync page: table")
            .unwrap();
        assert!(finding.detail.contains("permission denied"), "{finding:?}");
        let hint = finding.hint.as_deref().unwrap();
        assert!(hint.contains("use in `watch`"), "{hint}");
        let leader = bench.lead(&[page(attributes)]).await;
        let error = leader.read(&["[1]"]).await.unwrap_err().error;
        assert_eq!(error.kind(), Kind::Relation);
        leader.candidate.release().await;
    }
    let findings = check(&bench.settings, &[page(Attributes::default())]).await;
    let finding = findings
        .iter()
        .find(|f| f.what == "sync page: table")
        .unwrap();
    assert!(finding.hint.is_none(), "{finding:?}");
}
