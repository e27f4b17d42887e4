//! Where events go: standard error, as JSON or for people.

use std::io::{self, IsTerminal as _};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::EXIT_CONFIG;
use super::output::Failure;
use crate::config::{Log, LogFormat};

/// Whether an event may be logged, whatever the filter says. Libraries say at finer levels what goes
/// over their connections: parameters of statements, headers of requests, notices of the server. So
/// keys, values and the token would stand in the log.
fn is_discreet(event: &Metadata<'_>) -> bool {
    let ours = event.target().split("::").next() == Some("pg2kv");
    ours || *event.level() <= Level::WARN
}

/// Starts to log. `RUST_LOG` wins over the configuration, but nothing over [`is_discreet`].
pub(super) fn start(log: &Log) -> Result<(), Failure> {
    let (filter, place) = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => (filter, "RUST_LOG"),
        _ => (log.level.clone(), "log.level"),
    };
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| Failure::Other {
            code: EXIT_CONFIG,
            what: format!("{place} is not a filter for logs: {error}"),
            help: Some("write a level, or directives such as \"info,pg2kv=debug\"".to_owned()),
        })?;
    let terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let cap = filter_fn(is_discreet);
    let json = match log.format {
        LogFormat::Json => true,
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
    };
    let started = if json {
        let lines = builder.json().flatten_event(true).finish();
        lines.with(cap).try_init()
    } else {
        let choice = anstream::AutoStream::choice(&io::stderr());
        let colours = choice != anstream::ColorChoice::Never;
        builder.with_ansi(colours).finish().with(cap).try_init()
    };
    started.map_err(|error| Failure::Other {
        code: 1,
        what: format!("cannot start to log: {error}"),
        help: None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn libraries_do_not_log_what_goes_over_their_connections() {
        let lines = Lines::default();
        let writer = lines.clone();
        let everything = "trace,tokio_postgres::query=trace,hyper=trace,pg2kv_like=trace";
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(everything))
            .with_writer(move || writer.clone())
            .finish()
            .with(filter_fn(is_discreet));
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "pg2kv::daemon", "ours");
            tracing::trace!(target: "tokio_postgres::query", "canary");
            tracing::debug!(target: "hyper::proto", "canary");
            tracing::info!(target: "tokio_postgres::connection", "canary");
            tracing::info!(target: "pg2kv_like", "canary");
            tracing::warn!(target: "rustls", "theirs");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("ours") && text.contains("theirs"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
}
