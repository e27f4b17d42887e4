//! What takes minutes, or programs that not every machine can run: `make test-ops`.

// Clippy takes these for code outside tests.
#![allow(clippy::unwrap_used)]

mod image;
