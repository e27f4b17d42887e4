-- Removes pg2kv from this database: its triggers, functions, tables, schema and roles.
--
-- Locks          ACCESS EXCLUSIVE on each watched table in turn, kept until the end (milliseconds).
--                When one cannot be had within 2 s, nothing at all is changed.
-- Who runs it    A superuser, or the role that installed it if it owns the watched tables.
-- Stop the daemon first. What is in KV stays there. Running this twice is harmless.

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
  watched record;
  role_name text;
begin
  if not (select rolsuper from pg_roles where rolname = current_user)
     and exists (select from pg_roles where rolname = 'pg2kv_owner')
     and not pg_has_role('pg2kv_owner', case when current_setting('server_version_num')::int >= 160000 then 'set' else 'member' end)
  then
    begin
      execute format('grant pg2kv_owner to %I', current_user);
    exception when insufficient_privilege then
      raise exception 'role % cannot remove what belongs to pg2kv_owner', current_user
        using errcode = 'insufficient_privilege', hint = 'Run this as a superuser, or as the role that installed it.';
    end;
  end if;
  if to_regclass('pg2kv.sync') is not null then
    for watched in select name from pg2kv.sync order by name loop
      perform pg2kv.unwatch(watched.name);
    end loop;
  end if;

  drop schema if exists pg2kv cascade;

  foreach role_name in array array['pg2kv_daemon', 'pg2kv_capture', 'pg2kv_owner'] loop
    begin
      execute format('drop role if exists %I', role_name);
    exception when dependent_objects_still_exist then
      raise warning 'role % is kept: other objects, perhaps in another database, still refer to it', role_name
        using hint = format('drop role %I; says which ones.', role_name);
    end;
  end loop;
end
$$;

commit;
