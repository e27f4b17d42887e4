//! A database with a daemon, and somebody in it who has a schema of her own and nothing else.

use std::future::Future;
use std::time::Duration;

use pg2kv::change::{DraftValue, Key, SyncId, Value};
use pg2kv::ledger::ClaimRequest;
use pg2kv::source::lease::Candidate;
use pg2kv::source::session::Session;
use pg2kv::source::{Attributes, Doorbell, Settings, SyncSource, ValueSql, parse_url};
use tokio_postgres::Client;

use crate::support::postgres::{Database, Server};

/// Longest wait for an event in these tests.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const INSTALL: &str = include_str!("../../deploy/sql/install.sql");

/// A database with the SQL kit and `public.items` of the superuser, a login for the daemon, and `mallory`
/// with a schema of hers and nothing else.
pub(super) struct Victim {
    pub(super) db: Database,
    pub(super) admin: Client,
    pub(super) mallory: Client,
    pub(super) settings: Settings,
}

impl Victim {
    pub(super) async fn on(server: Server) -> Self {
        let db = Database::create(server).await;
        let admin = db.connect().await;
        admin.batch_execute(INSTALL).await.unwrap();
        admin
            .batch_execute(
                "do $$ begin create role daemon login in role pg2kv_daemon; \
                 exception when duplicate_object then null; end $$;\
                 do $$ begin create role mallory login; \
                 exception when duplicate_object then null; end $$;\
                 create schema mallory authorization mallory;\
                 create table public.items (id bigint primary key, plan text);\
                 select pg2kv.watch('public.items', sync => 'items', key => '{id}');\
                 insert into public.items values (1, 'paid'); delete from pg2kv.outbox;",
            )
            .await
            .unwrap();
        let mallory = db.connect_as("mallory").await;
        let settings = settings(&db.url_as("daemon"));
        Self {
            db,
            admin,
            mallory,
            settings,
        }
    }

    pub(super) async fn lead(&self, syncs: &[SyncSource]) -> (Candidate, Session, Doorbell) {
        let mut candidate = Candidate::connect(&self.settings).await.unwrap();
        let epoch = candidate.campaign("victim").await.unwrap();
        let epoch = epoch.expect("nobody else leads");
        let (session, doorbell, _) = Session::open(&self.settings, syncs, epoch).await.unwrap();
        (candidate, session, doorbell)
    }

    pub(super) async fn number(&self, sql: &str) -> i64 {
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }
}

pub(super) fn settings(url: &str) -> Settings {
    let (config, tls) = parse_url(url, None, false).unwrap();
    Settings {
        config,
        password: None,
        tls,
        schema: "pg2kv".to_owned(),
        doorbell: true,
        connect_timeout: PATIENCE,
        statement_timeout: PATIENCE,
        lease_ttl: Duration::from_secs(60),
        poll_interval: Duration::from_secs(600),
    }
}

pub(super) fn sync(id: u16, name: &str, table: &str, value: &str) -> SyncSource {
    SyncSource {
        id: SyncId(id),
        name: name.to_owned(),
        table: table.to_owned(),
        key_columns: vec!["id".to_owned()],
        value: ValueSql::Expression(value.to_owned()),
        filter: None,
        attributes: Attributes::default(),
        collect: None,
        related: vec![],
        configured: "{}".to_owned(),
    }
}

/// Claims and reads one key; its document as text.
pub(super) async fn read(session: &Session, sync: SyncId, key: &str) -> Option<String> {
    let request = ClaimRequest {
        sync,
        claim: vec![0],
        keys: vec![Key::new(key)],
        ids: vec![],
        backfill: None,
        max_bytes: 1_000_000,
    };
    let claimed = session.prepare(&request).await.unwrap();
    assert!(claimed.claim.is_some());
    match claimed.rows.into_iter().next()?.draft?.value {
        DraftValue::Whole(Value::Text(text)) => Some(String::from_utf8(text.to_vec()).unwrap()),
        other => panic!("{other:?}"),
    }
}

/// Awaits an event that must come.
pub(super) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event)
        .await
        .expect("it must happen soon")
}
