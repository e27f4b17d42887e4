//! `pg2kv resync` shows how far it is, wherever the daemon runs.

use std::process::{Output, Stdio};

use pg2kv::emulator::faults::Fault;
use pg2kv::emulator::route::Operation;

use super::world;
use crate::support::process;
use crate::support::terminal::Terminal;
use crate::support::world::World;

/// `pg2kv resync note`, with nothing of a terminal.
pub(super) async fn resync(world: &World, arguments: &[&str]) -> Output {
    let config = world.configure("resync", &world.settings());
    process::command()
        .args(["resync", "note", "--config"])
        .arg(config)
        .args(arguments)
        .output()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_terminal_shows_a_resync_from_the_lack_of_a_leader_to_its_end() {
    let world = world().await;
    world
        .sql(
            "insert into public.note select n, 'text' from generate_series(1, 300) n;
             delete from pg2kv.outbox; update pg2kv.sync set backfilled_at = now()",
        )
        .await;
    // The walk comes as far as the first name in KV, and no further. Before that, names of other
    // installations are looked for, once for each sync.
    let fault = Fault::status(503)
        .on_operation(Operation::ListKeys)
        .after(2);
    world.kv.faults().add(fault).unwrap();

    let (terminal, stderr) = Terminal::open();
    let config = world.configure("resync", &world.settings());
    let resync = process::command()
        .env("TERM", "xterm")
        .args(["resync", "note", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    terminal.shows("note: no daemon leads").await;
    let daemon = world.daemon();
    terminal.shows("note: names in KV").await;
    terminal.shows("0 of about 300").await;
    world.kv.faults().clear();
    let ended = resync.wait_with_output().await.unwrap();
    assert!(ended.status.success(), "{}", ended.status);
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(
        said.starts_with("ok  every document of note was looked at again, in "),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    world.converges().await;
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_terminal_a_resync_says_only_how_it_ended() {
    let world = world().await;
    // Nobody is there to do it, and nobody to see that.
    let nobody = resync(&world, &[]).await;
    assert_eq!(nobody.status.code(), Some(69));
    let said = String::from_utf8(nobody.stderr).unwrap();
    assert!(
        said.starts_with("error: a resync of note was asked for, but no daemon leads\n  help: "),
        "{said}"
    );
    assert!(nobody.stdout.is_empty());
    let asked = resync(&world, &["--no-wait"]).await;
    assert!(asked.status.success());
    let said = String::from_utf8(asked.stdout).unwrap();
    assert!(said.starts_with("ok  every document of note will be written again"));

    let daemon = world.daemon();
    daemon.leads().await;
    let done = resync(&world, &[]).await;
    assert!(done.status.success(), "{done:?}");
    assert!(done.stderr.is_empty(), "{done:?}");
    assert!(daemon.count("backfill done") > 0);
    daemon.stop().await;
}
