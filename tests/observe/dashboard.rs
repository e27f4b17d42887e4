//! The dashboard as a file: what every panel must have, whatever it shows.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{metric_faults, read};

/// The dashboard.
pub(crate) fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/grafana/dashboard.json")).unwrap()
}

/// Its panels, without the headings.
pub(crate) fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row").collect()
}

#[test]
fn every_panel_says_what_it_shows_in_which_unit() {
    let dashboard = dashboard();
    let panels = panels(&dashboard);
    assert!(panels.len() > 30, "the dashboard was not understood");
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        assert!(!title.is_empty());
        let description = panel["description"].as_str().unwrap();
        assert!(description.ends_with('.'), "{title}: {description:?}");
        let defaults = &panel["fieldConfig"]["defaults"];
        assert!(defaults["unit"].is_string(), "{title}: no unit");
        assert!(defaults["thresholds"]["steps"].is_array(), "{title}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}: nothing is asked");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            let faults = metric_faults(expression);
            assert!(faults.is_empty(), "{title}: {faults:?}");
            // Alerts are told apart by their names: some have neither namespace nor job.
            if !expression.contains("ALERTS{") {
                let of_chosen = r#"namespace=~"$namespace", job=~"$job""#;
                let selectors = expression.matches('{').count();
                assert_eq!(
                    expression.matches(of_chosen).count(),
                    selectors,
                    "{title}: {expression}"
                );
            }
            let windows = expression.matches('[').count();
            let dynamic = expression.matches("[$__rate_interval]").count();
            assert_eq!(windows, dynamic, "{title}: {expression}");
        }
    }
}

#[test]
fn panels_fill_the_grid_and_do_not_overlap() {
    let dashboard = dashboard();
    let mut taken = BTreeSet::new();
    let mut ids = BTreeSet::new();
    let mut lowest = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()));
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} overlaps", panel["title"]);
            }
        }
        lowest = lowest.max(at("y") + at("h"));
    }
    assert_eq!(taken.len() as u64, 24 * lowest, "there are holes");
}

#[test]
fn one_can_choose_the_source_and_the_installation_and_sees_changes_of_leader() {
    let dashboard = dashboard();
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, ["datasource", "namespace", "job"]);
    let annotation = &dashboard["annotations"]["list"][0];
    let expression = annotation["expr"].as_str().unwrap();
    assert!(expression.contains("pg2kv_leader"), "{expression}");
    assert_eq!(metric_faults(expression), [""; 0]);
    assert_eq!(dashboard["uid"], "pg2kv");
    assert_eq!(dashboard["editable"], false);
}
