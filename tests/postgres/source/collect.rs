//! Many rows in one document: which, in what order, how large, and that none is lost or doubled.

use std::collections::{BTreeMap, BTreeSet};

use pg2kv::change::{DraftValue, Key, SyncId};
use pg2kv::ledger::FetchMode::Awake;
use pg2kv::source::{Collect, CollectInto, Grade, SyncSource, ValueSql, check};
use serde_json::Value;

use super::{Bench, Leader, claim_all, items, text, texts};
use crate::support::postgres::Server;

const PEOPLE: &str = "
    create table person (
      id int primary key, tenant text, level numeric, name text, about jsonb, hidden bool default false);
    create index on person (tenant);
    select pg2kv.watch('public.person', sync => 'tenant', key => '{tenant}', collect => true);
    select pg2kv.watch('public.person', sync => 'level', key => '{tenant,level}', collect => true);
    select pg2kv.watch('public.person', sync => 'all', key => '{}', collect => true);
    select pg2kv.watch('public.person', sync => 'part', key => '{}', collect => true, shards => 5);
    select pg2kv.watch('public.person', sync => 'both', key => '{level,tenant}', collect => true, shards => 3);
    delete from pg2kv.outbox;";

/// One of the syncs above, as an object of ids.
fn people(id: u16, name: &str) -> SyncSource {
    let (key_columns, shards): (&[&str], _) = match name {
        "tenant" => (&["tenant"], None),
        "level" => (&["tenant", "level"], None),
        "all" => (&[], None),
        "part" => (&[], Some(5)),
        "both" => (&["level", "tenant"], Some(3)),
        other => panic!("{other}"),
    };
    SyncSource {
        id: SyncId(id),
        name: name.to_owned(),
        table: "public.person".to_owned(),
        key_columns: key_columns.iter().map(ToString::to_string).collect(),
        value: ValueSql::Columns(vec![("name".to_owned(), "n".to_owned())]),
        filter: Some("not hidden".to_owned()),
        collect: Some(Collect {
            into: CollectInto::Object {
                member: "id".to_owned(),
            },
            order_by: None,
            shards,
        }),
        ..items("")
    }
}

fn list(sync: SyncSource, value: &str, order_by: Option<&str>) -> SyncSource {
    SyncSource {
        value: ValueSql::Expression(value.to_owned()),
        collect: Some(Collect {
            into: CollectInto::List,
            order_by: order_by.map(str::to_owned),
            shards: None,
        }),
        ..sync
    }
}

fn object(sync: SyncSource, member: &str, order_by: Option<&str>) -> SyncSource {
    SyncSource {
        collect: Some(Collect {
            into: CollectInto::Object {
                member: member.to_owned(),
            },
            order_by: order_by.map(str::to_owned),
            shards: None,
        }),
        ..sync
    }
}

async fn document(leader: &Leader, sync: u16, key: &str) -> Option<String> {
    let claimed = leader.read_of(SyncId(sync), &[key]).await.unwrap();
    text(&claimed.rows[0]).map(str::to_owned)
}

#[tokio::test]
async fn rows_of_one_key_become_one_object_or_list() {
    let bench = Bench::new().await;
    bench.sql(PEOPLE).await;
    bench
        .sql(
            "insert into person values
               (10, 'a', 1.0, E'q\"\\n', '{\"b\": 1}'), (9, 'a', 1.00, null, '[1, 2]'),
               (1, 'b', 2, 'B', '\"text\"'), (2, null, 2, 'nobody', null),
               (3, 'a', null, 'z', null);
             insert into person values (4, 'a', 1, 'hidden', null, true)",
        )
        .await;
    let tenant = |id| people(id, "tenant");
    let leader = bench
        .lead(&[
            tenant(0),
            people(1, "level"),
            people(2, "all"),
            list(tenant(3), "about", None),
            list(tenant(4), "name", Some("length(name) desc, name")),
            list(people(5, "all"), "level", Some("level")),
            object(tenant(6), "name", None),
            object(tenant(7), "id", Some("id")),
            object(people(8, "all"), "tenant", None),
            list(tenant(9), "'x' -- a constant", None),
            list(tenant(10), "(about->>'b')::int", None),
        ])
        .await;
    for (sync, key, expected) in [
        // Members are in the order of their text, byte by byte.
        (
            0,
            r#"["a"]"#,
            Some(r#"{"10":{"n":"q\"\n"},"3":{"n":"z"},"9":{"n":null}}"#),
        ),
        (0, r#"["b"]"#, Some(r#"{"1":{"n":"B"}}"#)),
        (0, r#"["c"]"#, None),
        // 1.0 and 1.00 are equal, and two keys.
        (1, r#"["a", 1.0]"#, Some(r#"{"10":{"n":"q\"\n"}}"#)),
        (1, r#"["a", 1.00]"#, Some(r#"{"9":{"n":null}}"#)),
        (1, r#"["a", 1]"#, None),
        (
            2,
            "[]",
            Some(
                r#"{"1":{"n":"B"},"10":{"n":"q\"\n"},"2":{"n":"nobody"},"3":{"n":"z"},"9":{"n":null}}"#,
            ),
        ),
        // A row whose value is NULL is not in it.
        (3, r#"["a"]"#, Some(r#"[[1, 2],{"b": 1}]"#)),
        (3, r#"["b"]"#, Some(r#"["text"]"#)),
        (4, r#"["a"]"#, Some(r#"["q\"\n","z"]"#)),
        // What the order leaves open is in the order of the elements' text.
        (5, "[]", Some("[1.0,1.00,2,2]")),
        (
            6,
            r#"["a"]"#,
            Some(r#"{"q\"\n":{"n":"q\"\n"},"z":{"n":"z"}}"#),
        ),
        (
            7,
            r#"["a"]"#,
            Some(r#"{"3":{"n":"z"},"9":{"n":null},"10":{"n":"q\"\n"}}"#),
        ),
        (9, r#"["a"]"#, Some(r#"["x","x","x"]"#)),
        (10, r#"["a"]"#, Some("[1]")),
        (10, r#"["b"]"#, None),
    ] {
        let found = document(&leader, sync, key).await;
        assert_eq!(found.as_deref(), expected, "sync {sync}, {key}");
    }
    let claimed = leader.read_of(SyncId(8), &["[]"]).await.unwrap();
    let draft = claimed.rows[0].draft.as_ref().unwrap();
    assert_eq!(draft.value, DraftValue::Twice, "three rows are member a");
}

#[tokio::test]
async fn a_document_over_the_limit_is_measured_and_not_put_together() {
    let bench = Bench::new().await;
    bench.sql(PEOPLE).await;
    // Each name is one byte short of a mebibyte with its quotes and comma.
    bench
        .sql(
            "insert into person select n, 'large', 1, repeat('x', 1048573) from generate_series(1, 25) n;
             insert into person select n, 'small', 1, repeat('x', 1048573) from generate_series(101, 124) n;
             insert into person values (125, 'small', 1, repeat('x', 1048572));
             insert into person values (201, 'one', 1, repeat('x', 30000000))",
        )
        .await;
    let leader = bench.lead(&[list(people(0, "tenant"), "name", None)]).await;
    let large = leader.read_of(SyncId(0), &[r#"["large"]"#]).await.unwrap();
    let draft = large.rows[0].draft.as_ref().unwrap();
    let too_large = |bytes| DraftValue::TooLarge {
        bytes,
        shards: Some(1),
    };
    assert_eq!(draft.value, too_large(26_214_401));
    let one = leader.read_of(SyncId(0), &[r#"["one"]"#]).await.unwrap();
    assert_eq!(
        one.rows[0].draft.as_ref().unwrap().value,
        too_large(30_000_004)
    );
    let small = document(&leader, 0, r#"["small"]"#).await.unwrap();
    assert_eq!(small.len(), pg2kv::change::KV_VALUE_MAX_BYTES);
    let elements: Vec<&str> = serde_json::from_str(&small).unwrap();
    assert_eq!(elements.len(), 25);
    // A large document fills a read; what follows is read by itself.
    let keys = [r#"["small"]"#, r#"["large"]"#, r#"["none"]"#].map(Key::new);
    let claimed = leader
        .session
        .prepare(&claim_all(SyncId(0), keys.to_vec()))
        .await
        .unwrap();
    assert!(!claimed.rows.is_empty());
}

#[tokio::test]
async fn a_change_records_the_document_that_it_leaves_and_the_one_that_it_enters() {
    let bench = Bench::new().await;
    bench
        .sql(
            "create table person (id int primary key, tenant text, name text, note text);
             select pg2kv.watch('public.person', 'tenant', '{tenant}', '{name}', collect => true);
             select pg2kv.watch('public.person', 'part', '{}', '{name}', collect => true, shards => 16);
             delete from pg2kv.outbox",
        )
        .await;
    let tenant = SyncSource {
        filter: None,
        ..people(0, "tenant")
    };
    let mut part = SyncSource {
        filter: None,
        ..people(1, "part")
    };
    part.collect.as_mut().unwrap().shards = Some(16);
    let leader = bench.lead(&[tenant, part]).await;
    // Their shards, by an md5 that was made elsewhere: 8 of 42, 15 of 7, 8 of 1.
    for (sql, expected) in [
        (
            "insert into person values (42, 'a', 'x', 'n')",
            vec![r#"["a"]"#, "[8]"],
        ),
        ("insert into person values (7, null, 'x')", vec!["[15]"]),
        ("update person set note = 'not watched'", vec![]),
        (
            "update person set name = 'y' where id = 42",
            vec![r#"["a"]"#, "[8]"],
        ),
        (
            "update person set tenant = 'b' where id = 42",
            vec![r#"["a"]"#, r#"["b"]"#],
        ),
        (
            "update person set tenant = 'b' where id = 7",
            vec![r#"["b"]"#],
        ),
        ("update person set id = 1 where id = 7", vec!["[15]", "[8]"]),
        ("delete from person where id = 42", vec![r#"["b"]"#, "[8]"]),
        ("truncate person", vec!["*", "*"]),
    ] {
        bench.sql(sql).await;
        let changes = leader.fetch(Awake).await.changes;
        let found: BTreeSet<_> = texts(&changes).into_iter().collect();
        let expected: BTreeSet<_> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(found, expected, "{sql}");
    }
}

#[tokio::test]
async fn shards_are_the_same_on_every_version() {
    for server in [Server::Installed, Server::Newer] {
        let bench = Bench::on(server).await;
        bench
            .sql(
                "create table odd (
                   at timestamptz, region text, amount numeric, raw bytea, primary key (at, region, raw));
                 insert into odd values ('2026-01-02 03:04:05+00', 'eu', 1, '\\x00ff');
                 set timezone = 'Asia/Kathmandu'; set datestyle = 'German'; set bytea_output = 'escape'",
            )
            .await;
        // The first eight digits of the md5 of 42, of nothing, and of the three columns.
        for (key, digits) in [("42", 0xa1d0_c6e8_u32), ("", 0xd41d_8cd9)] {
            for shards in [1, 2, 16, 1_000] {
                let found = bench
                    .number(&format!("select pg2kv.shard('{key}', {shards})::int8"))
                    .await;
                assert_eq!(found, i64::from(digits % shards), "{key} of {shards}");
            }
        }
        let row = bench
            .admin
            .query_one(
                "select pg2kv.shard_expression('odd', '{at,region,raw}', 997, 'odd')",
                &[],
            )
            .await
            .unwrap();
        let expression: &str = row.get(0);
        let same = format!(
            "select count(*) from odd where {expression} \
             = ('x' || left(md5('2026-01-02T03:04:05,eu,00ff'), 8))::bit(32)::int8 % 997"
        );
        assert_eq!(bench.number(&same).await, 1, "{expression}");
    }
}

/// Every published row is in exactly one document, the walk finds each document once, and triggers
/// name the same documents, whatever the seed.
#[tokio::test]
async fn every_row_is_in_exactly_one_document() {
    every_row_once("drop index person_tenant_idx").await;
}

#[tokio::test]
async fn every_row_is_in_exactly_one_document_found_by_an_index() {
    every_row_once("create index on person (level, tenant, name)").await;
}

async fn every_row_once(indexes: &str) {
    let bench = Bench::new().await;
    bench.sql(PEOPLE).await;
    bench.sql(indexes).await;
    let names = ["tenant", "level", "all", "part", "both"];
    let syncs: Vec<_> = (0..)
        .zip(names)
        .map(|(id, name)| people(id, name))
        .collect();
    let leader = bench.lead(&syncs).await;
    for seed in 0..3 {
        let mut rng = fastrand::Rng::with_seed(seed);
        bench.sql("truncate person; delete from pg2kv.outbox").await;
        let rows: Vec<String> = (0..rng.u32(1..300))
            .map(|id| {
                let tenant =
                    ["null", "'a'", "'B'", "'\u{e9}'", "'10'", "'9'", "''"][rng.usize(..7)];
                let level = ["null", "1", "1.0", "1.00", "2", "10", "'NaN'"][rng.usize(..7)];
                format!("({id}, {tenant}, {level}, 'n', null, {})", rng.u8(..5) == 0)
            })
            .collect();
        bench
            .sql(&format!("insert into person values {}", rows.join(", ")))
            .await;
        for (sync, name) in syncs.iter().zip(names) {
            let published = match name {
                "tenant" => "tenant is not null and not hidden",
                "level" | "both" => "tenant is not null and level is not null and not hidden",
                _ => "not hidden",
            };
            let limit = rng.usize(1..6);
            let mut keys: Vec<Key> = Vec::new();
            let mut after: Option<String> = None;
            loop {
                let walked = leader.session.walk(sync.id, after.as_deref(), limit).await;
                let walked = walked.unwrap();
                keys.extend(walked.keys);
                after = walked.position;
                if after.is_none() {
                    break;
                }
            }
            let distinct: BTreeSet<&Key> = keys.iter().collect();
            assert_eq!(
                distinct.len(),
                keys.len(),
                "{name}, seed {seed}: a key comes twice"
            );

            let request = pg2kv::ledger::ClaimRequest {
                claim: vec![],
                ..claim_all(sync.id, keys.clone())
            };
            let claimed = leader.session.prepare(&request).await.unwrap();
            assert_eq!(claimed.rows.len(), keys.len());
            let mut seen: BTreeMap<i64, usize> = BTreeMap::new();
            for row in &claimed.rows {
                let document: Value = serde_json::from_str(text(row).unwrap()).unwrap();
                for member in document.as_object().unwrap().keys() {
                    *seen.entry(member.parse().unwrap()).or_default() += 1;
                }
            }
            let rows = bench
                .admin
                .query(
                    &format!("select id::int8 from person where {published} order by id"),
                    &[],
                )
                .await
                .unwrap();
            let wanted: BTreeMap<i64, usize> = rows.iter().map(|row| (row.get(0), 1)).collect();
            assert_eq!(seen, wanted, "{name}, seed {seed}");

            // Those of rows that are not published are recorded too.
            let recorded = bench
                .admin
                .query(
                    "select distinct key::text from pg2kv.outbox where sync = $1 and key is not null",
                    &[&name],
                )
                .await
                .unwrap();
            let recorded: BTreeSet<Key> = recorded
                .iter()
                .map(|row| Key::new(row.get::<_, &str>(0)))
                .collect();
            assert!(
                distinct.iter().all(|key| recorded.contains(key)),
                "{name}, seed {seed}: {distinct:?} of {recorded:?}"
            );
            // And names lead back to them.
            let columns: Vec<Vec<String>> =
                claimed.rows.iter().map(|row| row.columns.clone()).collect();
            let back = leader.session.keys_of(sync.id, &columns).await.unwrap();
            assert!(back.into_iter().flatten().eq(keys), "{name}, seed {seed}");
        }
    }
}

#[tokio::test]
async fn check_advises_an_index_and_finds_another_shape() {
    let bench = Bench::new().await;
    bench.sql(PEOPLE).await;
    let finding = async |sync: SyncSource, what: &str| {
        let what = format!("sync {}: {what}", sync.name);
        let findings = check(&bench.settings, &[sync]).await;
        findings.into_iter().find(|f| f.what == what).unwrap()
    };
    assert_eq!(
        finding(people(0, "tenant"), "index").await.grade,
        Grade::Fine
    );
    assert_eq!(finding(people(0, "all"), "index").await.grade, Grade::Fine);
    for (name, index) in [
        (
            "level",
            "create index concurrently on public.person (tenant, level);",
        ),
        (
            "part",
            "create index concurrently on public.person (pg2kv.shard(id::text, 5));",
        ),
        (
            "both",
            "create index concurrently on public.person (level, tenant, pg2kv.shard(id::text, 3));",
        ),
    ] {
        let found = finding(people(0, name), "index").await;
        assert_eq!(
            (found.grade, found.hint.as_deref()),
            (Grade::Doubtful, Some(index))
        );
        bench.sql(index).await;
        assert_eq!(
            finding(people(0, name), "index").await.grade,
            Grade::Fine,
            "{name}"
        );
    }
    let single = SyncSource {
        collect: None,
        ..people(0, "tenant")
    };
    let found = finding(single, "triggers").await;
    assert_eq!(
        found.detail,
        "collect is not as configured: one row or many in a document"
    );
    let mut other = people(0, "part");
    other.collect.as_mut().unwrap().shards = Some(6);
    let found = finding(other, "triggers").await;
    assert_eq!(
        found.detail,
        "another number of shards is watched than configured"
    );
}
