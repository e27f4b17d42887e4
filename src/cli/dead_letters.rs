//! `pg2kv dead-letters`: keys that cannot be written as they are.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::args::{
    DeadLettersCommand, LettersDropArgs, LettersListArgs, LettersRetryArgs, LettersShowArgs,
    LettersWhich,
};
use super::output::{DIM, Failure, GOOD, age, count, write_table};
use crate::change::fingerprint;
use crate::config::{self, DatabaseConfig};
use crate::source::admin::Admin;
use crate::source::letters::{Letter, Selection};

pub(super) async fn execute(
    files: &[PathBuf],
    command: &DeadLettersCommand,
) -> Result<ExitCode, Failure> {
    let config = config::load_database(files, std::env::vars_os())?;
    let admin = Admin::connect(&config.source_settings()).await?;
    match command {
        DeadLettersCommand::List(args) => list(&admin, args).await,
        DeadLettersCommand::Show(args) => show(&config, &admin, args).await,
        DeadLettersCommand::Retry(args) => retry(&config, &admin, args).await,
        DeadLettersCommand::Drop(args) => discard(&config, &admin, args).await,
    }
}

async fn list(admin: &Admin, args: &LettersListArgs) -> Result<ExitCode, Failure> {
    let groups = admin.letter_groups(None).await?;
    let mut out = anstream::stdout();
    if args.json {
        let groups: Vec<_> = groups
            .iter()
            .map(|group| {
                json!({
                    "sync": group.sync,
                    "reason": group.reason,
                    "count": group.count,
                    "oldest": group.oldest,
                    "oldest_seconds": group.oldest_seconds,
                })
            })
            .collect();
        writeln!(out, "{}", json!({ "dead_letters": groups }))?;
    } else if groups.is_empty() {
        writeln!(out, "{GOOD}ok{GOOD:#}  there are no dead letters")?;
    } else {
        let heading = ["SYNC", "REASON", "COUNT", "OLDEST"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(groups.iter().map(|group| {
            vec![
                group.sync.clone(),
                group.reason.clone(),
                group.count.to_string(),
                age(group.oldest_seconds),
            ]
        }));
        write_table(&mut out, &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(
    config: &DatabaseConfig,
    admin: &Admin,
    args: &LettersShowArgs,
) -> Result<ExitCode, Failure> {
    let (selection, total) = select(config, admin, &args.which).await?;
    let letters = admin.letters(&selection, args.limit).await?;
    let mut out = anstream::stdout();
    if args.json {
        let letters: Vec<_> = letters
            .iter()
            .map(|letter| letter_json(letter, args.show_keys))
            .collect();
        writeln!(out, "{}", json!({ "total": total, "letters": letters }))?;
        return Ok(ExitCode::SUCCESS);
    }
    if letters.is_empty() {
        writeln!(out, "no dead letter of {} matches", args.which.sync)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut heading = vec!["KEY", "REASON", "AT", "DETAIL"];
    if args.show_keys {
        heading.insert(1, "KV KEY");
    }
    let mut rows = vec![heading.into_iter().map(str::to_owned).collect()];
    rows.extend(letters.iter().map(|letter| {
        let mut row = Vec::new();
        if args.show_keys {
            row.push(one_line(letter.key.as_str()));
            let name = letter.kv_key.as_deref();
            row.push(name.map_or_else(|| "-".to_owned(), one_line));
        } else {
            row.push(fingerprint(letter.key.as_str()));
        }
        row.push(letter.reason.clone());
        row.push(letter.at.clone());
        row.push(one_line(letter.detail.as_deref().unwrap_or("-")));
        row
    }));
    write_table(&mut out, &rows)?;
    let rest = total.saturating_sub(letters.len() as u64);
    if rest > 0 {
        writeln!(out, "{DIM}and {rest} more: --limit shows them{DIM:#}")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn retry(
    config: &DatabaseConfig,
    admin: &Admin,
    args: &LettersRetryArgs,
) -> Result<ExitCode, Failure> {
    let sync = &args.which.sync;
    if !is_configured(config, sync) {
        return Err(unknown(config, sync));
    }
    let (selection, total) = select(config, admin, &args.which).await?;
    let mut out = anstream::stdout();
    if args.dry_run {
        writeln!(out, "would retry {}", count(total, "key"))?;
    } else if total == 0 {
        writeln!(out, "no dead letter of {sync} matches; nothing was changed")?;
    } else {
        let retried = admin.retry_letters(&selection).await?;
        writeln!(
            out,
            "{GOOD}ok{GOOD:#}  {} of {sync} will be looked at again; a letter goes when its document \
             is written",
            count(retried, "key"),
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn discard(
    config: &DatabaseConfig,
    admin: &Admin,
    args: &LettersDropArgs,
) -> Result<ExitCode, Failure> {
    let sync = &args.which.sync;
    let (selection, total) = select(config, admin, &args.which).await?;
    let mut out = anstream::stdout();
    if args.dry_run {
        writeln!(out, "would drop {}", count(total, "dead letter"))?;
    } else if total == 0 {
        writeln!(out, "no dead letter of {sync} matches; nothing was changed")?;
    } else if args.yes {
        let dropped = admin.drop_letters(&selection).await?;
        writeln!(
            out,
            "{GOOD}ok{GOOD:#}  dropped {} of {sync}; KV keeps what it has for them",
            count(dropped, "dead letter"),
        )?;
    } else {
        return Err(Failure::new(
            format!(
                "nothing was dropped: {} of {sync} would be forgotten for good",
                count(total, "dead letter")
            ),
            "add --yes to drop them, or --dry-run to be told only",
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is meant, and how many they are. A sync that is not configured here may have left letters
/// behind; one that has neither is a mistake.
async fn select(
    config: &DatabaseConfig,
    admin: &Admin,
    which: &LettersWhich,
) -> Result<(Selection, u64), Failure> {
    if !is_configured(config, &which.sync)
        && admin.letter_groups(Some(&which.sync)).await?.is_empty()
    {
        return Err(unknown(config, &which.sync));
    }
    let selection = admin
        .select_letters(&which.sync, which.reason.as_deref(), which.key.as_deref())
        .await?;
    let total = admin.count_letters(&selection).await?;
    Ok((selection, total))
}

fn is_configured(config: &DatabaseConfig, sync: &str) -> bool {
    config.watches.iter().any(|watch| watch.sync == sync)
}

fn unknown(config: &DatabaseConfig, sync: &str) -> Failure {
    let names = config.watches.iter().map(|watch| watch.sync.as_str());
    Failure::unknown_sync(sync, names)
}

fn letter_json(letter: &Letter, show_keys: bool) -> serde_json::Value {
    let mut shown = json!({
        "fingerprint": fingerprint(letter.key.as_str()),
        "reason": letter.reason,
        "detail": letter.detail,
        "at": letter.at,
    });
    if show_keys {
        shown["key"] = serde_json::from_str(letter.key.as_str()).unwrap_or_default();
        shown["kv_key"] = json!(letter.kv_key);
    }
    shown
}

/// Control characters would break the table, or do worse to a terminal.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
