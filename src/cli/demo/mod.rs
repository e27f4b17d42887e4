//! `pg2kv demo`: the main job on servers of our own, from an empty machine to KV equal to Postgres.

mod screen;
mod world;

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::screen::Screen;
use self::world::{Kind, World};
use super::args::DemoArgs;
use super::output::Failure;

/// Time between two changes: 20 a second, the rate at which latency is quoted.
const PACE: Duration = Duration::from_millis(50);
/// Slow enough to read along.
const PACE_FOR_PEOPLE: Duration = Duration::from_millis(400);
/// Ended by a signal, as shells say it of SIGINT.
const EXIT_INTERRUPTED: u8 = 130;
/// A change that is not in KV by then never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// The line that `--headless` prints.
#[derive(Debug, Serialize)]
struct Summary {
    /// Rows of the table at the start.
    rows: u64,
    /// Changes made after that.
    changes: u64,
    /// Pairs written to and deleted from KV.
    writes: u64,
    /// Requests to KV.
    requests: u64,
    /// From the start of the daemon to the comparison.
    seconds: f64,
    /// Median time from commit to KV, in milliseconds.
    p50_ms: f64,
    /// 99th percentile of the same.
    p99_ms: f64,
    /// Whether KV equals Postgres, key by key.
    equal: bool,
}

/// Runs the demo to its end, or to Ctrl-C; leaves nothing behind.
pub(super) async fn execute(args: DemoArgs) -> Result<ExitCode, Failure> {
    let screen = Screen::new(args.headless);
    let stop = CancellationToken::new();
    let again = stop_on_signals(stop.clone())?;
    // Cancel-safety: what is dropped here stops its servers and removes its files.
    tokio::select! {
        result = show(&args, screen, stop) => result,
        () = again.cancelled() => {
            screen.interrupted()?;
            Ok(ExitCode::from(EXIT_INTERRUPTED))
        }
    }
}

/// The first signal cancels `stop`, the second the token that is returned.
fn stop_on_signals(stop: CancellationToken) -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let again = CancellationToken::new();
    let token = again.clone();
    tokio::spawn(async move {
        for token in [stop, token] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            token.cancel();
        }
    });
    Ok(again)
}

async fn show(
    args: &DemoArgs,
    screen: Screen,
    stop: CancellationToken,
) -> Result<ExitCode, Failure> {
    screen.title()?;
    let mut world = World::start(args, screen).await?;
    let began = Instant::now();
    world.start_daemon().await?;
    let first = world
        .first_sync(PATIENCE + Duration::from_millis(args.rows / 10))
        .await?;
    screen.first_sync(args.rows, world.requests(), first)?;
    screen.changes_heading()?;

    let pace = if args.headless { PACE } else { PACE_FOR_PEOPLE };
    let mut ticks = tokio::time::interval(pace);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut latencies = Vec::new();
    for _ in 0..args
        .changes
        .unwrap_or(if args.headless { 200 } else { u64::MAX })
    {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => break,
        }
        let change = world.change().await?;
        let latency = world.arrival(&change, PATIENCE).await?;
        screen.change(&change, latency)?;
        latencies.push(latency);
    }
    world.quiescence(PATIENCE).await?;
    let equal = world.is_equal().await?;
    let seconds = began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let summary = Summary {
        rows: args.rows,
        changes: latencies.len() as u64,
        writes: world.writes(),
        requests: world.requests(),
        seconds: (seconds * 1_000.0).round() / 1_000.0,
        p50_ms: milliseconds(percentile(&latencies, 0.50)),
        p99_ms: milliseconds(percentile(&latencies, 0.99)),
        equal,
    };
    world.stop().await;
    screen.summary(&summary)?;
    Ok(if equal {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    let index = (last as f64 * share).round();
    // In range: `share` is at most 1.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rounded, in range"
    )]
    let index = index as usize;
    sorted.get(index).copied().unwrap_or_default()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e5).round() / 100.0
}

/// A failure of the demo's own servers.
fn failed(what: &str, error: &impl std::fmt::Display) -> Failure {
    Failure::new(
        format!("{what}: {error}"),
        "run the demo again; if it fails again, report it",
    )
}

fn io_failed(what: &str) -> impl Fn(io::Error) -> Failure {
    move |error| failed(what, &error)
}

/// What a change did, for people.
fn verb(kind: Kind) -> &'static str {
    match kind {
        Kind::Update => "update",
        Kind::Insert => "insert",
        Kind::Delete => "delete",
    }
}
