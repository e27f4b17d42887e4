//! Databases that are not in UTF-8: a key that has no form in it is known by its hash, and fails no
//! statement about others.

use pg2kv::change::{Changed, Key, SyncId, Unreadable};
use pg2kv::ledger::FetchMode;
use pg2kv::source::session::Session;
use pg2kv::source::{SyncSource, ValueSql, check};

use super::{Bench, items};

/// Keys as SQL, byte by byte.
const ROWS: &[&str] = &["'tea'", "E'caf\\351'", "E'x\\201'", "E'\\303\\251'"];

/// A database with a table whose key is text. Each of [`ROWS`] is in it, and has changed.
async fn bench(encoding: &str) -> (Bench, SyncSource) {
    let bench = Bench::encoded(encoding).await;
    bench
        .sql(
            "create table public.tags (name text primary key, plan text);
             select pg2kv.watch('public.tags', sync => 'tags', key => '{name}');
             delete from pg2kv.outbox",
        )
        .await;
    for row in ROWS {
        let insert = format!("insert into public.tags values ({row}, 'plan')");
        bench.sql(&insert).await;
    }
    let tags = SyncSource {
        name: "tags".to_owned(),
        table: "public.tags".to_owned(),
        key_columns: vec!["name".to_owned()],
        value: ValueSql::Columns(vec![("plan".to_owned(), "plan".to_owned())]),
        ..items("")
    };
    (bench, tags)
}

/// All keys of a walk with steps of so many.
async fn walk(session: &Session, limit: usize) -> Vec<Key> {
    let (mut keys, mut after) = (Vec::new(), None);
    loop {
        let walked = session.walk(SyncId(0), after.as_deref(), limit).await;
        let walked = walked.unwrap();
        keys.extend(walked.keys);
        after = walked.position;
        if after.is_none() {
            return keys;
        }
    }
}

#[tokio::test]
async fn a_key_that_is_not_utf8_fails_no_statement_about_others() {
    for (encoding, expected) in [
        ("SQL_ASCII", ["[\"tea\"]", "8", "6", "[\"é\"]"]),
        (
            "LATIN1",
            ["[\"tea\"]", "[\"café\"]", "[\"x\u{81}\"]", "[\"Ã©\"]"],
        ),
        ("WIN1252", ["[\"tea\"]", "[\"café\"]", "6", "[\"Ã©\"]"]),
    ] {
        let (bench, tags) = bench(encoding).await;
        let leader = bench.lead(std::slice::from_ref(&tags)).await;
        let fetched = leader.fetch(FetchMode::Awake).await;
        let keys: Vec<Key> = fetched
            .changes
            .iter()
            .map(|change| match &change.what {
                Changed::Key(key) => key.clone(),
                other => panic!("{encoding}: {other:?}"),
            })
            .collect();
        let told: Vec<String> = keys
            .iter()
            .map(|key| match key.unreadable() {
                None => key.as_str().to_owned(),
                Some(Unreadable::Undecodable(bytes)) => bytes.to_string(),
                Some(Unreadable::Oversized(_)) => panic!("{encoding}: not long"),
            })
            .collect();
        assert_eq!(told, expected, "{encoding}");

        // A walk finds the same, wherever it has to go on from.
        for limit in [1, 2, 3, 100] {
            let mut walked = walk(&leader.session, limit).await;
            let mut expected = keys.clone();
            walked.sort();
            expected.sort();
            assert_eq!(walked, expected, "{encoding}, {limit}");
        }

        // Keys that can be told have rows, the others have none.
        let texts: Vec<&str> = keys.iter().map(Key::as_str).collect();
        let claimed = leader.read(&texts).await.unwrap();
        let there: Vec<bool> = claimed.rows.iter().map(|row| row.draft.is_some()).collect();
        let readable: Vec<bool> = keys.iter().map(|key| key.unreadable().is_none()).collect();
        assert_eq!(there, readable, "{encoding}");

        let findings = check(&bench.settings, &[tags]).await;
        let finding = findings.iter().find(|finding| finding.what == "encoding");
        assert!(
            finding
                .unwrap()
                .hint
                .as_ref()
                .unwrap()
                .contains("dead letter")
        );
    }
}
