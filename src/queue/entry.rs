//! What the queue knows of one key, and when that key is due. Pure.

use super::backoff::{self, Backoff};
use super::cooling::Calm;
use super::{OutboxIds, Settings};
use crate::change::{ClaimId, Key, Mono, SyncId};

/// The changes that wait for the next write of a key.
#[derive(Debug)]
pub(super) struct Dirty {
    pub(super) first: Mono,
    pub(super) last: Mono,
    /// Due at `first`, as the key was idle when it changed.
    pub(super) at_once: bool,
    /// One of them asks for a write whatever is known.
    pub(super) again: bool,
    pub(super) ids: OutboxIds,
}

/// What only a key in trouble needs to remember.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) doubt_until: Option<Mono>,
    pub(super) backoff: Backoff,
}

/// One key.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) sync: SyncId,
    pub(super) key: Key,
    pub(super) dirty: Option<Dirty>,
    pub(super) in_flight: bool,
    /// What is in flight may have been read before a backfill began, which does not see it.
    pub(super) outdated: bool,
    /// First change of what is in flight or to be tried again.
    pub(super) waiting_since: Option<Mono>,
    pub(super) claim: Option<ClaimId>,
    /// It waits for a person, so it has no time at which it is due.
    pub(super) held: bool,
    /// What was last written says nothing about KV: a taken change asked for a write all the same.
    pub(super) again: bool,
    /// Its delete was let through, so a further try needs no other permission.
    pub(super) may_delete: bool,
    pub(super) retry_at: Option<Mono>,
    pub(super) trouble: Option<Box<Trouble>>,
    pub(super) not_before: Mono,
    /// A change until then is a repeat of the last write, not the first change of an idle key.
    pub(super) repeats_until: Mono,
    /// The moment under which the key stands in the due index.
    pub(super) due: Option<Mono>,
}

impl Trouble {
    pub(super) fn new(settings: backoff::Settings) -> Self {
        Self {
            doubt_until: None,
            backoff: Backoff::new(settings),
        }
    }
}

impl Entry {
    pub(super) fn is_idle(&self) -> bool {
        !self.in_flight && !self.held && self.dirty.is_none() && self.retry_at.is_none()
    }

    /// From then on the key is as if it had never been written.
    pub(super) fn calm(&self) -> Calm {
        Calm {
            not_before: self.not_before,
            repeats_until: self.repeats_until,
        }
    }

    pub(super) fn due_at(&self, settings: &Settings) -> Option<Mono> {
        if self.in_flight {
            return None;
        }
        let dirty = self.dirty.as_ref().map(|dirty| {
            if dirty.at_once {
                dirty.first
            } else {
                let due = (dirty.last + settings.quiet).min(dirty.first + settings.max_wait);
                due.max(self.not_before).round_up(settings.grain)
            }
        });
        let due = dirty.into_iter().chain(self.retry_at).min()?;
        Some(due.max(self.not_before))
    }
}
