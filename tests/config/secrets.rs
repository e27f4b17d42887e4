//! Secrets: by file, and never where people can see them.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use pg2kv::config::{inspect, load};
use pg2kv::sink::kv::KvClient;
use pg2kv::sink::setup::{Settings, SetupError};
use pg2kv::sink::token::TokenSource;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use secrecy::ExposeSecret as _;

use super::{BASE, Files, environment, errors, good, shown};

const CANARY: &str = "canary-0123456789";

#[test]
fn secrets_are_read_from_files() {
    let files = Files::new();
    let token = files.write("token", &format!("{CANARY}\n"));
    let url = files.write("url", "postgres://from_file@localhost/app\n");
    let password = files.write("password", " pass word \n");
    let text = BASE
        .replace(
            "url = \"postgres://daemon@localhost/app\"",
            &format!("url_file = {url:?}"),
        )
        .replace("[kv]", &format!("password_file = {password:?}\n[kv]"))
        .replace(
            "api_token = \"canary-token-0123456789\"",
            &format!("api_token_file = {token:?}"),
        );
    let config = good(&text, &[]);
    assert_eq!(config.kv.token.read().unwrap().expose_secret(), CANARY);
    assert_eq!(config.postgres.connection.get_user(), Some("from_file"));
    // Both may rotate: they are read from the file when they are needed.
    assert_eq!(
        config.postgres.password_file.as_deref(),
        Some(std::path::Path::new(&password))
    );
    assert_eq!(config.postgres.connection.get_password(), None);
    std::fs::write(&token, "another\n").unwrap();
    assert_eq!(config.kv.token.read().unwrap().expose_secret(), "another");
}

#[test]
fn secret_files_that_do_not_serve_are_named_with_the_reason() {
    let files = Files::new();
    let empty = files.write("empty", " \n");
    let two = files.write("two", &format!("{CANARY}\n{CANARY}"));
    let url = "url = \"postgres://daemon@localhost/app\"";
    for (file, says) in [
        (
            files.path("missing"),
            "error: postgres.url_file names FILE, which cannot be read: No such file or directory (os error 2)",
        ),
        (empty, "error: postgres.url_file is empty"),
        (
            two,
            "error: postgres.url_file holds a control character or more than one line",
        ),
    ] {
        let text = BASE.replace(url, &format!("url_file = {file:?}"));
        let path = files.write("pg2kv.toml", &text);
        let errors = load(&[path], environment(&[])).unwrap_err();
        let errors = shown(&errors, &file);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].lines().next(), Some(says));
        assert!(!errors[0].contains(CANARY));
    }
}

#[test]
fn no_secret_shows_in_debug_print_or_errors() {
    let url = format!("postgres://daemon:{CANARY}@localhost/app");
    let proxy = format!("http://user:{CANARY}@proxy:3128");
    let variables = [
        ("PG2KV__POSTGRES__URL", url.as_str()),
        ("PG2KV__KV__API_TOKEN", CANARY),
        ("PG2KV__KV__PROXY", proxy.as_str()),
    ];
    let config = good(BASE, &variables);
    let mut seen = format!("{config:?}\n{}", config.effective);
    assert!(seen.contains("[redacted]"));

    // The same values, each wrong in some way.
    for (name, value) in [
        (
            "PG2KV__POSTGRES__URL",
            format!("postgres://daemon:{CANARY}@db.example.com/x?sslmode=no"),
        ),
        (
            "PG2KV__POSTGRES__URL",
            format!("mysql://daemon:{CANARY}@db.example.com/x"),
        ),
        ("PG2KV__POSTGRES__URL", format!("{CANARY}\n{CANARY}")),
        ("PG2KV__KV__API_TOKEN", format!("Bearer {CANARY}")),
        ("PG2KV__KV__PROXY", format!("ftp://user:{CANARY}@proxy")),
        (
            "PG2KV__POSTGRES__URL",
            format!("postgresql+asyncpg://daemon:{CANARY}@host/db?ssl=require"),
        ),
        (
            "PG2KV__POSTGRES__URL",
            format!("daemon:{CANARY}@host/db?ssl=require"),
        ),
        (
            "PG2KV__KV__API_BASE_URL",
            format!("https://user:{CANARY}@api.example/v4"),
        ),
        (
            "PG2KV__KV__API_BASE_URL",
            format!("https://api.example/v4?token={CANARY}"),
        ),
        (
            "PG2KV__KV__API_BASE_URL",
            format!("https://us er:{CANARY}@api.example"),
        ),
    ] {
        let mut variables = variables.to_vec();
        variables.retain(|(other, _)| *other != name);
        variables.push((name, &value));
        let errors = errors(BASE, &variables);
        assert_eq!(errors.len(), 1, "{name}={value}: {errors:?}");
        let (effective, ..) = inspect(&[], environment(&variables));
        seen.push_str(&format!("{errors:?}\n{effective}\n{effective:?}"));
    }
    assert!(!seen.contains(CANARY), "{seen}");
}

/// To open a FIFO waits for a writer, for ever.
#[test]
fn a_secret_file_that_is_none_does_not_hang() {
    let files = Files::new();
    let fifo = files.path("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let token = "api_token = \"canary-token-0123456789\"";
    for (what, kind) in [
        (fifo.as_path(), "a pipe"),
        (files.path("").as_path(), "a directory"),
        (Path::new("/dev/zero"), "a device"),
    ] {
        for text in [
            BASE.replace("[kv]", &format!("password_file = {what:?}\n[kv]")),
            BASE.replace("[kv]", &format!("root_certificate = {what:?}\n[kv]")),
            BASE.replace(token, &format!("api_token_file = {what:?}")),
            BASE.replace(token, &format!("{token}\nroot_certificate = {what:?}")),
        ] {
            let found = errors(&text, &[]);
            assert_eq!(found.len(), 1, "{found:?}");
            let told = format!("it is {kind}, not a file");
            assert!(found[0].contains(&told), "{}", found[0]);
        }
    }
}

#[test]
fn a_secret_that_others_may_use_is_warned_of() {
    let files = Files::new();
    let token = files.write("token", CANARY);
    let password = files.write("password", CANARY);
    let text = BASE
        .replace("[kv]", &format!("password_file = {password:?}\n[kv]"))
        .replace(
            "api_token = \"canary-token-0123456789\"",
            &format!("api_token_file = {token:?}"),
        );
    let warnings = |mode: u32| {
        for path in [&token, &password] {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        let found = good(&text, &[]).warnings;
        let what = found.into_iter().map(|warning| warning.what);
        what.collect::<Vec<_>>()
    };
    assert_eq!(warnings(0o640), [] as [&str; 0]);
    for (mode, may) in [(0o644, "may read"), (0o646, "may write")] {
        let found = warnings(mode);
        assert_eq!(found.len(), 2, "{found:?}");
        for (warning, key) in found.iter().zip(["password_file", "api_token_file"]) {
            assert!(warning.contains(key) && warning.contains(may), "{warning}");
        }
    }
}

/// An http:// address is for this machine only, and a proxy is somewhere else.
#[test]
fn the_token_goes_to_no_proxy_in_the_clear() {
    let base = "http://127.0.0.1:8787/client/v4";
    let text = BASE.replace("[kv]", &format!("[kv]\napi_base_url = {base:?}"));
    let proxied = |text: &str| text.replace("[kv]", "[kv]\nproxy = \"http://proxy:3128\"");
    good(&text, &[]);
    good(&proxied(BASE), &[]);
    let found = errors(&proxied(&text), &[]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("error: kv.proxy is set, but api_base_url is http://"));
    // And nothing that gets past the configuration can do it.
    let client = KvClient::new(Settings {
        api_base_url: base.to_owned(),
        account: None,
        token: TokenSource::Fixed(CANARY.into()),
        connect_timeout: Duration::from_secs(1),
        request_timeout: Duration::from_secs(1),
        proxy: Some("http://127.0.0.1:3128".to_owned()),
        root_certificate: None,
    });
    assert!(matches!(client, Err(SetupError::PlaintextThroughProxy)));
}
