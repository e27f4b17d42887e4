//! The SQL kit against real servers.

use crate::support::postgres::{Database, Server};

const INSTALL: &str = include_str!("../../deploy/sql/install.sql");

async fn install_twice(server: Server) {
    let db = Database::create(server).await;
    let admin = db.connect().await;
    admin.batch_execute(INSTALL).await.unwrap();
    admin.batch_execute(INSTALL).await.unwrap();
    let row = admin
        .query_one("select schema_version from pg2kv.meta", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i32>(0), 1);
}

#[tokio::test]
async fn installs_twice_on_the_installed_server() {
    install_twice(Server::Installed).await;
}

#[tokio::test]
async fn installs_twice_on_the_newer_server() {
    install_twice(Server::Newer).await;
}
