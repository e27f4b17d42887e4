//! What the ledger says about one key. Reads only.
//!
//! Owns the statement that looks into every table of ours at once, in one snapshot: a key on its way
//! from the outbox into a claim shows in one of them.

use tokio_postgres::types::ToSql;

use super::admin::{self, Leader};
use super::audit::Auditor;
use super::error::{Error, Kind, Place};
use super::{Attributes, SyncSource, ValueSql, triggers};
use crate::change::{Key, SyncId};

/// `$1`: sync, `$2`: key. Keys are compared as text: 1.0 and 1.00 are equal numbers, but two keys.
///
/// A row of the outbox that is neither the key nor the marker for this one key asks for a look at
/// many keys, this one perhaps among them.
const STANDING: &str = "\
    select s.name is not null, coalesce(s.backfilled_at = '-infinity', false),
      extract(epoch from clock_timestamp()
        - case when s.backfilled_at <> '-infinity' then s.backfilled_at end)::float8,
      o.own, extract(epoch from clock_timestamp() - o.own_since)::float8,
      o.many, extract(epoch from clock_timestamp() - o.many_since)::float8,
      c.epoch, extract(epoch from clock_timestamp() - c.since)::float8,
      d.reason, d.detail, extract(epoch from clock_timestamp() - d.at)::float8,
      b.reason, b.phase, b.position::text, b.done, b.estimate,
      s.deletes_held, pg_is_in_recovery()
    from (select $1::text as sync, $2::text as key, '{\"again\": ' || $2::text || '}' as again) as w
    left join pg2kv.sync as s on s.name = w.sync
    cross join lateral (
      select count(*) filter (where q.own) as own, min(q.at) filter (where q.own) as own_since,
        count(*) filter (where not q.own) as many, min(q.at) filter (where not q.own) as many_since
      from (
        select r.at, coalesce(r.key::text = any (array[w.key, w.again]), false) as own
        from pg2kv.outbox as r
        where r.sync = w.sync and (r.key is null or r.key::text = any (array[w.key, w.again])
          or (jsonb_typeof(r.key) = 'object' and not r.key ? 'again'))
      ) as q
    ) as o
    left join lateral (
      select k.epoch, k.at as since from pg2kv.claim as k
      where k.sync = w.sync and w.key = any (k.keys)
      order by k.id desc limit 1
    ) as c on true
    left join pg2kv.dead_letter as d
      on d.sync = w.sync and md5(d.key::text) = md5(w.key) and d.key::text = w.key
    left join pg2kv.backfill as b on b.sync = w.sync";

/// Where a key stands in the ledger. Ages are in seconds by the clock of the server.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Who leads, or led last.
    pub leader: Option<Leader>,
    /// The sync's table is watched.
    pub watched: bool,
    /// What is wrong with the triggers.
    pub fault: Option<String>,
    /// The triggers were not in order, and no walk has begun since: what they missed is unknown.
    pub owed: bool,
    /// Age of the end of the last walk over all rows; `None` where there was none.
    pub walked: Option<f64>,
    /// Rows of the outbox for this key.
    pub changes: Waiting,
    /// Rows of the outbox that ask for a look at many keys.
    pub requests: Waiting,
    /// The newest claim that holds the key.
    pub claim: Option<Claimed>,
    /// Its dead letter.
    pub letter: Option<DeadLetter>,
    /// The walk over all rows that is under way.
    pub backfill: Option<Walk>,
    /// Keys of the sync whose deletes the brake holds, about; `None` while it holds none.
    pub held: Option<u64>,
}

/// Rows of the outbox.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waiting {
    /// How many.
    pub rows: u64,
    /// Age of the oldest, where there is one.
    pub oldest: Option<f64>,
}

/// A claim that holds the key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claimed {
    /// Age.
    pub age: f64,
    /// It was made by the one who leads now; if not, its writes are in doubt.
    pub current: bool,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetter {
    /// Kind.
    pub reason: String,
    /// Sentence.
    pub detail: Option<String>,
    /// Age.
    pub age: f64,
}

/// A walk over all rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Walk {
    /// Why it runs.
    pub reason: String,
    /// Whether it walks rows; if not, it is through with them and looks through the names in KV.
    pub rows: bool,
    /// Whether the key, were it a row's, is still ahead of it.
    pub ahead: bool,
    /// Rows and names done.
    pub done: u64,
    /// Estimated rows in all.
    pub estimate: Option<u64>,
}

/// What there is of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// There is none.
    Absent,
    /// There is one, and `where` keeps it out.
    Unpublished,
    /// There is one, and it is published.
    Published,
    /// There is one, and `where` fails for it.
    Failing,
}

impl Auditor {
    /// What the ledger says about a key.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Relation`; `Refused` on a standby, which may be behind.
    pub async fn standing(&self, sync: &SyncSource, key: &Key) -> Result<Standing, Error> {
        let doing = "looking for the key in the ledger";
        let (link, settings) = (self.link(), self.settings());
        let leader = admin::leader(link, settings).await?;
        let fault = triggers::fault(settings, link, sync).await?;
        let (sql, key_text) = (settings.sql(STANDING), key.as_str());
        let parameters: [&(dyn ToSql + Sync); 2] = [&sync.name, &key_text];
        let row = link.client().query_one(&sql, &parameters);
        let row = link.call(doing, 2, Place::Own, row).await?;
        if row.get(18) {
            let what = "this server is a standby, which may be behind";
            return Err(Error::new(Kind::Refused, doing, what)
                .with_hint("let postgres.url lead to the primary"));
        }
        let number = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or_default();
        let maybe = |at: usize| {
            row.get::<_, Option<i64>>(at)
                .and_then(|n| u64::try_from(n).ok())
        };
        // Negative where the server's clock was set back.
        let age = |at: usize| row.get::<_, Option<f64>>(at).map(|age| age.max(0.0));
        let backfill = match row.get::<_, Option<String>>(12) {
            None => None,
            Some(reason) => {
                let rows = row.get::<_, &str>(13) == "rows";
                let ahead = match row.get::<_, Option<&str>>(14) {
                    _ if !rows => false,
                    None => true,
                    Some(position) => {
                        let reader = self.readers().of(sync).await?;
                        reader.is_ahead(sync, position, key).await?
                    }
                };
                Some(Walk {
                    reason,
                    rows,
                    ahead,
                    done: number(15),
                    estimate: maybe(16),
                })
            }
        };
        Ok(Standing {
            watched: row.get(0),
            fault,
            owed: row.get(1),
            walked: age(2),
            changes: Waiting {
                rows: number(3),
                oldest: age(4),
            },
            requests: Waiting {
                rows: number(5),
                oldest: age(6),
            },
            claim: row.get::<_, Option<i64>>(7).map(|epoch| Claimed {
                age: age(8).unwrap_or_default(),
                current: leader
                    .as_ref()
                    .is_some_and(|leader| leader.alive && leader.epoch == epoch),
            }),
            letter: row.get::<_, Option<String>>(9).map(|reason| DeadLetter {
                reason,
                detail: row.get(10),
                age: age(11).unwrap_or_default(),
            }),
            backfill,
            held: maybe(17),
            leader,
        })
    }

    /// Whether there is a row of this key, whatever document it makes.
    ///
    /// # Errors
    /// `Connection`, `Transient`, `Relation`.
    pub async fn presence(&self, sync: &SyncSource, key: &Key) -> Result<Presence, Error> {
        let bare = SyncSource {
            value: ValueSql::Expression("'row'".to_owned()),
            // Of these only the expiry decides whether a row is published.
            attributes: Attributes {
                expiry: sync.attributes.expiry.clone(),
                ..Attributes::default()
            },
            ..sync.clone()
        };
        let all = SyncSource {
            id: SyncId(bare.id.0.wrapping_add(1)),
            filter: None,
            attributes: Attributes::default(),
            ..bare.clone()
        };
        // A reader keeps what it prepared by the number of the sync; these are others.
        let reader = self.readers().of(sync).await?.another();
        let there = async |source: &SyncSource| {
            let rows = self
                .read_by(&reader, source, std::slice::from_ref(key))
                .await?;
            Ok(rows
                .into_iter()
                .next()
                .flatten()
                .map(|row| row.draft.is_some()))
        };
        if there(&all).await? == Some(false) {
            return Ok(Presence::Absent);
        }
        Ok(match there(&bare).await? {
            Some(true) => Presence::Published,
            Some(false) => Presence::Unpublished,
            None => Presence::Failing,
        })
    }
}
