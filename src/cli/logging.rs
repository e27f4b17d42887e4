//! Where events go: standard error, as JSON or for people.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::EXIT_CONFIG;
use super::output::Failure;
use crate::config::{Log, LogFormat};

/// The driver's debug events hold the parameters of statements, and so keys of rows. Nothing switches
/// them on.
const DRIVER: &str = "tokio_postgres=warn";

/// Starts to log. `RUST_LOG` has the last word on the filter.
pub(super) fn start(log: &Log) -> Result<(), Failure> {
    let (filter, place) = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => (filter, "RUST_LOG"),
        _ => (log.level.clone(), "log.level"),
    };
    let driver = DRIVER.parse().map_err(io::Error::other)?;
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| Failure::Other {
            code: EXIT_CONFIG,
            what: format!("{place} is not a filter for logs: {error}"),
            help: Some("write a level, or directives such as \"info,pg2kv=debug\"".to_owned()),
        })?
        .add_directive(driver);
    let terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match log.format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Auto if !terminal => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Auto | LogFormat::Text => {
            let choice = anstream::AutoStream::choice(&io::stderr());
            builder
                .with_ansi(choice != anstream::ColorChoice::Never)
                .finish()
                .try_init()
        }
    };
    started.map_err(|error| Failure::Other {
        code: 1,
        what: format!("cannot start to log: {error}"),
        help: None,
    })
}
