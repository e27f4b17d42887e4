//! What an audit leaves in the ledger: keys to be written again, and that it was done.

use pg2kv::change::{Epoch, SyncId};
use pg2kv::ledger::FetchMode;
use pg2kv::source::Kind;
use pg2kv::source::admin::Admin;
use pg2kv::source::audit::Auditor;

use super::{Bench, items, key, texts};

#[tokio::test]
async fn keys_to_be_written_again_are_fetched_as_such() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    let sync = items("id");
    let auditor = Auditor::connect(&bench.settings).await.unwrap();
    let keys = [key("[1]"), key("[\"}\"]")];
    auditor
        .write_again(leader.epoch, &sync, &keys)
        .await
        .unwrap();
    let admin = Admin::connect(&bench.settings).await.unwrap();
    admin.write_again("items", &[&key("[2]")]).await.unwrap();
    auditor.write_all_again(leader.epoch, &sync).await.unwrap();
    // Of a newer version, and of no version.
    bench
        .sql("insert into pg2kv.outbox (sync, key) values ('items', '{\"other\": [1]}'), ('items', '7')")
        .await;
    let fetched = leader.fetch(FetchMode::Awake).await;
    assert_eq!(
        texts(&fetched.changes),
        ["again [1]", "again [\"}\"]", "again [2]", "*"]
    );
    assert_eq!(fetched.ignored, 2);
    assert_eq!(bench.number("select count(*) from pg2kv.outbox").await, 6);
}

#[tokio::test]
async fn a_leader_that_was_replaced_leaves_nothing() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    let old = Epoch(leader.epoch.0 - 1);
    let auditor = Auditor::connect(&bench.settings).await.unwrap();
    let again = auditor.write_again(old, &items("id"), &[key("[1]")]).await;
    assert_eq!(again.unwrap_err().kind(), Kind::Fenced);
    let done = auditor.audited(old, &items("id"), "interval").await;
    assert_eq!(done.unwrap_err().kind(), Kind::Fenced);
    let left = "select (select count(*) from pg2kv.outbox)
        + (select count(*) from pg2kv.sync where audited_at is not null)";
    assert_eq!(bench.number(left).await, 0);
}

#[tokio::test]
async fn what_is_owed_ends_with_the_audit_that_began_for_it() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    let found = &leader.recovered.audits[0];
    assert_eq!((found.sync, found.owed.as_deref()), (SyncId(0), None));
    assert!(found.age.as_secs() < 3_600, "since it was watched");
    bench
        .sql("update pg2kv.sync set audit_owed = 'one', audited_at = now() - interval '3 days'")
        .await;
    let auditor = Auditor::connect(&bench.settings).await.unwrap();
    let owed = "select count(*) from pg2kv.sync where audit_owed = 'one'";
    let sync = items("id");
    auditor
        .audited(leader.epoch, &sync, "interval")
        .await
        .unwrap();
    assert_eq!(bench.number(owed).await, 1, "it came up meanwhile");
    auditor.audited(leader.epoch, &sync, "one").await.unwrap();
    assert_eq!(bench.number(owed).await, 0);
    let recent = "select count(*) from pg2kv.sync where audited_at > now() - interval '1 h'";
    assert_eq!(bench.number(recent).await, 1);
}
