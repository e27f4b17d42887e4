//! `[sync.NAME.related.NAME]`: tables that documents take data from.

use super::{BASE, errors, good};

const RELATED: &str = r#"
[sync.users.related.tenants]
table = "public.tenants"
match = { tenant_id = "id", region = "home" }
watch = ["plan"]
"#;

#[test]
fn what_matches_is_watched_too() {
    let config = good(&format!("{BASE}{RELATED}"), &[]);
    let watch = &config.syncs[0].watch;
    let columns = ["plan", "region", "tenant_id"].map(str::to_owned);
    assert_eq!(watch.columns.as_deref(), Some(columns.as_slice()));
    let related = &watch.related[0];
    assert_eq!(
        (&*related.name, &*related.table),
        ("tenants", "public.tenants")
    );
    let pair = |own: &str, theirs: &str| (own.to_owned(), theirs.to_owned());
    assert_eq!(
        related.matches,
        [pair("region", "home"), pair("tenant_id", "id")],
        "in the order in which the triggers write the values"
    );
    assert_eq!(
        related.columns.as_deref(),
        Some(["plan".to_owned()].as_slice())
    );
    assert_eq!(config.sync_sources()[0].related, watch.related);

    // An expression may read any column, so all are watched there.
    let all = BASE.replace("columns = [\"plan\"]", "value = \"plan\"");
    let several = "
        [sync.users.related.settings]
        table = 'public.settings'
        match = ['id']";
    let config = good(&format!("{all}{RELATED}{several}"), &[]);
    let watch = &config.syncs[0].watch;
    assert_eq!(watch.columns, None);
    let names: Vec<_> = watch.related.iter().map(|related| &*related.name).collect();
    assert_eq!(names, ["settings", "tenants"]);
    assert_eq!(watch.related[0].matches, [pair("id", "id")]);
    assert_eq!(watch.related[0].columns, None);
}

#[test]
fn variables_set_the_keys() {
    let config = good(
        &format!("{BASE}{RELATED}"),
        &[("PG2KV__SYNC__USERS__RELATED__TENANTS__WATCH", "plan,name")],
    );
    let columns = ["plan", "name"].map(str::to_owned);
    let related = &config.syncs[0].watch.related[0];
    assert_eq!(related.columns.as_deref(), Some(columns.as_slice()));
}

#[test]
fn mistakes_are_told_with_their_place() {
    let cases = [
        (
            "[sync.users.related.tenants]\ntable = \"public.tenants\"",
            "error: sync.users.related.tenants.match is not set",
            "{ tenant_id = \"id\" }",
        ),
        (
            "[sync.users.related.tenants]\nmatch = { a = \"b\" }",
            "error: sync.users.related.tenants.table is not set",
            "public.tenants",
        ),
        (
            "[sync.users.related.tenants]\ntable = \"tenants\"\nmatch = { a = \"b\" }",
            "error: sync.users.related.tenants.table = \"tenants\" names no schema\n  where: FILE, line 12",
            "public.tenants",
        ),
        (
            "[sync.users.related.tenants]\ntable = \"public.tenants\"\nmatch = \"id\"",
            "error: sync.users.related.tenants.match is text, and must be a list or a table",
            "column names",
        ),
        (
            "[sync.users.related.tenants]\ntable = \"public.tenants\"\nmatch = { a = \"b\" }\nwhere = \"x\"",
            "error: sync.users.related.tenants.where is not a key that pg2kv knows",
            "table, match, watch",
        ),
        (
            "[sync.users.related.Tenants]\ntable = \"public.tenants\"\nmatch = { a = \"b\" }",
            "error: sync.users.related.Tenants = \"Tenants\" is not a name",
            "lower-case",
        ),
        (
            "related = \"public.tenants\"",
            "error: sync.users.related is a value, and must be a section with a name\n  where: FILE, line 11",
            "[sync.users.related.NAME]",
        ),
        (
            "related = { tenants = \"public.tenants\" }",
            "error: sync.users.related.tenants is a value, and must be a section with a name",
            "[sync.users.related.NAME]",
        ),
        (
            "relatd = { tenants = { table = \"public.tenants\" } }",
            "error: sync.users.relatd is not a key that pg2kv knows",
            "the keys of [sync.users]",
        ),
    ];
    for (text, says, helps) in cases {
        let found = errors(&format!("{}{text}\n", BASE), &[]);
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        assert!(found[0].starts_with(says), "{text}: {}", found[0]);
        assert!(found[0].contains(helps), "{text}: {}", found[0]);
    }
}
