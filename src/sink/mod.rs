//! The Workers KV edge: one batch of pairs becomes one HTTP request and one answer.
//!
//! Reading order: [`wire`] makes the bytes of a request, [`reply`] says what the bytes that come
//! back mean, [`listing`] holds that a listing ends, [`kv`] carries both over the network, [`token`] holds the secret that goes
//! along, [`setup`] what must be known before.
//!
//! **Invariant:** a request goes out at most once. Nothing here retries, waits or remembers an
//! outcome; that is the relay's work, which knows what the database holds.

pub mod kv;
pub mod listing;
pub mod reply;
pub mod setup;
pub mod token;
pub mod wire;

mod header;
