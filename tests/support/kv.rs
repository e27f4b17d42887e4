//! Workers KV in a process of its own: where the daemon's processor time and memory are measured, and
//! where nobody looks into the history of writes.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use super::process::command;
use super::wait::DEADLINE;
use super::world::{ACCOUNT, NAMESPACE, TOKEN};

/// `pg2kv emulator`, killed when it is dropped.
pub(crate) struct KvProcess {
    /// Where the API begins.
    pub(crate) base_url: String,
    process: Child,
}

impl KvProcess {
    /// Starts it with these arguments besides the usual token, account and namespace.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let mut process = command()
            .args(["emulator", "--listen", "127.0.0.1:0"])
            .args(["--token", TOKEN, "--account", ACCOUNT])
            .args(["--namespace", NAMESPACE])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let ready = tokio::time::timeout(DEADLINE, lines.next_line()).await;
        let ready = ready.unwrap().unwrap().unwrap();
        let base_url = ready.split_whitespace().nth(1).unwrap().to_owned();
        Self { base_url, process }
    }
    /// Its process id. It must run.
    #[allow(dead_code, reason = "only the benchmarks ask")]
    pub(crate) fn pid(&self) -> u32 {
        self.process.id().unwrap()
    }
}
