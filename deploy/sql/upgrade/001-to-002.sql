-- From version 1 of the schema pg2kv to version 2, which says of itself what it is.
--
-- What it does   Adds pg2kv.version(), and the column pg2kv.meta.serves: the oldest version of the daemon
--                that can work with the schema. Gives pg2kv.dead_letter a replica identity. The keys in
--                pg2kv.claim become text. It touches no table of yours and no trigger.
-- Locks          ACCESS EXCLUSIVE on pg2kv.meta, pg2kv.claim and pg2kv.dead_letter for milliseconds; no
--                writer needs them. Where a lock cannot be had within 2 s, nothing is changed.
-- Daemons        Those of version 1 that lead go on. They would not take the lease anew, so start those
--                of version 2 soon; these wait until this is done.
-- Who runs it    A superuser, or a member of pg2kv_owner. Everything happens in one transaction. Where the
--                schema has another version than 1, it says so and changes nothing.

begin;

set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;
set local lock_timeout = '2s';

do $$
begin
  if to_regclass('pg2kv.meta') is null then
    raise exception 'there is no schema pg2kv in this database' using hint = 'install.sql makes it.';
  end if;
  perform pg_advisory_xact_lock(hashtextextended('pg2kv install', 0));
end
$$;

set local role pg2kv_owner;

do $$
declare
  version int;
begin
  perform pg2kv.take_lock('pg2kv.meta', 'access exclusive');
  select schema_version into version from pg2kv.meta;
  if version is distinct from 1 then
    raise exception 'the schema pg2kv has version %, and this file upgrades version 1', coalesce(version::text, 'none')
      using hint = 'Nothing was changed.';
  end if;
  perform pg2kv.take_lock('pg2kv.claim', 'access exclusive');
  perform pg2kv.take_lock('pg2kv.dead_letter', 'access exclusive');
end
$$;

alter table pg2kv.meta add column serves int;
comment on table pg2kv.meta is 'One row: the version of this schema, and which daemons it serves';
comment on column pg2kv.meta.serves is
  'The oldest version of the daemon that can work with this schema';
update pg2kv.meta set schema_version = 2, serves = 1;
alter table pg2kv.meta alter column serves set not null;

-- Without a primary key the daemon's deletes would fail under a publication FOR ALL TABLES.
alter table pg2kv.dead_letter replica identity full;

-- A daemon of version 1 goes on: what it inserts becomes text by itself.
alter table pg2kv.claim alter column keys type text[] using keys::text[],
  alter column keys set storage external;
comment on column pg2kv.claim.keys is 'As the outbox has them, as text: taking JSON apart would cost more than the rest of a claim';

create function pg2kv.version() returns int
  language sql stable
  set search_path = pg_catalog, pg_temp
as $$
  select schema_version from pg2kv.meta
$$;
comment on function pg2kv.version() is 'The version of this schema';
revoke all on function pg2kv.version() from public;
grant execute on function pg2kv.version() to pg2kv_daemon;

commit;
