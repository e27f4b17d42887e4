//! pg2kv keeps Cloudflare Workers KV equal to what rows in Postgres say.

pub mod change;
pub mod document;
pub mod ledger;

pub mod queue;
pub mod relay;

pub mod sink;
pub mod source;

pub mod config;
pub mod daemon;
pub mod metrics;
pub mod ops;

pub mod cli;
pub mod emulator;
pub mod sql_kit;
pub mod throwaway;
