//! What `pg2kv check` and the doctor ask of Postgres: each finding is fine, or says what to do.
//!
//! Reads only. Knows the triggers' names and functions as `install.sql` makes them.

use super::error::{Error, Kind, Place};
use super::lease::Candidate;
use super::link::{Link, Role};
use super::rows::Plan;
use super::{Settings, SyncSource};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at: `connection`, `sync users: triggers`.
    pub what: String,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What was found, one sentence without row data.
    pub detail: String,
    /// What to do, where it is not.
    pub hint: Option<String>,
}

impl Finding {
    fn fine(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            ok: true,
            detail: detail.into(),
            hint: None,
        }
    }

    fn bad(what: impl Into<String>, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            ok: false,
            detail: detail.into(),
            hint: Some(hint.into()),
        }
    }

    fn error(what: impl Into<String>, error: &Error) -> Self {
        Self {
            what: what.into(),
            ok: false,
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
      ('pg2kv.outbox', 'select'), ('pg2kv.outbox', 'delete'),
      ('pg2kv.claim', 'select'), ('pg2kv.claim', 'insert'), ('pg2kv.claim', 'delete'),
      ('pg2kv.dead_letter', 'select'), ('pg2kv.dead_letter', 'insert'),
      ('pg2kv.dead_letter', 'update'), ('pg2kv.dead_letter', 'delete'),
      ('pg2kv.backfill', 'select'), ('pg2kv.backfill', 'insert'),
      ('pg2kv.backfill', 'update'), ('pg2kv.backfill', 'delete'),
      ('pg2kv.lease', 'select'), ('pg2kv.lease', 'update')
    ) as w(name, privilege)
    where not has_table_privilege(w.name, w.privilege)
    union all
    select 'pg2kv.bell: update' where not has_sequence_privilege('pg2kv.bell', 'update')
    union all
    select 'pg2kv.outbox_id_seq: select'
    where not has_sequence_privilege('pg2kv.outbox_id_seq', 'select')
    union all
    select c.name || ': update' from (values ('meta', 'identity'), ('sync', 'backfilled_at'))
      as c(name, col)
    where not has_column_privilege('pg2kv.' || c.name, c.col, 'update')";

/// The relation and key columns that `watch` was told, and what is wrong with the triggers now: all
/// three must be on the table and on each of its partitions.
const WATCHED: &str = "\
    select s.relation::oid is not distinct from to_regclass($2::text)::oid,
      s.key_columns = $3::text[],
      array(
        select format('%s on %s %s', w.name, w.relation, w.fault) from (
          select r.relation, n.name, case
            when t.oid is null then 'is missing'
            when t.tgenabled <> 'A' then 'is not enabled always'
            when p.oid is null then 'calls another function' end as fault
          from (
            select s.relation as relation
            union select p.relid from pg_partition_tree(s.relation) as p
          ) as r
          cross join unnest(array['row', 'update', 'truncate']) as e(kind)
          cross join lateral (
            select format('zzz_%s_%s_%s', $4::text, s.name, e.kind) as name) as n
          left join pg_trigger as t on t.tgrelid = r.relation and t.tgname = n.name
          left join pg_proc as p on p.oid = t.tgfoid and p.proname = 'capture_' || s.name
            and p.pronamespace = (select oid from pg_namespace where nspname = $4)
        ) as w where w.fault is not null)
    from pg2kv.sync as s where s.name = $1";

/// Looks at connection, schema, privileges and each sync.
///
/// Does not fail: what cannot be looked at is a finding.
pub async fn check(settings: &Settings, syncs: &[SyncSource]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let link = match connect(settings, &mut findings).await {
        Ok(link) => link,
        Err(error) => {
            findings.push(Finding::error("connection", &error));
            return findings;
        }
    };
    match privileges(settings, &link).await {
        Ok(finding) => findings.push(finding),
        Err(error) => findings.push(Finding::error("privileges", &error)),
    }
    for sync in syncs {
        triggers(settings, &link, sync, &mut findings).await;
        let what = format!("sync {}: table", sync.name);
        let readable = match Plan::prepare(&link, sync).await {
            Ok(plan) => plan.try_out(&link, sync).await,
            Err(error) => Err(error),
        };
        findings.push(match readable {
            Ok(()) => Finding::fine(what, "columns, value and filter are valid, and readable"),
            Err(error) => Finding::error(what, &error),
        });
    }
    findings
}

async fn connect(settings: &Settings, findings: &mut Vec<Finding>) -> Result<Link, Error> {
    // A candidate that does not campaign: all that could refuse a leader refuses it here.
    match Candidate::connect(settings).await {
        Ok(candidate) => {
            candidate.release().await;
            findings.push(Finding::fine(
                "schema",
                format!("{} is installed", settings.schema),
            ));
        }
        Err(error) if error.kind() == Kind::Connection => return Err(error),
        Err(error) => findings.push(Finding::error("schema", &error)),
    }
    let link = Link::open(settings, Role::Bulk, None).await?;
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
        findings.push(Finding::bad(
            "encoding",
            format!("the database is in {encoding}"),
            "KV keys and JSON are UTF-8; text that has no such form will fail row by row",
        ));
    }
    if settings.doorbell && row.get::<_, i32>(4) > 0 {
        findings.push(Finding::bad(
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
            "grant {}_daemon to the role that the daemon logs in as",
            settings.schema
        ),
    ))
}

async fn triggers(
    settings: &Settings,
    link: &Link,
    sync: &SyncSource,
    findings: &mut Vec<Finding>,
) {
    let what = format!("sync {}: triggers", sync.name);
    let again = "run `pg2kv install`, or the statements that `pg2kv sql` prints";
    let sql = settings.sql(WATCHED);
    let row = link
        .call(
            "looking at triggers",
            2,
            Place::Own,
            link.client().query_opt(
                &sql,
                &[&sync.name, &sync.table, &sync.key_columns, &settings.schema],
            ),
        )
        .await;
    let row = match row {
        Ok(Some(row)) => row,
        Ok(None) => {
            findings.push(Finding::bad(what, "the table is not watched", again));
            return;
        }
        Err(error) => {
            findings.push(Finding::error(what, &error));
            return;
        }
    };
    let wrong: Vec<String> = row.get(2);
    if !row.get::<_, bool>(0) {
        let detail = "another table is watched under this name (was it swapped by a rename?)";
        findings.push(Finding::bad(what, detail, again));
    } else if !row.get::<_, bool>(1) {
        findings.push(Finding::bad(
            what,
            "other key columns are watched than configured",
            again,
        ));
    } else if !wrong.is_empty() {
        findings.push(Finding::bad(what, wrong.join(", "), again));
    } else {
        findings.push(Finding::fine(what, "present and enabled"));
    }
}
