//! The table of exit codes in `pg2kv --help`: each is provoked, and every verb means the same by it.

use std::path::Path;

use super::{printed, run};

const CONFIG: &str = "
[postgres]
url = \"postgres://daemon@127.0.0.1:PORT/app\"
[kv]
namespace_id = \"0123456789abcdef0123456789abcdef\"
api_token = \"token\"
[sync.users]
table = \"public.users\"
key = \"user:{id}\"
columns = [\"plan\"]
";

/// Verbs that need Postgres and end by themselves.
const ASKING: [&[&str]; 13] = [
    &["install"],
    &["status"],
    &["status", "--json"],
    &["resync", "users"],
    &["resync", "users", "--dry-run"],
    &["verify"],
    &["verify", "--repair", "--dry-run"],
    &["explain", "user:1"],
    &["dead-letters", "list"],
    &["dead-letters", "show", "users"],
    &["dead-letters", "retry", "users"],
    &["dead-letters", "drop", "users"],
    &["approve-deletes", "users"],
];

fn code(arguments: &[&str], config: &Path) -> i32 {
    let config = config.to_str().unwrap();
    let output = run(&[arguments, &["--config", config]].concat());
    let code = output.status.code().unwrap();
    // Whatever is wrong is told, and where there is an answer on standard output it is no error.
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        told.starts_with("error: "),
        code > 1,
        "{arguments:?}: {told}"
    );
    code
}

#[test]
fn each_code_of_the_help_is_met() {
    let help = printed(&["--help"]);
    let table = help.split_once("Exit codes:\n").unwrap().1;
    let table = table.split_once("\n\n").unwrap().0;
    let codes: Vec<i32> = table
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();

    let files = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let nobody = files.path().join("nobody.toml");
    let text = CONFIG.replace("PORT", &port.to_string());
    std::fs::write(&nobody, &text).unwrap();
    let wrong = files.path().join("wrong.toml");
    std::fs::write(&wrong, text.replace("[kv]", "[vk]")).unwrap();

    let met = [
        code(&["sql", "watch"], &nobody),
        // A finding: the database does not answer.
        code(&["check"], &nobody),
        code(&["rnu"], &nobody),
        code(&["status"], &nobody),
        code(&["status"], &wrong),
    ];
    assert_eq!(met.to_vec(), codes, "{table}");

    for verb in ASKING {
        assert_eq!(code(verb, &nobody), 69, "{verb:?}");
        assert_eq!(code(verb, &wrong), 78, "{verb:?}");
    }
    for verb in [&["run"][..], &["check"], &["sql"], &["sql", "grants"]] {
        assert_eq!(code(verb, &wrong), 78, "{verb:?}");
    }
    assert_eq!(code(&["status", "--watch"], &wrong), 78);
    for verb in [
        &["status", "--interval", "1s"][..],
        &["status", "--watch", "--interval", "1ms"],
        &["sql", "install", "--login", "app"],
    ] {
        assert_eq!(code(verb, &nobody), 2, "{verb:?}");
    }
}
