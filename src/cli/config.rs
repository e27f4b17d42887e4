//! `pg2kv config`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::output::{DOUBT, Failure};

/// Prints what is in force even where something is wrong with it: that helps to find out what.
pub(super) fn print(files: &[PathBuf]) -> Result<ExitCode, Failure> {
    let (effective, warnings, errors) = crate::config::inspect(files, std::env::vars_os());
    write!(anstream::stdout(), "{effective}")?;
    for warning in warnings {
        writeln!(
            anstream::stderr(),
            "{DOUBT}warning:{DOUBT:#} {}\n  where: {}",
            warning.what,
            warning.place
        )?;
    }
    match errors {
        Some(errors) => Err(errors.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Needs no configuration.
pub(super) fn schema() -> Result<ExitCode, Failure> {
    let schema = crate::config::schema();
    writeln!(anstream::stdout(), "{schema:#}")?;
    Ok(ExitCode::SUCCESS)
}
