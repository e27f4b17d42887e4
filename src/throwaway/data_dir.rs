//! Data directories: made by `initdb` or copied, with the settings of a throw-away server.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use super::programs::{User, as_user};
use super::{Error, Options, Result, SUPERUSER, tail};

/// Makes an empty cluster in `data_dir`, which must not exist yet, for [`Options::template`].
///
/// # Errors
/// When `initdb` cannot be run or fails.
pub fn init(bin_dir: &Path, data_dir: &Path) -> Result<()> {
    let user = User::to_run_server_as()?;
    init_as(user.as_ref(), bin_dir, data_dir)
}

/// As [`init`], for this user.
pub(super) fn init_as(user: Option<&User>, bin_dir: &Path, data_dir: &Path) -> Result<()> {
    if let Some(user) = user {
        // initdb takes an empty directory, and may not be allowed to make one itself.
        fs::create_dir(data_dir)
            .map_err(|source| Error::io(format!("making {}", data_dir.display()), source))?;
        user.own(data_dir)?;
    }
    let output = as_user(user, bin_dir.join("initdb"))
        .arg("--pgdata")
        .arg(data_dir)
        .args([
            "--username",
            SUPERUSER,
            "--auth",
            "trust",
            "--encoding",
            "UTF8",
        ])
        .args(["--locale", "C", "--wal-segsize", "4", "--no-sync"])
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| {
            Error::io(
                format!("running {}", bin_dir.join("initdb").display()),
                source,
            )
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Error::Failed {
        program: "initdb",
        output: tail(&said),
    })
}

/// Copies a data directory and gives the copy to `user`.
pub(super) fn copy(user: Option<&User>, template: &Path, data_dir: &Path) -> Result<()> {
    let own = |path: &Path| user.map_or(Ok(()), |user| user.own_io(path));
    copy_tree(template, data_dir, &own)
        .map_err(|source| Error::io(format!("copying {}", template.display()), source))
}

/// Writes the settings and files that `options` ask for; `socket_dir` gets the Unix socket.
pub(super) fn configure(
    user: Option<&User>,
    data_dir: &Path,
    socket_dir: &Path,
    options: &Options,
) -> Result<()> {
    let fsync = if options.fsync { "on" } else { "off" };
    let socket_dir = socket_dir.display().to_string();
    let ours = [
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", socket_dir.as_str()),
        ("fsync", fsync),
        ("full_page_writes", fsync),
        ("shared_buffers", "32MB"),
        ("min_wal_size", "32MB"),
        ("max_wal_size", "256MB"),
        ("lc_messages", "C"),
        ("timezone", "UTC"),
    ];
    // Where a name stands twice, the server takes the last one.
    let theirs = options
        .settings
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let settings: String = ours
        .into_iter()
        .chain(theirs)
        .map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''")))
        .collect();
    let settings = ("postgresql.auto.conf", settings.as_bytes());
    let files = options
        .files
        .iter()
        .map(|(name, content)| (name.as_str(), content.as_slice()));
    for (name, content) in [settings].into_iter().chain(files) {
        let path = data_dir.join(name);
        let write = || {
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
        };
        write().map_err(|source| Error::io(format!("writing {}", path.display()), source))?;
        if let Some(user) = user {
            user.own(&path)?;
        }
    }
    Ok(())
}

fn copy_tree(from: &Path, to: &Path, own: &dyn Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, own)?;
        } else {
            fs::copy(entry.path(), &target)?;
            own(&target)?;
        }
    }
    fs::set_permissions(to, fs::Permissions::from_mode(0o700))?;
    own(to)
}
