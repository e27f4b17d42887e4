//! `pg2kv sql grants`: exactly what the installation grants.

use crate::audit::Place;

const TABLES: &str = "
    create schema \"Shop . 1\";
    create table \"Shop . 1\".\"It\"\"ems\" (id int primary key, \"N\" int, other int);
    create table \"Shop . 1\".whole (id int primary key, n int);
    create table \"Shop . 1\".parts (a int, b int, n int, primary key (a, b));
    create table \"Shop . 1\".tenant (id int primary key, plan text, secret text);";
const SYNCS: &str = r#"
[sync.item]
table = '"Shop . 1"."It""ems"'
key = "item:{id}"
columns = ["N"]
[sync.item.related.tenant]
table = '"Shop . 1".tenant'
match = { id = "id" }
watch = ["plan"]
[sync.whole]
table = '"Shop . 1".whole'
key = "whole:{id}"
value = "n::text"
[sync.parts]
table = '"Shop . 1".parts'
key = "parts:{shard}"
columns = ["n"]
collect = "list"
shards = 4
"#;

/// Everything that the daemon's role may do, one privilege a line.
const GRANTED: &str = "
    select string_agg(what || ' ' || privilege, e'\\n' order by what, privilege) from (
      select c.oid::regclass::text as what, acl.privilege_type as privilege
      from pg_class c, aclexplode(c.relacl) acl where acl.grantee = 'pg2kv_daemon'::regrole
      union all
      select a.attrelid::regclass || '.' || a.attname, acl.privilege_type
      from pg_attribute a, aclexplode(a.attacl) acl where acl.grantee = 'pg2kv_daemon'::regrole
      union all
      select p.oid::regprocedure::text, acl.privilege_type
      from pg_proc p, aclexplode(p.proacl) acl where acl.grantee = 'pg2kv_daemon'::regrole
      union all
      select n.nspname, acl.privilege_type
      from pg_namespace n, aclexplode(n.nspacl) acl where acl.grantee = 'pg2kv_daemon'::regrole
    ) as granted";

#[tokio::test]
async fn what_it_prints_grants_what_was_installed() {
    let place = Place::new("granted", TABLES, SYNCS).await;
    let client = place.database.connect().await;
    let granted =
        async || -> Option<String> { client.query_one(GRANTED, &[]).await.unwrap().get(0) };
    let login = place.database.role("granted");
    let installed = granted().await.unwrap();
    for what in [
        "parts.b SELECT",
        "tenant.plan SELECT",
        "whole SELECT",
        "outbox INSERT",
    ] {
        assert!(installed.contains(what), "{what}\n{installed}");
    }
    assert!(
        !installed.contains("secret") && !installed.contains("other"),
        "{installed}"
    );

    let revoke = format!("drop owned by pg2kv_daemon; revoke pg2kv_daemon from {login}");
    client.batch_execute(&revoke).await.unwrap();
    assert_eq!(granted().await, None);
    let sql = place.says(0, &["sql", "grants", "--login", &login]).await;
    for _ in 0..2 {
        client.batch_execute(&sql).await.unwrap();
        assert_eq!(granted().await.as_ref(), Some(&installed), "{sql}");
    }
    let member = format!("select pg_has_role('{login}', 'pg2kv_daemon', 'member')::int::int8");
    assert_eq!(place.number(&member).await, 1);
    place.says(0, &["status"]).await;
    // A comment for each block.
    for block in sql.split("\n\n").filter(|block| block.contains("grant ")) {
        assert!(block.starts_with("-- "), "{block}");
    }
}
