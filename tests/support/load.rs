//! Writers: random transactions of every kind that SQL offers, from a seed.

use std::pin::pin;

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio_postgres::{Client, Error};

use super::world::{NAMESPACE, Sync};

/// Tables that refer to each other, and one in partitions.
pub(crate) const TABLES: &str = "
    create table public.item (
      id int primary key,
      label text not null,
      n int not null,
      body jsonb not null default '{}',
      note text
    );
    create table public.part (
      item int not null references public.item on update cascade on delete cascade,
      no int not null,
      qty int not null,
      primary key (item, no)
    );
    create table public.event (
      region text not null,
      id int not null,
      v int not null,
      primary key (region, id)
    ) partition by list (region);
    create table public.event_eu partition of public.event for values in ('eu');
    create table public.event_us partition of public.event for values in ('us');
    create table public.event_rest partition of public.event default;
    insert into public.item select n, 'first', n from generate_series(1, 100) n;
    insert into public.part select n, 1, n from generate_series(1, 50) n;
    insert into public.event
      select (array['eu', 'us', 'asia'])[1 + n % 3], n, n from generate_series(1, 60) n;
";

/// The syncs of these tables. Items with a negative number are not published.
pub(crate) const SYNCS: &[Sync] = &[
    Sync {
        name: "item",
        toml: "table = \"public.item\"\nkey = \"item:{id}\"\ncolumns = [\"label\", \"n\", \"body\"]\n\
               where = \"n >= 0\"\nwatch = [\"label\", \"n\", \"body\"]",
        namespace: NAMESPACE,
        oracle: "select 'item:' || id,
                   json_build_object('label', label, 'n', n, 'body', body)::text
                 from public.item where n >= 0",
    },
    Sync {
        name: "part",
        toml: "table = \"public.part\"\nkey = \"part:{item}:{no}\"\ncolumns = [\"qty\"]",
        namespace: NAMESPACE,
        oracle: "select 'part:' || item || ':' || no, json_build_object('qty', qty)::text
                 from public.part",
    },
    Sync {
        name: "event",
        toml: "table = \"public.event\"\nkey = \"event:{region}:{id}\"\ncolumns = [\"v\"]",
        namespace: NAMESPACE,
        oracle: "select 'event:' || region || ':' || id, json_build_object('v', v)::text
                 from public.event",
    },
];

/// Items have numbers from 1 to this.
const ITEMS: i32 = 300;
/// The only errors that a writer may see: it met another writer, or the server went away. Anything
/// else would be our triggers' doing.
const EXPECTED: [&str; 8] = [
    "23505", // unique violation
    "23503", // foreign key violation
    "40P01", // deadlock
    "40001", // serialization failure
    "57P01", // terminated by an administrator
    "57P02", // the server crashed
    "57P03", // the server starts or stops
    "25P02", // an earlier statement failed
];

/// One client that writes.
pub(crate) struct Writer {
    rng: fastrand::Rng,
    /// Whether whole tables may be emptied.
    truncates: bool,
    /// Rows changed in transactions that committed.
    pub(crate) changes: u64,
    /// Transactions that were rolled back or failed.
    pub(crate) aborted: u64,
}

impl Writer {
    pub(crate) fn new(seed: u64, truncates: bool) -> Self {
        Self {
            rng: fastrand::Rng::with_seed(seed),
            truncates,
            changes: 0,
            aborted: 0,
        }
    }

    /// One transaction, committed or not. Panics on an error that no writer should see.
    pub(crate) async fn transaction(&mut self, client: &Client) {
        match self.try_transaction(client).await {
            Ok(Some(changes)) => self.changes += changes,
            Ok(None) => self.aborted += 1,
            Err(error) => {
                self.aborted += 1;
                let code = error.code().map(|code| code.code());
                let expected = code.map_or(error.is_closed() || client.is_closed(), |code| {
                    EXPECTED.contains(&code)
                });
                assert!(expected, "a writer failed: {error:?}");
                // The connection may be gone; then there is nothing to roll back.
                let _ = client.batch_execute("rollback").await;
            }
        }
    }

    async fn try_transaction(&mut self, client: &Client) -> Result<Option<u64>, Error> {
        client.batch_execute("begin").await?;
        let mut changes = 0;
        for _ in 0..self.rng.u8(1..5) {
            if self.rng.u8(..4) == 0 {
                client.batch_execute("savepoint here").await?;
                let inner = self.operation(client).await?;
                if self.rng.bool() {
                    client.batch_execute("rollback to here").await?;
                } else {
                    changes += inner;
                }
                client.batch_execute("release here").await?;
            } else {
                changes += self.operation(client).await?;
            }
        }
        if self.rng.u8(..6) == 0 {
            client.batch_execute("rollback").await?;
            return Ok(None);
        }
        client.batch_execute("commit").await?;
        Ok(Some(changes))
    }

    /// One statement, or a few that belong together; returns the rows that it changed.
    async fn operation(&mut self, client: &Client) -> Result<u64, Error> {
        let rng = &mut self.rng;
        let (a, b) = (rng.i32(1..=ITEMS), rng.i32(1..=ITEMS));
        let (n, few) = (rng.i32(-20..1_000), rng.i32(0..12));
        let region = ["eu", "us", "asia"][rng.usize(..3)];
        let statements: Vec<String> = match rng.u8(..20) {
            0..=2 => vec![format!(
                "insert into public.item values ({a}, 'one', {n}) on conflict (id) do update \
                 set n = excluded.n, label = excluded.label"
            )],
            3 => vec![format!(
                "insert into public.item select g, 'many', {n} + g from generate_series({a}, {a} + {few}) g \
                 on conflict (id) do update set n = excluded.n"
            )],
            4..=6 => vec![format!(
                "update public.item set n = n + 1, body = jsonb_build_object('at', {n}) \
                 where id between {a} and {a} + {few}"
            )],
            7 => vec![format!(
                "delete from public.item where id between {a} and {a} + 2"
            )],
            8 => vec![format!(
                "update public.item set id = {b} where id = {a} \
                 and not exists (select from public.item where id = {b})"
            )],
            9 => vec![
                format!("update public.item set id = -{a} where id = {a}"),
                format!("update public.item set id = {a} where id = {b} and {a} <> {b}"),
                format!("update public.item set id = {b} where id = -{a}"),
            ],
            10 => vec![format!(
                "insert into public.part select id, no, {n} from public.item, generate_series(1, 2) no \
                 where id between {a} and {a} + {few} on conflict (item, no) do update set qty = excluded.qty"
            )],
            11 => vec![
                format!(
                    "update public.part set qty = qty + 1 where item between {a} and {a} + {few}"
                ),
                format!("delete from public.part where item = {b}"),
            ],
            12 => vec![format!(
                "insert into public.event values ('{region}', {a}, {n}) on conflict (region, id) do update \
                 set v = excluded.v"
            )],
            13 => vec![format!(
                "update public.event e set region = '{region}' where id = {a} and not exists \
                 (select from public.event o where o.id = e.id and o.region = '{region}')"
            )],
            14 => vec![
                format!("update public.event_eu set v = {n} where id between {a} and {a} + {few}"),
                format!("delete from public.event_us where id = {b}"),
            ],
            15 => vec![format!(
                "merge into public.item t using (select g as id, {n} + g as n \
                 from generate_series({a}, {a} + {few}) g) s on t.id = s.id \
                 when matched and s.n % 5 = 0 then delete \
                 when matched then update set n = s.n \
                 when not matched then insert (id, label, n) values (s.id, 'merged', s.n)"
            )],
            16 => vec![format!(
                "with gone as (delete from public.item where id = {a} returning label, n) \
                 insert into public.item select {a} + 1000, label, n from gone \
                 on conflict (id) do update set n = excluded.n"
            )],
            17 => vec![format!(
                "update public.item set note = 'unwatched {n}' where id between {a} and {a} + 20"
            )],
            18 => return self.copy(client, b, few).await,
            _ if self.truncates && self.rng.u8(..10) == 0 => {
                let table = ["public.event_us", "public.event", "public.item cascade"];
                vec![format!("truncate {}", table[self.rng.usize(..3)])]
            }
            _ => vec![format!(
                "update public.item set label = 'l{n}' where id = {a}"
            )],
        };
        let mut changes = 0;
        for statement in statements {
            changes += client.execute(&statement, &[]).await?;
        }
        Ok(changes)
    }

    async fn copy(&mut self, client: &Client, first: i32, few: i32) -> Result<u64, Error> {
        let last = first + few;
        let delete = format!("delete from public.item where id between {first} and {last}");
        let deleted = client.execute(&delete, &[]).await?;
        let n = self.rng.i32(..1_000);
        let lines: String = (first..=last)
            .map(|id| format!("{id}\tcopied\t{n}\t{{}}\n"))
            .collect();
        let sink = client
            .copy_in("copy public.item (id, label, n, body) from stdin")
            .await?;
        let mut sink = pin!(sink);
        sink.send(Bytes::from(lines)).await?;
        Ok(deleted + sink.finish().await?)
    }
}
