//! `pg2kv sql` and `pg2kv install`: the same text, printed or run.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::administrator::administrator;
use super::args::{InstallArgs, SqlArgs, SqlPart};
use super::output::{Failure, GOOD};
use super::upgrade;
use crate::config::{self, SqlConfig};
use crate::source::admin::Admin;
use crate::sql_kit;

pub(super) async fn print(files: &[PathBuf], args: &SqlArgs) -> Result<ExitCode, Failure> {
    // Without a part that needs them, there need not be syncs yet; the schema has a default.
    let config = config::load_sql(files, std::env::vars_os())?;
    if let (
        Some(_),
        Some(SqlPart::Install | SqlPart::Uninstall | SqlPart::Watch | SqlPart::Upgrade(_)),
    ) = (&args.login, args.part)
    {
        return Err(Failure::usage(
            "--login changes nothing of this part: it goes with `pg2kv sql` and `pg2kv sql grants`",
        ));
    }
    let text = match args.part {
        None => everything(&config, args.login.as_deref()),
        Some(SqlPart::Install) => sql_kit::install(&config.schema),
        Some(SqlPart::Uninstall) => sql_kit::uninstall(&config.schema),
        Some(SqlPart::Upgrade(upgrade)) => upgrade::text(files, &config.schema, upgrade).await?,
        Some(SqlPart::Watch) => watches(&config)
            .map(|(_, sql)| sql)
            .collect::<Vec<_>>()
            .join("\n"),
        Some(SqlPart::Grants) => {
            sql_kit::grants::grants(&config.schema, &config.watches, args.login.as_deref())
        }
    };
    write!(anstream::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// Install, watch and grant, in the order to run them.
fn everything(config: &SqlConfig, login: Option<&str>) -> String {
    let mut text = sql_kit::install(&config.schema);
    text.push_str("\n-- The triggers of each sync.\n");
    for (_, sql) in watches(config) {
        text.push_str(&sql);
        text.push('\n');
    }
    match login {
        Some(login) => {
            text.push_str("-- What the daemon may do.\n");
            text.push_str(&sql_kit::grant_daemon(&config.schema, login));
        }
        None => text.push_str(&format!(
            "-- Let the daemon's login role do its work: grant {} to that role.\n",
            config.schema.daemon_role()
        )),
    }
    text
}

fn watches(config: &SqlConfig) -> impl Iterator<Item = (&str, String)> {
    config
        .watches
        .iter()
        .map(|spec| (spec.sync.as_str(), sql_kit::watch(&config.schema, spec)))
}

pub(super) async fn install(files: &[PathBuf], args: &InstallArgs) -> Result<ExitCode, Failure> {
    let config = config::load_sql(files, std::env::vars_os())?;
    let database = config::load_database(files, std::env::vars_os());
    // Somebody else installs: the configured user is the daemon's.
    let login = match (args.administrator.is_given(), &database) {
        (true, Ok(database)) => database.postgres.connection.get_user().map(str::to_owned),
        _ => None,
    };
    if args.dry_run {
        write!(
            anstream::stdout(),
            "{}",
            everything(&config, login.as_deref())
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let settings = match administrator(&args.administrator, database.as_ref().ok(), &config)? {
        Some(settings) => settings,
        None => database?.source_settings(),
    };
    let admin = Admin::connect(&settings).await?;
    let mut out = anstream::stdout();
    let later = upgrade::run(&admin, &config.schema, &mut out).await?;
    if later.is_empty() {
        admin
            .run("installing the schema", &sql_kit::install(&config.schema))
            .await?;
        writeln!(out, "{GOOD}ok{GOOD:#}  schema {}", config.schema)?;
    }
    for (sync, sql) in watches(&config) {
        admin
            .run(&format!("watching the table of sync {sync}"), &sql)
            .await?;
        writeln!(out, "{GOOD}ok{GOOD:#}  triggers of {sync}")?;
    }
    if let Some(login) = login {
        let sql = sql_kit::grant_daemon(&config.schema, &login);
        admin
            .run(&format!("granting {login} what the daemon may do"), &sql)
            .await?;
        writeln!(out, "{GOOD}ok{GOOD:#}  grants of {login}")?;
    }
    if let [step, ..] = later.as_slice() {
        writeln!(out, "\n{}", upgrade::what_is_left(step))?;
        writeln!(out, "Then run this once more.")?;
    }
    Ok(ExitCode::SUCCESS)
}
