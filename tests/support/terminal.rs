//! A terminal that a child process writes to, and what stands on it.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tokio::sync::watch;

use super::wait::DEADLINE;

/// The side of the person who looks at it.
pub(crate) struct Terminal {
    text: watch::Receiver<String>,
}

impl Terminal {
    /// A terminal, and its other end for one stream of a child.
    pub(crate) fn open() -> (Self, Stdio) {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_bytes();
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .open(std::ffi::OsString::from_vec(name))
            .unwrap();
        let (sender, text) = watch::channel(String::new());
        std::thread::spawn(move || {
            let (mut master, mut buffer) = (File::from(master), [0; 4_096]);
            // The end is an error: the last process that had it open is gone.
            while let Ok(read @ 1..) = master.read(&mut buffer) {
                let read = String::from_utf8_lossy(&buffer[..read]).into_owned();
                sender.send_modify(|text| text.push_str(&read));
            }
        });
        (Self { text }, Stdio::from(slave))
    }

    /// Everything that was shown so far.
    pub(crate) fn text(&self) -> String {
        self.text.borrow().clone()
    }

    /// Waits until a text was shown.
    pub(crate) async fn shows(&self, what: &str) {
        let mut text = self.text.clone();
        let shown = text.wait_for(|text| text.contains(what));
        let shown = tokio::time::timeout(DEADLINE, shown).await;
        let shown = shown.is_ok_and(|shown| shown.is_ok());
        let text = self.text.borrow();
        assert!(shown, "{what:?} is not shown: {:?}", &*text);
    }
}
