//! What a daemon would do about a configuration that is another than before: the part of
//! `pg2kv check` that tells. Nothing is done here.

use super::output::count;
use crate::config::Config;
use crate::source::configured::{self, Difference, KEY, KEY_VALUES, NAMESPACE, Plan};
use crate::source::{Error, Finding, Grade};
use crate::sql_kit::Schema;

/// Longest option that is told in full, in characters.
const TOLD_MAX: usize = 60;

/// A finding for each sync that changes, and for each that is no longer configured.
pub(super) async fn findings(config: &Config) -> Result<Vec<Finding>, Error> {
    let plans = configured::plans(&config.source_settings()).await?;
    let sources = config.sync_sources();
    Ok(plans
        .iter()
        .filter_map(
            |plan| match sources.iter().find(|source| source.name == plan.name) {
                Some(source) => {
                    let before = plan.before.as_deref()?;
                    let differences = configured::differences(before, &source.configured);
                    (!differences.is_empty()).then(|| changed(config, plan, &differences))
                }
                None => Some(not_configured(&config.postgres.schema, plan)),
            },
        )
        .collect())
}

fn changed(config: &Config, plan: &Plan, differences: &[Difference]) -> Finding {
    // What follows from another option says nothing new.
    let is = |option: &str| differences.iter().any(|one| one.option == option);
    let follows = |option: &str| match option {
        KEY_VALUES => is(KEY),
        "watch" => is("columns"),
        _ => false,
    };
    let told: Vec<String> = differences
        .iter()
        .filter(|one| !follows(&one.option))
        .map(|one| {
            let text = |value: &Option<serde_json::Value>| {
                value
                    .as_ref()
                    .map_or_else(|| "not set".to_owned(), |value| short(&value.to_string()))
            };
            format!("{}: {} → {}", one.option, text(&one.before), text(&one.now))
        })
        .collect();
    let rows = plan.keys.map_or_else(
        || "all rows".to_owned(),
        |keys| format!("about {}", count(keys, "row")),
    );
    let names_change = differences
        .iter()
        .any(|one| [KEY, KEY_VALUES, NAMESPACE].contains(&one.option.as_str()));
    let mut hint = format!(
        "nothing has happened yet; a daemon with this configuration compares {rows} with KV and \
         writes only what differs"
    );
    if names_change {
        let keys = plan.keys.unwrap_or(0);
        hint.push_str(&format!(
            "; then about {} of the names before are to be deleted",
            count(keys, "key")
        ));
        let brake = &config.brake;
        let share = keys as f64 * brake.share;
        if brake.count > 0 && keys > brake.count && keys as f64 > share {
            hint.push_str(&format!(
                ", which [brake] holds until `pg2kv approve-deletes {}`",
                plan.name
            ));
        }
    }
    Finding {
        what: format!("sync {}: changes", plan.name),
        grade: Grade::Doubtful,
        detail: told.join("; "),
        hint: Some(hint),
    }
}

fn not_configured(schema: &Schema, plan: &Plan) -> Finding {
    let Plan {
        name,
        before,
        waiting,
        ..
    } = plan;
    let keys = match before {
        Some(before) => format!(
            "its keys ({}) stay in KV as they are",
            serde_json::from_str::<serde_json::Value>(before)
                .ok()
                .and_then(|before| before.get(KEY)?.as_str().map(str::to_owned))
                .unwrap_or_default()
        ),
        None => "no daemon has written a key for it".to_owned(),
    };
    let waiting = match waiting {
        0 => String::new(),
        waiting => format!(
            ", and {} for it",
            count(*waiting, "change") + " wait in the outbox"
        ),
    };
    Finding {
        what: format!("sync {name}"),
        grade: Grade::Doubtful,
        detail: format!("its table is watched, but it is not configured: {keys}{waiting}"),
        hint: Some(format!(
            "configure it again, or have the database forget it: select {schema}.unwatch('{name}'); to \
             be rid of its keys, set `where = \"false\"`, let the daemon delete them, and then remove it"
        )),
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= TOLD_MAX {
        return text.to_owned();
    }
    let cut: String = text.chars().take(TOLD_MAX).collect();
    format!("{cut}…")
}
