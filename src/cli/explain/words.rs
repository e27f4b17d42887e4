//! What `pg2kv explain` says, in words.

use super::super::output::{age, count};
use super::{Frame, Stray, Told};
use crate::audit::explain::{Conclusion, Explanation, Found, Wanted, Way};
use crate::change::{ContentHash, KvName};
use crate::ledger::Examined;
use crate::source::explain::{Presence, Standing, Walk};

/// Digits of a hash that tell two contents apart for a person.
const HASH_DIGITS: usize = 12;

/// Everything that is known, a line each.
pub(super) fn rows(
    frame: &Frame<'_>,
    name: &KvName,
    told: &Told<'_>,
) -> Vec<(&'static str, String)> {
    let Told { sync, explanation } = told;
    let source = &sync.source;
    let columns: Vec<String> = source
        .key_columns
        .iter()
        .zip(&explanation.columns)
        .map(|(column, value)| format!("{column} = {}", line(value)))
        .collect();
    let mut rows = vec![
        ("key", line(name.as_str())),
        ("namespace", sync.namespace.as_str().to_owned()),
        ("sync", format!("{}, from {}", source.name, source.table)),
        (
            "row",
            format!("{}: {}", columns.join(", "), presence(explanation)),
        ),
        (
            "Postgres",
            explanation
                .wanted
                .as_ref()
                .map_or_else(|| "not read".to_owned(), wanted),
        ),
        (
            "KV",
            explanation
                .found
                .as_ref()
                .map_or_else(|| "no such key".to_owned(), found),
        ),
    ];
    if frame.args.show_values {
        let in_postgres = match &explanation.wanted {
            Some(Wanted::Pair(document)) => text(document.value.bytes()),
            _ => "-".to_owned(),
        };
        let in_kv = explanation.found.as_ref();
        rows.push(("in Postgres", in_postgres));
        rows.push((
            "in KV",
            in_kv.map_or_else(|| "-".to_owned(), |found| text(&found.value)),
        ));
    }
    let Some(standing) = &explanation.standing else {
        return rows;
    };
    rows.push(("leader", leader(standing)));
    rows.push(("triggers", triggers(standing)));
    rows.push(("change", change(standing)));
    rows.push(("claim", claim(frame, standing)));
    rows.push(("dead letter", letter(standing)));
    rows.push(("backfill", backfill(standing)));
    rows.push(("deletes", deletes(standing)));
    rows.push(("last write", last_write(standing)));
    rows
}

fn presence(explanation: &Explanation) -> &'static str {
    match &explanation.wanted {
        None if explanation.key.is_none() => "there can be none; the text is no value of the type",
        None => "not read",
        Some(Wanted::Pair(_) | Wanted::Poison(_) | Wanted::Failing) => "there",
        Some(Wanted::Nothing(Presence::Absent)) => "there is none",
        Some(Wanted::Nothing(_)) => "there, but without a document",
    }
}

fn wanted(wanted: &Wanted) -> String {
    match wanted {
        Wanted::Pair(document) => {
            let size = bytes(document.value.bytes().len());
            format!("{size}, hash {}", short(document.hash))
        }
        Wanted::Nothing(Presence::Absent) => "no document".to_owned(),
        Wanted::Nothing(Presence::Unpublished) => {
            "no document: `where` keeps the row out".to_owned()
        }
        Wanted::Nothing(Presence::Published) => "no document: its value is NULL".to_owned(),
        Wanted::Nothing(Presence::Failing) => "no document: `where` fails for the row".to_owned(),
        Wanted::Poison(poison) => format!("{}: {}", poison.reason.as_str(), poison.detail),
        Wanted::Failing => "no document: the value, or `where`, fails for the row".to_owned(),
    }
}

/// A pair in KV.
pub(super) fn found(found: &Found) -> String {
    let size = bytes(found.value.len());
    match (found.hash.filter(|_| found.own), found.other, found.mark) {
        (Some(hash), ..) => format!("{size}, hash {}", short(hash)),
        (None, Some(other), _) => format!("{size}, written by installation {other} of pg2kv"),
        (None, None, Some(_)) => {
            format!("{size}, written by another sync of this installation")
        }
        (None, None, None) => format!("{size}, not written by pg2kv"),
    }
}

fn leader(standing: &Standing) -> String {
    match &standing.leader {
        Some(leader) if leader.alive => leader.holder.clone(),
        Some(leader) => format!("none; the last one was {}", leader.holder),
        None => "none, and there never was one".to_owned(),
    }
}

fn triggers(standing: &Standing) -> String {
    match &standing.fault {
        Some(fault) => fault.clone(),
        None if standing.owed => "in order again; what they missed is looked for".to_owned(),
        None => "in order".to_owned(),
    }
}

fn change(standing: &Standing) -> String {
    let mut parts = Vec::new();
    if let Some(oldest) = standing.changes.oldest {
        let waiting = count(standing.changes.rows, "change");
        let oldest = age(oldest);
        parts.push(match standing.changes.rows {
            1 => format!("{waiting} waiting for {oldest}"),
            _ => format!("{waiting} waiting, the oldest for {oldest}"),
        });
    }
    if let Some(oldest) = standing.requests.oldest {
        parts.push(format!(
            "a look at all keys was asked for {} ago",
            age(oldest)
        ));
    }
    if parts.is_empty() {
        parts.push("none waits".to_owned());
    }
    parts.join("; ")
}

fn claim(frame: &Frame<'_>, standing: &Standing) -> String {
    match standing.claim {
        None => "none".to_owned(),
        Some(claim) if !claim.current => format!(
            "by an earlier leader, {} ago: in doubt, written again",
            age(claim.age)
        ),
        Some(claim) if claim.age < frame.request_timeout.as_secs_f64() => {
            format!("in flight for {}", age(claim.age))
        }
        Some(claim) => format!("held for {}: in doubt, or waiting", age(claim.age)),
    }
}

fn letter(standing: &Standing) -> String {
    standing.letter.as_ref().map_or_else(
        || "none".to_owned(),
        |letter| {
            let detail = letter.detail.as_deref().unwrap_or("no detail was noted");
            format!(
                "{}, {} ago: {}",
                letter.reason,
                age(letter.age),
                line(detail)
            )
        },
    )
}

fn backfill(standing: &Standing) -> String {
    let Some(Walk {
        reason,
        rows,
        ahead,
        done,
        estimate,
    }) = &standing.backfill
    else {
        return match standing.walked {
            Some(seconds) => format!("none; the last one ended {} ago", age(seconds)),
            None => "none was done to the end yet".to_owned(),
        };
    };
    let of = estimate.map_or_else(String::new, |rows| format!(" of about {rows}"));
    let place = match (rows, ahead) {
        (true, true) => "this key is still ahead of it",
        (true, false) => "it has passed this key",
        (false, _) => "it is through with the rows, and looks for what is left over in KV",
    };
    format!("under way ({reason}), {done}{of} done: {place}")
}

fn deletes(standing: &Standing) -> String {
    match standing.held {
        Some(keys) => format!("on hold: about {} of the sync", count(keys, "key")),
        None => "not on hold".to_owned(),
    }
}

/// No write is recorded anywhere but in KV itself, so this says what bounds it.
fn last_write(standing: &Standing) -> String {
    match (standing.claim, standing.walked) {
        (Some(claim), _) => format!(
            "not recorded; the last try began {} ago at the earliest",
            age(claim.age)
        ),
        (None, Some(seconds)) => format!(
            "not recorded; every key was looked at up to {} ago",
            age(seconds)
        ),
        (None, None) => "not recorded".to_owned(),
    }
}

/// The conclusion in one sentence, and what to do where something is to be done.
pub(super) fn conclusion(frame: &Frame<'_>, told: &Told<'_>) -> (String, Option<String>) {
    let Told { sync, explanation } = told;
    let sync = sync.source.name.as_str();
    let key = line(&frame.args.key);
    let (sentence, help) = match &explanation.conclusion {
        Conclusion::NotMade { instead: None } => (
            format!("no row of {sync} can make this key"),
            "compare the spelling with the type of the key columns".to_owned(),
        ),
        Conclusion::NotMade {
            instead: Some(instead),
        } => (
            format!("no row makes this key; the same row would make {}", line(instead.as_str())),
            format!("pg2kv explain {}", line(instead.as_str())),
        ),
        Conclusion::Unwatched => (
            format!("the table of {sync} is not watched, so nothing keeps KV equal to it"),
            "pg2kv install".to_owned(),
        ),
        Conclusion::Equal => return (equal(explanation), None),
        Conclusion::OnItsWay(way) => return (on_its_way(*way), None),
        Conclusion::Stalled(way) => (
            format!("{}, but no daemon leads", on_its_way(*way)),
            "start `pg2kv run`; `pg2kv status` says who led last".to_owned(),
        ),
        Conclusion::Held => (
            "the row was deleted; its delete waits for approval".to_owned(),
            format!(
                "`pg2kv approve-deletes {sync}` if that is meant; if not, put the rows back and \
                 run `pg2kv resync {sync}`"
            ),
        ),
        Conclusion::Dead => (
            "it cannot be written as it is, and stays out until its row changes".to_owned(),
            format!("mend the row or the sync, then `pg2kv dead-letters retry {sync} {key}`"),
        ),
        Conclusion::Unrecorded => (
            "KV differs from Postgres, and changes are not recorded".to_owned(),
            Examined::HINT.to_owned(),
        ),
        Conclusion::Foreign => (
            "Postgres has no document for this key; the pair in KV is somebody else's, and is left \
             alone"
                .to_owned(),
            "whoever wrote it must delete it".to_owned(),
        ),
        Conclusion::Differs => (
            "KV differs from Postgres, and nothing is on its way".to_owned(),
            format!(
                "`pg2kv verify --repair {sync}` has the daemon mend it; Workers KV may show a write \
                 up to a minute late"
            ),
        ),
    };
    (sentence, Some(help))
}

fn equal(explanation: &Explanation) -> String {
    let says = if explanation.found.is_some() {
        "KV says what Postgres says"
    } else {
        "KV says what Postgres says: there is nothing for this key"
    };
    let Some(standing) = &explanation.standing else {
        return says.to_owned();
    };
    if standing.fault.is_some() {
        return format!("{says} now, but changes are not recorded");
    }
    match standing.changes.oldest {
        Some(oldest) => format!(
            "{says} already; a change from {} ago is on its way",
            age(oldest)
        ),
        None => says.to_owned(),
    }
}

fn on_its_way(way: Way) -> String {
    match way {
        Way::Change(oldest) => format!("a change from {} ago is on its way", age(oldest)),
        Way::Claim(seconds) => format!(
            "a change was claimed {} ago and is being written",
            age(seconds)
        ),
        Way::Doubt => {
            "an earlier leader may have written it or not; it is written again".to_owned()
        }
        Way::Request(oldest) => {
            format!(
                "a look at all keys, asked for {} ago, is on its way",
                age(oldest)
            )
        }
        Way::Walk => "the backfill under way will come to it".to_owned(),
        Way::First => "the sync's first backfill will come to it".to_owned(),
        Way::Owed => "the triggers were not in order; all rows will be looked at".to_owned(),
    }
}

/// The conclusion where no template makes the key.
pub(super) fn nobodys(strays: &[Stray]) -> (String, String) {
    if let Some(sync) = strays.iter().find_map(|stray| stray.retired.as_deref()) {
        return (
            format!("an earlier configuration of {sync} made this key; the daemon is to delete it"),
            format!(
                "it waits until the new names are written; where they are many, also for \
                 `pg2kv approve-deletes {sync}`"
            ),
        );
    }
    if let Some(other) = strays.iter().find_map(|stray| stray.found.other) {
        return (
            format!("no sync makes this key; installation {other} of pg2kv wrote it"),
            "ask whoever runs that installation; this one leaves the pair alone".to_owned(),
        );
    }
    let ours = strays.iter().any(|stray| stray.found.mark.is_some());
    if ours {
        (
            "no sync makes this key; pg2kv wrote it for a sync that was removed, or had another \
             template"
                .to_owned(),
            "delete it with wrangler if nobody reads it; pg2kv leaves it alone".to_owned(),
        )
    } else {
        (
            "no sync makes this key".to_owned(),
            "`pg2kv config print` shows the key template of each sync".to_owned(),
        )
    }
}

/// How many bytes, in the unit that fits.
fn bytes(size: usize) -> String {
    match size {
        0..10_000 => count(size as u64, "byte"),
        10_000..10_000_000 => format!("{:.1} kB", size as f64 / 1e3),
        _ => format!("{:.1} MB", size as f64 / 1e6),
    }
}

fn short(hash: ContentHash) -> String {
    hash.to_string()[..HASH_DIGITS].to_owned()
}

/// Text that a terminal can take, on one line.
fn line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// A value for a terminal: its lines as they are, other control characters replaced.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value)
        .chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}
