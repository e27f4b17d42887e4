//! Two real daemons, real servers, and everything that can go wrong with them.

// Clippy takes these for code outside tests.
#![allow(clippy::unwrap_used)]

mod backlog;
mod leader;
mod nemesis;
mod promotion;
mod steps;

use crate::support::process::Process;
use crate::support::proxy::Proxy;
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

/// One table of notes.
const NOTES: Plan = Plan {
    sql: "create table public.note (id int primary key, text text not null)",
    syncs: &[Sync {
        name: "note",
        toml: "table = \"public.note\"\nkey = \"note:{id}\"\ncolumns = [\"text\"]",
        namespace: NAMESPACE,
        oracle: "select 'note:' || id, json_build_object('text', text)::text from public.note",
    }],
    settings: &[("lease.ttl", "2s")],
    limits: None,
};

/// A daemon with a network of its own to each server.
struct Node {
    name: &'static str,
    /// Its way to PostgreSQL.
    postgres: Proxy,
    /// Its way to KV.
    kv: Proxy,
    daemon: Process,
}

impl Node {
    /// Starts a daemon behind two proxies.
    async fn start(world: &World, name: &'static str) -> Self {
        let postgres = Proxy::start(([127, 0, 0, 1], world.postgres.port()).into()).await;
        let kv = Proxy::start(world.emulator.addr()).await;
        let daemon = Self::run(world, name, &postgres, &kv);
        Self {
            name,
            postgres,
            kv,
            daemon,
        }
    }

    /// Kills the daemon and starts it anew.
    async fn replace(&mut self, world: &World) {
        let next = Self::run(world, self.name, &self.postgres, &self.kv);
        std::mem::replace(&mut self.daemon, next).kill().await;
    }

    fn run(world: &World, name: &str, postgres: &Proxy, kv: &Proxy) -> Process {
        let mut settings = world.settings_through(postgres.port(), kv.port());
        settings.insert("lease.holder".to_owned(), name.to_owned());
        world.daemon_with(name, &settings)
    }
}

/// Waits until a statement of the daemon waits for a lock.
async fn waits_for_a_lock(world: &World) {
    let waiting = "select count(*) from pg_stat_activity \
                   where usename = 'edge' and wait_event_type = 'Lock'";
    wait::until("the daemon to wait for a lock", async || {
        (world.number(waiting).await > 0).then_some(())
    })
    .await;
}
