//! Walks go one chunk ahead of what is claimed.

use pg2kv::change::SyncId;
use pg2kv::ledger::{BackfillStep, ClaimRequest};
use pg2kv::source::session::Session;

use super::{Bench, claim_all, items, soon};
use crate::support::wait;

const SYNC: SyncId = SyncId(0);

async fn walk(session: &Session, after: Option<&str>, limit: usize) -> Vec<i64> {
    let walked = soon(session.walk(SYNC, after, limit)).await.unwrap();
    let keys = walked.keys.iter().map(|key| key.as_str());
    keys.map(|key| key.trim_matches(['[', ']']).parse().unwrap())
        .collect()
}

/// Claims the first ten rows, which begins the walk to the next ten.
async fn claim_ten(session: &Session) {
    let walked = soon(session.walk(SYNC, None, 10)).await.unwrap();
    let position = walked.position.unwrap();
    assert_eq!(position, "[10]");
    let request = ClaimRequest {
        backfill: Some(BackfillStep::Rows { position, done: 10 }),
        ..claim_all(SYNC, walked.keys)
    };
    session.prepare(&request).await.unwrap();
}

#[tokio::test]
async fn the_next_chunk_is_walked_while_one_is_written() {
    let bench = Bench::new().await;
    bench
        .sql("insert into items select i, 'p' from generate_series(1, 40) i")
        .await;
    // Whoever looks at a row leaves a lock that tells it.
    let mut sync = items("plan");
    sync.filter = Some("pg_try_advisory_lock(id)".to_owned());
    let leader = bench.lead(&[sync]).await;
    let session = &leader.session;

    claim_ten(session).await;
    wait::until("a look at the 20th row", async || {
        let looks = "select count(*) from pg_locks as l join pg_database as d on d.oid = l.database \
                     where d.datname = current_database() and l.locktype = 'advisory' and l.objid = 20";
        (bench.number(looks).await > 0).then_some(())
    })
    .await;
    // Nobody can read the table now, so this was read before.
    let mut admin = bench.db.connect().await;
    let locked = admin.transaction().await.unwrap();
    locked
        .batch_execute("lock table items in access exclusive mode")
        .await
        .unwrap();
    assert_eq!(walk(session, Some("[10]"), 10).await, ids(11..21));
    locked.rollback().await.unwrap();

    // It serves once.
    bench.sql("delete from items where id = 11").await;
    assert_eq!(walk(session, Some("[10]"), 10).await, ids(12..22));

    // And only whoever asks for just that.
    claim_ten(session).await;
    assert_eq!(walk(session, Some("[20]"), 10).await, ids(21..31));
    claim_ten(session).await;
    assert_eq!(walk(session, Some("[10]"), 5).await, ids(12..17));
}

fn ids(ids: std::ops::Range<i64>) -> Vec<i64> {
    ids.collect()
}
