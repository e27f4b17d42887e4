//! `pg2kv completions` and `pg2kv man`: what shells and `man` want to know, made of the parser itself.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::args::{CompletionsArgs, ManArgs};
use super::output::{Failure, GOOD, count};
use super::{help, version};

pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    // In one piece: the generator panics where a stream is closed.
    let mut script = Vec::new();
    let mut command = help::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    let mut command = help::command();
    // Gives each verb its full name.
    command.build();
    let Some(directory) = &args.directory else {
        page(command, &mut io::stdout())?;
        return Ok(ExitCode::SUCCESS);
    };
    let written = fs::create_dir_all(directory)
        .and_then(|()| write_pages(&command, directory))
        .map_err(|error| {
            Failure::new(
                format!("cannot write to {}: {error}", directory.display()),
                "name a directory that this user may write to",
            )
        })?;
    writeln!(
        anstream::stdout(),
        "{GOOD}ok{GOOD:#}  {} in {}",
        count(written, "page"),
        directory.display()
    )?;
    Ok(ExitCode::SUCCESS)
}

/// The page of a command and those of the commands below it; returns how many.
fn write_pages(command: &clap::Command, directory: &Path) -> io::Result<u64> {
    let mut written = 1;
    for verb in command.get_subcommands() {
        written += write_pages(verb, directory)?;
    }
    let name = Man::new(command.clone()).get_filename();
    let mut file = File::create(directory.join(name))?;
    page(command.clone(), &mut file)?;
    Ok(written)
}

fn page(command: clap::Command, out: &mut impl Write) -> io::Result<()> {
    let after = command.get_after_long_help().or(command.get_after_help());
    let after = after.map(ToString::to_string).unwrap_or_default();
    let has_verbs = command.has_subcommands();
    let man = Man::new(command)
        .source(format!("pg2kv {}", version::SHORT.as_str()))
        .manual("pg2kv");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    if has_verbs {
        man.render_subcommands_section(out)?;
    }
    sections(&after).to_writer(out)
}

/// What stands below the options in `--help`: headings, and indented lines that are kept as they are.
fn sections(text: &str) -> Roff {
    let mut roff = Roff::new();
    let mut kept = false;
    for line in text.lines() {
        let indented = line.strip_prefix("  ");
        if indented.is_some() != kept {
            kept = !kept;
            roff.control(if kept { "nf" } else { "fi" }, []);
        }
        match (indented, line.strip_suffix(':')) {
            (Some(line), _) => {
                roff.text([roman(line)]);
            }
            (None, Some(heading)) => {
                roff.control("SH", [heading.to_uppercase().as_str()]);
            }
            (None, None) => {}
        }
    }
    if kept {
        roff.control("fi", []);
    }
    roff
}
