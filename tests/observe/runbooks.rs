//! Alerts and runbooks in step: a page for each alert, none too many, each with the same parts.

use std::collections::BTreeSet;

use super::{alerts, metric_faults, path, read};

/// Parts of a page, in this order.
const PARTS: [&str; 4] = ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"];

/// Names of the pages, without the one that explains them.
pub(crate) fn pages() -> BTreeSet<String> {
    let files = std::fs::read_dir(path("deploy/runbooks")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let names = names.map(|name| name.strip_suffix(".md").unwrap().to_owned());
    names.filter(|name| name != "README").collect()
}

/// The lines of all fenced blocks of a page.
pub(crate) fn commands(page: &str) -> Vec<String> {
    let text = read(&format!("deploy/runbooks/{page}.md"));
    let mut inside = false;
    let mut commands = Vec::new();
    for line in text.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside {
            commands.push(line.to_owned());
        }
    }
    commands
}

#[test]
fn every_alert_has_its_page_and_every_page_its_alert() {
    let alerts: BTreeSet<String> = alerts()
        .iter()
        .map(|alert| alert["alert"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(alerts, pages());
}

#[test]
fn every_page_says_what_it_means_whom_it_hurts_how_to_look_and_what_to_do() {
    let index = read("deploy/runbooks/README.md");
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let page = read(&format!("deploy/runbooks/{name}.md"));
        assert!(page.starts_with(&format!("# {name}\n")), "{name}");
        let summary = alert["annotations"]["summary"].as_str().unwrap();
        assert!(page.contains(summary), "{name}: not the words of the alert");
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(page.contains(&format!("Severity: {severity}.")), "{name}");
        let row = format!("| [{name}]({name}.md) | {severity} | {summary} |");
        assert!(index.contains(&row), "the index lacks {row}");
        let mut rest = page.as_str();
        for part in PARTS {
            let (_, after) = rest
                .split_once(&format!("\n{part}\n"))
                .unwrap_or_else(|| panic!("{name}: {part} is missing or out of order"));
            rest = after;
        }
        for link in page.split("](").skip(1) {
            let (target, _) = link.split_once(')').unwrap();
            let target = target.split_once('#').map_or(target, |(file, _)| file);
            assert!(
                path("deploy/runbooks").join(target).is_file(),
                "{name} links to {target}"
            );
        }
    }
}

#[test]
fn commands_ask_for_metrics_that_exist() {
    let mut asked = 0;
    for page in pages() {
        for command in commands(&page) {
            if command.starts_with("promtool ") {
                let faults = metric_faults(&command);
                assert!(faults.is_empty(), "{page}: {faults:?}");
                asked += 1;
            }
        }
    }
    assert!(asked > 30, "the pages were not understood");
}
