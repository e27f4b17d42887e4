//! What becomes of statements, and what cannot be one.

use super::*;

#[test]
fn every_name_gets_its_schema() {
    for (plain, sent) in [
        (
            "select count(*), t.* from pg_locks as t where pid <> all ($1::int4[])",
            "select pg_catalog.count(*), t.* from pg_catalog.pg_locks as t where pid \
             operator(pg_catalog.<>) all ($1::pg_catalog.int4[])",
        ),
        (
            "with seen(a, b) as materialized (select 1, 'lower(x) = 2') select md5(b) from seen",
            "with seen(a, b) as materialized (select 1, 'lower(x) = 2') select pg_catalog.md5(b) \
             from seen",
        ),
        (
            "update pg2kv.lease as l set epoch = l.epoch + 1, holder = $1 where l.epoch = (-1) \
             returning epoch",
            "update pg2kv.lease as l set epoch = l.epoch operator(pg_catalog.+) 1, holder = $1 \
             where l.epoch operator(pg_catalog.=) (-1) returning epoch",
        ),
        (
            "select coalesce(u.x->>'a', '')::bigint, pg2kv.watch(a => 1) from unnest($1::text[]) \
             as u(x) order by x collate \"C\" -- a = b",
            "select coalesce(u.x operator(pg_catalog.->>) 'a', '')::bigint, pg2kv.watch(a => 1) \
             from pg_catalog.unnest($1::pg_catalog.text[]) as u(x) order by x collate \
             pg_catalog.\"C\" -- a = b",
        ),
        (
            "insert into pg2kv.backfill as b (sync) select lower(s) on conflict (sync, (md5(key))) \
             do update set done = 0, n = extract(epoch from now())::float8",
            "insert into pg2kv.backfill as b (sync) select pg_catalog.lower(s) on conflict (sync, \
             (pg_catalog.md5(key))) do update set done = 0, n = extract(epoch from \
             pg_catalog.now())::pg_catalog.float8",
        ),
        (
            "select from unnest($1::int8[], f(a, b)) as r(low, high), unnest(f(a, b)) as s",
            "select from unnest($1::pg_catalog.int8[], pg_catalog.f(a, b)) as r(low, high), \
             pg_catalog.unnest(pg_catalog.f(a, b)) as s",
        ),
        (
            "select pg_catalog.pg_is_in_recovery(), 'x'::pg_catalog.regclass",
            "select pg_catalog.pg_is_in_recovery(), 'x'::pg_catalog.regclass",
        ),
    ] {
        let spaced = |sql: &str| sql.replace(' ', "");
        assert_eq!(spaced(&qualified(plain)), spaced(sent));
        assert_eq!(spaced(&qualified(sent)), spaced(sent), "once is enough");
    }
}

#[test]
fn what_is_not_ours_stays_as_it_is() {
    let inner = verbatim("case a when b then c in (1) end");
    let sql = format!(
        "select {}::text from x where y = {}",
        inner,
        verbatim(&inner)
    );
    assert_eq!(
        qualified(&sql),
        "select case a when b then c in (1) end::pg_catalog.text from x where y  \
         operator(pg_catalog.=)  case a when b then c in (1) end"
    );
}

#[test]
fn what_would_mean_something_else_is_found() {
    for fine in [
        "select a = b and c < d or not e = f, g || h || i, (j + 1) * 2, k->'a'->>'b'",
        "select case when a = b then c + 1 else d end || e is not null",
        "update pg2kv.x as u set a = b + 1, c = (d = e) where f = g",
        "select a[b + 1] = c",
    ] {
        assert_eq!(problems(fine), Vec::<String>::new(), "{fine}");
    }
    for wrong in [
        "select a = b + 1",
        "select a->'x' = b",
        "select a in (1, 2)",
        "select a between 1 and 2",
        "select a is distinct from b",
        "select a is not distinct from b",
        "select nullif(a, b)",
        "select case a when 1 then 2 end",
        "select * from a join b using (c)",
        "select - a",
        "select a like 'b'",
    ] {
        assert_ne!(problems(wrong), Vec::<String>::new(), "{wrong}");
    }
}
