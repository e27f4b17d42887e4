//! PostgreSQL servers that live as long as a demo or a test.
//!
//! Owns finding the server's programs, a data directory, a free port, and the end of all three. The
//! server dies with this process even when that is killed. Knows nothing of pg2kv.
//!
//! The calls block: from asynchronous code use them where a second of blocking does no harm, or on
//! a blocking thread.

pub mod data_dir;
pub mod programs;

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use programs::{User, as_user};

/// How long a server may take to accept connections, and to stop when asked.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often a starting or stopping server is looked at. `pg_ctl` watches the same file at 100 ms.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Ports are picked by asking the kernel and may be taken by somebody else before the server binds.
const PORT_ATTEMPTS: u32 = 5;
/// The name of the superuser of every server made here.
const SUPERUSER: &str = "postgres";

/// Runs the server in place of the shell, and leaves behind a watcher that holds the other end of our
/// pipe. The pipe closes when this process dies, however it dies; a line on it means "no longer needed".
/// The watcher is a grandchild, so that the server never meets a child that it did not make.
const RUN_AND_WATCH: &str = r#"
exec 3<&0 </dev/null
(
  (
    if read -r _ <&3; then exit 0; fi
    kill -QUIT "$$"
    kill -CONT "$$"
    while kill -0 "$$"; do sleep 0.1; done
    rm -rf "$0"
  ) >/dev/null 2>&1 &
)
exec 3<&-
exec "$@"
"#;

/// What kind of server to start.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where `initdb` and `postgres` are; `None` looks in the usual places, newest version first.
    pub bin_dir: Option<PathBuf>,
    /// Settings for `postgresql.conf`, name and plain value; they win over the ones made for speed.
    pub settings: Vec<(String, String)>,
    /// Whether commits wait for the disk. Off is faster; only a crash of the machine can tell.
    pub fsync: bool,
    /// Files to put into the data directory, readable by the server only, for example `server.key`
    /// or another `pg_hba.conf`.
    pub files: Vec<(String, Vec<u8>)>,
    /// A data directory made by [`data_dir::init`] to copy, which is faster than making a new one.
    pub template: Option<PathBuf>,
}

/// How to stop a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Wait until every client has gone.
    Smart,
    /// End every session, write a checkpoint.
    Fast,
    /// As in a crash: the next start recovers.
    Immediate,
}

/// Why a server could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No `initdb` was found.
    #[error(
        "no PostgreSQL server programs (initdb, postgres) found in {looked}; install them, for \
         example with `apt-get install postgresql`, or name their directory"
    )]
    NotFound {
        /// The places that were tried.
        looked: String,
    },
    /// PostgreSQL refuses to run as root, and there is no other user to run it as.
    #[error("PostgreSQL does not run as root, and /etc/passwd has no user postgres or nobody")]
    NoUser,
    /// A program could not be run or a file not be written.
    #[error("{doing} failed")]
    Io {
        /// What was tried.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program ran and said no.
    #[error("{program} failed: {output}")]
    Failed {
        /// Which program.
        program: &'static str,
        /// The end of what it printed.
        output: String,
    },
    /// The server did not get ready, or did not stop, in time.
    #[error("the PostgreSQL server did not {what} within {} s: {output}", PATIENCE.as_secs())]
    Slow {
        /// `start` or `stop`.
        what: &'static str,
        /// The end of its log.
        output: String,
    },
}

/// Result of the operations here.
pub type Result<T> = std::result::Result<T, Error>;

/// A PostgreSQL server of our own on 127.0.0.1; superuser `postgres`, no password asked.
///
/// Dropping it stops the server at once and removes its data.
#[derive(Debug)]
pub struct Postgres {
    bin_dir: PathBuf,
    dir: TempDir,
    user: Option<User>,
    port: u16,
    running: Option<Running>,
}

/// A server process, and the pipe whose closing ends it.
#[derive(Debug)]
struct Running {
    server: Child,
    lifeline: ChildStdin,
}

impl Postgres {
    /// Makes a data directory and starts a server on it; returns when it accepts connections.
    ///
    /// # Errors
    /// When the programs are missing, or `initdb` or the server fails; with the end of their output.
    pub fn start(options: Options) -> Result<Self> {
        let bin_dir = match &options.bin_dir {
            Some(dir) => dir.clone(),
            None => programs::find_bin_dir()?,
        };
        let user = User::to_run_server_as()?;
        let dir = tempfile::Builder::new()
            .prefix("pg2kv-postgres-")
            .tempdir()
            .map_err(|source| Error::io("making a temporary directory", source))?;
        if let Some(user) = &user {
            user.own(dir.path())?;
        }
        let data_dir = dir.path().join("data");
        match &options.template {
            Some(template) => data_dir::copy(user.as_ref(), template, &data_dir)?,
            None => data_dir::init_as(user.as_ref(), &bin_dir, &data_dir)?,
        }
        data_dir::configure(user.as_ref(), &data_dir, dir.path(), &options)?;
        let mut this = Self {
            bin_dir,
            dir,
            user,
            port: 0,
            running: None,
        };
        this.start_on_a_free_port()?;
        Ok(this)
    }

    /// Connection string of database `dbname` for the superuser.
    pub fn url(&self, dbname: &str) -> String {
        self.url_as(SUPERUSER, dbname)
    }

    /// Connection string of database `dbname` for role `user`, which needs no password.
    pub fn url_as(&self, user: &str, dbname: &str) -> String {
        format!(
            "postgres://{user}@127.0.0.1:{}/{dbname}?sslmode=disable",
            self.port
        )
    }

    /// Connection string of the database `postgres` for the superuser.
    pub fn admin_url(&self) -> String {
        self.url("postgres")
    }

    /// The TCP port on 127.0.0.1; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the Unix socket is (`.s.PGSQL.<port>`).
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Process id of the server, `None` while it is stopped.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.server.id())
    }

    /// The end of the server's log, a few kilobytes.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        tail(&log)
    }

    /// Stops the server and waits until it has gone. Does nothing to a stopped server.
    ///
    /// # Errors
    /// When it does not stop in time, as [`Stop::Smart`] does with a client connected.
    pub fn stop(&mut self, how: Stop) -> Result<()> {
        let Some(running) = &mut self.running else {
            return Ok(());
        };
        let signal = match how {
            Stop::Smart => Signal::TERM,
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        };
        running.signal(signal);
        if !running.gone_within(PATIENCE)? {
            return Err(Error::Slow {
                what: "stop",
                output: self.log_tail(),
            });
        }
        if let Some(running) = self.running.take() {
            running.dismiss_watcher();
        }
        Ok(())
    }

    /// Starts a stopped server again, on the same port and data.
    ///
    /// # Errors
    /// When it does not get ready, for example because the port is taken by now.
    pub fn resume(&mut self) -> Result<()> {
        if self.running.is_none() {
            self.run_server()
        } else {
            Ok(())
        }
    }

    /// Stops and starts the server.
    ///
    /// # Errors
    /// As [`Postgres::stop`] and [`Postgres::resume`].
    pub fn restart(&mut self, how: Stop) -> Result<()> {
        self.stop(how)?;
        self.resume()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn start_on_a_free_port(&mut self) -> Result<()> {
        let mut attempt = 1;
        loop {
            self.port = free_port()
                .map_err(|source| Error::io("asking for a free port on 127.0.0.1", source))?;
            match self.run_server() {
                Err(Error::Failed { output, .. })
                    if output.contains("Address already in use") && attempt < PORT_ATTEMPTS =>
                {
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    fn run_server(&mut self) -> Result<()> {
        let log = fs::File::create(self.log_path())
            .map_err(|source| Error::io("making the server's log", source))?;
        let log_too = log
            .try_clone()
            .map_err(|source| Error::io("making the server's log", source))?;
        let mut command = as_user(self.user.as_ref(), "/bin/sh");
        command
            .arg("-c")
            .arg(RUN_AND_WATCH)
            .arg(self.dir.path())
            .arg(self.bin_dir.join("postgres"))
            .arg("-D")
            .arg(self.data_dir())
            .arg("-p")
            .arg(self.port.to_string())
            .current_dir(self.dir.path())
            // Its own process group: a Ctrl-C in the terminal is ours to handle first.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(log_too);
        let mut server = command
            .spawn()
            .map_err(|source| Error::io("starting the server", source))?;
        let lifeline = server
            .stdin
            .take()
            .ok_or_else(|| Error::io("starting the server", io::ErrorKind::BrokenPipe.into()))?;
        let mut running = Running { server, lifeline };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.says_ready(running.server.id()) {
                self.running = Some(running);
                return Ok(());
            }
            if running.gone_within(Duration::ZERO)? {
                running.dismiss_watcher();
                return Err(Error::Failed {
                    program: "postgres",
                    output: self.log_tail(),
                });
            }
            if Instant::now() > deadline {
                running.end();
                return Err(Error::Slow {
                    what: "start",
                    output: self.log_tail(),
                });
            }
            thread::park_timeout(LOOK_EVERY);
        }
    }

    /// The eighth line of `postmaster.pid` is the server's own word on whether it takes connections.
    fn says_ready(&self, pid: u32) -> bool {
        let Ok(text) = fs::read_to_string(self.data_dir().join("postmaster.pid")) else {
            return false;
        };
        let mut lines = text.lines();
        lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid)
            && lines.nth(6).is_some_and(|line| line.trim() == "ready")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        // The child has not been waited for, so its id cannot belong to anybody else; it may only
        // have ended already, and then there is nothing to signal.
        if let Some(pid) = i32::try_from(self.server.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    fn gone_within(&mut self, patience: Duration) -> Result<bool> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = self
                .server
                .try_wait()
                .map_err(|source| Error::io("waiting for the server", source))?;
            if ended.is_some() || Instant::now() >= deadline {
                return Ok(ended.is_some());
            }
            thread::park_timeout(LOOK_EVERY);
        }
    }

    /// Ends the server at any price.
    fn end(mut self) {
        self.signal(Signal::QUIT);
        // A server stopped by a signal acts on the one above only when it goes on.
        self.signal(Signal::CONT);
        if !self.gone_within(Duration::from_secs(10)).unwrap_or(false) {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
        self.dismiss_watcher();
    }

    fn dismiss_watcher(mut self) {
        // It may be gone; then nobody is left to be told.
        let _ = self.lifeline.write_all(b"gone\n");
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// The last lines of a program's output.
fn tail(output: &[u8]) -> String {
    let start = output.len().saturating_sub(4_096);
    String::from_utf8_lossy(&output[start..]).trim().to_owned()
}

impl Error {
    fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            doing: doing.into(),
            source,
        }
    }
}
