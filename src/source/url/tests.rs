//! Connection strings in both forms.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::{SslMode, TargetSessionAttrs};

use super::{TlsMode, UrlError, parse_url};

fn mode(url: &str) -> Result<TlsMode, UrlError> {
    parse_url(url, None, false).map(|(_, mode)| mode)
}

fn verified(roots: Option<&str>, verify_host: bool) -> TlsMode {
    TlsMode::Verified {
        roots: roots.map(PathBuf::from),
        verify_host,
    }
}

#[test]
fn every_sslmode_in_both_forms() {
    for (options, expected) in [
        ("sslmode=require", verified(None, true)),
        ("sslmode=prefer", verified(None, true)),
        ("sslmode=allow", verified(None, true)),
        ("sslmode=verify-full", verified(None, true)),
        (
            "sslmode=verify-full&sslrootcert=system",
            verified(None, true),
        ),
        (
            "sslmode=require&sslrootcert=/ca.pem",
            verified(Some("/ca.pem"), true),
        ),
        (
            "sslmode=verify-ca&sslrootcert=/ca.pem",
            verified(Some("/ca.pem"), false),
        ),
        ("connect_timeout=3", verified(None, true)),
    ] {
        assert_eq!(
            mode(&format!("postgres://u:p@db.example/app?{options}")),
            Ok(expected.clone())
        );
        let pairs = options.replace('&', " ");
        assert_eq!(
            mode(&format!("host=db.example user=u {pairs}")),
            Ok(expected)
        );
    }
}

#[test]
fn plain_text_needs_a_loopback_host_or_the_operators_word() {
    for local in [
        "postgres://u@localhost/d",
        "postgres://u@127.0.0.1/d",
        "postgres://u@[::1]/d",
        "postgres://u@%2Fvar%2Frun%2Fpostgresql/d?sslmode=require",
        "host=/tmp user=u",
        "host=localhost sslmode=prefer",
    ] {
        assert_eq!(mode(local), Ok(TlsMode::Disable), "{local}");
    }
    let far = "postgres://u@db.example/d?sslmode=disable";
    assert_eq!(mode(far), Err(UrlError::Plaintext("db.example".to_owned())));
    assert_eq!(
        parse_url(far, None, true).map(|(_, mode)| mode),
        Ok(TlsMode::Disable)
    );
    // One far host in the list is enough, and an address decides over a name.
    assert!(mode("host=localhost,db.example sslmode=disable").is_err());
    assert!(mode("host=localhost hostaddr=192.0.2.1 sslmode=disable").is_err());
    assert_eq!(
        mode("host=localhost sslmode=require"),
        Ok(verified(None, true))
    );
    assert_eq!(
        mode("host=/tmp,db.example user=u"),
        Err(UrlError::MixedHosts)
    );
}

#[test]
fn errors_name_the_option_and_never_the_password() {
    for (url, text) in [
        (
            "postgres://u:hunter2@h/d?sslmod=require",
            "did you mean \"sslmode\"?",
        ),
        ("postgres://u:hunter2@h/d?sslmode=maybe", "verify-full"),
        (
            "postgres://u:hunter2@h/d?sslcert=/c.pem",
            "client certificates",
        ),
        ("postgres://u:hunter2@h/d?port=x", "port"),
        ("postgres://u:hunter2@h/d?sslmode", "has no \"=\""),
        (
            "postgres://u:hunter2@h/d?target_session_attrs=read-only",
            "writes",
        ),
        ("postgres://u:hunter2@h/d?sslmode=verify-ca", "sslrootcert"),
        ("password=hunter2 user=u", "names no host"),
        ("host=h password='hunter2", "does not end"),
        (
            "postgresql+asyncpg://app:hunter2@host/db?ssl=require",
            "begins with \"postgresql+asyncpg://\"; write it as postgres://",
        ),
        (
            "postgis://app:hunter2@host/db",
            "begins with \"postgis://\"",
        ),
        (
            "jdbc:postgresql://host/db?user=app&password=hunter2",
            "begins with \"jdbc:postgresql://\"",
        ),
        ("POSTGRES://app:hunter2@host/db", "write it as postgres://"),
        ("app:hunter2@host/db", "neither begins with postgres://"),
        ("app:hunter2@host/db?sslmode=require", "does not know"),
        ("//app:hunter2@host/db?ssl=require", "does not know"),
        ("://app:hunter2@host/db?x=y", "does not know"),
        ("app:hunter2://host/db", "neither begins with postgres://"),
        ("hunter2", "neither begins with postgres://"),
        (
            "\"postgres://u:hunter2@h/d\"",
            "neither begins with postgres://",
        ),
        ("postgres://u:hunter2@h/d?ssl=true", "sslmode=verify-full"),
        ("postgres://u:hunter2@h/d?pgbouncer=true", "another driver"),
        // A password that is not encoded: parts of it must not pass for a host or an option.
        ("postgres://u:p@hunter2@h/d?sslmode=disable", "%40"),
        ("postgres://u:p@hunter2?x=1@h/d", "%40"),
        ("postgres://u:p@h:hunter2/d", "port"),
        ("postgres://u:p@h/d?hunter2=1", "percent-encoded"),
        ("host=h password=a hunter2=1", "percent-encoded"),
        ("host=h password=hunter2 nonsense", "without \"=\""),
    ] {
        let error = parse_url(url, None, false).expect_err(url).to_string();
        assert!(error.contains(text), "{url}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_drivers_options_reach_it_and_silence_gets_our_defaults() {
    let (config, _) = parse_url(
        "host='db.example' port=6000 user=u password='a b\\'c' dbname=d sslmode=verify-full \
         keepalives_idle=7 target_session_attrs=any",
        None,
        false,
    )
    .expect("valid");
    assert_eq!(config.get_password(), Some(&b"a b'c"[..]));
    assert_eq!(config.get_ports(), [6000]);
    assert_eq!(config.get_keepalives_idle(), Duration::from_secs(7));
    assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::Any);
    assert_eq!(config.get_ssl_mode(), SslMode::Require);

    let (config, _) = parse_url("postgres://u:a%3Fb@db.example/d", None, false).expect("valid");
    assert_eq!(config.get_password(), Some(&b"a?b"[..]));
    assert_eq!(config.get_keepalives_idle(), Duration::from_secs(30));
    assert_eq!(
        config.get_target_session_attrs(),
        TargetSessionAttrs::ReadWrite
    );
    assert_eq!(config.get_application_name(), Some("pg2kv"));
}

#[test]
fn a_root_certificate_given_twice_must_be_the_same() {
    let url = "postgres://u@h/d?sslrootcert=/a.pem";
    let read = |path: &str| parse_url(url, Some(Path::new(path)), false).map(|(_, mode)| mode);
    assert_eq!(read("/a.pem"), Ok(verified(Some("/a.pem"), true)));
    assert_eq!(read("/b.pem"), Err(UrlError::TwoRoots));
}
