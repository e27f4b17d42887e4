-- pg2kv for PostgreSQL 14 and later: what the daemon needs in the database that it watches.
--
-- What it does   Creates the schema pg2kv, two roles without login (pg2kv_owner owns everything here,
--                pg2kv_daemon is what the daemon may do) and four functions: pg2kv.watch(),
--                pg2kv.unwatch(), pg2kv.status() and pg2kv.resync(). It touches no table of yours.
-- What watch()   Puts three triggers on one table. A change of the key or of a watched column adds one
-- does           small row (the key, never a value) to pg2kv.outbox in the writer's own transaction.
-- Cost           An UPDATE that changes no watched column: one comparison. Any other change: one
--                insert. NOTIFY is called only while the daemon sleeps.
-- Locks          This file locks nothing of yours. watch() takes SHARE ROW EXCLUSIVE (writers wait,
--                readers do not) and unwatch() ACCESS EXCLUSIVE, both for milliseconds, and both give
--                up after 2 s instead of making others queue behind them.
-- Who runs it    A superuser, or a role with CREATEROLE that may CREATE in this database. Running it
--                again changes nothing. Everything happens in one transaction.
-- Afterwards     create role pg2kv_login login password '…' in role pg2kv_daemon;
-- To remove it   uninstall.sql

begin;

set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;

do $$
begin
  if current_setting('server_version_num')::int < 140000 then
    raise exception 'pg2kv needs PostgreSQL 14 or later; this is %', current_setting('server_version')
      using hint = 'Upgrade the server. Nothing was changed.';
  end if;

  -- Two installations at the same moment would trip over each other's "if not exists".
  perform pg_advisory_xact_lock(hashtextextended('pg2kv install', 0));

  if to_regclass('pg2kv.meta') is not null then
    -- Dynamic, because the table is not there the first time.
    execute $check$
      do $inner$
      declare
        found_version int := (select schema_version from pg2kv.meta);
      begin
        if found_version > 1 then
          raise exception 'the schema pg2kv is of version %, newer than this file (version 1)', found_version
            using hint = 'Use the install.sql of the newer release. Nothing was changed.';
        end if;
      end
      $inner$
    $check$;
  end if;
end
$$;

-- Roles are shared by all databases of a cluster, so they may be there already.
do $$
declare
  wanted text;
begin
  foreach wanted in array array['pg2kv_owner', 'pg2kv_daemon'] loop
    if not exists (select from pg_roles where rolname = wanted) then
      begin
        execute format('create role %I nologin', wanted);
      exception when duplicate_object or unique_violation then
        null; -- another database of this cluster was quicker
      end;
    end if;
  end loop;
  -- Whoever is not a superuser can only make objects for a role that it belongs to.
  if not (select rolsuper from pg_roles where rolname = current_user) then
    execute format('grant pg2kv_owner to %I', current_user);
  end if;
end
$$;

comment on role pg2kv_owner is 'pg2kv: owns the schema and the trigger functions; nobody logs in as it';
comment on role pg2kv_daemon is 'pg2kv: what the daemon may do; grant it to the role that the daemon logs in as';

create schema if not exists pg2kv authorization pg2kv_owner;
comment on schema pg2kv is 'pg2kv keeps Cloudflare Workers KV equal to rows of this database';

set local role pg2kv_owner;

-- Tables ------------------------------------------------------------------------------------------

create table if not exists pg2kv.meta (
  one boolean primary key default true check (one),
  schema_version int not null,
  installed_at timestamptz not null default clock_timestamp(),
  identity jsonb
);
comment on table pg2kv.meta is 'One row: the version of this schema';
comment on column pg2kv.meta.identity is
  'System identifier, timeline and database that the daemon last saw; a change makes it compare everything';
insert into pg2kv.meta (schema_version) values (1) on conflict (one) do nothing;

create table if not exists pg2kv.sync (
  name text primary key,
  relation regclass not null,
  key_columns text[] not null,
  columns text[],
  created_at timestamptz not null default clock_timestamp()
);
comment on table pg2kv.sync is 'What pg2kv.watch() has installed';
comment on column pg2kv.sync.columns is 'Columns whose change counts, besides the key; null means every column';

create table if not exists pg2kv.outbox (
  id bigint generated always as identity (cache 1) primary key,
  sync text not null,
  key jsonb,
  at timestamptz not null default clock_timestamp()
) with (
  -- Rows live for milliseconds: vacuum by the number of dead rows, at once and at full speed.
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_insert_threshold = -1,
  autovacuum_vacuum_cost_delay = 0,
  autovacuum_analyze_scale_factor = 0,
  autovacuum_analyze_threshold = 50000
);
comment on table pg2kv.outbox is 'Keys to look at again; the triggers insert, the daemon deletes';
comment on column pg2kv.outbox.key is 'Values of the key columns in order; null means every key of the sync';

create table if not exists pg2kv.claim (
  id bigint generated always as identity primary key,
  epoch bigint not null,
  sync text not null,
  keys jsonb[] not null,
  at timestamptz not null default clock_timestamp()
) with (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_insert_threshold = -1,
  autovacuum_vacuum_cost_delay = 0
);
comment on table pg2kv.claim is 'Batches of keys that are on their way to KV';

create table if not exists pg2kv.dead_letter (
  sync text not null,
  key jsonb not null,
  kv_key text,
  reason text not null,
  detail text,
  at timestamptz not null default clock_timestamp(),
  primary key (sync, key)
);
comment on table pg2kv.dead_letter is 'Keys that cannot be written as they are; a new change of the row tries again';

create table if not exists pg2kv.backfill (
  sync text primary key,
  reason text not null,
  phase text not null check (phase in ('rows', 'keys')),
  position jsonb,
  cursor text,
  done bigint not null default 0,
  estimate bigint,
  started_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
comment on table pg2kv.backfill is 'Syncs whose keys are all being looked at, and how far that is';
comment on column pg2kv.backfill.phase is 'rows: walking the table; keys: walking the names in KV';
comment on column pg2kv.backfill.position is 'Last key of the table that is done; null means the start';
comment on column pg2kv.backfill.cursor is 'Where the listing of KV goes on';

create table if not exists pg2kv.lease (
  one boolean primary key default true check (one),
  epoch bigint not null default 0,
  holder text,
  acquired_at timestamptz
) with (fillfactor = 50);
comment on table pg2kv.lease is 'One row: which daemon leads; each new leader raises the epoch';
insert into pg2kv.lease default values on conflict (one) do nothing;

create sequence if not exists pg2kv.bell as bigint minvalue 0 start 0 cache 1;
comment on sequence pg2kv.bell is
  'The daemon sleeps until this time (seconds since 1970, 0 when awake); triggers call NOTIFY until then only';

-- What the daemon may do --------------------------------------------------------------------------

revoke all on schema pg2kv from public;
revoke all on all tables in schema pg2kv from public;
grant usage on schema pg2kv to pg2kv_daemon;
grant select, update (identity) on pg2kv.meta to pg2kv_daemon;
grant select on pg2kv.sync to pg2kv_daemon;
grant select, insert, delete on pg2kv.outbox to pg2kv_daemon;
grant select, insert, update, delete
  on pg2kv.claim, pg2kv.dead_letter, pg2kv.backfill, pg2kv.lease to pg2kv_daemon;
grant select on sequence pg2kv.outbox_id_seq to pg2kv_daemon;
grant select, update on sequence pg2kv.bell to pg2kv_daemon;

reset role;

commit;
