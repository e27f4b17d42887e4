//! The built binary: help, versions, exit codes, what goes to which stream.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{BASE, Files};

/// The binary with these arguments and nothing of our environment.
fn pg2kv(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pg2kv"));
    command.env_clear().args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    pg2kv(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

const HELP: &str = "\
Keeps Cloudflare Workers KV equal to what rows in Postgres say

Usage: pg2kv [OPTIONS] <COMMAND>

Set up:
  check           Check configuration, database, triggers, token and namespaces
  sql             Print the SQL that this configuration needs
  install         Install what this configuration needs, or bring it up to date
  config          Look at the configuration, or print its schema for editors

Operate:
  run             Run the daemon
  status          Show the leader, and each sync with what waits
  resync          Write every document of a sync again
  verify          Compare KV with Postgres, and have mended what drifted
  explain         Say where a KV key comes from, and whether KV has it right
  dead-letters    Look at keys that KV cannot take, try them again, or drop them
  approve-deletes Let a mass delete go that the brake holds

Try out:
  demo            Show it at work, on a throw-away PostgreSQL and a local KV
  emulator        Run a local server that speaks the Workers KV REST API

About:
  completions     Print a script that completes pg2kv's arguments in a shell
  man             Print the manual, or write a page for each verb
  version         Print the version

Options:
";

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed, or something is not in order
  2    the command line is wrong
  69   Postgres, Workers KV or the address to listen on is not available
  78   the configuration is wrong
";

#[test]
fn help_is_grouped_and_says_the_exit_codes() {
    let output = run(&["--help"]);
    let help = text(&output.stdout);
    assert!(output.status.success());
    assert!(help.starts_with(HELP), "{help}");
    assert!(help.contains(EXIT_CODES), "{help}");
    assert!(
        help.lines().all(|line| line.chars().count() <= 100),
        "{help}"
    );
    // Not a terminal, so no colour.
    assert!(!help.contains('\u{1b}'));
}

#[test]
fn colour_can_be_asked_for_and_refused() {
    let coloured = |name, value| {
        let output = pg2kv(&["run"]).env(name, value).output().unwrap();
        text(&output.stderr).contains('\u{1b}')
    };
    assert!(coloured("CLICOLOR_FORCE", "1"));
    assert!(!coloured("NO_COLOR", "1"));
}

#[test]
fn mistakes_of_the_command_line_exit_2() {
    for arguments in [
        &["run", "--confg", "x"][..],
        &["rnu"],
        &["resync"],
        &["emulator", "--listen", "x"],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).starts_with("error: "), "{arguments:?}");
    }
}

#[test]
fn a_wrong_configuration_exits_78_with_every_error() {
    let files = Files::new();
    let path = files.write(
        "pg2kv.toml",
        &BASE
            .replace("public.users", "users")
            .replace("[\"plan\"]", "[]"),
    );
    let path = path.to_str().unwrap();
    for verb in ["run", "check", "sql", "status"] {
        let output = run(&[verb, "--config", path]);
        assert_eq!(output.status.code(), Some(78), "{verb}");
        assert_eq!(text(&output.stdout), "", "{verb}");
        assert_eq!(
            text(&output.stderr).replace(path, "FILE"),
            "\
error: sync.users.table = \"users\" names no schema
  where: FILE, line 8
  help: write it with its schema, such as \"public.users\"
error: sync.users.columns is empty
  where: FILE, line 10
  help: give it a list or a table of column names, or leave it out

2 errors
",
            "{verb}"
        );
    }
}

#[test]
fn the_version_is_for_people_and_for_programs() {
    let short = run(&["--version"]);
    let long = run(&["version"]);
    assert_eq!(text(&short.stdout), text(&long.stdout));
    assert!(text(&short.stdout).starts_with(concat!("pg2kv ", env!("CARGO_PKG_VERSION"))));
    let json: serde_json::Value =
        serde_json::from_slice(&run(&["version", "--json"]).stdout).unwrap();
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json.as_object().unwrap().contains_key("revision"));
    assert_eq!(json["schema_version"], pg2kv::sql_kit::VERSION);
    let target = json["target"].as_str().unwrap();
    assert!(target.starts_with(std::env::consts::ARCH), "{target}");
    assert!(target.contains(std::env::consts::OS), "{target}");
}

#[test]
fn config_print_shows_each_value_with_its_origin() {
    let files = Files::new();
    let path = files.write("pg2kv.toml", BASE);
    let path = path.to_str().unwrap();
    let output = pg2kv(&["config", "print", "-c", path])
        .env("PG2KV__QUEUE__QUIET", "5ms")
        .output()
        .unwrap();
    assert!(output.status.success());
    let printed = text(&output.stdout).replace(path, "FILE");
    for line in [
        "[postgres]",
        "url               = \"[redacted]\"  # FILE, line 3",
        "# url_file is not set",
        "quiet        = \"5ms\"  # environment variable PG2KV__QUEUE__QUIET",
        "key          = \"user:{id}\"     # FILE, line 9",
        "leading      = false  # default",
    ] {
        assert!(
            printed.lines().any(|printed| printed == line),
            "{line}\n{printed}"
        );
    }
    assert!(!printed.contains("canary"));
    // What is printed can be read again.
    let again = files.write("again.toml", &printed.replace("\"[redacted]\"", "\"x\""));
    let output = pg2kv(&["config", "print", "-c", again.to_str().unwrap()])
        .env("PG2KV__POSTGRES__URL", "postgres://x@localhost/x")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn sql_needs_no_secrets_and_prints_what_the_configuration_says() {
    let files = Files::new();
    let sync = &BASE[BASE.find("[sync").unwrap()..];
    let path = files.write(
        "pg2kv.toml",
        &format!("[postgres]\nschema = 'edge'\n{sync}"),
    );
    let path = path.to_str().unwrap();
    let sql = |arguments: &[&str]| {
        let output = run(&[arguments, &["--config", path]].concat());
        assert!(
            output.status.success(),
            "{arguments:?} {}",
            text(&output.stderr)
        );
        text(&output.stdout).to_owned()
    };
    let watch = "\
select edge.watch(
  'public.users',
  sync => 'users',
  key => array['id']::text[],
  columns => array['plan']::text[]
);
";
    assert_eq!(sql(&["sql", "watch"]), watch);
    let all = sql(&["sql", "--login", "app"]);
    assert!(all.starts_with(&sql(&["sql", "install"])));
    assert!(all.contains(watch));
    assert!(all.ends_with("grant edge_daemon to \"app\";\n"));
    assert!(sql(&["sql", "uninstall"]).contains("drop schema"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let files = Files::new();
    let path = files.write("pg2kv.toml", BASE);
    let mut child = pg2kv(&["sql", "--config", path.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn the_emulator_says_when_it_is_ready_and_stops_on_sigterm() {
    let mut child = pg2kv(&["emulator", "--listen", "127.0.0.1:0", "--token", "canary"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    let url = ready.split(' ').nth(1).unwrap();
    assert!(ready.starts_with("ready http://127.0.0.1:"), "{ready}");
    assert!(url.ends_with("/client/v4"), "{ready}");
    assert!(!ready.contains("canary"));
    let address = url.trim_start_matches("http://").split('/').next().unwrap();
    std::net::TcpStream::connect(address).unwrap();

    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn an_address_in_use_exits_69() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(&["emulator", "--listen", &address]);
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).starts_with("error: the emulator cannot start: "));
}
