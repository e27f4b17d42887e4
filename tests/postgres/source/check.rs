//! `check`: each thing that can be wrong is found and named.

use pg2kv::source::{Finding, Grade, SyncSource, check};

use super::{Bench, items};

fn bad(findings: &[Finding]) -> Vec<(&str, &str)> {
    findings
        .iter()
        .filter(|f| f.grade == Grade::Bad)
        .map(|f| (f.what.as_str(), f.detail.as_str()))
        .collect()
}

#[tokio::test]
async fn what_is_wrong_is_found_and_named() {
    let mut bench = Bench::new().await;
    // The shared server allows prepared transactions, which nobody need use.
    let findings = check(&bench.settings, &[]).await;
    assert_eq!(bad(&findings), []);
    let doubtful: Vec<_> = findings
        .iter()
        .filter(|finding| finding.grade == Grade::Doubtful)
        .map(|finding| finding.what.as_str())
        .collect();
    assert_eq!(doubtful, ["prepared transactions"]);
    bench.settings.doorbell = false;
    let findings = check(&bench.settings, &[items("plan")]).await;
    assert_eq!(bad(&findings), []);

    for (damage, repair, what, detail) in [
        (
            "alter table items disable trigger zzz_pg2kv_items_update",
            "alter table items enable always trigger zzz_pg2kv_items_update",
            "sync items: triggers",
            "zzz_pg2kv_items_update on public.items is disabled",
        ),
        (
            "alter table items rename to items_old; create table items (like items_old including all)",
            "drop table items; alter table items_old rename to items",
            "sync items: triggers",
            "another table is watched under this name",
        ),
        (
            "alter table items rename plan to tariff",
            "alter table items rename tariff to plan",
            "sync items: table",
            "plan",
        ),
        (
            "revoke execute on function pg2kv.take(bigint[], bigint[]) from pg2kv_daemon",
            "grant execute on function pg2kv.take(bigint[], bigint[]) to pg2kv_daemon",
            "privileges",
            "pg2kv.take(bigint[], bigint[]): execute",
        ),
        (
            "revoke execute on function pg_control_system() from public",
            "grant execute on function pg_control_system() to public",
            "privileges",
            "pg_control_system(): execute",
        ),
        (
            "revoke select on items from pg2kv_daemon",
            "grant select on items to pg2kv_daemon",
            "sync items: table",
            "permission denied",
        ),
    ] {
        bench.sql(damage).await;
        let findings = check(&bench.settings, &[items("plan")]).await;
        let found = bad(&findings);
        assert!(
            found.iter().any(|(w, d)| *w == what && d.contains(detail)),
            "after {damage}: {found:?}"
        );
        assert!(
            findings
                .iter()
                .all(|f| f.grade == Grade::Fine || f.hint.is_some()),
            "{findings:?}"
        );
        bench.sql(repair).await;
    }
    assert_eq!(bad(&check(&bench.settings, &[items("plan")]).await), []);

    for (sync, detail) in [
        (items("plan +"), "syntax error"),
        (items("no_such_function(plan)"), "no_such_function"),
        (
            SyncSource {
                filter: Some("plan".into()),
                ..items("plan")
            },
            "boolean",
        ),
        (
            SyncSource {
                table: "items".into(),
                ..items("plan")
            },
            "no such table",
        ),
        (
            SyncSource {
                key_columns: vec!["nope".into()],
                ..items("plan")
            },
            "no column nope",
        ),
    ] {
        let findings = check(&bench.settings, &[sync]).await;
        assert!(
            bad(&findings).iter().any(|(_, d)| d.contains(detail)),
            "{detail}: {findings:?}"
        );
    }
    let stranger = SyncSource {
        name: "stranger".into(),
        ..items("plan")
    };
    let findings = check(&bench.settings, &[stranger]).await;
    assert_eq!(
        bad(&findings)[0],
        ("sync stranger: triggers", "the table is not watched")
    );
}
