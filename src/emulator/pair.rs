//! A pair as a namespace holds it.

use std::sync::Arc;

use bytes::Bytes;

/// What stands under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The value.
    pub value: Bytes,
    /// Metadata as JSON text, as it was sent.
    pub metadata: Option<Arc<str>>,
    /// Unix time in seconds from which on the pair is gone.
    pub expiration: Option<u64>,
}
