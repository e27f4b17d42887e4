//! The administrator's password, from everywhere that psql takes it, on a server that asks for it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use pg2kv::throwaway::Postgres;

use crate::support::postgres::{Server, connect};

/// What stands between the colons of a password file must be escaped, and of a URL encoded.
const PASSWORD: &str = "can:ary\\@7";
const IN_URL: &str = "can%3Aary%5C%407";

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn an_administrator_needs_no_password_in_the_arguments() {
    let mut options = Server::Installed.options();
    let hba = "host all postgres all trust\nhost all all all scram-sha-256\n";
    options.files.push(("pg_hba.conf".into(), hba.into()));
    let server = Postgres::start(options).unwrap();
    let client = connect(&server.admin_url()).await;
    client
        .batch_execute(&format!(
            "create table public.item (id int primary key, n int); create role edge login;
             create role boss superuser login password e'{}'",
            PASSWORD.replace('\\', "\\\\")
        ))
        .await
        .unwrap();

    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    // The daemon's password is not the administrator's.
    write(&at("daemon"), "of the daemon", 0o600);
    write(
        &at("pg2kv.toml"),
        &format!(
            "[postgres]\nurl = \"{}\"\npassword_file = {:?}\n\
             [sync.item]\ntable = \"public.item\"\nkey = \"item:{{id}}\"\ncolumns = [\"n\"]\n",
            server.url_as("edge", "postgres"),
            at("daemon"),
        ),
        0o600,
    );
    let url = server.url_as("boss", "postgres");
    let url_file = at("url");
    let install = |arguments: &[&str], variables: &[(&str, &str)]| -> (bool, String) {
        let output: Output = Command::new(env!("CARGO_BIN_EXE_pg2kv"))
            .env_clear()
            .envs(variables.iter().copied())
            .arg("install")
            .args(arguments)
            .arg("--config")
            .arg(at("pg2kv.toml"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!told.contains("ary\\@") && !told.contains(IN_URL), "{told}");
        (output.status.success(), told)
    };
    let as_boss = ["--database-url", url.as_str()];
    let at_home = [("HOME", home.path().to_str().unwrap())];

    let (done, _) = install(&as_boss, &at_home);
    assert!(!done, "the server asks for a password");
    let installed = install(&as_boss, &[("PGPASSWORD", PASSWORD)]);
    assert_eq!(installed, (true, String::new()));

    let line = format!("*:{}:postgres:boss:can\\:ary\\\\@7\n", server.port());
    write(&at(".pgpass"), &line, 0o600);
    assert_eq!(install(&as_boss, &at_home), (true, String::new()));
    write(&at(".pgpass"), &line, 0o640);
    let (done, told) = install(&as_boss, &at_home);
    assert!(!done && told.contains("chmod 0600"), "{told}");
    write(&at("elsewhere"), &line, 0o600);
    let elsewhere = at("elsewhere");
    let named = [("PGPASSFILE", elsewhere.to_str().unwrap())];
    assert_eq!(install(&as_boss, &named), (true, String::new()));

    let whole = url.replace("boss", &format!("boss:{IN_URL}"));
    write(&url_file, &format!("{whole}\n"), 0o600);
    let by_file = ["--database-url-file", url_file.to_str().unwrap()];
    assert_eq!(install(&by_file, &[]), (true, String::new()));
    write(&url_file, &whole, 0o644);
    let (done, told) = install(&by_file, &[]);
    assert!(
        done && told.contains("every user of this machine may read"),
        "{told}"
    );
    let (done, told) = install(&["--database-url-file", "/dev/zero"], &[]);
    assert!(!done && told.contains("a device"), "{told}");
    let (done, told) = install(&[as_boss, by_file].concat(), &[]);
    assert!(!done && told.contains("cannot be used with"), "{told}");
}
