//! TLS against a real server with a certificate authority of its own.

use pg2kv::source::lease::Candidate;
use pg2kv::source::{Kind, Settings, parse_url};
use pg2kv::throwaway::Postgres;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::settings;
use crate::support::postgres::Server;

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    /// Certificate and key of a server by that name.
    fn server(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.issuer.pem()
    }
}

fn start(certificate: &(String, String), hba: &str) -> Postgres {
    let mut options = Server::Installed.options();
    options.settings.push(("ssl".into(), "on".into()));
    options
        .files
        .push(("server.crt".into(), certificate.0.clone().into_bytes()));
    options
        .files
        .push(("server.key".into(), certificate.1.clone().into_bytes()));
    options
        .files
        .push(("pg_hba.conf".into(), hba.as_bytes().to_vec()));
    Postgres::start(options).unwrap()
}

/// A candidate that gets past TLS is refused for the missing schema: proof enough of a session.
async fn try_connect(settings: &Settings) -> Result<(), String> {
    let error = Candidate::connect(settings)
        .await
        .err()
        .expect("there is no schema");
    let text = error.to_string();
    if text.contains("pg2kv install") {
        return Ok(());
    }
    assert_eq!(error.kind(), Kind::Refused, "{text}");
    Err(text)
}

fn with_url(url: &str) -> Settings {
    let (config, tls) = parse_url(url, None, false).unwrap();
    Settings {
        config,
        tls,
        ..settings(url)
    }
}

#[tokio::test]
async fn each_mode_verifies_what_it_says() {
    let ours = Authority::new();
    let other = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let good = file("ours.pem", &ours.pem());
    let wrong = file("other.pem", &other.pem());
    let empty = file("empty.pem", "");
    let certificate = ours.server("localhost");
    // The second server takes TLS only, so plain text shows as such.
    let server = tokio::task::spawn_blocking(move || {
        start(
            &certificate,
            "local all all trust\nhostssl all all all trust\n",
        )
    })
    .await
    .unwrap();
    let port = server.port();
    let url =
        |host: &str, options: &str| format!("postgres://postgres@{host}:{port}/postgres?{options}");

    for (host, options, result) in [
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={good}"),
            Ok(()),
        ),
        (
            "localhost",
            format!("sslmode=require&sslrootcert={good}"),
            Ok(()),
        ),
        (
            "localhost",
            format!("sslmode=verify-ca&sslrootcert={good}"),
            Ok(()),
        ),
        // The certificate names localhost, not the address.
        (
            "127.0.0.1",
            format!("sslmode=verify-full&sslrootcert={good}"),
            Err("names another host"),
        ),
        (
            "127.0.0.1",
            format!("sslmode=require&sslrootcert={good}"),
            Err("names another host"),
        ),
        (
            "127.0.0.1",
            format!("sslmode=verify-ca&sslrootcert={good}"),
            Ok(()),
        ),
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={wrong}"),
            Err("unknown authority"),
        ),
        (
            "localhost",
            format!("sslmode=verify-ca&sslrootcert={wrong}"),
            Err("unknown authority"),
        ),
        (
            "localhost",
            format!("sslmode=require&sslrootcert={wrong}"),
            Err("unknown authority"),
        ),
        // The platform does not know our authority.
        (
            "localhost",
            "sslmode=require".to_owned(),
            Err("sslrootcert"),
        ),
        (
            "localhost",
            "sslmode=verify-full".to_owned(),
            Err("sslrootcert"),
        ),
        (
            "localhost",
            "sslmode=disable".to_owned(),
            Err("pg_hba.conf"),
        ),
        (
            "localhost",
            format!("sslmode=verify-full&sslrootcert={empty}"),
            Err("no certificate"),
        ),
        (
            "localhost",
            "sslmode=verify-full&sslrootcert=/nowhere.pem".to_owned(),
            Err("/nowhere.pem"),
        ),
    ] {
        let got = try_connect(&with_url(&url(host, &options))).await;
        match (&got, result) {
            (Ok(()), Ok(())) => {}
            (Err(text), Err(expected)) if text.contains(expected) => {}
            _ => panic!("{host} {options}: {got:?}, expected {result:?}"),
        }
    }
}

#[tokio::test]
async fn a_server_without_tls_is_not_spoken_to_when_tls_is_asked_for() {
    let db = crate::support::postgres::Database::create(Server::Installed).await;
    let (config, _) = parse_url(&db.url(), None, false).unwrap();
    let url = format!(
        "postgres://postgres@127.0.0.1:{}/{}?sslmode=require",
        config.get_ports()[0],
        config.get_dbname().unwrap()
    );
    let error = try_connect(&with_url(&url)).await.unwrap_err();
    assert!(error.contains("does not offer TLS"), "{error}");
}

#[tokio::test]
async fn the_session_is_really_encrypted() {
    let ours = Authority::new();
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("ca.pem");
    std::fs::write(&roots, ours.pem()).unwrap();
    let certificate = ours.server("localhost");
    let server = tokio::task::spawn_blocking(move || {
        start(
            &certificate,
            "local all all trust\nhost all all all trust\n",
        )
    })
    .await
    .unwrap();
    let admin = crate::support::postgres::connect(&server.admin_url()).await;
    admin.batch_execute(super::INSTALL).await.unwrap();
    let url = format!(
        "host=localhost port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert='{}'",
        server.port(),
        roots.display()
    );
    let leader = super::lead(&with_url(&url), &[]).await;
    let encrypted = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid) \
                     where ssl and application_name = 'pg2kv'";
    let count: i64 = admin.query_one(encrypted, &[]).await.unwrap().get(0);
    assert_eq!(count, 5, "lease, listen, control, work, bulk");
    drop(leader);
}
