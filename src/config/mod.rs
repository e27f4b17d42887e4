//! Configuration: files and environment become checked types before any socket opens.
//!
//! Owns the model, its defaults and its limits. Opens no socket. Every problem is found in one go,
//! and each names its key, where that was set, what is wrong and what to do. No message, `Debug` or
//! print of it holds a secret.
//!
//! Precedence, lowest first: defaults; the files in the order given; `PG2KV__SECTION__KEY` in the
//! environment. `DATABASE_URL`, `CLOUDFLARE_API_TOKEN` and `CLOUDFLARE_ACCOUNT_ID` serve where all
//! of these are silent.

mod described;
mod edges;
mod effective;
mod layers;
mod problem;
mod reader;
mod reference;
mod related;
mod schema;
mod secrets;
mod section;
mod sections;
mod shape;
mod syncs;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;

use crate::document::Template;
use crate::sink::setup::NamespaceId;
use crate::sink::token::TokenSource;
use crate::source::{Attributes, Collect, TlsMode};
use crate::sql_kit::{Schema, WatchSpec};

pub use effective::{Effective, Entry};
pub use problem::{ConfigErrors, Origin, Problem, Warning};
pub use schema::schema;

use layers::Sources;
use problem::Scope;
use reader::Reader;
use shape::Shape;

/// The file that is read where none is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/pg2kv/pg2kv.toml";

/// Everything that the daemon runs on.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[postgres]`
    pub postgres: Postgres,
    /// `[kv]`
    pub kv: Kv,
    /// `[queue]`
    pub queue: Queue,
    /// `[lease]`
    pub lease: Lease,
    /// `[retry]`
    pub retry: Retry,
    /// `[backfill]`
    pub backfill: Backfill,
    /// `[brake]`
    pub brake: Brake,
    /// `[audit]`
    pub audit: Audit,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[ops]`
    pub ops: Ops,
    /// `[log]`
    pub log: Log,
    /// `[sync.NAME]`, in the order of the names; at least one.
    pub syncs: Vec<Sync>,
    /// Every key with its value in force and its origin, secrets redacted.
    pub effective: Effective,
    /// What is allowed but seldom meant.
    pub warnings: Vec<Warning>,
}

/// What a command needs that speaks to the database only.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// `[postgres]`
    pub postgres: Postgres,
    /// `[lease]`
    pub lease: Lease,
    /// What is watched, in the order of the names. May be empty.
    pub watches: Vec<WatchSpec>,
}

/// What is needed to print SQL: no database, no secrets.
#[derive(Clone, Debug)]
pub struct SqlConfig {
    /// Our schema.
    pub schema: Schema,
    /// What is watched, in the order of the names; at least one.
    pub watches: Vec<WatchSpec>,
}

/// `[postgres]`: the way to the database.
#[derive(Clone, Debug)]
pub struct Postgres {
    /// Hosts, user, password and socket options, from `url`.
    pub connection: tokio_postgres::Config,
    /// Holds the connection string; its password is read again for each connection.
    pub url_file: Option<PathBuf>,
    /// Holds the password, which is read again for each connection.
    pub password_file: Option<PathBuf>,
    /// How the server's identity is proven.
    pub tls: TlsMode,
    /// PEM file of certificate authorities to trust instead of the system's.
    pub root_certificate: Option<PathBuf>,
    /// Whether a host that is not loopback may be spoken to without TLS.
    pub allow_plaintext: bool,
    /// Our schema.
    pub schema: Schema,
    /// Whether writers ring (NOTIFY); off means that the daemon only polls.
    pub doorbell: bool,
    /// Time between fallback polls.
    pub poll_interval: Duration,
    /// Time between two looks at the triggers.
    pub check_interval: Duration,
    /// Limit on opening one connection.
    pub connect_timeout: Duration,
    /// Limit on one statement.
    pub statement_timeout: Duration,
}

/// `[kv]`: the way to Workers KV, and what we allow ourselves there.
#[derive(Clone, Debug)]
pub struct Kv {
    /// Account, 32 hexadecimal digits; `None` leaves `/accounts/{id}` out of the path.
    pub account_id: Option<String>,
    /// Where the API token is read from.
    pub token: TokenSource,
    /// Base URL of the API, without a slash at its end.
    pub api_base_url: String,
    /// Limit on one request from connecting to the last byte of the reply.
    pub request_timeout: Duration,
    /// Limit on name resolution, TCP and TLS together.
    pub connect_timeout: Duration,
    /// URL of an HTTP proxy; may hold a password.
    pub proxy: Option<SecretString>,
    /// PEM file of certificate authorities to trust instead of the system's.
    pub root_certificate: Option<PathBuf>,
    /// Requests that we allow ourselves in 5 minutes; `None` is no limit of our own.
    pub requests_per_5min: Option<u32>,
    /// Of these, requests kept back for retries and deletes.
    pub reserve_requests: u32,
    /// Most requests at the same time.
    pub in_flight_max: usize,
    /// Most pairs in one request.
    pub pairs_max: usize,
    /// Largest request body in bytes.
    pub body_max_bytes: usize,
}

/// `[queue]`: how changes are put together.
#[derive(Clone, Debug)]
pub struct Queue {
    /// A key is written once it has been quiet for this long …
    pub quiet: Duration,
    /// … or once its first change is this old.
    pub max_wait: Duration,
    /// Least time between two writes of one key.
    pub key_interval: Duration,
    /// Most keys in memory; the rest wait in the outbox.
    pub keys_max: usize,
    /// Whether the first change of an idle key is written without waiting for `quiet`.
    pub leading: bool,
}

/// `[lease]`: one leader among several daemons.
#[derive(Clone, Debug)]
pub struct Lease {
    /// After this long without a word from the leader another daemon takes over.
    pub ttl: Duration,
    /// Name of this process in `pg2kv.lease` and in logs.
    pub holder: String,
}

/// `[retry]`: what follows a failed request.
#[derive(Clone, Debug)]
pub struct Retry {
    /// First wait; it doubles up to `max`.
    pub initial: Duration,
    /// Longest wait.
    pub max: Duration,
    /// How long a request of unknown outcome may still take effect.
    pub late_write_window: Duration,
}

/// `[backfill]`: writing every row of a sync.
#[derive(Clone, Debug)]
pub struct Backfill {
    /// Keys read in one go.
    pub chunk: usize,
}

/// `[brake]`: when deletes of a sync are held until somebody approves.
#[derive(Clone, Debug)]
pub struct Brake {
    /// Once they would pass this share of its keys …
    pub share: f64,
    /// … and this number, 0 being never …
    pub count: u64,
    /// … within this time.
    pub window: Duration,
}

/// `[audit]`: when the leader compares KV with the rows by itself.
#[derive(Clone, Debug)]
pub struct Audit {
    /// From the end of one comparison of a sync to the next; zero leaves those after a change of the
    /// database's identity.
    pub interval: Duration,
    /// Least time between two pages of names, which are a request to KV each.
    pub page_interval: Duration,
    /// What differs is looked at again after this long.
    pub recheck_after: Duration,
}

/// `[shutdown]`: what SIGTERM leads to.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Time to finish what is in flight.
    pub grace: Duration,
}

/// `[ops]`: probes and metrics.
#[derive(Clone, Debug)]
pub struct Ops {
    /// Address of the HTTP server.
    pub listen: SocketAddr,
    /// Names under which it answers, besides addresses and `localhost`.
    pub hosts: Vec<String>,
}

/// `[log]`: what is told, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Shape of a line.
    pub format: LogFormat,
    /// Filter, `RUST_LOG` having the last word: a level or directives of `tracing`.
    pub level: String,
    /// Whether logs name keys in clear text instead of by fingerprint. Keys may be personal data.
    pub keys: bool,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// `[sync.NAME]`: rows of a table that become pairs of a namespace.
#[derive(Clone, Debug)]
pub struct Sync {
    /// Name, table, key, and what makes a row count as changed. The name is
    /// `^[a-z][a-z0-9_]{0,30}$`.
    pub watch: WatchSpec,
    /// How the key columns make the name of a pair.
    pub template: Template,
    /// What a pair holds.
    pub value: ValueSource,
    /// SQL boolean expression: whether a row is published.
    pub filter: Option<String>,
    /// What a pair has beside its value.
    pub attributes: Attributes,
    /// How all rows of one key become one document; `None` where each row is one.
    pub collect: Option<Collect>,
    /// Where the pairs go.
    pub namespace_id: NamespaceId,
}

/// What a pair holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueSource {
    /// One JSON object of columns, each with its name there.
    Columns(Vec<(String, String)>),
    /// An SQL expression.
    Expression(String),
}

/// The files to read: those that are named, or [`DEFAULT_FILE`] where it exists.
pub fn files(named: &[PathBuf]) -> Vec<PathBuf> {
    if named.is_empty() && Path::new(DEFAULT_FILE).exists() {
        return vec![PathBuf::from(DEFAULT_FILE)];
    }
    named.to_vec()
}

/// Reads and checks everything.
///
/// # Errors
/// All problems at once.
pub fn load(
    paths: &[PathBuf],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Config, ConfigErrors> {
    let (draft, problems, effective, warnings) = read(paths, environment);
    match draft.complete(effective, warnings) {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(ConfigErrors(problems)),
    }
}

/// Reads everything, and checks what a command needs that speaks to the database only: there may
/// be no API token, for instance.
///
/// # Errors
/// All problems at once.
pub fn load_database(
    paths: &[PathBuf],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<DatabaseConfig, ConfigErrors> {
    let (draft, mut problems, ..) = read(paths, environment);
    problems.retain(|problem| problem.scope <= Scope::Database);
    match (draft.postgres, draft.lease, draft.watches) {
        (Some(postgres), Some(lease), Some(watches)) if problems.is_empty() => Ok(DatabaseConfig {
            postgres,
            lease,
            watches,
        }),
        _ => Err(ConfigErrors(problems)),
    }
}

/// Reads everything, and checks what printing SQL needs: there may be no secrets at all.
///
/// # Errors
/// All problems at once.
pub fn load_sql(
    paths: &[PathBuf],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<SqlConfig, ConfigErrors> {
    let (draft, mut problems, ..) = read(paths, environment);
    problems.retain(|problem| problem.scope <= Scope::Sql);
    match (draft.schema, draft.watches) {
        (Some(schema), Some(watches)) if problems.is_empty() => Ok(SqlConfig { schema, watches }),
        _ => Err(ConfigErrors(problems)),
    }
}

/// What is in force, and what is wrong with it: for a command that prints both.
pub fn inspect(
    paths: &[PathBuf],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> (Effective, Vec<Warning>, Option<ConfigErrors>) {
    let (_, problems, effective, warnings) = read(paths, environment);
    (
        effective,
        warnings,
        (!problems.is_empty()).then_some(ConfigErrors(problems)),
    )
}

/// What could be read. **Invariant:** where a part is `None`, a problem was recorded.
struct Draft {
    schema: Option<Schema>,
    postgres: Option<Postgres>,
    kv: Option<Kv>,
    queue: Option<Queue>,
    lease: Option<Lease>,
    retry: Option<Retry>,
    backfill: Option<Backfill>,
    brake: Option<Brake>,
    audit: Option<Audit>,
    shutdown: Option<Shutdown>,
    ops: Option<Ops>,
    log: Option<Log>,
    watches: Option<Vec<WatchSpec>>,
    syncs: Option<Vec<Sync>>,
}

impl Draft {
    fn complete(self, effective: Effective, warnings: Vec<Warning>) -> Option<Config> {
        Some(Config {
            postgres: self.postgres?,
            kv: self.kv?,
            queue: self.queue?,
            lease: self.lease?,
            retry: self.retry?,
            backfill: self.backfill?,
            brake: self.brake?,
            audit: self.audit?,
            shutdown: self.shutdown?,
            ops: self.ops?,
            log: self.log?,
            syncs: self.syncs?,
            effective,
            warnings,
        })
    }
}

fn read(
    paths: &[PathBuf],
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> (Draft, Vec<Problem>, Effective, Vec<Warning>) {
    let mut problems = Vec::new();
    let sources = Sources::read(paths, environment, &mut problems);
    let mut reader = Reader::new(&sources, problems);
    let draft = draft(&mut reader);
    (
        draft,
        reader.problems,
        Effective(reader.entries),
        reader.warnings,
    )
}

/// What each key may hold that is met in reading this environment.
fn shapes(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<Shape> {
    let mut problems = Vec::new();
    let sources = Sources::read(&[], environment, &mut problems);
    let mut reader = Reader::new(&sources, problems);
    draft(&mut reader);
    reader.shapes
}

fn draft(reader: &mut Reader<'_>) -> Draft {
    let (schema, postgres) = sections::postgres(reader);
    let (kv, namespace_id) = sections::kv(reader);
    let queue = sections::queue(reader, kv.as_ref());
    let lease = sections::lease(reader);
    let retry = sections::retry(reader, kv.as_ref());
    let backfill = sections::backfill(reader);
    let brake = sections::brake(reader);
    let audit = sections::audit(reader);
    let shutdown = sections::shutdown(reader);
    let ops = sections::ops(reader);
    let log = sections::log(reader);
    let (watches, syncs) = syncs::read(reader, namespace_id.as_ref());
    reader.finish();
    Draft {
        schema,
        postgres,
        kv,
        queue,
        lease,
        retry,
        backfill,
        brake,
        audit,
        shutdown,
        ops,
        log,
        watches,
        syncs,
    }
}
