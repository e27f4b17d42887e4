//! What it tells systemd: ready, alive, stopping.

use std::ffi::OsStr;
use std::path::Path;

use pg2kv::throwaway::Stop;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::UnixDatagram;

use super::world;
use crate::support::process::Process;
use crate::support::wait::DEADLINE;

/// The end of systemd, where the messages of a service arrive.
struct Systemd {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Systemd {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { socket, folder }
    }

    fn run(&self, config: &Path) -> Process {
        let path = self.folder.path().join("notify");
        Process::run_with(
            config,
            &[
                ("NOTIFY_SOCKET", path.as_os_str()),
                ("WATCHDOG_USEC", OsStr::new("30000000")),
            ],
        )
    }

    /// The lines of the next messages, up to one that has this line.
    async fn told(&self, wanted: &str) -> Vec<String> {
        let mut buffer = [0; 4_096];
        let mut heard = Vec::new();
        let told = async {
            loop {
                let length = self.socket.recv(&mut buffer).await.unwrap();
                let message = std::str::from_utf8(&buffer[..length]).unwrap();
                heard.extend(message.lines().map(str::to_owned));
                if message.lines().any(|line| line == wanted) {
                    return;
                }
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, told).await.is_ok();
        assert!(in_time, "was not told {wanted}, but {heard:?}");
        heard
    }
}

fn says(heard: &[String], wanted: &str) -> bool {
    heard.iter().any(|line| line == wanted)
}

#[tokio::test]
async fn systemd_is_told_ready_alive_and_stopping() {
    let world = world().await;
    let systemd = Systemd::new();
    let mut daemon = systemd.run(&world.configure("pg2kv", &world.settings()));
    let heard = systemd.told("STATUS=leading").await;
    assert!(says(&heard, "READY=1"), "{heard:?}");
    // They go on while nothing happens, and nothing is said twice.
    for _ in 0..3 {
        let heard = systemd.told("WATCHDOG=1").await;
        assert!(!says(&heard, "READY=1"), "{heard:?}");
    }
    daemon.signal(Signal::TERM);
    systemd.told("STOPPING=1").await;
    assert!(daemon.ended().await.success());
}

#[tokio::test]
async fn systemd_is_told_of_life_but_not_ready_before_postgres_was_reached() {
    let mut world = world().await;
    world.stop_postgres(Stop::Immediate).await;
    let systemd = Systemd::new();
    let daemon = systemd.run(&world.configure("pg2kv", &world.settings()));
    let mut heard = systemd.told("STATUS=Postgres was not reached yet").await;
    for _ in 0..3 {
        heard.extend(systemd.told("WATCHDOG=1").await);
    }
    assert!(!says(&heard, "READY=1"), "{heard:?}");
    world.postgres.resume().unwrap();
    systemd.told("READY=1").await;
    daemon.stop().await;
}
