//! What is refused before a socket opens, and what shows of the settings.

use std::error::Error;

use pg2kv::sink::kv::KvClient;
use pg2kv::sink::setup::{Settings, SetupError};
use pg2kv::sink::token::{TokenError, TokenSource};
use secrecy::SecretString;

use super::{TOKEN, client, discreet, settings};

fn refused(change: impl FnOnce(&mut Settings)) -> SetupError {
    let mut settings = settings("https://api.example.com/client/v4".to_owned());
    change(&mut settings);
    let error = KvClient::new(settings).unwrap_err();
    discreet(&format!("{error:?} {error}"));
    error
}

fn refused_url(url: &str) -> SetupError {
    refused(|settings| settings.api_base_url = url.to_owned())
}

#[tokio::test]
async fn plain_http_is_for_loopback_only() {
    let error = refused_url("http://api.example.com/client/v4");
    assert!(matches!(error, SetupError::Plaintext { .. }));
    assert!(error.to_string().contains("use https://"), "{error}");
    for url in [
        "http://127.0.0.1:1",
        "http://[::1]:1",
        "http://localhost:1",
        "https://10.0.0.1",
    ] {
        client(url.to_owned());
    }
}

#[tokio::test]
async fn odd_urls_are_refused_without_repeating_them() {
    for url in [
        "",
        "api.cloudflare.com",
        "ftp://example.com",
        "https://user:canary-value@example.com",
        "https://example.com/?token=canary-value",
        "https://example.com/#canary-value",
        "https://[canary-value",
    ] {
        assert!(matches!(refused_url(url), SetupError::BaseUrl(_)), "{url}");
    }
}

#[tokio::test]
async fn ids_proxy_and_certificates_are_checked() {
    let account = refused(|settings| settings.account = Some("../zones".to_owned()));
    assert!(matches!(account, SetupError::Account));
    for proxy in [
        "",
        "proxy:3128",
        "canary-value:\n",
        "socks5://canary-value:1",
        "http://",
    ] {
        let error = refused(|settings| settings.proxy = Some(proxy.to_owned()));
        assert!(matches!(error, SetupError::Proxy), "{proxy:?}");
    }

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    for content in [None, Some(""), Some("-----BEGIN CERTIFICATE-----\n!\n")] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = refused(|settings| settings.root_certificate = Some(path.clone()));
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        assert!(error.source().is_some());
    }
}

#[tokio::test]
async fn a_bad_token_is_refused_without_repeating_it() {
    let with = |token: String| {
        refused(|settings| settings.token = TokenSource::Fixed(SecretString::from(token)))
    };
    let inner = with(format!("Bearer {TOKEN}"));
    assert!(
        matches!(inner, SetupError::Token(TokenError::InnerSpace { .. })),
        "{inner}"
    );
    let quoted = with(format!("\u{201c}{TOKEN}\u{201d}"));
    assert!(
        matches!(quoted, SetupError::Token(TokenError::NotAscii { .. })),
        "{quoted}"
    );
    let missing = refused(|settings| settings.token = TokenSource::File("/nowhere/token".into()));
    assert!(missing.to_string().contains("/nowhere/token"), "{missing}");
}

#[tokio::test]
async fn debug_shows_no_secret() {
    let mut settings = settings("https://api.example.com/client/v4".to_owned());
    settings.proxy = Some("http://user:canary-value@proxy.example.com".to_owned());
    discreet(&format!("{settings:?} {settings:#?} {:?}", settings.token));
    discreet(&format!("{:?}", KvClient::new(settings).unwrap()));
}
