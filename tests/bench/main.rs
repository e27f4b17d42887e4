//! What pg2kv costs and how fast it is, measured beside what people would use instead.
//!
//! `make bench` runs everything, `make bench QUICK=1` a shorter round, `make bench ONLY=writers` one
//! part. Each part is one file here: it measures its variants in turn, round by round, and gives
//! figures to the [`report`]. Nothing is asserted about time: a figure reaches its target or it does
//! not, and the table says so. `deploy/benchmarks.md` says how each figure is measured.
#![cfg(test)]
// Clippy takes these for code outside tests.
#![allow(clippy::unwrap_used)]

mod bulk;
mod dead;
mod hot;
mod kv;
mod latency;
mod machine;
mod pgbench;
mod report;
mod rounds;
mod stage;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;
mod writers;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use report::Report;
use support::wait::say;

/// One part of the benchmarks: a name for `--only`, and what runs it.
struct Part {
    name: &'static str,
    run: for<'a> fn(&'a Context, &'a mut Report) -> LocalBoxFuture<'a, ()>,
}

/// In this order. What measures the database comes first, then what goes to KV.
const PARTS: &[Part] = &[
    Part {
        name: "writers",
        run: |context, report| writers::run(context, report).boxed_local(),
    },
    Part {
        name: "bulk",
        run: |context, report| bulk::run(context, report).boxed_local(),
    },
    Part {
        name: "latency",
        run: |context, report| latency::run(context, report).boxed_local(),
    },
    Part {
        name: "hot",
        run: |context, report| hot::run(context, report).boxed_local(),
    },
    Part {
        name: "dead",
        run: |context, report| dead::run(context, report).boxed_local(),
    },
    Part {
        name: "drain",
        run: |context, report| kv::drain::run(context, report).boxed_local(),
    },
    Part {
        name: "limited",
        run: |context, report| kv::limited::run(context, report).boxed_local(),
    },
    Part {
        name: "first-sync",
        run: |context, report| kv::first_sync::run(context, report).boxed_local(),
    },
    Part {
        name: "idle",
        run: |context, report| kv::idle::run(context, report).boxed_local(),
    },
    Part {
        name: "growth",
        run: |context, report| kv::growth::run(context, report).boxed_local(),
    },
];

/// What every part is told.
pub(crate) struct Context {
    /// A shorter round was asked for.
    quick: bool,
}

impl Context {
    /// One of two sizes: for the whole round, or for the quick one.
    pub(crate) fn size<T>(&self, whole: T, quick: T) -> T {
        if self.quick { quick } else { whole }
    }
}

/// Measures pg2kv beside what people would use instead.
#[derive(Parser)]
struct Arguments {
    /// A shorter round, of at most four minutes
    #[arg(long)]
    quick: bool,
    /// Only these parts, with commas between
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    /// Run nothing: print the last results as a table in Markdown
    #[arg(long)]
    markdown: bool,
    /// Cargo says so to each program that it runs
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.markdown {
        report::print_markdown();
        return ExitCode::SUCCESS;
    }
    let names = || PARTS.iter().map(|part| part.name);
    for name in &arguments.only {
        if !names().any(|known| known == name) {
            let known: Vec<_> = names().collect();
            say(&format!(
                "there is no part {name:?}; there are {}",
                known.join(", ")
            ));
            return ExitCode::from(64);
        }
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> ExitCode {
    let context = Context {
        quick: arguments.quick,
    };
    let mut report = Report::begin(&arguments.only, machine::describe());
    let mut failed = Vec::new();
    for part in PARTS {
        if !arguments.only.is_empty() && !arguments.only.iter().any(|name| name == part.name) {
            continue;
        }
        let began = Instant::now();
        say(&format!("--- {}", part.name));
        // One that fails takes nothing from the others.
        let ran = AssertUnwindSafe((part.run)(&context, &mut report));
        if ran.catch_unwind().await.is_err() {
            failed.push(part.name);
        }
        report.save();
        say(&format!(
            "    {} took {:.0} s",
            part.name,
            began.elapsed().as_secs_f64()
        ));
    }
    report.print();
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    say(&format!("failed: {}", failed.join(", ")));
    ExitCode::FAILURE
}
