//! Where values come from, which of them wins, and the traps on the way.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use super::{BASE, Files, environment, errors, good, shown};
use pg2kv::config::{Config, Origin, ValueSource, load, load_database, load_sql};
use secrecy::ExposeSecret as _;

const ID: &str = "fedcba9876543210fedcba9876543210";

fn origin<'a>(config: &'a Config, section: &str, key: &str) -> &'a Origin {
    config
        .effective
        .entries()
        .iter()
        .find(|entry| entry.section() == section && entry.key() == key)
        .unwrap()
        .origin()
}

#[test]
fn later_files_win_and_the_environment_wins_over_all() {
    let files = Files::new();
    let first = files.write("first.toml", BASE);
    let second = files.write(
        "second.yaml",
        "queue:\n  quiet: 10ms\n  max_wait: 20ms\nkv:\n  in_flight_max: 2\n",
    );
    let config = load(
        &[first.clone(), second.clone()],
        environment(&[
            ("PG2KV__QUEUE__QUIET", "15ms"),
            ("pg2kv__kv__pairs_max", "100"),
            ("PG2KV__QUEUE__LEADING", "TRUE"),
        ]),
    )
    .unwrap();
    assert_eq!(config.queue.quiet, Duration::from_millis(15));
    assert_eq!(config.queue.max_wait, Duration::from_millis(20));
    assert_eq!(config.kv.in_flight_max, 2);
    assert_eq!(config.kv.pairs_max, 100);
    assert!(config.queue.leading);
    assert_eq!(config.kv.requests_per_5min, Some(1_200));

    let of = |section, key| origin(&config, section, key);
    assert_eq!(
        *of("queue", "quiet"),
        Origin::Variable("PG2KV__QUEUE__QUIET".into())
    );
    assert_eq!(
        *of("kv", "pairs_max"),
        Origin::Variable("pg2kv__kv__pairs_max".into())
    );
    assert_eq!(
        *of("queue", "max_wait"),
        Origin::File {
            path: second,
            line: None
        }
    );
    assert_eq!(
        *of("sync.users", "key"),
        Origin::File {
            path: first,
            line: Some(9)
        }
    );
    assert_eq!(*of("lease", "ttl"), Origin::Default);
}

#[test]
fn variables_of_other_tools_serve_where_all_is_silent() {
    let without = "[kv]\nnamespace_id = '0123456789abcdef0123456789abcdef'\n\
        [sync.users]\ntable = 'public.users'\nkey = 'user:{id}'\ncolumns = ['plan']";
    let theirs = [
        ("DATABASE_URL", "postgres://theirs@localhost/app"),
        ("CLOUDFLARE_API_TOKEN", "their-token"),
        ("CLOUDFLARE_ACCOUNT_ID", ID),
    ];
    let config = good(without, &theirs);
    assert_eq!(config.postgres.connection.get_user(), Some("theirs"));
    assert_eq!(
        config.kv.token.read().unwrap().expose_secret(),
        "their-token"
    );
    assert_eq!(config.kv.account_id.as_deref(), Some(ID));
    assert_eq!(
        *origin(&config, "postgres", "url"),
        Origin::Variable("DATABASE_URL".into())
    );

    let config = good(BASE, &theirs);
    assert_eq!(config.postgres.connection.get_user(), Some("daemon"));

    let mut ours = theirs.to_vec();
    ours.push(("PG2KV__POSTGRES__URL", "postgres://ours@localhost/app"));
    assert_eq!(
        good(without, &ours).postgres.connection.get_user(),
        Some("ours")
    );

    let mistaken = [
        theirs[0],
        theirs[1],
        ("CLOUDFLARE_ACCOUNT_ID", "me@example.com"),
    ];
    assert_eq!(
        errors(without, &mistaken),
        [
            "error: kv.account_id holds 'm', and an id has only 0-9 and a-f
  where: environment variable CLOUDFLARE_ACCOUNT_ID
  help: `wrangler whoami` prints it"
        ]
    );
}

#[test]
fn kubernetes_variables_of_a_service_named_pg2kv_do_no_harm() {
    let config = good(
        BASE,
        &[
            ("PG2KV_PORT", "tcp://10.0.0.1:9464"),
            ("PG2KV_SERVICE_HOST", "10.0.0.1"),
            ("PG2KV_SERVICE_PORT_METRICS", "9464"),
            ("PG2KV_PORT_9464_TCP_ADDR", "10.0.0.1"),
        ],
    );
    assert_eq!(config.warnings, []);
}

#[test]
fn one_underscore_for_two_is_warned_of() {
    let config = good(BASE, &[("PG2KV_QUEUE_MAX_WAIT", "9s")]);
    assert_eq!(config.queue.max_wait, Duration::from_secs(1));
    let warnings: Vec<_> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "warning: PG2KV_QUEUE_MAX_WAIT is ignored; the name would be PG2KV__QUEUE__MAX_WAIT
  where: environment variable PG2KV_QUEUE_MAX_WAIT"
        ]
    );
}

#[test]
fn ids_that_look_like_numbers_stay_text() {
    for id in [
        "00000000000000000000000000000123",
        "12345678901234567890123456789012",
        "12e34567890123456789012345678901",
    ] {
        let config = good(
            BASE,
            &[
                ("PG2KV__KV__ACCOUNT_ID", id),
                ("PG2KV__KV__NAMESPACE_ID", id),
            ],
        );
        assert_eq!(config.kv.account_id.as_deref(), Some(id));
        assert_eq!(config.syncs[0].namespace_id.as_str(), id);
    }
}

#[test]
fn ids_without_quotes_in_yaml_are_refused_and_not_guessed() {
    let files = Files::new();
    let base = files.write("base.toml", BASE);
    for id in [
        "12345678901234567890123456789012",
        "12e34567890123456789012345678901",
    ] {
        let yaml = files.write("ids.yaml", &format!("kv:\n  account_id: {id}\n"));
        let errors = load(&[base.clone(), yaml.clone()], environment(&[])).unwrap_err();
        assert_eq!(
            shown(&errors, &yaml),
            ["error: kv.account_id is a number with a fraction, and must be 32 hexadecimal digits
  where: FILE
  help: put it in quotes: account_id = \"…\""]
        );
    }
}

#[test]
fn variables_list_columns_with_commas() {
    let config = good(BASE, &[("PG2KV__SYNC__USERS__COLUMNS", "plan, flags")]);
    let pairs = |names: &[(&str, &str)]| {
        ValueSource::Columns(
            names
                .iter()
                .map(|(a, b)| ((*a).into(), (*b).into()))
                .collect(),
        )
    };
    assert_eq!(
        config.syncs[0].value,
        pairs(&[("plan", "plan"), ("flags", "flags")])
    );
    // A table instead of the file's list.
    let config = good(BASE, &[("PG2KV__SYNC__USERS__COLUMNS__PLAN", "p")]);
    assert_eq!(config.syncs[0].value, pairs(&[("plan", "p")]));
}

#[test]
fn renamed_columns_come_in_the_order_of_their_names() {
    let text = BASE.replace(
        "[\"plan\"]",
        "{ plan = 'p', flags = 'f', active = 'a', born = 'b' }",
    );
    let names = ["active", "born", "flags", "plan"];
    for _ in 0..20 {
        let ValueSource::Columns(columns) = &good(&text, &[]).syncs[0].value else {
            panic!("columns");
        };
        assert_eq!(
            columns
                .iter()
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>(),
            names
        );
    }
}

#[test]
fn a_variable_that_is_no_text_is_refused_without_its_value() {
    let files = Files::new();
    let path = files.write("pg2kv.toml", BASE);
    let odd = OsString::from_vec(b"canary-\xff".to_vec());
    let errors = load(
        std::slice::from_ref(&path),
        vec![("PG2KV__KV__API_TOKEN".into(), odd)],
    )
    .unwrap_err();
    assert_eq!(
        shown(&errors, &path),
        ["error: PG2KV__KV__API_TOKEN is not valid UTF-8
  where: environment variable PG2KV__KV__API_TOKEN
  help: set it to UTF-8 text, or put the secret into a file and name that with the `_file` key"]
    );
}

#[test]
fn two_spellings_of_one_variable_are_refused() {
    let both = [
        ("PG2KV__QUEUE__QUIET", "1ms"),
        ("pg2kv__queue__quiet", "2ms"),
    ];
    assert_eq!(
        errors(BASE, &both),
        ["error: queue.quiet is set by two variables
  where: environment variables PG2KV__QUEUE__QUIET and pg2kv__queue__quiet
  help: unset one of them"]
    );
}

#[test]
fn what_a_verb_does_not_need_may_be_missing() {
    let files = Files::new();
    let sync = &BASE[BASE.find("[sync").unwrap()..];
    let nothing_else = files.write("sync.toml", sync);
    let config = load_sql(std::slice::from_ref(&nothing_else), environment(&[])).unwrap();
    assert_eq!(config.schema.as_str(), "pg2kv");
    assert_eq!(config.watches[0].table, "public.users");

    let url = [("DATABASE_URL", "postgres://daemon@localhost/app")];
    assert!(load_database(std::slice::from_ref(&nothing_else), environment(&[])).is_err());
    assert!(load_database(std::slice::from_ref(&nothing_else), environment(&url)).is_ok());
    assert!(load(&[nothing_else], environment(&url)).is_err());

    // A typing mistake is one for every verb.
    let mistaken = files.write("mistaken.toml", &format!("{sync}\n[kv]\napi_tokn = 'x'"));
    assert!(load_sql(&[mistaken], environment(&[])).is_err());
}

#[test]
fn what_is_watched_follows_from_what_is_written() {
    let watched = |sync: &str| {
        let text = BASE.replace("columns = [\"plan\"]", sync);
        good(&text, &[]).syncs[0].watch.columns.clone()
    };
    let names = |names: &[&str]| Some(names.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(
        watched("columns = ['plan', 'flags']"),
        names(&["plan", "flags"])
    );
    assert_eq!(watched("columns = { plan = 'p' }"), names(&["plan"]));
    // The condition may read any column.
    assert_eq!(watched("columns = ['plan']\nwhere = 'active'"), None);
    assert_eq!(
        watched("columns = ['plan']\nwhere = 'active'\nwatch = ['active']"),
        names(&["active", "plan"])
    );
    assert_eq!(watched("value = 'to_jsonb(plan)'"), None);
    assert_eq!(
        watched("value = 'to_jsonb(plan)'\nwatch = ['plan']"),
        names(&["plan"])
    );
}

#[test]
fn defaults_that_depend_on_other_keys_follow_them() {
    assert_eq!(
        good(BASE, &[]).retry.late_write_window,
        Duration::from_secs(150)
    );
    let config = good(BASE, &[("PG2KV__KV__REQUEST_TIMEOUT", "40s 500ms")]);
    assert_eq!(
        config.retry.late_write_window,
        Duration::from_millis(160_500)
    );
    assert_eq!(
        good(BASE, &[("PG2KV__KV__REQUESTS_PER_5MIN", "0")])
            .kv
            .requests_per_5min,
        None
    );
}

#[test]
fn risky_values_are_warned_of() {
    let config = good(
        BASE,
        &[
            ("PG2KV__QUEUE__KEY_INTERVAL", "10ms"),
            ("PG2KV__RETRY__LATE_WRITE_WINDOW", "1s"),
        ],
    );
    let keys: Vec<_> = config
        .warnings
        .iter()
        .map(|warning| warning.what.split(' ').next().unwrap())
        .collect();
    assert_eq!(keys, ["queue.key_interval", "retry.late_write_window"]);
}

#[test]
fn syncs_may_share_names_only_in_different_namespaces() {
    let other = |namespace: &str, key: &str| {
        format!(
            "{BASE}{namespace}\n[sync.more]\ntable = 'public.more'\nkey = '{key}'\ncolumns = ['x']"
        )
    };
    assert_eq!(errors(&other("", "users:{id}"), &[]), [] as [&str; 0]);
    assert_eq!(errors(&other("", "{id}"), &[]).len(), 1);
    assert_eq!(
        errors(&other(&format!("namespace_id = '{ID}'"), "{id}"), &[]),
        [] as [&str; 0]
    );
}
