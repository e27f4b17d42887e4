//! The real binary against a real PostgreSQL and the emulator.

// Clippy takes these for code outside tests.
#![allow(clippy::unwrap_used)]

mod kill;
