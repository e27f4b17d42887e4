//! Incidents, one after the other, seen by a real Prometheus with our rules: the right alert goes off,
//! and no other.

use std::collections::BTreeSet;

use pg2kv::emulator::faults::Fault;
use pg2kv::throwaway::Stop;

use super::{RULES, SHOP, pair, scrape, start};
use crate::observe::read;
use crate::support::process::{Process, STANDS_BY, command};
use crate::support::prometheus::Prometheus;
use crate::support::wait;
use crate::support::world::{TOKEN, World};

/// The rules, with their `for` in steps of ten seconds instead of a minute: the same expressions, and a
/// test that ends. Not shorter, since a change of leader takes seconds where the machine is busy.
fn hurried() -> String {
    let mut minutes = 0;
    let shipped = read(RULES);
    let lines = shipped.lines().map(|line| {
        let Some((indent, wait)) = line.split_once("for: ") else {
            return line.to_owned();
        };
        let wait: u32 = wait.strip_suffix('m').unwrap().parse().unwrap();
        minutes += 1;
        format!("{indent}for: {}s", wait * 10)
    });
    let rules = lines.collect::<Vec<_>>().join("\n");
    assert!(minutes > 20, "the rules were not understood");
    rules
}

/// Waits until this alert is pending or fires. No other may fire until then, nor be left pending.
async fn goes_off(prometheus: &Prometheus, wanted: &str) {
    wait::until(&format!("{wanted} to go off"), async || {
        let alerts = prometheus.alerts().await;
        let firing = alerts.iter().filter(|(_, state)| *state == "firing");
        let wrong: Vec<_> = firing.filter(|(name, _)| *name != wanted).collect();
        assert!(wrong.is_empty(), "instead of {wanted}: {wrong:?}");
        alerts.contains_key(wanted).then_some(())
    })
    .await;
    only(prometheus, &[wanted]).await;
}

/// Waits until these alerts, and no others, are pending or fire; none for `[]`.
async fn only(prometheus: &Prometheus, wanted: &[&str]) {
    let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
    let mut last = BTreeSet::new();
    wait::until(&format!("the alerts to be {wanted:?}"), async || {
        let alerts = prometheus.alerts().await;
        if last != alerts.keys().cloned().collect() {
            last = alerts.keys().cloned().collect();
            wait::say(&format!("alerts: {alerts:?}"));
        }
        (last == wanted.iter().map(|name| (*name).to_owned()).collect()).then_some(())
    })
    .await;
}

/// Waits until Prometheus has evaluated the rules so many times more.
async fn evaluations(prometheus: &Prometheus, times: f64) {
    let count = r#"max(timestamp(pg2kv:leaders:sum))"#;
    let begin = prometheus.number(count).await.unwrap();
    wait::until("the rules to be evaluated", async || {
        (prometheus.number(count).await? >= begin + times).then_some(())
    })
    .await;
}

async fn write(world: &World, plan: &str) {
    world
        .sql(&format!("update public.users set plan = '{plan}'"))
        .await;
}

/// A daemon in the place of one that was killed.
async fn again(world: &World, name: &'static str) -> Process {
    let daemon = start(world, &world.settings(), name);
    daemon.logged("pg2kv started").await;
    daemon
}

#[tokio::test]
async fn each_incident_sets_off_its_alert_and_no_other() {
    let mut world = World::start(SHOP).await;
    world
        .sql("insert into public.users select n, 'free' from generate_series(1, 50) n")
        .await;
    let settings = world.settings();
    let (a, b) = pair(&world, &settings).await;
    world.converges().await;
    let prometheus = Prometheus::start(&hurried()).await;
    scrape(&prometheus, &[("a", &a), ("b", &b)]).await;
    only(&prometheus, &[]).await;
    evaluations(&prometheus, 5.0).await;
    only(&prometheus, &[]).await;

    // KV answers 500.
    world.kv.faults().add(Fault::status(500)).unwrap();
    write(&world, "failing").await;
    goes_off(&prometheus, "Pg2kvKvFailing").await;
    world.kv.faults().clear();
    world.converges().await;
    only(&prometheus, &[]).await;

    // The token is revoked, and a good one arrives.
    world.kv.set_token(Some("another".to_owned()));
    write(&world, "refused").await;
    goes_off(&prometheus, "Pg2kvTokenRefused").await;
    world.set_token("another");
    world.converges().await;
    only(&prometheus, &[]).await;
    world.kv.set_token(Some(TOKEN.to_owned()));
    world.set_token(TOKEN);

    // Somebody drops a trigger.
    world
        .sql("drop trigger zzz_pg2kv_users_row on public.users")
        .await;
    goes_off(&prometheus, "Pg2kvTriggersFaulty").await;
    world
        .sql("insert into public.users values (0, 'missed')")
        .await;
    let config = world.configure("install-again", &settings);
    let installed = command()
        .args(["install", "--database-url", &world.postgres.admin_url()])
        .arg("--config")
        .arg(config)
        .output()
        .await
        .unwrap();
    assert!(installed.status.success(), "{installed:?}");
    wait::until("what was missed to arrive", async || world.value("user:0")).await;
    world.converges().await;
    only(&prometheus, &[]).await;

    // The leader is killed; the other one takes over.
    a.kill().await;
    b.leads().await;
    goes_off(&prometheus, "Pg2kvTargetDown").await;
    write(&world, "by the other one").await;
    world.converges().await;
    let a = again(&world, "a").await;
    a.logged(STANDS_BY).await;
    scrape(&prometheus, &[("a", &a), ("b", &b)]).await;
    only(&prometheus, &[]).await;

    // Postgres is away.
    world.stop_postgres(Stop::Immediate).await;
    goes_off(&prometheus, "Pg2kvPostgresUnreachable").await;
    world.postgres.resume().unwrap();
    write(&world, "after the crash").await;
    world.converges().await;
    only(&prometheus, &[]).await;

    // Both are killed.
    a.kill().await;
    b.kill().await;
    goes_off(&prometheus, "Pg2kvDown").await;
}
