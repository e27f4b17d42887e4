//! The SQL of the Postgres edge: every name in it has a schema when it is sent.
//!
//! `source::names` gives it one. Here every constant is looked at, whether or not a test sends it: what
//! has no qualified spelling, and what goes to the server by another way.

use pg2kv::source::names::problems;

use super::{read, sources};

/// What tells SQL from a sentence.
const SQL: [&str; 9] = [
    "select ",
    "select(",
    "insert into ",
    "delete from ",
    "update pg2kv.",
    "order by",
    "::",
    "coalesce(",
    " over ",
];

/// The string literals of Rust code, with the line that each begins in.
fn literals(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut rest, mut line) = (code.char_indices().peekable(), 1);
    while let Some((at, character)) = rest.next() {
        match character {
            '\n' => line += 1,
            '/' if code[at..].starts_with("//") => {
                while rest.next_if(|(_, next)| *next != '\n').is_some() {}
            }
            '\'' if code[at..].starts_with("'\"'") => {
                rest.nth(1);
            }
            '"' => {
                let (begins, mut text) = (line, String::new());
                while let Some((_, next)) = rest.next() {
                    line += usize::from(next == '\n');
                    match next {
                        '"' => break,
                        '\\' => match rest.next() {
                            Some((_, '\n')) => {
                                line += 1;
                                while let Some((_, space)) =
                                    rest.next_if(|(_, next)| next.is_whitespace())
                                {
                                    line += usize::from(space == '\n');
                                }
                            }
                            Some((_, 'n')) => text.push('\n'),
                            Some((_, escaped)) => text.push(escaped),
                            None => break,
                        },
                        next => text.push(next),
                    }
                }
                found.push((begins, text));
            }
            _ => {}
        }
    }
    found
}

#[test]
fn every_statement_can_be_given_its_schemas() {
    let (mut wrong, mut statements) = (Vec::new(), 0);
    for path in sources("src/source") {
        if path.ends_with("tests.rs") {
            continue;
        }
        let code = std::fs::read_to_string(&path).unwrap();
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        for (line, text) in literals(code) {
            if SQL.iter().any(|mark| text.contains(mark)) {
                statements += 1;
                for problem in problems(&text) {
                    wrong.push(format!("{}:{line}: {problem}\n  {text}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(statements > 100, "only {statements} statements were found");
}

#[test]
fn nothing_is_sent_but_by_what_gives_names_their_schemas() {
    let mut wrong = Vec::new();
    for path in sources("src/source") {
        let code = std::fs::read_to_string(&path).unwrap();
        if !path.ends_with("names.rs") && code.contains("tokio_postgres::Client") {
            wrong.push(format!("{}: the driver's own client", path.display()));
        }
        // Files of the SQL kit say themselves where names are looked for.
        let runs_files = ["names.rs", "admin.rs", "schema.rs"];
        if !runs_files.iter().any(|file| path.ends_with(file)) && code.contains("run_file(") {
            wrong.push(format!("{}: SQL that is sent as it is", path.display()));
        }
        for part in code.split(".batch_execute(").skip(1) {
            let literal = literals(part.split(')').next().unwrap_or_default());
            if literal.iter().any(|(_, text)| text.contains("select")) {
                wrong.push(format!("{}: a statement among commands", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What sets a session up is a batch, for one round trip, and says its schemas itself.
    for (_, text) in literals(&read("src/source/link.rs")) {
        if text.contains("select ") && text.ends_with(';') {
            assert_eq!(pg2kv::source::names::qualified(&text), text);
        }
    }
}
