//! With which configuration the pairs in KV were made, and what follows where it is another now.
//!
//! Owns the statement by which a leader adopts its configuration before it writes anything. It notes
//! the new one at once, and in the same transaction what follows: a comparison is owed, and names
//! that are no longer made are retired. So whatever dies afterwards, and whoever leads next with
//! whichever configuration, nothing of it is forgotten; an old daemon that leads once more adopts
//! its own configuration back the same way.

use serde_json::{Map, Value};
use tokio_postgres::types::ToSql;

use super::error::{Error, Place};
use super::link::{Link, Role};
use super::{Settings, SyncSource, schema};
use crate::change::{Epoch, SyncId};
use crate::ledger::{OldNames, Reconfigured, RetiredId};

/// Member of a described sync: its key template.
pub const KEY: &str = "key";
/// Member of a described sync: the columns whose values the template takes, in their order.
pub const KEY_VALUES: &str = "key_values";
/// Member of a described sync: its namespace.
pub const NAMESPACE: &str = "namespace_id";

/// `$2`, `$3`: syncs, and how they are described.
///
/// A sync that no leader adopted yet is owed a comparison only where something was written for it: by
/// a version that did not note its configuration. Names that are made again are no longer retired;
/// deletes of them that are on their way still may land, which the caller is told. What could not be
/// written may be written now, so dead letters are looked at again. Of a sync that changes once
/// more, all retired names wait until the newest are written.
const ADOPT: &str = "\
    with fence as materialized (select from pg2kv.lease where epoch = $1 for share),
    wanted as (
      select w.name, w.now::jsonb as now from fence, unnest($2::text[], $3::text[]) as w(name, now)
    ),
    changed as materialized (
      select w.name, s.configured as before, w.now, s.backfilled_at is null as fresh
      from wanted as w join pg2kv.sync as s on s.name = w.name
      where (s.configured = w.now) is not true
    ),
    noted as (
      update pg2kv.sync as s set configured = c.now,
        audit_owed = case when c.before is null and c.fresh then s.audit_owed
          else 'configuration changed' end
      from changed as c where s.name = c.name
    ),
    made_again as materialized (
      select r.id, r.touched_at from pg2kv.retired as r join wanted as w on w.name = r.sync
      where (r.namespace, r.template, to_jsonb(r.key_values))
        = ((w.now->>'namespace_id'), (w.now->>'key'), (w.now->'key_values'))
    ),
    returned as (
      delete from pg2kv.retired as r using made_again as m where r.id = m.id
    ),
    renewed as (
      update pg2kv.retired as r set after_outbox = null, after_claim = null
      from changed as c
      where r.sync = c.name and r.id <> all (select m.id from made_again as m)
        and ((r.namespace, r.template, to_jsonb(r.key_values))
          = ((c.before->>'namespace_id'), (c.before->>'key'), (c.before->'key_values'))) is not true
    ),
    retired as (
      insert into pg2kv.retired as r (sync, namespace, template, key_values)
      select c.name, c.before->>'namespace_id', c.before->>'key',
        array(select jsonb_array_elements_text(c.before->'key_values'))
      from changed as c
      where (((c.before->>'namespace_id'), (c.before->>'key'), (c.before->'key_values'))
          = ((c.now->>'namespace_id'), (c.now->>'key'), (c.now->'key_values'))) is not true
        and c.before ? 'namespace_id'
      on conflict (sync, namespace, template, key_values) do update set
        retired_at = clock_timestamp(), after_outbox = null, after_claim = null
    ),
    retried as (
      insert into pg2kv.outbox (sync, key)
      select d.sync, d.key from pg2kv.dead_letter as d join changed as c on c.name = d.sync
      where c.before is not null
        and (c.before->'key_columns') = (c.now->'key_columns')
    )
    select exists (select from fence),
      exists (select from pg2kv.retired as r 
        where r.touched_at > (clock_timestamp() - interval '2 hours')),
      c.name, c.before::text, c.now::text
    from (select) as one left join changed as c on true";

const RETIRED: &str = "select id, sync from pg2kv.retired order by id";

const PLANS: &str = "\
    select s.name, s.configured::text, s.backfilled_at is not null, s.keys_estimate,
      (select count(*) from pg2kv.outbox as o where o.sync = s.name)
    from pg2kv.sync as s order by s.name";

/// What a leader adopted.
pub(crate) struct Adopted {
    /// Syncs whose configuration is another than before, for people.
    pub(crate) changed: Vec<Reconfigured>,
    /// Names that are no longer made, of configured syncs.
    pub(crate) retired: Vec<OldNames>,
    /// Deletes of retired names may still be on their way.
    pub(crate) unsure: bool,
}

/// A member of a described sync that is another than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The option.
    pub option: String,
    /// What it was; `None` where it was not there.
    pub before: Option<Value>,
    /// What it is.
    pub now: Option<Value>,
}

/// What is known of a watched sync before a daemon runs with this configuration.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// How it was described to the daemon that led last; `None` where none did.
    pub before: Option<String>,
    /// It was walked to the end at least once.
    pub walked: bool,
    /// Its keys, about.
    pub keys: Option<u64>,
    /// Rows of the outbox that wait for it.
    pub waiting: u64,
}

/// What differs between two descriptions, by the name of the option. What is not a description
/// differs in nothing.
pub fn differences(before: &str, now: &str) -> Vec<Difference> {
    let parse = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap_or_default();
    let (mut before, mut now) = (parse(before), parse(now));
    let mut options: Vec<String> = before.keys().chain(now.keys()).cloned().collect();
    options.sort_unstable();
    options.dedup();
    options
        .into_iter()
        .filter_map(|option| {
            let there = |value: Option<Value>| value.filter(|value| !value.is_null());
            let before = there(before.remove(&option));
            let now = there(now.remove(&option));
            (before != now).then_some(Difference {
                option,
                before,
                now,
            })
        })
        .collect()
}

/// Notes the configuration of this leadership. See the module.
pub(crate) async fn adopt(
    settings: &Settings,
    link: &Link,
    syncs: &[SyncSource],
    epoch: Epoch,
) -> Result<Adopted, Error> {
    let doing = "noting the configuration";
    let names: Vec<&str> = syncs.iter().map(|sync| sync.name.as_str()).collect();
    let described: Vec<&str> = syncs.iter().map(|sync| sync.configured.as_str()).collect();
    let (adopt, retired) = (settings.sql(ADOPT), settings.sql(RETIRED));
    let client = link.client();
    let parameters: [&(dyn ToSql + Sync); 3] = [&epoch.0, &names, &described];
    let rows = client.query(&adopt, &parameters);
    let rows = link.call(doing, 3, Place::Own, rows).await?;
    if !rows.first().is_some_and(|row| row.get(0)) {
        return Err(Error::fenced(doing));
    }
    let id_of = |name: &str| -> Option<SyncId> {
        let sync = syncs.iter().find(|sync| sync.name == name)?;
        Some(sync.id)
    };
    let left = link
        .call(doing, 2, Place::Own, client.query(&retired, &[]))
        .await?;
    Ok(Adopted {
        changed: rows
            .iter()
            .filter_map(|row| {
                let sync = id_of(row.get::<_, Option<&str>>(2)?)?;
                let before: &str = row.get::<_, Option<&str>>(3)?;
                let options = differences(before, row.get::<_, Option<&str>>(4)?);
                let options = options.into_iter().map(|one| one.option).collect();
                Some(Reconfigured { sync, options })
            })
            .collect(),
        retired: left
            .iter()
            .filter_map(|row| {
                Some(OldNames {
                    id: RetiredId(row.get(0)),
                    sync: id_of(row.get(1))?,
                })
            })
            .collect(),
        unsure: rows.iter().any(|row| row.get(1)),
    })
}

/// What is known of every watched sync. Changes nothing.
///
/// # Errors
/// As for any connection; there is no schema.
pub async fn plans(settings: &Settings) -> Result<Vec<Plan>, Error> {
    let link = Link::open(settings, Role::Background, None).await?;
    schema::require(&settings.schema, &link).await?;
    let sql = settings.sql(PLANS);
    let rows = link.client().query(&sql, &[]);
    let rows = link
        .call("reading the configuration of before", 2, Place::Own, rows)
        .await?;
    Ok(rows
        .iter()
        .map(|row| Plan {
            name: row.get(0),
            before: row.get(1),
            walked: row.get(2),
            keys: row
                .get::<_, Option<i64>>(3)
                .and_then(|keys| u64::try_from(keys).ok()),
            waiting: u64::try_from(row.get::<_, i64>(4)).unwrap_or_default(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let before = json!({ "key": "a:{id}", "where": null, "columns": ["x"], "value": null });
        let now = json!({ "key": "b:{id}", "columns": ["x"], "value": "y", "new": null });
        let told = differences(&before.to_string(), &now.to_string());
        let one = |option: &str, before: Option<&str>, now: Option<&str>| Difference {
            option: option.to_owned(),
            before: before.map(Value::from),
            now: now.map(Value::from),
        };
        assert_eq!(
            told,
            [
                one("key", Some("a:{id}"), Some("b:{id}")),
                one("value", None, Some("y"))
            ]
        );
        assert_eq!(differences(&now.to_string(), &now.to_string()), []);
    }
}
