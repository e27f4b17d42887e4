//! The Postgres edge against real servers.

mod audit;
mod bell;
mod check;
mod claim;
mod collect;
mod encoding;
mod expand;
mod fetch;
mod gate;
mod keys;
mod lease;
mod password;
mod recover;
mod run;
mod tls;
mod values;
mod walk;

use std::future::Future;
use std::time::Duration;

use pg2kv::change::{Change, Changed, DraftValue, Epoch, KV_VALUE_MAX_BYTES, Key, SyncId, Value};
use pg2kv::ledger::{ClaimRequest, FetchMode, Fetched};
use pg2kv::source::doorbell::Doorbell;
use pg2kv::source::lease::Candidate;
use pg2kv::source::session::{Claimed, PrepareError, Recovered, Row, Session};
use pg2kv::source::{Attributes, Settings, SyncSource, ValueSql, parse_url};
use tokio_postgres::Client;

use crate::support::postgres::{Database, Server};

/// Longest wait for an event in these tests.
const PATIENCE: Duration = Duration::from_secs(10);

const INSTALL: &str = include_str!("../../../deploy/sql/install.sql");

/// A database with the SQL kit, a watched table `public.items`, and a login role for the daemon.
struct Bench {
    db: Database,
    admin: Client,
    settings: Settings,
}

/// What a leader holds.
struct Leader {
    candidate: Candidate,
    session: Session,
    doorbell: Doorbell,
    recovered: Recovered,
    epoch: Epoch,
}

impl Bench {
    async fn new() -> Self {
        Self::on(Server::Installed).await
    }

    async fn on(server: Server) -> Self {
        Self::of(Database::create(server).await).await
    }

    /// In a database of this encoding.
    async fn encoded(encoding: &str) -> Self {
        Self::of(Database::create_in(Server::Installed, encoding).await).await
    }

    async fn of(db: Database) -> Self {
        let admin = db.connect().await;
        admin.batch_execute(INSTALL).await.unwrap();
        admin
            .batch_execute(
                "do $$ begin create role daemon login in role pg2kv_daemon; \
                 exception when duplicate_object then null; end $$;\
                 create table public.items (id bigint primary key, plan text, extra int);\
                 select pg2kv.watch('public.items', sync => 'items', key => '{id}');\
                 delete from pg2kv.outbox;",
            )
            .await
            .unwrap();
        let settings = settings(&db.url_as("daemon"));
        Self {
            db,
            admin,
            settings,
        }
    }

    async fn sql(&self, sql: &str) {
        self.admin.batch_execute(sql).await.unwrap();
    }

    async fn number(&self, sql: &str) -> i64 {
        self.admin.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Leads with the given syncs.
    async fn lead(&self, syncs: &[SyncSource]) -> Leader {
        lead(&self.settings, syncs).await
    }
}

async fn lead(settings: &Settings, syncs: &[SyncSource]) -> Leader {
    let mut candidate = Candidate::connect(settings).await.unwrap();
    let epoch = candidate
        .campaign("test")
        .await
        .unwrap()
        .expect("nobody else leads");
    let (session, doorbell, recovered) = Session::open(settings, syncs, epoch).await.unwrap();
    Leader {
        candidate,
        session,
        doorbell,
        recovered,
        epoch,
    }
}

fn settings(url: &str) -> Settings {
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
        // No test waits for the fallback poll.
        poll_interval: Duration::from_secs(600),
    }
}

/// The sync of `public.items` with its value as SQL.
fn items(value: &str) -> SyncSource {
    SyncSource {
        id: SyncId(0),
        name: "items".to_owned(),
        table: "public.items".to_owned(),
        key_columns: vec!["id".to_owned()],
        value: ValueSql::Expression(value.to_owned()),
        filter: None,
        attributes: Attributes::default(),
        collect: None,
        related: vec![],
        configured: "{}".to_owned(),
    }
}

fn key(text: &str) -> Key {
    Key::new(text)
}

/// A request that claims and reads all of `keys`.
fn claim_all(sync: SyncId, keys: Vec<Key>) -> ClaimRequest {
    ClaimRequest {
        sync,
        claim: (0..keys.len()).collect(),
        keys,
        ids: vec![],
        backfill: None,
        max_bytes: KV_VALUE_MAX_BYTES,
    }
}

impl Leader {
    async fn fetch(&self, mode: FetchMode) -> Fetched {
        self.session.fetch(mode, 100).await.unwrap()
    }

    async fn read(&self, keys: &[&str]) -> Result<Claimed, PrepareError> {
        self.read_of(SyncId(0), keys).await
    }

    async fn read_of(&self, sync: SyncId, keys: &[&str]) -> Result<Claimed, PrepareError> {
        let keys = keys.iter().map(|text| key(text)).collect();
        let request = ClaimRequest {
            claim: vec![],
            ..claim_all(sync, keys)
        };
        self.session.prepare(&request).await
    }

    /// Values of keys as text, without a claim.
    async fn values(&self, keys: &[&str]) -> Vec<Option<String>> {
        let claimed = self.read(keys).await.unwrap();
        claimed
            .rows
            .iter()
            .map(|row| text(row).map(str::to_owned))
            .collect()
    }
}

/// The value of a row as text; panics where it is bytes, or too large.
fn text(row: &Row) -> Option<&str> {
    row.draft.as_ref().map(|draft| match &draft.value {
        DraftValue::Whole(Value::Text(text)) => std::str::from_utf8(text).unwrap(),
        other => panic!("{other:?}"),
    })
}

/// Keys of changes as text; `*` stands for everything.
fn texts(changes: &[Change]) -> Vec<String> {
    changes
        .iter()
        .map(|change| match &change.what {
            Changed::Key(key) => key.as_str().to_owned(),
            Changed::Again(key) => format!("again {}", key.as_str()),
            Changed::Related(related) => format!("{related:?}"),
            Changed::Everything => "*".to_owned(),
        })
        .collect()
}

/// Awaits an event that must come.
async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event)
        .await
        .expect("it must happen soon")
}
