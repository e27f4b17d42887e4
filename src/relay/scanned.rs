//! What came of looks at names in KV. Pure values.

use crate::change::owner::InstallationId;
use crate::change::{ContentHash, Key};
use crate::ledger::OldNames;

/// What to do about names that are no longer made. Pairs that another configured sync makes are left
/// to that sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanStep {
    /// Count the pairs.
    Count {
        /// Where there are none, forget the names: nothing that was sent can bring one back.
        last: bool,
    },
    /// Delete them.
    Delete {
        /// At most so many; if there are more, they are to be counted anew.
        most: u64,
    },
}

/// What came of a [`CleanStep`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleaned {
    /// The new names are not written yet, so nothing was done.
    NotYet,
    /// So many pairs stood in KV.
    Counted(u64),
    /// So many pairs were deleted, or may have been.
    Deleted(u64),
    /// There are none, and the names are forgotten.
    Forgotten,
}

/// What stands in KV under names that a sync is to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspected {
    /// No pair of another installation, so far; the cursor of the next page.
    Next(String),
    /// No pair of another installation; the ledger has noted it.
    Free,
    /// A pair of this installation.
    Taken(InstallationId),
}

/// One page of names in KV.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swept {
    /// Keys of names that pg2kv wrote, with the content hash that their metadata carries.
    pub keys: Vec<(Key, ContentHash)>,
    /// Names under the prefix that pg2kv did not write; they are left alone.
    pub foreign: u64,
    /// The names under the prefix that the sync wrote and none of its keys makes any more, if there
    /// are some: they are to be deleted.
    pub unmade: Option<OldNames>,
    /// Cursor of the next page; `None` after the last.
    pub next: Option<String>,
}

/// What a comparison of a sync with KV found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditFound {
    /// Documents that stand in KV as the rows say.
    pub equal: u64,
    /// Documents that KV lacked for no reason.
    pub missing: u64,
    /// Documents that stood in KV with another content for no reason.
    pub stale: u64,
    /// Pairs of pg2kv that no row makes.
    pub orphaned: u64,
    /// Documents that have a dead letter.
    pub dead_lettered: u64,
    /// Documents that differ because a change is on its way.
    pub pending: u64,
    /// Pairs under the prefix that are not the sync's.
    pub foreign: u64,
    /// So much waits for the sync that nothing can be said of it; it has to be compared once more.
    pub undecided: bool,
    /// So many drifted that all of the sync's keys were asked for anew.
    pub everything: bool,
    /// The orphans that no key makes, if there are some: they are to be deleted.
    pub unmade: Option<OldNames>,
}

impl AuditFound {
    /// Keys that differed for no reason. The outbox has each of them by now, or has them all.
    pub const fn drifted(&self) -> u64 {
        self.missing + self.stale + self.orphaned
    }
}
