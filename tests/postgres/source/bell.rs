//! The bell: no change is left to the fallback poll, however writer and daemon interleave.
//!
//! The daemon's own statements (set the bell, look at holders, fetch) go through a gate one by one,
//! and the steps of a writer's transaction are put between them, in each possible order.

use std::sync::Arc;

use pg2kv::ledger::FetchMode;
use pg2kv::source::doorbell::Doorbell;
use pg2kv::source::session::Session;
use tokio_postgres::Client;

use super::gate::Gate;
use super::{Bench, Leader, items, lead, settings, soon, texts};

/// Daemon steps of one falling asleep: set the bell, look, fetch.
const DAEMON_STEPS: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Writer,
    Daemon,
}

/// All orders of so many writer steps and the daemon's.
fn interleavings(writer: usize, daemon: usize) -> Vec<Vec<Turn>> {
    if writer == 0 && daemon == 0 {
        return vec![vec![]];
    }
    let mut all = Vec::new();
    for (turn, left) in [(Turn::Writer, writer), (Turn::Daemon, daemon)] {
        if left > 0 {
            let rest = match turn {
                Turn::Writer => interleavings(writer - 1, daemon),
                Turn::Daemon => interleavings(writer, daemon - 1),
            };
            all.extend(rest.into_iter().map(|rest| [vec![turn], rest].concat()));
        }
    }
    all
}

/// How the writer does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// An UPDATE-like change; the trigger of the SQL kit inserts and reads the bell.
    Trigger,
    /// What the trigger does, in two steps: insert, then read the bell.
    InStepsRight,
    /// The other way round: wrong.
    InStepsWrong,
}

impl Writer {
    const fn steps(self) -> usize {
        match self {
            Self::Trigger => 3,
            Self::InStepsRight | Self::InStepsWrong => 4,
        }
    }

    /// Does one step; `asleep` is what the writer read from the bell.
    async fn step(self, client: &Client, at: usize, id: i64, asleep: &mut bool) {
        let insert = format!("insert into pg2kv.outbox (sync, key) values ('items', '[{id}]')");
        match (self, at) {
            (_, 0) => client.batch_execute("begin").await.unwrap(),
            (Self::Trigger, 1) => {
                let sql = format!("insert into items values ({id})");
                client.batch_execute(&sql).await.unwrap();
            }
            (Self::InStepsRight, 1) | (Self::InStepsWrong, 2) => {
                client.batch_execute(&insert).await.unwrap();
            }
            (Self::InStepsRight, 2) | (Self::InStepsWrong, 1) => {
                let bell =
                    "select last_value > extract(epoch from clock_timestamp()) from pg2kv.bell";
                *asleep = client.query_one(bell, &[]).await.unwrap().get(0);
            }
            _ => {
                if *asleep {
                    client
                        .batch_execute("select pg_notify('pg2kv', '')")
                        .await
                        .unwrap();
                }
                client.batch_execute("commit").await.unwrap();
            }
        }
    }
}

/// How a change came to the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrived {
    /// With the fetch of falling asleep.
    Fetched,
    /// While polling, because the look had shown a writer.
    Polled,
    /// After a ring.
    Rung,
    /// Neither fetched nor seen by the look, and its writer did not ring: left to the poll.
    Left,
}

struct Stage {
    gate: Gate,
    session: Arc<Session>,
    doorbell: Doorbell,
    _candidate: pg2kv::source::lease::Candidate,
    writer: Client,
    bench: Bench,
    next: i64,
}

impl Stage {
    async fn set() -> Self {
        let bench = Bench::new().await;
        let gate = Gate::start(bench.settings.config.get_ports()[0]).await;
        let name = bench.settings.config.get_dbname().unwrap();
        let through = settings(&format!(
            "postgres://daemon@127.0.0.1:{}/{name}",
            gate.port()
        ));
        let Leader {
            session,
            doorbell,
            candidate,
            ..
        } = lead(&through, &[items("id")]).await;
        let writer = bench.db.connect().await;
        writer
            .batch_execute("set application_name = 'writer'")
            .await
            .unwrap();
        let session = Arc::new(session);
        Self {
            gate,
            session,
            doorbell,
            _candidate: candidate,
            writer,
            bench,
            next: 0,
        }
    }

    /// One writer and one falling asleep in this order.
    async fn run(&mut self, order: &[Turn], writer: Writer) -> Arrived {
        self.next += 1;
        let id = self.next;
        // Awake, bell silent; the last call is answered only after the silence.
        self.session.fetch(FetchMode::Awake, 10).await.unwrap();
        self.session.compact(&[]).await.unwrap();
        while futures_util::FutureExt::now_or_never(self.doorbell.rung())
            .flatten()
            .is_some()
        {}

        self.gate.close();
        let session = self.session.clone();
        let falling =
            tokio::spawn(async move { session.fetch(FetchMode::FallingAsleep, 10).await });
        let mut step = 0;
        let mut asleep = false;
        for turn in order {
            match turn {
                Turn::Daemon => self.gate.step().await,
                Turn::Writer => {
                    writer.step(&self.writer, step, id, &mut asleep).await;
                    step += 1;
                }
            }
        }
        self.gate.open();
        let fetched = soon(falling).await.unwrap().unwrap();
        let expected = [format!("[{id}]")];
        let ids = if texts(&fetched.changes) == expected {
            (Arrived::Fetched, fetched.changes)
        } else if fetched.writers {
            let changes = soon(async {
                loop {
                    let fetched = self
                        .session
                        .fetch(FetchMode::FallingAsleep, 10)
                        .await
                        .unwrap();
                    if !fetched.changes.is_empty() {
                        return fetched.changes;
                    }
                    assert!(fetched.writers, "neither a writer nor its change");
                }
            })
            .await;
            (Arrived::Polled, changes)
        } else if writer == Writer::InStepsWrong && !asleep {
            let changes = self
                .session
                .fetch(FetchMode::Awake, 10)
                .await
                .unwrap()
                .changes;
            (Arrived::Left, changes)
        } else {
            soon(self.doorbell.rung())
                .await
                .expect("the connection stands");
            let changes = self
                .session
                .fetch(FetchMode::Awake, 10)
                .await
                .unwrap()
                .changes;
            (Arrived::Rung, changes)
        };
        let (arrived, changes) = ids;
        assert_eq!(
            texts(&changes),
            expected,
            "{order:?} {writer:?} {arrived:?}"
        );
        let ids: Vec<_> = changes.iter().map(|change| change.id).collect();
        self.session.compact(&ids).await.unwrap();
        arrived
    }
}

/// 1,000 pairs of a writer and a daemon: 20 orders of the trigger and 35 of its steps, repeated.
#[tokio::test]
async fn no_order_of_writer_and_daemon_leaves_a_change_to_the_poll() {
    const PAIRS: usize = 1_000;
    let mut stage = Stage::set().await;
    let mut counts = [0; 4];
    let mut pairs = 0;
    while pairs < PAIRS {
        for writer in [Writer::Trigger, Writer::InStepsRight] {
            for order in interleavings(writer.steps(), DAEMON_STEPS) {
                counts[stage.run(&order, writer).await as usize] += 1;
                pairs += 1;
            }
        }
    }
    let [fetched, polled, rung, left] = counts;
    assert_eq!(left, 0);
    // Without the look at holders, those that came while polling would have been left: their
    // writer read the bell before it was set, and they were not yet there to fetch.
    assert!(fetched > 0 && polled > 0 && rung > 0, "{counts:?}");
    assert_eq!(
        stage
            .bench
            .number("select count(*) from pg2kv.outbox")
            .await,
        0
    );
}

/// The test above has teeth: a trigger that reads the bell before it inserts loses some.
#[tokio::test]
async fn reading_the_bell_before_the_insert_would_leave_changes_to_the_poll() {
    let mut stage = Stage::set().await;
    let mut left = 0;
    for order in interleavings(Writer::InStepsWrong.steps(), DAEMON_STEPS) {
        left += usize::from(stage.run(&order, Writer::InStepsWrong).await == Arrived::Left);
    }
    assert!(left > 0);
}

#[tokio::test]
async fn an_awake_daemon_is_not_rung_and_a_dead_one_not_for_long() {
    let mut bench = Bench::new().await;
    bench.settings.poll_interval = std::time::Duration::from_millis(500);
    let mut leader = bench.lead(&[items("id")]).await;
    leader.fetch(FetchMode::FallingAsleep).await;
    let until = "select (last_value - extract(epoch from clock_timestamp()))::int8 from pg2kv.bell";
    assert!(
        (0..=2).contains(&bench.number(until).await),
        "set for twice the poll interval"
    );
    bench.sql("insert into items values (1)").await;
    soon(leader.doorbell.rung()).await.expect("rung");
    leader.fetch(FetchMode::Awake).await;
    leader.session.compact(&[]).await.unwrap();
    assert_eq!(bench.number("select last_value from pg2kv.bell").await, 0);
    bench.sql("insert into items values (2)").await;
    // Our own ring comes after any that the insert could have sent.
    bench.sql("select pg_notify('pg2kv', '')").await;
    soon(leader.doorbell.rung()).await.expect("rung");
    let more = futures_util::FutureExt::now_or_never(leader.doorbell.rung());
    assert!(more.is_none(), "only ours");
}
