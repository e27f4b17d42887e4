//! The one integration test binary.
#![cfg(test)]

mod attacks;
mod audit;
mod chaos;
mod cli;
mod config;
mod daemon;
mod deploy;
mod emulator;
mod kv;
mod observe;
mod ops;
mod postgres;
mod simulation;
mod support;
mod tidy;
mod worker;
