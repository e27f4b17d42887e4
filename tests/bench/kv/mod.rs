//! What goes to KV: drains of a backlog, the first sync, and the memory that they take.
//!
//! KV is `pg2kv emulator` in a process of its own, on the same cores as PostgreSQL and the daemon: what
//! it costs is part of every figure here, of ours and of what we are compared with.

pub(crate) mod drain;
pub(crate) mod first_sync;
pub(crate) mod growth;
pub(crate) mod idle;
pub(crate) mod limited;

mod floor;
mod peers;
mod stand;
mod usage;
