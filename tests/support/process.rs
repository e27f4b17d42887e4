//! The real binary as a child process, with its log.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};
use tokio::sync::watch;

use super::wait::DEADLINE;

/// What the daemon logs once it may write.
pub(crate) const LEADS: &str = "this process leads";
/// What it logs when another one may.
pub(crate) const STANDS_BY: &str = "another process leads";

/// What the image and the unit of systemd set for the daemon, and so what is tested and measured.
pub(crate) const ENVIRONMENT: [(&str, &str); 1] = [("MIMALLOC_PURGE_DELAY", "0")];

/// `pg2kv run`, killed when it is dropped.
pub(crate) struct Process {
    child: Child,
    log: watch::Receiver<String>,
    http: reqwest::Client,
}

impl Process {
    /// Starts the daemon with this configuration file, in the environment that the image gives it.
    pub(crate) fn run(config: &Path) -> Self {
        Self::run_with(config, &[])
    }

    /// The same with these variables.
    pub(crate) fn run_with(config: &Path, variables: &[(&str, &OsStr)]) -> Self {
        let mut child = command()
            .envs(ENVIRONMENT)
            .envs(variables.iter().copied())
            .args(["run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let (sender, log) = watch::channel(String::new());
        tokio::spawn(async move {
            let (mut buffer, mut rest) = (vec![0; 65_536], Vec::new());
            while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
                rest.extend_from_slice(&buffer[..read]);
                // Whole lines only: a character may be cut in two.
                if let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') {
                    let lines: Vec<u8> = rest.drain(..=end).collect();
                    sender.send_modify(|log| log.push_str(&String::from_utf8_lossy(&lines)));
                }
            }
            sender.send_modify(|log| log.push_str(&String::from_utf8_lossy(&rest)));
        });
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        Self { child, log, http }
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        self.log.borrow().clone()
    }

    /// How often a text stands in the log.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.log.borrow().matches(text).count()
    }

    /// Waits until a text stands in the log; returns the first line that has it.
    pub(crate) async fn logged(&self, text: &str) -> String {
        self.logged_times(text, 1).await
    }

    /// Waits until a text stands in the log so many times; returns the last line that has it.
    pub(crate) async fn logged_times(&self, text: &str, times: usize) -> String {
        let mut log = self.log.clone();
        let found = log.wait_for(|log| log.matches(text).count() >= times);
        match tokio::time::timeout(DEADLINE, found).await {
            Ok(Ok(log)) => {
                let mut lines = log.lines().filter(|line| line.contains(text));
                lines.nth(times - 1).unwrap_or_default().to_owned()
            }
            Ok(Err(_)) => panic!("the daemon ended and never logged {text:?}"),
            Err(_) => panic!("the daemon did not log {text:?}"),
        }
    }

    /// Waits until it leads.
    pub(crate) async fn leads(&self) {
        self.logged(LEADS).await;
    }

    /// Sends a signal. The child was not waited for, so its id cannot belong to anybody else.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
            // It may have ended just now; its id stays ours until it is waited for.
            kill_process(pid, signal).unwrap();
        }
    }

    /// Its process id. It must run.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Kills it and waits until it is gone.
    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        match tokio::time::timeout(DEADLINE, self.child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("the daemon did not end"),
        }
    }

    /// Asks it to stop and waits until it has; it must say that all is well.
    pub(crate) async fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}");
    }

    /// Address of its server for operators.
    pub(crate) async fn address(&self) -> String {
        let line = self.logged("pg2kv started").await;
        let event: Value = serde_json::from_str(&line).unwrap();
        event["listen"].as_str().unwrap().to_owned()
    }

    /// The URL of a path of that server.
    pub(crate) async fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address().await)
    }

    /// GET from its server for operators: status and body.
    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let reply = self.http.get(self.url(path).await).send().await;
        let reply = reply.unwrap();
        (reply.status().as_u16(), reply.text().await.unwrap())
    }

    /// Most memory that it has held at once, in KiB.
    pub(crate) fn memory_peak_kib(&self) -> u64 {
        let id = self.child.id().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number
            .and_then(|number| number.parse().ok())
            .expect("a peak in KiB")
    }

    /// The value of a metric, all its series added up; `None` where it does not show.
    pub(crate) async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await;
        let values: Vec<f64> = text
            .lines()
            .filter(|line| {
                line.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(['{', ' ']))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(60)..].join("\n");
            super::wait::say(&format!("--- log of the daemon, its end:\n{tail}\n"));
        }
    }
}

/// The binary, with nothing from our own environment but where programs are. `PG2KV_BINARY` names
/// another build of it.
pub(crate) fn command() -> Command {
    let ours = || env!("CARGO_BIN_EXE_pg2kv").into();
    let mut command = Command::new(std::env::var_os("PG2KV_BINARY").unwrap_or_else(ours));
    command.env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}
