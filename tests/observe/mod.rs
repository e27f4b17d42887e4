//! What operators get to watch pg2kv with, as files: alert rules, runbooks, dashboard. Fast; what needs
//! a running world stands in `ops`.

// Clippy takes these for code outside tests.
#![allow(clippy::unwrap_used)]

pub(crate) mod dashboard;
mod rules;
pub(crate) mod runbooks;

use std::path::{Path, PathBuf};

use pg2kv::metrics::{ALL, Type};
use serde_json::Value;

/// A path in this repository.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A file of this repository.
pub(crate) fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A YAML file of this repository.
pub(crate) fn yaml(name: &str) -> Value {
    let text = read(name);
    let file = ::config::File::from_str(&text, ::config::FileFormat::Yaml);
    let document = ::config::Config::builder().add_source(file).build();
    document.unwrap().try_deserialize().unwrap()
}

/// The alerts of the rules file.
pub(crate) fn alerts() -> Vec<Value> {
    let rules = yaml("deploy/prometheus/pg2kv.rules.yaml");
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    rules
        .filter(|rule| rule["alert"].is_string())
        .cloned()
        .collect()
}

/// What is wrong with the metrics that an expression names: whether they exist, and whether what is
/// done with them fits their kind.
pub(crate) fn metric_faults(expression: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let part_of_name = |character: char| character.is_alphanumeric() || "_:".contains(character);
    for (at, _) in expression.match_indices("pg2kv_") {
        let (before, rest) = expression.split_at(at);
        if before.ends_with(part_of_name) {
            continue;
        }
        let end = rest.find(|c| !part_of_name(c)).unwrap_or(rest.len());
        let name = &rest[..end];
        let known = ALL.iter().find(|metric| match metric.kind {
            Type::Histogram => ["_bucket", "_sum", "_count"]
                .iter()
                .any(|suffix| name.strip_suffix(suffix) == Some(metric.name)),
            _ => metric.name == name,
        });
        let of_rate = ["rate(", "increase("]
            .iter()
            .any(|function| before.ends_with(function));
        match known {
            None => faults.push(format!("{name}: there is no such metric")),
            Some(metric) if (metric.kind == Type::Gauge) == of_rate => faults.push(format!(
                "{name}: rate and increase are for counters and histograms, and only for them"
            )),
            Some(_) => {}
        }
    }
    faults
}

#[test]
fn metrics_that_do_not_fit_are_found() {
    let fine = "rate(pg2kv_pairs_written_total[5m]) / pg2kv_leader + x_pg2kv_y + pg2kv:a:b";
    assert_eq!(metric_faults(fine), [""; 0]);
    assert_eq!(metric_faults("pg2kv_typo").len(), 1);
    assert_eq!(metric_faults("pg2kv_pairs_written_total > 1").len(), 1);
    assert_eq!(metric_faults("rate(pg2kv_leader[5m])").len(), 1);
    assert_eq!(metric_faults("rate(pg2kv_batch_pairs[5m])").len(), 1);
}
