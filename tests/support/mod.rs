//! What the tests share.

pub mod node;
pub mod postgres;
pub mod process;
