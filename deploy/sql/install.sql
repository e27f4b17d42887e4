-- pg2kv for PostgreSQL 14 and later: what the daemon needs in the database that it watches.
--
-- What it does   Creates the schema pg2kv, three roles without login and eight functions for people:
--                pg2kv.watch(), pg2kv.unwatch(), pg2kv.watch_related(), pg2kv.unwatch_related(),
--                pg2kv.status(), pg2kv.resync(), pg2kv.approve_deletes(), pg2kv.version(). It touches no
--                table of yours.
-- Roles          pg2kv_owner owns the schema and its tables; pg2kv_capture owns the trigger functions and
--                may only insert a key into the outbox; pg2kv_daemon is what the daemon may do. Nobody
--                needs to be a member of the first two.
-- What watch()   Puts three triggers on one table of yours, four where every column counts. A change of the
-- does           key or of a watched column adds one small row (the key, never a value) to pg2kv.outbox in the writer's own transaction.
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
-- Your DDL       Columns that are not watched can change as they like. PostgreSQL refuses to drop a key
--                or watched column or to change its type while the table is watched. A rename never fails
--                a writer: until you call watch() with the new name, each transaction that writes to the
--                table records "every key of this sync".
-- Who runs it    This file: a superuser, or a role with CREATEROLE that may CREATE in this database.
--                watch() and unwatch(): the owner of the table. Running it again changes nothing.
--                Everything happens in one transaction.
-- Afterwards     create role pg2kv_login login password '...' in role pg2kv_daemon;
-- To remove it   uninstall.sql

begin;

set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;

-- Whoever may create schemas here could have made one named pg2kv, with a view or a function in it that
-- runs as whoever reads it. So who owns what is checked before anything of it is read or called.
do $verify$
declare
  stranger record;
begin
  perform pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
  select f.* into stranger
  from (
    select 'schema pg2kv' as what, nspowner as owner, true as expected
      from pg_catalog.pg_namespace where nspname = 'pg2kv'
    union all
    select pg_catalog.format('%s pg2kv.%I', case c.relkind when 'r' then 'table' when 'S' then 'sequence'
               when 'v' then 'view' when 'm' then 'materialized view' when 'f' then 'foreign table' else 'relation' end,
             c.relname),
        c.relowner, c.relkind in ('r', 'S', 'i', 't') or c.relkind = 'v' and c.relname = 'request'
      from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace where n.nspname = 'pg2kv'
    union all
    select pg_catalog.format('function pg2kv.%I', p.proname), p.proowner, true
      from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace where n.nspname = 'pg2kv'
    union all
    select pg_catalog.format('type pg2kv.%I', t.typname), t.typowner, t.typtype in ('b', 'c')
      from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace where n.nspname = 'pg2kv'
    union all
    select pg_catalog.format('role %I', rolname), oid,
        not (rolcanlogin or rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls)
      from pg_catalog.pg_roles where rolname in ('pg2kv_owner', 'pg2kv_capture')
  ) f
  where not f.expected
     or not exists (select from pg_catalog.pg_roles r where r.oid = f.owner
                    and (r.rolsuper or r.rolname in (current_user, 'pg2kv_owner', 'pg2kv_capture')))
  limit 1;
  if found then
    raise exception 'the % is not as pg2kv makes it (it belongs to %)', stranger.what, stranger.owner::pg_catalog.regrole
      using errcode = 'insufficient_privilege',
        hint = 'It could run code as you, so nothing of it was read or run. Drop it, or choose another schema name.';
  end if;
end
$verify$;

do $$
declare
  stranger record;
begin
  select o.rolname as role, u.rolname as member into stranger
  from pg_auth_members m join pg_roles o on o.oid = m.roleid join pg_roles u on u.oid = m.member
  where o.rolname in ('pg2kv_owner', 'pg2kv_capture') and not (u.rolsuper or u.rolname in (current_user, 'pg2kv_owner'))
  limit 1;
  if found then
    raise exception 'role % is a member of %, so it could change what every writer runs', stranger.member, stranger.role
      using errcode = 'insufficient_privilege',
        hint = format('revoke %I from %I cascade; or run this as %2$I, if it is yours to install with.', stranger.role, stranger.member);
  end if;
end
$$;

-- Roles are shared by all databases of a cluster, so they may be there already.
do $$
declare
  wanted record;
begin
  for wanted in
    select * from (values
      ('pg2kv_owner', 'pg2kv: owns the schema; nobody logs in as it or is a member of it'),
      ('pg2kv_capture', 'pg2kv: owns the trigger functions, which may insert keys into the outbox and nothing else'),
      ('pg2kv_daemon', 'pg2kv: what the daemon may do; grant it to the role that the daemon logs in as')) r (name, about)
    where not exists (select from pg_roles where rolname = r.name)
  loop
    begin
      execute format('create role %I nologin', wanted.name);
      execute format('comment on role %I is %L', wanted.name, wanted.about);
    exception when duplicate_object or unique_violation then
      null; -- another database of this cluster was quicker
    end;
  end loop;
  -- Only a member can make objects for a role. The membership of whoever installs ends with this file.
  -- (From 16 on, whoever made a role is a member that cannot become it yet.)
  if not (select rolsuper from pg_roles where rolname = current_user)
     and not pg_has_role('pg2kv_owner', case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end)
  then
    begin
      execute format('grant pg2kv_owner to %I', current_user);
      perform set_config('pg2kv.member_for_now', 'on', true);
    exception when insufficient_privilege then
      raise exception 'role % cannot make objects for pg2kv_owner', current_user
        using errcode = 'insufficient_privilege',
          hint = format('As a superuser, or as the role that made it: grant pg2kv_owner to %I with admin option;', current_user);
    end;
  end if;
  -- For alter function ... owner to pg2kv_capture.
  if not pg_has_role('pg2kv_owner', 'pg2kv_capture', 'member') then
    begin
      grant pg2kv_capture to pg2kv_owner;
    exception when insufficient_privilege then
      raise exception 'role % cannot grant pg2kv_capture to pg2kv_owner', current_user
        using errcode = 'insufficient_privilege',
          hint = 'As a superuser, or as the role that made it: grant pg2kv_capture to pg2kv_owner;';
    end;
  end if;
end
$$;

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
    if version > 1 then
      raise exception 'the schema pg2kv is newer than this file: it has version %, and this is version 1', version
        using hint = 'Use the install.sql of the newer release. Nothing was changed.';
    elsif version < 1 then
      raise exception 'the schema pg2kv is older than this file: it has version %, and this is version 1', version
        using hint = 'First run the files in upgrade/ that lead from there to here. Nothing was changed.';
    end if;
  end if;

  -- Roles are shared by all databases of a cluster: whoever is a member of pg2kv_daemon for another database
  -- would be one here.
  if exists (select from pg_shdepend d
             where d.refclassid = 'pg_authid'::regclass and d.dbid <> 0
               and d.dbid <> (select oid from pg_database where datname = current_database())
               and d.refobjid in (select oid from pg_roles where rolname in ('pg2kv_owner', 'pg2kv_daemon')))
     and coalesce(current_setting('pg2kv.share_roles', true), '') <> 'on' then
    raise exception 'another database of this cluster uses the roles of pg2kv: its daemon could read and delete what waits here'
      using hint = format('Choose another schema name for this database (the roles are named after it), or, if one '
        'daemon login may serve both: alter database %I set pg2kv.share_roles = on; and reconnect.', current_database());
  end if;
end
$$;

-- A dump that was restored without owners leaves everything to whoever restored it.
do $$
declare
  restored record;
begin
  for restored in
    select format('schema pg2kv') as name, 'pg2kv_owner' as owner
      from pg_namespace where nspname = 'pg2kv' and nspowner <> 'pg2kv_owner'::regrole
    union all
    select format('%s pg2kv.%I', case c.relkind when 'S' then 'sequence' when 'v' then 'view' else 'table' end, c.relname),
        'pg2kv_owner'
      from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where n.nspname = 'pg2kv' and c.relkind in ('r', 'S', 'v') and c.relowner <> 'pg2kv_owner'::regrole
        and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'i')
    union all
    select format('function pg2kv.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), 'pg2kv_owner'
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace
      where n.nspname = 'pg2kv' and p.proowner not in ('pg2kv_owner'::regrole, 'pg2kv_capture'::regrole)
  loop
    execute format('alter %s owner to %I', restored.name, restored.owner);
  end loop;
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
  serves int not null,
  installation text not null default left(replace(gen_random_uuid()::text, '-', ''), 12)
    check (installation ~ '^[0-9a-f]{12}$'),
  adopted text[] not null default '{}'
);
comment on table pg2kv.meta is 'One row: the version of this schema, and which daemons it serves';
comment on column pg2kv.meta.serves is
  'The oldest version of the daemon that can work with this schema';
comment on column pg2kv.meta.identity is
  'System identifier, timeline and database that the daemon last saw; a change makes it compare everything';
comment on column pg2kv.meta.installation is
  'Random number of this installation; the metadata of each pair in KV carries it, and no other pair is ever deleted as an orphan';
comment on column pg2kv.meta.adopted is
  'Installations whose pairs this one takes for its own: add the number of one that has stopped for good';
insert into pg2kv.meta (schema_version, serves) values (1, 1) on conflict (one) do nothing;

create table if not exists pg2kv.sync (
  name text primary key,
  relation regclass not null,
  key_columns text[] not null,
  columns text[],
  collect boolean not null default false,
  shards int,
  shard_key text[],
  watched_by regrole not null,
  functions bigint,
  created_at timestamptz not null default clock_timestamp(),
  backfilled_at timestamptz,
  keys_estimate bigint,
  deletes_approved_until timestamptz,
  deletes_held bigint,
  audited_at timestamptz,
  audit_owed text,
  configured jsonb,
  names_free text,
  deletes_lately jsonb
);
comment on table pg2kv.sync is 'What pg2kv.watch() has installed';
comment on column pg2kv.sync.backfilled_at is
  'When the daemon last finished a walk over all rows; null makes it begin one, -infinity once the triggers are in order again';
comment on column pg2kv.sync.keys_estimate is
  'Keys, as last counted or estimated: what the daemon holds mass deletes against';
comment on column pg2kv.sync.deletes_approved_until is
  'Any number of keys may be deleted from KV until then; see approve_deletes()';
comment on column pg2kv.sync.deletes_held is
  'Keys, about, whose deletes the daemon holds until somebody approves; null while it holds none';
comment on column pg2kv.sync.names_free is
  'Namespace and key under which no other installation had pairs when the daemon looked; null before it did';
comment on column pg2kv.sync.deletes_lately is
  'How many pairs were deleted when, as far as it counts against a mass delete; survives a restart of the daemon';
comment on column pg2kv.sync.configured is
  'Options of the sync with which the daemon wrote last; null before it first led';
comment on column pg2kv.sync.audited_at is 'When the daemon last compared KV with the rows';
comment on column pg2kv.sync.audit_owed is 'Why the daemon compares as soon as it can; null means when it is time';
comment on column pg2kv.sync.collect is 'All rows with one key are one document';
comment on column pg2kv.sync.shards is 'Among so many documents the rows of one key are divided; null is not at all';
comment on column pg2kv.sync.shard_key is 'The primary key when it was watched: what pg2kv.shard() divides by';
comment on column pg2kv.sync.watched_by is 'Who called watch(); may call it and unwatch() for this sync when the table is gone';
comment on column pg2kv.sync.functions is 'Hash of the source of its trigger functions as they were made: pg2kv.source_hash()';
comment on column pg2kv.sync.columns is 'Columns whose change counts, besides the key; null means every column';

create table if not exists pg2kv.related (
  sync text not null,
  name text not null,
  relation regclass not null,
  match_from text[] not null,
  match_to text[] not null,
  columns text[],
  direct boolean not null,
  functions bigint,
  created_at timestamptz not null default clock_timestamp(),
  primary key (sync, name)
);
comment on table pg2kv.related is 'What pg2kv.watch_related() has installed';
comment on column pg2kv.related.match_from is 'Columns of the sync''s table, in the order of their names';
comment on column pg2kv.related.match_to is 'Columns of the related table that equal those';
comment on column pg2kv.related.columns is 'Columns whose change counts, besides match_to; null means every column';
comment on column pg2kv.related.functions is 'As pg2kv.sync.functions';
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
  'An array: values of the key columns in order. null: every key of the sync. {"oversized": bytes, "md5": ...}: a key that is too long to be one in KV. {"again": [...]}: a key to be written whatever is known. {"related": ...}: the keys of the rows that match values of a related table, those after a key where the search is under way';

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
  rows bigint,
  started_at timestamptz not null default clock_timestamp(),
  updated_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
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
  -- Not pg_partition_tree(), which locks the partitions: the daemon asks this while it changes its own
  -- tables, and unwatch() changes those while it holds the partitions.
  with recursive tree as (
    select relation::oid as oid
    union all
    select i.inhrelid from tree t join pg_class p on p.oid = t.oid and p.relkind = 'p'
      join pg_inherits i on i.inhparent = t.oid
  )
  select t.oid::regclass from tree t left join pg_class c on c.oid = t.oid
  where t.oid = relation or c.relkind <> 'p'
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

create or replace function pg2kv.key_expression(
    relation regclass, key text[], of_row text, shard text default null) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  -- No cast, operator or function is chosen by a type that a user can make: such a cast would run as
  -- whoever evaluates this. jsonb_build_array() looks for casts of types that did not come with
  -- PostgreSQL; format() only calls a type's output function.
  -- Settings of the writer's session (time zone, bytea output) must not show in the key.
  select format(
    case when bool_and(a.attnotnull) then '%1$s' else 'case when %2$s then %1$s end' end,
    format('pg_catalog.jsonb_build_array(%s)', concat_ws(', ', string_agg(
      format(
        case when b.oid >= 16384 then 'pg_catalog.format(''%%s'', %s.%I)'
          when b.oid = 'timestamptz'::regtype then '%s.%I at time zone ''UTC'''
          when b.oid = 'bytea'::regtype then 'pg_catalog.encode(%s.%I, ''hex'')'
          else '%s.%I'
        end, of_row, a.attname),
      ', ' order by k.position), shard)),
    string_agg(format('%s.%I is not null', of_row, a.attname), ' and ' order by k.position)
      filter (where not a.attnotnull))
  from unnest(key) with ordinality as k (name, position)
  join pg_attribute a
    on a.attrelid = relation and a.attname = k.name and a.attnum > 0 and not a.attisdropped
  cross join lateral (select pg2kv.base_type(a.atttypid) as oid) b
  having count(*) > 0
$$;
comment on function pg2kv.key_expression(regclass, text[], text, text) is
  'SQL for the key of a row: an array of the key columns, null when one of them is null';

create or replace function pg2kv.key_size(relation regclass, key text[], of_row text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  -- octet_length() of text and bytea reads no out-of-line value.
  select string_agg(
    format(case when b.oid = 'bytea'::regtype then 'pg_catalog.octet_length(%s.%I) operator(pg_catalog.*) 2'
             when b.oid in ('text'::regtype, 'varchar'::regtype, 'bpchar'::regtype, 'bit'::regtype, 'varbit'::regtype)
             then 'pg_catalog.octet_length(%s.%I)'
             else 'pg_catalog.octet_length(pg_catalog.format(''%%s'', %s.%I))' end, of_row, a.attname),
    ' operator(pg_catalog.+) ' order by a.attnum)
  from pg_attribute a
  cross join lateral (select pg2kv.base_type(a.atttypid) as oid) b
  join pg_type t on t.oid = b.oid
  where a.attrelid = relation and a.attname = any (key) and a.attnum > 0 and t.typlen = -1
$$;
comment on function pg2kv.key_size(regclass, text[], text) is
  'SQL for the bytes of the key columns whose values have no fixed size; null when there are none';

create or replace function pg2kv.key_types(relation regclass, key text[], of_row text) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select string_agg(
    format('pg_catalog.pg_typeof(%s.%I) operator(pg_catalog.=) %L::pg_catalog.regtype', of_row, a.attname,
           format('%I.%I', n.nspname, t.typname)), ' and ' order by a.attnum)
  from pg_attribute a
  join pg_type t on t.oid = a.atttypid join pg_namespace n on n.oid = t.typnamespace
  where a.attrelid = relation and a.attname = any (key) and a.attnum > 0 and pg2kv.base_type(a.atttypid) < 16384
$$;
comment on function pg2kv.key_types(regclass, text[], text) is
  'SQL for whether the key columns still have the types for which key_expression() was made; null when any type will do';

create or replace function pg2kv.not_as_watched() returns jsonb
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  raise exception 'a key column has another type than when the table was watched' using errcode = 'datatype_mismatch';
end
$$;
comment on function pg2kv.not_as_watched() is 'For trigger functions: fails, so that they record every key';

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

create or replace function pg2kv.changed_sql(relation regclass, columns text[]) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  -- What is stored is compared: any type will do, and 1.0 differs from 1.00. (The operator "*<>" on
  -- rows would not survive pg_dump.) A value that is stored out of line counts as changed without a look
  -- at it: reading a document of megabytes twice would cost its writer more than all the rest.
  select concat_ws(' or ',
    'coalesce(greatest(' || (
      string_agg(format('pg_catalog.pg_column_size(new.%I)', a.attname),
                 ', ' order by a.attname) filter (where a.attlen = -1 and a.attstorage <> 'p'))
      || '), 0) operator(pg_catalog.>) 2100',
    case when columns is null then 'pg_catalog.record_image_ne(old, new)'
      else format('pg_catalog.record_image_ne(row(%s), row(%s))',
                  string_agg(format('old.%I', a.attname), ', ' order by a.attname),
                  string_agg(format('new.%I', a.attname), ', ' order by a.attname)) end)
  from pg_attribute a
  where a.attrelid = relation and (columns is null or a.attname = any (columns)) and a.attnum > 0
    and not a.attisdropped
$$;
comment on function pg2kv.changed_sql(regclass, text[]) is
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

create or replace function pg2kv.source_hash(label text) returns bigint
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select hashtextextended(string_agg(format('%s %s %s', p.proname, p.proconfig, p.prosrc), '' order by p.proname), 0)
  from pg_proc p
  where p.oid in (to_regprocedure(format('pg2kv.capture_%s()', label)), to_regprocedure(format('pg2kv.updated_%s()', label)))
$$;
comment on function pg2kv.source_hash(text) is 'Hash of the source of the trigger functions of a sync or a related table';

create or replace function pg2kv.put_function(
    name text, relation regclass, key text[], body text, about text) returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  settings text[];
  signature text := format('pg2kv.%s()', name);
  table_owner regrole := (select relowner from pg_class where oid = relation);
begin
  if exists (select from pg_attribute
             where attrelid = relation and attname = any (put_function.key)
               and pg2kv.base_type(atttypid) in ('float4'::regtype, 'float8'::regtype)) then
    settings := '{extra_float_digits=1}'; -- or the writer's setting would show in what is recorded
  end if;
  if exists (select from pg_proc where oid = to_regprocedure(signature)
             and prosrc = body and proconfig is not distinct from settings
             and prosecdef and proowner = 'pg2kv_capture'::regrole)
     and has_function_privilege(table_owner::oid, to_regprocedure(signature)::oid, 'execute') then
    return false;
  end if;
  execute format('create or replace function %s returns trigger language plpgsql security definer %s as %L',
                 signature, 'set ' || settings[1], body);
  -- A new owner must be allowed to create here; nobody else sees this state.
  grant create on schema pg2kv to pg2kv_capture;
  execute format('alter function %s owner to pg2kv_capture', signature);
  revoke create on schema pg2kv from pg2kv_capture;
  -- Whoever could call it on a table of their own could record keys here.
  execute format('revoke all on function %s from public', signature);
  execute format('grant execute on function %s to %s', signature, table_owner);
  execute format('comment on function %s is %L', signature, about);
  return true;
end
$$;
comment on function pg2kv.put_function(text, regclass, text[], text, text) is
  'Makes a trigger function; false where it was as it should be';

create or replace function pg2kv.wake() returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  -- As at the end of the trigger functions.
  if pg_sequence_last_value('pg2kv.bell') > date_part('epoch', clock_timestamp())
     and pg_notification_queue_usage() <= 0.5 then
    perform pg_notify('pg2kv', '');
  end if;
end
$$;
comment on function pg2kv.wake() is 'Notifies the daemon if it sleeps';

create or replace function pg2kv.record_every_key(sync text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  -- Ends with the transaction, and with a savepoint that is rolled back: so does what it stands for.
  recorded text := coalesce(current_setting('pg2kv.every_key', true), '');
begin
  if strpos(recorded, format('/%s/', sync)) > 0 then
    return;
  end if;
  insert into pg2kv.outbox (sync, key) values (record_every_key.sync, null);
  perform set_config('pg2kv.every_key', format('%s/%s/', recorded, sync), true);
  perform pg2kv.wake();
end
$$;
comment on function pg2kv.record_every_key(text) is
  'For trigger functions: records, once in a transaction, that every key of a sync may have changed';

create or replace function pg2kv.put_capture(
    label text, sync text, relation regclass, key text[], columns text[], was text, is_now text, nullable boolean,
    related text, about text)
  returns boolean
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  recorded text := case when related is null then 'key'
    else format('pg_catalog.jsonb_build_object(''related'', %L, ''values'', key)', related) end;
  compared text := pg2kv.changed_sql(relation, columns);
  comparison text := case
    when not pg2kv.set_tells(relation, columns) then null -- the trigger has it as its WHEN
    when columns is not null then format(E'    if not (%s) then\n      return null;\n    end if;\n', compared)
    else format($compare$    begin
      if not (%s) then
        return null;
      end if;
    exception when syntax_error_or_access_rule_violation then
      null; -- A column that is not of the key was dropped or renamed: the row counts as changed.
    end;
$compare$, compared) end;
  insert_key text := format('insert into pg2kv.outbox (sync, key) values (%L, %s);', sync, recorded);
  insert_old text := format('insert into pg2kv.outbox (sync, key) values (%L, %s);', sync, replace(recorded, 'key', 'old_key'));
  otherwise text := format($otherwise$  exception when syntax_error_or_access_rule_violation then
    -- A column has another name or type than when the table was watched. No writer fails for that, and
    -- nothing goes unseen. (Nothing was written in this block, so it takes no transaction id of its own.)
    perform pg2kv.record_every_key(%L);
    return null;
  end;
$otherwise$, sync);
  wake text := $wake$  -- The order matters: insert first, then look whether the daemon sleeps. A query of the sequence
  -- would cost as much as half of the insert. Into a queue that is half full nobody notifies: once it is
  -- full, every transaction that has notified fails at its commit.
  if pg_catalog.pg_sequence_last_value('pg2kv.bell'::pg_catalog.regclass)
     operator(pg_catalog.>) pg_catalog.date_part('epoch', pg_catalog.clock_timestamp())
     and pg_catalog.pg_notification_queue_usage() operator(pg_catalog.<=) 0.5 then
    -- An expression, where PERFORM would be one more query for each row.
    if pg_catalog.pg_notify('pg2kv', '') is null then null; end if;
  end if;
  return null;
$wake$;
  skip text := case when nullable then E'  if key is null then\n    return null;\n  end if;\n' end;
  renewed boolean;
begin
  -- These run in every writer's transaction, so they are static and short and have nothing in them that
  -- could fail. They run as pg2kv_capture: writers need no privileges here. Each name in them carries its
  -- schema, operators too, so that nothing a writer made can take a place in them; a search_path of their
  -- own would say the same, and cost more than half of an insert. PL/pgSQL prepares each expression
  -- that it comes by anew in each transaction, so an UPDATE, the usual change, comes by few.
  renewed := pg2kv.put_function('capture_' || label, relation, key, format($capture$
declare
  key pg_catalog.jsonb;
begin
  begin
    if tg_op operator(pg_catalog.=) 'INSERT' then
      key := %1$s;
    elsif tg_op operator(pg_catalog.=) 'DELETE' then
      key := %2$s;
    else
      perform pg2kv.record_every_key(%3$L); -- TRUNCATE
      return null;
    end if;
%4$s%5$s  %6$s
%7$send
$capture$, is_now, was, sync, otherwise, skip, insert_key, wake), about);
  return pg2kv.put_function('updated_' || label, relation, key, format($updated$
declare
  key pg_catalog.jsonb;
  old_key pg_catalog.jsonb;
begin
  begin
%1$s    key := %2$s;
    if not %3$s then
      old_key := %4$s;
    end if;
%5$s%6$s%7$send
$updated$, comparison, is_now, pg2kv.same_key(key), was, otherwise,
    format($keys$  -- Compared as text, because 1.0 and 1.00 are equal numbers but different keys.
  if old_key is not null and %s then
    %s
  end if;
  %s
$keys$, case when nullable then '(key is null or pg_catalog.record_image_ne(row(old_key::pg_catalog.text), row(key::pg_catalog.text)))'
           else 'pg_catalog.record_image_ne(row(old_key::pg_catalog.text), row(key::pg_catalog.text))' end,
      insert_old, case when nullable then format(E'if key is not null then\n    %s\n  end if;', insert_key) else insert_key end),
    wake), about) or renewed;
end
$$;
comment on function pg2kv.put_capture(text, text, regclass, text[], text[], text, text, boolean, text, text) is
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
  select concat(
    'case when not (' || pg2kv.key_types(relation, key || shard_key, of_row) || ') then pg2kv.not_as_watched() else ',
    'case when ' || pg2kv.key_size(relation, key || shard_key, of_row) || ' operator(pg_catalog.>) 4096'
      || format(' then pg_catalog.jsonb_build_object(''oversized'', %s, ''md5'', pg_catalog.md5(pg_catalog.concat_ws('','', %s))) else ',
                pg2kv.key_size(relation, key || shard_key, of_row),
                (select string_agg(format('%s.%I', of_row, name), ', ') from unnest(key || shard_key) name)),
    coalesce(
      pg2kv.key_expression(relation, key, of_row, pg2kv.shard_expression(relation, shard_key, shards, of_row)),
      format('pg_catalog.jsonb_build_array(%s)', pg2kv.shard_expression(relation, shard_key, shards, of_row))),
    case when pg2kv.key_size(relation, key || shard_key, of_row) is not null then ' end' end,
    case when pg2kv.key_types(relation, key || shard_key, of_row) is not null then ' end' end)
$$;
comment on function pg2kv.document_key(regclass, text[], text[], int, text) is
  'SQL for what a trigger records of a row: its key and its shard behind it, or how long the key is when it is too long to be one in KV';

create or replace function pg2kv.is_nullable(relation regclass, key text[]) returns boolean
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select exists (select from pg_attribute
                 where attrelid = relation and attname = any (key) and attnum > 0 and not attnotnull)
$$;
comment on function pg2kv.is_nullable(regclass, text[]) is 'Whether one of these columns may be null';

create or replace function pg2kv.check_table(
    caller name, relation regclass, key text[], columns text[], collect boolean, shard_key text[]) returns void
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
  if not pg_has_role(caller, class.relowner, 'usage') then
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
comment on function pg2kv.check_table(name, regclass, text[], text[], boolean, text[]) is
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
  with watched as (
    select s.name as label, s.relation, s.key_columns || s.columns || s.shard_key as columns, s.functions,
      s.columns is null as every_column, s.key_columns || s.shard_key as key, pg2kv.before_trigger(s.relation) as before
    from pg2kv.sync s where s.name = trigger_faults.sync
    union all
    select pg2kv.related_label(r.sync, r.name), r.relation, r.match_to || r.columns, r.functions,
      r.columns is null, r.match_to, pg2kv.before_trigger(r.relation)
    from pg2kv.related r where r.sync = trigger_faults.sync
  )
  select string_agg(fault, '; ' order by relation, fault)
  from (
    select wanted.relation::text as relation, format('trigger %I on %s %s', wanted.name, wanted.relation, judged.fault) as fault
    from (
      select t as relation, format('zzz_pg2kv_%s_%s', w.label, kind) as name,
        to_regprocedure(format('pg2kv.%s_%s()', case kind when 'update' then 'updated' else 'capture' end,
                               w.label)) as function,
        case when kind = 'update' and not w.every_column then w.columns end as columns, w.before
      from watched w, pg2kv.tables_of(w.relation) t, unnest(array['row', 'update', 'truncate']) kind
      union all
      select w.relation, format('zzz_pg2kv_%s_key', w.label), to_regprocedure(format('pg2kv.capture_%s()', w.label)),
        w.key, null
      from watched w where w.every_column and cardinality(w.key) > 0
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
        when t.tgparentid = 0 then ( -- those of partitions have the columns of their parent's
          -- A trigger keeps its columns through a rename, after which another one may have the name.
          select format('does not see the column %s', string_agg(format('%I', c.name), ', ' order by c.name))
          from unnest(wanted.columns) as c (name)
          left join pg_attribute a on a.attrelid = wanted.relation and a.attname = c.name and a.attnum > 0
          where not exists (
            select from pg_depend d
            where d.classid = 'pg_trigger'::regclass and d.objid = t.oid
              and d.refclassid = 'pg_class'::regclass and d.refobjid = wanted.relation and d.refobjsubid = a.attnum)
          having count(*) > 0)
      end as fault
    ) judged
    where judged.fault is not null
    union all
    -- What writers run must be what watch() made, as the role that it made it for.
    select '', case
        when p.oid is null then format('the trigger functions of %s are missing', w.label)
        when p.proowner <> 'pg2kv_capture'::regrole or not p.prosecdef
          then format('function %s runs as %s instead of pg2kv_capture', p.oid::regprocedure,
                      case when p.prosecdef then p.proowner::regrole::text else 'its caller' end)
        else format('the source of %s is not what watch() made', p.oid::regprocedure) end
    from watched w
    left join pg_proc p on p.oid in (to_regprocedure(format('pg2kv.capture_%s()', w.label)),
                                     to_regprocedure(format('pg2kv.updated_%s()', w.label)))
    where p.oid is null or p.proowner <> 'pg2kv_capture'::regrole or not p.prosecdef
      or pg2kv.source_hash(w.label) is distinct from w.functions
  ) faults
$$;
comment on function pg2kv.trigger_faults(text) is
  'What is wrong with the triggers of a sync and their functions; null when nothing is';

create or replace function pg2kv.update_trigger(relation regclass, columns text[]) returns text[]
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  -- A trigger on columns is not even looked at when a statement sets others. Where the set columns do
  -- not tell, the WHEN is evaluated for each row that is updated, whatever was set.
  select array[
    (select ' of ' || string_agg(distinct format('%I', name), ', ' order by format('%I', name))
     from unnest(columns) name where pg2kv.set_tells(relation, columns)),
    (select format('when (%s) ', pg2kv.changed_sql(relation, columns)) where not pg2kv.set_tells(relation, columns))]
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

create or replace function pg2kv.trigger_statements(
    label text, relation regclass, key text[], columns text[], recorded text) returns text[]
  language plpgsql stable
  set search_path = pg_catalog, pg_temp
as $$
declare
  one_table regclass;
  clauses text[] := pg2kv.update_trigger(relation, columns);
  made text[];
begin
  -- Row triggers, because statement triggers see neither changes made directly to a partition nor
  -- those that logical replication applies.
  made := array[
    format('create or replace trigger zzz_pg2kv_%1$s_row after insert or delete on %2$s
    for each row execute function pg2kv.capture_%1$s()', label, relation),
    format('create or replace trigger zzz_pg2kv_%1$s_update after update%3$s on %2$s
    for each row %4$sexecute function pg2kv.updated_%1$s()', label, relation, clauses[1], clauses[2]),
    format('comment on trigger zzz_pg2kv_%1$s_row on %2$s is %3$L', label, relation, 'pg2kv: records ' || recorded),
    format('comment on trigger zzz_pg2kv_%1$s_update on %2$s is %3$L', label, relation,
           'pg2kv: records ' || recorded || ', the old one and the new one')];
  if columns is null and cardinality(key) > 0 then
    -- Never called: it makes PostgreSQL refuse to drop the key columns or to change their types. Other
    -- forms name these columns in the trigger for UPDATE.
    made := made || array[
      format('create or replace trigger zzz_pg2kv_%1$s_key after update of %3$s on %2$s
    for each statement when (false) execute function pg2kv.capture_%1$s()', label, relation,
             (select string_agg(distinct format('%I', name), ', ') from unnest(key) name)),
      format('comment on trigger zzz_pg2kv_%1$s_key on %2$s is %3$L', label, relation,
             'pg2kv: is never called; holds the types of the key columns'),
      format('alter table %2$s enable always trigger zzz_pg2kv_%1$s_key', label, relation)];
  elsif exists (select from pg_trigger t where t.tgrelid = relation and t.tgname = format('zzz_pg2kv_%s_key', label)) then
    made := made || format('drop trigger zzz_pg2kv_%1$s_key on %2$s', label, relation);
  end if;
  for one_table in select pg2kv.tables_of(relation) loop
    made := made || array[
      format('create or replace trigger zzz_pg2kv_%1$s_truncate after truncate on %2$s
      for each statement execute function pg2kv.capture_%1$s()', label, one_table),
      format('comment on trigger zzz_pg2kv_%1$s_truncate on %2$s is %3$L', label, one_table,
             'pg2kv: records that every key is to be looked at again'),
      -- "Always" is also under logical replication and session_replication_role = replica.
      format('alter table %2$s
      enable always trigger zzz_pg2kv_%1$s_row,
      enable always trigger zzz_pg2kv_%1$s_update,
      enable always trigger zzz_pg2kv_%1$s_truncate', label, one_table)];
  end loop;
  return made || pg2kv.drop_statements(label, array(select pg2kv.tables_of(relation)));
end
$$;
comment on function pg2kv.trigger_statements(text, regclass, text[], text[], text) is
  'Statements that have the changes of a table call its trigger functions, and those of no other table';

create or replace function pg2kv.drop_statements(label text, keep regclass[]) returns text[]
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select coalesce(array_agg(s.statement order by t.tgrelid, t.tgname, s.step), '{}')
  from pg_trigger t
  cross join lateral (values
    (1, format('select pg2kv.take_lock(%L, ''access exclusive'')', t.tgrelid::regclass)),
    (2, format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass))) s (step, statement)
  where t.tgfoid in (to_regprocedure(format('pg2kv.capture_%s()', label)),
                     to_regprocedure(format('pg2kv.updated_%s()', label)))
    and t.tgparentid = 0 -- the others go with their parent's
    and t.tgrelid <> all (keep::oid[])
$$;
comment on function pg2kv.drop_statements(text, regclass[]) is
  'Statements that remove the triggers of a sync from all tables but these';

create or replace function pg2kv.grant_statements(caller name, relation regclass) returns text[]
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  home regnamespace := (select relnamespace from pg_class where oid = relation);
  made text[];
  watched record;
begin
  if home is null then
    return '{}'; -- the table is gone, and its privileges with it
  end if;
  made := array[format('revoke select on table %s from pg2kv_daemon', relation)];
  for watched in
    select s.key_columns || coalesce(s.shard_key, '{}') as key_columns, s.columns
    from pg2kv.sync s where s.relation = grant_statements.relation
    union all
    select r.match_to, r.columns from pg2kv.related r where r.relation = grant_statements.relation
  loop
    made := made || case when watched.columns is null
      then format('grant select on table %s to pg2kv_daemon', relation)
      else format('grant select (%s) on table %s to pg2kv_daemon',
        (select string_agg(distinct format('%I', name), ', ') from unnest(watched.key_columns || watched.columns) name),
        relation) end;
  end loop;
  if exists (
    select from (
      select s.relation from pg2kv.sync s union all select r.relation from pg2kv.related r
    ) w join pg_class c on c.oid = w.relation
    where c.relnamespace = home
  ) then
    if not has_schema_privilege('pg2kv_daemon', home, 'usage') then
      if has_schema_privilege(caller, home, 'usage with grant option') then
        made := made || format('grant usage on schema %s to pg2kv_daemon', home);
      else
        raise warning 'the daemon cannot reach the schema %, and % may not grant that', home, caller
          using hint = format('Its owner can: grant usage on schema %s to %I;', home, 'pg2kv_daemon');
      end if;
    end if;
  elsif exists (select from pg_namespace n, aclexplode(n.nspacl) as acl
                where n.oid = home and acl.grantee = 'pg2kv_daemon'::regrole)
      and has_schema_privilege(caller, home, 'usage with grant option') then
    made := made || format('revoke usage on schema %s from pg2kv_daemon', home);
  end if;
  return made;
end
$$;
comment on function pg2kv.grant_statements(name, regclass) is
  'Statements that let the daemon read exactly what the syncs of a table name: their key and watched columns';

create or replace function pg2kv.lock_sync(caller name, sync text) returns pg2kv.sync
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '2s'
as $$
declare
  found_sync pg2kv.sync;
  table_owner oid;
begin
  select * into found_sync from pg2kv.sync s where s.name = lock_sync.sync for update;
  select relowner into table_owner from pg_class where oid = found_sync.relation;
  if found_sync.name is not null
     and not pg_has_role(caller, coalesce(table_owner, found_sync.watched_by::oid), 'usage')
     and not pg_has_role(caller, 'pg2kv_owner', 'usage') then
    raise exception 'the sync % belongs to the owner of % (%)', sync, found_sync.relation,
        coalesce(table_owner, found_sync.watched_by::oid)::regrole
      using errcode = 'insufficient_privilege', hint = 'Run this as that role or as a superuser, or choose another name.';
  end if;
  return found_sync;
exception when lock_not_available then
  raise exception 'the sync % is being changed by another transaction; nothing was changed', sync
    using errcode = 'lock_not_available', hint = 'Run it again when that transaction is over.';
end
$$;
comment on function pg2kv.lock_sync(name, text) is
  'The row of a sync, locked, when the caller may change it; empty when there is no such sync';

create or replace function pg2kv.delete_waiting(sync text, related text default null) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  -- A row that the daemon has just taken is skipped instead of waited for: the daemon may wait for us.
  delete from pg2kv.outbox where id in (
    select o.id from pg2kv.outbox o
    where o.sync = delete_waiting.sync and (related is null or o.key->>'related' = related)
    for update skip locked);
end
$$;
comment on function pg2kv.delete_waiting(text, text) is 'Takes back what waits in the outbox for a sync, or for a related table of it';

create or replace function pg2kv.make_sync(
    caller name, relation regclass, sync text, key text[], columns text[], collect boolean, shards int)
  returns jsonb
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
declare
  before pg2kv.sync;
  beside pg2kv.related;
  is_same boolean;
  unharmed boolean;
  renewed boolean;
  same_columns boolean;
  counting text[];
  primary_key text[];
  advice text;
  statements text[];
begin
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
      where i.indrelid = make_sync.relation and i.indisprimary and k.position <= i.indnkeyatts;
    if primary_key is null then
      raise exception '% has no primary key, by which rows are divided among shards', relation
        using hint = 'Give the table a primary key, or leave shards out.';
    end if;
  end if;
  perform pg2kv.check_table(caller, relation, key, columns, collect, primary_key);
  perform pg2kv.check_unique(relation, key, collect);

  before := pg2kv.lock_sync(caller, sync);
  counting := case when make_sync.columns is not null then key || make_sync.columns || primary_key end;
  same_columns := coalesce(
    before.relation = make_sync.relation and before.key_columns = make_sync.key
    and before.columns is not distinct from make_sync.columns
    and before.collect = make_sync.collect and before.shards is not distinct from make_sync.shards
    and before.shard_key is not distinct from primary_key, false);
  is_same := same_columns and pg2kv.trigger_faults(sync) is null and pg2kv.is_current(sync, relation, counting);
  unharmed := before.name is not null and before.backfilled_at is distinct from '-infinity'
    and pg2kv.trigger_faults(sync) is null;

  renewed := pg2kv.put_capture(sync, sync, relation, key || primary_key, counting,
    pg2kv.document_key(relation, key, primary_key, shards, 'old'),
    pg2kv.document_key(relation, key, primary_key, shards, 'new'), pg2kv.is_nullable(relation, key || primary_key), null,
    format('Records the keys of changed rows of %s for the sync %s', relation, sync));
  update pg2kv.sync s set functions = pg2kv.source_hash(sync) where s.name = make_sync.sync and renewed;
  if is_same then
    return jsonb_build_object('message', format('%s is watched as %s already; %s', relation, sync,
      case when renewed then 'its trigger functions are new' else 'nothing was changed' end));
  end if;
  statements := format('select pg2kv.take_lock(%L, ''share row exclusive'')', relation)
    || pg2kv.trigger_statements(sync, relation, key || primary_key, counting, 'the key of the row');

  insert into pg2kv.sync (name, relation, key_columns, columns, collect, shards, shard_key, watched_by, functions)
    values (make_sync.sync, make_sync.relation, make_sync.key, make_sync.columns, make_sync.collect, make_sync.shards, primary_key,
            caller::regrole, pg2kv.source_hash(sync))
    on conflict (name) do update
    set relation = excluded.relation, key_columns = excluded.key_columns, columns = excluded.columns,
        collect = excluded.collect, shards = excluded.shards, shard_key = excluded.shard_key,
        watched_by = excluded.watched_by, functions = excluded.functions, created_at = excluded.created_at;
  statements := statements || pg2kv.grant_statements(caller, relation);
  if before.relation <> relation then
    statements := statements || pg2kv.grant_statements(caller, before.relation);
  end if;
  -- What their triggers write depends on the key of the sync.
  for beside in select * from pg2kv.related r where r.sync = make_sync.sync order by r.name loop
    statements := statements || array(select jsonb_array_elements_text(pg2kv.make_related(
      caller, beside.relation, beside.sync, beside.name, jsonb_object(beside.match_from, beside.match_to),
      beside.columns)->'statements'));
  end loop;
  if same_columns and unharmed then
    null; -- Nothing was missed: only the way changes are captured is another one.
  elsif before.relation = make_sync.relation and before.key_columns = make_sync.key and unharmed then
    -- No change was missed, but other columns count from now on: what differs is written, no more.
    update pg2kv.sync s set audit_owed = coalesce(s.audit_owed, 'other columns are watched')
      where s.name = make_sync.sync;
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
  return jsonb_build_object('message', format('%s is watched as %s', relation, sync), 'statements', statements);
end
$$;
comment on function pg2kv.make_sync(name, regclass, text, text[], text[], boolean, int) is
  'The part of watch() that needs the rights of pg2kv_owner; returns what is left to do with the rights of the caller';

create or replace function pg2kv.related_key(relation regclass, key text[], of_row text, direct boolean) returns text
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select case when direct then pg2kv.document_key(relation, key, null, null, of_row)
    else format('case when %s then %s else pg2kv.not_as_watched() end',
      concat_ws(' and ', coalesce(pg2kv.key_types(relation, key, of_row), 'true'),
                'coalesce(' || pg2kv.key_size(relation, key, of_row) || ' operator(pg_catalog.<=) 4096, true)'),
      pg2kv.key_expression(relation, key, of_row)) end
$$;
comment on function pg2kv.related_key(regclass, text[], text, boolean) is
  'SQL for what a trigger records of a row of a related table: the key of the sync, or the values that match';

create or replace function pg2kv.make_related(
    caller name, relation regclass, sync text, name text, match jsonb, columns text[])
  returns jsonb
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
  wrong text;
  statements text[];
begin
  if relation is null then
    raise exception 'relation is null' using hint = 'For example relation => ''public.tenants''.';
  end if;
  parent := pg2kv.lock_sync(caller, sync);
  if parent.name is null then
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
  perform pg2kv.check_table(caller, relation, wanted.match_to, columns, false, null);

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
    join pg_attribute b on b.attrelid = make_related.relation and b.attname = m.theirs
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

  select * into before from pg2kv.related r where r.sync = make_related.sync and r.name = make_related.name;
  counting := case when make_related.columns is not null then wanted.match_to || make_related.columns end;
  same_columns := coalesce(
    before.relation = make_related.relation and before.match_from = wanted.match_from
    and before.match_to = wanted.match_to and before.columns is not distinct from make_related.columns
    and before.direct = wanted.direct, false);
  is_same := same_columns and pg2kv.trigger_faults(sync) is null and pg2kv.is_current(label, relation, counting);

  -- Where the matched columns are the key, a change is the change of that key. Otherwise it is one
  -- row with the values: to look for the keys here would make the writer wait for all of them.
  if wanted.direct then
    key := array(
      select m.theirs from unnest(parent.key_columns) with ordinality as k (own, position)
      join unnest(wanted.match_from, wanted.match_to) as m (own, theirs) on m.own = k.own
      order by k.position);
  else
    key := wanted.match_to;
  end if;
  unharmed := same_columns and pg2kv.trigger_faults(sync) is null;
  renewed := pg2kv.put_capture(label, sync, relation, key, counting,
    pg2kv.related_key(relation, key, 'old', wanted.direct), pg2kv.related_key(relation, key, 'new', wanted.direct),
    pg2kv.is_nullable(relation, key), case when not wanted.direct then name end,
    format('Records which documents of the sync %s changed rows of %s concern', sync, relation));
  update pg2kv.related r set functions = pg2kv.source_hash(label)
    where r.sync = make_related.sync and r.name = make_related.name and renewed;
  if is_same then
    return jsonb_build_object('message', format('%s is watched as %s of %s already; %s', relation, name, sync,
      case when renewed then 'its trigger functions are new' else 'nothing was changed' end));
  end if;

  statements := format('select pg2kv.take_lock(%L, ''share row exclusive'')', relation)
    || pg2kv.trigger_statements(label, relation, key, counting, 'which documents the row concerns');
  if unharmed then -- only captured in another way
    return jsonb_build_object('message', format('%s is watched as %s of %s', relation, name, sync), 'statements', statements);
  end if;

  insert into pg2kv.related (sync, name, relation, match_from, match_to, columns, direct, functions)
    values (make_related.sync, make_related.name, make_related.relation, wanted.match_from, wanted.match_to,
            make_related.columns, wanted.direct, pg2kv.source_hash(label))
    on conflict on constraint related_pkey do update
    set relation = excluded.relation, match_from = excluded.match_from, match_to = excluded.match_to,
        columns = excluded.columns, direct = excluded.direct, functions = excluded.functions, created_at = excluded.created_at;
  statements := statements || pg2kv.grant_statements(caller, relation);
  if before.relation <> relation then
    statements := statements || pg2kv.grant_statements(caller, before.relation);
  end if;
  -- Values that wait may be of other columns than these; the walk over every key comes instead.
  perform pg2kv.delete_waiting(sync, name);
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
  return jsonb_build_object('message', format('%s is watched as %s of %s', relation, name, sync), 'statements', statements);
end
$$;
comment on function pg2kv.make_related(name, regclass, text, text, jsonb, text[]) is
  'The part of watch_related() that needs the rights of pg2kv_owner; returns what is left to do with those of the caller';

create or replace function pg2kv.forget_related(sync text, name text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  execute format('drop function if exists pg2kv.capture_%1$s(), pg2kv.updated_%1$s()', pg2kv.related_label(sync, name));
  perform pg2kv.delete_waiting(sync, name);
  delete from pg2kv.related r where r.sync = forget_related.sync and r.name = forget_related.name;
end
$$;
comment on function pg2kv.forget_related(text, text) is 'What unwatch_related() does once the triggers are gone';

create or replace function pg2kv.forget_sync(sync text) returns void
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg2kv.forget_related(r.sync, r.name) from pg2kv.related r where r.sync = forget_sync.sync;
  execute format('drop function if exists pg2kv.capture_%1$s(), pg2kv.updated_%1$s()', sync);
  perform pg2kv.delete_waiting(sync);
  -- As in delete_waiting(): what the daemon is changing is its own to remove.
  delete from pg2kv.claim where id in (
    select c.id from pg2kv.claim c where c.sync = forget_sync.sync for update skip locked);
  delete from pg2kv.dead_letter where ctid = any (array(
    select d.ctid from pg2kv.dead_letter d where d.sync = forget_sync.sync for update skip locked));
  delete from pg2kv.backfill b where b.sync in (
    select x.sync from pg2kv.backfill x where x.sync = forget_sync.sync for update skip locked);
  delete from pg2kv.retired r where r.id in (
    select x.id from pg2kv.retired x where x.sync = forget_sync.sync for update skip locked);
  delete from pg2kv.sync s where s.name = forget_sync.sync;
end
$$;
comment on function pg2kv.forget_sync(text) is 'What unwatch() does once the triggers are gone';

-- Administrative functions need rights of two roles: those of pg2kv_owner for the tables of this schema,
-- those of the caller for the caller's table. Only the first part is SECURITY DEFINER, and such a function
-- cannot ask who called it (session_user and the setting "role" tell who began the session, which is not
-- whose function is running). A default of a column is evaluated as whoever inserts, and nobody may
-- supply that column: so an INSERT into this view is a call with a caller that cannot be forged.
create or replace view pg2kv.request as
  select null::name as caller, null::text as operation, null::jsonb as arguments, null::jsonb as answer where false;
alter view pg2kv.request alter column caller set default current_user;
comment on view pg2kv.request is
  'How watch() and unwatch() reach what only pg2kv_owner may do: an INSERT performs the operation for the role that inserts';

create or replace function pg2kv.perform_request() returns trigger
  language plpgsql security definer
  set search_path = pg_catalog, pg_temp
as $$
declare
  given jsonb := new.arguments;
  sync text := given->>'sync';
  before pg2kv.sync;
  beside pg2kv.related;
  relations regclass[];
  statements text[];
  message text;
begin
  case new.operation
  when 'watch' then
    new.answer := pg2kv.make_sync(new.caller, (given->>'relation')::oid::regclass, sync,
      case when jsonb_typeof(given->'key') = 'array' then array(select jsonb_array_elements_text(given->'key')) end,
      case when jsonb_typeof(given->'columns') = 'array' then array(select jsonb_array_elements_text(given->'columns')) end,
      (given->>'collect')::boolean, (given->>'shards')::int);
  when 'watch_related' then
    new.answer := pg2kv.make_related(new.caller, (given->>'relation')::oid::regclass, sync, given->>'name',
      nullif(given->'match', 'null'),
      case when jsonb_typeof(given->'columns') = 'array' then array(select jsonb_array_elements_text(given->'columns')) end);
  when 'unwatch', 'forget' then
    before := pg2kv.lock_sync(new.caller, sync);
    relations := before.relation || array(select r.relation from pg2kv.related r where r.sync = before.name);
    if before.name is null then
      new.answer := jsonb_build_object('message',
        format('%s is not watched; nothing was changed', coalesce(quote_literal(sync), 'null')));
    elsif new.operation = 'unwatch' then
      statements := pg2kv.drop_statements(sync, '{}') || array(
        select d.statement from pg2kv.related r
        cross join unnest(pg2kv.drop_statements(pg2kv.related_label(r.sync, r.name), '{}')) d (statement)
        where r.sync = before.name);
    else
      perform pg2kv.forget_sync(sync);
      message := format('%s is no longer watched as %s', before.relation, sync);
    end if;
  when 'unwatch_related', 'forget_related' then
    before := pg2kv.lock_sync(new.caller, sync);
    select * into beside from pg2kv.related r where r.sync = before.name and r.name = given->>'name';
    relations := array[beside.relation];
    if beside.name is null then
      message := format('%s of %s is not watched; nothing was changed',
                        coalesce(quote_literal(given->>'name'), 'null'), coalesce(quote_literal(sync), 'null'));
    elsif new.operation = 'unwatch_related' then
      statements := pg2kv.drop_statements(pg2kv.related_label(sync, beside.name), '{}');
    else
      perform pg2kv.forget_related(sync, beside.name);
      message := format('%s is no longer watched as %s of %s', beside.relation, beside.name, sync);
    end if;
  else
    raise exception 'no operation is named %', coalesce(quote_literal(new.operation), 'null');
  end case;
  if new.answer is null then
    if new.operation like 'forget%' and message like '%no longer%' then
      select array_agg(g.statement) into statements
        from (select distinct r from unnest(relations) r) x
        cross join unnest(pg2kv.grant_statements(new.caller, x.r)) g (statement);
    end if;
    new.answer := jsonb_build_object('message', message, 'statements', to_jsonb(coalesce(statements, '{}')));
  end if;
  return new;
end
$$;
comment on function pg2kv.perform_request() is 'Performs an operation of pg2kv.request with the rights of pg2kv_owner, once it knows the caller may ask for it';
do $$ begin
  if not exists (select from pg_trigger where tgrelid = 'pg2kv.request'::regclass and tgname = 'perform') then
    create trigger perform instead of insert on pg2kv.request for each row execute function pg2kv.perform_request();
  end if;
end $$;

create or replace function pg2kv.ask(operation text, arguments jsonb) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
  set lock_timeout = '2s'
as $$
declare
  answer jsonb;
  statement text;
begin
  insert into pg2kv.request (operation, arguments) values (ask.operation, ask.arguments) returning request.answer into answer;
  -- What is left needs the rights of the caller: triggers and privileges of the caller's own table.
  for statement in select jsonb_array_elements_text(answer->'statements') loop
    execute statement;
  end loop;
  return answer->>'message';
end
$$;
comment on function pg2kv.ask(text, jsonb) is 'Has an operation performed: the part of pg2kv_owner first, then the part of the caller';

-- What you call -----------------------------------------------------------------------------------

create or replace function pg2kv.watch(
    relation regclass, sync text, key text[], columns text[] default null,
    collect boolean default false, shards int default null)
  returns text
  language sql
  set search_path = pg_catalog, pg_temp
as $$
  select pg2kv.ask('watch', jsonb_build_object('relation', relation::oid, 'sync', sync, 'key', key, 'columns', columns,
                                               'collect', collect, 'shards', shards))
$$;
comment on function pg2kv.watch(regclass, text, text[], text[], boolean, int) is
  'Has the changes of a table recorded: watch(''public.users'', sync => ''users'', key => ''{id}'', columns => ''{plan,flags}''); with collect, all rows of one key are one document';

create or replace function pg2kv.unwatch(sync text) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg2kv.ask('unwatch', jsonb_build_object('sync', sync));
  return pg2kv.ask('forget', jsonb_build_object('sync', sync));
end
$$;
comment on function pg2kv.unwatch(text) is
  'Removes what watch() made and forgets what was waiting; KV keeps what was written to it';

create or replace function pg2kv.watch_related(relation regclass, sync text, name text, match jsonb,
                                              columns text[] default null)
  returns text
  language sql
  set search_path = pg_catalog, pg_temp
as $$
  select pg2kv.ask('watch_related', jsonb_build_object('relation', relation::oid, 'sync', sync, 'name', name,
                                                       'match', match, 'columns', columns))
$$;
comment on function pg2kv.watch_related(regclass, text, text, jsonb, text[]) is
  'Has changes of a table recorded that documents take data from: watch_related(''public.tenants'', sync => ''users'', name => ''tenants'', match => ''{"tenant_id": "id"}'', columns => ''{plan,name}'')';

create or replace function pg2kv.unwatch_related(sync text, name text) returns text
  language plpgsql
  set search_path = pg_catalog, pg_temp
as $$
begin
  perform pg2kv.ask('unwatch_related', jsonb_build_object('sync', sync, 'name', name));
  return pg2kv.ask('forget_related', jsonb_build_object('sync', sync, 'name', name));
end
$$;
comment on function pg2kv.unwatch_related(text, text) is
  'Removes what watch_related() made; changes of that table are recorded no more';

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
  perform pg2kv.wake();
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
  -- Also while the daemon is awake: nothing else tells it.
  if pg_notification_queue_usage() <= 0.5 then
    perform pg_notify('pg2kv', '');
  end if;
  return until;
end
$$;
comment on function pg2kv.approve_deletes(text, interval) is
  'Lets the daemon delete any number of keys of a sync from KV for a while; returns until when';

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


-- What the daemon calls: with DELETE on the outbox it could lock the table, and every writer behind it.
create or replace function pg2kv.take(low bigint[], high bigint[]) returns timestamptz
  language sql security definer
  set search_path = pg_catalog, pg_temp
as $$
  with gone as (
    -- The server looks each run of ids up once; "offset 0" leaves the planner no other way.
    delete from pg2kv.outbox where ctid = any (array(
      select o.ctid from unnest(low, high) as r (low, high) cross join lateral (
        select k.ctid from pg2kv.outbox k where k.id between r.low and r.high order by k.id offset 0
      ) o))
    returning at
  )
  select min(at) from gone
$$;
comment on function pg2kv.take(bigint[], bigint[]) is
  'Deletes rows of the outbox, given as runs of their ids; returns the time of the oldest, null when there was none';

-- What each role may do ---------------------------------------------------------------------------

revoke all on schema pg2kv from public;
revoke all on all tables in schema pg2kv from public;
revoke all on all functions in schema pg2kv from public;

-- Everyone: watch a table that is one's own. To allow this to some only, revoke EXECUTE on pg2kv.ask() and
-- grant it to them.
grant usage on schema pg2kv to public;
grant insert (operation, arguments), select (answer) on pg2kv.request to public;
grant execute on function pg2kv.watch(regclass, text, text[], text[], boolean, int), pg2kv.unwatch(text),
  pg2kv.watch_related(regclass, text, text, jsonb, text[]), pg2kv.unwatch_related(text, text),
  pg2kv.ask(text, jsonb), pg2kv.take_lock(regclass, text), pg2kv.tables_of(regclass) to public;
-- Writers need it where an index is on it.
grant execute on function pg2kv.shard(text, int) to public;

-- The trigger functions.
grant usage on schema pg2kv to pg2kv_capture;
grant insert (sync, key) on pg2kv.outbox to pg2kv_capture;
grant select on sequence pg2kv.bell to pg2kv_capture;
grant execute on function pg2kv.record_every_key(text), pg2kv.not_as_watched(), pg2kv.wake() to pg2kv_capture;

-- The daemon.
grant usage on schema pg2kv to pg2kv_daemon;
grant select, update (identity) on pg2kv.meta to pg2kv_daemon;
grant select, update (backfilled_at, keys_estimate, deletes_held, audited_at, audit_owed, configured,
  names_free, deletes_lately)
  on pg2kv.sync to pg2kv_daemon;
grant select on pg2kv.related to pg2kv_daemon;
grant select, insert on pg2kv.outbox to pg2kv_daemon;
grant select, insert, update, delete
  on pg2kv.claim, pg2kv.dead_letter, pg2kv.backfill, pg2kv.retired, pg2kv.lease to pg2kv_daemon;
grant select on sequence pg2kv.outbox_id_seq to pg2kv_daemon;
grant select, update on sequence pg2kv.bell to pg2kv_daemon;
grant execute on function pg2kv.take(bigint[], bigint[]), pg2kv.version(), pg2kv.status(), pg2kv.resync(text), pg2kv.approve_deletes(text, interval),
  pg2kv.trigger_faults(text), pg2kv.tables_of(regclass), pg2kv.before_trigger(regclass), pg2kv.index_advice(text),
  pg2kv.shard_expression(regclass, text[], int, text), pg2kv.key_expression(regclass, text[], text, text),
  pg2kv.source_hash(text), pg2kv.base_type(oid), pg2kv.related_label(text, text), pg2kv.has_index(regclass, text[]),
  pg2kv.index_for(regclass, text[], text[]) to pg2kv_daemon;

reset role;
do $$
begin
  if current_setting('pg2kv.member_for_now', true) = 'on' then
    execute format('revoke pg2kv_owner from %I', current_user);
  end if;
end
$$;

commit;
