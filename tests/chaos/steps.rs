//! A crash at every step between fetch and settle, one after the other.
//!
//! Each step is held where it is from outside, by a lock in PostgreSQL or a fault in KV; then the
//! daemon is killed, and a new one must bring both sides together.

use std::time::Duration;

use pg2kv::emulator::faults::{Fault, Reply};
use pg2kv::emulator::route::Operation;
use tokio_postgres::Client;

use super::{NOTES, waits_for_a_lock};
use crate::support::postgres::connect;
use crate::support::process::Process;
use crate::support::proxy::{Mode, Proxy};
use crate::support::wait::{self, say};
use crate::support::world::{Plan, World};

/// Where the daemon is when it dies.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// It asks for the lease.
    Campaign,
    /// It reads the outbox.
    Fetch,
    /// It inserts the claim and deletes the outbox rows.
    Claim,
    /// The claim is there; it reads the rows.
    Read,
    /// The request is on its way and will never arrive.
    SendLost,
    /// The request has arrived and has no effect.
    Sent,
    /// The request has taken effect; nobody was told.
    Applied,
    /// The request takes effect when the next daemon has long written something newer.
    AppliesLate,
    /// Half of the keys were written; the answer is on its way.
    HalfApplied,
    /// The answer is there; it ends the claim.
    Settle,
    /// It writes a dead letter and ends the claim.
    Bury,
    /// A backfill begins in place of its marker.
    BackfillStart,
    /// A backfill reads the table.
    BackfillWalk,
    /// A backfill's chunk is claimed and its position moved.
    BackfillClaim,
    /// A backfill lists the names in KV.
    BackfillSweep,
}

const STEPS: [Step; 15] = [
    Step::Campaign,
    Step::Fetch,
    Step::Claim,
    Step::Read,
    Step::SendLost,
    Step::Sent,
    Step::Applied,
    Step::AppliesLate,
    Step::HalfApplied,
    Step::Settle,
    Step::Bury,
    Step::BackfillStart,
    Step::BackfillWalk,
    Step::BackfillClaim,
    Step::BackfillSweep,
];

/// Longer than the late write below takes.
const PLAN: Plan = Plan {
    settings: &[
        ("lease.ttl", "3s"),
        ("retry.late_write_window", "1500ms"),
        ("backfill.chunk", "20"),
    ],
    ..NOTES
};
const LATE: Duration = Duration::from_millis(1_000);

#[tokio::test]
async fn a_crash_at_every_step_loses_nothing() {
    let world = World::start(PLAN).await;
    let proxy = Proxy::start(world.emulator.addr()).await;
    world
        .sql("insert into public.note select n, 'old' from generate_series(1, 50) n")
        .await;
    for step in STEPS {
        // Before the next daemon starts the lock goes, or only after that. A statement whose client
        // is dead is still carried out in the first case.
        for (changes_while_dead, lock_outlives) in [(false, false), (true, true)] {
            say(&format!(
                "{step:?}, changes while dead: {changes_while_dead}"
            ));
            crash(&world, &proxy, step, changes_while_dead, lock_outlives).await;
        }
    }
}

async fn crash(
    world: &World,
    proxy: &Proxy,
    step: Step,
    changes_while_dead: bool,
    lock_outlives: bool,
) {
    let settings = world.settings_through(world.postgres.port(), proxy.port());
    let locker = connect(&world.postgres.admin_url()).await;
    let daemon = world.daemon_with("steps", &settings);
    daemon.leads().await;
    world.converges().await;
    let daemon = hold_at(world, proxy, step, daemon, &locker).await;
    daemon.kill().await;

    proxy.set(Mode::Reset);
    proxy.set(Mode::Pass);
    world.kv.faults().clear();
    if !lock_outlives {
        unlock(&locker).await;
    }
    if changes_while_dead {
        // Not before the lock is gone, where it is one on the table.
        if matches!(step, Step::Read | Step::BackfillWalk | Step::Fetch) {
            unlock(&locker).await;
        }
        world
            .sql("update public.note set text = 'while dead' where id <= 10; delete from public.note where id = 11")
            .await;
    }
    let next = world.daemon_with("steps", &settings);
    if lock_outlives {
        next.logged("pg2kv started").await;
        unlock(&locker).await;
    }
    next.leads().await;
    world
        .sql("insert into public.note values (11, 'new') on conflict (id) do update set text = excluded.text")
        .await;
    if matches!(step, Step::Bury) {
        // The dead daemon's last statement may have made it a dead letter; that is right, too.
        world
            .sql("update public.note set text = 'better' where id = 20")
            .await;
    }
    world.converges().await;
    world.sql("update public.note set text = 'old'").await;
    world.converges().await;
    next.stop().await;
    assert_eq!(
        world.number("select count(*) from pg2kv.dead_letter").await,
        0
    );
}

/// Has the daemon do something, and returns when it is in the middle of it.
async fn hold_at(
    world: &World,
    proxy: &Proxy,
    step: Step,
    daemon: Process,
    locker: &Client,
) -> Process {
    let change = "update public.note set text = 'in flight' where id <= 20";
    match step {
        Step::Campaign => {
            daemon.kill().await;
            lock(locker, "lock table pg2kv.lease in access exclusive mode").await;
            world.sql(change).await;
            let settings = world.settings_through(world.postgres.port(), proxy.port());
            let daemon = world.daemon_with("steps", &settings);
            waits_for_a_lock(world).await;
            return daemon;
        }
        Step::Fetch => {
            // The change is ours to commit, since nobody else can write to the outbox now.
            lock(locker, change).await;
            lock(locker, "lock table pg2kv.outbox in access exclusive mode").await;
            world.sql("select pg_notify('pg2kv', '')").await;
            waits_for_a_lock(world).await;
        }
        Step::Claim => {
            lock(locker, "lock table pg2kv.claim in access exclusive mode").await;
            world.sql(change).await;
            waits_for_a_lock(world).await;
        }
        Step::Read => {
            lock(locker, "lock table public.note in access exclusive mode").await;
            // Nobody else can change a note now, so the outbox gets its row from us.
            world
                .sql("insert into pg2kv.outbox (sync, key) values ('note', '[20]'); select pg_notify('pg2kv', '')")
                .await;
            waits_for_a_lock(world).await;
        }
        Step::SendLost => {
            proxy.set(Mode::Blackhole);
            world.sql(change).await;
            claims(world).await;
        }
        Step::Sent => {
            fault(world, Fault::new(Reply::Hang));
            world.sql(change).await;
            met(world).await;
        }
        Step::Applied => {
            fault(world, Fault::apply_then_hang());
            world.sql(change).await;
            met(world).await;
            world.has("note:1", Some(r#"{"text":"in flight"}"#)).await;
        }
        Step::AppliesLate => {
            fault(world, Fault::hang_then_apply(LATE));
            world.sql(change).await;
            met(world).await;
        }
        Step::HalfApplied => {
            fault(
                world,
                Fault {
                    delay_ms: 300,
                    ..Fault::partial(0.5)
                },
            );
            world.sql(change).await;
            met(world).await;
        }
        Step::Settle => {
            fault(world, Fault::delay(Duration::from_millis(500)));
            world.sql(change).await;
            met(world).await;
            lock(locker, "select from pg2kv.claim for update").await;
            waits_for_a_lock(world).await;
        }
        Step::Bury => {
            lock(
                locker,
                "lock table pg2kv.dead_letter in access exclusive mode",
            )
            .await;
            let refusal = Fault::status(400)
                .on_operation(Operation::BulkWrite)
                .on_key_prefix("note:20");
            world.kv.faults().add(refusal).unwrap();
            world.sql(change).await;
            waits_for_a_lock(world).await;
        }
        Step::BackfillStart => {
            lock(locker, "lock table pg2kv.backfill in access exclusive mode").await;
            world.sql("truncate public.note; insert into public.note select n, 'more' from generate_series(1, 60) n").await;
            waits_for_a_lock(world).await;
        }
        Step::BackfillWalk => {
            lock(locker, "lock table public.note in access exclusive mode").await;
            world.sql("select pg2kv.resync('note')").await;
            waits_for_a_lock(world).await;
        }
        Step::BackfillClaim => {
            lock(locker, "lock table pg2kv.claim in access exclusive mode").await;
            world.sql("select pg2kv.resync('note')").await;
            waits_for_a_lock(world).await;
        }
        Step::BackfillSweep => {
            let hang = Fault::new(Reply::Hang).on_operation(Operation::ListKeys);
            world.kv.faults().add(hang).unwrap();
            world
                .sql("delete from public.note where id > 45; select pg2kv.resync('note')")
                .await;
            met(world).await;
        }
    }
    daemon
}

async fn lock(locker: &Client, sql: &str) {
    let begin = format!("begin; set local lock_timeout = '10s'; {sql}");
    locker.batch_execute(&begin).await.unwrap();
}

async fn unlock(locker: &Client) {
    // Nothing happens where nothing is locked, or not any more.
    locker.batch_execute("commit").await.unwrap();
}

fn fault(world: &World, fault: Fault) {
    world
        .kv
        .faults()
        .add(fault.on_operation(Operation::BulkWrite).times(1))
        .unwrap();
}

/// Waits until a request has met a fault.
async fn met(world: &World) {
    wait::until("a request to meet the fault", async || {
        let met = world
            .kv
            .faults()
            .list()
            .iter()
            .any(|waiting| waiting.met > 0);
        met.then_some(())
    })
    .await;
}

/// Waits until there is a claim.
async fn claims(world: &World) {
    wait::until("a claim", async || {
        (world.number("select count(*) from pg2kv.claim").await > 0).then_some(())
    })
    .await;
}
