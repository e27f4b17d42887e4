//! What the tests share.

pub(crate) mod node;
pub(crate) mod postgres;
pub(crate) mod process;
