//! PostgreSQL, the real binary, Cloudflare's own runtime with the Worker of `deploy/worker`, and a
//! browser: from a row to the page.
//!
//! Nothing here is ours but pg2kv and the Worker. pg2kv reaches the simulator by configuration alone.

// Clippy takes these for code outside tests.
#![allow(clippy::unwrap_used)]

mod answers;
mod files;
mod page;
mod types;

use crate::support::node::Peers;
use crate::support::process::Process;
use crate::support::worker::Edge;
use crate::support::world::{Plan, World};

/// Everything between a row and a page, and the daemon that leads.
struct Way {
    world: World,
    edge: Edge,
    daemon: Process,
    peers: Peers,
}

impl Way {
    async fn start(plan: Plan) -> Self {
        let peers = Peers::installed();
        let (world, edge) = tokio::join!(World::start(plan), Edge::start(&peers));
        let mut settings = world.settings();
        settings.remove("kv.account_id");
        for (key, value) in [
            ("kv.api_base_url", edge.api()),
            // It takes seconds for a thousand pairs, and far longer for more.
            ("kv.pairs_max", "1000"),
            ("kv.request_timeout", "30s"),
        ] {
            settings.insert(key.to_owned(), value.to_owned());
        }
        let daemon = world.daemon_with("pg2kv", &settings);
        daemon.leads().await;
        Self {
            world,
            edge,
            daemon,
            peers,
        }
    }

    /// Waits until everything is proven written. What the Worker shows then must be right at once.
    async fn quiet(&self) {
        self.world.quiet().await;
    }

    async fn stop(self) {
        self.daemon.stop().await;
        self.edge.stop().await;
    }
}
