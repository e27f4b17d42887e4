//! How `pg2kv --help` looks: verbs in groups, which the parser's own help does not offer.
//!
//! The words of each verb stay with its arguments; only groups and order are here.

use std::fmt::Write as _;

use clap::CommandFactory as _;
use clap::builder::Styles;
use clap::builder::styling::{AnsiColor, Style};

use super::args::Cli;
use super::version;

/// Headings and their verbs, in the order of use.
const GROUPS: &[(&str, &[&str])] = &[
    ("Set up", &["check", "sql", "install", "config"]),
    (
        "Operate",
        &[
            "run",
            "status",
            "resync",
            "verify",
            "explain",
            "dead-letters",
            "approve-deletes",
        ],
    ),
    ("Try out", &["demo", "emulator"]),
    ("About", &["completions", "man", "version"]),
];

const HEADING: Style = AnsiColor::Green.on_default().bold();
const VERB: Style = AnsiColor::Cyan.on_default().bold();

const EXIT_CODES: &[(&str, &str)] = &[
    ("0", "done"),
    ("1", "failed, or something is not in order"),
    ("2", "the command line is wrong"),
    (
        "69",
        "Postgres, Workers KV or the address to listen on is not available",
    ),
    ("78", "the configuration is wrong"),
];

/// The parser, with our help.
pub(super) fn command() -> clap::Command {
    let command = Cli::command();
    let verbs = verbs(&command);
    command
        .version(version::SHORT.as_str())
        .styles(
            Styles::styled()
                .header(HEADING)
                .usage(HEADING)
                .literal(VERB)
                .placeholder(AnsiColor::Cyan.on_default())
                .error(AnsiColor::Red.on_default().bold()),
        )
        .help_template(format!(
            "{{about}}\n\n{{usage-heading}} {{usage}}\n{verbs}\n{HEADING}Options:{HEADING:#}\n\
             {{options}}{{after-help}}"
        ))
        .after_help(after())
        .max_term_width(100)
}

fn verbs(command: &clap::Command) -> String {
    let mut text = String::new();
    for (heading, names) in GROUPS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{HEADING}{heading}:{HEADING:#}");
        for name in *names {
            let about = command
                .find_subcommand(name)
                .and_then(|verb| verb.get_about());
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(text, "  {VERB}{name:<15}{VERB:#} {about}");
        }
    }
    text
}

fn after() -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{HEADING}Configuration:{HEADING:#}");
    let _ = writeln!(
        text,
        "  Files first, then PG2KV__SECTION__KEY from the environment, for example"
    );
    let _ = writeln!(
        text,
        "  PG2KV__QUEUE__QUIET=0ms. DATABASE_URL, CLOUDFLARE_API_TOKEN and"
    );
    let _ = writeln!(
        text,
        "  CLOUDFLARE_ACCOUNT_ID serve where these are silent."
    );
    let _ = writeln!(text, "\n{HEADING}Exit codes:{HEADING:#}");
    for (code, meaning) in EXIT_CODES {
        let _ = writeln!(text, "  {VERB}{code:<4}{VERB:#} {meaning}");
    }
    let _ = writeln!(text, "\n{HEADING}Example:{HEADING:#}");
    let _ = write!(text, "  pg2kv check && pg2kv run");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_stands_in_one_group() {
        let command = command();
        command.clone().debug_assert();
        let mut grouped: Vec<_> = GROUPS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        grouped.sort_unstable();
        let mut verbs: Vec<_> = command
            .get_subcommands()
            .map(clap::Command::get_name)
            .collect();
        verbs.sort_unstable();
        assert_eq!(grouped, verbs);
    }

    #[test]
    fn the_page_on_the_command_line_has_every_verb_and_exit_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/cli.md");
        let page = std::fs::read_to_string(path).unwrap();
        let mut command = command();
        command.build();
        for verb in tree(&command).iter().filter(|verb| !verb.has_subcommands()) {
            let name = format!("`{}`", verb.get_bin_name().unwrap_or_default());
            assert!(page.contains(&name), "{name} is missing");
        }
        for (code, meaning) in EXIT_CODES {
            let row = format!("| {code} | {meaning} |");
            assert!(page.contains(&row), "{row} is missing");
        }
    }

    /// The command and all below it.
    fn tree(command: &clap::Command) -> Vec<&clap::Command> {
        let below = command.get_subcommands().flat_map(tree);
        std::iter::once(command).chain(below).collect()
    }

    #[test]
    fn every_command_has_an_example() {
        let mut command = command();
        command.build();
        for verb in tree(&command) {
            let name = verb.get_bin_name().unwrap_or_else(|| verb.get_name());
            let after = verb
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let example = after
                .split_once("Example")
                .and_then(|(_, rest)| rest.split_once(":\n"))
                .map(|(_, lines)| lines.lines().next().unwrap_or_default());
            let example = example.unwrap_or_default();
            assert!(example.starts_with("  "), "{name}: {after:?}");
            assert!(example.contains(name), "{name}: {after:?}");
        }
    }

    #[test]
    fn the_list_of_verbs_fits_80_columns() {
        for line in verbs(&command()).lines() {
            let line = anstream::adapter::strip_str(line).to_string();
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn no_line_of_help_is_wider_than_100_columns() {
        let mut command = command();
        command.build();
        for verb in tree(&command) {
            let mut verb = verb.clone().term_width(100);
            for help in [verb.render_help(), verb.render_long_help()] {
                for line in help.to_string().lines() {
                    assert!(line.chars().count() <= 100, "{}: {line}", verb.get_name());
                }
            }
        }
    }
}
