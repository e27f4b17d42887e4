//! What `pg2kv check` asks of Postgres: each finding is fine, or says what to do.
//!
//! Reads only.

use std::sync::Arc;

use tokio_postgres::types::ToSql;

use super::claim::Claims;
use super::error::{Error, Kind, Place};
use super::lease::Candidate;
use super::link::{Link, Role};
use super::readers::Readers;
use super::rows::{Plan, expand};
use super::{Settings, SyncSource, schema, triggers};
use crate::ledger::Examined;
use crate::sql_kit::RelatedSpec;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: `connection`, `sync users: triggers`.
    pub what: String,
    /// Whether it is as it must be.
    pub grade: Grade,
    /// What was found, one sentence without row data.
    pub detail: String,
    /// What to do, where it is not.
    pub hint: Option<String>,
}

/// How grave a [`Finding`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grade {
    /// As it must be.
    Fine,
    /// It depends on something that cannot be looked at.
    Doubtful,
    /// Not as it must be.
    Bad,
}

impl Finding {
    fn fine(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            grade: Grade::Fine,
            detail: detail.into(),
            hint: None,
        }
    }

    fn bad(what: impl Into<String>, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            grade: Grade::Bad,
            detail: detail.into(),
            hint: Some(hint.into()),
        }
    }

    fn doubtful(
        what: impl Into<String>,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            grade: Grade::Doubtful,
            ..Self::bad(what, detail, hint)
        }
    }

    fn error(what: impl Into<String>, error: &Error) -> Self {
        Self {
            what: what.into(),
            grade: Grade::Bad,
            detail: error.to_string(),
            hint: error.hint().map(str::to_owned),
        }
    }
}

const SERVER: &str = "\
    select current_setting('server_version'), current_database()::text, current_user::text,
      current_setting('server_encoding'), current_setting('max_prepared_transactions')::int4";

/// What the daemon's statements need, table by table.
const PRIVILEGES: &str = "\
    select w.name || ': ' || w.privilege
    from (values
      ('pg2kv.meta', 'select'), ('pg2kv.sync', 'select'),
      ('pg2kv.related', 'select'),
      ('pg2kv.outbox', 'select'), ('pg2kv.outbox', 'insert'),
      ('pg2kv.claim', 'select'), ('pg2kv.claim', 'insert'), ('pg2kv.claim', 'delete'),
      ('pg2kv.dead_letter', 'select'), ('pg2kv.dead_letter', 'insert'),
      ('pg2kv.dead_letter', 'update'), ('pg2kv.dead_letter', 'delete'),
      ('pg2kv.backfill', 'select'), ('pg2kv.backfill', 'insert'),
      ('pg2kv.backfill', 'update'), ('pg2kv.backfill', 'delete'),
      ('pg2kv.retired', 'select'), ('pg2kv.retired', 'insert'),
      ('pg2kv.retired', 'update'), ('pg2kv.retired', 'delete'),
      ('pg2kv.lease', 'select'), ('pg2kv.lease', 'update')
    ) as w(name, privilege)
    where not has_table_privilege(w.name, w.privilege)
    union all
    select 'pg2kv.bell: update' where not has_sequence_privilege('pg2kv.bell', 'update')
    union all
    select 'pg2kv.outbox_id_seq: select'
    where not has_sequence_privilege('pg2kv.outbox_id_seq', 'select')
    union all
    select w.name || ': execute'
    from (values ('pg2kv.take(bigint[], bigint[])'), ('pg2kv.trigger_faults(text)'), ('pg2kv.tables_of(regclass)'),
      ('pg2kv.index_advice(text)'), ('pg2kv.related_label(text, text)'),
      ('pg2kv.has_index(regclass, text[])'), ('pg2kv.index_for(regclass, text[], text[])'),
      -- Everybody may call these, unless somebody took that away.
      ('pg_control_system()'), ('pg_walfile_name(pg_lsn)'), ('pg_current_wal_lsn()')) as w(name)
    where not has_function_privilege(w.name, 'execute')
    union all
    select c.name || ': update' from (values ('meta', 'identity'), ('sync', 'backfilled_at'),
      ('sync', 'deletes_held'), ('sync', 'configured'))
      as c(name, col)
    where not has_column_privilege('pg2kv.' || c.name, c.col, 'update')";

/// Whether an index of the table begins with these columns or they are the key, and the one to make.
const INDEXED: &str = "\
    select t.relation is null or ($2::text[] <@ $3::text[] and $3 <@ $2)
        or pg2kv.has_index(t.relation, $2::text[]),
      coalesce(pg2kv.index_for(t.relation, $2::text[], $3::text[]), '')
    from to_regclass($1::text) as t(relation)";

/// Looks at connection, schema, privileges and each sync.
///
/// Does not fail: what cannot be looked at is a finding.
pub async fn check(settings: &Settings, syncs: &[SyncSource]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let link = match connect(settings, &mut findings).await {
        Ok(link) => Arc::new(link),
        Err(error) => {
            findings.push(Finding::error("connection", &error));
            return findings;
        }
    };
    match privileges(settings, &link).await {
        Ok(finding) => findings.push(finding),
        Err(error) => findings.push(Finding::error("privileges", &error)),
    }
    let claims = Arc::new(Claims::new(settings, Arc::clone(&link)));
    let readers = Readers::new(settings, Role::Bulk, &claims);
    for sync in syncs {
        findings.push(triggers(settings, &link, sync).await);
        let what = format!("sync {}: table", sync.name);
        let readable = readable(settings, &readers, sync).await;
        findings.push(match readable {
            Ok(()) => Finding::fine(what, "columns, value and filter are valid, and readable"),
            Err(error) => Finding::error(what, &error),
        });
        if sync.collect.is_some() {
            findings.push(index(settings, &link, sync).await);
        }
        for related in &sync.related {
            findings.push(expansion(settings, &link, &readers, sync, related).await);
        }
    }
    findings
}

async fn connect(settings: &Settings, findings: &mut Vec<Finding>) -> Result<Link, Error> {
    // A candidate that does not campaign: all that could refuse a leader refuses it here.
    match Candidate::connect(settings).await {
        Ok(candidate) => candidate.release().await,
        Err(error) if error.kind() == Kind::Connection => return Err(error),
        Err(error) => findings.push(Finding::error("schema", &error)),
    }
    let link = Link::open(settings, Role::Background, None).await?;
    if let Ok(standing) = schema::require(&settings.schema, &link).await {
        findings.push(Finding::fine(
            "schema",
            format!("{} has version {}", settings.schema, standing.version),
        ));
    }
    let doing = "asking what server this is";
    let row = link
        .call(doing, 2, Place::Own, link.client().query_one(SERVER, &[]))
        .await?;
    let (version, database, user): (&str, &str, &str) = (row.get(0), row.get(1), row.get(2));
    findings.push(Finding::fine(
        "connection",
        format!("PostgreSQL {version}, database {database}, role {user}"),
    ));
    let encoding: &str = row.get(3);
    if encoding != "UTF8" {
        findings.push(Finding::doubtful(
            "encoding",
            format!("the database is in {encoding}, and KV keys and JSON are UTF-8"),
            "each row whose key or document has bytes that cannot be converted becomes a dead letter; \
             the others flow",
        ));
    }
    if settings.doorbell && row.get::<_, i32>(4) > 0 {
        findings.push(Finding::doubtful(
            "prepared transactions",
            "max_prepared_transactions is above 0, and a transaction that has notified cannot be \
             prepared",
            "if writers of watched tables use PREPARE TRANSACTION, turn the doorbell off",
        ));
    }
    Ok(link)
}

async fn privileges(settings: &Settings, link: &Link) -> Result<Finding, Error> {
    // The names of our objects stand in literals here, one of them in two parts.
    let sql = settings.sql(PRIVILEGES);
    let rows = link
        .call(
            "asking for privileges",
            2,
            Place::Own,
            link.client().query(&sql, &[]),
        )
        .await?;
    if rows.is_empty() {
        return Ok(Finding::fine(
            "privileges",
            "the role may do what the daemon does",
        ));
    }
    let missing: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    Ok(Finding::bad(
        "privileges",
        format!("missing: {}", missing.join(", ")),
        format!(
            "grant {}_daemon to the role that the daemon logs in as; of functions of Postgres's own, \
             grant execute to it",
            settings.schema
        ),
    ))
}

async fn readable(settings: &Settings, readers: &Readers, sync: &SyncSource) -> Result<(), Error> {
    let reader = readers.of(sync).await?;
    let plan = Plan::prepare(settings, reader.link(), sync).await?;
    plan.try_out(reader.link(), sync).await
}

/// Whether the rows of one document can be found without a look at all.
async fn index(settings: &Settings, link: &Link, sync: &SyncSource) -> Finding {
    let what = format!("sync {}: index", sync.name);
    let sql = settings.sql("select pg2kv.index_advice($1)");
    let advice = link
        .call(
            "looking for an index",
            2,
            Place::Own,
            link.client().query_one(&sql, &[&sync.name]),
        )
        .await
        .map(|row| row.get::<_, Option<String>>(0));
    match advice {
        Ok(None) => Finding::fine(what, "the rows of one document are found by an index"),
        Ok(Some(index)) => Finding::doubtful(
            what,
            format!("each change reads all of {}", sync.table),
            index,
        ),
        Err(error) => Finding::error(what, &error),
    }
}

/// Whether the documents of a changed row of a related table can be found, and soon.
async fn expansion(
    settings: &Settings,
    link: &Link,
    readers: &Readers,
    sync: &SyncSource,
    related: &RelatedSpec,
) -> Finding {
    let what = format!("sync {}: related {}", sync.name, related.name);
    let doing = format!(
        "looking for rows of {} that match {}",
        sync.table, related.table
    );
    let prepared = async {
        let reader = readers.of(sync).await?;
        expand::prepare(settings, reader.link(), sync, related, &doing).await
    };
    if let Err(error) = prepared.await {
        return Finding::error(what, &error);
    }
    let own: Vec<&str> = related
        .matches
        .iter()
        .map(|(own, _)| own.as_str())
        .collect();
    let sql = settings.sql(INDEXED);
    let parameters: [&(dyn ToSql + Sync); 3] = [&sync.table, &own, &sync.key_columns];
    let asked = link.client().query_one(&sql, &parameters);
    match link.call(&doing, 2, Place::Relation, asked).await {
        Err(error) => Finding::error(what, &error),
        Ok(row) if row.get(0) => Finding::fine(what, "an index finds the documents of its rows"),
        Ok(row) => Finding::doubtful(
            what,
            format!(
                "no index of {} begins with {}, so finding the documents of a changed row reads all \
                 rows",
                sync.table,
                own.join(", ")
            ),
            row.get::<_, String>(1),
        ),
    }
}

async fn triggers(settings: &Settings, link: &Link, sync: &SyncSource) -> Finding {
    let what = format!("sync {}: triggers", sync.name);
    match triggers::fault(settings, link, sync).await {
        Ok(None) => Finding::fine(what, "present and enabled"),
        Ok(Some(fault)) => Finding::bad(what, fault, Examined::HINT),
        Err(error) => Finding::error(what, &error),
    }
}
