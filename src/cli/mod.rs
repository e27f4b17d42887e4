//! The command line: one file per family of verbs. It prints and exits; it has no logic of its own.

mod administrator;
mod args;
mod check;
mod config;
mod dead_letters;
mod demo;
mod emulator;
mod explain;
mod help;
mod logging;
mod manual;
mod output;
mod plan;
mod progress;
mod resync;
mod run;
mod sql;
mod status;
mod upgrade;
mod verify;
mod version;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::FromArgMatches as _;

pub use args::{Cli, DemoArgs};

use crate::sink::kv::KvClient;

use args::{Command, ConfigCommand};
use output::Failure;

/// The configuration is wrong (`EX_CONFIG`).
const EXIT_CONFIG: u8 = 78;
/// The command line is wrong, as the parser has it.
const EXIT_USAGE: u8 = 2;
/// Something that is needed does not answer (`EX_UNAVAILABLE`).
const EXIT_UNAVAILABLE: u8 = 69;

/// The arguments of this process. Ends it where they are wrong (2) or ask for help or the
/// version (0).
pub fn parse() -> Cli {
    let matches = help::command().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// Does what the arguments say.
pub async fn execute(cli: Cli) -> ExitCode {
    match dispatch(cli).await {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

/// Says that the runtime cannot start.
pub fn cannot_start(error: &std::io::Error) -> ExitCode {
    let help = "raise the limits on threads and open files of this user";
    Failure::unavailable(format!("cannot start the runtime: {error}"), help).report()
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let files = crate::config::files(&cli.config);
    match cli.command {
        Command::Run => {
            let config = crate::config::load(&files, std::env::vars_os())?;
            logging::start(&config.log)?;
            for warning in &config.warnings {
                tracing::warn!(place = %warning.place, "{}", warning.what);
            }
            run::execute(config).await
        }
        Command::Check => check::execute(&files).await,
        Command::Sql(args) => sql::print(&files, &args).await,
        Command::Install(args) => sql::install(&files, &args).await,
        Command::Status(args) => status::execute(&files, &args).await,
        Command::Resync(args) => resync::execute(&files, &args).await,
        Command::Verify(args) => verify::execute(&files, &args).await,
        Command::Explain(args) => explain::execute(&files, &args).await,
        Command::DeadLetters { command } => dead_letters::execute(&files, &command).await,
        Command::ApproveDeletes(args) => status::approve_deletes(&files, &args).await,
        Command::Emulator(args) => emulator::execute(args).await,
        Command::Demo(args) => demo::execute(args).await,
        Command::Config { command } => match command {
            ConfigCommand::Print => config::print(&files),
            ConfigCommand::Schema => config::schema(),
        },
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        Command::Version(args) => version::print(&args),
    }
}

/// The syncs of the configuration, or the one that is named.
fn syncs(
    config: &crate::config::Config,
    wanted: Option<&str>,
) -> Result<Vec<crate::daemon::SyncSpec>, Failure> {
    let mut syncs = config.daemon_settings().syncs;
    if let Some(wanted) = wanted {
        syncs.retain(|sync| sync.source.name == wanted);
        if syncs.is_empty() {
            let names = config.syncs.iter().map(|sync| sync.watch.sync.as_str());
            return Err(Failure::unknown_sync(wanted, names));
        }
    }
    Ok(syncs)
}

/// The client of Workers KV.
fn kv_client(config: &crate::config::Config) -> Result<KvClient, Failure> {
    KvClient::new(config.sink_settings()).map_err(|error| Failure::Other {
        code: EXIT_CONFIG,
        what: error.to_string(),
        help: Some("look at [kv] in the configuration".to_owned()),
    })
}

/// What a person calls the files: for messages.
fn named(files: &[PathBuf]) -> String {
    match files {
        [] => "the environment".to_owned(),
        files => {
            let names: Vec<_> = files
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            names.join(", ")
        }
    }
}
