//! Claim, read, settle, backfill.

use pg2kv::change::{
    DraftValue, Epoch, KV_VALUE_MAX_BYTES, Key, KvName, Poison, PoisonReason, SyncId,
};
use pg2kv::ledger::FetchMode::Awake;
use pg2kv::ledger::{
    BackfillPhase, BackfillStep, ClaimRequest, DeadLetter, FetchMode, SettleRequest,
};
use pg2kv::source::lease::Candidate;
use pg2kv::source::session::Session;
use pg2kv::source::{Kind, Settings, SyncSource, ValueSql, check};

use super::{Bench, claim_all, items, key, soon, text, texts};

#[tokio::test]
async fn a_change_goes_from_outbox_to_claim_to_settled() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("plan")]).await;
    bench
        .sql("insert into items values (1, 'free'), (2, 'pro'); delete from items where id = 2")
        .await;
    let changes = leader.fetch(Awake).await.changes;
    assert_eq!(texts(&changes), ["[1]", "[2]", "[2]"]);

    let request = ClaimRequest {
        ids: changes.iter().map(|change| change.id).collect(),
        ..claim_all(SyncId(0), vec![key("[2]"), key("[1]")])
    };
    let claimed = leader.session.prepare(&request).await.unwrap();
    let claim = claimed.claim.expect("a claim");
    let rows: Vec<_> = claimed
        .rows
        .iter()
        .map(|row| (row.columns[0].as_str(), text(row)))
        .collect();
    assert_eq!(rows, [("2", None), ("1", Some("free"))]);
    assert_eq!(bench.number("select count(*) from pg2kv.outbox").await, 0);
    assert_eq!(
        bench
            .number(&format!(
                "select epoch from pg2kv.claim where id = {} and keys = array['[2]','[1]']",
                claim.0
            ))
            .await,
        leader.epoch.0
    );

    let request = SettleRequest {
        claims: vec![claim],
        ..SettleRequest::default()
    };
    leader.session.settle(&request).await.unwrap();
    assert_eq!(bench.number("select count(*) from pg2kv.claim").await, 0);
}

#[tokio::test]
async fn only_the_keys_asked_for_are_claimed_and_none_without_need() {
    let bench = Bench::new().await;
    bench
        .sql("insert into items select generate_series(1, 3)")
        .await;
    let leader = bench.lead(&[items("id")]).await;
    let keys = vec![key("[1]"), key("[2]"), key("[3]")];
    let request = ClaimRequest {
        claim: vec![2],
        ..claim_all(SyncId(0), keys)
    };
    assert!(
        leader
            .session
            .prepare(&request)
            .await
            .unwrap()
            .claim
            .is_some()
    );
    assert_eq!(
        bench
            .number("select count(*) from pg2kv.claim where keys = array['[3]']")
            .await,
        1
    );
    let request = ClaimRequest {
        claim: vec![],
        ..request
    };
    let claimed = leader.session.prepare(&request).await.unwrap();
    assert_eq!((claimed.claim, claimed.rows.len()), (None, 3));
}

#[tokio::test]
async fn the_old_epoch_can_do_nothing() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    bench.sql("insert into items values (1)").await;
    let changes = leader.fetch(Awake).await.changes;
    bench.sql("update pg2kv.lease set epoch = epoch + 1").await;

    let request = ClaimRequest {
        ids: vec![changes[0].id],
        ..claim_all(SyncId(0), vec![key("[1]")])
    };
    let error = leader.session.prepare(&request).await.unwrap_err();
    assert_eq!((error.claim, error.error.kind()), (None, Kind::Fenced));
    let poison = Poison::new(PoisonReason::RowError, "x");
    let settle = SettleRequest {
        dead: vec![DeadLetter {
            sync: SyncId(0),
            key: key("[1]"),
            poison,
        }],
        ..SettleRequest::default()
    };
    assert_eq!(
        leader.session.settle(&settle).await.unwrap_err().kind(),
        Kind::Fenced
    );
    let begun = leader
        .session
        .start_backfill(SyncId(0), "x", &[changes[0].id])
        .await;
    assert_eq!(begun.unwrap_err().kind(), Kind::Fenced);
    let moved = leader
        .session
        .advance_backfill(SyncId(0), &BackfillStep::Done)
        .await;
    assert_eq!(moved.unwrap_err().kind(), Kind::Fenced);
    let heartbeat = leader.candidate.heartbeat(leader.epoch).await;
    assert_eq!(heartbeat.unwrap_err().kind(), Kind::Fenced);

    let untouched = "select (select count(*) from pg2kv.outbox) * 100 + (select count(*) from pg2kv.claim) * 10 \
                     + (select count(*) from pg2kv.dead_letter) + (select count(*) from pg2kv.backfill)";
    assert_eq!(bench.number(untouched).await, 100);
}

#[tokio::test]
async fn a_takeover_waits_for_a_claim_that_is_being_made_and_fences_the_next() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    // Holds the claim's transaction open at the point where it writes the claim.
    bench
        .sql(
            "create function public.hold() returns trigger language plpgsql as \
             'begin perform pg_advisory_xact_lock(77); return new; end'; \
             create trigger hold before insert on pg2kv.claim \
             for each row execute function public.hold()",
        )
        .await;
    let lock = bench.db.connect().await;
    lock.batch_execute("begin; select pg_advisory_xact_lock(77)")
        .await
        .unwrap();
    let request = claim_all(SyncId(0), vec![key("[1]")]);
    let claim = leader.session.prepare(&request);
    let takeover = async {
        super::soon(async {
            while bench
                .number("select count(*) from pg_locks where not granted")
                .await
                == 0
            {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let usurper = bench.db.connect().await;
        let raise = usurper.batch_execute("update pg2kv.lease set epoch = epoch + 1");
        let release = async {
            super::soon(async {
                while bench
                    .number("select count(*) from pg_locks where not granted")
                    .await
                    < 2
                {
                    tokio::task::yield_now().await;
                }
            })
            .await;
            lock.batch_execute("commit").await.unwrap();
        };
        tokio::join!(raise, release).0.unwrap();
    };
    let (claimed, ()) = tokio::join!(claim, takeover);
    assert!(
        claimed.unwrap().claim.is_some(),
        "the takeover came after it"
    );
    let error = leader.session.prepare(&request).await.unwrap_err();
    assert_eq!(error.error.kind(), Kind::Fenced);
}

#[tokio::test]
async fn reading_stops_at_the_byte_limit_in_order() {
    let bench = Bench::new().await;
    bench.sql("insert into items select i, repeat('x', 1000) from generate_series(1, 50) i; analyze items").await;
    let leader = bench.lead(&[items("plan")]).await;
    let keys: Vec<Key> = (1..=50).rev().map(|id| key(&format!("[{id}]"))).collect();
    for (max_bytes, rows) in [
        (10_500, 10),
        (1_000, 1),
        (50_000, 50),
        (1_000_000, 50),
        (49_999, 49),
    ] {
        let request = ClaimRequest {
            max_bytes,
            ..claim_all(SyncId(0), keys.clone())
        };
        let claimed = leader.session.prepare(&request).await.unwrap();
        assert_eq!(claimed.rows.len(), rows, "{max_bytes}");
        assert!(claimed.claim.is_some());
        let first: Vec<_> = claimed
            .rows
            .iter()
            .map(|row| row.columns[0].clone())
            .collect();
        let expected: Vec<_> = (1..=50).rev().take(rows).map(|id| id.to_string()).collect();
        assert_eq!(first, expected);
    }
}

#[tokio::test]
async fn a_value_over_the_limit_of_kv_stays_in_postgres() {
    let bench = Bench::new().await;
    bench.sql("insert into items values (1, '')").await;
    let leader = bench.lead(&[items("repeat('x', 40000000)")]).await;
    let claimed = leader.read(&["[1]"]).await.unwrap();
    let draft = claimed.rows[0].draft.as_ref().unwrap();
    assert_eq!(
        draft.value,
        DraftValue::TooLarge {
            bytes: 40_000_000,
            shards: None
        }
    );
    assert_eq!(draft.weight(), 0);
}

/// Above some size the server makes the document, below it the columns travel.
#[tokio::test]
async fn a_document_of_columns_is_the_same_at_every_size() {
    let bench = Bench::new().await;
    // What compresses well and what does not; line feeds need two bytes in JSON.
    bench
        .sql(
            "insert into items
             select 10 * n + kind, case kind
               when 0 then repeat(e'x\n', (5 ^ n)::int)
               else (select string_agg(md5(i::text || e'\n'), e'\n') from generate_series(1, (5 ^ n)::int / 32 + 1) i) end
             from generate_series(0, 10) n, (values (0), (1)) as kinds (kind) where n < 10 or kind = 0",
        )
        .await;
    let mut source = items("");
    source.value = ValueSql::Columns(vec![("plan".to_owned(), "pl\"an".to_owned())]);
    let leader = bench.lead(&[source]).await;
    let expected = bench
        .admin
        .query(
            "select id, '{\"pl\\\"an\":' || to_json(plan) || '}' from items order by id",
            &[],
        )
        .await
        .unwrap();
    assert_eq!(expected.len(), 21);
    for row in &expected {
        let (id, document): (i64, &str) = (row.get(0), row.get(1));
        let claimed = leader.read(&[format!("[{id}]").as_str()]).await.unwrap();
        let draft = claimed.rows[0].draft.as_ref().unwrap();
        if document.len() > KV_VALUE_MAX_BYTES {
            let bytes = document.len() as u64;
            assert_eq!(
                draft.value,
                DraftValue::TooLarge {
                    bytes,
                    shards: None
                }
            );
        } else {
            // A difference of megabytes would not help anybody.
            assert!(text(&claimed.rows[0]) == Some(document), "row {id}");
        }
    }
    let largest = expected.iter().map(|row| row.get::<_, &str>(1).len()).max();
    assert!(largest > Some(KV_VALUE_MAX_BYTES), "one is too large");
}

#[tokio::test]
async fn errors_of_a_row_and_of_a_relation_are_told_apart() {
    let bench = Bench::new().await;
    bench
        .sql("insert into items values (1, '5', 1), (2, 'canary-value', 0)")
        .await;
    let leader = bench.lead(&[items("plan::int")]).await;
    assert_eq!(leader.values(&["[1]"]).await, [Some("5".to_owned())]);
    let request = claim_all(SyncId(0), vec![key("[1]"), key("[2]")]);
    let error = leader.session.prepare(&request).await.unwrap_err();
    assert!(error.claim.is_some(), "the claim stands");
    assert_eq!(error.error.kind(), Kind::Row);
    let told = format!("{error} {error:?}");
    assert!(!told.contains("canary-value"), "{told}");
    // The connection is as good as before, and other rows are.
    assert_eq!(leader.values(&["[1]"]).await, [Some("5".to_owned())]);
    // A key of another type than the column.
    assert_eq!(
        leader
            .read(&["[\"canary\"]"])
            .await
            .unwrap_err()
            .error
            .kind(),
        Kind::Row
    );

    // The daemon's column disappears, and comes back.
    bench.sql("alter table items rename plan to tariff").await;
    let error = leader.read(&["[1]"]).await.unwrap_err().error;
    assert_eq!(error.kind(), Kind::Relation);
    bench.sql("alter table items rename tariff to plan").await;
    assert_eq!(leader.values(&["[1]"]).await, [Some("5".to_owned())]);

    bench.sql("revoke select on items from pg2kv_daemon").await;
    assert_eq!(
        leader.read(&["[1]"]).await.unwrap_err().error.kind(),
        Kind::Relation
    );
    bench
        .sql("grant select on items to pg2kv_daemon; alter table items enable row level security")
        .await;
    let error = leader.read(&["[1]"]).await.unwrap_err().error;
    assert_eq!(error.kind(), Kind::Relation);
    assert!(error.to_string().contains("bypassrls"), "{error}");
}

#[tokio::test]
async fn a_sync_whose_table_is_missing_does_not_stop_the_others() {
    let bench = Bench::new().await;
    bench.sql("insert into items values (1, 'a')").await;
    let gone = SyncSource {
        id: SyncId(1),
        name: "gone".into(),
        table: "public.gone".into(),
        ..items("id")
    };
    let leader = bench.lead(&[items("plan"), gone]).await;
    assert_eq!(leader.values(&["[1]"]).await, [Some("a".to_owned())]);
    let error = leader
        .session
        .prepare(&claim_all(SyncId(1), vec![key("[1]")]))
        .await
        .unwrap_err();
    assert_eq!((error.claim, error.error.kind()), (None, Kind::Relation));
    assert!(error.to_string().contains("public.gone"), "{error}");
}

#[tokio::test]
async fn expressions_cannot_write() {
    let bench = Bench::new().await;
    bench
        .sql(
            "insert into items values (1); grant insert on items to pg2kv_daemon; \
               create function public.write() returns text language sql volatile \
               as 'insert into public.items values (99) returning ''x'''",
        )
        .await;
    let leader = bench.lead(&[items("public.write()")]).await;
    let error = leader.read(&["[1]"]).await.unwrap_err().error;
    assert_eq!(error.kind(), Kind::Row);
    assert!(error.to_string().contains("read-only"), "{error}");
    assert_eq!(bench.number("select count(*) from items").await, 1);
}

#[tokio::test]
async fn columns_become_exact_json_in_order_and_the_filter_decides() {
    let bench = Bench::new().await;
    bench
        .sql("alter table items add n numeric, add f float8, add at timestamptz, add j jsonb, add b bytea;\
              insert into items values (1, 'a\"b', null, 12345678901234567890.10, 'NaN', \
                '2026-01-02 03:04:05.6+02', '{\"b\":1, \"a\":2}', '\\x00ff'), (2, null, 1, 0, 0, now(), null, null), (3, 'x', 0, 0, 0, now(), null, null)")
        .await;
    let columns = ["plan", "n", "f", "at", "j", "b", "extra"];
    let mut sync = SyncSource {
        value: ValueSql::Columns(
            columns
                .map(|name| (name.into(), format!("{name}!")))
                .to_vec(),
        ),
        ..items("")
    };
    // A comment ends with its line; NULL is not published.
    sync.filter = Some("id < 3 and coalesce(extra, 1) = 1 -- and so on".into());
    let leader = bench.lead(&[sync]).await;
    let values = leader.values(&["[3]", "[1]", "[2]", "[4]"]).await;
    assert_eq!(
        values[1].as_deref().unwrap(),
        "{\"plan!\":\"a\\\"b\",\"n!\":12345678901234567890.10,\"f!\":\"NaN\",\
         \"at!\":\"2026-01-02T01:04:05.6+00:00\",\"j!\":{\"a\": 2, \"b\": 1},\
         \"b!\":\"\\\\x00ff\",\"extra!\":null}"
    );
    assert!(values[2].is_some());
    assert_eq!((&values[0], &values[3]), (&None, &None));
}

#[tokio::test]
async fn dead_letters_are_kept_once_and_cleared() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    let letter = |id: &str, reason, detail: &str| DeadLetter {
        sync: SyncId(0),
        key: key(id),
        poison: Poison::new(reason, detail).of(KvName::new("k").unwrap()),
    };
    let request = SettleRequest {
        dead: vec![
            letter("[1]", PoisonReason::RowError, "first"),
            letter("[1]", PoisonReason::KeyTooLong, "last\0word"),
            letter("[2]", PoisonReason::RowError, ""),
        ],
        cleared: vec![(SyncId(0), key("[1]")), (SyncId(0), key("[9]"))],
        ..SettleRequest::default()
    };
    leader.session.settle(&request).await.unwrap();
    leader.session.settle(&request).await.unwrap();
    assert_eq!(bench.number("select count(*) from pg2kv.dead_letter where detail = 'lastword' and reason = 'key_too_long' and key = '[1]'").await, 1);
    let cleared = SettleRequest {
        cleared: vec![(SyncId(0), key("[1]"))],
        ..SettleRequest::default()
    };
    leader.session.settle(&cleared).await.unwrap();
    let gauges = leader.session.gauges().await.unwrap();
    assert_eq!(
        gauges.dead_letters,
        [(SyncId(0), "row_error".to_owned(), 1)]
    );
}

#[tokio::test]
async fn a_backfill_is_begun_moved_with_claims_and_ended() {
    let bench = Bench::new().await;
    bench.sql("insert into items select generate_series(1, 5); analyze items; select pg2kv.resync('items')").await;
    let leader = bench.lead(&[items("id")]).await;
    let marker = leader.fetch(Awake).await.changes.pop().unwrap();
    leader
        .session
        .start_backfill(SyncId(0), "resync", &[marker.id])
        .await
        .unwrap();
    assert_eq!(
        bench
            .number("select count(*) from pg2kv.outbox where key is null")
            .await,
        0
    );

    let walked = leader.session.walk(SyncId(0), None, 2).await.unwrap();
    assert_eq!(walked.keys, [key("[1]"), key("[2]")]);
    let step = BackfillStep::Rows {
        position: walked.position.unwrap(),
        done: 2,
    };
    let request = ClaimRequest {
        backfill: Some(step),
        ..claim_all(SyncId(0), walked.keys)
    };
    leader.session.prepare(&request).await.unwrap();
    let persisted = || async {
        let syncs = [items("id")];
        let mut again = Session::open(&bench.settings, &syncs, leader.epoch)
            .await
            .unwrap();
        again.2.backfills.pop()
    };
    let backfill = persisted().await.unwrap();
    assert_eq!(
        (
            backfill.phase,
            backfill.position.as_deref(),
            backfill.done,
            backfill.estimate
        ),
        (BackfillPhase::Rows, Some("[2]"), 2, Some(5))
    );
    assert_eq!(backfill.reason, "resync");

    leader
        .session
        .advance_backfill(SyncId(0), &BackfillStep::EnterKeys { done: 5 })
        .await
        .unwrap();
    let step = BackfillStep::Keys {
        cursor: "c1".into(),
        done: 7,
    };
    leader
        .session
        .advance_backfill(SyncId(0), &step)
        .await
        .unwrap();
    let backfill = persisted().await.unwrap();
    assert_eq!(
        (backfill.phase, backfill.cursor.as_deref(), backfill.done),
        (BackfillPhase::Keys, Some("c1"), 7)
    );
    leader
        .session
        .advance_backfill(SyncId(0), &BackfillStep::Done)
        .await
        .unwrap();
    assert_eq!(persisted().await, None);
    assert_eq!(
        bench
            .number("select count(*) from pg2kv.sync where backfilled_at is not null")
            .await,
        1
    );
}

/// Claim and read go at the same time: a claim takes only rows that the fetch has seen.
#[tokio::test]
async fn a_change_after_the_read_keeps_its_row_whatever_the_claim_takes() {
    let bench = Bench::new().await;
    bench.sql("insert into items values (1, 'old')").await;
    let leader = bench.lead(&[items("plan")]).await;
    let fetched = leader.fetch(FetchMode::Awake).await;
    let fence = bench.db.connect().await;
    fence
        .batch_execute("begin; select from pg2kv.lease for update")
        .await
        .unwrap();
    let (seen, mut rows) = tokio::sync::mpsc::unbounded_channel();
    let request = ClaimRequest {
        ids: fetched.changes.iter().map(|change| change.id).collect(),
        ..claim_all(SyncId(0), vec![key("[1]")])
    };
    let session = leader.session;
    let prepared = tokio::spawn(async move {
        let make = |row| {
            seen.send(()).unwrap();
            row
        };
        let claimed = session.prepare_with(&request, make).await;
        (session, claimed)
    });
    soon(rows.recv())
        .await
        .expect("the read does not wait for the claim");
    bench.sql("update items set plan = 'new'").await;
    fence.batch_execute("commit").await.unwrap();
    let (session, claimed) = soon(prepared).await.unwrap();
    let claimed = claimed.unwrap();
    assert!(claimed.claim.is_some());
    assert_eq!(text(&claimed.rows[0]), Some("old"));
    let later = session.fetch(FetchMode::Awake, 100).await.unwrap();
    assert_eq!(texts(&later.changes), ["[1]"]);
}

/// The daemon runs these on tasks of their own.
#[test]
fn calls_can_be_spawned() {
    fn spawnable(_: impl Send) {}
    let _ = |session: &'static Session,
             claim: &'static ClaimRequest,
             settle: &'static SettleRequest| {
        spawnable(session.prepare(claim));
        spawnable(session.settle(settle));
        spawnable(session.compact(&[]));
        spawnable(session.walk(SyncId(0), None, 1));
        spawnable(session.start_backfill(SyncId(0), "", &[]));
        spawnable(session.advance_backfill(SyncId(0), &BackfillStep::Done));
        spawnable(session.gauges());
        spawnable(session.closed());
    };
    let _ = |settings: &'static Settings, syncs: &'static [SyncSource]| {
        spawnable(Candidate::connect(settings));
        spawnable(Session::open(settings, syncs, Epoch(0)));
        spawnable(check(settings, syncs));
    };
}
