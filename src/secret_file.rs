//! Opening files that hold secrets or certificates: only what is a file, and never waiting.
//!
//! Owns what a path may lead to and who else may use the file. Knows nothing of contents.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a file for reading. To open a FIFO would wait for a writer, and a device may never end, so both
/// are refused.
///
/// # Errors
/// There is no such file, this user may not read it, or it is something else than a file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    match kind(&found) {
        None => Ok(file),
        Some(kind) => Err(io::Error::other(format!("it is {kind}, not a file"))),
    }
}

fn kind(found: &Metadata) -> Option<&'static str> {
    let kind = found.file_type();
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else {
        Some("a device")
    }
}

/// What users of this machine who are neither the file's owner nor in its group may do with it, in words;
/// `None` where that is nothing.
pub(crate) fn exposure(path: &Path) -> Option<&'static str> {
    // Who cannot be asked is no danger: reading the file says why.
    let mode = std::fs::metadata(path).ok()?.mode();
    if mode & 0o002 != 0 {
        Some("every user of this machine may write; run `chmod o-rwx` on it")
    } else if mode & 0o004 != 0 {
        Some("every user of this machine may read; run `chmod o-rwx` on it")
    } else {
        None
    }
}

/// Whether only its owner may use the file, as libpq wants of a password file.
pub(crate) fn is_private(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.mode() & 0o077 == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_files_are_opened_and_nothing_waits() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for (path, kind) in [
            (fifo.as_path(), "a pipe"),
            (Path::new("/dev/zero"), "a device"),
            (directory.path(), "a directory"),
        ] {
            let error = open(path).unwrap_err().to_string();
            assert!(error.contains(kind), "{}: {error}", path.display());
        }
        let file = directory.path().join("file");
        std::fs::write(&file, "text").unwrap();
        open(&file).unwrap();
    }

    #[test]
    fn a_file_that_others_may_use_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, "x").unwrap();
        for (mode, word) in [
            (0o600, None),
            (0o640, None),
            (0o644, Some("read")),
            (0o602, Some("write")),
            (0o666, Some("write")),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let told = exposure(&path);
            assert_eq!(told.is_some(), word.is_some(), "{mode:o}");
            assert!(word.is_none_or(|word| told.unwrap().contains(word)));
        }
    }
}
