//! One connection to Postgres: opened, set up, driven, and given up when it does not answer.
//!
//! **Invariant:** no await on the server is without a deadline. Statements over one link go one
//! group at a time, so that a deadline counts from when the server can begin.

use std::future::{Future, poll_fn};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Connection, NoTls, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use super::error::{Error, Kind, Place};
use super::key_bytes::Encoding;
use super::names::Client;
use super::{SERVER_VERSION_MIN, Settings, TlsMode, tls};

/// What the client grants on top of the server's own limits before it gives up, for the way there
/// and back and for a server that is slow to cancel.
const GRACE: Duration = Duration::from_secs(5);
/// `lock_timeout` where only objects of ours are locked: claims and settles meet only short locks.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// `lock_timeout` where watched tables are read. While one of them is locked (VACUUM FULL, some kinds of
/// ALTER TABLE), the reads of all others wait behind it for so long.
const READ_LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// What a connection is for; decides some of its session settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Holds the advisory lock; the server closes it when it is silent for the lease's ttl.
    Lease,
    /// LISTEN only.
    Listen,
    /// Fetch, settle and other short statements.
    Control,
    /// Claims of live changes.
    Claim,
    /// Claims of the backfill, and what else is written to our own tables or read from them.
    Background,
    /// Rows of live changes. A [`ReadLink`].
    Work,
    /// Rows and walks of the backfill. A [`ReadLink`].
    Bulk,
    /// Nothing is set up: the session may turn out to be another client's (a pooler).
    Raw,
}

impl Role {
    const fn opening(self) -> &'static str {
        match self {
            Self::Lease => "opening the lease connection to Postgres",
            Self::Listen => "opening the listening connection to Postgres",
            Self::Control | Self::Claim | Self::Background | Self::Work | Self::Bulk => {
                "opening a working connection to Postgres"
            }
            Self::Raw => "connecting to Postgres",
        }
    }
}

/// One connection.
pub(crate) struct Link {
    client: Client,
    gate: Mutex<()>,
    down: CancellationToken,
    task: AbortHandle,
    statement_limit: Duration,
    encoding: Encoding,
}

/// Where notifications of a connection go: a full channel already says all there is to say.
pub(crate) type Bell = mpsc::Sender<()>;

impl Link {
    /// Opens a connection and sets its session up.
    ///
    /// # Errors
    /// Any [`Kind`] but `Fenced`, `Row` and `Relation`.
    pub(crate) async fn open(
        settings: &Settings,
        role: Role,
        bell: Option<Bell>,
    ) -> Result<Self, Error> {
        // Boxed, or these would be a part of every future that may connect.
        let mut link = Box::pin(Self::connect(settings, role, bell)).await?;
        if role != Role::Raw {
            Box::pin(link.set_up(settings, role)).await?;
        }
        Ok(link)
    }

    async fn connect(settings: &Settings, role: Role, bell: Option<Bell>) -> Result<Self, Error> {
        let mut config = settings.config.clone();
        config.connect_timeout(settings.connect_timeout);
        if let Some(file) = &settings.password
            && let Some(password) = file.read()?
        {
            config.password(password.expose_secret());
        }
        match &settings.tls {
            TlsMode::Disable => {
                config.ssl_mode(tokio_postgres::config::SslMode::Disable);
                Self::drive(settings, &config, role, bell, NoTls).await
            }
            TlsMode::Verified { roots, verify_host } => {
                config.ssl_mode(tokio_postgres::config::SslMode::Require);
                let tls = tls::client_config(roots.as_deref(), *verify_host)?;
                Self::drive(settings, &config, role, bell, MakeRustlsConnect::new(tls)).await
            }
        }
    }

    async fn drive<T>(
        settings: &Settings,
        config: &tokio_postgres::Config,
        role: Role,
        bell: Option<Bell>,
        tls: T,
    ) -> Result<Self, Error>
    where
        T: MakeTlsConnect<Socket>,
        T::Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        // The driver's own timeout covers the socket of each address; this one covers the rest too:
        // name resolution, TLS, authentication.
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len());
        let attempts = u32::try_from(hosts).unwrap_or(u32::MAX).saturating_add(1);
        let limit = settings.connect_timeout.saturating_mul(attempts);
        let (client, connection) = tokio::time::timeout(limit, config.connect(tls))
            .await
            .map_err(|_| Error::deadline(role.opening(), limit))?
            .map_err(|error| Error::from_driver(Place::Connect, role.opening(), error))?;
        let down = CancellationToken::new();
        let task = tokio::spawn(pump(connection, bell, down.clone())).abort_handle();
        Ok(Self {
            client: Client::new(client),
            gate: Mutex::new(()),
            down,
            task,
            statement_limit: settings.statement_timeout,
            encoding: Encoding::Utf8,
        })
    }

    /// One batch that makes the session independent of what role, database or server are set to.
    async fn set_up(&mut self, settings: &Settings, role: Role) -> Result<(), Error> {
        let doing = "setting up a session";
        let idle = if role == Role::Lease {
            settings.lease_ttl
        } else {
            Duration::ZERO
        };
        let batch = format!(
            "set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'iso_8601';\
             set bytea_output = 'hex'; set extra_float_digits = 1; set row_security = off;\
             set search_path = pg_catalog; set client_min_messages = warning;\
             set standard_conforming_strings = on; set transform_null_equals = off;\
             set lc_monetary = 'C'; set lc_numeric = 'C'; set lc_time = 'C';\
             set xmlbinary = 'base64'; set quote_all_identifiers = off;\
             set default_text_search_config = 'pg_catalog.simple';\
             set default_transaction_isolation = 'read committed';\
             set default_transaction_deferrable = off;\
             set statement_timeout = {statement}; set lock_timeout = {lock};\
             set idle_in_transaction_session_timeout = {statement}; set jit = off;\
             {synchronous}{planner}",
            statement = settings.statement_timeout.as_millis(),
            lock = match role {
                Role::Work | Role::Bulk => READ_LOCK_TIMEOUT,
                _ => LOCK_TIMEOUT,
            }
            .as_millis(),
            synchronous = SYNCHRONOUS,
            planner = match role {
                Role::Control => PLANNER_CONTROL,
                Role::Claim | Role::Work => PLANNER_WORK,
                Role::Background | Role::Bulk => PLANNER_BULK,
                Role::Lease | Role::Listen | Role::Raw => "",
            },
        );
        self.call(doing, 1, Place::Own, self.client.batch_execute(&batch))
            .await?;
        let server = self
            .call(doing, 2, Place::Own, self.client.query_one(SERVER, &[]))
            .await?;
        let version: i32 = server.get(0);
        self.encoding = Encoding::of(server.get(1));
        if version < SERVER_VERSION_MIN {
            return Err(Error::new(
                Kind::Refused,
                doing,
                format!(
                    "the server is PostgreSQL {}; 14 or later is needed",
                    version / 10_000
                ),
            ));
        }
        // A setting of its own, after the version is known to have it.
        let idle = format!("set idle_session_timeout = {}", idle.as_millis());
        self.call(doing, 1, Place::Own, self.client.batch_execute(&idle))
            .await
    }

    /// What sends statements. Use it inside the future given to [`Self::call`] only.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The encoding of the database.
    pub(crate) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Runs one group of statements under a deadline of so many statements.
    ///
    /// Cancel-safety: a dropped call leaves its statements running on the server; the connection
    /// stays in step, and what they did is unknown to the caller.
    ///
    /// # Errors
    /// The driver's, classified by `place`; [`Kind::Connection`] when the deadline passes, which
    /// ends the connection.
    pub(crate) async fn call<T>(
        &self,
        doing: &str,
        statements: u32,
        place: Place,
        group: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        self.within(doing, statements, async {
            group
                .await
                .map_err(|error| Error::from_driver(place, doing, error))
        })
        .await
    }

    /// [`Self::call`] for a group that classifies its failures itself.
    pub(crate) async fn within<T>(
        &self,
        doing: &str,
        statements: u32,
        group: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let _turn = self.gate.lock().await;
        let limit = self.statement_limit * statements + GRACE;
        match tokio::time::timeout(limit, group).await {
            Ok(result) => result,
            Err(_) => {
                self.task.abort();
                Err(Error::deadline(doing, limit))
            }
        }
    }

    /// Resolves when the connection is gone.
    pub(crate) async fn closed(&self) {
        self.down.cancelled().await;
    }

    /// Ends the connection in an orderly way: the server sees a farewell.
    pub(crate) async fn close(self) {
        let Self {
            client, down, task, ..
        } = self;
        drop(client);
        if tokio::time::timeout(GRACE, down.cancelled()).await.is_err() {
            task.abort();
        }
    }
}

/// A connection that reads tables of users, and nothing else.
///
/// A reader runs code of the table's owner: the planner evaluates functions in expressions of indexes, in
/// generated columns, domains and policies. Such code can change settings of the session and replace
/// its prepared statements, for all that the session does afterwards.
///
/// **Invariant:** a session that has read a table of a user writes nothing. Each transaction is begun
/// as read-only by a command that names nothing and was not prepared, and PostgreSQL lets no
/// transaction become anything else once a query has run in it. What is written to our own tables goes
/// over a [`Link`], whose session has never run code of anybody else.
pub(crate) struct ReadLink(Link);

/// How a transaction of a [`ReadLink`] begins, whatever the session's defaults were set to.
pub(crate) const BEGIN: &str = "begin isolation level read committed read only";

impl ReadLink {
    /// Opens a connection and sets its session up.
    ///
    /// # Errors
    /// As [`Link::open`].
    pub(crate) async fn open(settings: &Settings, role: Role) -> Result<Self, Error> {
        Link::open(settings, role, None).await.map(Self)
    }

    /// The encoding of the database.
    pub(crate) fn encoding(&self) -> Encoding {
        self.0.encoding()
    }

    /// What sends statements. Use it inside what is given to the methods here only.
    pub(crate) fn client(&self) -> &Client {
        self.0.client()
    }

    /// Runs statements one after the other in a transaction, under a deadline of so many.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub(crate) async fn read<T>(
        &self,
        doing: &str,
        statements: u32,
        place: Place,
        group: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        let client = self.0.client();
        let all = async {
            client.batch_execute(BEGIN).await?;
            let read = group.await;
            let ended = client.batch_execute("commit").await;
            let read = read?;
            ended.map(|()| read)
        };
        self.0.call(doing, statements + 2, place, all).await
    }

    /// Runs statements that are prepared already: all are sent in one go with the commands around
    /// them. `group` must send whatever it sends when it is polled first.
    ///
    /// # Errors
    /// As [`Link::within`].
    pub(crate) async fn read_at_once<T>(
        &self,
        doing: &str,
        statements: u32,
        begin: &str,
        group: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let client = self.0.client();
        let all = async {
            let (begun, read, ended) = tokio::join!(
                biased;
                client.batch_execute(begin),
                group,
                client.batch_execute("commit"),
            );
            let failed = |error| Error::from_driver(Place::Own, doing, error);
            begun.map_err(failed)?;
            let read = read?;
            ended.map_err(failed)?;
            Ok(read)
        };
        self.0.within(doing, statements + 2, all).await
    }

    /// Resolves when the connection is gone.
    pub(crate) async fn closed(&self) {
        self.0.closed().await;
    }
}

const SERVER: &str =
    "select current_setting('server_version_num')::int4, current_setting('server_encoding')";

/// Claims must be on disk before a write to KV goes out. A stronger setting of the role
/// (`remote_apply`) is kept; weaker ones (`off`, `local`, `remote_write`) become `on`.
const SYNCHRONOUS: &str = "\
    select pg_catalog.set_config('synchronous_commit',\
        case when pg_catalog.current_setting('synchronous_commit')\
        operator(pg_catalog.=) 'remote_apply' then 'remote_apply' else 'on' end, false);";

/// The outbox has one index, and its statistics swing between nothing and millions: a plan that
/// reads the table or sorts would pay for every dead row. So the values of parameters do not matter, and
/// a statement is planned once.
const PLANNER_CONTROL: &str = "set enable_seqscan = off; set enable_bitmapscan = off; \
     set enable_sort = off; set plan_cache_mode = force_generic_plan;";
/// Keys are looked up through an index, and outbox rows deleted by id, whatever keys and ids these are:
/// under load, with few keys in a batch, planning would cost as much as the rest.
const PLANNER_WORK: &str = "set enable_seqscan = off; set plan_cache_mode = force_generic_plan;";
/// A walk's plan depends on how many rows it asks for.
const PLANNER_BULK: &str = "set enable_seqscan = off; set plan_cache_mode = force_custom_plan;";

/// Drives a connection until it ends. Notices are dropped: they may quote rows.
async fn pump<T>(mut connection: Connection<Socket, T>, bell: Option<Bell>, down: CancellationToken)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let _down = down.drop_guard();
    while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
        if let (AsyncMessage::Notification(_), Some(bell)) = (message, &bell) {
            // Full means that a ring is waiting to be heard already.
            let _ = bell.try_send(());
        }
    }
}
