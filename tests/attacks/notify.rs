//! The notification queue is one for the whole cluster, and anybody may fill it.

use std::time::Duration;

use pg2kv::change::{Changed, Key};
use pg2kv::ledger::FetchMode;
use pg2kv::throwaway::Postgres;

use super::victim::{soon, sync};
use crate::support::postgres::{Server, connect};

/// PostgreSQL 18 with a small queue: a session listens in an open transaction, another one notifies.
#[tokio::test]
async fn a_full_notification_queue_fails_no_writer() {
    let mut options = Server::Newer.options();
    options
        .settings
        .push(("max_notify_queue_pages".into(), "64".into()));
    let server = tokio::task::spawn_blocking(|| Postgres::start(options).unwrap())
        .await
        .unwrap();
    let admin = connect(&server.admin_url()).await;
    admin.batch_execute(super::victim::INSTALL).await.unwrap();
    admin
        .batch_execute(
            "create role daemon login in role pg2kv_daemon; create role mallory login;\
             create table public.items (id bigint primary key, plan text);\
             select pg2kv.watch('public.items', sync => 'items', key => '{id}')",
        )
        .await
        .unwrap();
    let mut settings = super::victim::settings(&server.url_as("daemon", "postgres"));
    settings.poll_interval = Duration::from_secs(10);
    let mut candidate = pg2kv::source::lease::Candidate::connect(&settings)
        .await
        .unwrap();
    let epoch = candidate.campaign("daemon").await.unwrap().unwrap();
    let syncs = [sync(0, "items", "public.items", "plan")];
    let (session, _doorbell, _) = pg2kv::source::Session::open(&settings, &syncs, epoch)
        .await
        .unwrap();
    let asleep = session.fetch(FetchMode::FallingAsleep, 10).await.unwrap();
    assert_eq!(asleep.notify_queue_full, Some(false));
    session.fetch(FetchMode::Awake, 10).await.unwrap();

    let url = server.url_as("mallory", "postgres");
    let (listens, notifies) = (connect(&url).await, connect(&url).await);
    listens.batch_execute("listen flood").await.unwrap();
    listens.batch_execute("begin; select 1").await.unwrap();
    let fill = "select pg_notify('flood', repeat('x', 7000) || i) from generate_series(1, 10) as i";
    let usage = "select pg_notification_queue_usage()";
    while admin.query_one(usage, &[]).await.unwrap().get::<_, f64>(0) <= 0.5 {
        notifies.batch_execute(fill).await.unwrap();
    }
    let crowded = session.fetch(FetchMode::FallingAsleep, 10).await.unwrap();
    assert_eq!(crowded.notify_queue_full, Some(true));
    while notifies.batch_execute(fill).await.is_ok() {}
    for id in 1..=20_i64 {
        admin
            .execute("insert into public.items values ($1, 'x')", &[&id])
            .await
            .expect("a writer does not feel it");
    }
    let fetched = session.fetch(FetchMode::FallingAsleep, 100).await.unwrap();
    assert_eq!(fetched.notify_queue_full, Some(true));
    assert_eq!(fetched.changes.len(), 20);
    assert_eq!(fetched.changes[0].what, Changed::Key(Key::new("[1]")));

    listens.batch_execute("commit").await.unwrap();
    soon(async {
        loop {
            let fetched = session.fetch(FetchMode::FallingAsleep, 10).await.unwrap();
            if fetched.notify_queue_full == Some(false) {
                break;
            }
        }
    })
    .await;
}
