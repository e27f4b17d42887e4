//! `--dry-run` changes nothing, of whatever verb, and the same verb without it does.

use crate::audit::Place;

const TABLE: &str = "create table item (id int primary key, n int);";
const SYNC: &str = "[sync.item]\ntable = \"public.item\"\nkey = \"item:{id}\"\ncolumns = [\"n\"]\n";

/// Rows of all our tables, positions of our sequences, and the state of the triggers.
const EVERYTHING: &str = "
    select string_agg(line, e'\\n' order by line) from (
      select c.relname || ': ' || query_to_xml(
        case c.relkind when 'S' then format('select last_value, is_called from pg2kv.%I', c.relname)
                       else format('select t from pg2kv.%I t order by t::text', c.relname) end,
        true, true, '')::text as line
      from pg_class c
      where c.relnamespace = 'pg2kv'::regnamespace and c.relkind in ('r', 'S')
      union all
      select tgname || ': ' || tgenabled::text from pg_trigger where not tgisinternal
    ) as lines";

impl Place {
    async fn everything(&self) -> String {
        let row = self
            .database
            .connect()
            .await
            .query_one(EVERYTHING, &[])
            .await;
        let kv = self.emulator.store().snapshot(crate::cli::NAMESPACE);
        format!("{}\n{kv:?}", row.unwrap().get::<_, String>(0))
    }
}

#[tokio::test]
async fn a_rehearsal_changes_nothing() {
    let place = Place::new("rehearsal", TABLE, SYNC).await;
    place
        .sql("insert into item select n, n from generate_series(1, 5) n")
        .await;
    place.settled().await;
    place.tamper("item:99", Some("orphan"), true).await;
    place
        .sql(
            "insert into pg2kv.dead_letter (sync, key, reason) values ('item', '[\"1\"]', 'rejected');
             update pg2kv.sync set keys_estimate = 5;
             alter table item disable trigger zzz_pg2kv_item_update",
        )
        .await;
    let admin = place.database.url();
    let install = ["install", "--database-url", &admin];
    // The first of all sees KV as it is; after a resync was asked for, differences count as pending.
    // Exit code, what is rehearsed, what is said of it, and how it is done in earnest.
    let cases: [(i32, &[&str], &str, &[&str]); 6] = [
        (
            1,
            &["verify", "item", "--repair"],
            "drift  would ask the daemon to mend 6 keys; nothing was changed\n",
            &[],
        ),
        (
            0,
            &["resync", "item"],
            "would write every document of item again, about 5; nothing was changed\n",
            &["--no-wait"],
        ),
        (
            0,
            &["dead-letters", "retry", "item"],
            "would retry 1 key\n",
            &[],
        ),
        (
            0,
            &["dead-letters", "drop", "item"],
            "would drop 1 dead letter\n",
            &["--yes"],
        ),
        (
            0,
            &["approve-deletes", "item"],
            "would let any number of keys of item be deleted from KV until ",
            &[],
        ),
        (0, &install, "select pg2kv.watch(\n  'public.item',", &[]),
    ];
    for (code, verb, says, earnest) in cases {
        let before = place.everything().await;
        let said = place.says(code, &[verb, &["--dry-run"]].concat()).await;
        assert!(said.contains(says), "{verb:?}: {said}");
        assert_eq!(
            place.everything().await,
            before,
            "{verb:?} changed something"
        );
        place.says(code, &[verb, earnest].concat()).await;
        assert_ne!(place.everything().await, before, "{verb:?} in earnest");
    }
}

#[tokio::test]
async fn a_rehearsal_fails_as_the_verb_would() {
    let place = Place::new("stranger", TABLE, SYNC).await;
    for verb in ["resync", "approve-deletes"] {
        let output = place.pg2kv(&[verb, "itme", "--dry-run"]).await;
        assert_eq!(output.status.code(), Some(1), "{verb}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("no sync is named 'itme'\n  help: "), "{said}");
    }
    // Alone it would say nothing that verify does not say anyway.
    let output = place.pg2kv(&["verify", "--dry-run"]).await;
    assert_eq!(output.status.code(), Some(2));
}
