//! What the page for database administrators shows is what a server has.

use super::{on_both_servers, run, texts, with_kit};
use crate::observe::read;
use crate::support::postgres::Server;

on_both_servers!(the_page_shows_the_triggers_as_they_are);

/// The table of the page, watched as the page says.
const WATCHED: &str = "
    create table public.users (
      id bigint primary key, name text not null, plan text not null, flags jsonb not null, seen_at timestamptz
    );
    select pg2kv.watch('public.users', sync => 'users', key => '{id}', columns => '{name,plan,flags}')";

async fn the_page_shows_the_triggers_as_they_are(server: Server) {
    let (_db, admin) = with_kit(server).await;
    run(&admin, WATCHED).await;
    // Line breaks are the page's own.
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = plain(&read("deploy/dba.md"));
    let triggers =
        "select pg_get_triggerdef(oid) || ';' from pg_trigger where tgname ~ '^zzz_pg2kv_'";
    let functions = "select pg_get_functiondef(oid) from pg_proc
        where pronamespace = 'pg2kv'::regnamespace and proname ~ '^(capture|updated)_'";
    for made in [
        texts(&admin, triggers).await,
        texts(&admin, functions).await,
    ]
    .concat()
    {
        assert!(
            page.contains(&plain(&made)),
            "deploy/dba.md does not show this:\n{made}"
        );
    }
}
