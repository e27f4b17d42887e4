//! The namespaces and their pairs.
//!
//! Owns what stands in KV now: order, expiration, the pace of each key, the journals, and the
//! history of writes. Synchronous, behind one lock; knows nothing of HTTP.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::journal::{Directory, Journal};
use super::limits::KeyPace;
use super::pair::Pair;
use super::record::{Op, WriteLog, value_hash};

/// Everything that is stored.
#[derive(Debug)]
pub(super) struct Data {
    namespaces: BTreeMap<Arc<str>, Namespace>,
    directory: Option<Directory>,
    clock: Clock,
    pub(super) log: WriteLog,
}

/// One namespace. Its expired pairs are gone by the time that it is seen.
#[derive(Debug, Default)]
pub(super) struct Namespace {
    pub(super) title: String,
    pairs: BTreeMap<Arc<str>, Pair>,
    /// Pairs that expire, soonest first: (Unix seconds, key).
    expiring: BTreeSet<(u64, Arc<str>)>,
    pace: KeyPace,
    journal: Option<Journal>,
}

/// A change of one pair.
#[derive(Clone, Debug)]
pub(super) enum Write {
    Put(Arc<str>, Pair),
    Delete(Arc<str>),
}

impl Write {
    pub(super) fn key(&self) -> &Arc<str> {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }

    fn op(&self) -> Op {
        match self {
            Self::Put(_, Pair { value, .. }) => Op::Put {
                hash: value_hash(value),
                bytes: value.len(),
            },
            Self::Delete(_) => Op::Delete,
        }
    }
}

/// Why nothing was applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("there is no such namespace")]
    NoNamespace,
    #[error("the journal cannot be written: {0}")]
    Journal(#[from] io::Error),
}

impl Data {
    /// Opens the journals where there is a directory.
    pub(super) fn open(
        directory: Option<Directory>,
        clock: Clock,
        log: WriteLog,
    ) -> io::Result<Self> {
        let mut namespaces = BTreeMap::new();
        if let Some(directory) = &directory {
            for loaded in directory.load(clock.unix_micros() / 1_000_000)? {
                let namespace = Namespace {
                    title: loaded.title,
                    expiring: loaded
                        .pairs
                        .iter()
                        .filter_map(|(key, pair)| Some((pair.expiration?, Arc::clone(key))))
                        .collect(),
                    pairs: loaded.pairs,
                    pace: KeyPace::default(),
                    journal: Some(loaded.journal),
                };
                namespaces.insert(loaded.id.into(), namespace);
            }
        }
        Ok(Self {
            namespaces,
            directory,
            clock,
            log,
        })
    }

    pub(super) fn namespaces(&self) -> impl ExactSizeIterator<Item = (&Arc<str>, &Namespace)> {
        self.namespaces.iter()
    }

    /// A namespace without the pairs that have expired.
    pub(super) fn namespace(&mut self, id: &str) -> Option<&mut Namespace> {
        let namespace = self.namespaces.get_mut(id)?;
        namespace.expire(self.clock.unix_micros() / 1_000_000);
        Some(namespace)
    }

    /// Makes a namespace, unless there is one with this id.
    pub(super) fn create(&mut self, id: &str, title: &str) -> io::Result<()> {
        if self.namespaces.contains_key(id) {
            return Ok(());
        }
        let journal = self
            .directory
            .as_ref()
            .map(|directory| directory.create(id, title))
            .transpose()?;
        let namespace = Namespace {
            title: title.to_owned(),
            journal,
            ..Namespace::default()
        };
        self.namespaces.insert(id.into(), namespace);
        Ok(())
    }

    pub(super) fn rename(&mut self, id: &str, title: &str) -> Result<(), ApplyError> {
        let namespace = self.namespaces.get_mut(id).ok_or(ApplyError::NoNamespace)?;
        if let Some(journal) = &mut namespace.journal {
            journal.rename(title)?;
        }
        title.clone_into(&mut namespace.title);
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &str) -> Result<(), ApplyError> {
        if !self.namespaces.contains_key(id) {
            return Err(ApplyError::NoNamespace);
        }
        if let Some(directory) = &self.directory {
            directory.remove(id)?;
        }
        self.namespaces.remove(id);
        Ok(())
    }

    /// Applies the writes of one request, and returns the keys that were refused because they were
    /// written less than `interval` ago.
    ///
    /// **Invariant:** no two of `writes` have the same key.
    pub(super) fn apply(
        &mut self,
        id: &str,
        mut writes: Vec<Write>,
        interval: Option<Duration>,
        request: u64,
    ) -> Result<Vec<Arc<str>>, ApplyError> {
        let now = self.clock.unix_micros();
        let (id, _) = self
            .namespaces
            .get_key_value(id)
            .ok_or(ApplyError::NoNamespace)?;
        let id = Arc::clone(id);
        let namespace = self.namespace(&id).ok_or(ApplyError::NoNamespace)?;

        let mut refused = Vec::new();
        if let Some(interval) = interval {
            writes.retain(|write| {
                let too_soon = namespace.pace.too_soon(write.key(), now, interval);
                if too_soon {
                    refused.push(Arc::clone(write.key()));
                }
                !too_soon
            });
            for write in &writes {
                namespace.pace.note(write.key(), now, interval);
            }
        }
        if let Some(journal) = &mut namespace.journal {
            journal.append(&writes)?;
        }
        if self.log.wanted() {
            let ops = writes
                .iter()
                .map(|write| (Arc::clone(write.key()), write.op()))
                .collect();
            self.store(&id, writes);
            self.log
                .publish(&id, request, self.clock.unix_micros(), ops);
        } else {
            self.log.skip(writes.len());
            self.store(&id, writes);
        }
        Ok(refused)
    }

    fn store(&mut self, id: &str, writes: Vec<Write>) {
        if let Some(namespace) = self.namespaces.get_mut(id) {
            for write in writes {
                match write {
                    Write::Put(key, pair) => namespace.put(key, pair),
                    Write::Delete(key) => namespace.delete(&key),
                }
            }
        }
    }
}

impl Namespace {
    pub(super) fn pairs(&self) -> &BTreeMap<Arc<str>, Pair> {
        &self.pairs
    }

    /// Pairs whose key begins with `prefix` and is greater than `after`, in the order of their
    /// UTF-8 bytes.
    pub(super) fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Pair)> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.pairs
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }

    fn put(&mut self, key: Arc<str>, pair: Pair) {
        if let Some(expiration) = pair.expiration {
            self.expiring.insert((expiration, Arc::clone(&key)));
        }
        let expiration = pair.expiration;
        let Some(old) = self.pairs.get_mut(&key) else {
            self.pairs.insert(key, pair);
            return;
        };
        let old_expiration = std::mem::replace(old, pair).expiration;
        if let Some(old_expiration) = old_expiration
            && Some(old_expiration) != expiration
        {
            self.expiring.remove(&(old_expiration, key));
        }
    }

    fn delete(&mut self, key: &Arc<str>) {
        if let Some(Pair {
            expiration: Some(expiration),
            ..
        }) = self.pairs.remove(key)
        {
            self.expiring.remove(&(expiration, Arc::clone(key)));
        }
    }

    fn expire(&mut self, unix_seconds: u64) {
        while self
            .expiring
            .first()
            .is_some_and(|(at, _)| *at <= unix_seconds)
        {
            if let Some((_, key)) = self.expiring.pop_first() {
                self.pairs.remove(&key);
            }
        }
    }
}
