//! The dashboard over a run with ups and downs: every query returns data, and Grafana's own components
//! draw it.

use std::path::PathBuf;
use std::time::Duration;

use pg2kv::emulator::faults::Fault;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{RULES, SHOP, pair, scrape, start};
use crate::observe::dashboard::{dashboard, panels};
use crate::observe::{path, read};
use crate::support::node::Peers;
use crate::support::postgres::connect;
use crate::support::process::STANDS_BY;
use crate::support::prometheus::Prometheus;
use crate::support::wait;
use crate::support::world::{Settings, World};

/// Users at the start.
const USERS: u32 = 3_000;
/// The least run that shows something in every panel.
const SECONDS_MIN: u64 = 60;

/// Settings as somebody would run it, where the tests' own are hurried.
fn settled(mut settings: Settings) -> Settings {
    for (key, value) in [
        ("queue.quiet", "100ms"),
        ("queue.max_wait", "1s"),
        ("queue.key_interval", "1s"),
        ("lease.ttl", "3s"),
        ("retry.max", "2s"),
        ("retry.late_write_window", "5s"),
    ] {
        settings.insert(key.to_owned(), value.to_owned());
    }
    settings
}

/// Writes to both tables, in waves, until it is dropped.
struct Load(tokio::task::JoinHandle<()>);

impl Load {
    async fn start(world: &World) -> Self {
        let client = connect(&world.postgres.admin_url()).await;
        Self(tokio::spawn(async move {
            let mut tick = interval(Duration::from_millis(250));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for n in 0_u32.. {
                tick.tick().await;
                let wave = (f64::from(n) / 60.0).sin() + (f64::from(n) / 13.0).sin() / 3.0;
                let users = (45.0 + 30.0 * wave) as i32;
                let first = n * 37 % USERS;
                let sql = format!(
                    "update public.users set plan = 'plan {n}' where id between {first} and {first} + {users};
                     update public.users set seen = seen + 1 where id between {first} and {first} + 5;
                     update public.users set plan = 'plan ' || id % 3 where id < 5;
                     insert into public.orders select {n} * 10 + i, 'new' from generate_series(0, 9) i;
                     update public.orders set state = 'paid' where id between ({n} - 8) * 10 and ({n} - 7) * 10;
                     delete from public.orders where id between ({n} - 60) * 10 and ({n} - 59) * 10"
                );
                // Whoever stops PostgreSQL knows why.
                if client.batch_execute(&sql).await.is_err() {
                    return;
                }
            }
        }))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Seconds since 1970.
fn unix_time() -> f64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

/// An expression of the dashboard with everything chosen.
fn filled(expression: &str) -> String {
    expression
        .replace("$namespace", ".*")
        .replace("$job", ".*")
        .replace("$__rate_interval", "10s")
        .replace("$__interval", "5s")
}

/// Whether any of these series has a number.
fn has_data(series: &[Value]) -> bool {
    let number = |sample: &Value| sample[1].as_str().is_some_and(|text| text != "NaN");
    series.iter().any(|series| match &series["values"] {
        Value::Array(samples) => samples.iter().any(number),
        _ => number(&series["value"]),
    })
}

/// How long to run, and where the picture goes: six minutes and into the repository by `make dashboard`.
fn plan() -> (Duration, PathBuf) {
    let asked = std::env::var("PG2KV_DASHBOARD_SECONDS").ok();
    let picture = match asked {
        Some(_) => path("deploy/grafana/dashboard.png"),
        None => PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("dashboard.png"),
    };
    let seconds = asked.map_or(SECONDS_MIN, |text| text.parse().unwrap());
    (Duration::from_secs(seconds.max(SECONDS_MIN)), picture)
}

#[tokio::test]
async fn every_panel_shows_a_real_run() {
    let packages = tokio::task::spawn_blocking(|| Peers::installed_in("deploy/grafana/source"));
    let (length, picture) = plan();
    let drawn_anew = std::env::var_os("PG2KV_DASHBOARD_SECONDS").is_some();
    let world = World::start(SHOP).await;
    let settings = settled(world.settings());
    let (a, b) = pair(&world, &settings).await;
    // An answer of the real one takes time too.
    world
        .kv
        .faults()
        .add(Fault::delay(Duration::from_millis(40)))
        .unwrap();
    let packages = packages.await.unwrap();
    let source: &[&str] = if drawn_anew { &[] } else { &["--check"] };
    packages.succeeds("write.ts", source).await;

    let prometheus = Prometheus::start(&read(RULES)).await;
    scrape(&prometheus, &[("pg2kv-a", &a), ("pg2kv-b", &b)]).await;
    let (begin, from) = (Instant::now(), unix_time());
    let at = |share: f64| tokio::time::sleep_until(begin + length.mul_f64(share));
    world
        .sql(&format!(
            "insert into public.users select n, 'plan 0' from generate_series(1, {USERS}) n"
        ))
        .await;
    let load = Load::start(&world).await;
    at(0.3).await;
    world.kv.faults().clear();
    world.kv.faults().add(Fault::status(503)).unwrap();
    at(0.36).await;
    world.kv.faults().clear();
    world
        .kv
        .faults()
        .add(Fault::delay(Duration::from_millis(40)))
        .unwrap();
    at(0.5).await;
    world.sql("select pg2kv.resync('users')").await;
    at(0.65).await;
    a.stop().await;
    b.leads().await;
    let a = start(&world, &settings, "a");
    a.logged(STANDS_BY).await;
    scrape(&prometheus, &[("pg2kv-a", &a), ("pg2kv-b", &b)]).await;
    at(1.0).await;
    let to = unix_time();

    let mut empty = Vec::new();
    let dashboard = dashboard();
    for panel in panels(&dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            let expression = filled(target["expr"].as_str().unwrap());
            let series = if target["instant"] == true {
                prometheus.query(&expression).await
            } else {
                prometheus.query_range(&expression, from, to).await
            };
            if !has_data(&series) {
                empty.push(format!("{}: {expression}", panel["title"]));
            }
        }
    }
    assert!(empty.is_empty(), "no data: {}", empty.join("\n"));
    let changes = filled(
        dashboard["annotations"]["list"][0]["expr"]
            .as_str()
            .unwrap(),
    );
    let changes = prometheus.query_range(&changes, from, to).await;
    assert!(has_data(&changes), "no change of leader shows");

    let picture = picture.display().to_string();
    let span = [from.to_string(), to.to_string()];
    let report = packages
        .succeeds("draw.ts", &[&prometheus.url, &span[0], &span[1], &picture])
        .await;
    wait::say(&report);
    drop(load);
    a.stop().await;
    b.stop().await;
}

#[tokio::test]
async fn the_source_fits_the_types_of_grafana() {
    let packages = tokio::task::spawn_blocking(|| Peers::installed_in("deploy/grafana/source"));
    let packages = packages.await.unwrap();
    packages
        .succeeds("node_modules/typescript/bin/tsc", &["--project", "."])
        .await;
    packages.succeeds("write.ts", &["--check"]).await;
}
