//! The throw-away server itself.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use pg2kv::throwaway::{Postgres, Stop};
use tokio_postgres::NoTls;

use super::{run, text};
use crate::support::postgres::{self, Server};

const CHILD: &str = "PG2KV_TEST_CHILD";

#[tokio::test]
async fn keeps_its_port_and_its_data_over_a_crash() {
    let mut server = Postgres::start(Server::Installed.options()).unwrap();
    let (port, pid) = (server.port(), server.pid());
    let client = postgres::connect(&server.admin_url()).await;
    run(&client, "create table t (id int); insert into t values (1)").await;

    server.restart(Stop::Immediate).unwrap();

    assert_eq!(server.port(), port);
    assert_ne!(server.pid(), pid);
    assert!(client.batch_execute("select 1").await.is_err());
    let client = postgres::connect(&server.admin_url()).await;
    assert_eq!(text(&client, "select count(*)::text from t").await, "1");
    server.stop(Stop::Fast).unwrap();
    assert_eq!(server.pid(), None);
}

#[tokio::test]
async fn dropping_it_ends_the_server_and_removes_its_data() {
    let server = Postgres::start(Server::Installed.options()).unwrap();
    let (url, dir) = (server.admin_url(), server.data_dir());
    let (_client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    assert!(dir.exists());
    drop(server);
    assert!(connection.await.is_err(), "the session was ended");
    assert!(tokio_postgres::connect(&url, NoTls).await.is_err());
    assert!(!dir.exists());
}

#[tokio::test]
async fn takes_settings_and_files() {
    let mut options = Server::Installed.options();
    options
        .settings
        .push(("application_name".into(), "it's".into()));
    options.files.push((
        "pg_hba.conf".into(),
        b"local all all reject\nhost all all all trust".into(),
    ));
    let server = Postgres::start(options).unwrap();
    let client = postgres::connect(&server.admin_url()).await;
    let setting = "select reset_val from pg_settings where name = 'application_name'";
    assert_eq!(text(&client, setting).await, "it's");
    assert_eq!(
        text(&client, "select count(*)::text from pg_hba_file_rules").await,
        "2"
    );
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let mut options = Server::Installed.options();
    options
        .settings
        .push(("shared_buffers".into(), "much".into()));
    let error = Postgres::start(options).unwrap_err().to_string();
    assert!(error.contains("shared_buffers"), "{error}");
}

/// Runs itself as a child that starts a server, and kills that child.
#[tokio::test]
async fn ends_with_a_process_that_is_killed() {
    if std::env::var_os(CHILD).is_some() {
        let server = Postgres::start(Server::Installed.options()).unwrap();
        writeln!(std::io::stdout(), "\nserver {}", server.admin_url()).unwrap();
        // Until it is killed.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "postgres::kit::server::ends_with_a_process_that_is_killed",
        ])
        .arg("--nocapture")
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let url: String = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .find_map(|line| Some(line.unwrap().strip_prefix("server ")?.to_owned()))
        .unwrap();
    let (_client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The time limit of the test runner is the deadline.
    assert!(connection.await.is_err(), "the session was ended");
    assert!(tokio_postgres::connect(&url, NoTls).await.is_err());
}
