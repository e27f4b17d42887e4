//! The one integration test binary.

mod config;
mod daemon;
mod emulator;
mod kv;
mod postgres;
mod support;
mod tidy;
