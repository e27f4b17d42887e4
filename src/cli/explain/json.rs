//! What `pg2kv explain --json` prints: the same for programs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Frame, Stray, Told, words};
use crate::audit::explain::{Conclusion, Found, Wanted};
use crate::change::KvName;
use crate::source::explain::{Presence, Standing};

pub(super) fn of(frame: &Frame<'_>, name: &KvName, told: &[Told<'_>], strays: &[Stray]) -> Value {
    let syncs: Vec<_> = told.iter().map(|told| sync(frame, told)).collect();
    let strays: Vec<_> = strays
        .iter()
        .map(|stray| {
            json!({
                "namespace": stray.namespace,
                "made_before_by": stray.retired,
                "kv": found(frame, &stray.found),
            })
        })
        .collect();
    json!({ "kv_key": name.as_str(), "syncs": syncs, "strays": strays })
}

fn sync(frame: &Frame<'_>, told: &Told<'_>) -> Value {
    let Told { sync, explanation } = told;
    let (sentence, help) = words::conclusion(frame, told);
    let key: Option<Value> = explanation
        .key
        .as_ref()
        .and_then(|key| serde_json::from_str(key.as_str()).ok());
    let columns = sync.source.key_columns.iter().zip(&explanation.columns);
    json!({
        "sync": sync.source.name,
        "table": sync.source.table,
        "namespace": sync.namespace.as_str(),
        "key": key,
        "columns": columns.collect::<std::collections::BTreeMap<_, _>>(),
        "postgres": explanation.wanted.as_ref().map(|made| wanted(frame, made)),
        "kv": explanation.found.as_ref().map(|pair| found(frame, pair)),
        "ledger": explanation.standing.as_ref().map(standing),
        "conclusion": {
            "verdict": verdict(&explanation.conclusion),
            "good": explanation.conclusion.is_good(),
            "sentence": sentence,
            "help": help,
        },
    })
}

fn wanted(frame: &Frame<'_>, wanted: &Wanted) -> Value {
    match wanted {
        Wanted::Pair(document) => {
            let mut shown = json!({
                "document": "pair",
                "bytes": document.value.bytes().len(),
                "hash": document.hash.to_string(),
            });
            if frame.args.show_values {
                shown["value"] = value(document.value.bytes());
            }
            shown
        }
        Wanted::Nothing(presence) => json!({ "document": match presence {
            Presence::Absent => "no_row",
            Presence::Unpublished => "not_published",
            Presence::Published => "null",
            Presence::Failing => "failing",
        }}),
        Wanted::Poison(poison) => json!({
            "document": "poison",
            "reason": poison.reason.as_str(),
            "detail": poison.detail,
        }),
        Wanted::Failing => json!({ "document": "failing" }),
    }
}

fn found(frame: &Frame<'_>, found: &Found) -> Value {
    let mut shown = json!({
        "bytes": found.value.len(),
        "hash": found.hash.map(|hash| hash.to_string()),
        "written_by_pg2kv": found.mark.is_some(),
        "installation": found.mark.map(|mark| mark.installation().to_string()),
    });
    if frame.args.show_values {
        shown["value"] = value(&found.value);
    }
    shown
}

/// Text as it is, anything else as base64.
fn value(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).map_or_else(
        |_| json!({ "base64": STANDARD.encode(bytes) }),
        |text| json!(text),
    )
}

fn standing(standing: &Standing) -> Value {
    json!({
        "leader": standing.leader.as_ref().map(|leader| json!({
            "holder": leader.holder,
            "epoch": leader.epoch,
            "alive": leader.alive,
        })),
        "watched": standing.watched,
        "triggers_error": standing.fault,
        "triggers_owed": standing.owed,
        "changes": standing.changes.rows,
        "oldest_change_seconds": standing.changes.oldest,
        "requests": standing.requests.rows,
        "oldest_request_seconds": standing.requests.oldest,
        "claim": standing.claim.map(|claim| json!({
            "seconds": claim.age,
            "by_leader": claim.current,
        })),
        "dead_letter": standing.letter.as_ref().map(|letter| json!({
            "reason": letter.reason,
            "detail": letter.detail,
            "seconds": letter.age,
        })),
        "backfill": standing.backfill.as_ref().map(|walk| json!({
            "reason": walk.reason,
            "phase": if walk.rows { "rows" } else { "keys" },
            "key_is_ahead": walk.ahead,
            "done": walk.done,
            "estimate": walk.estimate,
        })),
        "last_backfill_seconds": standing.walked,
        "deletes_held_keys": standing.held,
    })
}

fn verdict(conclusion: &Conclusion) -> &'static str {
    match conclusion {
        Conclusion::NotMade { .. } => "not_made",
        Conclusion::Unwatched => "unwatched",
        Conclusion::Equal => "equal",
        Conclusion::OnItsWay(_) => "on_its_way",
        Conclusion::Stalled(_) => "stalled",
        Conclusion::Held => "held",
        Conclusion::Dead => "dead_letter",
        Conclusion::Unrecorded => "unrecorded",
        Conclusion::Foreign => "foreign",
        Conclusion::Differs => "differs",
    }
}
