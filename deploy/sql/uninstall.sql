-- Removes pg2kv from this database: its triggers, functions, tables, schema and roles.
--
-- Locks          ACCESS EXCLUSIVE on each watched table in turn, kept until the end (milliseconds).
--                When one cannot be had within 2 s, nothing at all is changed.
-- Stop the daemon first. What is in KV stays there. Running this twice is harmless.

begin;

set local client_min_messages = warning;
set local search_path = pg_catalog, pg_temp;

do $$
declare
  watched record;
  role_name text;
begin
  if to_regclass('pg2kv.sync') is not null then
    for watched in select name from pg2kv.sync order by name loop
      perform pg2kv.unwatch(watched.name);
    end loop;
  end if;

  drop schema if exists pg2kv cascade;

  foreach role_name in array array['pg2kv_daemon', 'pg2kv_owner'] loop
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
