//! The Postgres edge: what changed, what rows say now, and who leads.
//!
//! Owns every statement that the daemon sends to Postgres, and the connections they go over. Knows
//! nothing of KV, HTTP, the queue or the relay: it answers what it is asked and remembers only what
//! a session needs (`frontier`). After doubt (a lost connection, a deadline) a session is thrown
//! away and a new one reads everything again.
//!
//! A leader holds five connections that never read a table of a user: the lease (`lease`), LISTEN
//! (`doorbell`), and three that write our own tables (`session`): control for short statements, one for
//! claims of live changes, and one for the backfill and whatever need not be soon. And it holds two for each
//! role that owns watched tables (`readers`), one for live changes and one for the backfill: these
//! read, and write nothing. So a chunk of a backfill never stands before a live change, and code that a
//! table's owner has run by its readers reaches neither our tables nor those of another owner.

use std::time::Duration;

use crate::change::SyncId;
use crate::sql_kit::RelatedSpec;

pub mod admin;
pub mod audit;
mod check;
mod claim;
pub mod configured;
mod deletes;
pub mod doorbell;
pub mod error;
mod expand;
pub mod explain;
mod frontier;
mod gauges;
mod installation;
mod key_bytes;
pub mod lease;
pub mod letters;
mod link;
mod marker;
pub mod names;
mod outbox;
pub mod password;
mod readers;
mod recover;
pub mod retired;
mod rows;
mod runs;
pub mod schema;
pub mod session;
mod settle;
mod tls;
mod triggers;
pub mod url;

pub use check::{Finding, Grade, check};
pub use doorbell::Doorbell;
pub use error::{Error, Kind};
pub use session::{Gauges, Session};
pub use url::{TlsMode, UrlError, parse_url};

/// The oldest server that is accepted, as `server_version_num` has it.
/// `idle_session_timeout`, which frees the lease of a frozen leader, came with 14.
pub(crate) const SERVER_VERSION_MIN: i32 = 140_000;

/// How to reach Postgres, and the limits on it.
#[derive(Clone)]
pub struct Settings {
    /// Hosts, user, password and socket options, from [`parse_url`].
    pub config: tokio_postgres::Config,
    /// Where the password is read from for each connection, if not part of `config`.
    pub password: Option<password::PasswordFile>,
    /// How the server's identity is proven, from [`parse_url`].
    pub tls: TlsMode,
    /// Name of the schema that holds outbox, claims and lease: `^[a-z][a-z0-9_]{0,30}$`.
    pub schema: String,
    /// Whether writers ring (LISTEN and the bell); off means that the daemon only polls.
    pub doorbell: bool,
    /// Limit on opening one connection to one host.
    pub connect_timeout: Duration,
    /// Limit that the server puts on one statement; the client waits a little longer.
    pub statement_timeout: Duration,
    /// After this long without a word from its holder, the server frees the lease.
    pub lease_ttl: Duration,
    /// Time between fallback polls; the bell is set for twice as long.
    pub poll_interval: Duration,
}

impl Settings {
    /// `sql` with the schema's name in place of the default one. Every object of ours begins with
    /// `pg2kv.` in the SQL constants of this room, and nothing else there does.
    pub(crate) fn sql(&self, sql: &str) -> String {
        sql.replace("pg2kv.", &format!("{}.", self.schema))
    }
}

/// What a sync reads.
#[derive(Clone, Debug)]
pub struct SyncSource {
    /// Its position in the configuration.
    pub id: SyncId,
    /// Its name, as in `pg2kv.sync`.
    pub name: String,
    /// The table with its schema, as configured: `public.users`.
    pub table: String,
    /// Columns that name a document, in the order of the key.
    pub key_columns: Vec<String>,
    /// What the document says.
    pub value: ValueSql,
    /// SQL boolean expression over the table's columns: whether the row is published. NULL counts
    /// as false.
    ///
    /// Filter and value expression are the operator's own SQL: they are put into the statement as
    /// they are and run with the daemon's rights, in a read-only transaction, with only
    /// `pg_catalog` in the search path.
    pub filter: Option<String>,
    /// What a pair has beside its value.
    pub attributes: Attributes,
    /// How all rows of one key become one document; `None` where each row is one.
    pub collect: Option<Collect>,
    /// Other tables that its documents take data from.
    pub related: Vec<RelatedSpec>,
    /// Everything in the configuration that decides which pairs the rows make, as a JSON object. A
    /// leader notices by it that the one before ran with another configuration.
    pub configured: String,
}

/// How rows become one document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collect {
    /// What it is.
    pub into: CollectInto,
    /// SQL of an ORDER BY; what it leaves open, and all without it, is in the order of members, or
    /// of the elements' own text.
    pub order_by: Option<String>,
    /// Among how many documents the rows of one key are divided; the number of a document is the
    /// last value of its key.
    pub shards: Option<u32>,
}

/// What many rows become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CollectInto {
    /// A JSON object with a member for each row.
    Object {
        /// The column that names the member. A row where it is NULL is not in the object.
        member: String,
    },
    /// A JSON list with an element for each row.
    List,
}

/// What a pair has beside its value, as SQL over the table's columns.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// The MIME type of the value, as text; NULL is none.
    pub content_type: Option<String>,
    /// The user's own metadata, as JSON; NULL is none.
    pub metadata: Option<String>,
    /// How long the pair is to stand, where not until it is deleted.
    pub expiry: Option<ExpirySql>,
}

/// How long a pair is to stand.
#[derive(Clone, Debug)]
pub enum ExpirySql {
    /// Until a moment (timestamptz); NULL and infinity are never. A row whose moment has come is
    /// not published.
    At(String),
    /// For so many seconds after each write.
    After(u32),
}

/// How Postgres makes a document of a row.
#[derive(Clone, Debug)]
pub enum ValueSql {
    /// One JSON object of columns, each with the name it has there; order is kept.
    Columns(Vec<(String, String)>),
    /// An SQL expression: bytes where its type is bytea, otherwise its text (that of json and jsonb
    /// is JSON). NULL means that there is no document.
    Expression(String),
}
