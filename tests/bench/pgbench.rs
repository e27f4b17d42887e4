//! `pgbench`: the clients that write.

use std::path::PathBuf;
use std::process::Stdio;

use pg2kv::throwaway::programs;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// What to run.
pub(crate) struct Load<'a> {
    /// Where.
    pub(crate) url: &'a str,
    /// One transaction, in pgbench's language.
    pub(crate) script: &'a str,
    /// Clients at the same time.
    pub(crate) clients: u32,
    /// Transactions a second of all of them; as many as there can be where it is `None`.
    pub(crate) rate: Option<u32>,
    /// For how long.
    pub(crate) seconds: u32,
}

impl Load<'_> {
    /// Runs it; transactions a second, the time to connect left out.
    pub(crate) async fn run(&self) -> f64 {
        let mut command = Command::new(program("pgbench"));
        command
            .args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--file=-"])
            .arg(format!("--client={}", self.clients))
            .arg(format!("--time={}", self.seconds));
        if let Some(rate) = self.rate {
            command.arg(format!("--rate={rate}"));
        }
        let mut child = command
            .arg(self.url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(self.script.as_bytes()).await.unwrap();
        drop(stdin);
        let output = child.wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "pgbench failed: {errors}{said}");
        let rate = said.lines().find_map(|line| line.strip_prefix("tps = "));
        let rate = rate.and_then(|line| line.split(' ').next()?.parse().ok());
        rate.unwrap_or_else(|| panic!("pgbench says no rate: {said}"))
    }
}

/// A program of PostgreSQL: beside the server's, or on the path.
pub(crate) fn program(name: &str) -> PathBuf {
    let beside = programs::find_bin_dir().map(|dir| dir.join(name));
    match beside {
        Ok(path) if path.is_file() => path,
        _ => name.into(),
    }
}
