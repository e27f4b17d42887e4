//! What the chart refuses, and what its list of instances becomes.

use std::fs;

use serde_json::{Value, json};

use super::tools::{chart, documents, helm, kustomize, printed, root, said, tool};

/// What helm says to values that must not pass.
fn refusal(values: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("values.yaml");
    fs::write(&path, values).unwrap();
    let output = helm(&[]).arg("--values").arg(path).output().unwrap();
    assert!(!output.status.success(), "was taken: {values}");
    said(&output)
}

#[test]
fn values_that_cannot_work_are_refused_with_their_name() {
    let instance = |name: &str, more: &str| {
        format!("  - {{name: {name}, existingSecret: s, config: '[kv]'{more}}}\n")
    };
    for (values, named) in [
        ("{}".to_owned(), "instances"),
        (format!("instances:\n{}", instance("Users", "")), "name"),
        (
            format!("instances:\n{}", instance("users", ", secret: s")),
            "secret",
        ),
        (
            format!("instances:\n{0}{0}", instance("users", "")),
            "the name users stands there twice",
        ),
        (
            "instances:\n  - {name: users, existingSecret: s, config: 'api_token = \"x\"'}\n"
                .to_owned(),
            "config",
        ),
        (
            format!("replica: 3\ninstances:\n{}", instance("users", "")),
            "replica",
        ),
        (
            format!(
                "image: {{repository: r, tag: latest}}\ninstances:\n{}",
                instance("users", "")
            ),
            "tag",
        ),
    ] {
        let said = refusal(&values);
        assert!(said.contains(named), "{values}\n{said}");
    }
}

/// The configuration and variables become a ConfigMap and a manifest, which many may read.
#[test]
fn secrets_in_the_values_are_refused() {
    let with = |config: &str, more: &str| {
        let config = serde_json::to_string(config).unwrap();
        format!("instances:\n  - {{name: users, existingSecret: s, config: {config}{more}}}\n")
    };
    for config in [
        "kv.api_token = 'x'",
        "[kv]\n  api_token='x'",
        "kv = { account_id = 'a', api_token = 'x' }",
        "[kv]\n\"api_token\" = 'x'",
        "[postgres]\nurl = 'postgres://edge:hunter2@db/app'",
        "postgres.url = 'host=db user=edge password=hunter2'",
        "postgres.url = 'postgres://edge@db/app?password=hunter2'",
        "[kv]\nproxy = 'http://user:hunter2@proxy:3128'",
    ] {
        let said = refusal(&with(config, ""));
        assert!(said.contains("config"), "{config}\n{said}");
    }
    for variable in [
        "{name: PG2KV__KV__API_TOKEN, value: x}",
        "{name: CLOUDFLARE_API_TOKEN, value: x}",
        "{name: DATABASE_URL, value: 'postgres://edge:hunter2@db/app'}",
    ] {
        let said = refusal(&with("[kv]", &format!(", extraEnv: [{variable}]")));
        assert!(said.contains("extraEnv"), "{variable}\n{said}");
    }
    // What is near a secret is none.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("values.yaml");
    let config = "[postgres]\nurl = 'postgres://edge@db.example:5432/app?sslmode=require'\n\
                  password_file = '/p'\n[kv]\napi_token_file = '/t'\nproxy = 'http://proxy:3128'\n";
    let variables = ", extraEnv: [{name: A_TOKEN_FILE, value: /t}, \
                     {name: CLOUDFLARE_API_TOKEN, valueFrom: {secretKeyRef: {name: s, key: k}}}]";
    fs::write(&path, with(config, variables)).unwrap();
    printed(helm(&[]).arg("--values").arg(path));
}

#[test]
fn helm_finds_nothing_to_complain_of() {
    let folder = root().join("deploy/kubernetes/chart");
    for values in ["default-values.yaml", "all-values.yaml"] {
        let said = printed(
            tool("helm")
                .arg("lint")
                .arg("--strict")
                .arg(&folder)
                .arg("--values")
                .arg(folder.join("ci").join(values)),
        );
        assert!(said.contains("0 chart(s) failed"), "{said}");
    }
}

/// An instance is a pair of its own: no object, label or Prometheus job is shared by two.
#[test]
fn instances_do_not_get_in_each_others_way() {
    let documents = documents(&chart("all-values.yaml"));
    let of_kind = |kind: &str| -> Vec<&Value> {
        let found = documents.iter().filter(|document| document["kind"] == kind);
        found.collect()
    };
    let daemons = of_kind("Deployment");
    let budgets = of_kind("PodDisruptionBudget");
    assert_eq!(
        (daemons.len(), budgets.len(), of_kind("Job").len()),
        (2, 2, 2)
    );
    for (mine, other) in [(0, 1), (1, 0)] {
        let selector = &daemons[mine]["spec"]["selector"];
        let labels = &daemons[other]["spec"]["template"]["metadata"]["labels"];
        let matched = selector["matchLabels"].as_object().unwrap();
        assert!(matched.iter().any(|(key, value)| labels[key] != *value));
        assert_eq!(budgets[mine]["spec"]["selector"], *selector);
        let volumes = |at: usize| daemons[at]["spec"]["template"]["spec"]["volumes"].clone();
        assert_ne!(volumes(mine)[0], volumes(other)[0]);
        assert_ne!(volumes(mine)[1], volumes(other)[1]);
    }
    let replicas: Vec<&Value> = daemons.iter().map(|it| &it["spec"]["replicas"]).collect();
    assert_eq!(replicas, [3, 2]);
    // Written out, for no schema that is strict about unknown fields is to be had for this kind.
    // Rules and dashboard look for the word pg2kv in the name of the job.
    assert_eq!(
        of_kind("PodMonitor")[0]["spec"],
        json!({
            "selector": { "matchLabels": {
                "app.kubernetes.io/name": "pg2kv",
                "app.kubernetes.io/instance": "edge",
                "app.kubernetes.io/component": "daemon",
            } },
            "podMetricsEndpoints": [{
                "port": "http",
                "path": "/metrics",
                "interval": "30s",
                "relabelings": [{
                    "sourceLabels": ["__meta_kubernetes_pod_label_pg2kv_instance"],
                    "targetLabel": "job",
                    "replacement": "pg2kv/edge-$1",
                }],
            }],
        })
    );
}

/// The rules and the dashboard are those of deploy/prometheus and deploy/grafana, in both ways.
#[test]
fn rules_and_dashboard_are_the_files_of_the_kit() {
    let python = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let rules = root().join("deploy/prometheus/pg2kv.rules.yaml");
    let rules = printed(tool("python").args(["-c", python]).arg(rules));
    let url = "https://runbooks.example.com/pg2kv";
    assert!(rules.contains(url));
    let dashboard = fs::read_to_string(root().join("deploy/grafana/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let chart = chart("all-values.yaml");
    for (yaml, url_there) in [
        (kustomize("production"), url),
        (chart, "https://wiki.example.com/runbooks"),
    ] {
        let documents = documents(&yaml);
        let rule = documents.iter().find(|it| it["kind"] == "PrometheusRule");
        let wanted: Value = serde_json::from_str(&rules.replace(url, url_there)).unwrap();
        assert_eq!(rule.unwrap()["spec"], wanted);
        let map = documents
            .iter()
            .find(|it| it["data"]["pg2kv.json"].is_string());
        let map = map.unwrap();
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
        let found = map["data"]["pg2kv.json"].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(found).unwrap(), dashboard);
    }
}

/// A changed file of one instance rolls its pods and no others.
#[test]
fn a_changed_configuration_rolls_its_pods_only() {
    let sums = |yaml: &str| -> Vec<Value> {
        documents(yaml)
            .iter()
            .filter(|document| document["kind"] == "Deployment")
            .map(|it| it["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone())
            .collect()
    };
    let before = sums(&chart("all-values.yaml"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("values.yaml");
    let values = root().join("deploy/kubernetes/chart/ci/all-values.yaml");
    let values = fs::read_to_string(values).unwrap();
    fs::write(&path, values.replace(r#""team:{id}""#, r#""teams:{id}""#)).unwrap();
    let after = sums(&printed(helm(&[]).arg("--values").arg(path)));
    assert_eq!(before[0], after[0]);
    assert_ne!(before[1], after[1]);
}
