//! `pg2kv status --watch`: on a terminal, in a pipe, and while Postgres is away.

use std::net::SocketAddr;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::audit::Place;
use crate::support::proxy::{Mode, Proxy};
use crate::support::terminal::Terminal;
use crate::support::wait::DEADLINE;

const TABLE: &str = "create table item (id int primary key, n int);";
const SYNC: &str = "[sync.item]\ntable = \"public.item\"\nkey = \"item:{id}\"\ncolumns = [\"n\"]\n";
const WATCH: [&str; 4] = ["status", "--watch", "--interval", "100ms"];

async fn place(login: &str) -> Place {
    let place = Place::new(login, TABLE, SYNC).await;
    place.settled().await;
    place
}

fn lines(command: &mut Command) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let line = tokio::time::timeout(DEADLINE, lines.next_line()).await;
    line.expect("a line in time").unwrap().expect("no end")
}

async fn ends_well(mut child: Child, signal: Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    let ended = tokio::time::timeout(DEADLINE, child.wait()).await;
    assert!(ended.expect("an end in time").unwrap().success());
}

#[tokio::test]
async fn in_a_pipe_there_is_a_document_a_line_also_while_postgres_is_away() {
    let place = place("lines").await;
    let url = place.database.url_as(&place.database.role("lines"));
    let port = url
        .split(['/', ':'])
        .find_map(|part| part.parse::<u16>().ok())
        .unwrap();
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], port))).await;
    let through = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    let mut command = place.command(&[&WATCH[..], &["--json"]].concat());
    let (child, mut lines) = lines(command.env("PG2KV__POSTGRES__URL", through));
    let mut until = async |what: &str| loop {
        let document: Value = serde_json::from_str(&next(&mut lines).await).unwrap();
        assert!(document["at"].is_string(), "{document}");
        if !document[what].is_null() {
            return document;
        }
    };
    let seen = until("syncs").await;
    assert_eq!(seen["syncs"][0]["waiting"], 0);
    proxy.set(Mode::Reset);
    let away = until("error").await;
    assert!(away["syncs"].is_null(), "{away}");
    place
        .sql("insert into item select n, n from generate_series(1, 777) n")
        .await;
    proxy.set(Mode::Pass);
    let seen = until("syncs").await;
    assert_eq!(seen["syncs"][0]["waiting"], 777);
    ends_well(child, Signal::TERM).await;
}

#[tokio::test]
async fn in_a_pipe_tables_follow_each_other() {
    let place = place("tables").await;
    let mut command = place.command(&WATCH);
    // Wanted or not: this is no terminal to draw on.
    let (child, mut lines) = lines(command.env("CLICOLOR_FORCE", "1"));
    let mut seen = vec![next(&mut lines).await];
    while !seen[1..].contains(&seen[0]) {
        seen.push(next(&mut lines).await);
    }
    let [.., row, gap, _] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert!(row.starts_with("item ") && gap.is_empty(), "{seen:?}");
    assert!(seen[0].contains("none\u{1b}[0m"), "{seen:?}");
    assert!(!seen.concat().contains("\u{1b}[H"), "{seen:?}");
    ends_well(child, Signal::INT).await;
}

#[tokio::test]
async fn a_terminal_shows_one_table_in_place_and_is_restored() {
    let place = place("screen").await;
    for (colour, insert, waiting) in [(true, "1, 777", " 777 "), (false, "778, 888", " 888 ")] {
        let (terminal, stdout) = Terminal::open();
        let mut command = place.command(&WATCH);
        command.env("TERM", "xterm").stdout(stdout);
        if !colour {
            command.env("NO_COLOR", "1");
        }
        let child = command.spawn().unwrap();
        // The end that is kept open here must not keep the terminal from ending.
        drop(command);
        terminal.shows("TRIGGERS").await;
        place
            .sql(&format!(
                "insert into item select n, n from generate_series({insert}) n"
            ))
            .await;
        terminal.shows(waiting).await;
        ends_well(child, Signal::INT).await;
        terminal.shows("\u{1b}[?25h\u{1b}[?1049l").await;
        let text = terminal.text();
        assert!(
            text.starts_with("\u{1b}[?1049h\u{1b}[?25l\u{1b}[?7l\u{1b}[H"),
            "{text:?}"
        );
        assert!(text.matches("\u{1b}[H").count() > 2, "{text:?}");
        assert_eq!(text.contains("\u{1b}[31m"), colour, "{text:?}");
        assert_eq!(text.contains("\u{1b}[2m"), colour, "{text:?}");
    }
}
