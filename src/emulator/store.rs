//! The handle by which tests, the demo and the control interface look into an emulator.
//!
//! Owns no state: each call goes to the running emulator, without HTTP.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use axum::http::HeaderMap;
use serde::Serialize;

use super::api::is_namespace_id;
use super::clock::Clock;
use super::desk::{Desk, Stats};
use super::faults::Faults;
use super::pair::Pair;
use super::record::{Applied, Page, RequestRecord, Subscription};

/// A handle of a running emulator. Clones see the same one; it works on after the emulator stopped.
#[derive(Clone)]
pub struct Store {
    pub(super) desk: Arc<Desk>,
}

/// What `GET /__emulator/stats` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// Counts of requests and refusals since the start.
    #[serde(flatten)]
    pub counts: Stats,
    /// Writes and deletes applied since the start.
    pub applied: u64,
    /// Pairs by namespace.
    pub pairs: BTreeMap<String, usize>,
}

impl Store {
    /// A copy of a namespace without what has expired; empty where there is no such namespace.
    pub fn snapshot(&self, namespace: &str) -> BTreeMap<String, Pair> {
        self.find(namespace).unwrap_or_default()
    }

    /// A copy of a namespace, if there is one.
    pub(super) fn find(&self, namespace: &str) -> Option<BTreeMap<String, Pair>> {
        let mut data = self.desk.data();
        let pairs = data.namespace(namespace)?.pairs().iter();
        Some(
            pairs
                .map(|(key, pair)| (key.to_string(), pair.clone()))
                .collect(),
        )
    }

    /// One pair as it stands now.
    pub fn get(&self, namespace: &str, key: &str) -> Option<Pair> {
        self.desk
            .data()
            .namespace(namespace)?
            .pairs()
            .get(key)
            .cloned()
    }

    /// Makes a namespace whose title is its id, unless there is one with this id.
    ///
    /// # Errors
    /// The id is not 32 hexadecimal digits in lower case, or its journal cannot be written.
    pub fn create_namespace(&self, id: &str) -> io::Result<()> {
        create(&self.desk, id, id)
    }

    /// The writes that took effect, oldest first, as far as they are remembered
    /// ([`Options::record_history`](super::Options::record_history)).
    pub fn history(&self) -> Vec<Applied> {
        self.history_page(0, usize::MAX).entries
    }

    /// Up to `limit` writes with a `seq` greater than `since`.
    pub fn history_page(&self, since: u64, limit: usize) -> Page<Applied> {
        self.desk.data().log.page(since, limit)
    }

    /// The requests, oldest first, as far as they are remembered.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.requests_page(0, usize::MAX).entries
    }

    /// Up to `limit` requests with a number greater than `since`.
    pub fn requests_page(&self, since: u64, limit: usize) -> Page<RequestRecord> {
        self.desk.requests().page(since, limit)
    }

    /// Every write that takes effect from now on.
    pub fn subscribe(&self) -> Subscription {
        self.desk.data().log.subscribe()
    }

    /// The scripted faults.
    pub fn faults(&self) -> &Faults {
        &self.desk.faults
    }

    /// Whether the request brings the token, where one is set.
    pub(super) fn takes_token(&self, headers: &HeaderMap) -> bool {
        matches!(self.desk.check_token(headers), Ok(true))
    }

    /// Takes another token from now on; `None` takes any request.
    pub fn set_token(&self, token: Option<String>) {
        self.desk.set_token(token);
    }

    /// The clock that rules expirations and rate limits.
    pub fn clock(&self) -> &Clock {
        &self.desk.clock
    }

    /// Counts since the start.
    pub fn statistics(&self) -> Statistics {
        let counts = self.desk.stats().clone();
        let data = self.desk.data();
        let pairs = data
            .namespaces()
            .map(|(id, held)| (id.to_string(), held.pairs().len()))
            .collect();
        Statistics {
            counts,
            applied: data.log.page(0, 0).last,
            pairs,
        }
    }
}

/// Makes a namespace after checking its id.
pub(super) fn create(desk: &Desk, id: &str, title: &str) -> io::Result<()> {
    if !is_namespace_id(id) {
        let what = format!(
            "the namespace id {id:?} is not 32 hexadecimal digits in lower case, as Workers KV has them"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    desk.data().create(id, title)
}
