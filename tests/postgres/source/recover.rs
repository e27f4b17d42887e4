//! What a new leader finds, and whether this is still the same database.

use pg2kv::change::SyncId;
use pg2kv::ledger::BackfillStep;
use pg2kv::source::Kind;
use pg2kv::source::session::Session;

use super::{Bench, claim_all, items, key};

#[tokio::test]
async fn a_new_leader_finds_claims_of_all_epochs_and_new_syncs() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    assert_eq!(leader.recovered.new_syncs, [SyncId(0)]);
    assert_eq!(
        (
            leader.recovered.claims.len(),
            leader.recovered.identity_changed
        ),
        (0, false)
    );
    leader
        .session
        .prepare(&claim_all(SyncId(0), vec![key("[1]"), key("[\"é\"]")]))
        .await
        .unwrap_err();
    leader
        .session
        .prepare(&claim_all(SyncId(0), vec![key("[3]")]))
        .await
        .unwrap();
    leader
        .session
        .start_backfill(SyncId(0), "new", &[])
        .await
        .unwrap();
    bench.sql("insert into pg2kv.dead_letter values ('items', '[5]', null, 'row_error', ''), ('other', '[5]', null, 'x', '')").await;
    bench
        .sql("insert into pg2kv.claim (epoch, sync, keys) values (0, 'unconfigured', '{}')")
        .await;
    leader.candidate.release().await;

    let next = super::soon(async {
        loop {
            let mut candidate = pg2kv::source::lease::Candidate::connect(&bench.settings)
                .await
                .unwrap();
            if let Some(epoch) = candidate.campaign("next").await.unwrap() {
                return Session::open(&bench.settings, &[items("id")], epoch)
                    .await
                    .unwrap();
            }
        }
    })
    .await;
    let recovered = next.2;
    let claims: Vec<_> = recovered
        .claims
        .iter()
        .map(|(_, sync, keys)| (*sync, keys.clone()))
        .collect();
    assert_eq!(
        claims,
        [
            (SyncId(0), vec![key("[1]"), key("[\"é\"]")]),
            (SyncId(0), vec![key("[3]")])
        ]
    );
    assert_eq!(recovered.dead, [(SyncId(0), 1)]);
    assert_eq!(recovered.backfills.len(), 1);
    assert_eq!(recovered.new_syncs, [], "its backfill has begun");
    next.0
        .advance_backfill(SyncId(0), &BackfillStep::Done)
        .await
        .unwrap();
}

#[tokio::test]
async fn another_identity_walks_everything_again() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    let identity = leader.recovered.identity.clone();
    assert_eq!(identity.timeline, 1);
    leader
        .session
        .start_backfill(SyncId(0), "new", &[])
        .await
        .unwrap();
    leader
        .session
        .advance_backfill(SyncId(0), &BackfillStep::Done)
        .await
        .unwrap();
    let open = || async {
        Session::open(&bench.settings, &[items("id")], leader.epoch)
            .await
            .unwrap()
            .2
    };
    let again = open().await;
    assert_eq!(
        (
            again.identity_changed,
            again.backfills.len(),
            again.new_syncs.len()
        ),
        (false, 0, 0)
    );
    assert_eq!(again.identity, identity);

    // As after a promotion: the write-ahead log has another timeline than the one that was stored.
    bench
        .sql("update pg2kv.meta set identity = jsonb_set(identity, '{timeline}', '7')")
        .await;
    let changed = open().await;
    assert!(changed.identity_changed);
    assert_eq!(
        (
            changed.backfills[0].reason.as_str(),
            changed.backfills[0].position.clone()
        ),
        ("identity", None)
    );
    let settled = open().await;
    assert_eq!(
        (settled.identity_changed, settled.backfills.len()),
        (false, 1),
        "stored once, the walk stays"
    );

    bench.sql("update pg2kv.lease set epoch = epoch + 1").await;
    let error = Session::open(&bench.settings, &[items("id")], leader.epoch)
        .await
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Fenced);
}
