//! Figures, and what is made of them: a table on the terminal, `target/bench/results.json`, and a
//! table in Markdown.
//!
//! Knows nothing of how a figure came about.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::termios::tcgetwinsize;
use serde::{Deserialize, Serialize};

use crate::rounds::median;

/// Columns of a terminal that does not say.
const WIDTH: usize = 120;
/// Narrowest that the names become.
const NAME_WIDTH_MIN: usize = 24;

/// One figure, as it stands in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// What was measured.
    name: String,
    /// The median of the rounds.
    value: f64,
    unit: String,
    /// What the same was without pg2kv, or with what it is compared with: the median of the rounds.
    reference: Option<f64>,
    /// What the reference is.
    reference_name: Option<String>,
    /// The median of the rounds' ratios, so that a round in which the machine was slow weighs alike.
    ratio: Option<f64>,
    /// What is to be reached, in words.
    target: Option<String>,
    /// Whether it is.
    met: Option<bool>,
    /// Each round's value.
    samples: Vec<f64>,
}

/// What a figure is to reach.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// Of the value.
    AtLeast(f64),
    /// Of the value.
    AtMost(f64),
    /// Of the ratio to the reference.
    RatioAtLeast(f64),
    /// Of the ratio to the reference.
    RatioAtMost(f64),
}

impl Figure {
    /// A figure that was measured so many times, at least once.
    pub(crate) fn new(name: impl Into<String>, unit: &str, samples: &[f64]) -> Self {
        Self {
            name: name.into(),
            value: median(samples),
            unit: unit.to_owned(),
            reference: None,
            reference_name: None,
            ratio: None,
            target: None,
            met: None,
            samples: samples.to_vec(),
        }
    }

    /// Compares it with what something else gave in the same rounds.
    pub(crate) fn against(mut self, name: &str, samples: &[f64]) -> Self {
        assert_eq!(samples.len(), self.samples.len(), "rounds of {name}");
        let ratios = self
            .samples
            .iter()
            .zip(samples)
            .map(|(own, other)| own / other);
        self.ratio = Some(median(&ratios.collect::<Vec<_>>()));
        self.reference = Some(median(samples));
        self.reference_name = Some(name.to_owned());
        self
    }

    /// Says what it is to reach.
    pub(crate) fn target(mut self, target: Target) -> Self {
        let unit = if self.unit == "x" {
            "x".to_owned()
        } else {
            format!(" {}", self.unit)
        };
        let ratio = self.ratio.unwrap_or(f64::NAN);
        let (met, words) = match target {
            Target::AtLeast(least) => (
                self.value >= least,
                format!("at least {}{unit}", number(least)),
            ),
            Target::AtMost(most) => (
                self.value <= most,
                format!("at most {}{unit}", number(most)),
            ),
            Target::RatioAtLeast(least) => (ratio >= least, format!("at least {least:.2} x")),
            Target::RatioAtMost(most) => (ratio <= most, format!("at most {most:.2} x")),
        };
        (self.met, self.target) = (Some(met), Some(words));
        self
    }

    fn cells(&self) -> [String; 6] {
        let with_unit = |value| format!("{} {}", number(value), self.unit);
        let reference = self.reference.map(|value| {
            format!(
                "{} ({})",
                number(value),
                self.reference_name.as_deref().unwrap_or("?")
            )
        });
        let dash = || "–".to_owned();
        [
            self.name.clone(),
            with_unit(self.value),
            reference.unwrap_or_else(dash),
            self.ratio
                .map_or_else(dash, |ratio| format!("{ratio:.2} x")),
            self.target.clone().unwrap_or_else(dash),
            self.met
                .map_or_else(dash, |met| if met { "yes" } else { "NO" }.to_owned()),
        ]
    }
}

const HEAD: [&str; 6] = [
    "what",
    "figure",
    "compared with",
    "ratio",
    "to reach",
    "reached",
];

/// The figures of one run.
pub(crate) struct Report {
    file: PathBuf,
    machine: String,
    figures: Vec<Figure>,
}

impl Report {
    /// An empty report; a run of some parts only leaves the results of the whole alone.
    pub(crate) fn begin(parts: &[String], machine: String) -> Self {
        let name = if parts.is_empty() {
            "results".to_owned()
        } else {
            parts.join("-")
        };
        fs::create_dir_all(directory()).unwrap();
        fs::write(directory().join("machine.txt"), format!("{machine}\n")).unwrap();
        let report = Self {
            file: directory().join(format!("{name}.json")),
            machine,
            figures: Vec::new(),
        };
        report.save();
        report
    }

    /// Takes a figure in.
    pub(crate) fn add(&mut self, figure: Figure) {
        let [name, value, reference, ratio, ..] = figure.cells();
        crate::say(&format!("    {name}: {value}, {ratio} of {reference}"));
        self.figures.push(figure);
    }

    /// Writes what there is so far: a run that is broken off keeps it.
    pub(crate) fn save(&self) {
        let text = serde_json::to_string_pretty(&self.figures).unwrap();
        fs::write(&self.file, text + "\n").unwrap();
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        let out = io::stdout();
        let width = match tcgetwinsize(&out) {
            Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
            _ => WIDTH,
        };
        let mut text = table(&self.figures, width);
        text.push_str(&format!("\n{}\n{}\n", self.machine, self.file.display()));
        // Nobody to read it is no reason to fail: it is in the file.
        let _ = out.lock().write_all(text.as_bytes());
    }
}

/// Prints the results of the last whole run in Markdown.
pub(crate) fn print_markdown() {
    let file = directory().join("results.json");
    let text = fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}; run `make bench` first", file.display()));
    let figures: Vec<Figure> = serde_json::from_str(&text).unwrap();
    let machine = fs::read_to_string(directory().join("machine.txt")).unwrap();
    let mut out = format!("{}\n\n", machine.trim());
    out.push_str(&format!(
        "| {} |\n|---|---|---|---|---|---|\n",
        HEAD.join(" | ")
    ));
    for figure in &figures {
        out.push_str(&format!("| {} |\n", figure.cells().join(" | ")));
    }
    let _ = io::stdout().write_all(out.as_bytes());
}

/// Below the target directory, wherever that is.
fn directory() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    target.join("bench")
}

/// Columns side by side; where the terminal is too narrow, the names give way.
fn table(figures: &[Figure], width: usize) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(figures.iter().map(Figure::cells));
    let mut widths: [usize; 6] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    });
    let others: usize = widths[1..].iter().sum::<usize>() + 2 * (widths.len() - 1);
    widths[0] = widths[0].min(width.saturating_sub(others).max(NAME_WIDTH_MIN));
    let mut text = String::new();
    for row in rows {
        let [name, cells @ ..] = row;
        let mut lines = wrap(&name, widths[0]).into_iter();
        let mut line = format!("{:1$}", lines.next().unwrap_or_default(), widths[0]);
        for (cell, width) in cells.iter().zip(&widths[1..]) {
            line.push_str(&format!("  {cell:width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
        for rest in lines {
            text.push_str(&format!("  {rest}\n"));
        }
    }
    text
}

/// Lines of at most so many characters, broken between words; those after the first are indented by
/// two, so they are shorter.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let room = if lines.len() == 1 { width } else { width - 2 };
        let last = lines.last_mut().unwrap();
        if last.is_empty() {
            last.push_str(word);
        } else if last.chars().count() + 1 + word.chars().count() <= room {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// Three digits that count, and thousands apart.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = match text.split_once('.') {
        Some((whole, fraction)) => (whole, format!(".{fraction}")),
        None => (text.as_str(), String::new()),
    };
    let mut apart = String::new();
    for (position, digit) in whole.chars().enumerate() {
        let left = whole.len() - position;
        if position > 0 && left % 3 == 0 && !apart.ends_with('-') {
            apart.push(',');
        }
        apart.push(digit);
    }
    apart + &fraction
}
