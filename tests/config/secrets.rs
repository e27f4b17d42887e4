//! Secrets: by file, and never where people can see them.

use super::{BASE, Files, environment, errors, good, shown};
use pg2kv::config::{inspect, load};
use secrecy::ExposeSecret as _;

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
    assert_eq!(
        config.postgres.connection.get_password(),
        Some(&b"pass word"[..])
    );
    // The token may rotate: it is read again from the file.
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
