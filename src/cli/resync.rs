//! `pg2kv resync`: asks for it, and shows how far it is. All it knows stands in Postgres, so it does not
//! matter where the daemon runs.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::args::ResyncArgs;
use super::output::{Failure, GOOD, age};
use super::progress::Progress;
use crate::change::OutboxId;
use crate::config;
use crate::source::admin::{Admin, Walk};

/// How often Postgres is asked.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(super) async fn execute(files: &[PathBuf], args: &ResyncArgs) -> Result<ExitCode, Failure> {
    let config = config::load_database(files, std::env::vars_os())?;
    let admin = Admin::connect(&config.source_settings()).await?;
    let (sync, began) = (args.sync.as_str(), Instant::now());
    if args.dry_run {
        let documents = admin.documents(sync).await?;
        let many = documents.map_or_else(
            || "as many as its table has".to_owned(),
            |documents| format!("about {documents}"),
        );
        writeln!(
            anstream::stdout(),
            "would write every document of {sync} again, {many}; nothing was changed",
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let marker = admin.resync(sync).await?;
    if args.no_wait {
        writeln!(
            anstream::stdout(),
            "{GOOD}ok{GOOD:#}  every document of {sync} will be written again; `pg2kv status` shows \
             how far it is",
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let progress = Progress::new();
    let followed = follow(&admin, sync, marker, &progress).await;
    progress.clear();
    followed?;
    writeln!(
        anstream::stdout(),
        "{GOOD}ok{GOOD:#}  every document of {sync} was looked at again, in {}",
        age(began.elapsed().as_secs_f64())
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Returns once the walk is done.
async fn follow(
    admin: &Admin,
    sync: &str,
    marker: OutboxId,
    progress: &Progress,
) -> Result<(), Failure> {
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        look.tick().await;
        let walk = admin.walk(sync, marker).await?;
        match walk {
            Walk::Done => return Ok(()),
            Walk::Unwatched => {
                return Err(Failure::new(
                    format!("{sync} is no longer watched, and its resync went with that"),
                    "`pg2kv install` has it watched again, and every document written",
                ));
            }
            Walk::Asked | Walk::Rows { .. } | Walk::Names { .. } => {}
        }
        let leads = admin.leader().await?.filter(|leader| leader.alive);
        match (leads, walk) {
            // A person sees the bar and starts a daemon, or presses Ctrl-C.
            (None, _) if progress.is_seen() => progress.say(format!(
                "{sync}: no daemon leads; the resync goes on once `pg2kv run` does"
            )),
            (None, _) => {
                return Err(Failure::unavailable(
                    format!("a resync of {sync} was asked for, but no daemon leads"),
                    "start one: `pg2kv run`; to ask without waiting: `pg2kv resync --no-wait`",
                ));
            }
            (Some(_), Walk::Rows { done, estimate }) => {
                progress.show(&format!("{sync}: rows"), done, estimate);
            }
            (Some(_), Walk::Names { done, rows }) => {
                progress.show(&format!("{sync}: names in KV"), done, Some(rows));
            }
            (Some(leader), _) => {
                progress.say(format!("{sync}: {} is to begin it", leader.holder));
            }
        }
    }
}
