//! The one integration test binary.

mod chaos;
mod config;
mod daemon;
mod emulator;
mod kv;
mod postgres;
mod support;
mod tidy;
