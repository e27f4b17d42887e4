//! Keys that follow one another are read by one scan, and give what a read by key gives.

use pg2kv::change::{Draft, Key, SyncId};
use pg2kv::ledger::{BackfillStep, ClaimRequest};
use pg2kv::source::session::{Row, Session};
use pg2kv::source::{ExpirySql, SyncSource, ValueSql};

use super::{Bench, claim_all, items, key, text};

/// What the server was asked: the text of the statement itself.
const QUERY: &str = "current_query()";
/// The keys of the request are those that a walk found.
const WALKED: BackfillStep = BackfillStep::EnterKeys { done: 0 };

async fn read(session: &Session, keys: &[Key], walked: bool, max_bytes: usize) -> Vec<Row> {
    let request = ClaimRequest {
        claim: vec![],
        backfill: walked.then_some(WALKED),
        max_bytes,
        ..claim_all(SyncId(0), keys.to_vec())
    };
    session.prepare(&request).await.unwrap().rows
}

/// How many rows of these were read by a scan, and how many by key.
fn ways(rows: &[Row]) -> (usize, usize) {
    let there: Vec<&str> = rows.iter().filter_map(text).collect();
    let by_key = there.iter().filter(|sql| sql.contains("unnest(")).count();
    (there.len() - by_key, by_key)
}

fn told(rows: &[Row]) -> Vec<(Vec<String>, Option<Draft>)> {
    let rows = rows.iter();
    rows.map(|row| (row.columns.clone(), row.draft.clone()))
        .collect()
}

async fn walk(session: &Session) -> Vec<Key> {
    session.walk(SyncId(0), None, 10_000).await.unwrap().keys
}

#[tokio::test]
async fn keys_of_a_walk_are_read_by_one_scan_whatever_their_types() {
    let bench = Bench::new().await;
    bench
        .sql("create collation public.anycase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        .await;
    let one = |sql: &str| (vec!["k".to_owned()], format!("k {sql} primary key"));
    let two = |sql: &str| (vec!["k".to_owned(), "l".to_owned()], sql.to_owned());
    // The type, the value of the i-th row, and whether one scan serves it.
    let cases = [
        (one("smallint"), "i - 500", true),
        (one("bigint"), "i * 1000000007::bigint - 9000000000", true),
        (one("uuid"), "md5(i::text)::uuid", true),
        (
            one("text"),
            "chr(40 + i % 80) || E'\\\\ \"\\x01' || i",
            true,
        ),
        (one("text collate \"C\""), "'é' || i", true),
        (one("varchar(9)"), "'v' || i", true),
        (one("text collate public.anycase"), "'v' || i", false),
        (one("numeric"), "i / 10.0", false),
        (one("date"), "date '2026-01-01' + i", false),
        (one("bytea"), "decode(md5(i::text), 'hex')", false),
        (
            two("k int, l text, primary key (l, k)"),
            "i % 7, 'l' || i / 7",
            true,
        ),
        (
            two("k int, l bool, primary key (k, l)"),
            "i / 2, i % 2 = 0",
            true,
        ),
    ];
    for (at, ((columns, table), value, scanned)) in cases.into_iter().enumerate() {
        let name = format!("public.t{at}");
        bench
            .sql(&format!(
                "create table {name} ({table}, note text default 'x'); \
                 grant select on {name} to daemon; \
                 insert into {name} ({list}) select {value} from generate_series(1, 1000) i",
                list = columns.join(", ")
            ))
            .await;
        let mut sync = SyncSource {
            table: name.clone(),
            key_columns: columns,
            ..items(QUERY)
        };
        let session = session(&bench, &sync).await;
        let walked = walk(&session).await;
        assert_eq!(walked.len(), 1_000, "{table}");
        let all = ways(&read(&session, &walked, true, 10_000_000).await);
        let expected = if scanned { (1_000, 0) } else { (0, 1_000) };
        assert_eq!(all, expected, "{table}");

        // Rows are gone, and nobody asks for some of those between.
        sync.value = ValueSql::Columns(vec![
            ("k".to_owned(), "k".to_owned()),
            ("note".to_owned(), "note".to_owned()),
        ]);
        let session = self::session(&bench, &sync).await;
        let asked: Vec<Key> = walked
            .into_iter()
            .enumerate()
            .filter_map(|(at, key)| (at % 5 != 1).then_some(key))
            .collect();
        bench
            .sql(&format!(
                "delete from {name} where ctid in (select ctid from {name} order by md5(k::text) limit 300)"
            ))
            .await;
        for max_bytes in [10_000_000, 9_000, 100] {
            let scan = read(&session, &asked, true, max_bytes).await;
            let by_key = read(&session, &asked, false, max_bytes).await;
            assert_eq!(told(&scan), told(&by_key), "{table}, {max_bytes} bytes");
            assert!(scan.len() == 800 || max_bytes < 10_000_000);
            assert!(scan.iter().any(|row| row.draft.is_none()) || max_bytes == 100);
        }
    }
}

#[tokio::test]
async fn integers_that_ascend_are_read_by_one_scan() {
    let bench = Bench::new().await;
    bench
        .sql("insert into items select i, 'p' || i from generate_series(-500, 500) i; delete from items where id % 10 = 0")
        .await;
    let keys =
        |from: i64, to: i64| -> Vec<Key> { (from..to).map(|id| key(&format!("[{id}]"))).collect() };
    let by_query = session(&bench, &items(QUERY)).await;
    let ascending = keys(-400, 600);
    let rows = read(&by_query, &ascending, false, 10_000_000).await;
    assert_eq!((rows.len(), ways(&rows)), (1_000, (810, 0)));
    let mut swapped = ascending.clone();
    swapped.swap(1, 2);
    let rows = read(&by_query, &swapped, false, 10_000_000).await;
    assert_eq!((rows.len(), ways(&rows)), (1_000, (0, 810)));
    let few = keys(1, 50);
    assert_eq!(ways(&read(&by_query, &few, false, 10_000_000).await).0, 0);

    let mut filtered = items("plan");
    filtered.filter = Some("id % 3 = 0".to_owned());
    filtered.attributes.metadata = Some("json_build_object('id', id)".to_owned());
    filtered.attributes.expiry = Some(ExpirySql::At(
        "case when id % 2 = 0 then '-infinity'::timestamptz end".to_owned(),
    ));
    let session = session(&bench, &filtered).await;
    let scan = read(&session, &ascending, false, 10_000_000).await;
    let by_key = read(&session, &swapped, false, 10_000_000).await;
    let there = scan.iter().filter(|row| row.draft.is_some()).count();
    assert!((100..200).contains(&there), "{there}");
    let sorted = |rows: &[Row]| {
        let mut told = told(rows);
        told.sort_by(|one, other| one.0.cmp(&other.0));
        told
    };
    assert_eq!(sorted(&scan), sorted(&by_key));
}

#[tokio::test]
async fn a_row_between_the_keys_that_fails_fails_no_key() {
    let bench = Bench::new().await;
    bench
        .sql("insert into items select i, 'p' from generate_series(1, 300) i")
        .await;
    let session = session(&bench, &items("(1 / (id - 150))::text || current_query()")).await;
    let mut keys = walk(&session).await;
    keys.remove(149);
    let rows = read(&session, &keys, true, 10_000_000).await;
    assert_eq!((rows.len(), ways(&rows)), (299, (0, 299)));
}

#[tokio::test]
async fn keys_that_do_not_come_in_order_are_read_by_key() {
    let bench = Bench::new().await;
    bench
        .sql(
            "create table public.loose (id bigint, note text); create index on public.loose (id); \
              grant select on public.loose to daemon; \
              insert into public.loose select i, 'x' from generate_series(1, 300) i",
        )
        .await;
    let loose = SyncSource {
        table: "public.loose".to_owned(),
        ..items(QUERY)
    };
    let session = session(&bench, &loose).await;
    let mut keys = walk(&session).await;
    assert_eq!(
        ways(&read(&session, &keys, true, 10_000_000).await),
        (300, 0)
    );
    // The first case has rows come back out of order. In the second a scan of the ends misses most keys,
    // as one by an index does whose order is not the server's.
    for (one, other) in [(10, 200), (0, 200)] {
        keys.swap(one, other);
        let rows = read(&session, &keys, true, 10_000_000).await;
        assert_eq!((rows.len(), ways(&rows)), (300, (0, 300)));
        let columns: Vec<Key> = rows
            .iter()
            .map(|row| key(&format!("[{}]", row.columns[0])))
            .collect();
        assert!(columns == keys, "each row stands at the place of its key");
        keys.swap(one, other);
    }

    // A key that two rows have stops no other, as it does not without a scan.
    bench
        .sql("insert into public.loose values (250, 'y')")
        .await;
    let request = ClaimRequest {
        claim: vec![],
        backfill: Some(WALKED),
        ..claim_all(SyncId(0), keys)
    };
    let rows = session.prepare(&request).await.unwrap().rows;
    let duplicate: Vec<usize> = (0..rows.len())
        .filter(|at| rows[*at].draft == Some(Draft::duplicate()))
        .collect();
    assert_eq!((rows.len(), duplicate), (300, vec![249]));
}

/// A session of its own that reads.
async fn session(bench: &Bench, sync: &SyncSource) -> Session {
    let leader = bench.lead(std::slice::from_ref(sync)).await;
    // The next one leads as soon as this one has let go.
    let super::Leader {
        candidate, session, ..
    } = leader;
    candidate.release().await;
    session
}
