//! One file per namespace that outlives the process.
//!
//! Owns the format and its repair. `{namespace}.jsonl` begins with the title; each further line is
//! one write or delete. Lines are appended with one `write` per request, before the write takes
//! effect and before the reply, so whatever was acknowledged survives `kill -9`. There is no fsync
//! per request: a power failure may lose the last seconds, which a development server can bear.
//! At start a last line that was cut short is dropped, and the file is rewritten without
//! overwritten and expired pairs (temporary file, fsync, rename).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::data::Write;
use super::pair::Pair;

/// The directory that holds the journals. One process at a time may use it.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

/// A namespace as its journal says.
pub(super) struct Loaded {
    pub(super) id: String,
    pub(super) title: String,
    pub(super) pairs: BTreeMap<Arc<str>, Pair>,
    pub(super) journal: Journal,
}

/// The open end of a namespace's journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// Bytes of whole lines.
    length: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line<'a> {
    #[serde(borrow)]
    Title(Cow<'a, str>),
    #[serde(borrow)]
    Put(PutLine<'a>),
    #[serde(borrow)]
    Delete(Cow<'a, str>),
}

#[derive(Serialize, Deserialize)]
struct PutLine<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    /// The value where it is UTF-8.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    /// The value where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    /// JSON text as a string, so that it comes back byte for byte.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    metadata: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expiration: Option<u64>,
}

impl Directory {
    /// Opens a directory, making it where it is missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let lock = File::create(path.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let what = format!("{} is in use by another emulator ({error})", path.display());
            io::Error::new(io::ErrorKind::AddrInUse, what)
        })?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Reads and compacts every journal; pairs that expired by `unix_seconds` are left out.
    pub(super) fn load(&self, unix_seconds: u64) -> io::Result<Vec<Loaded>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let id = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .map(str::to_owned);
            if let (Some(id), Some("jsonl")) = (id, path.extension().and_then(|e| e.to_str())) {
                let (title, mut pairs) = read(&path)?;
                pairs.retain(|_, pair| pair.expiration.is_none_or(|at| at > unix_seconds));
                let journal = self.write(&id, &title, &pairs)?;
                all.push(Loaded {
                    id,
                    title,
                    pairs,
                    journal,
                });
            }
        }
        Ok(all)
    }

    /// Begins the journal of a new namespace.
    pub(super) fn create(&self, id: &str, title: &str) -> io::Result<Journal> {
        self.write(id, title, &BTreeMap::new())
    }

    /// Removes the journal of a deleted namespace.
    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        fs::remove_file(self.journal_path(id))
    }

    fn journal_path(&self, id: &str) -> PathBuf {
        self.path.join(format!("{id}.jsonl"))
    }

    fn write(
        &self,
        id: &str,
        title: &str,
        pairs: &BTreeMap<Arc<str>, Pair>,
    ) -> io::Result<Journal> {
        let temporary = self.path.join(format!("{id}.new"));
        let mut out = BufWriter::new(File::create(&temporary)?);
        write_line(&mut out, &Line::Title(title.into()))?;
        for (key, pair) in pairs {
            write_line(&mut out, &put_line(key, pair))?;
        }
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)?
            .sync_all()?;
        let path = self.journal_path(id);
        fs::rename(&temporary, &path)?;
        File::open(&self.path)?.sync_all()?;
        let file = OpenOptions::new().append(true).open(&path)?;
        let length = file.metadata()?.len();
        Ok(Journal { file, length })
    }
}

impl Journal {
    /// Appends the writes of one request: all of them, or none and an error.
    pub(super) fn append(&mut self, writes: &[Write]) -> io::Result<()> {
        let mut lines = Vec::new();
        for write in writes {
            let line = match write {
                Write::Put(key, pair) => put_line(key, pair),
                Write::Delete(key) => Line::Delete((&**key).into()),
            };
            write_line(&mut lines, &line)?;
        }
        self.append_lines(&lines)
    }

    /// Appends a new title.
    pub(super) fn rename(&mut self, title: &str) -> io::Result<()> {
        let mut lines = Vec::new();
        write_line(&mut lines, &Line::Title(title.into()))?;
        self.append_lines(&lines)
    }

    fn append_lines(&mut self, lines: &[u8]) -> io::Result<()> {
        match self.file.write_all(lines) {
            Ok(()) => {
                self.length += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Half a line in the middle would make the file unreadable. If this fails too,
                // the next start finds the damage and says where.
                self.file.set_len(self.length).and(Err(error))
            }
        }
    }
}

fn put_line<'a>(key: &'a str, pair: &'a Pair) -> Line<'a> {
    let text = std::str::from_utf8(&pair.value).ok();
    Line::Put(PutLine {
        key: key.into(),
        value: text.map(Cow::Borrowed),
        base64: text.is_none().then(|| STANDARD.encode(&pair.value)),
        metadata: pair.metadata.as_deref().map(Cow::Borrowed),
        expiration: pair.expiration,
    })
}

fn write_line(out: &mut impl io::Write, line: &Line<'_>) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Reads a journal: the title and the pairs that stand at its end.
fn read(path: &Path) -> io::Result<(String, BTreeMap<Arc<str>, Pair>)> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut title, mut pairs) = (String::new(), BTreeMap::new());
    let mut bytes = Vec::new();
    for number in 1_u64.. {
        bytes.clear();
        reader.read_until(b'\n', &mut bytes)?;
        if bytes.last() != Some(&b'\n') {
            // The end, or a line that the process did not live to finish: it was not acknowledged.
            break;
        }
        let damaged = |what: String| {
            let place = format!("{}, line {number}: {what}", path.display());
            io::Error::new(io::ErrorKind::InvalidData, place)
        };
        match serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))? {
            Line::Title(text) => title = text.into_owned(),
            Line::Delete(key) => {
                pairs.remove(&*key);
            }
            Line::Put(line) => {
                let value: Bytes = match (line.value, line.base64) {
                    (Some(text), _) => text.into_owned().into(),
                    (None, Some(text)) => STANDARD
                        .decode(text)
                        .map_err(|error| damaged(error.to_string()))?
                        .into(),
                    (None, None) => return Err(damaged("a pair without a value".to_owned())),
                };
                let metadata = line.metadata.map(Arc::from);
                pairs.insert(
                    Arc::from(line.key),
                    Pair {
                        value,
                        metadata,
                        expiration: line.expiration,
                    },
                );
            }
        }
    }
    Ok((title, pairs))
}
