//! A password that stands in a file, and changes.

use pg2kv::source::Kind;
use pg2kv::source::lease::Candidate;
use pg2kv::source::password::PasswordFile;
use pg2kv::source::session::Session;
use pg2kv::throwaway::Postgres;

use super::{INSTALL, items, lead, settings, soon};
use crate::support::postgres::{Server, connect};

const HBA: &str = "\
local all all trust
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
";

#[tokio::test]
async fn a_rotated_password_is_read_for_each_new_connection() {
    let mut options = Server::Installed.options();
    options.files.push(("pg_hba.conf".to_owned(), HBA.into()));
    let server = tokio::task::spawn_blocking(|| Postgres::start(options).unwrap())
        .await
        .unwrap();
    let admin = connect(&server.admin_url()).await;
    admin.batch_execute(INSTALL).await.unwrap();
    admin
        .batch_execute(
            "set password_encryption = 'scram-sha-256';\
             create role daemon login password 'first' in role pg2kv_daemon;\
             create table public.items (id bigint primary key, plan text, extra int);\
             select pg2kv.watch('public.items', sync => 'items', key => '{id}')",
        )
        .await
        .unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "first\n").unwrap();
    let mut settings = settings(&server.url_as("daemon", "postgres"));
    settings.password = Some(PasswordFile::Alone(file.clone()));
    let leader = lead(&settings, &[items("plan")]).await;

    admin
        .batch_execute("alter role daemon password 'second'")
        .await
        .unwrap();
    leader
        .read(&["[1]"])
        .await
        .expect("what is open stays open");
    let refused = Candidate::connect(&settings).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::Refused, "{refused}");
    std::fs::write(&file, "second\n").unwrap();
    leader.candidate.release().await;
    let next = soon(async {
        let mut candidate = Candidate::connect(&settings).await.unwrap();
        loop {
            if let Some(epoch) = candidate.campaign("next").await.unwrap() {
                return epoch;
            }
        }
    })
    .await;
    // Each of its connections, and those of the commands.
    Session::open(&settings, &[items("plan")], next)
        .await
        .unwrap();
    pg2kv::source::admin::Admin::connect(&settings)
        .await
        .unwrap();

    // As part of a connection string.
    let url = server.url_as("daemon:second", "postgres");
    std::fs::write(&file, format!("{url}\n")).unwrap();
    settings.password = Some(PasswordFile::InUrl(file.clone()));
    Candidate::connect(&settings).await.unwrap();
    std::fs::write(&file, url.replace("second", "third")).unwrap();
    let refused = Candidate::connect(&settings).await.err().unwrap();
    assert_eq!(refused.kind(), Kind::Refused, "{refused}");

    settings.password = Some(PasswordFile::Alone(file.clone()));
    std::fs::remove_file(&file).unwrap();
    let gone = Candidate::connect(&settings).await.err().unwrap();
    assert_eq!(gone.kind(), Kind::Refused);
    assert!(gone.to_string().contains("password file"), "{gone}");
    assert!(!gone.to_string().contains("second"), "{gone}");
}
