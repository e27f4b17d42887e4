//! A connection for people: runs the SQL kit and reads what stands in the database.
//!
//! Unlike the rest of this room it shows the server's hints: what runs here is our own SQL, whose
//! errors quote no rows. Details are dropped all the same.

use std::time::Duration;

use tokio_postgres::types::ToSql;

use super::Settings;
use super::error::{Error, Kind, Place};
use super::lease::{IS_LOCK, MAY_LEAD, daemon_role};
use super::link::{Link, Role};
use super::schema::{self, Standing};
use crate::change::{Key, OutboxId};

/// Statements that the files of the SQL kit count as, for the deadline.
const KIT_STATEMENTS: u32 = 10;

const LEASE: &str = "\
    select l.holder, l.epoch, to_char(l.acquired_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
      exists (
        select from pg_namespace as n join pg_locks as k on {is_lock}
        join pg_stat_activity as a on a.pid = k.pid
        where n.nspname = $1::text and {may_lead})
    from pg2kv.lease as l";

const STATUS: &str = "\
    select sync, relation, triggers, waiting, extract(epoch from oldest_wait)::float8,
      claims, dead_letters, backfill
    from pg2kv.status()";

/// Where the walk is that takes the place of a marker. One statement, so one view of all of it: the
/// marker goes in the transaction that begins the walk.
const WALK: &str = "\
    select exists (select from pg2kv.sync where name = $1),
      exists (select from pg2kv.outbox where id = $2), b.phase, b.done, b.estimate, b.rows
    from (values (1)) as one left join pg2kv.backfill as b on b.sync = $1";

const DOCUMENTS: &str = "select keys_estimate from pg2kv.sync where name = $1";

const APPROVE_DELETES: &str = "\
    select to_char(pg2kv.approve_deletes($1, make_interval(secs => $2)) at time zone 'UTC',
      'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')";

/// Keys put into the outbox in one statement.
const AGAIN_MAX: usize = 5_000;

const AGAIN: &str = "\
    insert into pg2kv.outbox (sync, key)
    select $1::text, jsonb_build_object('again', u.key::jsonb) from unnest($2::text[]) as u(key)";

const OWE_AUDIT: &str = "\
    update pg2kv.sync set audit_owed = coalesce(audit_owed, 'verify') where name = $1::text";

/// As `pg2kv.resync` does it. A statement of its own after the insert: by then whoever sets the bell
/// finds our lock on the outbox.
pub(super) const RING: &str = "\
    select pg_notify($1::text, '')
    where (select last_value from pg2kv.bell) > extract(epoch from clock_timestamp())
      and pg_notification_queue_usage() <= 0.5";

/// What stands in the database.
#[derive(Clone, Debug)]
pub struct Status {
    /// The version of the schema.
    pub schema: Standing,
    /// Who leads, or led last; `None` where nobody ever did.
    pub leader: Option<Leader>,
    /// Each watched table.
    pub syncs: Vec<SyncStatus>,
}

/// Who leads.
#[derive(Clone, Debug)]
pub struct Leader {
    /// Name of the process.
    pub holder: String,
    /// Number of its leadership.
    pub epoch: i64,
    /// When it began, RFC 3339.
    pub since: Option<String>,
    /// Whether it holds the lease now.
    pub alive: bool,
}

/// What waits for a sync.
#[derive(Clone, Debug)]
pub struct SyncStatus {
    /// Its name.
    pub sync: String,
    /// Its table, where that exists.
    pub table: Option<String>,
    /// `ok`, or what is wrong with the triggers.
    pub triggers: String,
    /// Changes that no daemon has claimed.
    pub waiting: i64,
    /// Age of the oldest of these in seconds.
    pub oldest_wait_seconds: Option<f64>,
    /// Batches whose outcome is not settled.
    pub claims: i64,
    /// Keys that cannot be written.
    pub dead_letters: i64,
    /// How far a backfill is.
    pub backfill: Option<String>,
}

/// Where a walk that was asked for is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// No daemon has begun it.
    Asked,
    /// The rows of the table are looked at.
    Rows {
        /// So many were.
        done: u64,
        /// Rows in all, as the server's statistics have it.
        estimate: Option<u64>,
    },
    /// The names in KV are looked at, for those that no row has.
    Names {
        /// So many were.
        done: u64,
        /// Rows that the walk found: about as many names should be there.
        rows: u64,
    },
    /// It was done to the end.
    Done,
    /// The sync is no longer watched, so nobody will do it.
    Unwatched,
}

/// A connection for people.
pub struct Admin {
    link: Link,
    settings: Settings,
}

impl Admin {
    /// Connects; the session keeps the role's own settings.
    ///
    /// # Errors
    /// As for any connection.
    pub async fn connect(settings: &Settings) -> Result<Self, Error> {
        let link = Link::open(settings, Role::Raw, None).await?;
        Ok(Self {
            link,
            settings: settings.clone(),
        })
    }

    /// Runs statements of the SQL kit and drops what they return.
    ///
    /// # Errors
    /// The server's message with its hint.
    pub async fn run(&self, doing: &str, sql: &str) -> Result<(), Error> {
        let group = async {
            let done = self.link.client().run_file(sql).await;
            done.map_err(|error| told(doing, error))
        };
        self.link.within(doing, KIT_STATEMENTS, group).await
    }

    /// Reads the version of the schema, whatever it is; `None` where there is no schema.
    ///
    /// # Errors
    /// The role may not read it.
    pub async fn schema(&self) -> Result<Option<Standing>, Error> {
        schema::standing(&self.settings.schema, &self.link).await
    }

    /// Asks for everything to be written again; returns the marker that asks for it.
    ///
    /// # Errors
    /// There is no such sync, or no schema.
    pub async fn resync(&self, sync: &str) -> Result<OutboxId, Error> {
        let doing = format!("asking for a resync of {sync}");
        let ask = self.settings.sql("select pg2kv.resync($1)");
        let marker = self.settings.sql("select currval('pg2kv.outbox_id_seq')");
        let (client, told) = (self.link.client(), |error| told(&doing, error));
        // One transaction, so that a pooler has both asked of one session.
        let group = async {
            client.batch_execute("begin").await.map_err(told)?;
            client.execute(&ask, &[&sync]).await.map_err(told)?;
            let marker = client.query_one(&marker, &[]).await.map_err(told)?;
            client.batch_execute("commit").await.map_err(told)?;
            Ok(OutboxId(marker.get(0)))
        };
        schema::require(&self.settings.schema, &self.link).await?;
        self.link.within(&doing, 5, group).await
    }

    /// About how many documents a sync has, where that is known.
    ///
    /// # Errors
    /// There is no such sync, or no schema.
    pub async fn documents(&self, sync: &str) -> Result<Option<u64>, Error> {
        let doing = format!("looking for sync {sync}");
        schema::require(&self.settings.schema, &self.link).await?;
        let sql = self.settings.sql(DOCUMENTS);
        let of: [&(dyn ToSql + Sync); 1] = [&sync];
        let group = self.link.client().query_opt(&sql, &of);
        let Some(row) = self.link.call(&doing, 2, Place::Own, group).await? else {
            let none = Error::new(Kind::Refused, doing, format!("no sync is named '{sync}'"));
            return Err(none.with_hint("`pg2kv status` lists them; `pg2kv install` makes one"));
        };
        let estimate = row.get::<_, Option<i64>>(0);
        Ok(estimate.and_then(|keys| u64::try_from(keys).ok()))
    }

    /// Reads how far the walk is that `marker` asked for.
    ///
    /// # Errors
    /// The role may not read it, or Postgres does not answer.
    pub async fn walk(&self, sync: &str, marker: OutboxId) -> Result<Walk, Error> {
        let sql = self.settings.sql(WALK);
        let of: [&(dyn ToSql + Sync); 2] = [&sync, &marker.0];
        let group = self.link.client().query_one(&sql, &of);
        let row = self
            .link
            .call("reading how far a resync is", 2, Place::Own, group)
            .await?;
        let number = |column| {
            let number = row.get::<_, Option<i64>>(column);
            number.and_then(|number| u64::try_from(number).ok())
        };
        let (watched, waits) = (row.get::<_, bool>(0), row.get::<_, bool>(1));
        let done = number(3).unwrap_or(0);
        Ok(match row.get::<_, Option<&str>>(2) {
            _ if !watched => Walk::Unwatched,
            _ if waits => Walk::Asked,
            None => Walk::Done,
            Some("rows") => Walk::Rows {
                done,
                estimate: number(4),
            },
            Some(_) => {
                let rows = number(5).unwrap_or(0);
                let done = done.saturating_sub(rows);
                Walk::Names { done, rows }
            }
        })
    }

    /// Has these keys written again, whatever the leader remembers: all of them, or none.
    ///
    /// # Errors
    /// There is no schema, or the role may not write to the outbox.
    pub async fn write_again(&self, sync: &str, keys: &[&Key]) -> Result<(), Error> {
        let doing = format!("asking for keys of {sync} to be written again");
        let (again, ring) = (self.settings.sql(AGAIN), self.settings.sql(RING));
        let (client, told) = (self.link.client(), |error| told(&doing, error));
        schema::require(&self.settings.schema, &self.link).await?;
        let chunks = u32::try_from(keys.len() / AGAIN_MAX).unwrap_or(u32::MAX);
        let group = async {
            client.batch_execute("begin").await.map_err(told)?;
            for chunk in keys.chunks(AGAIN_MAX) {
                let texts: Vec<&str> = chunk.iter().map(|key| key.as_str()).collect();
                client
                    .execute(&again, &[&sync, &texts])
                    .await
                    .map_err(told)?;
            }
            let channel = &self.settings.schema;
            client.execute(&ring, &[channel]).await.map_err(told)?;
            client.batch_execute("commit").await.map_err(told)
        };
        self.link
            .within(&doing, chunks.saturating_add(4), group)
            .await
    }

    /// Has the leader compare a sync with KV within a minute: it removes the names that no key makes.
    ///
    /// # Errors
    /// There is no schema, or the role may not write to its tables.
    pub async fn owe_audit(&self, sync: &str) -> Result<(), Error> {
        let doing = format!("asking for a comparison of {sync}");
        let sql = self.settings.sql(OWE_AUDIT);
        let of: [&(dyn ToSql + Sync); 1] = [&sync];
        let asked = self.link.client().execute(&sql, &of);
        self.link.call(&doing, 2, Place::Own, asked).await.map(drop)
    }

    /// Lets any number of keys of a sync be deleted for a while; returns until when, RFC 3339. As a
    /// rehearsal it changes nothing.
    ///
    /// # Errors
    /// There is no such sync, or no schema.
    pub async fn approve_deletes(
        &self,
        sync: &str,
        time: Duration,
        rehearsal: bool,
    ) -> Result<String, Error> {
        let doing = format!("approving deletes of {sync}");
        let sql = self.settings.sql(APPROVE_DELETES);
        let seconds = time.as_secs_f64();
        let (client, told) = (self.link.client(), |error| told(&doing, error));
        let group = async {
            client.batch_execute("begin").await.map_err(told)?;
            let row = client.query_one(&sql, &[&sync, &seconds]).await;
            let end = if rehearsal { "rollback" } else { "commit" };
            let until = row.map_err(told)?.get(0);
            client.batch_execute(end).await.map_err(told)?;
            Ok(until)
        };
        schema::require(&self.settings.schema, &self.link).await?;
        self.link.within(&doing, 4, group).await
    }

    /// Reads who leads, or led last; `None` where nobody ever did.
    ///
    /// # Errors
    /// There is no schema, or the role may not read it.
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        leader(&self.link, &self.settings).await
    }

    /// Reads who leads and what waits.
    ///
    /// # Errors
    /// There is no schema, or the role may not read it.
    pub async fn status(&self) -> Result<Status, Error> {
        let doing = "reading the status";
        let schema = schema::require(&self.settings.schema, &self.link).await?;
        let leader = leader(&self.link, &self.settings).await?;
        let client = self.link.client();
        let status = self.settings.sql(STATUS);
        let rows = self
            .link
            .call(doing, 2, Place::Own, client.query(&status, &[]))
            .await?;
        let syncs = rows
            .iter()
            .map(|row| SyncStatus {
                sync: row.get(0),
                table: row.get(1),
                triggers: row.get(2),
                waiting: row.get(3),
                oldest_wait_seconds: row.get(4),
                claims: row.get(5),
                dead_letters: row.get(6),
                backfill: row.get(7),
            })
            .collect();
        Ok(Status {
            schema,
            leader,
            syncs,
        })
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }
}

/// Who leads, or led last.
pub(super) async fn leader(link: &Link, settings: &Settings) -> Result<Option<Leader>, Error> {
    let sql = LEASE
        .replace("{may_lead}", MAY_LEAD)
        .replace("{is_lock}", IS_LOCK);
    let sql = settings.sql(&sql);
    let role = daemon_role(&settings.schema);
    let parameters: [&(dyn ToSql + Sync); 3] = [&settings.schema, &0_i64, &role];
    let row = link
        .call(
            "asking who leads",
            2,
            Place::Own,
            link.client().query_opt(&sql, &parameters),
        )
        .await?;
    Ok(row.and_then(|row| {
        Some(Leader {
            holder: row.get::<_, Option<String>>(0)?,
            epoch: row.get(1),
            since: row.get(2),
            alive: row.get(3),
        })
    }))
}

/// An error of our own SQL, in the server's words.
fn told(doing: &str, error: tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        return Error::from_driver(Place::Own, doing, error);
    };
    let told = Error::new(Kind::Refused, doing, db.message());
    match db.hint() {
        Some(hint) => told.with_hint(hint),
        None => told,
    }
}
