//! What operators get, judged by the programs of others: manifests, chart, compose file, unit,
//! Dockerfile. Nothing here runs a cluster.

// Clippy takes these for code outside tests.
#![allow(clippy::unwrap_used)]

mod chart;
mod development;
mod files;
mod manifests;
pub(crate) mod tools;
