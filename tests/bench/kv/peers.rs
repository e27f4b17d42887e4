//! What people would use instead for a first sync: Cloudflare's own ways.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pg2kv::throwaway::programs::find_bin_dir;
use serde_json::json;
use tokio::process::Command;

use super::stand::{Kv, Stand};
use super::usage::Watch;
use crate::support::node::Peers;
use crate::support::world::{ACCOUNT, NAMESPACE, TOKEN};

/// The file that wrangler wants, made in one go: its rows are those of `first_sync.mjs`.
const FILE: &str = "select json_agg(json_build_object('key', u.id, 'value',
    json_build_object('preview_features_enabled', u.preview_features_enabled)::text))
  from public.users as u";

/// What a first sync took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    pub(crate) time: Duration,
    pub(crate) peak_kib: u64,
}

/// The script of Cloudflare's documentation, corrected to write at most 10,000 pairs at once.
pub(crate) async fn script(peers: &Peers, stand: &Stand, kv: &Kv) -> Took {
    let input = json!({
        "database": stand.postgres.admin_url(), "base_url": kv.base_url(),
        "token": TOKEN, "account": ACCOUNT, "namespace": NAMESPACE,
    });
    let mut command = peers.command("first_sync.mjs");
    command.arg(input.to_string());
    ran(command).await
}

/// `wrangler kv bulk put`, and before it psql, which makes its file.
pub(crate) async fn wrangler(peers: &Peers, stand: &Stand, kv: &Kv) -> Took {
    let file = stand.files().join("users.json");
    let mut psql = Command::new(find_bin_dir().unwrap().join("psql"));
    psql.args([
        "--no-psqlrc",
        "--tuples-only",
        "--no-align",
        "--command",
        FILE,
        "--output",
    ]);
    psql.arg(&file)
        .arg(stand.postgres.admin_url())
        .kill_on_drop(true);
    let made = ran(psql).await;

    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/peers/node_modules/wrangler/bin/wrangler.js");
    let mut command = peers.command(script.to_str().unwrap());
    command
        .args(["kv", "bulk", "put"])
        .arg(&file)
        .args(["--namespace-id", NAMESPACE, "--remote"])
        // It keeps files of its own where it runs and at home.
        .current_dir(stand.files())
        .env("HOME", stand.files())
        .env("CI", "1")
        .env("WRANGLER_SEND_METRICS", "false")
        .env("CLOUDFLARE_API_BASE_URL", kv.base_url())
        .env("CLOUDFLARE_API_TOKEN", TOKEN)
        .env("CLOUDFLARE_ACCOUNT_ID", ACCOUNT);
    let sent = ran(command).await;
    Took {
        time: made.time + sent.time,
        peak_kib: made.peak_kib.max(sent.peak_kib),
    }
}

/// Runs a program to its end; it must succeed.
async fn ran(mut command: Command) -> Took {
    let began = Instant::now();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let watch = Watch::start(child.id().unwrap());
    let output = child.wait_with_output().await.unwrap();
    let time = began.elapsed();
    let peak_kib = watch.peak_kib().await;
    let said = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&said)
    );
    Took { time, peak_kib }
}
