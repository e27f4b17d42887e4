//! Dead letters for people: what there is, trying again, giving up.
//!
//! Owns the statements on `pg2kv.dead_letter` that are not a leader's. Trying again is an ordinary
//! change: the key goes into the outbox, and its letter stays until the daemon has written the
//! document, so nothing is lost in between.

use std::pin::pin;

use futures_util::TryStreamExt as _;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::admin::{Admin, RING};
use super::error::{Error, Place};
use super::schema;
use crate::change::{Key, fingerprint};

/// Most letters that one KEY may stand for; more than one only where fingerprints collide.
const NAMED_MAX: usize = 100;

const SUMMARY: &str = "\
    select sync, reason, count(*),
      to_char(min(at) at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),
      extract(epoch from clock_timestamp() - min(at))::float8
    from pg2kv.dead_letter where $1::text is null or sync = $1
    group by sync, reason order by sync, reason";

/// `$3`: md5 of the keys meant, or NULL for all. The hash is what the table's index is over.
const SHOW: &str = "\
    select key::text, kv_key, reason, detail,
      to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
    from pg2kv.dead_letter
    where sync = $1::text and ($2::text is null or reason = $2)
      and ($3::text[] is null or md5(key::text) = any ($3))
    order by at, md5(key::text) limit $4::int8";

const COUNT: &str = "\
    select count(*) from pg2kv.dead_letter
    where sync = $1::text and ($2::text is null or reason = $2)
      and ($3::text[] is null or md5(key::text) = any ($3))";

const RETRY: &str = "\
    insert into pg2kv.outbox (sync, key)
    select sync, key from pg2kv.dead_letter
    where sync = $1::text and ($2::text is null or reason = $2)
      and ($3::text[] is null or md5(key::text) = any ($3))";

const DROP: &str = "\
    delete from pg2kv.dead_letter
    where sync = $1::text and ($2::text is null or reason = $2)
      and ($3::text[] is null or md5(key::text) = any ($3))";

const KEYS: &str =
    "select key::text, kv_key, md5(key::text) from pg2kv.dead_letter where sync = $1";

/// Letters of one sync and reason.
#[derive(Clone, Debug)]
pub struct LetterGroup {
    /// The sync.
    pub sync: String,
    /// Why these keys cannot be written.
    pub reason: String,
    /// How many they are.
    pub count: i64,
    /// When the oldest was written, RFC 3339.
    pub oldest: String,
    /// Age of the oldest in seconds.
    pub oldest_seconds: f64,
}

/// A letter.
#[derive(Clone, Debug)]
pub struct Letter {
    /// The key; its `Debug` is a fingerprint.
    pub key: Key,
    /// Name of the pair in KV, where it has a legal one.
    pub kv_key: Option<String>,
    /// Why it cannot be written.
    pub reason: String,
    /// The same in a sentence.
    pub detail: Option<String>,
    /// When it was written, RFC 3339.
    pub at: String,
}

/// Which letters of a sync are meant.
#[derive(Clone, Debug)]
pub struct Selection {
    sync: String,
    reason: Option<String>,
    hashes: Option<Vec<String>>,
}

impl Admin {
    /// Counts letters by sync and reason, of one sync or of all.
    ///
    /// # Errors
    /// There is no schema, or the role may not read it.
    pub async fn letter_groups(&self, sync: Option<&str>) -> Result<Vec<LetterGroup>, Error> {
        schema::require(&self.settings().schema, self.link()).await?;
        let parameters: [&(dyn ToSql + Sync); 1] = [&sync];
        let rows = self
            .ask("counting dead letters", SUMMARY, &parameters)
            .await?;
        Ok(rows
            .iter()
            .map(|row| LetterGroup {
                sync: row.get(0),
                reason: row.get(1),
                count: row.get(2),
                oldest: row.get(3),
                oldest_seconds: row.get(4),
            })
            .collect())
    }

    /// Letters of a sync, of one reason or of all, of one key or of all.
    ///
    /// A key may be given as its KV key, as its JSON array, or as its fingerprint. A selection that
    /// finds nothing is no error.
    ///
    /// # Errors
    /// There is no schema, or the role may not read it.
    pub async fn select_letters(
        &self,
        sync: &str,
        reason: Option<&str>,
        key: Option<&str>,
    ) -> Result<Selection, Error> {
        schema::require(&self.settings().schema, self.link()).await?;
        let hashes = match key {
            None => None,
            Some(key) => Some(self.letters_named(sync, key).await?),
        };
        Ok(Selection {
            sync: sync.to_owned(),
            reason: reason.map(str::to_owned),
            hashes,
        })
    }

    /// The oldest letters, at most `limit`.
    ///
    /// # Errors
    /// As for any statement.
    pub async fn letters(&self, which: &Selection, limit: u32) -> Result<Vec<Letter>, Error> {
        let limit = i64::from(limit);
        let mut parameters = which.parameters();
        parameters.push(&limit);
        let rows = self.ask("reading dead letters", SHOW, &parameters).await?;
        Ok(rows
            .iter()
            .map(|row| Letter {
                key: Key::new(row.get::<_, &str>(0)),
                kv_key: row.get(1),
                reason: row.get(2),
                detail: row.get(3),
                at: row.get(4),
            })
            .collect())
    }

    /// How many letters are meant.
    ///
    /// # Errors
    /// As for any statement.
    pub async fn count_letters(&self, which: &Selection) -> Result<u64, Error> {
        let rows = self
            .ask("counting dead letters", COUNT, &which.parameters())
            .await?;
        Ok(rows.first().map_or(0, |row| {
            u64::try_from(row.get::<_, i64>(0)).unwrap_or_default()
        }))
    }

    /// Has the daemon look at these keys again, and wakes it. A letter goes once its document is
    /// written. Returns how many they are.
    ///
    /// # Errors
    /// As for any statement; then nothing was changed, unless the connection broke.
    pub async fn retry_letters(&self, which: &Selection) -> Result<u64, Error> {
        let doing = "retrying dead letters";
        let (retry, ring) = (self.settings().sql(RETRY), self.settings().sql(RING));
        let client = self.link().client();
        self.link()
            .call(doing, 4, Place::Own, async {
                client.batch_execute("begin").await?;
                let changed = async {
                    let count = client.execute(&retry, &which.parameters()).await?;
                    client.execute(&ring, &[&self.settings().schema]).await?;
                    Ok(count)
                };
                match changed.await {
                    Ok(count) => client.batch_execute("commit").await.map(|()| count),
                    Err(error) => {
                        // The first error says what went wrong; the session ends with the verb.
                        let _ = client.batch_execute("rollback").await;
                        Err(error)
                    }
                }
            })
            .await
    }

    /// Deletes letters; their keys are not looked at again before their next change. Returns how
    /// many they were.
    ///
    /// # Errors
    /// As for any statement.
    pub async fn drop_letters(&self, which: &Selection) -> Result<u64, Error> {
        let drop = self.settings().sql(DROP);
        let parameters = which.parameters();
        let execute = self.link().client().execute(&drop, &parameters);
        self.link()
            .call("dropping dead letters", 2, Place::Own, execute)
            .await
    }

    /// Letters that `text` means. All of the sync's are read, one after the other: what people
    /// write (a fingerprint, JSON with other spaces) has no index.
    async fn letters_named(&self, sync: &str, text: &str) -> Result<Vec<String>, Error> {
        let as_json: Option<serde_json::Value> = serde_json::from_str(text).ok();
        let sql = self.settings().sql(KEYS);
        let client = self.link().client();
        self.link()
            .call("looking for a dead letter", 2, Place::Own, async {
                let mut found = Vec::new();
                let mut rows = pin!(client.query_raw(&sql, [sync]).await?);
                while let Some(row) = rows.try_next().await? {
                    let key: &str = row.try_get(0)?;
                    let name: Option<&str> = row.try_get(1)?;
                    let meant = name == Some(text)
                        || fingerprint(key) == text
                        || (as_json.is_some() && serde_json::from_str(key).ok() == as_json);
                    if meant && found.len() < NAMED_MAX {
                        found.push(row.try_get(2)?);
                    }
                }
                Ok(found)
            })
            .await
    }

    async fn ask(
        &self,
        doing: &str,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        let sql = self.settings().sql(sql);
        let query = self.link().client().query(&sql, parameters);
        self.link().call(doing, 2, Place::Own, query).await
    }
}

impl Selection {
    fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        vec![&self.sync, &self.reason, &self.hashes]
    }
}
