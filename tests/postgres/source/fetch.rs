//! Fetch: late commits, limits, cost.

use pg2kv::change::OutboxId;
use pg2kv::ledger::FetchMode::{Awake, FallingAsleep};
use pg2kv::source::Kind;

use super::{Bench, items, texts};

#[tokio::test]
async fn late_commits_with_smaller_ids_are_fetched_once() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    let late = bench.db.connect().await;
    let later = bench.db.connect().await;

    late.batch_execute("begin; insert into items values (1)")
        .await
        .unwrap();
    later
        .batch_execute("begin; insert into items values (2)")
        .await
        .unwrap();
    bench
        .sql("begin; insert into items values (3); rollback; insert into items values (4)")
        .await;
    assert_eq!(texts(&leader.fetch(Awake).await.changes), ["[4]"]);
    assert_eq!(texts(&leader.fetch(Awake).await.changes), [""; 0]);
    later.batch_execute("commit").await.unwrap();
    assert_eq!(texts(&leader.fetch(Awake).await.changes), ["[2]"]);
    bench.sql("insert into items values (5)").await;
    assert_eq!(texts(&leader.fetch(Awake).await.changes), ["[5]"]);
    late.batch_execute("commit").await.unwrap();
    assert_eq!(texts(&leader.fetch(FallingAsleep).await.changes), ["[1]"]);
    assert_eq!(texts(&leader.fetch(FallingAsleep).await.changes), [""; 0]);
}

#[tokio::test]
async fn a_transaction_in_flight_when_the_session_opens_is_fetched() {
    let bench = Bench::new().await;
    let late = bench.db.connect().await;
    bench
        .sql("insert into items select generate_series(1, 5)")
        .await;
    late.batch_execute("begin; insert into items values (6)")
        .await
        .unwrap();
    bench.sql("insert into items values (7)").await;
    let leader = bench.lead(&[items("id")]).await;
    let first = leader.session.fetch(Awake, 4).await.unwrap();
    assert_eq!(
        (texts(&first.changes), first.more),
        (
            vec!["[1]".into(), "[2]".into(), "[3]".into(), "[4]".into()],
            true
        )
    );
    let second = leader.session.fetch(Awake, 4).await.unwrap();
    assert_eq!(
        (texts(&second.changes), second.more),
        (vec!["[5]".into(), "[7]".into()], false)
    );
    late.batch_execute("commit").await.unwrap();
    assert_eq!(texts(&leader.fetch(Awake).await.changes), ["[6]"]);
}

#[tokio::test]
async fn a_prepared_transaction_is_not_forgotten() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    let writer = bench.db.connect().await;
    writer
        .batch_execute("begin; insert into items values (1)")
        .await
        .unwrap();
    bench.sql("insert into items values (2)").await;
    assert_eq!(texts(&leader.fetch(Awake).await.changes), ["[2]"]);
    assert_eq!(texts(&leader.fetch(Awake).await.changes), [""; 0]);
    writer
        .batch_execute("prepare transaction 'late'")
        .await
        .unwrap();
    for _ in 0..3 {
        assert_eq!(texts(&leader.fetch(Awake).await.changes), [""; 0]);
    }
    assert!(leader.fetch(FallingAsleep).await.writers);
    writer
        .batch_execute("commit prepared 'late'")
        .await
        .unwrap();
    assert_eq!(texts(&leader.fetch(Awake).await.changes), ["[1]"]);
}

#[tokio::test]
async fn rows_of_other_syncs_are_left_alone_and_markers_mean_everything() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    bench
        .sql("insert into pg2kv.outbox (sync, key) values ('other', '[1]'); truncate items")
        .await;
    let fetched = leader.fetch(Awake).await;
    assert_eq!(
        (texts(&fetched.changes), fetched.ignored),
        (vec!["*".to_owned()], 1)
    );
    assert_eq!(leader.fetch(Awake).await.ignored, 0);
    assert_eq!(bench.number("select count(*) from pg2kv.outbox").await, 2);
}

#[tokio::test]
async fn compact_deletes_by_id_and_only_for_the_leader() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    bench
        .sql("insert into items values (1); update items set extra = 1")
        .await;
    let changes = leader.fetch(Awake).await.changes;
    assert_eq!(changes.len(), 2);
    leader.session.compact(&[changes[0].id]).await.unwrap();
    assert_eq!(
        bench.number("select min(id) from pg2kv.outbox").await,
        changes[1].id.0
    );

    bench.sql("update pg2kv.lease set epoch = epoch + 1").await;
    let error = leader
        .session
        .compact(&[OutboxId(changes[1].id.0)])
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Fenced);
    assert_eq!(bench.number("select count(*) from pg2kv.outbox").await, 1);
}

/// 100,000 dead rows that a snapshot of somebody else keeps, and a gap that a writer keeps open.
#[tokio::test]
async fn a_fetch_costs_the_same_whatever_is_dead() {
    /// The index's root and leaf, and the row's page; wading through the dead takes thousands.
    const BLOCKS_PER_FETCH: i64 = 12;
    let bench = Bench::new().await;
    // What a vacuum reads is counted with what the fetches read.
    bench
        .sql("alter table pg2kv.outbox set (autovacuum_enabled = off)")
        .await;
    let leader = bench.lead(&[items("id")]).await;
    let old = bench.db.connect().await;
    bench.sql("insert into items values (1)").await;
    old.batch_execute("begin isolation level repeatable read; select count(*) from pg2kv.outbox")
        .await
        .unwrap();
    let open = bench.db.connect().await;
    open.batch_execute("begin; insert into items values (2)")
        .await
        .unwrap();
    bench
        .sql(
            "insert into pg2kv.outbox (sync, key) \
             select 'items', '[1]' from generate_series(1, 100000)",
        )
        .await;
    loop {
        let fetched = leader.session.fetch(Awake, 20_000).await.unwrap();
        let ids: Vec<OutboxId> = fetched.changes.iter().map(|change| change.id).collect();
        leader.session.compact(&ids).await.unwrap();
        if !fetched.more {
            break;
        }
    }
    // A session reports what it read about once a second, when a statement ends, and others report
    // late what they did before. So: fetch from one report to the next, a few times; the cheapest
    // stretch has nothing but fetches in it, and wading through the dead would show in each.
    let blocks = "select sum(idx_blks_hit + idx_blks_read + heap_blks_hit + heap_blks_read)::int8 \
                  from pg_statio_all_tables where relid = 'pg2kv.outbox'::regclass";
    let mut cheapest = i64::MAX;
    for stretch in 0..5 {
        let before = bench.number(blocks).await;
        let mut fetches = 0;
        let after = super::soon(async {
            loop {
                leader.fetch(Awake).await;
                fetches += 1;
                let now = bench.number(blocks).await;
                if now > before {
                    return now;
                }
            }
        })
        .await;
        // The first one may begin in the middle.
        if stretch > 0 {
            cheapest = cheapest.min((after - before) / fetches);
        }
    }
    assert!(
        cheapest <= BLOCKS_PER_FETCH,
        "{cheapest} blocks for each fetch"
    );
    open.batch_execute("commit").await.unwrap();
    assert_eq!(texts(&leader.fetch(Awake).await.changes), ["[2]"]);
    old.batch_execute("commit").await.unwrap();
}

#[tokio::test]
async fn without_the_doorbell_no_bell_is_set_and_nothing_listens() {
    let mut bench = Bench::new().await;
    bench.settings.doorbell = false;
    let mut leader = bench.lead(&[items("id")]).await;
    assert!(!leader.fetch(FallingAsleep).await.writers);
    assert_eq!(bench.number("select last_value from pg2kv.bell").await, 0);
    let listening = "select count(*) from pg_stat_activity where query ilike 'listen%'";
    assert_eq!(bench.number(listening).await, 0);
    // A transaction that changes a watched row can be prepared.
    let writer = bench.db.connect().await;
    writer
        .batch_execute("begin; insert into items values (1); prepare transaction 'a'")
        .await
        .unwrap();
    writer.batch_execute("commit prepared 'a'").await.unwrap();
    assert_eq!(texts(&leader.fetch(Awake).await.changes), ["[1]"]);
    let silent = futures_util::FutureExt::now_or_never(leader.doorbell.rung());
    assert!(
        silent.is_none(),
        "a doorbell that is off neither rings nor ends"
    );
}
