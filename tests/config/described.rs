//! The description by which a daemon notices that a sync is configured otherwise than before.

use std::collections::BTreeSet;

use serde_json::Value;

use super::good;

const TABLE: &str = "table = \"public.users\"\n";
const KEY: &str = "key = \"user:{id}\"\n";
const COLUMNS: &str = "columns = [\"plan\"]\n";
const OBJECT: &str = "collect = \"object\"\nmember = \"id\"";

/// Each option, and two bodies of a sync that differ in it only.
fn pairs() -> Vec<(&'static str, String, String)> {
    let base = format!("{TABLE}{KEY}{COLUMNS}");
    let more = |line: &str| format!("{base}{line}\n");
    let two = |columns: &str| {
        format!("{TABLE}key = \"user:{{id}}:{{eu}}\"\nkey_columns = {columns}\n{COLUMNS}")
    };
    let instead = |line: &str| base.replace(COLUMNS, line);
    let reads = |line: &str| more(&format!("watch = [\"a\"]\n{line}"));
    let group = |lines: &str| format!("{TABLE}key = \"tenant:{{tenant}}\"\n{COLUMNS}{lines}\n");
    let sharded = |shards: u32| {
        format!(
            "{TABLE}key = \"users:{{shard}}\"\n{COLUMNS}collect = \"list\"\nshards = {shards}\n"
        )
    };
    let related = |table: &str, id: &str, watch: &str| {
        more(&format!(
            "[sync.users.related.other]\ntable = \"public.{table}\"\n\
             match = {{ other_id = \"{id}\" }}\nwatch = [\"{watch}\"]"
        ))
    };
    vec![
        ("table", base.clone(), base.replace("users", "people")),
        ("key", base.clone(), base.replace("user:", "u:")),
        (
            "key_columns",
            two("[\"id\", \"eu\"]"),
            two("[\"eu\", \"id\"]"),
        ),
        (
            "columns",
            instead("columns = [\"a\", \"b\"]\n"),
            instead("columns = [\"b\", \"a\"]\n"),
        ),
        (
            "value",
            instead("value = \"a\"\n"),
            instead("value = \"b\"\n"),
        ),
        ("watch", base.clone(), more("watch = [\"more\"]")),
        (
            "where",
            more("watch = [\"a\"]\nwhere = \"a\""),
            more("watch = [\"a\"]\nwhere = \"not a\""),
        ),
        ("content_type", base.clone(), reads("content_type = \"a\"")),
        ("metadata", base.clone(), reads("metadata = \"a\"")),
        ("expires_at", base.clone(), reads("expires_at = \"a\"")),
        ("ttl", more("ttl = \"60s\""), more("ttl = \"61s\"")),
        ("collect", group("collect = \"list\""), group(OBJECT)),
        (
            "member",
            group(OBJECT),
            group(&OBJECT.replace("\"id\"", "\"eu\"")),
        ),
        (
            "order_by",
            group("collect = \"list\"\nwatch = [\"a\"]"),
            group("collect = \"list\"\nwatch = [\"a\"]\norder_by = \"a\""),
        ),
        ("shards", sharded(8), sharded(9)),
        (
            "related.NAME.table",
            related("t", "id", "a"),
            related("u", "id", "a"),
        ),
        (
            "related.NAME.match",
            related("t", "id", "a"),
            related("t", "no", "a"),
        ),
        (
            "related.NAME.watch",
            related("t", "id", "a"),
            related("t", "id", "b"),
        ),
        (
            "namespace_id",
            base.clone(),
            more("namespace_id = \"00000000000000000000000000000d0c\""),
        ),
    ]
}

fn described(body: &str) -> Value {
    let text = format!(
        "[postgres]\nurl = \"postgres://daemon@localhost/app\"\n\
         [kv]\nnamespace_id = \"0123456789abcdef0123456789abcdef\"\napi_token = \"token\"\n\
         [sync.users]\n{body}"
    );
    good(&text, &[]).syncs[0].described()
}

#[test]
fn every_option_of_a_sync_is_part_of_its_description() {
    for (option, before, now) in pairs() {
        assert_ne!(described(&before), described(&now), "{option}");
        assert_eq!(described(&before), described(&before), "{option}");
    }
    // An option that is new has to be in the list above.
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/configuration.md");
    let reference = std::fs::read_to_string(reference).unwrap();
    let documented: BTreeSet<&str> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `sync.NAME.")?.split_once('`'))
        .map(|(option, _)| option)
        .collect();
    let tried: BTreeSet<&str> = pairs().iter().map(|(option, ..)| *option).collect();
    assert_eq!(documented, tried);
}

#[test]
fn what_is_written_otherwise_but_means_the_same_is_no_change() {
    let base = described(&format!("{TABLE}{KEY}{COLUMNS}"));
    let spelled_out = format!(
        "{COLUMNS}{KEY}{TABLE}key_columns = [\"id\"]\n\
         namespace_id = \"0123456789abcdef0123456789abcdef\"\n"
    );
    assert_eq!(described(&spelled_out), base);
}
