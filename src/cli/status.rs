//! `pg2kv status` and `pg2kv approve-deletes`: what stands in the database.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::args::{ApproveDeletesArgs, StatusArgs};
use super::output::{BAD, DOUBT, Failure, GOOD, age, write_table};
use crate::config;
use crate::source::admin::{Admin, Leader, Status, SyncStatus};

pub(super) async fn execute(files: &[PathBuf], args: &StatusArgs) -> Result<ExitCode, Failure> {
    if args.watch {
        return super::watch::execute(files, args).await;
    }
    let config = config::load_database(files, std::env::vars_os())?;
    let status = Admin::connect(&config.source_settings())
        .await?
        .status()
        .await?;
    if args.json {
        writeln!(anstream::stdout(), "{}", as_json(&status))?;
    } else {
        write_status(&mut anstream::stdout(), &status)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn approve_deletes(
    files: &[PathBuf],
    args: &ApproveDeletesArgs,
) -> Result<ExitCode, Failure> {
    let config = config::load_database(files, std::env::vars_os())?;
    let until = Admin::connect(&config.source_settings())
        .await?
        .approve_deletes(&args.sync, args.time, args.dry_run)
        .await?;
    let (sync, mut out) = (&args.sync, anstream::stdout());
    if args.dry_run {
        writeln!(
            out,
            "would let any number of keys of {sync} be deleted from KV until {until}; nothing was \
             changed"
        )?;
    } else {
        writeln!(
            out,
            "{GOOD}ok{GOOD:#}  any number of keys of {sync} may be deleted from KV until {until}"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes who leads, and a table of the syncs.
pub(super) fn write_status(out: &mut impl Write, status: &Status) -> io::Result<()> {
    match &status.leader {
        None => writeln!(
            out,
            "leader  {BAD}none{BAD:#}, and there never was one: `pg2kv run`"
        )?,
        Some(Leader {
            holder,
            epoch,
            since,
            alive,
        }) => {
            let since = since
                .as_deref()
                .map(|at| format!(" since {at}"))
                .unwrap_or_default();
            if *alive {
                writeln!(out, "leader  {GOOD}{holder}{GOOD:#}{since} (epoch {epoch})")?;
            } else {
                writeln!(
                    out,
                    "leader  {BAD}none{BAD:#}; the last one was {holder}{since} (epoch {epoch})"
                )?;
            }
        }
    }
    writeln!(out, "schema  version {}", status.schema.version)?;
    writeln!(out)?;
    if status.syncs.is_empty() {
        writeln!(out, "{DOUBT}no table is watched{DOUBT:#}: `pg2kv install`")?;
        return Ok(());
    }
    let heading = [
        "SYNC", "TABLE", "WAITING", "OLDEST", "CLAIMS", "DEAD", "BACKFILL", "TRIGGERS",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(status.syncs.iter().map(row));
    write_table(out, &rows)
}

fn row(sync: &SyncStatus) -> Vec<String> {
    let nothing = || "-".to_owned();
    vec![
        sync.sync.clone(),
        sync.table.clone().unwrap_or_else(nothing),
        sync.waiting.to_string(),
        sync.oldest_wait_seconds.map_or_else(nothing, age),
        sync.claims.to_string(),
        sync.dead_letters.to_string(),
        sync.backfill.clone().unwrap_or_else(nothing),
        sync.triggers.clone(),
    ]
}

pub(super) fn as_json(status: &Status) -> serde_json::Value {
    let leader = status.leader.as_ref().map(|leader| {
        json!({
            "holder": leader.holder,
            "epoch": leader.epoch,
            "since": leader.since,
            "alive": leader.alive,
        })
    });
    let syncs: Vec<_> = status
        .syncs
        .iter()
        .map(|sync| {
            json!({
                "sync": sync.sync,
                "table": sync.table,
                "triggers": sync.triggers,
                "waiting": sync.waiting,
                "oldest_wait_seconds": sync.oldest_wait_seconds,
                "claims": sync.claims,
                "dead_letters": sync.dead_letters,
                "backfill": sync.backfill,
            })
        })
        .collect();
    json!({
        "schema": { "version": status.schema.version, "serves": status.schema.serves },
        "leader": leader,
        "syncs": syncs,
    })
}
