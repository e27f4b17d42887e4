//! Which PostgreSQL programs there are, and the user to run them as.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;

use super::{Error, Result, SUPERUSER};

/// The directory of `initdb` and `postgres` on this machine: Debian's places first, newest version
/// first, since what stands on the search path may be a wrapper; then `pg_config`, then the path.
///
/// # Errors
/// [`Error::NotFound`].
pub fn find_bin_dir() -> Result<PathBuf> {
    let mut places: Vec<PathBuf> = Vec::new();
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    debian.sort();
    places.extend(debian.into_iter().rev().map(|(_, path)| path));
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
        places.push(PathBuf::from(
            String::from_utf8_lossy(&output.stdout).trim(),
        ));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path));
    let complete = |dir: &&PathBuf| dir.join("initdb").is_file() && dir.join("postgres").is_file();
    places
        .iter()
        .find(complete)
        .cloned()
        .ok_or_else(|| Error::NotFound {
            looked: "/usr/lib/postgresql/*/bin, `pg_config --bindir` and PATH".to_owned(),
        })
}

/// A user other than root.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// `None` when this process is not root, and so may run the server itself.
    pub(super) fn to_run_server_as() -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd")
            .map_err(|source| Error::io("reading /etc/passwd", source))?;
        let find = |name| passwd.lines().find_map(|line| Self::parse(line, name));
        find(SUPERUSER)
            .or_else(|| find("nobody"))
            .map(Some)
            .ok_or(Error::NoUser)
    }

    fn parse(line: &str, wanted: &str) -> Option<Self> {
        let mut fields = line.split(':');
        if fields.next()? != wanted {
            return None;
        }
        Some(Self {
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
        })
    }

    pub(super) fn own_io(self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }

    pub(super) fn own(self, path: &Path) -> Result<()> {
        self.own_io(path)
            .map_err(|source| Error::io(format!("giving {} away", path.display()), source))
    }
}

/// A command that runs as `user`, or as this process does.
pub(super) fn as_user(user: Option<&User>, program: impl Into<OsString>) -> Command {
    let mut command = Command::new(program.into());
    if let Some(user) = user {
        // As root this drops the supplementary groups as well.
        command.uid(user.uid).gid(user.gid);
    }
    command
}
