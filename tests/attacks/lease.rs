//! Advisory locks belong to whoever takes them first.

use pg2kv::source::lease::Candidate;

use super::victim::{Victim, soon};
use crate::support::postgres::Server;

/// The locks of the epochs to come, as the source says how they are made.
const TAKE: &str = "\
    select count(pg_advisory_lock((n.oid::int8 << 32) | e.epoch)) from pg_namespace as n, \
     generate_series(0, 400) as e(epoch) where n.nspname = 'pg2kv'";

async fn takes_locks(server: Server) {
    let victim = Victim::on(server).await;
    victim.mallory.query_one(TAKE, &[]).await.unwrap();
    let mut first = Candidate::connect(&victim.settings).await.unwrap();
    let mut second = Candidate::connect(&victim.settings).await.unwrap();
    let epoch = first.campaign("first").await.unwrap();
    let epoch = epoch.expect("a stranger's lock keeps nobody from leading");
    assert!(epoch.0 > 400, "the locks up to there are taken: {epoch:?}");
    assert_eq!(second.campaign("second").await.unwrap(), None);
    first.heartbeat(epoch).await.unwrap();
    // She waits for the lock of the epoch, which she sees in pg_locks, and gets it.
    let waits = victim.db.connect_as("mallory").await;
    let lock = format!(
        "select pg_advisory_lock((n.oid::int8 << 32) | {}) from pg_namespace as n \
         where n.nspname = 'pg2kv'",
        epoch.0
    );
    let waiting = tokio::spawn(async move {
        waits.query(&lock, &[]).await.unwrap();
        waits
    });
    first.release().await;
    let _holder = soon(waiting).await.unwrap();
    let next = second.campaign("second").await.unwrap();
    assert!(next > Some(epoch));
    second.heartbeat(next.unwrap()).await.unwrap();
    let status = pg2kv::source::admin::Admin::connect(&victim.settings).await;
    let leader = status.unwrap().leader().await.unwrap().unwrap();
    assert!(leader.alive);
    assert_eq!(leader.holder, "second");
    second.release().await;
    let ended = "select count(*) from pg_locks where locktype = 'advisory' and granted and pid in \
         (select pid from pg_stat_activity where usename = 'daemon' and datname = current_database())";
    soon(async { while victim.number(ended).await > 0 {} }).await;
    // She takes the lock of the epoch that was led: it does not make a leader.
    victim.mallory.query_one(TAKE, &[]).await.unwrap();
    let status = pg2kv::source::admin::Admin::connect(&victim.settings).await;
    assert!(!status.unwrap().leader().await.unwrap().unwrap().alive);
}

#[tokio::test]
async fn a_stranger_who_takes_the_locks_keeps_nobody_from_leading() {
    takes_locks(Server::Installed).await;
}

#[tokio::test]
async fn a_stranger_who_takes_the_locks_keeps_nobody_from_leading_on_postgresql_18() {
    takes_locks(Server::Newer).await;
}
