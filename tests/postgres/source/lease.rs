//! One leader: exclusivity, takeover, and what a connection must be to lead.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pg2kv::source::Kind;
use pg2kv::source::lease::Candidate;
use pg2kv::source::session::Session;
use pg2kv::sql_kit::VERSION;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::{Bench, items, settings, soon};
use crate::support::postgres::{Database, Server};

#[tokio::test]
async fn one_leads_and_the_next_leads_after_it_with_a_higher_epoch() {
    let bench = Bench::new().await;
    let mut first = Candidate::connect(&bench.settings).await.unwrap();
    let mut second = Candidate::connect(&bench.settings).await.unwrap();
    let epoch = first.campaign("first").await.unwrap().unwrap();
    assert_eq!(second.campaign("second").await.unwrap(), None);
    first.heartbeat(epoch).await.unwrap();
    first.release().await;
    let next = soon(async {
        loop {
            // The server frees the lock when it has read the farewell.
            if let Some(epoch) = second.campaign("second").await.unwrap() {
                return epoch;
            }
        }
    })
    .await;
    assert!(next > epoch);
    second.heartbeat(next).await.unwrap();
    assert_eq!(
        bench
            .number("select count(*) from pg2kv.lease where holder = 'second'")
            .await,
        1
    );
}

#[tokio::test]
async fn a_holder_that_falls_silent_is_freed_by_the_server() {
    let mut bench = Bench::new().await;
    let mut patient = Candidate::connect(&bench.settings).await.unwrap();
    bench.settings.lease_ttl = Duration::from_secs(1);
    let mut frozen = Candidate::connect(&bench.settings).await.unwrap();
    let epoch = frozen.campaign("frozen").await.unwrap().unwrap();
    assert_eq!(patient.campaign("patient").await.unwrap(), None);
    let (session, _, _) = Session::open(&bench.settings, &[items("id")], epoch)
        .await
        .unwrap();
    // No heartbeat any more. Only the lease's session is closed by the server.
    soon(frozen.closed()).await;
    assert!(patient.campaign("patient").await.unwrap() > Some(epoch));
    assert_eq!(
        frozen.heartbeat(epoch).await.unwrap_err().kind(),
        Kind::Connection
    );
    assert_eq!(session.compact(&[]).await.unwrap_err().kind(), Kind::Fenced);
}

#[tokio::test]
async fn a_session_tells_when_one_of_its_connections_is_gone() {
    let bench = Bench::new().await;
    let mut leader = bench.lead(&[items("id")]).await;
    bench
        .sql(
            "select pg_terminate_backend(pid) from pg_stat_activity \
              where usename = 'daemon' and datname = current_database()",
        )
        .await;
    soon(leader.session.closed()).await;
    soon(leader.candidate.closed()).await;
    assert_eq!(soon(leader.doorbell.rung()).await, None);
    assert_eq!(
        leader.session.compact(&[]).await.unwrap_err().kind(),
        Kind::Connection
    );
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let mut bench = Bench::new().await;
    bench.settings.statement_timeout = Duration::from_millis(200);
    let leader = bench.lead(&[items("(select 'x' from pg_sleep(30))")]).await;
    bench.sql("insert into items values (1)").await;
    let error = leader.read(&["[1]"]).await.unwrap_err().error;
    assert_eq!(
        error.kind(),
        Kind::RowTransient,
        "the server's own limit comes first: {error}"
    );
    assert!(error.to_string().contains("statement_timeout"), "{error}");
}

#[tokio::test]
async fn what_cannot_lead_is_refused_with_what_to_do() {
    let bench = Bench::new().await;
    let refused = |error: pg2kv::source::Error, kind: Kind, text: &str| {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    let connect = |settings: pg2kv::source::Settings| async move {
        Candidate::connect(&settings)
            .await
            .err()
            .expect("it must be refused")
    };

    let empty = Database::create(Server::Installed).await;
    refused(
        connect(settings(&empty.url_as("daemon"))).await,
        Kind::Refused,
        "pg2kv install",
    );
    bench
        .sql("update pg2kv.meta set schema_version = 99, serves = 99")
        .await;
    refused(
        connect(bench.settings.clone()).await,
        Kind::Schema,
        "version 99",
    );
    bench
        .sql("update pg2kv.meta set schema_version = 99, serves = 2; revoke pg2kv_daemon from daemon")
        .await;
    refused(
        connect(bench.settings.clone()).await,
        Kind::Refused,
        "grant",
    );
    bench.sql("grant pg2kv_daemon to daemon").await;
    refused(
        connect(settings(&bench.db.url_as("nobody_there"))).await,
        Kind::Refused,
        "user and password",
    );
    let nowhere = bench.db.url_as("daemon").replace("test_", "nowhere_");
    refused(
        connect(settings(&nowhere)).await,
        Kind::Refused,
        "database name",
    );

    bench
        .sql("alter role daemon set default_transaction_read_only = on")
        .await;
    refused(
        connect(bench.settings.clone()).await,
        Kind::Transient,
        "read-only",
    );
    bench
        .sql("alter role daemon reset default_transaction_read_only")
        .await;

    let mut closed = bench.settings.clone();
    closed.config = "host=127.0.0.1 port=1 user=x".parse().unwrap();
    refused(connect(closed).await, Kind::Connection, "refused");
}

/// A pooler of our own, ended with the test.
struct Pooler {
    child: Child,
    _dir: tempfile::TempDir,
    port: u16,
}

impl Pooler {
    async fn start(bench: &Bench, mode: &str, size: u32) -> Self {
        const PROGRAM: &str = "/usr/sbin/pgbouncer";
        assert!(
            Path::new(PROGRAM).exists(),
            "{PROGRAM} is missing: install it with `apt-get install pgbouncer`"
        );
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        };
        let dir = tempfile::tempdir().unwrap();
        let target = bench.settings.config.get_ports()[0];
        let name = bench.settings.config.get_dbname().unwrap();
        let file = dir.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n{name} = host=127.0.0.1 port={target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n\
             default_pool_size = {size}\nserver_round_robin = 1\n"
        );
        let text = text.replace(
            &format!("port={target}\n"),
            &format!("port={target} user=daemon\n"),
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(PROGRAM);
        // It refuses to run as root, and must then be able to read its file.
        if rustix::process::geteuid().is_root() {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            command.arg("-u").arg("nobody");
        }
        let child = command
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pooler = Self {
            child,
            _dir: dir,
            port,
        };
        soon(async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        pooler
    }

    fn settings(&self, bench: &Bench) -> pg2kv::source::Settings {
        let name = bench.settings.config.get_dbname().unwrap();
        settings(&format!("postgres://daemon@127.0.0.1:{}/{name}", self.port))
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn whoever_does_not_fit_the_schema_hears_of_it_as_leader_and_as_standby() {
    let bench = Bench::new().await;
    let leader = bench.lead(&[items("id")]).await;
    let mut standby = Candidate::connect(&bench.settings).await.unwrap();
    for (version, serves, fits) in [
        (VERSION + 1, VERSION, true),
        (VERSION + 1, VERSION + 1, false),
        (VERSION, 1, true),
    ] {
        let says = format!("update pg2kv.meta set schema_version = {version}, serves = {serves}");
        bench.sql(&says).await;
        let looked = leader.session.examine().await.map(drop);
        let asked = standby.campaign("standby").await;
        if fits {
            looked.unwrap();
            assert_eq!(asked.unwrap(), None);
        } else {
            for error in [looked.unwrap_err(), asked.unwrap_err()] {
                assert_eq!(error.kind(), Kind::Schema, "{error}");
                assert!(
                    error.to_string().contains(&format!("version {version}")),
                    "{error}"
                );
            }
        }
    }
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_refused_and_says_why() {
    let bench = Bench::new().await;
    for (mode, size) in [("transaction", 1), ("transaction", 5), ("statement", 5)] {
        let pooler = Pooler::start(&bench, mode, size).await;
        let error = Candidate::connect(&pooler.settings(&bench))
            .await
            .err()
            .expect(mode);
        assert_eq!(error.kind(), Kind::Refused, "{mode} {size}: {error}");
        for word in ["pooler", "LISTEN", "pool_mode = session"] {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

#[tokio::test]
async fn a_pooler_in_session_mode_will_do() {
    let bench = Bench::new().await;
    let pooler = Pooler::start(&bench, "session", 10).await;
    let leader = super::lead(&pooler.settings(&bench), &[items("id")]).await;
    leader.candidate.heartbeat(leader.epoch).await.unwrap();
}

#[tokio::test]
async fn a_port_that_never_speaks_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // It accepts, reads, and says nothing: a half-open connection as the client sees it.
    let silent = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut nothing = Vec::new();
        let _ = socket.read_to_end(&mut nothing).await;
    });
    let mut settings = settings(&format!("postgres://x@127.0.0.1:{port}/x"));
    settings.connect_timeout = Duration::from_millis(50);
    let error = soon(Candidate::connect(&settings)).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Connection);
    assert!(error.to_string().contains("no answer"), "{error}");
    soon(silent).await.unwrap();
}
