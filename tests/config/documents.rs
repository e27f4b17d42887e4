//! What a sync writes: the keys that describe a document, and what is wrong with them.

use pg2kv::source::{Collect, CollectInto, ExpirySql};

use super::{errors, good};

/// A configuration with one sync of these lines.
fn with(sync: &str) -> String {
    let base = super::BASE;
    let end = base.find("[sync.users]").unwrap();
    format!(
        "{}[sync.users]\ntable = \"public.users\"\n{sync}\n",
        &base[..end]
    )
}

#[test]
fn a_collecting_sync_is_understood() {
    let text = with(
        "key = \"tenant:{tenant_id}:{shard}\"\ncolumns = [\"plan\"]\ncollect = \"object\"\n\
         member = \"id\"\nshards = 16\nttl = \"1h\"",
    );
    let config = good(&text, &[]);
    let sync = &config.syncs[0];
    assert_eq!(sync.watch.key_columns, ["tenant_id"]);
    assert_eq!(
        sync.watch.columns.as_deref(),
        Some(&["plan".to_owned(), "id".to_owned()][..])
    );
    assert!(sync.watch.collect);
    assert_eq!(sync.watch.shards, Some(16));
    let collect = Collect {
        into: CollectInto::Object {
            member: "id".to_owned(),
        },
        order_by: None,
        shards: Some(16),
    };
    assert_eq!(sync.collect, Some(collect));
    assert!(matches!(
        sync.attributes.expiry,
        Some(ExpirySql::After(3_600))
    ));
    let name = sync
        .template
        .render(&["7".to_owned(), "3".to_owned()])
        .unwrap();
    assert_eq!(name.as_str(), "tenant:7:3");

    let text =
        with("key = \"users\"\nvalue = \"name\"\ncollect = \"list\"\norder_by = \"name desc\"");
    let config = good(&text, &[]);
    let sync = &config.syncs[0];
    assert_eq!(
        (&sync.watch.key_columns, &sync.watch.columns),
        (&vec![], &None)
    );
    assert_eq!(sync.template.render(&[]).unwrap().as_str(), "users");
}

/// The first line of each error, and the last.
#[test]
fn what_does_not_go_together_is_refused_with_what_to_do() {
    for (sync, what, help) in [
        (
            "key = \"{id}\"\ncolumns = [\"a\"]\ncollect = \"map\"",
            "sync.users.collect = \"map\" is neither of two",
            "write \"object\" for a JSON object with a member for each row, or \"list\"",
        ),
        (
            "key = \"{t}\"\ncolumns = [\"a\"]\ncollect = \"object\"",
            "sync.users.member is not set",
            "name the column whose value names a row's member in the object, such as \"id\"",
        ),
        (
            "key = \"{t}\"\ncolumns = [\"a\"]\ncollect = \"list\"\nmember = \"id\"",
            "sync.users.member is set, and sync.users.collect is \"list\"",
            "elements of a list have no names: leave member out, or set collect = \"object\"",
        ),
        (
            "key = \"{t}\"\ncolumns = [\"a\"]\nmember = \"id\"",
            "sync.users.member is set, and collect is not",
            "set collect = \"object\" or \"list\" for one document of many rows, or leave it out",
        ),
        (
            "key = \"{t}\"\ncolumns = [\"a\"]\nshards = 3",
            "sync.users.shards is set, and collect is not",
            "set collect = \"object\" or \"list\" for one document of many rows, or leave it out",
        ),
        (
            "key = \"{t}\"\ncolumns = [\"a\"]\ncollect = \"list\"\nshards = 3",
            "sync.users.key = \"{t}\" holds no {shard}, and shards is set",
            "put the number of the shard into the key: \"users:{shard}\"",
        ),
        (
            "key = \"{t}:{shard}\"\nkey_columns = [\"t\", \"shard\"]\ncolumns = [\"a\"]\n\
             collect = \"list\"\nshards = 3",
            "sync.users.key_columns names shard, which stands for the number of the shard here",
            "leave it out of key_columns; a column of this name cannot be in the key with shards",
        ),
        (
            "key = \"{shard}\"\ncolumns = [\"a\"]\ncollect = \"list\"\nshards = 1001",
            "sync.users.shards = 1001 is out of range",
            "choose from 1 to 1000",
        ),
        (
            "key = \"{t}\"\ncolumns = [\"a\"]\ncollect = \"list\"\ncontent_type = \"'a/b'\"",
            "sync.users.content_type and sync.users.collect are both set",
            "a document of many rows has no one row to take it from; leave one of them out",
        ),
        (
            "key = \"users\"\ncolumns = [\"a\"]",
            "sync.users.key = \"users\" holds no column",
            "put the column that tells rows apart in braces: \"user:{id}\"; or set collect, for one \
             document of all rows",
        ),
        (
            "key = \"{t}\"\ncolumns = [\"a\"]\nttl = \"59s\"",
            "sync.users.ttl = \"59s\" is too short",
            "choose from 1m to 10years",
        ),
        (
            "key = \"{t}\"\ncolumns = [\"a\"]\nttl = \"60s 1ms\"",
            "sync.users.ttl has a part of a second",
            "write whole seconds: Workers KV counts no smaller ones",
        ),
        (
            "key = \"{t}\"\ncolumns = [\"a\"]\nttl = \"1h\"\nexpires_at = \"until\"",
            "sync.users.ttl and sync.users.expires_at are both set",
            "keep expires_at for a moment that each row names, or ttl for a time after each write",
        ),
    ] {
        let found = errors(&with(sync), &[]);
        assert_eq!(found.len(), 1, "{sync}: {found:#?}");
        let lines: Vec<&str> = found[0].lines().collect();
        assert_eq!(lines.first(), Some(&&*format!("error: {what}")), "{sync}");
        assert_eq!(lines.last(), Some(&&*format!("  help: {help}")), "{sync}");
    }
}

#[test]
fn what_is_watched_by_default_covers_every_expression() {
    for (extra, all) in [
        ("", false),
        ("content_type = \"kind\"", true),
        ("metadata = \"about\"", true),
        ("expires_at = \"until\"", true),
        ("ttl = \"1h\"", false),
        ("where = \"active\"", true),
    ] {
        let text = with(&format!("key = \"{{id}}\"\ncolumns = [\"plan\"]\n{extra}"));
        let watched = good(&text, &[]).syncs[0].watch.columns.clone();
        assert_eq!(watched.is_none(), all, "{extra}");
    }
}
