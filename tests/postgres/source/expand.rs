//! Expanding markers of related tables into keys.

use pg2kv::change::{Change, Changed, SyncId};
use pg2kv::ledger::FetchMode::{Awake, FallingAsleep};
use pg2kv::ledger::{Expanded, Marker};
use pg2kv::source::{Grade, Kind, SyncSource, check};
use pg2kv::sql_kit::{self, RelatedSpec, Schema, WatchSpec};

use super::{Bench, Leader, items, texts};
use crate::support::wait;

/// A related table `groups`, matched by the items' column `extra`.
const GROUPS: &str = "
    create table public.groups (id int primary key, name text);
    insert into public.groups values (1), (2);
    create index on public.items (extra, id);
    insert into public.items select n, 'p', 1 + n % 2 from generate_series(1, 10) n;
    select pg2kv.watch_related('public.groups', 'items', 'groups', '{\"extra\": \"id\"}');
    delete from pg2kv.outbox;";

fn related(name: &str, matches: &[(&str, &str)]) -> RelatedSpec {
    let pair = |(own, theirs): &(&str, &str)| ((*own).to_owned(), (*theirs).to_owned());
    RelatedSpec {
        name: name.to_owned(),
        table: format!("public.{name}"),
        matches: matches.iter().map(pair).collect(),
        columns: None,
    }
}

fn grouped() -> SyncSource {
    SyncSource {
        related: vec![related("groups", &[("extra", "id")])],
        ..items("plan")
    }
}

fn markers(changes: &[Change]) -> Vec<Marker> {
    let marker = |change: &Change| match &change.what {
        Changed::Related(related) => Some(Marker {
            id: change.id,
            related: related.clone(),
        }),
        _ => None,
    };
    changes.iter().filter_map(marker).collect()
}

impl Leader {
    async fn expand(&self, markers: &[Marker], limit: usize) -> Expanded {
        let expanded = self.session.expand(SyncId(0), markers, limit).await;
        expanded.unwrap()
    }

    async fn markers(&self) -> Vec<Marker> {
        markers(&self.fetch(Awake).await.changes)
    }
}

#[tokio::test]
async fn a_marker_becomes_keys_in_order_and_keeps_its_place_and_its_age() {
    let bench = Bench::new().await;
    bench.sql(GROUPS).await;
    let leader = bench.lead(&[grouped()]).await;
    bench.sql("update groups set name = 'x' where id = 2").await;
    bench
        .sql("update pg2kv.outbox set at = at - interval '1 hour'")
        .await;
    let first = leader.markers().await;
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].related.values.as_str(), "[2]");

    let expanded = leader.expand(&first, 2).await;
    let changes = leader.fetch(Awake).await.changes;
    assert_eq!((expanded.keys, expanded.done), (2, 0));
    assert_eq!(expanded.last, changes.iter().map(|change| change.id).max());
    assert_eq!(texts(&changes[..2]), ["[1]", "[3]"]);
    let aged = |change: &Change| change.age.as_secs() >= 3_600;
    assert!(changes.iter().all(aged), "{changes:?}");
    let second = markers(&changes);
    let after = second[0].related.after.as_ref().unwrap();
    assert_eq!(after.as_str(), "[3]");

    // A step that was done, of which the reply was lost, is not done again.
    let again = leader.expand(&first, 2).await;
    assert_eq!((again.keys, again.last), (0, None));

    let expanded = leader.expand(&second, 10).await;
    assert_eq!((expanded.keys, expanded.done), (3, 1));
    let changes = leader.fetch(Awake).await.changes;
    assert_eq!(texts(&changes), ["[5]", "[7]", "[9]"]);
    let nobody = leader.expand(&[], 10).await;
    assert_eq!(nobody, Expanded::default());
    assert_eq!(bench.number("select count(*) from pg2kv.outbox").await, 5);
}

#[tokio::test]
async fn several_markers_are_one_transaction() {
    let bench = Bench::new().await;
    bench.sql(GROUPS).await;
    let leader = bench.lead(&[grouped()]).await;
    bench
        .sql("insert into groups values (3); update groups set name = 'x'")
        .await;
    let all = leader.markers().await;
    assert_eq!(all.len(), 4);
    let expanded = leader.expand(&all, 100).await;
    assert_eq!((expanded.keys, expanded.done), (10, 4));

    bench.sql("update groups set name = 'y'").await;
    let mut all = leader.markers().await;
    all[1].related.table = "nobody".into();
    let before = bench.number("select count(*) from pg2kv.outbox").await;
    let error = leader
        .session
        .expand(SyncId(0), &all, 100)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Relation);
    assert!(
        error.to_string().contains("no related table nobody"),
        "{error}"
    );
    all[1].related.table = "groups".into();
    all[1].related.values = super::key("[\"no number\"]");
    let error = leader
        .session
        .expand(SyncId(0), &all, 100)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Row);
    let after = bench.number("select count(*) from pg2kv.outbox").await;
    assert_eq!(after, before);
    // The connection is of use after that.
    all.remove(1);
    assert_eq!(leader.expand(&all, 100).await.done, 2);
}

#[tokio::test]
async fn an_epoch_that_is_over_expands_nothing() {
    let bench = Bench::new().await;
    bench.sql(GROUPS).await;
    let leader = bench.lead(&[grouped()]).await;
    bench.sql("update groups set name = 'x' where id = 1").await;
    let all = leader.markers().await;
    bench.sql("update pg2kv.lease set epoch = epoch + 1").await;
    let error = leader
        .session
        .expand(SyncId(0), &all, 10)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Fenced);
    let left = "select count(*) from pg2kv.outbox where key ? 'related'";
    assert_eq!(bench.number(left).await, 1);
    assert_eq!(bench.number("select count(*) from pg2kv.outbox").await, 1);
}

/// The ids that an expansion draws may show later than higher ones.
#[tokio::test]
async fn keys_that_an_expansion_commits_late_are_fetched() {
    let bench = Bench::new().await;
    bench.sql(GROUPS).await;
    bench
        .sql(
            "create function public.wait_for_the_test() returns trigger language plpgsql as
               'begin perform pg_advisory_xact_lock(7); return null; end';
             create trigger wait_for_the_test after insert on pg2kv.outbox for each row
               when (new.key = '[5]') execute function public.wait_for_the_test()",
        )
        .await;
    let leader = bench.lead(&[grouped()]).await;
    bench.sql("update groups set name = 'x' where id = 2").await;
    let all = leader.markers().await;
    bench.sql("select pg_advisory_lock(7)").await;
    let writer = async {
        wait::until("the expansion to wait", async || {
            let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted";
            (bench.number(waits).await > 0).then_some(())
        })
        .await;
        bench.sql("insert into items values (100)").await;
        let mut seen = texts(&leader.fetch(Awake).await.changes);
        // Whoever looks now must learn that somebody is about to write.
        let asleep = leader.fetch(FallingAsleep).await;
        assert!(asleep.writers);
        seen.extend(texts(&leader.fetch(Awake).await.changes));
        assert_eq!(seen, ["[100]"]);
        bench.sql("select pg_advisory_unlock(7)").await;
    };
    let (expanded, ()) = tokio::join!(leader.expand(&all, 100), writer);
    assert_eq!(expanded.keys, 5);
    let mut seen = texts(&leader.fetch(FallingAsleep).await.changes);
    seen.extend(texts(&leader.fetch(FallingAsleep).await.changes));
    assert_eq!(seen, ["[1]", "[3]", "[5]", "[7]", "[9]"]);
}

#[tokio::test]
async fn values_of_every_type_find_their_rows() {
    let bench = Bench::new().await;
    bench
        .sql("create type public.mood as enum ('glad', 'so so')")
        .await;
    for (number, (own, theirs, value, other)) in [
        ("int", "bigint", "7", "8"),
        ("smallint", "bigint", "7", "3000000000"),
        ("bigint", "int", "7", "8"),
        ("numeric", "numeric(10,2)", "1.50", "1.51"),
        ("text", "varchar(9)", "'a\"b\\\\ é'", "''"),
        ("char(5)", "char(5)", "'ab'", "'abc'"),
        (
            "uuid",
            "uuid",
            "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
            "gen_random_uuid()",
        ),
        (
            "timestamptz",
            "timestamptz",
            "'2026-02-03 04:05:06.7+02'",
            "now()",
        ),
        ("bytea", "bytea", "'\\x00ff'", "'\\x00'"),
        ("date", "date", "'infinity'", "'2026-02-03'"),
        ("bool", "bool", "true", "false"),
        ("float8", "float8", "0.1::float8 + 0.2", "0.3"),
        ("inet", "inet", "'10.0.0.1/8'", "'10.0.0.1'"),
        ("mood", "mood", "'so so'", "'glad'"),
    ]
    .into_iter()
    .enumerate()
    {
        let (sync, table) = (format!("t{number}"), format!("r{number}"));
        bench
            .sql(&format!(
                "create table public.{sync} (id int primary key, m {own});
                 create table public.{table} (m {theirs});
                 insert into public.{sync} values (1, {value}), (2, null), (3, {value});
                 create index on public.{sync} (m);"
            ))
            .await;
        let related = vec![related(&table, &[("m", "m")])];
        let spec = WatchSpec {
            sync: sync.clone(),
            table: format!("public.{sync}"),
            key_columns: vec!["id".to_owned()],
            columns: None,
            collect: false,
            shards: None,
            related: related.clone(),
        };
        bench.sql(&sql_kit::watch(&Schema::default(), &spec)).await;
        bench.sql("delete from pg2kv.outbox").await;
        let source = SyncSource {
            name: sync.clone(),
            table: spec.table,
            related,
            ..items("m")
        };
        let leader = bench.lead(&[source]).await;
        bench
            .sql(&format!(
                "insert into public.{table} values ({value}), (null), ({other})"
            ))
            .await;
        let all = leader.markers().await;
        assert_eq!(all.len(), 2, "{own}: null matches nothing");
        let expanded = leader.expand(&all, 10).await;
        assert_eq!((expanded.keys, expanded.done), (2, 2), "{own} and {theirs}");
        assert_eq!(
            texts(&leader.fetch(Awake).await.changes),
            ["[1]", "[3]"],
            "{own} and {theirs}"
        );
        leader.candidate.release().await;
        bench.sql("delete from pg2kv.outbox").await;
    }
}

#[tokio::test]
async fn check_says_what_is_missing_for_a_related_table() {
    let bench = Bench::new().await;
    bench.sql(GROUPS).await;
    let told = async |sync: &SyncSource| {
        let findings = check(&bench.settings, std::slice::from_ref(sync)).await;
        let of_sync = findings.into_iter().filter(|f| f.what.starts_with("sync "));
        of_sync
            .filter(|finding| finding.grade != Grade::Fine)
            .map(|finding| format!("{}: {}; {:?}", finding.what, finding.detail, finding.hint))
            .collect::<Vec<_>>()
    };
    assert_eq!(told(&grouped()).await, [""; 0]);
    for (damage, repair, says) in [
        (
            "drop index items_extra_id_idx",
            "create index on items (extra, id)",
            "create index concurrently on public.items (extra, id);",
        ),
        (
            "alter table groups disable trigger zzz_pg2kv_items$groups_row",
            "alter table groups enable always trigger zzz_pg2kv_items$groups_row",
            "is disabled",
        ),
        (
            "alter table groups rename to old; create table groups (id int primary key, name text)",
            "drop table groups; alter table old rename to groups",
            "related table groups: another table is watched under this name",
        ),
        (
            "select pg2kv.watch_related('groups', 'items', 'groups', '{\"extra\": \"id\"}', '{name}')",
            "select pg2kv.watch_related('groups', 'items', 'groups', '{\"extra\": \"id\"}')",
            "related table groups: fewer columns are watched than configured",
        ),
        (
            "select pg2kv.watch_related('groups', 'items', 'groups', '{\"id\": \"id\"}')",
            "select pg2kv.watch_related('groups', 'items', 'groups', '{\"extra\": \"id\"}')",
            "related table groups: other columns are matched than configured",
        ),
        (
            "select pg2kv.unwatch_related('items', 'groups')",
            "select pg2kv.watch_related('groups', 'items', 'groups', '{\"extra\": \"id\"}')",
            "related table groups: it is not watched",
        ),
    ] {
        bench.sql(damage).await;
        let found = told(&grouped()).await;
        assert!(
            found.len() == 1 && found[0].contains(says),
            "after {damage}: {found:?}"
        );
        bench.sql(repair).await;
        assert_eq!(told(&grouped()).await, [""; 0], "after {repair}");
    }
    let gone = SyncSource {
        related: vec![related("groups", &[("nope", "id")])],
        ..grouped()
    };
    let found = told(&gone).await;
    assert!(
        found.iter().any(|f| f.contains("no column nope")),
        "{found:?}"
    );
}
