//! One leader: an advisory lock on a connection of its own, and an epoch that fences every write.
//!
//! Three things guard each other. The session's advisory lock keeps two leaders apart and goes with
//! its connection. `idle_session_timeout` makes the server itself close the session of a leader
//! that is frozen or cut off. The epoch makes what such a leader still sends after that worthless.
//!
//! Also owns what a connection must be to lead at all: not through a pooler that hands sessions
//! around, on a server that takes writes, with our schema at a version that we can work with.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::SimpleQueryMessage;

use super::error::{Error, Kind, Place};
use super::link::{Link, Role};
use super::{Settings, schema};
use crate::change::Epoch;

/// First key of our advisory locks: "pg2k" in ASCII. The second one is made of the schema's oid, so
/// that two installations in one database have a leader each.
pub(super) const LOCK_CLASS: i32 = 0x7067_326b;
/// First key of the locks that probe for a pooler: "pg2p".
const PROBE_CLASS: i32 = 0x7067_3270;
/// A server process of a closed connection is gone within milliseconds; longer than this and
/// something between us and the server keeps it.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

const TRY_LOCK: &str = "\
    select pg_try_advisory_lock($1, (oid::int8 & 2147483647)::int4) from pg_namespace \
    where nspname = $2::text";

const RAISE_EPOCH: &str = "\
    update pg2kv.lease set epoch = epoch + 1, holder = $1, acquired_at = clock_timestamp() \
    returning epoch";

const CURRENT_EPOCH: &str = "select epoch from pg2kv.lease";

const WRITABLE: &str = "\
    select pg_is_in_recovery() or current_setting('transaction_read_only')::bool";

/// A process that may become the leader; holds the lease connection.
pub struct Candidate {
    link: Link,
    schema: String,
    raise: String,
    current: String,
    /// The lock is counted by the server: taken twice, it would have to be given back twice.
    locked: AtomicBool,
}

impl Candidate {
    /// Connects and looks whether this database can be led.
    ///
    /// # Errors
    /// `Refused`: pooler in transaction mode, server too old, schema missing, privileges. `Schema`: a
    /// version of it that this program cannot work with. `Transient`: the server is read-only.
    /// `Connection`.
    pub async fn connect(settings: &Settings) -> Result<Self, Error> {
        refuse_pooler(settings).await?;
        let link = Link::open(settings, Role::Lease, None).await?;
        let read_only: bool = link
            .call(
                "asking whether the server takes writes",
                2,
                Place::Own,
                link.client().query_one(WRITABLE, &[]),
            )
            .await?
            .get(0);
        if read_only {
            return Err(Error::new(
                Kind::Transient,
                "asking whether the server takes writes",
                "it does not: it is a standby, or default_transaction_read_only is on",
            )
            .with_hint("give the primary's host, or all hosts of the cluster"));
        }
        schema::require(&settings.schema, &link).await?;
        Ok(Self {
            link,
            schema: settings.schema.clone(),
            raise: settings.sql(RAISE_EPOCH),
            current: settings.sql(CURRENT_EPOCH),
            locked: AtomicBool::new(false),
        })
    }

    /// Tries to become the leader; never waits for another one. `holder` is for people to read.
    ///
    /// Call it more often than the lease's ttl: the server closes a silent candidate too.
    ///
    /// # Errors
    /// `Connection`, `Transient` (try again), `Refused`, `Schema`.
    pub async fn campaign(&mut self, holder: &str) -> Result<Option<Epoch>, Error> {
        let doing = "campaigning for the lease";
        // Each time: the schema may have been upgraded since, and a standby that cannot take over must
        // say so before it is needed.
        schema::require(&self.schema, &self.link).await?;
        let client = self.link.client();
        if !self.locked.load(Ordering::Relaxed) {
            let row = self
                .link
                .call(
                    doing,
                    2,
                    Place::Own,
                    client.query_opt(TRY_LOCK, &[&LOCK_CLASS, &self.schema]),
                )
                .await?;
            if !row.is_some_and(|row| row.get(0)) {
                return Ok(None);
            }
            self.locked.store(true, Ordering::Relaxed);
        }
        // Waits for the fenced transactions of the leader before, which are short.
        let row = self
            .link
            .call(
                doing,
                2,
                Place::Own,
                client.query_opt(&self.raise, &[&holder]),
            )
            .await?;
        let row = row.ok_or_else(|| {
            Error::new(Kind::Refused, doing, "the table lease has no row")
                .with_hint("run `pg2kv install` again; it puts the row back")
        })?;
        Ok(Some(Epoch(row.get(0))))
    }

    /// Tells the server that we live, and asks whether we still lead.
    ///
    /// The caller may trust its leadership until the start of this call + ttl − margin.
    ///
    /// # Errors
    /// `Fenced` where the epoch has moved; `Connection`, `Transient`.
    pub async fn heartbeat(&self, epoch: Epoch) -> Result<(), Error> {
        let doing = "renewing the lease";
        let row = self
            .link
            .call(
                doing,
                2,
                Place::Own,
                self.link.client().query_opt(&self.current, &[]),
            )
            .await?;
        match row {
            Some(row) if row.get::<_, i64>(0) == epoch.0 => Ok(()),
            _ => Err(Error::fenced(doing)),
        }
    }

    /// Resolves when the lease connection is gone, and the lease with it.
    pub async fn closed(&self) {
        self.link.closed().await;
    }

    /// Gives the lease back at once: the server frees the lock when it sees the farewell.
    pub async fn release(self) {
        self.link.close().await;
    }
}

/// A pooler in transaction mode (PgBouncer and its like) hands one server session to many clients:
/// LISTEN falls silent and an advisory lock belongs to whoever comes next, without an error.
///
/// First step: a connection takes a shared session lock under a number of its own and leaves. On a
/// session of one's own the lock goes with it. Second step: another connection looks. Either it is
/// served by the very process that was left, or the lock outlives its owner: a pooler. The words
/// go by the simple protocol, because named statements break such poolers in other ways first.
async fn refuse_pooler(settings: &Settings) -> Result<(), Error> {
    let doing = "looking for a connection pooler";
    let first = Link::open(settings, Role::Raw, None).await?;
    let nonce = fastrand::i32(1..);
    let lock =
        format!("select pg_try_advisory_lock_shared({PROBE_CLASS}, {nonce}), pg_backend_pid()");
    let left = words(&first, doing, &lock)
        .await?
        .into_iter()
        .nth(1)
        .flatten();
    first.close().await;

    let second = Link::open(settings, Role::Raw, None).await?;
    let look = format!(
        "select pg_backend_pid(), exists (select from pg_catalog.pg_locks \
         where locktype = 'advisory' and classid = {PROBE_CLASS} and objid = {nonce})"
    );
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    let pooled = loop {
        let seen = words(&second, doing, &look).await?;
        let held = seen.get(1).is_some_and(|held| held.as_deref() == Some("t"));
        if !held {
            break false;
        }
        if seen.first() == Some(&left) || began.elapsed() > PROBE_LIMIT {
            break true;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    };
    if pooled {
        // Tidy up as well as one can: it works if this is the session that was left.
        let unlock = format!("select pg_advisory_unlock_shared({PROBE_CLASS}, {nonce})");
        let _ = words(&second, doing, &unlock).await;
    }
    second.close().await;
    if pooled {
        return Err(Error::new(
            Kind::Refused,
            doing,
            "the connection goes through a pooler in transaction mode (such as PgBouncer with \
             pool_mode = transaction), where LISTEN and session locks silently do nothing",
        )
        .with_hint(
            "give pg2kv the server's own host and port, or a pool with pool_mode = session; your \
             applications can stay behind the pooler",
        ));
    }
    Ok(())
}

/// The columns of the one row that a simple query gives.
async fn words(link: &Link, doing: &str, sql: &str) -> Result<Vec<Option<String>>, Error> {
    let messages = link
        .call(doing, 1, Place::Connect, link.client().simple_query(sql))
        .await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.ok_or_else(|| Error::new(Kind::Connection, doing, "the server gave no row"))?;
    Ok((0..row.len())
        .map(|at| row.get(at).map(str::to_owned))
        .collect())
}
