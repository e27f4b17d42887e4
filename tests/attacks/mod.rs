//! Attacks and accidents, as a hostile role or an unlucky operator would write them, on real servers.

mod code_in_reads;
mod lease;
mod listings;
mod notify;
mod rights;
mod slow_requests;
mod victim;
mod writers;

use tokio_postgres::Client;
use tokio_postgres::error::DbError;

use pg2kv::sql_kit::{self, Schema};

use crate::support::postgres::{Database, Server};

/// Makes two tests of each function, one for each server.
macro_rules! on_both_servers {
    ($($test:ident),* $(,)?) => {
        mod installed {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(crate::support::postgres::Server::Installed).await;
                }
            )*
        }
        mod newer {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(crate::support::postgres::Server::Newer).await;
                }
            )*
        }
    };
}
use on_both_servers;

/// A database with pg2kv installed, the superuser, and a hostile role that may log in and create tables.
async fn with_mallory(server: Server) -> (Database, Client, Client) {
    let db = Database::create(server).await;
    let admin = db.connect().await;
    run(&admin, &sql_kit::install(&Schema::default())).await;
    run(
        &admin,
        "create role mallory login; grant create on schema public to mallory",
    )
    .await;
    let mallory = db.connect_as("mallory").await;
    (db, admin, mallory)
}

async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        let error = error
            .as_db_error()
            .map_or(error.to_string(), ToString::to_string);
        panic!("{error}\nof: {sql}");
    }
}

/// What the server answers to a statement that it must refuse.
async fn refusal(client: &Client, sql: &str) -> DbError {
    let error = client.batch_execute(sql).await.expect_err(sql);
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
    error.clone()
}

/// The first column of all rows, as text.
async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await;
    let rows = rows.unwrap_or_else(|error| panic!("{error:?}\nof: {sql}"));
    rows.iter()
        .map(|row| row.get::<_, Option<String>>(0).unwrap_or_default())
        .collect()
}

/// Takes the keys of a sync out of the outbox, in the order in which they were recorded.
async fn take_keys(client: &Client, sync: &str) -> Vec<String> {
    let taken = format!(
        "with gone as (delete from pg2kv.outbox where sync = '{sync}' returning id, key)
         select coalesce(key::text, 'every key') from gone order by id"
    );
    texts(client, &taken).await
}
