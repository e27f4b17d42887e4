//! Keys and watched columns of every type.

use super::{on_both_servers, run, take_keys, text, with_kit};
use crate::support::postgres::Server;

on_both_servers!(
    keys_of_every_type_are_the_same_text_for_every_session,
    columns_of_every_type_can_be_watched,
);

/// The key of a row must not depend on the settings of whoever writes it, and must lead back to it.
async fn keys_of_every_type_are_the_same_text_for_every_session(server: Server) {
    let (db, admin) = with_kit(server).await;
    let odd = db.connect().await;
    run(
        &odd,
        "set timezone = 'Asia/Kathmandu'; set datestyle = 'German'; set bytea_output = 'escape';
         set intervalstyle = 'sql_standard'; set extra_float_digits = -10; set xmlbinary = 'hex'",
    )
    .await;
    run(
        &admin,
        "create type mood as enum ('glad', 'so so');
         create domain moment as timestamptz; create domain later as moment",
    )
    .await;
    for (kind, literal, key, back) in [
        ("bool", "true", "[true]", "(k->>0)::bool"),
        ("int2", "-32768", "[-32768]", "(k->>0)::int2"),
        (
            "int8",
            "9223372036854775807",
            "[9223372036854775807]",
            "(k->>0)::int8",
        ),
        (
            "numeric",
            "123456789012345678901234567890.12300",
            "[123456789012345678901234567890.12300]",
            "(k->>0)::numeric",
        ),
        ("numeric", "'NaN'", r#"["NaN"]"#, "(k->>0)::numeric"),
        (
            "numeric",
            "'-infinity'",
            r#"["-Infinity"]"#,
            "(k->>0)::numeric",
        ),
        (
            "float8",
            "0.1::float8 + 0.2",
            "[0.30000000000000004]",
            "(k->>0)::float8",
        ),
        ("float4", "'NaN'", r#"["NaN"]"#, "(k->>0)::float4"),
        (
            "text",
            "E'\\t\\\"\\\\ \u{e9} \u{1f600}'",
            r#"["\t\"\\ é 😀"]"#,
            "k->>0",
        ),
        ("text", "''", r#"[""]"#, "k->>0"),
        ("text", "'null'", r#"["null"]"#, "k->>0"),
        ("varchar(5)", "'ab '", r#"["ab "]"#, "(k->>0)::varchar(5)"),
        ("char(5)", "'ab'", r#"["ab   "]"#, "(k->>0)::char(5)"),
        ("name", "'ab'", r#"["ab"]"#, "(k->>0)::name"),
        (
            "uuid",
            "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",
            r#"["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]"#,
            "(k->>0)::uuid",
        ),
        (
            "date",
            "'2026-02-03'::date",
            r#"["2026-02-03"]"#,
            "(k->>0)::date",
        ),
        ("date", "'infinity'", r#"["infinity"]"#, "(k->>0)::date"),
        (
            "timestamp",
            "'2026-02-03 04:05:06.000007'::timestamp",
            r#"["2026-02-03T04:05:06.000007"]"#,
            "(k->>0)::timestamp",
        ),
        (
            "timestamptz",
            "'2026-02-03 04:05:06+00'::timestamptz",
            r#"["2026-02-03T04:05:06"]"#,
            "(k->>0)::timestamp at time zone 'UTC'",
        ),
        (
            "timestamptz",
            "'infinity'::timestamptz",
            r#"["infinity"]"#,
            "(k->>0)::timestamp at time zone 'UTC'",
        ),
        (
            "later",
            "'2026-02-03 04:05:06+00'::timestamptz",
            r#"["2026-02-03T04:05:06"]"#,
            "(k->>0)::timestamp at time zone 'UTC'",
        ),
        ("time", "'04:05:06.7'", r#"["04:05:06.7"]"#, "(k->>0)::time"),
        (
            "timetz",
            "'04:05:06+02'",
            r#"["04:05:06+02"]"#,
            "(k->>0)::timetz",
        ),
        (
            "bytea",
            "'\\x00ff80'::bytea",
            r#"["00ff80"]"#,
            "decode(k->>0, 'hex')",
        ),
        ("inet", "'10.0.0.1/8'", r#"["10.0.0.1/8"]"#, "(k->>0)::inet"),
        (
            "macaddr",
            "'08:00:2b:01:02:03'",
            r#"["08:00:2b:01:02:03"]"#,
            "(k->>0)::macaddr",
        ),
        ("bit(3)", "B'101'", r#"["101"]"#, "(k->>0)::bit(3)"),
        ("oid", "4294967295", r#"["4294967295"]"#, "(k->>0)::oid"),
        ("mood", "'so so'", r#"["so so"]"#, "(k->>0)::mood"),
    ] {
        run(
            &admin,
            &format!(
                "create table t (k {kind} primary key); select pg2kv.watch('t', 's', '{{k}}');
                 truncate pg2kv.outbox"
            ),
        )
        .await;
        run(&odd, &format!("insert into t values ({literal})")).await;
        let found = format!(
            "select count(*)::text from t join pg2kv.outbox o on t.k = {}",
            back.replace("k->>0", "o.key->>0")
        );
        assert_eq!(text(&admin, &found).await, "1", "{kind}: {literal}");
        assert_eq!(take_keys(&admin).await, [key], "{kind}: {literal}");
        run(&admin, "select pg2kv.unwatch('s'); drop table t").await;
    }
}

/// Also columns of types that have no equality.
async fn columns_of_every_type_can_be_watched(server: Server) {
    let (_db, admin) = with_kit(server).await;
    for (kind, one, other) in [
        ("json", "'{\"a\": 1}'", "'{\"a\":1}'"),
        ("jsonb", "'{\"a\": 1}'", "'{\"a\": 2}'"),
        ("point", "'(1,2)'", "'(1,3)'"),
        ("text[]", "'{a,b}'", "'{a,null}'"),
        ("int4range", "'[1,2)'", "'[1,3)'"),
        ("text", "'x'", "'x '"),
        ("text", "repeat('x', 1000000)", "repeat('x', 999999) || 'y'"),
        ("interval", "'1 day'", "'24 hours'"),
        ("float8", "'0'", "'-0'"),
    ] {
        for columns in ["'{v}'", "null"] {
            run(
                &admin,
                &format!(
                    "create table t (id int primary key, v {kind});
                     select pg2kv.watch('t', 's', '{{id}}', {columns});
                     insert into t values (1, {one}); truncate pg2kv.outbox"
                ),
            )
            .await;
            run(&admin, &format!("update t set v = {one}")).await;
            // What is stored out of line is not compared.
            let same = if one.starts_with("repeat") { 1 } else { 0 };
            assert_eq!(take_keys(&admin).await.len(), same, "{kind}: the same");
            run(&admin, &format!("update t set v = {other}")).await;
            assert_eq!(take_keys(&admin).await, ["[1]"], "{kind}: another");
            run(&admin, "update t set v = null").await;
            assert_eq!(take_keys(&admin).await, ["[1]"], "{kind}: null");
            run(&admin, "select pg2kv.unwatch('s'); drop table t").await;
        }
    }
}
