-- pg2kv for PostgreSQL 14 and later: what the daemon needs in the database that it watches.
--
-- What it does   Creates the schema pg2kv, two roles without login (pg2kv_owner owns everything here,
--                pg2kv_daemon is what the daemon may do) and eight functions: pg2kv.watch(),
--                pg2kv.unwatch(), pg2kv.watch_related(), pg2kv.unwatch_related(), pg2kv.status(),
--                pg2kv.resync(), pg2kv.approve_deletes(), pg2kv.version(). It touches no table of yours.
-- What watch()   Puts three triggers on one table. A change of the key or of a watched column adds one
-- does           small row (the key, never a value) to pg2kv.outbox in the writer's own transaction.
-- What           Puts the same triggers on a table that documents take data from (the tenant of a user).
-- watch_related  A change there adds one row to the outbox, however many documents it concerns: the
-- () does        daemon finds them afterwards, never the writer.
-- Cost           An UPDATE that sets no watched column: nothing. One that sets them as they were: one
--                comparison. Any other change: one insert. NOTIFY is called only while the daemon sleeps.
--                With collect => true many rows are one document: writers pay the same, but for each
--                changed document the daemon reads all its rows, so an index that begins with the key
--                columns matters. Many changes of one document within a second are one read.
-- Locks          This file locks nothing of yours. watch() takes SHARE ROW EXCLUSIVE (writers wait,
--                readers do not) and unwatch() ACCESS EXCLUSIVE, both for milliseconds, and both give
--                up after 2 s instead of making others queue behind them.
-- Your DDL       Columns that are not watched can change as they like. A watched one cannot be dropped or
--                change its type meanwhile. To rename a key column, unwatch, rename and watch again
--                in one transaction: under the old name, writes to the table would fail.
-- Who runs it    A superuser, or a role with CREATEROLE that may CREATE in this database. Running it
--                again changes nothing. Everything happens in one transaction.
-- Version        This file makes version 2. Where an older one stands, the files in upgrade/ come first.
-- Afterwards     create role pg2kv_login login password '...' in role pg2kv_daemon;
-- To remove it   uninstall.sql

begin;

set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;

do $$
declare
  version int;
begin
  if current_setting('server_version_num')::int < 140000 then
    raise exception 'pg2kv needs PostgreSQL 14 or later; this is %', current_setting('server_version')
      using hint = 'Upgrade the server. Nothing was changed.';
  end if;

  -- Two installations at the same moment would trip over each other's "if not exists".
  perform pg_advisory_xact_lock(hashtextextended('pg2kv install', 0));

  if to_regclass('pg2kv.meta') is not null then
    select schema_version into version from pg2kv.meta;
    if version > 2 then
      raise exception 'the schema pg2kv is newer than this file: it has version %, and this is version 2', version
        using hint = 'Use the install.sql of the newer release. Nothing was changed.';
    elsif version < 2 then
      raise exception 'the schema pg2kv is older than this file: it has version %, and this is version 2', version
        using hint = 'First run the files in upgrade/ that lead from there to here. Nothing was changed.';
    end if;
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
        execute format('comment on role %I is %L', wanted, case wanted
          when 'pg2kv_owner' then 'pg2kv: owns the schema and the trigger functions; nobody logs in as it'
          else 'pg2kv: what the daemon may do; grant it to the role that the daemon logs in as' end);
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

create schema if not exists pg2kv authorization pg2kv_owner;
comment on schema pg2kv is 'pg2kv keeps Cloudflare Workers KV equal to rows of this database';

set local role pg2kv_owner;

-- Tables ------------------------------------------------------------------------------------------

create table if not exists pg2kv.meta (
  one boolean primary key default true check (one),
  schema_version int not null,
  installed_at timestamptz not null default clock_timestamp(),
  identity jsonb,
  serves int not null
);
comment on table pg2kv.meta is 'One row: the version of this schema, and which daemons it serves';
comment on column pg2kv.meta.serves is
  'The oldest version of the daemon that can work with this schema';
comment on column pg2kv.meta.identity is
  'System identifier, timeline and database that the daemon last saw; a change makes it compare everything';
insert into pg2kv.meta (schema_version, serves) values (2, 1) on conflict (one) do nothing;

create table if not exists pg2kv.sync (
  name text primary key,
  relation regclass not null,
  key_columns text[] not null,
  columns text[],
  created_at timestamptz not null default clock_timestamp(),
  backfilled_at timestamptz
);
alter table pg2kv.sync
  add column if not exists keys_estimate bigint,
  add column if not exists deletes_approved_until timestamptz,
  add column if not exists deletes_held bigint,
  add column if not exists audited_at timestamptz,
  add column if not exists audit_owed text,
  add column if not exists collect boolean not null default false,
  add column if not exists shards int,
  add column if not exists shard_key text[],
  add column if not exists configured jsonb;
comment on table pg2kv.sync is 'What pg2kv.watch() has installed';
comment on column pg2kv.sync.backfilled_at is
  'When the daemon last finished a walk over all rows; null makes it begin one, -infinity once the triggers are in order again';
comment on column pg2kv.sync.keys_estimate is
  'Keys, as last counted or estimated: what the daemon holds mass deletes against';
comment on column pg2kv.sync.deletes_approved_until is
  'Any number of keys may be deleted from KV until then; see approve_deletes()';
comment on column pg2kv.sync.deletes_held is
  'Keys, about, whose deletes the daemon holds until somebody approves; null while it holds none';
comment on column pg2kv.sync.configured is
  'Options of the sync with which the daemon wrote last; null before it first led';
comment on column pg2kv.sync.audited_at is 'When the daemon last compared KV with the rows';
comment on column pg2kv.sync.audit_owed is 'Why the daemon compares as soon as it can; null means when it is time';
comment on column pg2kv.sync.collect is 'All rows with one key are one document';
comment on column pg2kv.sync.shards is 'Among so many documents the rows of one key are divided; null is not at all';
comment on column pg2kv.sync.shard_key is 'The primary key when it was watched: what pg2kv.shard() divides by';
comment on column pg2kv.sync.columns is 'Columns whose change counts, besides the key; null means every column';

create table if not exists pg2kv.related (
  sync text not null,
  name text not null,
  relation regclass not null,
  match_from text[] not null,
  match_to text[] not null,
  columns text[],
  direct boolean not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (sync, name)
);
comment on table pg2kv.related is 'What pg2kv.watch_related() has installed';
comment on column pg2kv.related.match_from is 'Columns of the sync''s table, in the order of their names';
comment on column pg2kv.related.match_to is 'Columns of the related table that equal those';
comment on column pg2kv.related.columns is 'Columns whose change counts, besides match_to; null means every column';
comment on column pg2kv.related.direct is
  'The matched columns are the key of the sync: a change is recorded as that key';

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
comment on column pg2kv.outbox.key is
  'An array: values of the key columns in order. null: every key of the sync. {"again": [...]}: a key to be written whatever is known. {"related": ...}: the keys of the rows that match values of a related table, those after a key where the search is under way';

create table if not exists pg2kv.claim (
  id bigint generated always as identity primary key,
  epoch bigint not null,
  sync text not null,
  keys text[] not null,
  at timestamptz not null default clock_timestamp()
) with (
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_vacuum_insert_threshold = -1,
  autovacuum_vacuum_cost_delay = 0
);
comment on table pg2kv.claim is 'Batches of keys that are on their way to KV';
comment on column pg2kv.claim.keys is 'As the outbox has them, as text: taking JSON apart would cost more than the rest of a claim';
-- A claim lives for less than a second: compressing it would cost more than it saves.
alter table pg2kv.claim alter column keys set storage external;

create table if not exists pg2kv.dead_letter (
  sync text not null,
  key jsonb not null,
  kv_key text,
  reason text not null,
  detail text,
  at timestamptz not null default clock_timestamp()
);
-- By hash: a key may be longer than an index entry can be, which may be just why it is here.
create unique index if not exists dead_letter_key on pg2kv.dead_letter (sync, md5(key::text));
-- Without a primary key the daemon's deletes would fail under a publication FOR ALL TABLES.
alter table pg2kv.dead_letter replica identity full;
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
alter table pg2kv.backfill add column if not exists rows bigint;
comment on table pg2kv.backfill is 'Syncs whose keys are all being looked at, and how far that is';
comment on column pg2kv.backfill.phase is 'rows: walking the table; keys: walking the names in KV';
comment on column pg2kv.backfill.position is 'Last key of the table that is done; null means the start';
comment on column pg2kv.backfill.rows is 'Rows that the walk found; null until it is at the end of the table';
comment on column pg2kv.backfill.cursor is 'Where the listing of KV goes on';

create table if not exists pg2kv.retired (
  id bigint generated always as identity primary key,
  sync text not null,
  namespace text not null,
  template text not null,
  key_values text[] not null,
  retired_at timestamptz not null default clock_timestamp(),
  after_outbox bigint,
  after_claim bigint,
  touched_at timestamptz,
  unique (sync, namespace, template, key_values)
);
comment on table pg2kv.retired is
  'Names in KV that a sync made under an earlier configuration; kept until none of them is left';
comment on column pg2kv.retired.after_outbox is
  'The names are left alone until all of the outbox up to this id is claimed';
comment on column pg2kv.retired.after_claim is '... and all claims up to this id are settled';
comment on column pg2kv.retired.touched_at is 'When the daemon last began to delete pairs of them';

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

-- Helpers of the functions below ------------------------------------------------------------------

create or replace function pg2kv.base_type(of_type oid) returns oid
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  with recursive chain as (
    select oid, typtype, typbasetype from pg_type where oid = of_type
    union all
    select t.oid, t.typtype, t.typbasetype from pg_type t join chain c on c.typtype = 'd' and t.oid = c.typbasetype
  )
  select oid from chain where typtype <> 'd'
$$;
comment on function pg2kv.base_type(oid) is 'The type under a domain, or the type itself';

create or replace function pg2kv.tables_of(relation regclass) returns setof regclass
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select relation
  union
  select relid from pg_partition_tree(relation) where isleaf
$$;
comment on function pg2kv.tables_of(regclass) is 'A table and, when it is partitioned, its leaf partitions';

create or replace function pg2kv.take_lock(relation regclass, mode text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '2s'
as $$
declare
  holders text;
  remedy text;
begin
  execute format('lock table %s in %s mode', relation, mode);
exception when lock_not_available then
  select string_agg(description, ' and '), string_agg(ending, ' ' order by ending)
    into holders, remedy
    from (
      select distinct
        case when l.pid is null
          then 'a prepared transaction (see pg_prepared_xacts)'
          else format('process %s (%s, transaction open for %s)',
                      l.pid, coalesce(a.state, 'its state is hidden from you'),
                      coalesce(date_trunc('second', clock_timestamp() - a.xact_start)::text, 'an unknown time'))
        end as description,
        format('select pg_terminate_backend(%s);', l.pid) as ending
      from pg_locks l
      left join pg_stat_activity a on a.pid = l.pid
      where l.locktype = 'relation'
        and l.database = (select oid from pg_database where datname = current_database())
        and l.relation in (select t::oid from pg2kv.tables_of(take_lock.relation) t)
        and l.granted
        and l.pid is distinct from pg_backend_pid()
        and (take_lock.mode = 'access exclusive' or l.mode not in ('AccessShareLock', 'RowShareLock'))
    ) in_the_way;
  raise exception 'could not lock % within 2 s because of %; nothing was changed',
      relation, coalesce(holders, 'a session that has finished by now')
    using errcode = 'lock_not_available',
          hint = 'Run it again when that transaction is over' || coalesce(', or end it first: ' || remedy, '.');
end
$$;
comment on function pg2kv.take_lock(regclass, text) is 'Locks a table, or says within 2 s who is in the way';

create or replace function pg2kv.key_expression(relation regclass, key text[], of_row text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  -- Settings of the writer's session (time zone, bytea output) must not show in the key.
  select format(
    case when bool_and(a.attnotnull)
      then 'pg_catalog.jsonb_build_array(%1$s)'
      else 'case when %2$s then pg_catalog.jsonb_build_array(%1$s) end'
    end,
    string_agg(
      format(
        case pg2kv.base_type(a.atttypid)
          when 'timestamptz'::regtype then '%s.%I at time zone ''UTC'''
          when 'bytea'::regtype then 'pg_catalog.encode(%s.%I, ''hex'')'
          else '%s.%I'
        end, of_row, a.attname),
      ', ' order by k.position),
    string_agg(format('%s.%I is not null', of_row, a.attname), ' and ' order by k.position)
      filter (where not a.attnotnull))
  from unnest(key) with ordinality as k (name, position)
  join pg_attribute a
    on a.attrelid = relation and a.attname = k.name and a.attnum > 0 and not a.attisdropped
$$;
comment on function pg2kv.key_expression(regclass, text[], text) is
  'SQL for the key of a row: an array of the key columns, null when one of them is null';

create or replace function pg2kv.same_key(key text[]) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $$
  -- What is stored is compared: equal values of some types have keys that differ, 1.0 and 1.00.
  select case when cardinality(key) = 0 then 'true'
    else format('pg_catalog.record_image_eq(row(%s), row(%s))',
                string_agg(format('old.%I', name), ', ' order by position),
                string_agg(format('new.%I', name), ', ' order by position)) end
  from unnest(key) with ordinality as k (name, position)
$$;
comment on function pg2kv.same_key(text[]) is
  'SQL for whether an UPDATE left a key as it is; where it says no, the key may still be the same';

create or replace function pg2kv.changed_sql(columns text[]) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $$
  -- What is stored is compared: any type will do, and 1.0 differs from 1.00. (The operator "*<>" on
  -- rows would not survive pg_dump.)
  select case when columns is null then 'pg_catalog.record_image_ne(old, new)'
    else format('pg_catalog.record_image_ne(row(%s), row(%s))',
                string_agg(format('old.%I', name), ', '), string_agg(format('new.%I', name), ', ')) end
  from (select distinct name from unnest(columns) name order by name) watched
$$;
comment on function pg2kv.changed_sql(text[]) is
  'SQL for whether an UPDATE changed one of these columns; null means any column';

create or replace function pg2kv.before_trigger(relation regclass) returns name
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  -- Of each row (1), before (2) an UPDATE (16).
  select min(t.tgname) from pg_trigger t
  where t.tgrelid in (select tables_of from pg2kv.tables_of(relation)) and t.tgtype & 19 = 19
$$;
comment on function pg2kv.before_trigger(regclass) is
  'A trigger that may change columns which an UPDATE does not set; null where there is none';

create or replace function pg2kv.set_tells(relation regclass, columns text[]) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select columns is null or pg2kv.before_trigger(relation) is null
    -- Virtual columns are known to a WHEN only.
    and not exists (select from pg_attribute a
                    where a.attrelid = relation and a.attname = any (columns) and a.attgenerated = 'v')
$$;
comment on function pg2kv.set_tells(regclass, text[]) is
  'Whether the columns that an UPDATE sets tell which of these it may change; null means any column';

create or replace function pg2kv.record_sql(sync text, key text, recorded text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $$
  -- A key is null only where a column of it may be, and then the expression is a case.
  select case when key like 'case %'
    then format('insert into pg2kv.outbox (sync, key)
        select %L, %s from (select %s) as made (key) where key is not null', sync, format(recorded, 'key'), key)
    else format('insert into pg2kv.outbox (sync, key) values (%L, %s)', sync, format(recorded, key)) end
$$;
comment on function pg2kv.record_sql(text, text, text) is
  'SQL that records a key, if it is one, in the way that the format "recorded" says';

create or replace function pg2kv.put_function(
    name text, relation regclass, key text[], body text, about text) returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  settings text[];
begin
  if exists (select from pg_attribute
             where attrelid = relation and attname = any (put_function.key)
               and pg2kv.base_type(atttypid) in ('float4'::regtype, 'float8'::regtype)) then
    settings := '{extra_float_digits=1}'; -- or the writer's setting would show in what is recorded
  end if;
  if exists (select from pg_proc where oid = to_regprocedure(format('pg2kv.%s()', name))
             and prosrc = body and proconfig is not distinct from settings) then
    return false;
  end if;
  execute format('create or replace function pg2kv.%s() returns trigger
  language plpgsql security definer %s
  as %L', name, 'set ' || settings[1], body);
  execute format('alter function pg2kv.%s() owner to pg2kv_owner', name);
  execute format('revoke all on function pg2kv.%s() from public', name);
  execute format('comment on function pg2kv.%s() is %L', name, about);
  return true;
end
$$;
comment on function pg2kv.put_function(text, regclass, text[], text, text) is
  'Makes a trigger function; false where it was as it should be';

create or replace function pg2kv.put_capture(
    label text, sync text, relation regclass, key text[], columns text[], was text, is_now text, recorded text,
    about text)
  returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  record_was text := pg2kv.record_sql(sync, was, recorded);
  record_is_now text := pg2kv.record_sql(sync, is_now, recorded);
  comparison text;
  ring text := $ring$  -- The order matters: insert first, then look whether the daemon sleeps. A query of the sequence
  -- would cost as much as half of the insert.
  if pg_catalog.pg_sequence_last_value('pg2kv.bell'::pg_catalog.regclass)
     operator(pg_catalog.>) pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) then
    -- An expression, where PERFORM would be one more query for each row.
    if pg_catalog.pg_notify('pg2kv', '') is null then null; end if;
  end if;
  return null;
$ring$;
  renewed boolean;
begin
  -- These run in every writer's transaction, so they are static and short and have nothing in them that
  -- could fail. They run as pg2kv_owner: writers need no privileges here. Each name in them carries its
  -- schema, operators too, so that nothing a writer made can take a place in them; a search_path of their
  -- own would say the same, and cost more than half of an insert. PL/pgSQL prepares each expression
  -- that it comes by anew in each transaction, so an UPDATE, the usual change, comes by few.
  renewed := pg2kv.put_function('capture_' || label, relation, key, format($capture$
begin
  if tg_op operator(pg_catalog.=) 'INSERT' then
    %1$s;
  elsif tg_op operator(pg_catalog.=) 'DELETE' then
    %2$s;
  else
    -- TRUNCATE: every key.
    insert into pg2kv.outbox (sync, key) values (%3$L, null);
  end if;
%4$send
$capture$, record_is_now, record_was, sync, ring), about);
  if pg2kv.set_tells(relation, columns) then
    comparison := format($compare$  begin
    if not %s then
      return null;
    end if;
  exception when undefined_column then
    null; -- One was renamed. No writer fails for that, and nothing goes unseen.
  end;
$compare$, pg2kv.changed_sql(columns));
  end if;
  return pg2kv.put_function('updated_' || label, relation, key, format($updated$
begin
%1$s  if %2$s then
    %3$s;
  else
    %4$s;
    -- Compared as text, because 1.0 and 1.00 are equal numbers but different keys.
    if pg_catalog.record_image_ne(row((%5$s)::pg_catalog.text), row((%6$s)::pg_catalog.text)) then
      %3$s;
    end if;
  end if;
%7$send
$updated$, comparison, pg2kv.same_key(key), record_is_now, record_was, was, is_now, ring), about) or renewed;
end
$$;
comment on function pg2kv.put_capture(text, text, regclass, text[], text[], text, text, text, text) is
  'Makes the trigger functions that record the keys of changed rows of a table; false where they were as they should be';

create or replace function pg2kv.shard(key text, shards int) returns int
  language sql immutable parallel safe
  return (('x' || substr(md5(key), 1, 8))::bit(32)::bigint % shards)::int;
comment on function pg2kv.shard(text, int) is
  'Which of so many documents a row is in: the first 8 hexadecimal digits of the md5 of its primary key as text (columns with commas between), modulo shards';

create or replace function pg2kv.shard_expression(relation regclass, key text[], shards int, of_row text)
  returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  -- A cast where it is immutable, so that an index can be on the expression; otherwise the text
  -- that JSON has for the value, which no setting of a session changes.
  select case when shards is not null then format('pg2kv.shard(%s, %s)', string_agg(
    case when pg2kv.base_type(a.atttypid) = any (array['int2', 'int4', 'int8', 'numeric', 'bool', 'uuid',
                                                       'text', 'varchar']::regtype[])
      then format('%s.%I::pg_catalog.text', of_row, a.attname)
      else format('(%s operator(pg_catalog.->>) 0)', pg2kv.key_expression(relation, array[k.name], of_row))
    end, ' operator(pg_catalog.||) '','' operator(pg_catalog.||) ' order by k.position), shards) end
  from unnest(key) with ordinality as k (name, position)
  join pg_attribute a
    on a.attrelid = relation and a.attname = k.name and a.attnum > 0 and not a.attisdropped
$$;
comment on function pg2kv.shard_expression(regclass, text[], int, text) is
  'SQL for the shard of a row, as triggers and the daemon compute it: each name carries its schema';

create or replace function pg2kv.document_key(
    relation regclass, key text[], shard_key text[], shards int, of_row text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select case when cardinality(key) = 0 then 'pg_catalog.jsonb_build_array()'
           else pg2kv.key_expression(relation, key, of_row) end
    || case when shards is null then ''
         else format(' operator(pg_catalog.||) pg_catalog.jsonb_build_array(%s)',
                     pg2kv.shard_expression(relation, shard_key, shards, of_row)) end
$$;
comment on function pg2kv.document_key(regclass, text[], text[], int, text) is
  'SQL for the key of the document that a row is in: the key of the row, and its shard behind it';

drop function if exists pg2kv.check_table(regclass, text[], text[]);
create or replace function pg2kv.check_table(
    relation regclass, key text[], columns text[], collect boolean, shard_key text[]) returns void
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  class record;
  wrong text;
begin
  select c.* into class from pg_class c where c.oid = relation;
  if class.relkind not in ('r', 'p') or class.relpersistence = 't'
     or class.relnamespace in ('pg_catalog'::regnamespace, 'pg2kv'::regnamespace) then
    raise exception '% is not an ordinary or partitioned table of yours', relation
      using hint = 'Watch the table that the rows are written to, not a view of it.';
  end if;
  if class.relpersistence = 'u' then
    raise exception '% is unlogged: a crash empties it, and no trigger can see that', relation
      using hint = format('alter table %s set logged;', relation);
  end if;
  if not pg_has_role(class.relowner, 'usage') then
    raise exception 'only the owner of % (%) can put triggers on it', relation, class.relowner::regrole
      using errcode = 'insufficient_privilege', hint = 'Run this as its owner or as a superuser.';
  end if;
  if class.relkind = 'r' and exists (select from pg_inherits where inhparent = relation)
     or not class.relispartition and exists (select from pg_inherits where inhrelid = relation) then
    raise exception '% takes part in table inheritance, where triggers do not see the rows of children', relation
      using hint = 'Watch a partitioned table, or one that neither inherits nor is inherited from.';
  end if;
  select string_agg(t::text, ', ') into wrong
    from pg2kv.tables_of(relation) t join pg_class c on c.oid = t where c.relkind = 'f';
  if wrong is not null then
    raise exception '% has foreign tables as partitions (%), which change elsewhere', relation, wrong
      using hint = 'Watch the partitions that live in this database.';
  end if;

  if collect and key is null then
    raise exception 'key is null' using hint = 'For one document of the whole table write key => ''{}''.';
  end if;
  if not collect and coalesce(cardinality(key), 0) = 0 then
    raise exception 'key names no column' using hint = 'For example key => ''{id}''.';
  end if;
  select string_agg(coalesce(format('%I', name), 'null'), ', ') into wrong
    from unnest(key || columns) as name
    where not exists (
      select from pg_attribute
      where attrelid = relation and attname = name and attnum > 0 and not attisdropped);
  if wrong is not null then
    raise exception '% has no column %', relation, wrong
      using hint = 'Columns are named here as they are stored, without double quotes: key => ''{id}''.';
  end if;

  select string_agg(format('%I (%s)', a.attname, format_type(a.atttypid, a.atttypmod)), ', ') into wrong
    from pg_attribute a
    join pg_type t on t.oid = pg2kv.base_type(a.atttypid)
    where a.attrelid = relation and a.attname = any (key || shard_key) and a.attnum > 0
      and (t.typtype not in ('b', 'e') or t.typcategory = 'A'
           or t.oid in ('interval'::regtype, 'money'::regtype, 'xml'::regtype, 'json'::regtype, 'jsonb'::regtype));
  if wrong is not null then
    raise exception 'a key of KV cannot be made from %', wrong
      using hint = 'Use numbers, text, uuid, boolean, dates and times, bytea, network addresses or enums.';
  end if;
end
$$;
comment on function pg2kv.check_table(regclass, text[], text[], boolean, text[]) is
  'Refuses what watch() cannot watch, and says why';

create or replace function pg2kv.has_index(relation regclass, columns text[]) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from pg_index i
    where i.indrelid = relation and i.indisvalid and i.indpred is null
      and (select array_agg(a.attname::text)
           from unnest(i.indkey::int2[]) with ordinality as k (attnum, position)
           join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
           where k.position <= least(i.indnkeyatts, cardinality(columns))) @> columns
  )
$$;
comment on function pg2kv.has_index(regclass, text[]) is 'Whether an index begins with these columns, in any order';

create or replace function pg2kv.index_for(relation regclass, columns text[], key text[]) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select format('create index%s on %s (%s);',
    case c.relkind when 'r' then ' concurrently' else '' end, relation,
    (select string_agg(format('%I', name), ', ' order by position)
     from unnest(columns || array(select k from unnest(key) k where k <> all (columns))) with ordinality u (name, position)))
  from pg_class c where c.oid = relation
$$;
comment on function pg2kv.index_for(regclass, text[], text[]) is
  'The index with which the documents of a changed row of a related table are found in the order of their keys';

create or replace function pg2kv.related_label(sync text, name text) returns text
  language sql immutable
  set search_path = pg_catalog, pg_temp
as $$
  -- Neither name can hold a dollar sign, so no two pairs make the same label.
  select sync || '$' || name
$$;
comment on function pg2kv.related_label(text, text) is
  'What triggers and trigger functions of a related table are named after';

create or replace function pg2kv.check_unique(relation regclass, key text[], collect boolean) returns void
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  class record;
  is_unique boolean;
begin
  select c.* into class from pg_class c where c.oid = relation;
  is_unique := exists (
    select from pg_index i
    where i.indrelid = relation and i.indisunique and i.indisvalid and i.indimmediate
      and i.indpred is null and i.indexprs is null
      and (select array_agg(a.attname::text order by a.attname::text)
           from unnest(i.indkey::int2[]) with ordinality as k (attnum, position)
           join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
           where k.position <= i.indnkeyatts)
        = (select array_agg(name order by name) from unnest(key) name)
  );
  if not is_unique and not collect then
    raise exception 'no unique index of % is on exactly the key columns (%)', relation, array_to_string(key, ', ')
      using detail = 'It takes the primary key, or a unique index that is neither partial nor deferrable.',
            hint = format('create unique index%s on %s (%s);',
                          case class.relkind when 'r' then ' concurrently' else '' end, relation,
                          (select string_agg(format('%I', name), ', ') from unnest(key) name));
  end if;
  if is_unique and collect and cardinality(key) > 0 then
    raise exception 'the key columns (%) are unique, so each document would hold one row',
        array_to_string(key, ', ')
      using hint = 'Leave collect out, or name the columns that the rows of one document share.';
  end if;
end
$$;
comment on function pg2kv.check_unique(regclass, text[], boolean) is
  'Refuses key columns that do not tell rows apart';

create or replace function pg2kv.index_advice(sync text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  with wanted as (
    select s.relation, s.key_columns, cardinality(s.key_columns) as width, c.relkind,
      regexp_replace(nullif(e.shard, case when e.shard like '%jsonb%' then e.shard end),
                     'pg2kv_row\.|pg_catalog\.|operator\(pg_catalog\.(\S+)\)', '\1', 'g') as shard
    from pg2kv.sync s
    join pg_class c on c.oid = s.relation
    cross join lateral (
      select pg2kv.shard_expression(s.relation, s.shard_key, s.shards, 'pg2kv_row') as shard) e
    where s.name = index_advice.sync and s.collect
  )
  select format('create index%s on %s (%s);',
    case relkind when 'r' then ' concurrently' else '' end, relation,
    concat_ws(', ', (select string_agg(format('%I', name), ', ' order by position)
                     from unnest(key_columns) with ordinality as k (name, position)), shard))
  from wanted w
  where (width > 0 or shard is not null) and not exists (
    select from pg_index i
    where i.indrelid = w.relation and i.indisvalid and i.indpred is null
      and i.indnkeyatts >= w.width + (w.shard is not null)::int
      and (select array_agg(a.attname::text order by a.attname::text)
           from unnest(i.indkey::int2[]) with ordinality as k (attnum, position)
           join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
           where k.position <= w.width)
        is not distinct from (select array_agg(name order by name) from unnest(w.key_columns) name)
      -- Casts and parentheses are written in more than one way.
      and (w.shard is null or
           regexp_replace(pg_get_indexdef(i.indexrelid, w.width + 1, true), '[() ]|::text', '', 'g')
             = regexp_replace(w.shard, '[() ]|::text', '', 'g')))
$$;
comment on function pg2kv.index_advice(text) is
  'For a sync that collects: the index that it lacks, without which each of its reads goes through the whole table';

create or replace function pg2kv.trigger_faults(sync text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select string_agg(format('trigger %I on %s %s', wanted.name, wanted.relation, fault),
                    '; ' order by wanted.relation::text, wanted.name)
  from (
    select t as relation, format('zzz_pg2kv_%s_%s', watched.label, kind) as name,
      to_regprocedure(format('pg2kv.%s_%s()', case kind when 'update' then 'updated' else 'capture' end,
                             watched.label)) as function,
      watched.columns, watched.before
    from (
      select s.name as label, s.relation, s.key_columns || s.columns || s.shard_key as columns,
        pg2kv.before_trigger(s.relation) as before
      from pg2kv.sync s where s.name = trigger_faults.sync
      union all
      select pg2kv.related_label(r.sync, r.name), r.relation, r.match_to || r.columns,
        pg2kv.before_trigger(r.relation)
      from pg2kv.related r where r.sync = trigger_faults.sync
    ) watched, pg2kv.tables_of(watched.relation) t, unnest(array['row', 'update', 'truncate']) kind
  ) wanted
  left join pg_trigger t on t.tgrelid = wanted.relation and t.tgname = wanted.name
  cross join lateral (
    select case
      when t.oid is null then 'is missing'
      when t.tgfoid is distinct from wanted.function then 'calls the wrong function'
      when t.tgenabled = 'D' then 'is disabled'
      when t.tgenabled <> 'A' then 'is not enabled always'
      when t.tgattr::text <> '' and wanted.before is not null
        then format('does not see what the trigger %I changes before it', wanted.before)
      when t.tgattr::text <> '' then (
        -- After a rename another column may have the name of a watched one.
        select format('does not see the column %s', string_agg(format('%I', a.attname), ', ' order by a.attname))
        from pg_attribute a
        where a.attrelid = wanted.relation and a.attname = any (wanted.columns)
          and a.attnum > 0 and a.attnum <> all (t.tgattr::int2[])
        having count(*) > 0)
    end as fault
  ) judged
  where fault is not null
$$;
comment on function pg2kv.trigger_faults(text) is
  'What is wrong with the triggers of a sync; null when nothing is';

create or replace function pg2kv.drop_triggers(sync text, keep regclass[]) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  stray record;
begin
  for stray in
    select t.tgrelid::regclass as relation, t.tgname as name
    from pg_trigger t
    where t.tgfoid in (to_regprocedure(format('pg2kv.capture_%s()', sync)),
                       to_regprocedure(format('pg2kv.updated_%s()', sync)))
      and t.tgparentid = 0 -- the others go with their parent's
      and t.tgrelid <> all (keep::oid[])
    order by t.tgrelid
  loop
    perform pg2kv.take_lock(stray.relation, 'access exclusive');
    execute format('drop trigger %I on %s', stray.name, stray.relation);
  end loop;
end
$$;
comment on function pg2kv.drop_triggers(text, regclass[]) is
  'Removes the triggers of a sync from all tables but these';

create or replace function pg2kv.update_trigger(relation regclass, columns text[]) returns text[]
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  -- A trigger on columns is not even looked at when a statement sets others. Where the set columns do
  -- not tell, the WHEN is evaluated for each row that is updated, whatever was set.
  select array[
    (select ' of ' || string_agg(distinct format('%I', name), ', ' order by format('%I', name))
     from unnest(columns) name where pg2kv.set_tells(relation, columns)),
    (select format('when (%s) ', pg2kv.changed_sql(columns)) where not pg2kv.set_tells(relation, columns))]
$$;
comment on function pg2kv.update_trigger(regclass, text[]) is
  'What stands behind "after update" and "for each row" of a trigger for changes of these columns; null means any column';

create or replace function pg2kv.is_current(label text, relation regclass, columns text[]) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from pg_trigger t
    where t.tgrelid = relation and t.tgname = format('zzz_pg2kv_%s_update', label)
      and array[t.tgattr::text <> '', t.tgqual is not null]
        = (select array[u.clauses[1] is not null, u.clauses[2] is not null]
           from (select pg2kv.update_trigger(relation, columns) as clauses) u))
$$;
comment on function pg2kv.is_current(text, regclass, text[]) is
  'Whether the UPDATE trigger of a table is of the kind that put_triggers() would make';

create or replace function pg2kv.put_triggers(
    label text, relation regclass, columns text[], recorded text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  one_table regclass;
  clauses text[] := pg2kv.update_trigger(relation, columns);
begin
  -- Row triggers, because statement triggers see neither changes made directly to a partition nor
  -- those that logical replication applies.
  execute format('create or replace trigger zzz_pg2kv_%1$s_row after insert or delete on %2$s
    for each row execute function pg2kv.capture_%1$s()', label, relation);
  execute format('create or replace trigger zzz_pg2kv_%1$s_update after update%3$s on %2$s
    for each row %4$sexecute function pg2kv.updated_%1$s()', label, relation, clauses[1], clauses[2]);
  execute format('comment on trigger zzz_pg2kv_%1$s_row on %2$s is %3$L', label, relation,
                 'pg2kv: records ' || recorded);
  execute format('comment on trigger zzz_pg2kv_%1$s_update on %2$s is %3$L', label, relation,
                 'pg2kv: records ' || recorded || ', the old one and the new one');
  foreach one_table in array array(select pg2kv.tables_of(relation)) loop
    execute format('create or replace trigger zzz_pg2kv_%1$s_truncate after truncate on %2$s
      for each statement execute function pg2kv.capture_%1$s()', label, one_table);
    execute format('comment on trigger zzz_pg2kv_%1$s_truncate on %2$s is %3$L', label, one_table,
                   'pg2kv: records that every key is to be looked at again');
    -- "Always" is also under logical replication and session_replication_role = replica.
    execute format('alter table %2$s
      enable always trigger zzz_pg2kv_%1$s_row,
      enable always trigger zzz_pg2kv_%1$s_update,
      enable always trigger zzz_pg2kv_%1$s_truncate', label, one_table);
  end loop;
  perform pg2kv.drop_triggers(label, array(select pg2kv.tables_of(relation)));
end
$$;
comment on function pg2kv.put_triggers(text, regclass, text[], text) is
  'Has the changes of a table call its trigger functions, and those of no other table';

create or replace function pg2kv.set_grants(relation regclass) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  home regnamespace := (select relnamespace from pg_class where oid = relation);
  watched record;
begin
  if home is null then
    return; -- the table is gone, and its privileges with it
  end if;
  execute format('revoke select on table %s from pg2kv_daemon', relation);
  for watched in
    select s.key_columns || coalesce(s.shard_key, '{}') as key_columns, s.columns
    from pg2kv.sync s where s.relation = set_grants.relation
    union all
    select r.match_to, r.columns from pg2kv.related r where r.relation = set_grants.relation
  loop
    if watched.columns is null then
      execute format('grant select on table %s to pg2kv_daemon', relation);
    else
      execute format('grant select (%s) on table %s to pg2kv_daemon',
        (select string_agg(distinct format('%I', name), ', ')
         from unnest(watched.key_columns || watched.columns) name),
        relation);
    end if;
  end loop;
  if exists (
    select from (
      select s.relation from pg2kv.sync s union all select r.relation from pg2kv.related r
    ) w join pg_class c on c.oid = w.relation
    where c.relnamespace = home
  ) then
    if not has_schema_privilege('pg2kv_daemon', home, 'usage') then
      execute format('grant usage on schema %s to pg2kv_daemon', home);
    end if;
  elsif exists (select from pg_namespace n, aclexplode(n.nspacl) as acl
                where n.oid = home and acl.grantee = 'pg2kv_daemon'::regrole) then
    execute format('revoke usage on schema %s from pg2kv_daemon', home);
  end if;
end
$$;
comment on function pg2kv.set_grants(regclass) is
  'Lets the daemon read exactly what the syncs of a table name: their key and watched columns';

-- What you call -----------------------------------------------------------------------------------

create or replace function pg2kv.resync(sync text) returns void
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (select from pg2kv.sync s where s.name = resync.sync) then
    raise exception 'no sync is named %', coalesce(quote_literal(sync), 'null')
      using hint = 'select sync from pg2kv.status() lists them; select pg2kv.watch(...) makes one.';
  end if;
  insert into pg2kv.outbox (sync, key) values (resync.sync, null);
  if (select last_value from pg2kv.bell) > extract(epoch from clock_timestamp()) then
    perform pg_notify('pg2kv', '');
  end if;
end
$$;
comment on function pg2kv.resync(text) is 'Makes the daemon look at every key of a sync again';

create or replace function pg2kv.approve_deletes(sync text, for_interval interval default '1 hour')
  returns timestamptz
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  until timestamptz;
begin
  if for_interval is null or for_interval < interval '0' then
    raise exception 'deletes are approved for an interval of 0 or more, not for %', coalesce(for_interval::text, 'null')
      using hint = 'For example ''1 hour''; 0 takes an approval back.';
  end if;
  update pg2kv.sync s set deletes_approved_until = clock_timestamp() + for_interval
    where s.name = approve_deletes.sync
    returning deletes_approved_until into until;
  if until is null then
    raise exception 'no sync is named %', coalesce(quote_literal(sync), 'null')
      using hint = 'select sync from pg2kv.status() lists them; select pg2kv.watch(...) makes one.';
  end if;
  perform pg_notify('pg2kv', '');
  return until;
end
$$;
comment on function pg2kv.approve_deletes(text, interval) is
  'Lets the daemon delete any number of keys of a sync from KV for a while; returns until when';

drop function if exists pg2kv.watch(regclass, text, text[], text[]);
create or replace function pg2kv.watch(
    relation regclass, sync text, key text[], columns text[] default null,
    collect boolean default false, shards int default null)
  returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  before pg2kv.sync;
  is_same boolean;
  unharmed boolean;
  renewed boolean;
  same_columns boolean;
  counting text[];
  primary_key text[];
  advice text;
begin
  if not pg_has_role('pg2kv_owner', 'usage') then
    raise exception 'role % is not a member of pg2kv_owner', current_user
      using errcode = 'insufficient_privilege', hint = format('grant pg2kv_owner to %I;', current_user);
  end if;
  if relation is null then
    raise exception 'relation is null' using hint = 'For example relation => ''public.users''.';
  end if;
  if sync is null or sync !~ '^[a-z][a-z0-9_]{0,30}$' then
    raise exception '% is not a name for a sync', coalesce(quote_literal(sync), 'null')
      using hint = 'A lower-case letter, then up to 30 lower-case letters, digits and underscores.';
  end if;
  if octet_length(format('zzz_pg2kv_%s_truncate', sync)) > 63 then
    raise exception 'the name % is too long: its triggers would need more than 63 characters', quote_literal(sync)
      using hint = 'Choose a shorter name for the sync.';
  end if;
  collect := coalesce(collect, false);
  if shards is not null then
    if not collect or shards not between 1 and 1000 then
      raise exception 'shards => % cannot be: it takes collect => true, and 1 to 1000', shards
        using hint = 'Shards divide one document of many rows among several.';
    end if;
    select array_agg(a.attname::text order by k.position) into primary_key
      from pg_index i
      cross join unnest(i.indkey::int2[]) with ordinality as k (attnum, position)
      join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
      where i.indrelid = watch.relation and i.indisprimary and k.position <= i.indnkeyatts;
    if primary_key is null then
      raise exception '% has no primary key, by which rows are divided among shards', relation
        using hint = 'Give the table a primary key, or leave shards out.';
    end if;
  end if;
  perform pg2kv.check_table(relation, key, columns, collect, primary_key);
  perform pg2kv.check_unique(relation, key, collect);

  select * into before from pg2kv.sync s where s.name = watch.sync;
  counting := case when watch.columns is not null then key || watch.columns || primary_key end;
  same_columns := coalesce(
    before.relation = watch.relation and before.key_columns = watch.key
    and before.columns is not distinct from watch.columns
    and before.collect = watch.collect and before.shards is not distinct from watch.shards
    and before.shard_key is not distinct from primary_key, false);
  is_same := same_columns and pg2kv.trigger_faults(sync) is null and pg2kv.is_current(sync, relation, counting);
  if not is_same then
    perform pg2kv.take_lock(relation, 'share row exclusive');
  end if;
  unharmed := before.name is not null and before.backfilled_at is distinct from '-infinity'
    and pg2kv.trigger_faults(sync) is null;

  renewed := pg2kv.put_capture(sync, sync, relation, key || primary_key, counting,
    pg2kv.document_key(relation, key, primary_key, shards, 'old'),
    pg2kv.document_key(relation, key, primary_key, shards, 'new'), '%s',
    format('Records the keys of changed rows of %s for the sync %s', relation, sync));
  if is_same then
    return format('%s is watched as %s already; %s', relation, sync,
                  case when renewed then 'its trigger functions are new' else 'nothing was changed' end);
  end if;
  perform pg2kv.put_triggers(sync, relation, counting, 'the key of the row');

  insert into pg2kv.sync (name, relation, key_columns, columns, collect, shards, shard_key)
    values (watch.sync, watch.relation, watch.key, watch.columns, watch.collect, watch.shards, primary_key)
    on conflict (name) do update
    set relation = excluded.relation, key_columns = excluded.key_columns, columns = excluded.columns,
        collect = excluded.collect, shards = excluded.shards, shard_key = excluded.shard_key,
        created_at = excluded.created_at;
  perform pg2kv.set_grants(relation);
  if before.relation <> relation then
    perform pg2kv.set_grants(before.relation);
  end if;
  -- What their triggers write depends on the key of the sync.
  perform pg2kv.watch_related(r.relation, r.sync, r.name, jsonb_object(r.match_from, r.match_to), r.columns)
    from pg2kv.related r where r.sync = watch.sync order by r.name;
  if same_columns and unharmed then
    null; -- Nothing was missed: only the way changes are captured is another one.
  elsif before.relation = watch.relation and before.key_columns = watch.key and unharmed then
    -- No change was missed, but other columns count from now on: what differs is written, no more.
    update pg2kv.sync s set audit_owed = coalesce(s.audit_owed, 'other columns are watched')
      where s.name = watch.sync;
  else
    -- Of what happened before the triggers were there, nothing is known.
    perform pg2kv.resync(sync);
  end if;

  if (select relrowsecurity from pg_class where oid = relation) then
    raise warning '% has row-level security, under which the daemon refuses to read', relation
      using hint = 'Give the role that the daemon logs in as BYPASSRLS.';
  end if;
  advice := pg2kv.index_advice(sync);
  if advice is not null then
    raise notice 'each change of % reads all of %: no index begins with what its documents share', sync, relation
      using hint = advice;
  end if;
  return format('%s is watched as %s', relation, sync);
end
$$;
comment on function pg2kv.watch(regclass, text, text[], text[], boolean, int) is
  'Has the changes of a table recorded: watch(''public.users'', sync => ''users'', key => ''{id}'', columns => ''{plan,flags}''); with collect, all rows of one key are one document';

create or replace function pg2kv.unwatch(sync text) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  before pg2kv.sync;
begin
  if not pg_has_role('pg2kv_owner', 'usage') then
    raise exception 'role % is not a member of pg2kv_owner', current_user
      using errcode = 'insufficient_privilege', hint = format('grant pg2kv_owner to %I;', current_user);
  end if;
  select * into before from pg2kv.sync s where s.name = unwatch.sync;
  if not found then
    return format('%s is not watched; nothing was changed', coalesce(quote_literal(sync), 'null'));
  end if;
  perform pg2kv.unwatch_related(r.sync, r.name)
    from pg2kv.related r where r.sync = unwatch.sync order by r.name;
  -- Most of the work is done before the table is locked, the little that came in meanwhile after.
  delete from pg2kv.outbox o where o.sync = unwatch.sync;
  perform pg2kv.drop_triggers(sync, '{}');
  execute format('drop function if exists pg2kv.capture_%1$s(), pg2kv.updated_%1$s()', sync);
  delete from pg2kv.outbox o where o.sync = unwatch.sync;
  delete from pg2kv.claim c where c.sync = unwatch.sync;
  delete from pg2kv.dead_letter d where d.sync = unwatch.sync;
  delete from pg2kv.backfill b where b.sync = unwatch.sync;
  delete from pg2kv.retired r where r.sync = unwatch.sync;
  delete from pg2kv.sync s where s.name = unwatch.sync;
  perform pg2kv.set_grants(before.relation);
  return format('%s is no longer watched as %s', before.relation, sync);
end
$$;
comment on function pg2kv.unwatch(text) is
  'Removes what watch() made and forgets what was waiting; KV keeps what was written to it';

create or replace function pg2kv.watch_related(relation regclass, sync text, name text, match jsonb,
                                              columns text[] default null)
  returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  parent pg2kv.sync;
  before pg2kv.related;
  wanted pg2kv.related;
  is_same boolean;
  renewed boolean;
  same_columns boolean;
  unharmed boolean;
  counting text[];
  label text := pg2kv.related_label(sync, name);
  key text[];
  recorded text;
  wrong text;
begin
  if not pg_has_role('pg2kv_owner', 'usage') then
    raise exception 'role % is not a member of pg2kv_owner', current_user
      using errcode = 'insufficient_privilege', hint = format('grant pg2kv_owner to %I;', current_user);
  end if;
  if relation is null then
    raise exception 'relation is null' using hint = 'For example relation => ''public.tenants''.';
  end if;
  select * into parent from pg2kv.sync s where s.name = watch_related.sync;
  if not found then
    raise exception 'no sync is named %', coalesce(quote_literal(sync), 'null')
      using hint = 'Its own table comes first: select pg2kv.watch(...).';
  end if;
  if name is null or name !~ '^[a-z][a-z0-9_]{0,30}$' then
    raise exception '% is not a name for a related table', coalesce(quote_literal(name), 'null')
      using hint = 'A lower-case letter, then up to 30 lower-case letters, digits and underscores.';
  end if;
  if octet_length(format('zzz_pg2kv_%s_truncate', label)) > 63 then
    raise exception 'the names % and % are too long together: triggers would need more than 63 characters',
        quote_literal(sync), quote_literal(name)
      using hint = 'Choose a shorter name for the related table.';
  end if;
  if jsonb_typeof(match) is distinct from 'object' or match = '{}'
     or exists (select from jsonb_each(match) m where jsonb_typeof(m.value) <> 'string') then
    raise exception 'match is not an object of column names: %', coalesce(match::text, 'null')
      using hint = 'For example match => ''{"tenant_id": "id"}'': a column of the sync''s table, and the one here that equals it.';
  end if;
  select array_agg(m.key order by m.key collate "C"), array_agg(m.value order by m.key collate "C")
    into wanted.match_from, wanted.match_to from jsonb_each_text(match) m;
  perform pg2kv.check_table(relation, wanted.match_to, columns, false, null);

  select string_agg(format('%I', m.own), ', ') into wrong
    from unnest(wanted.match_from) as m (own)
    where not exists (
      select from pg_attribute a
      where a.attrelid = parent.relation and a.attname = m.own and a.attnum > 0 and not a.attisdropped);
  if wrong is not null then
    raise exception '% has no column %', parent.relation, wrong
      using hint = 'match says column of the sync''s table first, column of the related table second.';
  end if;
  if not wanted.match_from <@ (parent.key_columns || coalesce(parent.columns, wanted.match_from)) then
    raise exception 'the sync % does not watch all of %, so a row that moves would go unnoticed',
        sync, array_to_string(wanted.match_from, ', ')
      using hint = format('First: select pg2kv.watch(%L, sync => %L, key => %L, columns => %L);', parent.relation, sync,
        parent.key_columns, array(select distinct c from unnest(parent.columns || wanted.match_from) c order by c));
  end if;
  -- Values go to the daemon as text and come back as the type of the sync's column, so equal values
  -- must have a text that both types read. Only of "exact" ones equal values have the same text.
  select string_agg(format('%s.%I (%s) and %s.%I (%s)', parent.relation, m.own, format_type(a.atttypid, a.atttypmod),
                           relation, m.theirs, format_type(b.atttypid, b.atttypmod)), ', ')
      filter (where kinds.own <> kinds.theirs and not (kinds.own = any (kinds.whole) and kinds.theirs = any (kinds.whole))
                and not (kinds.own = any (kinds.texts) and kinds.theirs = any (kinds.texts))),
    bool_and(
      kinds.own = kinds.theirs and (kinds.own = any (kinds.plain) or t.typtype = 'e')
      or kinds.own = any (kinds.texts) and kinds.theirs = any (kinds.texts)
         and (select bool_and(c.collisdeterministic) from pg_collation c
              where c.oid in (a.attcollation, b.attcollation)))
      and wanted.match_from <@ parent.key_columns and parent.key_columns <@ wanted.match_from
      and parent.shards is null -- a shard is known by the row only
    into wrong, wanted.direct
    from unnest(wanted.match_from, wanted.match_to) as m (own, theirs)
    join pg_attribute a on a.attrelid = parent.relation and a.attname = m.own
    join pg_attribute b on b.attrelid = watch_related.relation and b.attname = m.theirs
    cross join lateral (
      select pg2kv.base_type(a.atttypid) as own, pg2kv.base_type(b.atttypid) as theirs,
        '{int2,int4,int8}'::regtype[]::oid[] as whole, '{text,varchar}'::regtype[]::oid[] as texts,
        '{bool,int2,int4,int8,uuid,bytea,date,time,timestamp,timestamptz}'::regtype[]::oid[] as plain
    ) kinds
    join pg_type t on t.oid = kinds.own;
  if wrong is not null then
    raise exception 'columns of different types cannot match: %', wrong
      using hint = 'Give both the same type; whole numbers of any size match each other.';
  end if;

  select * into before from pg2kv.related r where r.sync = watch_related.sync and r.name = watch_related.name;
  counting := case when watch_related.columns is not null then wanted.match_to || watch_related.columns end;
  same_columns := coalesce(
    before.relation = watch_related.relation and before.match_from = wanted.match_from
    and before.match_to = wanted.match_to and before.columns is not distinct from watch_related.columns
    and before.direct = wanted.direct, false);
  is_same := same_columns and pg2kv.trigger_faults(sync) is null and pg2kv.is_current(label, relation, counting);
  if not is_same then
    perform pg2kv.take_lock(relation, 'share row exclusive');
  end if;

  -- Where the matched columns are the key, a change is the change of that key. Otherwise it is one
  -- row with the values: to look for the keys here would make the writer wait for all of them.
  if wanted.direct then
    recorded := '%s';
    key := array(
      select m.theirs from unnest(parent.key_columns) with ordinality as k (own, position)
      join unnest(wanted.match_from, wanted.match_to) as m (own, theirs) on m.own = k.own
      order by k.position);
  else
    recorded := format('pg_catalog.jsonb_build_object(''related'', %L, ''values'', %%s)', name);
    key := wanted.match_to;
  end if;
  unharmed := same_columns and pg2kv.trigger_faults(sync) is null;
  renewed := pg2kv.put_capture(label, sync, relation, key, counting,
    pg2kv.key_expression(relation, key, 'old'), pg2kv.key_expression(relation, key, 'new'), recorded,
    format('Records which documents of the sync %s changed rows of %s concern', sync, relation));
  if is_same then
    return format('%s is watched as %s of %s already; %s', relation, name, sync,
                  case when renewed then 'its trigger functions are new' else 'nothing was changed' end);
  end if;

  perform pg2kv.put_triggers(label, relation, counting, 'which documents the row concerns');
  if unharmed then
    return format('%s is watched as %s of %s', relation, name, sync); -- only captured in another way
  end if;

  insert into pg2kv.related (sync, name, relation, match_from, match_to, columns, direct)
    values (watch_related.sync, watch_related.name, watch_related.relation, wanted.match_from, wanted.match_to,
            watch_related.columns, wanted.direct)
    on conflict on constraint related_pkey do update
    set relation = excluded.relation, match_from = excluded.match_from, match_to = excluded.match_to,
        columns = excluded.columns, direct = excluded.direct, created_at = excluded.created_at;
  perform pg2kv.set_grants(relation);
  if before.relation <> relation then
    perform pg2kv.set_grants(before.relation);
  end if;
  -- Values that wait may be of other columns than these; the walk over every key comes instead.
  delete from pg2kv.outbox o where o.sync = watch_related.sync and o.key->>'related' = watch_related.name;
  perform pg2kv.resync(sync);

  if (select relrowsecurity from pg_class where oid = relation) then
    raise warning '% has row-level security, under which the daemon refuses to read', relation
      using hint = 'Give the role that the daemon logs in as BYPASSRLS.';
  end if;
  if not wanted.direct and not pg2kv.has_index(parent.relation, wanted.match_from) then
    raise warning 'no index of % begins with %: finding the documents of a changed row reads all rows',
        parent.relation, array_to_string(wanted.match_from, ', ')
      using hint = pg2kv.index_for(parent.relation, wanted.match_from, parent.key_columns);
  end if;
  return format('%s is watched as %s of %s', relation, name, sync);
end
$$;
comment on function pg2kv.watch_related(regclass, text, text, jsonb, text[]) is
  'Has changes of a table recorded that documents take data from: watch_related(''public.tenants'', sync => ''users'', name => ''tenants'', match => ''{"tenant_id": "id"}'', columns => ''{plan,name}'')';

create or replace function pg2kv.unwatch_related(sync text, name text) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  before pg2kv.related;
begin
  if not pg_has_role('pg2kv_owner', 'usage') then
    raise exception 'role % is not a member of pg2kv_owner', current_user
      using errcode = 'insufficient_privilege', hint = format('grant pg2kv_owner to %I;', current_user);
  end if;
  select * into before from pg2kv.related r
    where r.sync = unwatch_related.sync and r.name = unwatch_related.name;
  if not found then
    return format('%s of %s is not watched; nothing was changed', coalesce(quote_literal(name), 'null'),
                  coalesce(quote_literal(sync), 'null'));
  end if;
  perform pg2kv.drop_triggers(pg2kv.related_label(sync, name), '{}');
  execute format('drop function if exists pg2kv.capture_%1$s(), pg2kv.updated_%1$s()',
                 pg2kv.related_label(sync, name));
  delete from pg2kv.outbox o where o.sync = unwatch_related.sync and o.key->>'related' = unwatch_related.name;
  delete from pg2kv.related r where r.sync = unwatch_related.sync and r.name = unwatch_related.name;
  perform pg2kv.set_grants(before.relation);
  return format('%s is no longer watched as %s of %s', before.relation, name, sync);
end
$$;
comment on function pg2kv.unwatch_related(text, text) is
  'Removes what watch_related() made; changes of that table are recorded no more';

create or replace function pg2kv.status()
  returns table (sync text, relation text, triggers text, waiting bigint, oldest_wait interval,
                 claims bigint, dead_letters bigint, backfill text)
  language sql stable security definer
  set search_path = pg_catalog, pg_temp
as $$
  select s.name, s.relation::text,
    case when c.oid is null then 'the table is gone: watch another one, or unwatch'
         else coalesce(pg2kv.trigger_faults(s.name) || ' (run watch again)', 'ok') end,
    coalesce(o.waiting, 0), clock_timestamp() - o.oldest,
    (select count(*) from pg2kv.claim cl where cl.sync = s.name),
    (select count(*) from pg2kv.dead_letter d where d.sync = s.name),
    (select format('%s: %s, %s of %s', b.reason, b.phase, b.done, coalesce('about ' || b.estimate, 'an unknown number'))
     from pg2kv.backfill b where b.sync = s.name)
  from pg2kv.sync s
  left join pg_class c on c.oid = s.relation
  left join (select b.sync, count(*) as waiting, min(b.at) as oldest from pg2kv.outbox b group by b.sync) o
    on o.sync = s.name
  order by s.name
$$;
comment on function pg2kv.status() is
  'One row for each sync: whether its triggers are in order, and what waits';

create or replace function pg2kv.version() returns int
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select schema_version from pg2kv.meta
$$;
comment on function pg2kv.version() is 'The version of this schema';

-- What the daemon may do --------------------------------------------------------------------------

revoke all on schema pg2kv from public;
revoke all on all tables in schema pg2kv from public;
revoke all on all functions in schema pg2kv from public;
-- Writers need it where an index is on it.
grant execute on function pg2kv.shard(text, int) to public;
grant usage on schema pg2kv to pg2kv_daemon;
grant select, update (identity) on pg2kv.meta to pg2kv_daemon;
grant select, update (backfilled_at, keys_estimate, deletes_held, audited_at, audit_owed, configured)
  on pg2kv.sync to pg2kv_daemon;
grant select on pg2kv.related to pg2kv_daemon;
grant select, insert, delete on pg2kv.outbox to pg2kv_daemon;
grant select, insert, update, delete
  on pg2kv.claim, pg2kv.dead_letter, pg2kv.backfill, pg2kv.retired, pg2kv.lease to pg2kv_daemon;
grant select on sequence pg2kv.outbox_id_seq to pg2kv_daemon;
grant select, update on sequence pg2kv.bell to pg2kv_daemon;
grant execute on function pg2kv.version(), pg2kv.status(), pg2kv.resync(text), pg2kv.approve_deletes(text, interval),
  pg2kv.trigger_faults(text), pg2kv.tables_of(regclass), pg2kv.before_trigger(regclass), pg2kv.index_advice(text),
  pg2kv.shard_expression(regclass, text[], int, text), pg2kv.key_expression(regclass, text[], text),
  pg2kv.base_type(oid), pg2kv.related_label(text, text), pg2kv.has_index(regclass, text[]),
  pg2kv.index_for(regclass, text[], text[]) to pg2kv_daemon;

commit;
