//! The SQL kit against real servers, the installed one and a newer major.

// Clippy takes these for code outside tests.

mod capture;
mod documented;
mod install;
mod kinds;
mod related;
mod rights;
mod server;
mod watch;

use pg2kv::sql_kit::{self, Schema};
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

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

/// A database with the kit in it, and a connection as the superuser.
async fn with_kit(server: Server) -> (Database, Client) {
    let db = Database::create(server).await;
    let admin = db.connect().await;
    run(&admin, &sql_kit::install(&Schema::default())).await;
    (db, admin)
}

async fn run(client: &Client, sql: &str) {
    if let Err(error) = client.batch_execute(sql).await {
        panic!(
            "{}\nof: {sql}",
            error
                .as_db_error()
                .map_or(error.to_string(), ToString::to_string)
        );
    }
}

/// What the server answers to a statement that it must refuse.
async fn refusal(client: &Client, sql: &str) -> DbError {
    let error = client.batch_execute(sql).await.expect_err(sql);
    error
        .as_db_error()
        .unwrap_or_else(|| panic!("{error}"))
        .clone()
}

/// The first column of all rows, as text.
async fn texts(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).await;
    let rows = rows.unwrap_or_else(|error| panic!("{error:?}\nof: {sql}"));
    rows.iter()
        .map(|row| {
            row.get::<_, Option<String>>(0)
                .unwrap_or_else(|| "null".into())
        })
        .collect()
}

async fn text(client: &Client, sql: &str) -> String {
    texts(client, sql).await.join("\n")
}

/// Takes the keys out of the outbox, in the order of their recording.
async fn take_keys(client: &Client) -> Vec<String> {
    let taken = "with gone as (delete from pg2kv.outbox returning id, key)
                 select coalesce(key::text, 'everything') from gone order by id";
    texts(client, taken).await
}
