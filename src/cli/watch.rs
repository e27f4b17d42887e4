//! `pg2kv status --watch`: looks again and again, and shows what it sees until somebody ends it.
//!
//! On a terminal one picture takes the place of the other; elsewhere they follow each other. Postgres
//! may be away for as long as it likes.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anstream::{AutoStream, ColorChoice};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

use super::args::StatusArgs;
use super::output::{BAD, DIM, Failure, without_hint};
use super::status::{as_json, write_status};
use crate::config;
use crate::source::admin::{Admin, Status};
use crate::source::{Error, Settings};

/// A screen of its own, without cursor, and lines that end at the right edge.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// What was there before.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// From the first line on: a screen that is cleared first would flicker.
const HOME: &str = "\x1b[H";
const LINE_END: &str = "\x1b[K\n";
/// And to the last.
const CLEAR_REST: &str = "\x1b[J";

pub(super) async fn execute(files: &[PathBuf], args: &StatusArgs) -> Result<ExitCode, Failure> {
    let config = config::load_database(files, std::env::vars_os())?;
    let settings = config.source_settings();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut screen = Screen::open(args)?;
    let looks = async {
        let mut admin = None;
        let mut next = tokio::time::interval(args.interval);
        next.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            next.tick().await;
            let seen = look(&mut admin, &settings).await;
            screen.show(&seen)?;
        }
    };
    tokio::select! {
        ended = looks => ended,
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
    }
}

/// Reads the status over the connection at hand, or a new one. After a failure there is none: the
/// next look begins anew.
async fn look(admin: &mut Option<Admin>, settings: &Settings) -> Result<Status, Error> {
    let connected = match admin.take() {
        Some(connected) => connected,
        None => Admin::connect(settings).await?,
    };
    let status = connected.status().await?;
    *admin = Some(connected);
    Ok(status)
}

/// Where the pictures go.
struct Screen {
    out: io::Stdout,
    way: Way,
    colour: ColorChoice,
    every: Duration,
}

enum Way {
    /// One JSON document a line.
    Lines,
    /// One table after another, `true` once there was one.
    Tables(bool),
    /// Each in the place of the one before.
    InPlace,
}

impl Screen {
    fn open(args: &StatusArgs) -> io::Result<Self> {
        let mut out = io::stdout();
        let moves = out.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let way = match (args.json, moves) {
            (true, _) => Way::Lines,
            (false, false) => Way::Tables(false),
            (false, true) => Way::InPlace,
        };
        if let Way::InPlace = way {
            out.write_all(ENTER.as_bytes())?;
        }
        let colour = AutoStream::choice(&out);
        let mut screen = Self {
            out,
            way,
            colour,
            every: args.interval,
        };
        if let Way::InPlace = screen.way {
            screen.draw(&format!("{DIM}connecting to Postgres{DIM:#}\n"))?;
        }
        Ok(screen)
    }

    fn show(&mut self, seen: &Result<Status, Error>) -> Result<(), Failure> {
        if let Way::Lines = self.way {
            let mut document = match seen {
                Ok(status) => as_json(status),
                Err(error) => failure(error),
            };
            document["at"] = json!(now());
            writeln!(self.out, "{document}")?;
            return Ok(());
        }
        let columns = match self.way {
            Way::InPlace => self.size().0,
            Way::Tables(_) | Way::Lines => usize::MAX,
        };
        let text = words(seen, columns)?;
        match &mut self.way {
            Way::InPlace => self.draw(&text)?,
            Way::Tables(follows) => {
                let gap = if std::mem::replace(follows, true) {
                    "\n"
                } else {
                    ""
                };
                let text = coloured(&format!("{gap}{text}"), self.colour)?;
                self.out.write_all(text.as_bytes())?;
                self.out.flush()?;
            }
            Way::Lines => {}
        }
        Ok(())
    }

    /// Draws as much as there is room for, below a heading. In one write, so that nobody sees half.
    fn draw(&mut self, text: &str) -> io::Result<()> {
        let every = humantime::format_duration(self.every);
        let heading = format!("{DIM}{}  every {every}, Ctrl-C ends it{DIM:#}", now());
        let text = coloured(&format!("{heading}\n\n{text}"), self.colour)?;
        let frame = fitting(&text, self.size().1).join(LINE_END);
        write!(self.out, "{HOME}{frame}{CLEAR_REST}")?;
        self.out.flush()
    }

    /// Columns and rows of the terminal, any number where it does not say.
    fn size(&self) -> (usize, usize) {
        let known = |count: u16| match count {
            0 => usize::MAX,
            count => usize::from(count),
        };
        rustix::termios::tcgetwinsize(&self.out).map_or((usize::MAX, usize::MAX), |size| {
            (known(size.ws_col), known(size.ws_row))
        })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Way::InPlace = self.way {
            // Where the terminal is gone there is nothing to put in order.
            let _ = self.out.write_all(LEAVE.as_bytes());
            let _ = self.out.flush();
        }
    }
}

/// What is seen, for people. Of a table, lines may be too long for the screen; what to do about a
/// failure must be read to its end.
fn words(seen: &Result<Status, Error>, columns: usize) -> io::Result<String> {
    let mut out = Vec::new();
    match seen {
        Ok(status) => write_status(&mut out, status)?,
        Err(error) => {
            let what = without_hint(&error.to_string(), error.hint());
            writeln!(out, "{BAD}no status{BAD:#}")?;
            let help = error.hint().map(|hint| format!("help: {hint}"));
            for line in std::iter::once(what)
                .chain(help)
                .flat_map(|text| wrapped(&text, columns))
            {
                writeln!(out, "  {line}")?;
            }
        }
    }
    String::from_utf8(out).map_err(io::Error::other)
}

fn failure(error: &Error) -> Value {
    let what = without_hint(&error.to_string(), error.hint());
    json!({ "error": what, "hint": error.hint() })
}

/// The text with its colours, or without.
fn coloured(text: &str, choice: ColorChoice) -> io::Result<String> {
    let mut stream = AutoStream::new(Vec::new(), choice);
    stream.write_all(text.as_bytes())?;
    String::from_utf8(stream.into_inner()).map_err(io::Error::other)
}

/// The text in lines that fit, two columns left out; a word that is longer stands alone.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() + 3 <= columns => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// The lines that so many rows have room for.
fn fitting(text: &str, rows: usize) -> Vec<String> {
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    if lines.len() > rows {
        let hidden = lines.len() - rows + 1;
        lines.truncate(rows - 1);
        lines.push(format!("and {hidden} lines more"));
    }
    lines
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let text = "a\nb\nc\nd\n";
        assert_eq!(fitting(text, usize::MAX), ["a", "b", "c", "d"]);
        assert_eq!(fitting(text, 4), ["a", "b", "c", "d"]);
        assert_eq!(fitting(text, 3), ["a", "b", "and 2 lines more"]);
        assert_eq!(fitting(text, 1), ["and 4 lines more"]);
    }

    #[test]
    fn what_is_too_long_goes_on_in_the_next_line() {
        assert_eq!(wrapped("see that it runs", 13), ["see that it", "runs"]);
        assert_eq!(wrapped("see that it runs", 12), ["see that", "it runs"]);
        assert_eq!(wrapped("see unbreakable", 5), ["see", "unbreakable"]);
        assert_eq!(
            wrapped("see that it runs", usize::MAX),
            ["see that it runs"]
        );
    }

    #[test]
    fn colours_go_where_they_are_not_wanted() {
        let text = format!("{BAD}none{BAD:#}");
        assert_eq!(coloured(&text, ColorChoice::Never).unwrap(), "none");
        assert_eq!(coloured(&text, ColorChoice::Always).unwrap(), text);
    }
}
