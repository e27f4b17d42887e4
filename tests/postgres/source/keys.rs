//! Keys: every type there and back, and walks in key order.

use pg2kv::change::SyncId;
use pg2kv::ledger::FetchMode::Awake;
use pg2kv::source::{Attributes, SyncSource, ValueSql};

use super::{Bench, claim_all, items, texts};

fn typed(id: u16, name: &str, keys: &[&str]) -> SyncSource {
    SyncSource {
        id: SyncId(id),
        name: name.to_owned(),
        table: format!("public.{name}"),
        key_columns: keys.iter().map(ToString::to_string).collect(),
        value: ValueSql::Expression("note".to_owned()),
        filter: None,
        attributes: Attributes::default(),
        collect: None,
        related: vec![],
        configured: "{}".to_owned(),
    }
}

/// Table, type, and values as SQL with their canonical text.
type Case = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// Written in a session with other settings than the daemon's; the trigger's key finds the row, the
/// walk gives the same key, and the columns are canonical text.
#[tokio::test]
async fn keys_of_every_type_find_their_row() {
    let bench = Bench::new().await;
    let cases: &[Case] = &[
        (
            "bigint",
            "bigint",
            &[("9223372036854775807", "9223372036854775807"), ("-1", "-1")],
        ),
        (
            "uuid",
            "uuid",
            &[(
                "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",
                "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            )],
        ),
        (
            "text",
            "text",
            &[
                ("''", ""),
                ("'a\"b\\c/d'", "a\"b\\c/d"),
                (
                    "U&'\\0001\\007F\\00E9\\4E2D\\FFFD\\+01F600\\+10FFFF'",
                    "\u{1}\u{7f}é中\u{fffd}😀\u{10ffff}",
                ),
                ("U&'line\\000Abreak\\0009tab'", "line\nbreak\ttab"),
            ],
        ),
        (
            "timestamptz",
            "timestamptz",
            &[
                (
                    "'2026-01-02 03:04:05.123456+02'",
                    "2026-01-02 01:04:05.123456+00",
                ),
                ("'infinity'", "infinity"),
                ("'0044-03-15 12:00:00+00 BC'", "0044-03-15 12:00:00+00 BC"),
            ],
        ),
        (
            "timestamp",
            "timestamp",
            &[("'2026-01-02 03:04:05'", "2026-01-02 03:04:05")],
        ),
        ("date", "date", &[("'2026-01-02'", "2026-01-02")]),
        (
            "bytea",
            "bytea",
            &[("'\\x00ff10'", "\\x00ff10"), ("''", "\\x")],
        ),
        (
            "numeric",
            "numeric",
            &[
                ("1.00", "1.00"),
                ("12345678901234567890.1", "12345678901234567890.1"),
                ("'NaN'", "NaN"),
            ],
        ),
        (
            "float8",
            "float8",
            &[
                ("0.1", "0.1"),
                ("'-Infinity'", "-Infinity"),
                ("1e300", "1e+300"),
            ],
        ),
        ("bool", "bool", &[("true", "true"), ("false", "false")]),
        ("inet", "inet", &[("'10.0.0.1/8'", "10.0.0.1/8")]),
        ("bpchar", "char(5)", &[("'ab'", "ab")]),
        ("vc", "varchar(3)", &[("'abc'", "abc")]),
        ("enumeration", "public.mood", &[("'ok'", "ok")]),
        (
            "domain",
            "public.moment",
            &[("'2026-01-02 03:04:05+02'", "2026-01-02 01:04:05+00")],
        ),
        ("insensitive", "public.citext", &[("'MiXed'", "MiXed")]),
    ];
    bench
        .sql("create extension citext schema public; create type public.mood as enum ('ok'); \
              create domain public.moment as timestamptz; \
              set timezone = 'America/St_Johns'; set datestyle = 'German'; set bytea_output = 'escape'")
        .await;
    let mut syncs = Vec::new();
    for (at, (name, sql_type, values)) in cases.iter().enumerate() {
        bench
            .sql(&format!(
                "create table public.{name} (k {sql_type} primary key, note text); \
                 select pg2kv.watch('public.{name}', sync => '{name}', key => '{{k}}')"
            ))
            .await;
        bench.sql("delete from pg2kv.outbox").await;
        for (at, (value, _)) in values.iter().enumerate() {
            bench
                .sql(&format!(
                    "insert into public.{name} values ({value}, 'note {at}')"
                ))
                .await;
        }
        let id = u16::try_from(at).unwrap();
        syncs.push(typed(id, name, &["k"]));
    }
    bench.sql("delete from pg2kv.outbox").await;
    for (name, _, _) in cases {
        bench
            .sql(&format!("update public.{name} set note = note || '!'"))
            .await;
    }
    let leader = bench.lead(&syncs).await;
    let changes = leader.fetch(Awake).await.changes;
    for (sync, (name, _, values)) in syncs.iter().zip(cases) {
        let keys: Vec<_> = changes
            .iter()
            .filter(|change| change.sync == sync.id)
            .map(|change| match &change.what {
                pg2kv::change::Changed::Key(key) => key.clone(),
                _ => panic!("no marker was written"),
            })
            .collect();
        let claimed = leader
            .session
            .prepare(&claim_all(sync.id, keys.clone()))
            .await
            .unwrap();
        let mut seen: Vec<_> = claimed
            .rows
            .iter()
            .map(|row| {
                (
                    row.columns[0].clone(),
                    super::text(row).unwrap_or_default().to_owned(),
                )
            })
            .collect();
        let mut expected: Vec<_> = values
            .iter()
            .enumerate()
            .map(|(at, (_, text))| ((*text).to_owned(), format!("note {at}!")))
            .collect();
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected, "{name}");

        let mut walked = leader.session.walk(sync.id, None, 100).await.unwrap();
        assert_eq!(walked.position, None);
        walked.keys.sort();
        let mut keys = keys;
        keys.sort();
        assert!(
            walked.keys == keys,
            "{name}: the walk's keys are those of the trigger"
        );
    }
}

#[tokio::test]
async fn a_value_that_is_equal_but_reads_otherwise_is_another_key() {
    let bench = Bench::new().await;
    bench
        .sql("create table public.price (k numeric primary key, note text); insert into price values (1.0, 'x'); \
              select pg2kv.watch('public.price', sync => 'price', key => '{k}'); delete from pg2kv.outbox; \
              update price set k = 1.00")
        .await;
    let leader = bench.lead(&[typed(0, "price", &["k"])]).await;
    assert_eq!(
        texts(&leader.fetch(Awake).await.changes),
        ["[1.0]", "[1.00]"]
    );
    assert_eq!(
        leader.values(&["[1.0]", "[1.00]"]).await,
        [None, Some("x".to_owned())]
    );
}

#[tokio::test]
async fn text_that_is_equal_by_its_collation_but_reads_otherwise_is_another_key() {
    let bench = Bench::new().await;
    bench
        .sql("create collation public.anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
              create table public.login (k text collate public.anycase primary key, note text); \
              insert into public.login values ('Ada', 'x'), ('bob', 'y'); \
              select pg2kv.watch('public.login', sync => 'login', key => '{k}')")
        .await;
    let leader = bench.lead(&[typed(0, "login", &["k"])]).await;
    assert_eq!(
        leader
            .values(&[r#"["ada"]"#, r#"["Ada"]"#, r#"["bob"]"#])
            .await,
        [None, Some("x".to_owned()), Some("y".to_owned())]
    );
}

#[tokio::test]
async fn walks_follow_the_index_and_resume_where_they_stopped() {
    let bench = Bench::new().await;
    bench
        .sql("create table public.pairs (a int, b text collate \"C\", note text, primary key (b, a)); \
              insert into pairs select i % 10, chr(97 + i / 10), 'x' from generate_series(0, 99) i; \
              select pg2kv.watch('public.pairs', sync => 'pairs', key => '{a,b}')")
        .await;
    let mut sync = typed(0, "pairs", &["a", "b"]);
    sync.filter = Some("a <> 3".to_owned());
    let leader = bench.lead(&[sync]).await;
    let mut seen = Vec::new();
    let mut position: Option<String> = None;
    loop {
        let walked = leader
            .session
            .walk(SyncId(0), position.as_deref(), 7)
            .await
            .unwrap();
        seen.extend(walked.keys.iter().map(|key| key.as_str().to_owned()));
        position = walked.position;
        if position.is_none() {
            break;
        }
    }
    let expected: Vec<String> = (0..10_u8)
        .flat_map(|b| {
            (0..10)
                .filter(|a| *a != 3)
                .map(move |a| format!("[{a}, \"{}\"]", char::from(97 + b)))
        })
        .collect();
    assert_eq!(seen, expected, "in the order of the primary key (b, a)");
}

#[tokio::test]
async fn a_filter_that_fails_for_a_row_does_not_stop_the_walk() {
    let bench = Bench::new().await;
    bench.sql("insert into items select i, case i when 2 then 'x' else '1' end from generate_series(1, 3) i").await;
    let mut sync = items("plan");
    sync.filter = Some("plan::int > 0".to_owned());
    let leader = bench.lead(&[sync]).await;
    assert_eq!(
        leader
            .session
            .walk(SyncId(0), None, 10)
            .await
            .unwrap()
            .keys
            .len(),
        3
    );
}
