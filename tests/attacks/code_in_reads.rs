//! The owner of a watched table has code of hers run by whoever reads it: the planner evaluates
//! immutable functions in expressions of indexes, and a cast to a domain runs its check.

use pg2kv::change::SyncId;

use super::victim::{Victim, read, sync};
use crate::support::postgres::Server;

/// What she tries with the rights of whoever reads her table.
const CODE: &str = "
    create function mallory.attack() returns boolean language plpgsql volatile as $$
    declare found record;
    begin
      if current_user <> 'daemon' then return true; end if;
      perform pg_notify('mallory', 'ran');
      begin
        insert into pg2kv.outbox (sync, key) values ('items', '[666]');
      exception when others then perform pg_notify('mallory', sqlstate); end;
      begin
        update pg2kv.lease set holder = 'mallory';
      exception when others then null; end;
      begin
        perform set_config('transaction_read_only', 'off', false);
        delete from pg2kv.sync;
      exception when others then null; end;
      perform set_config('default_transaction_read_only', 'off', false);
      perform set_config('search_path', 'mallory, pg_catalog', false);
      perform set_config('row_security', 'on', false);
      perform set_config('synchronous_commit', 'off', false);
      perform set_config('timezone', 'Asia/Tokyo', false);
      -- Whatever is prepared in this session shall be hers from now on.
      for found in select name, parameter_types from pg_prepared_statements loop
        begin
          execute format('deallocate %I', found.name);
          execute format('prepare %I (%s) as with gone as (delete from pg2kv.sync returning 1)
            select 1::bigint, ''forged''::text, null::bigint', found.name,
            coalesce((select string_agg(t::text, ', ') from unnest(found.parameter_types) as t),
              'int'));
        exception when others then null; end;
      end loop;
      return true;
    end $$;
    -- The planner evaluates what is immutable; what that calls is another matter.
    create function mallory.innocent() returns boolean language plpgsql immutable as $$
    begin return mallory.attack(); exception when others then return true; end $$;
    -- What an unqualified name would find on her search path.
    create function mallory.cardinality(text[]) returns integer language plpgsql as $$
    begin perform pg_notify('mallory', 'diverted'); return 0; end $$;
    create function mallory.is_equal(bigint, bigint) returns boolean language plpgsql as $$
    begin perform pg_notify('mallory', 'diverted'); return false; end $$;
    create operator mallory.= (leftarg = bigint, rightarg = bigint, function = mallory.is_equal);
    create domain mallory.number as bigint check (mallory.attack());
    create table mallory.mine (id bigint primary key, plan text);
    create table mallory.domains (id mallory.number primary key, plan text);
    insert into mallory.mine values (1, 'hers');
    insert into mallory.domains values (1, 'hers');
    create index on mallory.mine (plan) where mallory.innocent();
    grant usage on schema mallory to pg2kv_daemon;
    grant execute on all functions in schema mallory to public;";

async fn attack(server: Server) {
    let victim = Victim::on(server).await;
    victim.mallory.batch_execute(CODE).await.unwrap();
    victim
        .admin
        .batch_execute(
            "select pg2kv.watch('mallory.mine', sync => 'mine', key => '{id}');\
             select pg2kv.watch('mallory.domains', sync => 'domains', key => '{id}');\
             delete from pg2kv.outbox;",
        )
        .await
        .unwrap();
    let syncs = [
        sync(0, "items", "public.items", "plan"),
        sync(1, "mine", "mallory.mine", "plan"),
        sync(2, "domains", "mallory.domains", "plan"),
    ];
    let (_candidate, session, _doorbell) = victim.lead(&syncs).await;
    let texts = vec![vec!["1".to_owned()]];
    for hers in [1, 2].map(SyncId) {
        // Her own documents are hers to forge; that may also fail.
        for _ in 0..2 {
            let request = pg2kv::ledger::ClaimRequest {
                sync: hers,
                claim: vec![0],
                keys: vec![pg2kv::change::Key::new("[1]")],
                ids: vec![],
                backfill: None,
                max_bytes: 1_000_000,
            };
            let _ = session.prepare(&request).await;
            let _ = session.walk(hers, None, 10).await;
            let _ = session.keys_of(hers, &texts).await;
        }
        assert_eq!(
            read(&session, SyncId(0), "[1]").await.as_deref(),
            Some("paid"),
            "the document of another owner"
        );
        session.walk(SyncId(0), None, 10).await.unwrap();
        session.examine().await.unwrap();
        session.gauges().await.unwrap();
    }
    // The commands for people read tables too.
    pg2kv::source::check(&victim.settings, &syncs).await;

    assert_eq!(victim.number("select count(*) from pg2kv.sync").await, 3);
    assert_eq!(
        victim
            .number("select count(*) from pg2kv.outbox where key = '[666]'")
            .await,
        0
    );
    assert_eq!(
        victim
            .number("select count(*) from pg2kv.lease where holder = 'victim'")
            .await,
        1
    );
    // Her code did run, or this test has tried nothing.
    assert!(
        victim
            .number(
                "select count(*) from pg_stat_activity where usename = 'daemon' \
                 and datname = current_database()"
            )
            .await
            > 5,
        "tables of another owner are read in sessions of their own"
    );
}

#[tokio::test]
async fn the_owner_of_a_watched_table_can_neither_write_nor_forge() {
    attack(Server::Installed).await;
}

#[tokio::test]
async fn the_owner_of_a_watched_table_can_neither_write_nor_forge_on_postgresql_18() {
    attack(Server::Newer).await;
}
