//! A database that is written to: one table for each way to learn of changes, all alike but for what
//! each way puts on them, and whoever takes the changes while they are written.
//!
//! The server waits for the disk as a real one does. No checkpoint falls into a run, so that none is
//! charged to whoever happens to write then.

use std::future::poll_fn;
use std::process::Stdio;

use pg2kv::throwaway::Options;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::pgbench::{Load, program};
use crate::support::kv::KvProcess;
use crate::support::postgres::{Server, connect};
use crate::support::process::Process;
use crate::support::wait;
use crate::support::world::{NAMESPACE, Plan, Sync, World};

/// Rows of each table.
pub(crate) const ROWS: u32 = 100_000;
/// Clients that write at the same time.
const CLIENTS: u32 = 16;

/// One table, as one has it for users; the others are like it.
const TABLE: &str = "
    create table public.users_plain (
      id int primary key,
      username text not null unique,
      email text not null,
      plan text not null,
      flags jsonb not null,
      level int not null,
      logins int not null
    )";

/// What people put on them.
const TRIGGERS: &str = "
    create function public.tell() returns trigger language plpgsql as $$
    begin
      perform pg_notify('users', row_to_json(new)::text);
      return null;
    end $$;
    create trigger tell after update on public.users_notify
      for each row execute function public.tell();

    create table public.outbox (
      id bigint generated always as identity primary key,
      user_id int not null,
      at timestamptz not null default now()
    );
    create function public.note() returns trigger language plpgsql as $$
    begin
      insert into public.outbox (user_id) values (new.id);
      return null;
    end $$;
    create function public.note_and_ring() returns trigger language plpgsql as $$
    begin
      insert into public.outbox (user_id) values (new.id);
      notify outbox;
      return null;
    end $$;
    create function public.note_all() returns trigger language plpgsql as $$
    begin
      insert into public.outbox (user_id) select id from changed;
      return null;
    end $$;
    create function public.nothing() returns trigger language plpgsql as $$
    begin
      return null;
    end $$;
    create trigger nothing after update on public.users_empty
      for each row execute function public.nothing();
    create trigger note after update on public.users_outbox
      for each row execute function public.note_and_ring();
    create trigger note after update on public.users_row
      for each row when (old.* is distinct from new.*) execute function public.note();
    create trigger note after update on public.users_statement
      referencing new table as changed
      for each statement execute function public.note_all();

    create publication bench for table public.users_slot;
";

const SYNCS: &[Sync] = &[Sync {
    name: "users",
    toml: "table = \"public.users_pg2kv\"\nkey = \"user:{id}\"\n\
           columns = [\"username\", \"plan\", \"flags\", \"level\"]",
    namespace: NAMESPACE,
    oracle: "select 'user:' || id, json_build_object(
               'username', username, 'plan', plan, 'flags', flags, 'level', level)::text
             from public.users_pg2kv",
}];

/// A way to learn of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Nobody learns of them: what everything is compared with.
    Plain,
    /// The daemon runs and writes to KV.
    Daemon,
    /// Our triggers, and no daemon.
    TriggersAlone,
    /// A row trigger notifies of each row; somebody listens.
    NotifyRow,
    /// A row trigger fills an outbox and notifies; somebody empties it.
    OutboxNotify,
    /// Logical decoding, and somebody who reads it.
    Slot,
    /// A row trigger that does nothing: the least that any costs.
    EmptyTrigger,
    /// A row trigger fills an outbox, and nobody reads it.
    RowTrigger,
    /// A statement trigger does, from its transition table.
    StatementTrigger,
}

impl Way {
    /// What the table of figures calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "no trigger",
            Self::Daemon => "pg2kv",
            Self::TriggersAlone => "pg2kv, no daemon",
            Self::NotifyRow => "pg_notify(row_to_json)",
            Self::OutboxNotify => "outbox and NOTIFY",
            Self::Slot => "replication slot",
            Self::EmptyTrigger => "empty row trigger",
            Self::RowTrigger => "bare row trigger",
            Self::StatementTrigger => "bare statement trigger",
        }
    }

    /// The table that it watches.
    fn table(self) -> &'static str {
        match self {
            Self::Plain => "public.users_plain",
            Self::Daemon | Self::TriggersAlone => "public.users_pg2kv",
            Self::NotifyRow => "public.users_notify",
            Self::OutboxNotify => "public.users_outbox",
            Self::Slot => "public.users_slot",
            Self::EmptyTrigger => "public.users_empty",
            Self::RowTrigger => "public.users_row",
            Self::StatementTrigger => "public.users_statement",
        }
    }

    /// One for each table.
    const ALL: [Self; 8] = [
        Self::Plain,
        Self::Daemon,
        Self::NotifyRow,
        Self::OutboxNotify,
        Self::Slot,
        Self::EmptyTrigger,
        Self::RowTrigger,
        Self::StatementTrigger,
    ];
}

/// Everything that runs.
pub(crate) struct Stage {
    pub(crate) world: World,
    kv: KvProcess,
}

impl Stage {
    /// Starts the servers and fills the tables, their pages to `fillfactor` percent.
    pub(crate) async fn start(fillfactor: u8) -> Self {
        let mut tables = format!("{TABLE} with (fillfactor = {fillfactor});");
        for way in &Way::ALL[1..] {
            let table = way.table();
            tables.push_str(&format!(
                "create table {table} (like public.users_plain including all)
                 with (fillfactor = {fillfactor});"
            ));
        }
        let (world, kv) = tokio::join!(
            World::start_on(
                options(),
                Plan {
                    sql: tables.leak(),
                    syncs: SYNCS,
                    settings: &[],
                    limits: None,
                },
            ),
            KvProcess::start(&["--no-limits"]),
        );
        for way in Way::ALL {
            fill(&world, way.table()).await;
        }
        world.sql(TRIGGERS).await;
        let stage = Self { world, kv };
        // The first sync is not what is measured.
        stage.reader(Way::Daemon).await.end(&stage).await;
        stage
    }

    /// Makes each commit wait for so long before it flushes; 0 is as fast as the disk is.
    pub(crate) async fn commits_take(&self, micros: u32) {
        let delay = format!("alter system set commit_delay = {micros}");
        for sql in [
            delay.as_str(),
            "alter system set commit_siblings = 0",
            "select pg_reload_conf()",
        ] {
            self.world.sql(sql).await;
        }
    }

    /// Transactions a second of clients that update random rows, one each, while this way's reader
    /// reads.
    pub(crate) async fn writers(&self, way: Way, assignment: &str, seconds: u32) -> f64 {
        let reader = self.reader(way).await;
        let table = way.table();
        let load = Load {
            url: &self.world.postgres.admin_url(),
            script: &format!(
                "\\set id random(1, {ROWS})\n\\set value random(1, 1000000000)\n\
                 update {table} set {assignment} where id = :id;\n"
            ),
            clients: CLIENTS,
            rate: None,
            seconds,
        };
        let rate = load.run().await;
        reader.end(self).await;
        rate
    }

    async fn reader(&self, way: Way) -> Reader {
        match way {
            Way::Plain | Way::EmptyTrigger | Way::RowTrigger | Way::StatementTrigger => {
                Reader::Nobody
            }
            Way::TriggersAlone => {
                // As some seconds after the daemon has gone: it had said until when it would sleep.
                self.world.sql("select setval('pg2kv.bell', 0)").await;
                Reader::Nobody
            }
            Way::Daemon => {
                let settings = self.world.default_settings(&self.kv.base_url);
                let daemon = self.world.daemon_with("bench", &settings);
                daemon.leads().await;
                // What a start takes is not what writers pay.
                let asleep = "select (last_value > 0)::int::int8 from pg2kv.bell";
                wait::until("the daemon to sleep", async || {
                    (self.world.number(asleep).await == 1).then_some(())
                })
                .await;
                Reader::Daemon(daemon)
            }
            Way::NotifyRow => Reader::Listener(self.listener("users", "").await),
            Way::OutboxNotify => {
                let delete = "delete from public.outbox where id in (
                    select id from public.outbox order by id limit 1000 for update skip locked)";
                Reader::Listener(self.listener("outbox", delete).await)
            }
            Way::Slot => Reader::Slot(self.receiver().await),
        }
    }

    /// Listens, and runs a statement for what it heard; one for all that it heard meanwhile.
    async fn listener(&self, channel: &str, statement: &'static str) -> [JoinHandle<()>; 2] {
        let url = self.world.postgres.admin_url();
        let (client, mut connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        let (heard, mut hears) = mpsc::unbounded_channel();
        let hearing = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notification(_) = message {
                    let _ = heard.send(());
                }
            }
        });
        client
            .batch_execute(&format!("listen {channel}"))
            .await
            .unwrap();
        let taking = tokio::spawn(async move {
            while hears.recv().await.is_some() {
                while hears.try_recv().is_ok() {}
                if !statement.is_empty() {
                    client.execute(statement, &[]).await.unwrap();
                }
            }
        });
        [hearing, taking]
    }

    async fn receiver(&self) -> Child {
        let create = "select pg_create_logical_replication_slot('bench', 'pgoutput')";
        self.world.sql(create).await;
        let receiver = Command::new(program("pg_recvlogical"))
            .args(["--slot=bench", "--start", "--no-loop", "--file=/dev/null"])
            .args([
                "--option=proto_version=1",
                "--option=publication_names=bench",
            ])
            .arg(format!("--dbname={}", self.world.postgres.admin_url()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        self.slot_becomes(true).await;
        receiver
    }

    async fn slot_becomes(&self, active: bool) {
        let look = format!(
            "select count(*) from pg_replication_slots where slot_name = 'bench' and active = {active}"
        );
        wait::until("the replication slot", async || {
            (self.world.number(&look).await == 1).then_some(())
        })
        .await;
    }

    /// Milliseconds that one UPDATE of every row takes, its commit included.
    pub(crate) async fn update_of_all(&self, way: Way) -> f64 {
        let table = way.table();
        let reader = self.reader(way).await;
        let writer = connect(&self.world.postgres.admin_url()).await;
        let update = writer
            .prepare(&format!("update {table} set level = level + 1"))
            .await
            .unwrap();
        let began = std::time::Instant::now();
        let rows = writer.execute(&update, &[]).await.unwrap();
        let took = began.elapsed().as_secs_f64() * 1e3;
        assert_eq!(rows, u64::from(ROWS));
        reader.end(self).await;
        // The next one finds the table as this one did.
        self.world.sql(&format!("vacuum {table}")).await;
        took
    }
}

/// Who takes the changes.
enum Reader {
    Nobody,
    Daemon(Process),
    Listener([JoinHandle<()>; 2]),
    Slot(Child),
}

impl Reader {
    /// Lets it go, and leaves nothing of this turn to the next.
    async fn end(self, stage: &Stage) {
        match self {
            Self::Nobody => {}
            Self::Daemon(daemon) => {
                stage.world.quiet().await;
                daemon.stop().await;
            }
            Self::Listener([hearing, taking]) => {
                // Who takes needs the connection, which goes with who hears.
                for task in [taking, hearing] {
                    task.abort();
                    let _ = task.await;
                }
            }
            Self::Slot(mut child) => {
                child.kill().await.unwrap();
                stage.slot_becomes(false).await;
                stage
                    .world
                    .sql("select pg_drop_replication_slot('bench')")
                    .await;
            }
        }
        stage
            .world
            .sql("truncate pg2kv.outbox, public.outbox")
            .await;
    }
}

/// A server that waits for the disk.
pub(crate) fn options() -> Options {
    let mut options = Server::Installed.options();
    options.fsync = true;
    options.settings.extend(
        [
            // For the replication slot; every other way is measured with it too.
            ("wal_level", "logical"),
            ("shared_buffers", "256MB"),
            ("checkpoint_timeout", "1h"),
            ("min_wal_size", "1GB"),
            ("max_wal_size", "16GB"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    options
}

async fn fill(world: &World, table: &str) {
    let insert = format!(
        "insert into {table}
         select n, 'user' || n, 'user' || n || '@example.com',
           (array['free', 'pro', 'team'])[1 + n % 3],
           jsonb_build_object('beta', n % 2 = 0, 'theme', 'dark'), n, 0
         from generate_series(1, {ROWS}) n"
    );
    world.sql(&insert).await;
    world.sql(&format!("vacuum analyze {table}")).await;
}
