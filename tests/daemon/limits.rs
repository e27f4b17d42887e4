//! What runs out: connections to Postgres, and file descriptors of the process.

use std::fs;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::world;
use crate::support::process::{LEADS, Process};
use crate::support::world::World;

/// Ends the daemon's sessions, so that it needs new ones.
async fn cut(world: &World) {
    world
        .sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'edge'")
        .await;
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_asked_again() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    world.sql("alter role edge connection limit 0").await;
    cut(&world).await;
    // The server's word for it.
    daemon.logged("too many connections for role").await;
    world
        .sql("insert into public.note values (1, 'meanwhile')")
        .await;
    world.sql("alter role edge connection limit -1").await;
    daemon.logged_times(LEADS, 2).await;
    world.converges().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_process_without_a_free_file_descriptor_goes_on_when_it_has_one() {
    let world = world().await;
    let daemon = world.daemon();
    daemon.leads().await;
    world.converges().await;
    assert!(writes_to_no_file(&daemon));
    let before = limit_descriptors(&daemon, Some(3));
    cut(&world).await;
    daemon.logged("no session with Postgres").await;
    daemon.logged("Too many open files").await;
    world
        .sql("insert into public.note values (1, 'meanwhile')")
        .await;
    limit_descriptors(&daemon, before);
    daemon.logged_times(LEADS, 2).await;
    world.converges().await;
    assert_eq!(daemon.get("/readyz").await.0, 200);
    assert!(writes_to_no_file(&daemon));
    daemon.stop().await;
}

/// Sets how many descriptors the process may have; returns how many it was before.
fn limit_descriptors(daemon: &Process, most: Option<u64>) -> Option<u64> {
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let limit = |current| Rlimit {
        current,
        // Only who is privileged could raise it again.
        maximum: rustix::process::getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(pid, Resource::Nofile, limit(most)).unwrap();
    before.current
}

/// So a disk that is full or cannot be written to is none of its business.
fn writes_to_no_file(daemon: &Process) -> bool {
    let process = format!("/proc/{}", daemon.pid());
    let open = fs::read_dir(format!("{process}/fd")).unwrap();
    open.flatten().all(|descriptor| {
        let number = descriptor.file_name().into_string().unwrap();
        let Ok(path) = fs::read_link(descriptor.path()) else {
            return true; // closed meanwhile
        };
        let Ok(info) = fs::read_to_string(format!("{process}/fdinfo/{number}")) else {
            return true;
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        let is_file = path.is_absolute() && !path.starts_with("/dev");
        !(is_file && flags & 3 != 0)
    })
}
