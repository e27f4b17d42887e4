//! pg2kv keeps Cloudflare Workers KV equal to what rows in Postgres say.
//!
//! This page is the map of the house. The modules below stand in reading order.
//!
//! # The way of a change
//! A row trigger writes the *key* of a changed row into `pg2kv.outbox`, in the writer's transaction,
//! and notifies only while the daemon sleeps. The daemon fetches keys, coalesces them in a debounced
//! queue, and takes those that are due as a batch. In one synchronous transaction it moves the batch
//! from the outbox into `pg2kv.claim`; meanwhile it reads the rows as they are now. It writes them to KV in
//! bulk, and settles: the claim goes once each of its keys is proven written.
//!
//! ```text
//!  users row ── trigger ──▶ outbox ──▶ fetch ──▶ queue ──▶ claim ──▶ rows ──▶ KV ──▶ settle
//!                             (source)          (relay)      (source)      (sink)   (source)
//! ```
//!
//! A change is a key, never a value: "look again". So order does not matter, a duplicate is
//! harmless, and any number of changes to one key cost one write.
//!
//! Where documents take data from another table, a change there is one marker in the outbox: the
//! values that the rows match. The daemon turns it into keys afterwards, chunk by chunk, each chunk
//! and the marker's new position in one transaction; the writer never waits for that.
//!
//! # Invariants
//! - For each key: if KV may differ from what the rows say, the key stands in the outbox or under a
//!   marker there, in a claim, in the dead letters, or ahead of a backfill's position. All four are in
//!   Postgres. The daemon's memory is a cache; `kill -9` loses nothing.
//! - A claim goes only after a write that was *sent* after the last doubt about the key had ended.
//! - One request at a time for a key; no two within `queue.key_interval`.
//! - Every write to the ledger is fenced by the epoch of the leadership; every send by trust in the
//!   lease, on a clock that counts suspend.
//! - A leader notes its configuration before it writes anything. Where that is another than the one
//!   noted, a comparison is owed and names that are no longer made are retired in the same transaction.
//! - After any doubt about the session with Postgres, everything in memory is dropped and read anew.
//!
//! # Who may know whom
//! `main → cli, config, daemon, ops`; `daemon → relay, source, sink, audit, metrics`;
//! `relay → queue, ledger, change`; `source`, `sink`, `queue` and `document → change` (and `ledger`).
//! `source`, `queue` and `sink` never know each other: what one has to tell another is a value that
//! the relay carries. Only `audit`, which compares both sides and writes to neither, looks at `source`
//! and `sink` at once. A test holds this.
//!
//! # What is pure
//! [`change`], [`ledger`], [`document`], [`queue`] and [`relay`] have no async, no clock, no
//! randomness of their own and no environment. They are simulated as a whole under `tests/simulation`.
//!
//! # What is deliberately absent
//! - No replication slot: a daemon that is down must not fill the primary's disk.
//! - No values in the outbox, in claims or in logs.
//! - No retry inside the edges: `source` and `sink` report once, the relay decides.
//! - No timer but one: the relay says when it wants to be woken, the daemon's loop waits.

pub mod change;
pub mod document;
pub mod ledger;

pub mod queue;
pub mod relay;

mod secret_file;
pub mod sink;
pub mod source;

pub mod audit;

pub mod config;
pub mod daemon;
mod http_server;
pub mod metrics;
pub mod ops;

pub mod cli;
pub mod emulator;
pub mod sql_kit;
pub mod throwaway;
