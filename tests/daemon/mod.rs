//! The real binary against a real PostgreSQL and the emulator.

// Clippy takes these for code outside tests.
#![allow(clippy::unwrap_used)]

mod audit;
mod brake;
mod collect;
mod debounce;
mod doctor;
mod errors;
mod follow;
mod installations;
mod isolation;
mod kill;
mod large;
mod limits;
mod memory;
mod ops;
mod page;
mod poison;
mod reconfigure;
mod related;
mod replication;
mod resync;
mod secrets;
mod shutdown;
mod systemd;
mod upgrade;

use std::time::Duration;

use pg2kv::emulator::route::Operation;

use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

/// The namespace of the documents.
const DOCS: &str = "00000000000000000000000000000d0c";

/// Two tables: notes with well-behaved keys, and documents whose key and value may be anything.
const TABLES: &str = "
    create table public.note (id int primary key, text text not null);
    create table public.doc (name text primary key, body text);
";

const SYNCS: &[Sync] = &[
    Sync {
        name: "note",
        toml: "table = \"public.note\"\nkey = \"note:{id}\"\ncolumns = [\"text\"]",
        namespace: NAMESPACE,
        oracle: "select 'note:' || id, json_build_object('text', text)::text from public.note",
    },
    Sync {
        name: "doc",
        toml: "table = \"public.doc\"\nkey = \"{name}\"\ncolumns = [\"body\"]",
        namespace: DOCS,
        oracle: "select name, json_build_object('body', body)::text from public.doc",
    },
];

/// Notes and documents, no rate limits.
const PLAN: Plan = Plan {
    sql: TABLES,
    syncs: SYNCS,
    settings: &[],
    limits: None,
};

/// The world of most tests here.
async fn world() -> World {
    World::start(PLAN).await
}

/// Waits until so many bulk writes have arrived at KV.
async fn bulk_writes(world: &World, count: usize) {
    wait::until("a bulk write to arrive", async || {
        let requests = world.kv.requests();
        let bulk = |operation| operation == Some(Operation::BulkWrite);
        let arrived = requests.iter().filter(|request| bulk(request.operation));
        (arrived.count() >= count).then_some(())
    })
    .await;
}

/// How long something takes.
async fn timed(what: impl Future<Output = ()>) -> Duration {
    let began = std::time::Instant::now();
    what.await;
    began.elapsed()
}
