//! The alert rules: complete, about metrics that exist, tested alert by alert, and the same in both forms.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use super::{alerts, metric_faults, path, read, yaml};
use crate::support::prometheus::program;

const RULES: &str = "deploy/prometheus/pg2kv.rules.yaml";
const TESTS: &str = "deploy/prometheus/pg2kv.rules.test.yaml";
const RESOURCE: &str = "deploy/prometheus/pg2kv.prometheusrule.yaml";

#[test]
fn every_alert_says_what_who_and_where() {
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(name.starts_with("Pg2kv"), "{name}");
        assert!(names.insert(name.to_owned()), "{name} stands there twice");
        let severity = alert["labels"]["severity"].as_str().unwrap_or_default();
        assert!(
            ["critical", "warning"].contains(&severity),
            "{name}: {severity:?}"
        );
        let text = |key: &str| alert["annotations"][key].as_str().unwrap_or_default();
        for key in ["summary", "description"] {
            assert!(text(key).ends_with('.'), "{name}: {key} is no sentence");
        }
        assert!(
            !text("summary").contains("{{"),
            "{name}: summaries are the same for all"
        );
        assert!(
            text("runbook_url").ends_with(&format!("/{name}")),
            "{name}: {}",
            text("runbook_url")
        );
    }
    assert!(names.len() >= 30, "the rules were not understood");
}

#[test]
fn rules_name_metrics_that_exist() {
    let rules = yaml(RULES);
    let mut looked_at = 0;
    for group in rules["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            let faults = metric_faults(rule["expr"].as_str().unwrap());
            assert!(faults.is_empty(), "{faults:?} in {rule}");
            looked_at += 1;
        }
    }
    assert!(looked_at > 30, "the rules were not understood");
}

#[test]
fn the_resource_says_the_same_as_the_plain_rules() {
    let resource = yaml(RESOURCE);
    assert_eq!(resource["apiVersion"], "monitoring.coreos.com/v1");
    assert_eq!(resource["kind"], "PrometheusRule");
    assert_eq!(resource["spec"], yaml(RULES), "run `make rules`");
}

#[test]
fn promtool_finds_every_rule_to_do_what_it_should() {
    for arguments in [["check", "rules", RULES], ["test", "rules", TESTS]] {
        let output = Command::new(program("promtool"))
            .args(arguments)
            .current_dir(path(""))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{errors}");
    }
}

#[test]
fn every_alert_is_seen_to_fire_and_to_stay_quiet() {
    let tests = yaml(TESTS);
    let tests = tests["tests"].as_array().unwrap();
    let cases = |name: &str, kind: &str| -> Vec<&Value> {
        let named = |test: &&Value| {
            let title = test["name"].as_str().unwrap();
            title
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(kind))
        };
        let cases = tests.iter().filter(named);
        cases
            .flat_map(|test| test["alert_rule_test"].as_array().unwrap())
            .filter(|case| case["alertname"] == name)
            .collect()
    };
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let expected = |case: &&Value| case["exp_alerts"].as_array().unwrap().len();
        let fires = cases(name, " fires");
        assert!(
            fires.iter().any(|case| expected(case) > 0),
            "{name} never fires"
        );
        let quiet = cases(name, " stays quiet: ");
        assert!(
            quiet.iter().any(|case| expected(case) == 0),
            "{name} is never quiet"
        );
    }
    assert!(read(TESTS).contains("near miss"), "the file says how");
}
