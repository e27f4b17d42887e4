//! Every message, word by word: they are interface.

use super::{BASE, Files, environment, errors, read, shown};
use pg2kv::config::load;

/// What is appended to the complete file, or replaced in it, and the one error that comes of it.
struct Case {
    replace: Option<(&'static str, &'static str)>,
    append: &'static str,
    says: &'static str,
}

const fn append(append: &'static str, says: &'static str) -> Case {
    Case {
        replace: None,
        append,
        says,
    }
}

const fn replace(from: &'static str, to: &'static str, says: &'static str) -> Case {
    Case {
        replace: Some((from, to)),
        append: "",
        says,
    }
}

const CASES: &[Case] = &[
    // Unknown keys and sections.
    append(
        "[queue]\nquite = \"1s\"",
        "error: queue.quite is not a key that pg2kv knows
  where: FILE, line 12
  help: did you mean queue.quiet?",
    ),
    append(
        "[kv.extra]\nx = 1",
        "error: kv.extra is not a key that pg2kv knows
  where: FILE, line 11
  help: the keys of [kv] are account_id, namespace_id, api_token, api_token_file, api_base_url, \
         request_timeout, connect_timeout, proxy, root_certificate, requests_per_5min, \
         reserve_requests, in_flight_max, pairs_max, body_max_bytes",
    ),
    append(
        "[shutdown]\nquiet = \"1s\"",
        "error: shutdown.quiet is not a key that pg2kv knows
  where: FILE, line 12
  help: did you mean queue.quiet?",
    ),
    append(
        "[ques]\nquiet = \"1s\"",
        "error: ques is not a key that pg2kv knows
  where: FILE, line 11
  help: did you mean [queue]?",
    ),
    append(
        "[webhooks]\nurl = \"x\"",
        "error: webhooks is not a key that pg2kv knows
  where: FILE, line 11
  help: the sections are audit, backfill, brake, kv, lease, log, ops, postgres, queue, retry, shutdown, sync.NAME",
    ),
    // Wrong types.
    append(
        "[queue]\nquiet = 5",
        "error: queue.quiet is a number, and must be a duration such as \"5s\" or \"100ms\"
  where: FILE, line 12
  help: put it in quotes: quiet = \"…\"",
    ),
    append(
        "[queue]\nkeys_max = \"many\"",
        "error: queue.keys_max is text, and must be a whole number
  where: FILE, line 12
  help: write it without quotes",
    ),
    append(
        "[queue]\nleading = \"yes\"",
        "error: queue.leading is text, and must be true or false
  where: FILE, line 12
  help: write it without quotes",
    ),
    replace(
        "columns = [\"plan\"]",
        "columns = \"plan\"",
        "error: sync.users.columns is text, and must be a list or a table of column names
  where: FILE, line 10
  help: give it a list or a table of column names",
    ),
    // Impossible values.
    append(
        "[queue]\nquiet = \"5 parsecs\"",
        "error: queue.quiet = \"5 parsecs\" is not a duration
  where: FILE, line 12
  help: write a number with its unit, such as \"100ms\", \"5s\" or \"2m 30s\"",
    ),
    append(
        "[queue]\nquiet = \"5s\"",
        "error: queue.quiet = \"5s\" is longer than queue.max_wait = \"1s\"
  where: FILE, line 12
  help: a key never waits longer than max_wait, so set quiet to at most that",
    ),
    append(
        "[queue]\nkeys_max = 5000",
        "error: queue.keys_max = 5000 is less than kv.pairs_max = 10000
  where: FILE, line 12
  help: the queue must hold at least one full request: raise keys_max or lower pairs_max",
    ),
    append(
        "[lease]\nttl = \"10ms\"",
        "error: lease.ttl = \"10ms\" is too short
  where: FILE, line 12
  help: choose from 1s to 1h",
    ),
    append(
        "[retry]\ninitial = \"1m\"",
        "error: retry.initial is longer than retry.max
  where: FILE, line 12
  help: the wait grows from initial to max",
    ),
    append(
        "[backfill]\nchunk = 0",
        "error: backfill.chunk = 0 is out of range
  where: FILE, line 12
  help: choose from 1 to 100000",
    ),
    append(
        "[ops]\nlisten = \"9464\"",
        "error: ops.listen = \"9464\" is not an address with a port
  where: FILE, line 12
  help: write an IP address and a port, such as \"127.0.0.1:9464\" or \"0.0.0.0:9464\"",
    ),
    append(
        "[log]\nlevel = \"verbose\"",
        "error: log.level = \"verbose\" is not a level
  where: FILE, line 12
  help: choose error, warn, info, debug or trace",
    ),
    // Workers KV.
    replace(
        "0123456789abcdef0123456789abcdef",
        "0123456789abcdef",
        "error: kv.namespace_id has 16 characters, and an id has 32
  where: FILE, line 5
  help: `wrangler kv namespace list` prints it",
    ),
    replace(
        "0123456789abcdef0123456789abcdef",
        "0123456789ABCDEF0123456789abcdef",
        "error: kv.namespace_id holds 'A', and an id has only 0-9 and a-f
  where: FILE, line 5
  help: `wrangler kv namespace list` prints it",
    ),
    replace(
        "namespace_id = \"0123456789abcdef0123456789abcdef\"",
        "",
        "error: kv.namespace_id is not set
  where: not in FILE, and PG2KV__KV__NAMESPACE_ID is not set
  help: set it, or set namespace_id in sync.users; `wrangler kv namespace list` prints the ids",
    ),
    replace(
        "api_token = ",
        "api_token_file = \"/nowhere/token\"\napi_token = ",
        "error: kv.api_token and kv.api_token_file are both set
  where: FILE, line 7
  help: keep one of them; the file is set in: FILE, line 6",
    ),
    replace(
        "api_token = ",
        "api_base_url = \"http://api.example.com/v4\"\napi_token = ",
        "error: kv.api_base_url is http:// to api.example.com, which would show the API token to the network
  where: FILE, line 6
  help: use https://, or a loopback address (127.0.0.1, [::1], localhost) for a local server",
    ),
    replace(
        "api_token = ",
        "requests_per_5min = 50\napi_token = ",
        "error: kv.reserve_requests = 60 leaves nothing of requests_per_5min = 50
  where: default
  help: set it to a small part of requests_per_5min",
    ),
    // Postgres.
    replace(
        "postgres://daemon@localhost/app",
        "postgres://daemon@db.example.com/app?sslmode=disable",
        "error: postgres.url cannot be used: host \"db.example.com\" is not a loopback address and TLS is off (sslmode=disable)
  where: FILE, line 3
  help: use sslmode=verify-full, or allow plain text in the configuration",
    ),
    replace(
        "[kv]",
        "schema = \"Pg2kv\"\n[kv]",
        "error: postgres.schema = \"Pg2kv\" is not a name that can be used
  where: FILE, line 4
  help: use a lower-case letter and then up to 30 of a-z, 0-9 and _ (not pg_… for the schema)",
    ),
    replace(
        "[kv]",
        "root_certificate = \"/nowhere/ca.pem\"\n[kv]",
        "error: postgres.root_certificate names /nowhere/ca.pem, which cannot be read: No such file or directory (os error 2)
  where: FILE, line 4
  help: check the path and that this user may read the file",
    ),
    // Syncs.
    replace(
        "public.users",
        "users",
        "error: sync.users.table = \"users\" names no schema
  where: FILE, line 8
  help: write it with its schema, such as \"public.users\"",
    ),
    replace(
        "public.users",
        "public.Users",
        "error: sync.users.table = \"public.Users\" is not the name of a table
  where: FILE, line 8
  help: write schema and table with a dot between; a name with capitals or other characters goes in double quotes: 'public.\"Users\"'",
    ),
    replace(
        "columns = [\"plan\"]",
        "columns = [\"plan\"]\nvalue = \"to_jsonb(plan)\"",
        "error: sync.users.value and sync.users.columns are both set
  where: FILE, line 11
  help: keep columns for a JSON object of columns, or value for an SQL expression",
    ),
    replace(
        "columns = [\"plan\"]",
        "columns = [\"plan\", \"plan\"]",
        "error: sync.users.columns has the column \"plan\" twice
  where: FILE, line 10
  help: leave one of them out",
    ),
    replace(
        "columns = [\"plan\"]",
        "",
        "error: sync.users.columns is not set
  where: not in FILE, and PG2KV__SYNC__USERS__COLUMNS is not set
  help: list the columns of the document, or give an SQL expression with value",
    ),
    replace(
        "user:{id}",
        "user",
        "error: sync.users.key = \"user\" holds no column
  where: FILE, line 9
  help: put the column that tells rows apart in braces: \"user:{id}\"",
    ),
    replace(
        "user:{id}",
        "user:{id",
        "error: sync.users.key = \"user:{id\" holds no column
  where: FILE, line 9
  help: put the column that tells rows apart in braces: \"user:{id}\"",
    ),
    replace(
        "user:{id}",
        "user:{id}{plan}",
        "error: sync.users.key = \"user:{id}{plan}\": the placeholder at character 10 follows another one directly, so names could not be told apart
  where: FILE, line 9
  help: put a text such as `:` between them",
    ),
    append(
        "key_columns = [\"id\", \"plan\"]",
        "error: sync.users.key = \"user:{id}\": the key column `plan` is not used
  where: FILE, line 9
  help: without `{plan}` rows would share a name",
    ),
    replace(
        "[sync.users]",
        "[sync.Users]",
        "error: sync.Users = \"Users\" is not a name that can be used
  where: FILE, line 7
  help: use a lower-case letter and then up to 30 of a-z, 0-9 and _ (not pg_… for the schema)",
    ),
    append(
        "[sync.flags]\ntable = \"public.users\"\nkey = \"user:{id}:flags\"\ncolumns = [\"flags\"]",
        "error: sync.users.key begins with \"user:\", and sync.flags.key with \"user:\", in one namespace: each could delete the other's keys
  where: FILE, line 9
  help: let each begin with a text of its own, or give one of them another namespace_id",
    ),
];

#[test]
fn each_mistake_has_its_one_message() {
    assert!(read(BASE, &[]).is_ok());
    for case in CASES {
        let mut text = BASE.to_owned();
        if let Some((from, to)) = case.replace {
            assert!(text.contains(from), "{from}");
            text = text.replacen(from, to, 1);
        }
        text.push_str(case.append);
        assert_eq!(errors(&text, &[]), [case.says], "{text}");
    }
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    for (name, value, says) in [
        (
            "PG2KV__QUEUE__QUITE",
            "1s",
            "error: queue.quite is not a key that pg2kv knows
  where: environment variable PG2KV__QUEUE__QUITE
  help: did you mean queue.quiet?",
        ),
        (
            "PG2KV__QUEUE__KEYS_MAX",
            "many",
            "error: queue.keys_max = \"many\" is not a whole number
  where: environment variable PG2KV__QUEUE__KEYS_MAX
  help: choose from 1000 to 10000000",
        ),
        (
            "PG2KV__QUEUE__LEADING",
            "perhaps",
            "error: queue.leading = \"perhaps\" is neither true nor false
  where: environment variable PG2KV__QUEUE__LEADING
  help: set it to true or false",
        ),
        (
            "PG2KV__KV__PROXY",
            "",
            "error: kv.proxy is set to nothing
  where: environment variable PG2KV__KV__PROXY
  help: give the variable a value, or unset it to use the file or the default",
        ),
        (
            "PG2KV__RULES__0__KEY",
            "x",
            "error: rules is not a key that pg2kv knows
  where: environment variable PG2KV__RULES__0__KEY
  help: the sections are audit, backfill, brake, kv, lease, log, ops, postgres, queue, retry, shutdown, sync.NAME",
        ),
    ] {
        assert_eq!(errors(BASE, &[(name, value)]), [says], "{name}={value}");
    }
}

#[test]
fn all_mistakes_come_at_once() {
    let text = "[postgres]\nul = 'x'\n[queue]\nquiet = 1\nkeys_max = -1\n[kv]\naccount_id = 'x'";
    let found = errors(text, &[("PG2KV__OPS__LISTEN", "here")]);
    let heads: Vec<_> = found
        .iter()
        .map(|error| error.lines().next().unwrap())
        .collect();
    assert_eq!(
        heads,
        [
            "error: postgres.url is not set",
            "error: kv.account_id holds 'x', and an id has only 0-9 and a-f",
            "error: kv.api_token is not set",
            "error: queue.quiet is a number, and must be a duration such as \"5s\" or \"100ms\"",
            "error: queue.keys_max = -1 is out of range",
            "error: ops.listen = \"here\" is not an address with a port",
            "error: sync is not set",
            "error: postgres.ul is not a key that pg2kv knows",
        ]
    );
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let files = Files::new();
    for (name, text, says) in [
        (
            "missing.toml",
            None,
            "error: the configuration file cannot be read: No such file or directory (os error 2)
  where: FILE
  help: check the path and that this user may read it",
        ),
        (
            "pg2kv.conf",
            Some(""),
            "error: the configuration file has no known extension
  where: FILE
  help: name it .toml, .yaml or .yml",
        ),
        (
            "broken.toml",
            Some("[kv]\napi_token = canary-token"),
            "error: the configuration file cannot be parsed: TOML parse error at line 2, column 13: string values must be quoted, expected literal string
  where: FILE
  help: correct the syntax; text needs quotes, ids and durations too",
        ),
        (
            "broken.yaml",
            Some("kv:\n  api_token: \"canary-token"),
            "error: the configuration file cannot be parsed: while scanning a quoted scalar, found unexpected end of stream at byte 17 line 2 column 14
  where: FILE
  help: correct the syntax; put ids in quotes",
        ),
    ] {
        let path = files.path(name);
        if let Some(text) = text {
            files.write(name, text);
        }
        let complete = files.write("base.toml", BASE);
        let errors = load(&[complete, path.clone()], environment(&[])).unwrap_err();
        assert_eq!(shown(&errors, &path), [says]);
    }
}
