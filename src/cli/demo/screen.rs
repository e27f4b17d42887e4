//! What the demo shows: people get colour and columns, programs one line of JSON.

use std::io::{self, Write as _};
use std::time::Duration;

use anstyle::{AnsiColor, Style};

use super::world::{Change, Kind};
use super::{Summary, milliseconds, verb};
use crate::cli::output::{BAD, DIM, GOOD};

const BOLD: Style = Style::new().bold();
const NAME: Style = AnsiColor::Cyan.on_default();
const ADDED: Style = AnsiColor::Green.on_default();
const CHANGED: Style = AnsiColor::Yellow.on_default();
const REMOVED: Style = AnsiColor::Red.on_default();
/// Columns that a statement may take before it is cut.
const SQL_WIDTH: usize = 56;

/// Where the demo writes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    headless: bool,
}

impl Screen {
    pub(super) fn new(headless: bool) -> Self {
        Self { headless }
    }

    pub(super) fn title(self) -> io::Result<()> {
        self.line(&format!(
            "\n{BOLD}pg2kv demo{BOLD:#}  {DIM}a changed row in Postgres is in Workers KV{DIM:#}\n"
        ))
    }

    pub(super) fn step(self, name: &str, what: &str) -> io::Result<()> {
        self.line(&format!("  {GOOD}✓{GOOD:#} {name:<13} {DIM}{what}{DIM:#}"))
    }

    pub(super) fn configuration(self, toml: &str) -> io::Result<()> {
        self.step("Configuration", "all of it:")?;
        self.line("")?;
        for line in toml.lines() {
            self.line(&format!("      {NAME}{line}{NAME:#}"))?;
        }
        self.line("")
    }

    pub(super) fn seed(self, seed: u64) -> io::Result<()> {
        self.step("Seed", &seed.to_string())
    }

    pub(super) fn first_sync(self, rows: u64, requests: u64, took: Duration) -> io::Result<()> {
        let seconds = took.as_secs_f64();
        self.step(
            "First sync",
            &format!("{rows} users in {seconds:.2} s, {requests} requests"),
        )
    }

    pub(super) fn changes_heading(self) -> io::Result<()> {
        self.line(&format!(
            "\n  {BOLD}Live changes{BOLD:#}  {DIM}Ctrl-C ends them{DIM:#}\n"
        ))?;
        let (sql, key, time) = ("committed in Postgres", "arrived in Workers KV", "after");
        self.line(&format!(
            "  {DIM}{sql:<SQL_WIDTH$}  {key:<41}  {time:>9}{DIM:#}"
        ))
    }

    pub(super) fn change(self, change: &Change, latency: Duration) -> io::Result<()> {
        let style = match change.kind {
            Kind::Insert => ADDED,
            Kind::Update => CHANGED,
            Kind::Delete => REMOVED,
        };
        let (first, rest) = change.sql.split_at(verb(change.kind).len());
        let width = SQL_WIDTH - first.chars().count();
        let rest = cut(rest, width);
        let key = &change.kv_key;
        let latency = milliseconds(latency);
        self.line(&format!(
            "  {style}{first}{style:#}{rest:<width$}  {key:<41}  {BOLD}{latency:>6.2}{BOLD:#} ms"
        ))
    }

    pub(super) fn interrupted(self) -> io::Result<()> {
        self.line(&format!(
            "\n  {DIM}Stopped; servers and files are gone.{DIM:#}\n"
        ))
    }

    pub(super) fn summary(self, summary: &Summary) -> io::Result<()> {
        if self.headless {
            let line = serde_json::to_string(summary).map_err(io::Error::other)?;
            return writeln!(io::stdout(), "{line}");
        }
        let Summary {
            changes,
            writes,
            requests,
            p50_ms,
            p99_ms,
            ..
        } = summary;
        let verdict = if summary.equal {
            format!("{GOOD}KV equals Postgres, key by key{GOOD:#}")
        } else {
            format!("{BAD}KV differs from Postgres{BAD:#}")
        };
        self.line(&format!(
            "\n  {verdict}\n  {changes} changes, {writes} writes in {requests} requests; commit to \
             KV {BOLD}{p50_ms} ms{BOLD:#} median, {BOLD}{p99_ms} ms{BOLD:#} 99th percentile\n"
        ))
    }

    fn line(self, text: &str) -> io::Result<()> {
        if self.headless {
            return Ok(());
        }
        writeln!(anstream::stdout(), "{text}")
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .chain(['…'])
        .collect()
}
