//! Probes, metrics and status.

use std::sync::mpsc;
use std::time::Duration;

use pg2kv::config;
use pg2kv::daemon::Daemon;
use pg2kv::emulator::faults::Fault;
use pg2kv::emulator::route::Operation;
use pg2kv::metrics::{ALL, Type};
use pg2kv::sink::kv::KvClient;
use pg2kv::throwaway::Stop;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{PLAN, world};
use crate::support::wait;
use crate::support::world::{Plan, World};

#[tokio::test]
async fn every_metric_shows_after_a_busy_run() {
    let world = World::start(Plan {
        settings: &[
            ("kv.requests_per_5min", "1200"),
            ("audit.interval", "1s"),
            ("audit.recheck_after", "0s"),
        ],
        ..PLAN
    })
    .await;
    world
        .kv
        .faults()
        .add(
            Fault::status(503)
                .on_operation(Operation::BulkWrite)
                .times(1),
        )
        .unwrap();
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql(
            "insert into public.note select n, 'text' from generate_series(1, 100) n;
             insert into public.doc values ('..', 'poison'), ('good', 'x')",
        )
        .await;
    world.converges_but_for(&["missing in KV: .."]).await;
    world
        .sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = 'edge'")
        .await;
    daemon.logged_times("this process leads", 2).await;
    world.sql("delete from public.note where id < 50").await;
    world.converges_but_for(&["missing in KV: .."]).await;

    let text = wait::until("every metric to show", async || {
        let (status, text) = daemon.get("/metrics").await;
        assert_eq!(status, 200);
        let shows = |name: &str| text.contains(&format!("# TYPE {name} "));
        ALL.iter().all(|metric| shows(metric.name)).then_some(text)
    })
    .await;
    for metric in ALL {
        let kind = match metric.kind {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        };
        let name = metric.name;
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        assert!(
            text.contains(&format!("# HELP {name} {}", metric.help)),
            "{name}"
        );
        for label in metric.labels {
            assert!(
                text.lines()
                    .any(|line| line.starts_with(name) && line.contains(&format!("{label}=\""))),
                "{name} {label}"
            );
        }
    }
    assert!(!text.contains(" summary\n"), "a histogram without buckets");
    assert!(text.contains("process_resident_memory_bytes "));

    assert_eq!(daemon.metric("pg2kv_leader").await, Some(1.0));
    assert_eq!(
        daemon.metric("pg2kv_leader_transitions_total").await,
        Some(2.0)
    );
    assert_eq!(daemon.metric("pg2kv_postgres_up").await, Some(1.0));
    assert_eq!(daemon.metric("pg2kv_dead_letters").await, Some(1.0));
    let written = daemon.metric("pg2kv_pairs_written_total").await.unwrap();
    assert!(written >= 150.0, "{written}");
    assert!(daemon.metric("pg2kv_retries_total").await.unwrap() >= 1.0);
    assert!(
        daemon
            .metric("pg2kv_commit_to_written_seconds_count")
            .await
            .unwrap()
            >= 1.0
    );
    daemon.stop().await;
}

#[tokio::test]
async fn probes_and_status_say_how_it_is() {
    let world = world().await;
    let leader = world.daemon();
    leader.leads().await;
    let standby = world.daemon_with("standby", &world.settings());
    standby.logged("another process leads").await;
    for path in [
        "/livez",
        "/startupz",
        "/readyz",
        "/metrics",
        "/api/status",
        "/",
    ] {
        assert_eq!(leader.get(path).await.0, 200, "{path}");
        assert_eq!(standby.get(path).await.0, 200, "{path}");
    }
    assert_eq!(leader.get("/nothing").await.0, 404);
    assert!(
        leader
            .get("/readyz")
            .await
            .1
            .starts_with("ok: leading, epoch 1\n")
    );
    assert!(
        standby
            .get("/readyz")
            .await
            .1
            .starts_with("ok: standing by")
    );
    assert_eq!(standby.metric("pg2kv_leader").await, Some(0.0));

    // A status that is a second old at most.
    world.quiet().await;
    wait::until("the status to tell of an idle leader", async || {
        let (_, text) = leader.get("/api/status").await;
        let status: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["phase"], "leading");
        assert_eq!(status["epoch"], 1);
        assert_eq!(status["blocked"], Value::Null);
        assert_eq!(status["syncs"][0]["name"], "doc");
        assert_eq!(status["syncs"][1]["name"], "note");
        let idle = status["queue_keys"] == 0 && status["syncs"][1]["backfill"] == Value::Null;
        idle.then_some(())
    })
    .await;
    leader.stop().await;
    standby.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_is_stuck_shows() {
    let world = world().await;
    let file = world.configure("stuck", &world.settings());
    let (watchers, watcher) = mpsc::channel();
    let (holds, hold) = mpsc::channel::<()>();
    let (held, is_held) = mpsc::channel();
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    // A runtime with one thread: whatever blocks that, blocks the loop.
    let daemon = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let config = config::load(&[file], std::iter::empty()).unwrap();
            let kv = KvClient::new(config.sink_settings()).unwrap();
            let (daemon, mut watcher) = Daemon::new(config.daemon_settings(), kv);
            watchers.send(watcher.clone()).unwrap();
            let daemon = tokio::spawn(daemon.run(stop));
            watcher.wait_for(|report| report.reached).await;
            held.send(()).unwrap();
            hold.recv().unwrap();
            daemon.await.unwrap();
        });
    });
    let watcher = watcher.recv().unwrap();
    tokio::task::block_in_place(|| is_held.recv()).unwrap();
    wait::until("the loop to look stuck", async || {
        (watcher.loop_age() > Duration::from_secs(2)).then_some(())
    })
    .await;
    holds.send(()).unwrap();
    wait::until("the loop to go round again", async || {
        (watcher.loop_age() < Duration::from_secs(1)).then_some(())
    })
    .await;
    shutdown.cancel();
    tokio::task::spawn_blocking(|| daemon.join().unwrap())
        .await
        .unwrap();
}

#[tokio::test]
async fn who_no_longer_leads_shows_nothing_of_its_time_as_leader() {
    let mut world = World::start(Plan {
        settings: &[("postgres.check_interval", "100ms")],
        ..PLAN
    })
    .await;
    world
        .sql("insert into public.doc values ('..', 'poison')")
        .await;
    let daemon = world.daemon();
    daemon.leads().await;
    world
        .sql("drop trigger zzz_pg2kv_note_row on public.note")
        .await;
    let show = async |value: f64| {
        for name in ["pg2kv_triggers_faulty", "pg2kv_dead_letters"] {
            wait::until(&format!("{name} to be {value}"), async || {
                (daemon.metric(name).await == Some(value)).then_some(())
            })
            .await;
        }
    };
    show(1.0).await;
    world.stop_postgres(Stop::Immediate).await;
    show(0.0).await;
    daemon.kill().await;
}
