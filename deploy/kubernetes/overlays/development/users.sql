-- What PostgreSQL starts with: a table to watch, and the role that the daemon logs in as.
create role pg2kv_login login;
create table public.users (
    id bigint generated always as identity primary key,
    plan text not null default 'free',
    flags jsonb not null default '{}',
    preview_features_enabled boolean not null default false
);
insert into public.users (plan) select 'free' from generate_series(1, 1000);
