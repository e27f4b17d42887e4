//! The arguments of every verb. The sentences here are what `--help` prints.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Keeps Cloudflare Workers KV equal to what rows in Postgres say.
#[derive(Clone, Debug, Parser)]
#[command(name = "pg2kv", disable_help_subcommand = true)]
pub struct Cli {
    /// Configuration file (.toml, .yaml); may be given again, later files win [default: /etc/pg2kv/pg2kv.toml, where it exists]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub config: Vec<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon
    ///
    /// Runs until SIGTERM or SIGINT, then finishes what is in flight within shutdown.grace. A second
    /// signal ends it at once. Several daemons may run with one configuration: one leads, the
    /// others stand by.
    #[command(after_help = "Example:\n  pg2kv run --config /etc/pg2kv/pg2kv.toml")]
    Run,

    /// Check configuration, database, triggers, token and namespaces
    ///
    /// Prints one line for each: ok, or what to do. Changes nothing.
    #[command(after_help = "Example:\n  pg2kv check --config ./pg2kv.toml")]
    Check,

    /// Print the SQL that this configuration needs
    ///
    /// Without a part: everything, to be read and run with psql. Connects to nothing and needs no
    /// secrets, but for `upgrade` without --from.
    #[command(
        after_help = "Examples:\n  pg2kv sql --login app_pg2kv | psql \"$ADMIN_URL\"\n  pg2kv sql uninstall"
    )]
    Sql(SqlArgs),

    /// Install what this configuration needs, or bring it up to date
    ///
    /// Runs what `pg2kv sql` prints; where a schema of an older version stands, first what `pg2kv sql
    /// upgrade` prints. Harmless to repeat. The tables are locked for milliseconds each; where a lock is
    /// not to be had within 2 s, nothing is changed.
    #[command(
        after_help = "Examples:\n  pg2kv install --database-url postgres://postgres@localhost/app\n  \
                      pg2kv install --database-url-file ./admin-url"
    )]
    Install(InstallArgs),

    /// Show the leader, and each sync with what waits
    ///
    /// Reads what stands in Postgres, so it does not matter where the daemon runs. With --watch it goes
    /// on until Ctrl-C, also while Postgres is away: on a terminal in place, elsewhere one table after
    /// another, or one JSON document a line.
    #[command(
        after_help = "Examples:\n  pg2kv status\n  pg2kv status --watch --interval 5s\n  \
                      pg2kv status --json | jq '.syncs[] | select(.waiting > 1000)'"
    )]
    Status(StatusArgs),

    /// Write every document of a sync again
    ///
    /// The daemon does it in the background, after live changes; wherever it runs, this shows how far
    /// it is and returns once every row and every name in KV was looked at. Ctrl-C ends the waiting,
    /// not the resync. Without a terminal only the last line is printed.
    ///
    /// Exit code 69: it was asked for, but nobody is there to do it.
    #[command(
        after_help = "Examples:\n  pg2kv resync users --dry-run\n  pg2kv resync users\n  \
                      pg2kv resync users --no-wait"
    )]
    Resync(ResyncArgs),

    /// Compare KV with Postgres, and have mended what drifted
    ///
    /// Lists the names in KV, renders every row, and compares content hashes. What differs is looked
    /// at twice; keys with a change on its way do not count. Takes no lease, writes nothing, and
    /// sends at most 2 requests a second, 1,000 names each. Memory: about 80 bytes for each pair,
    /// about 150 for each that differs. Workers KV may list a write a minute late.
    ///
    /// Exit code 0: nothing has drifted; 1: something has, repaired or not; 69: Postgres or
    /// Workers KV does not answer.
    #[command(
        after_help = "Examples:\n  pg2kv verify\n  pg2kv verify users --repair --dry-run\n  \
                      pg2kv verify users --repair"
    )]
    Verify(VerifyArgs),

    /// Say where a KV key comes from, and whether KV has it right
    ///
    /// Finds the sync whose template makes the key, reads its row on the primary as the daemon does,
    /// reads the pair from KV, and looks for the key among waiting changes, claims and dead letters.
    /// Ends with one sentence. Changes nothing. Values are told by size and hash only, unless
    /// --show-values is given.
    ///
    /// Exit code 0: KV says what Postgres says, or will without anybody's doing; 1: it differs,
    /// waits for a person, or no sync makes the key; 69: Postgres or Workers KV does not answer.
    #[command(
        after_help = "Examples:\n  pg2kv explain user:42\n  pg2kv explain user:42 --sync users --show-values"
    )]
    Explain(ExplainArgs),

    /// Look at keys that KV cannot take, try them again, or drop them
    ///
    /// A key goes there when its document can never be written as it is: too large, an impossible
    /// KV key, a value expression that fails for the row. The next change of the row tries again by
    /// itself.
    #[command(
        after_help = "Examples:\n  pg2kv dead-letters list\n  pg2kv dead-letters retry users --reason value_too_large"
    )]
    DeadLetters {
        /// What to do with them.
        #[command(subcommand)]
        command: DeadLettersCommand,
    },

    /// Let a mass delete go that the brake holds
    ///
    /// Until the time is over, any number of keys of the sync may be deleted from KV. /readyz of
    /// the daemon says what is held; writes go on meanwhile.
    #[command(
        after_help = "Examples:\n  pg2kv approve-deletes users\n  pg2kv approve-deletes users --for 10m --dry-run"
    )]
    ApproveDeletes(ApproveDeletesArgs),

    /// Run a local server that speaks the Workers KV REST API
    ///
    /// With the limits of the real one. For development and tests; in memory unless --data-dir is
    /// given.
    ///
    /// As with the real one, paths name an account: /client/v4/accounts/ACCOUNT/storage/kv/... So
    /// kv.account_id must be set: to that of --account, or without one to any 32 hexadecimal digits.
    #[command(
        after_help = "Example:\n  pg2kv emulator --listen 127.0.0.1:8787 --token secret\n\n\
                      And in pg2kv.toml:\n  [kv]\n  api_base_url = \"http://127.0.0.1:8787/client/v4\"\n  \
                      account_id = \"0123456789abcdef0123456789abcdef\"\n  \
                      namespace_id = \"0123456789abcdef0123456789abcdef\"\n  api_token = \"secret\""
    )]
    Emulator(EmulatorArgs),

    /// Show it at work, on a throw-away PostgreSQL and a local KV
    ///
    /// Starts both, installs, runs the daemon, makes changes and tells how long each took to arrive.
    /// Nothing is left behind.
    #[command(
        after_help = "Examples:\n  pg2kv demo\n  pg2kv demo --headless --rows 10000 --changes 200"
    )]
    Demo(DemoArgs),

    /// Look at the configuration, or print its schema for editors
    #[command(after_help = "Examples:\n  pg2kv config print\n  pg2kv config schema")]
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },

    /// Print a script that completes pg2kv's arguments in a shell
    #[command(
        after_help = "Examples:\n  pg2kv completions bash >/etc/bash_completion.d/pg2kv\n  \
                      pg2kv completions fish >~/.config/fish/completions/pg2kv.fish\n  \
                      source <(pg2kv completions zsh)"
    )]
    Completions(CompletionsArgs),

    /// Print the manual, or write a page for each verb
    #[command(after_help = "Examples:\n  pg2kv man | man --local-file -\n  \
                      pg2kv man /usr/local/share/man/man1")]
    Man(ManArgs),

    /// Print the version
    #[command(after_help = "Example:\n  pg2kv version --json")]
    Version(VersionArgs),
}

#[derive(Clone, Debug, Args)]
pub(super) struct SqlArgs {
    #[command(subcommand)]
    pub(super) part: Option<SqlPart>,

    /// Role that the daemon logs in as; it is granted what the daemon may do
    #[arg(long, global = true, value_name = "ROLE")]
    pub(super) login: Option<String>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum SqlPart {
    /// Schema, roles, tables and functions
    #[command(after_help = "Example:\n  pg2kv sql install | psql \"$ADMIN_URL\"")]
    Install,
    /// Remove everything again, triggers included
    #[command(after_help = "Example:\n  pg2kv sql uninstall | psql \"$ADMIN_URL\"")]
    Uninstall,
    /// The triggers of each sync
    #[command(after_help = "Example:\n  pg2kv sql watch | psql \"$ADMIN_URL\"")]
    Watch,
    /// Bring a schema of an older version to that of this program
    ///
    /// Prints what may run while daemons of the older version work, and says what comes after they are
    /// replaced. Without --from it asks the configured database for its version; nothing is changed.
    #[command(
        after_help = "Examples:\n  pg2kv sql upgrade | psql \"$ADMIN_URL\"\n  pg2kv sql upgrade --from 1"
    )]
    Upgrade(UpgradeArgs),
    /// What the daemon's role may do: on our tables, and on each that is watched
    ///
    /// Part of `pg2kv install` already. To be read in a review, and to be run after a restore without
    /// privileges. Nothing is revoked; harmless to repeat.
    #[command(after_help = "Example:\n  pg2kv sql grants --login app_pg2kv | psql \"$ADMIN_URL\"")]
    Grants,
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct UpgradeArgs {
    /// Version of the schema to begin with; connects to nothing
    #[arg(long, value_name = "VERSION")]
    pub(super) from: Option<i32>,
}

/// Who connects, where it is not the configured user.
#[derive(Clone, Args)]
pub(super) struct AdministratorArgs {
    /// Connect as an administrator instead of postgres.url; its user is then granted what the daemon may do
    ///
    /// Leave the password out, for every user of the machine can read arguments: it is taken from
    /// PGPASSWORD, or from the password file (PGPASSFILE, or ~/.pgpass) as psql does.
    #[arg(long, value_name = "URL")]
    pub(super) database_url: Option<String>,

    /// The same, with the connection string in a file
    #[arg(long, value_name = "FILE", conflicts_with = "database_url")]
    pub(super) database_url_file: Option<PathBuf>,
}

/// Without the connection string, which may hold a password.
impl std::fmt::Debug for AdministratorArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdministratorArgs").finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Args)]
pub(super) struct InstallArgs {
    #[command(flatten)]
    pub(super) administrator: AdministratorArgs,

    /// Print the SQL and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,

    /// Look again and again, until Ctrl-C
    #[arg(long)]
    pub(super) watch: bool,

    /// Time between two looks
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "2s",
        requires = "watch",
        value_parser = interval
    )]
    pub(super) interval: Duration,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ResyncArgs {
    /// Name of the sync
    #[arg(value_name = "SYNC")]
    pub(super) sync: String,

    /// Ask for it and return at once
    #[arg(long)]
    pub(super) no_wait: bool,

    /// Say what would be written and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct VerifyArgs {
    /// Name of the sync [default: every one]
    #[arg(value_name = "SYNC")]
    pub(super) sync: Option<String>,

    /// Have the daemon write what drifted again, and delete the orphans
    ///
    /// Exactly those keys, each of which Workers KV bills; where more of a sync drifted than are kept in
    /// memory, all of its documents.
    #[arg(long)]
    pub(super) repair: bool,

    /// With --repair: say what would be asked for and change nothing
    #[arg(long, requires = "repair")]
    pub(super) dry_run: bool,

    /// Print up to 20 drifted keys of each sync in clear text instead of as fingerprints
    #[arg(long)]
    pub(super) show_keys: bool,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ExplainArgs {
    /// The key as it stands in KV
    #[arg(value_name = "KEY")]
    pub(super) key: String,

    /// Name of the sync [default: every one whose template makes the key]
    #[arg(long, value_name = "SYNC")]
    pub(super) sync: Option<String>,

    /// Print the values too
    #[arg(long)]
    pub(super) show_values: bool,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum DeadLettersCommand {
    /// Count them by sync and reason
    #[command(after_help = "Example:\n  pg2kv dead-letters list --json")]
    List(LettersListArgs),
    /// Print them, oldest first
    ///
    /// Keys are printed as fingerprints: they may be personal data.
    #[command(after_help = "Example:\n  pg2kv dead-letters show users --show-keys --limit 100")]
    Show(LettersShowArgs),
    /// Have the daemon look at them again
    ///
    /// A letter goes once its document is written, or its row is gone and KV has nothing; until then
    /// it stays, with a new reason where there is one.
    #[command(
        after_help = "Examples:\n  pg2kv dead-letters retry users --dry-run\n  pg2kv dead-letters retry users user:42"
    )]
    Retry(LettersRetryArgs),
    /// Forget them; KV stays as it is
    ///
    /// Nothing looks at these keys again before their next change, a resync or a repair.
    #[command(after_help = "Example:\n  pg2kv dead-letters drop users --reason illegal_key --yes")]
    Drop(LettersDropArgs),
}

#[derive(Clone, Debug, Args)]
pub(super) struct LettersListArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Which letters are meant.
#[derive(Clone, Debug, Args)]
pub(super) struct LettersWhich {
    /// Name of the sync
    #[arg(value_name = "SYNC")]
    pub(super) sync: String,

    /// KV key, key as a JSON array, or fingerprint [default: every key]
    #[arg(value_name = "KEY")]
    pub(super) key: Option<String>,

    /// Only letters of this reason, such as value_too_large
    #[arg(long, value_name = "REASON")]
    pub(super) reason: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct LettersShowArgs {
    #[command(flatten)]
    pub(super) which: LettersWhich,

    /// Most letters to print
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(super) limit: u32,

    /// Print keys in clear text
    #[arg(long)]
    pub(super) show_keys: bool,

    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct LettersRetryArgs {
    #[command(flatten)]
    pub(super) which: LettersWhich,

    /// Say how many are meant and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct LettersDropArgs {
    #[command(flatten)]
    pub(super) which: LettersWhich,

    /// Really drop them
    #[arg(long, conflicts_with = "dry_run")]
    pub(super) yes: bool,

    /// Say how many are meant and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ApproveDeletesArgs {
    /// Name of the sync
    #[arg(value_name = "SYNC")]
    pub(super) sync: String,

    /// How long; 0s takes an approval back
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = duration)]
    pub(super) time: Duration,

    /// Say what would be approved and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub(super) struct EmulatorArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8787")]
    pub(super) listen: SocketAddr,

    /// Token that requests must bring [default: any token is taken]
    #[arg(long, value_name = "TOKEN")]
    pub(super) token: Option<String>,

    /// Account id that paths must name [default: any]
    #[arg(long, value_name = "ID")]
    pub(super) account: Option<String>,

    /// Namespace id that exists from the start; may be given again
    #[arg(
        long,
        value_name = "ID",
        default_value = "0123456789abcdef0123456789abcdef"
    )]
    pub(super) namespace: Vec<String>,

    /// Directory to keep everything in [default: in memory]
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,

    /// Leave out the rate limits (1 write/s for each key, 1,200 requests in 5 minutes)
    #[arg(long)]
    pub(super) no_limits: bool,
}

/// Arguments of `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// No terminal: one JSON line at the end, and exit 0 only if KV equals Postgres
    #[arg(long)]
    pub headless: bool,

    /// Rows in the users table
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub rows: u64,

    /// Changes to make [default: until Ctrl-C; 200 without a terminal]
    #[arg(long, value_name = "M")]
    pub changes: Option<u64>,

    /// How long a key must be quiet before it is written
    #[arg(long, value_name = "DURATION", default_value = "0ms", value_parser = duration)]
    pub quiet: Duration,

    /// Seed of the changes [default: a random one, which is printed]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[derive(Clone, Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print every value in force with its origin; secrets are left out
    #[command(after_help = "Example:\n  pg2kv config print --config ./pg2kv.toml")]
    Print,
    /// Print a JSON Schema (draft 2020-12) of the configuration file
    ///
    /// Editors complete and check keys by it: those with Taplo where the first line of the file is
    /// `#:schema ./pg2kv.schema.json`, and in YAML where it is
    /// `# yaml-language-server: $schema=./pg2kv.schema.json`. What concerns two keys at once, and what
    /// is missing, `pg2kv check` says.
    #[command(after_help = "Example:\n  pg2kv config schema >pg2kv.schema.json")]
    Schema,
}

#[derive(Clone, Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Clone, Debug, Args)]
pub(super) struct ManArgs {
    /// Directory to write pg2kv.1 and a page for each verb to; it is made where there is none [default:
    /// the page of pg2kv, to standard output]
    #[arg(value_name = "DIR")]
    pub(super) directory: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(super) struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Shortest time between two looks: each counts what waits in the outbox.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        interval if interval >= INTERVAL_MIN => Ok(interval),
        _ => Err("write 100ms or more".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "write a number with its unit, such as 100ms or 5s".to_owned())
}
