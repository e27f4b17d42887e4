//! What operators get, tried against a running world. Slow: left out of `make test`, run by
//! `make test-ops`.

// Clippy takes these for code outside tests.
#![allow(clippy::unwrap_used)]

mod dashboard;
mod image;
mod incidents;
mod runbooks;

use crate::support::process::{Process, STANDS_BY};
use crate::support::prometheus::{Prometheus, Target};
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Settings, Sync, World};

/// Users, and the orders that they make.
const SHOP: Plan = Plan {
    sql: "create table public.users (id int primary key, plan text not null, seen int not null default 0);
          create table public.orders (id int primary key, state text not null)",
    syncs: &[
        Sync {
            name: "users",
            toml: "table = \"public.users\"\nkey = \"user:{id}\"\ncolumns = [\"plan\"]",
            namespace: NAMESPACE,
            oracle: "select 'user:' || id, json_build_object('plan', plan)::text from public.users",
        },
        Sync {
            name: "orders",
            toml: "table = \"public.orders\"\nkey = \"order:{id}\"\ncolumns = [\"state\"]",
            namespace: NAMESPACE,
            oracle: "select 'order:' || id, json_build_object('state', state)::text from public.orders",
        },
    ],
    settings: &[
        ("postgres.check_interval", "1s"),
        // On a busy machine a leader must not lose the lease for want of time.
        ("lease.ttl", "4s"),
        ("kv.requests_per_5min", "12000"),
    ],
    limits: None,
};

/// The rules as they are shipped.
const RULES: &str = "deploy/prometheus/pg2kv.rules.yaml";

/// A leader `a` and a standby `b`.
async fn pair(world: &World, settings: &Settings) -> (Process, Process) {
    let a = start(world, settings, "a");
    a.leads().await;
    let b = start(world, settings, "b");
    b.logged(STANDS_BY).await;
    (a, b)
}

/// A daemon that calls itself so.
fn start(world: &World, settings: &Settings, name: &'static str) -> Process {
    let mut settings = settings.clone();
    settings.insert("lease.holder".to_owned(), name.to_owned());
    world.daemon_with(name, &settings)
}

/// Has Prometheus scrape these, and waits until it has.
async fn scrape(prometheus: &Prometheus, daemons: &[(&'static str, &Process)]) {
    let mut targets: Vec<Target> = Vec::new();
    for (name, daemon) in daemons {
        targets.push((name, daemon.address().await));
    }
    prometheus.scrape(&targets);
    let up = format!("sum(up) == {}", targets.len());
    wait::until("Prometheus to have scraped all", async || {
        prometheus.number(&up).await
    })
    .await;
}
