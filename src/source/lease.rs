//! One leader: an advisory lock on a connection of its own, and an epoch that fences every write.
//!
//! Three things guard each other. The session's advisory lock keeps two leaders apart and goes with
//! its connection. Each epoch has a lock of its own: a candidate first takes the lock of the epoch to
//! come, then raises the epoch if it still is the one that was found. So a lock counts only while the
//! table names its epoch, and only if its holder is a member of the daemon's role; one that a stranger
//! has taken is passed over, by an epoch that they cannot have foreseen. `idle_session_timeout` makes the server itself close the session of a leader
//! that is frozen or cut off. The epoch makes what such a leader still sends after that worthless.
//!
//! Also owns what a connection must be to lead at all: not through a pooler that hands sessions
//! around, on a server that takes writes, with our schema at a version that we can work with.

use std::time::{Duration, Instant};

use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::types::ToSql;

use super::error::{Error, Kind, Place};
use super::link::{Link, Role};
use super::{Settings, schema};
use crate::change::Epoch;

/// First key of the locks that probe for a pooler: "pg2p".
const PROBE_CLASS: i32 = 0x7067_3270;
/// A server process of a closed connection is gone within milliseconds; longer than this and
/// something between us and the server keeps it.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

/// The lock of an epoch. Two installations in one database have a leader each, by the schema's oid.
pub(super) const IS_LOCK: &str = "\
    k.locktype = 'advisory' and k.granted and k.objsubid = 1
      and k.database = (select d.oid from pg_database as d where d.datname = current_database())
      and k.classid = n.oid and k.objid = ((l.epoch + $2::int8) & 4294967295)::oid";

/// Everybody may take an advisory lock; only a member of the daemon's role (`$3`) leads by it.
pub(super) const MAY_LEAD: &str =
    "coalesce(pg_has_role(a.usesysid, to_regrole($3::text)::oid, 'member'), false)";

/// `$2`: how far behind the epoch in the table. A row for each holder of that epoch's lock, one with
/// NULLs if there is none. The last two columns tell about the lock in the way of `MAY_LEAD`, and whether it is our own.
const HOLDERS: &str = "\
    select l.epoch, k.locktype is not null, k.pid, a.usename::text, {may_lead},
      coalesce(k.pid = pg_backend_pid(), false)
    from pg2kv.lease as l
    join pg_namespace as n on n.nspname = $1::text
    left join pg_locks as k on {is_lock}
    left join pg_stat_activity as a on a.pid = k.pid";

const TRY_LOCK: &str = "\
    select pg_try_advisory_lock((n.oid::int8 << 32) | ($2::int8 & 4294967295))
    from pg_namespace as n where n.nspname = $1::text";

const UNLOCK: &str = "\
    select pg_advisory_unlock((n.oid::int8 << 32) | ($2::int8 & 4294967295))
    from pg_namespace as n where n.nspname = $1::text";

/// `$2`, `$3`: the epoch that was found, and the one to raise it to.
const RAISE_EPOCH: &str = "\
    update pg2kv.lease set epoch = $3::int8, holder = $1, acquired_at = clock_timestamp() \
    where epoch = $2::int8";

/// How far a candidate leaps over locks that strangers hold: they cannot guess how far, nor hold so many.
const LEAP: std::ops::Range<i64> = 2..1 << 20;
/// Locks of strangers that are passed over in one campaign.
const STRANGERS_MAX: usize = 8;

const CURRENT_EPOCH: &str = "select epoch from pg2kv.lease";

const WRITABLE: &str = "\
    select pg_is_in_recovery() or current_setting('transaction_read_only')::bool";

fn holders() -> String {
    HOLDERS
        .replace("{may_lead}", MAY_LEAD)
        .replace("{is_lock}", IS_LOCK)
}

/// The role whose members lead.
pub(super) fn daemon_role(schema: &str) -> String {
    format!("{schema}_daemon")
}

/// Who holds the lock of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Free,
    /// Another daemon.
    Member,
    /// Somebody who may not lead.
    Stranger,
}

/// A process that may become the leader; holds the lease connection.
pub struct Candidate {
    link: Link,
    schema: String,
    role: String,
    holders: String,
    raise: String,
    current: String,
    /// The epoch whose lock this session holds.
    locked: Option<i64>,
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
            role: daemon_role(&settings.schema),
            holders: settings.sql(&holders()),
            raise: settings.sql(RAISE_EPOCH),
            current: settings.sql(CURRENT_EPOCH),
            locked: None,
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
        let (epoch, taken) = self.look(doing, 0).await?;
        if taken == Taken::Member {
            return Ok(None);
        }
        let mut leap = 1;
        for _ in 0..STRANGERS_MAX {
            let next = epoch + leap;
            if self.lock(doing, TRY_LOCK, next).await? {
                // Waits for the fenced transactions of the leader before, which are short.
                let parameters: [&(dyn ToSql + Sync); 3] = [&holder, &epoch, &next];
                let raised = self.link.client().execute(&self.raise, &parameters);
                let raised = self.link.call(doing, 2, Place::Own, raised).await? > 0;
                // Of two locks, one is of an epoch that is over or never was.
                let (kept, other) = match raised {
                    true => (Some(next), self.locked),
                    false => (self.locked, Some(next)),
                };
                if let Some(other) = other {
                    self.lock(doing, UNLOCK, other).await?;
                }
                self.locked = kept;
                return Ok(raised.then_some(Epoch(next)));
            }
            match self.look(doing, leap).await? {
                // The table names another epoch since, or somebody is about to raise it.
                (now, _) if now != epoch => return Ok(None),
                (_, Taken::Member | Taken::Free) => return Ok(None),
                (_, Taken::Stranger) => leap = fastrand::i64(LEAP),
            }
        }
        Err(Error::new(
            Kind::Transient,
            doing,
            "roles that do not belong to pg2kv hold the advisory locks of the epochs to come",
        )
        .with_hint("find them in pg_locks (locktype advisory), and end their sessions"))
    }

    /// The epoch, and who holds the lock of the one so far behind it.
    async fn look(&self, doing: &str, leap: i64) -> Result<(i64, Taken), Error> {
        let parameters: [&(dyn ToSql + Sync); 3] = [&self.schema, &leap, &self.role];
        let rows = self.link.client().query(&self.holders, &parameters);
        let rows = self.link.call(doing, 2, Place::Own, rows).await?;
        let Some(first) = rows.first() else {
            return Err(
                Error::new(Kind::Refused, doing, "the table lease has no row")
                    .with_hint("run `pg2kv install` again; it puts the row back"),
            );
        };
        let others = || {
            rows.iter()
                .filter(|row| row.get(1) && !row.get::<_, bool>(5))
        };
        let taken = if others().any(|row| row.get(4)) {
            Taken::Member
        } else if let Some(stranger) = others().next() {
            tracing::warn!(
                role = stranger.get::<_, Option<&str>>(3),
                process = stranger.get::<_, Option<i32>>(2),
                "a role that does not belong to pg2kv holds an advisory lock of the lease; \
                 passing it over"
            );
            Taken::Stranger
        } else {
            Taken::Free
        };
        Ok((first.get(0), taken))
    }

    async fn lock(&self, doing: &str, sql: &str, epoch: i64) -> Result<bool, Error> {
        let parameters: [&(dyn ToSql + Sync); 2] = [&self.schema, &epoch];
        let row = self.link.client().query_opt(sql, &parameters);
        let row = self.link.call(doing, 2, Place::Own, row).await?;
        Ok(row.is_some_and(|row| row.get(0)))
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
/// served by the very process that was left, or the lock outlives its owner: a pooler. Only a lock that
/// this very process holds counts, since everybody may take one under the same number. The words
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
         where locktype = 'advisory' and classid = {PROBE_CLASS} and objid = {nonce} \
         and pid = {})",
        left.as_deref().unwrap_or("0")
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
