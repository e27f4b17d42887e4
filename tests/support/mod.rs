//! What the tests share.

pub(crate) mod kv;
pub(crate) mod load;
pub(crate) mod node;
pub(crate) mod postgres;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod terminal;
pub(crate) mod wait;
pub(crate) mod worker;
pub(crate) mod world;
