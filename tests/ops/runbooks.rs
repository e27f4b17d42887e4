//! The commands that the runbooks quote, run against a world that is well: they exist, and they work.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::Path;
use std::process::Output;

use tokio::process::Command;

use super::{RULES, SHOP, pair, scrape};
use crate::observe::read;
use crate::observe::runbooks::{commands, pages};
use crate::support::postgres::Server;
use crate::support::process;
use crate::support::prometheus::{self, Prometheus};
use crate::support::world::World;

/// What a diagnosis may begin with. All of it only reads.
const READING: [&str; 6] = [
    "curl -s \"$OPS/",
    "pg2kv check ",
    "pg2kv dead-letters list ",
    "pg2kv status ",
    "promtool query instant ",
    "psql \"$DATABASE_URL\" -c \"select ",
];

/// Where the programs of the pages are: ours, our tools, PostgreSQL's, the machine's.
fn search_path() -> OsString {
    let ours = Path::new(env!("CARGO_BIN_EXE_pg2kv")).parent().unwrap();
    let machine = std::env::var_os("PATH").unwrap_or_default();
    let directories = [
        ours.to_owned(),
        prometheus::tools(),
        Server::Installed.bin_dir(),
    ];
    std::env::join_paths(
        directories
            .into_iter()
            .chain(std::env::split_paths(&machine)),
    )
    .unwrap()
}

async fn shell(command: &str, variables: &BTreeMap<&str, String>) -> Output {
    Command::new("bash")
        .args(["-o", "pipefail", "-c", command])
        .env_clear()
        .env("PATH", search_path())
        .envs(variables)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

#[tokio::test]
async fn every_command_of_a_diagnosis_works() {
    let world = World::start(SHOP).await;
    world
        .sql("insert into public.users select n, 'free' from generate_series(1, 50) n")
        .await;
    let settings = world.settings();
    let (leader, standby) = pair(&world, &settings).await;
    world.converges().await;
    let prometheus = Prometheus::start(&read(RULES)).await;
    scrape(&prometheus, &[("a", &leader), ("b", &standby)]).await;
    let variables = BTreeMap::from([
        (
            "CONFIG",
            world.configure("runbook", &settings).display().to_string(),
        ),
        ("DATABASE_URL", world.postgres.admin_url()),
        ("OPS", format!("http://{}", leader.address().await)),
        ("PROMETHEUS", prometheus.url.clone()),
    ]);
    let mut wrong = Vec::new();
    let mut ran = 0;
    let quoted: BTreeSet<String> = pages().iter().flat_map(|page| commands(page)).collect();
    for command in quoted {
        if command.starts_with("kubectl ") {
            continue;
        }
        assert!(
            READING.iter().any(|begin| command.starts_with(begin)),
            "this may change something: {command}"
        );
        let output = shell(&command, &variables).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        // Silence is no answer, but for a query that finds no series.
        let silent = output.stdout.is_empty() && !command.starts_with("promtool ");
        if !output.status.success() || silent {
            wrong.push(format!("{command}\n{errors}"));
        }
        ran += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ran > 40, "the pages were not understood: {ran} commands");
}

#[tokio::test]
async fn every_command_of_a_mitigation_exists() {
    let mut seen = 0;
    for page in pages() {
        let text = read(&format!("deploy/runbooks/{page}.md"));
        for quoted in text.split('`').filter(|part| part.starts_with("pg2kv ")) {
            let words: Vec<&str> = quoted.split_whitespace().skip(1).collect();
            let verb = words.iter().take_while(|word| {
                word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-')
            });
            let help = process::command()
                .args(verb)
                .arg("--help")
                .output()
                .await
                .unwrap();
            assert!(help.status.success(), "{page}: {quoted}");
            let help = String::from_utf8(help.stdout).unwrap();
            for option in words.iter().filter(|word| word.starts_with("--")) {
                assert!(help.contains(option), "{page}: {quoted}: no {option}");
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "the pages were not understood: {seen} commands");
}
