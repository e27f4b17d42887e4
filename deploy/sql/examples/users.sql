-- A table of users, and what it takes to have them in Workers KV. Run install.sql first.
-- Running this twice is harmless.

create table if not exists public.users (
  id uuid primary key default gen_random_uuid(),
  username text not null unique,
  email text not null,
  preview_features_enabled boolean not null default false,
  plan text not null default 'free',
  flags jsonb not null default '{}',
  updated_at timestamptz not null default now()
);

-- A change of the key or of one of these columns is recorded; one of updated_at alone is not. The
-- daemon may read these columns and no others.
select pg2kv.watch(
  'public.users',
  sync => 'users',
  key => '{id}',
  columns => '{username,email,preview_features_enabled,plan,flags}'
);

insert into public.users (username, email, plan, flags) values
  ('ada', 'ada@example.com', 'pro', '{"beta": true}'),
  ('grace', 'grace@example.com', 'free', '{}')
on conflict (username) do nothing;

select * from pg2kv.status();
