//! The manifests as they render, of both overlays and of the chart with least and with all values.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::tools::{documents, kustomize, printed, renders, root, said, tool};
use crate::support::process;

/// The oldest Kubernetes that knows all we use without a warning, and the newest that the schemas
/// are there for.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];

#[test]
fn every_manifest_is_valid_to_the_letter() {
    for (name, yaml) in renders() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("{name}.yaml"));
        fs::write(&path, &yaml).unwrap();
        for version in KUBERNETES {
            let output = tool("kubernetes-validate")
                .args(["--strict", "-k", version])
                .arg(&path)
                .output()
                .unwrap();
            assert!(output.status.success(), "{name}: {}", said(&output));
            // It says nothing but a warning of what it does not know.
            for line in said(&output).lines().filter(|line| line.contains("WARN")) {
                let operator = line.contains("monitoring.coreos.com");
                assert!(operator, "{name} was not looked at: {line}");
            }
        }
    }
}

#[test]
fn a_checker_of_policies_finds_nothing_that_is_not_explained() {
    // It looks into no folder whose name begins with a dot.
    let folder = tempfile::TempDir::with_prefix("manifests").unwrap();
    for (name, yaml) in renders() {
        fs::write(folder.path().join(format!("{name}.yaml")), yaml).unwrap();
    }
    let report = tool("checkov")
        .args([
            "--skip-download",
            "--framework",
            "kubernetes",
            "--output",
            "json",
        ])
        .arg("--directory")
        .arg(folder.path())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&report.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", said(&report)));
    let failed: Vec<String> = report["results"]["failed_checks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|check| {
            let (id, name) = (&check["check_id"], &check["check_name"]);
            format!(
                "{id} {name}: {} of {}",
                check["resource"], check["file_path"]
            )
        })
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    for check in report["results"]["skipped_checks"].as_array().unwrap() {
        let reason = check["check_result"]["suppress_comment"].as_str().unwrap();
        assert!(
            reason.split(' ').count() >= 4,
            "skipped for no reason: {check}"
        );
    }
    let passed = report["summary"]["passed"].as_u64().unwrap();
    assert!(passed > 800, "it looked at {passed} things only");
}

/// Pod templates of ours by the name of what has them.
fn pods(documents: &[Value]) -> Vec<(String, &Value)> {
    let mut found = Vec::new();
    for document in documents {
        let name = format!("{} {}", document["kind"], document["metadata"]["name"]);
        let spec = match document["kind"].as_str().unwrap() {
            "Pod" => &document["spec"],
            "Deployment" | "StatefulSet" | "Job" => &document["spec"]["template"]["spec"],
            "CronJob" => &document["spec"]["jobTemplate"]["spec"]["template"]["spec"],
            _ => continue,
        };
        found.push((name, spec));
    }
    found
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn every_pod_is_restricted_and_reads_its_secrets_from_files() {
    for (render, yaml) in renders() {
        let documents = documents(&yaml);
        let pods = pods(&documents);
        assert!(pods.len() >= 2, "{render}");
        for (name, pod) in pods {
            let at = format!("{render}: {name}: {pod:#}");
            assert_eq!(pod["enableServiceLinks"], json!(false), "{at}");
            assert_eq!(pod["automountServiceAccountToken"], json!(false), "{at}");
            assert_eq!(pod["securityContext"]["runAsNonRoot"], json!(true), "{at}");
            let profile = &pod["securityContext"]["seccompProfile"]["type"];
            assert_eq!(profile, "RuntimeDefault", "{at}");
            let containers = [&pod["initContainers"], &pod["containers"]];
            for container in containers.into_iter().flat_map(list) {
                let security = &container["securityContext"];
                assert_eq!(security["readOnlyRootFilesystem"], json!(true), "{at}");
                assert_eq!(security["allowPrivilegeEscalation"], json!(false), "{at}");
                assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{at}");
                assert!(
                    container["resources"]["limits"]["memory"].is_string(),
                    "{at}"
                );
                assert_eq!(container["resources"]["limits"]["cpu"], Value::Null, "{at}");
                for variable in list(&container["env"]) {
                    assert_eq!(variable["valueFrom"]["secretKeyRef"], Value::Null, "{at}");
                }
                for mount in list(&container["volumeMounts"]) {
                    assert_eq!(mount["subPath"], Value::Null, "{at}");
                }
            }
        }
    }
}

#[test]
fn kubernetes_waits_longer_than_the_daemon_and_probes_what_it_serves() {
    for (render, yaml) in renders() {
        let documents = documents(&yaml);
        let mut daemons = 0;
        for (name, pod) in pods(&documents) {
            let container = &pod["containers"][0];
            if container["args"][0] != "run" {
                continue;
            }
            daemons += 1;
            let at = format!("{render}: {name}");
            let variable = |name: &str| {
                let found = list(&container["env"]).iter().find(|it| it["name"] == name);
                found
                    .and_then(|it| it["value"].as_str())
                    .unwrap_or_default()
            };
            let grace = humantime::parse_duration(variable("PG2KV__SHUTDOWN__GRACE")).unwrap();
            let waits = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
            assert!(waits >= grace.as_secs() + 10, "{at}: {waits} s");
            assert_eq!(variable("PG2KV__LEASE__HOLDER"), "$(POD_NAME)", "{at}");
            let port = &container["ports"][0];
            let listen = variable("PG2KV__OPS__LISTEN");
            assert_eq!(listen, format!("0.0.0.0:{}", port["containerPort"]), "{at}");
            for (probe, path) in [
                ("startupProbe", "/startupz"),
                ("livenessProbe", "/livez"),
                ("readinessProbe", "/readyz"),
            ] {
                let http = &container[probe]["httpGet"];
                assert_eq!(http["path"], path, "{at}");
                assert_eq!(http["port"], port["name"], "{at}");
            }
        }
        assert!(daemons > 0, "{render}");
    }
}

/// The chart and the overlay say the same of how the daemon runs.
#[test]
fn both_ways_to_install_make_the_same_pod() {
    let (overlay, chart) = (
        kustomize("production"),
        super::tools::chart("default-values.yaml"),
    );
    let (overlay, chart) = (documents(&overlay), documents(&chart));
    let daemon = |documents: &[Value]| {
        let deployment = documents.iter().find(|it| it["kind"] == "Deployment");
        let mut pod = deployment.unwrap()["spec"]["template"]["spec"].clone();
        // These name the installation.
        for key in ["serviceAccountName", "topologySpreadConstraints", "volumes"] {
            assert!(pod[key].take() != Value::Null, "{key}");
        }
        pod["containers"][0]["image"].take();
        let variables = pod["containers"][0]["env"].as_array_mut().unwrap();
        variables.sort_by_key(|variable| variable["name"].to_string());
        pod
    };
    assert_eq!(daemon(&overlay), daemon(&chart));
}

/// Everything in a manifest that is the daemon's configuration is one that it accepts.
#[tokio::test]
async fn the_daemon_accepts_every_configuration_in_the_manifests() {
    let mut syncs = BTreeSet::new();
    for (render, yaml) in renders() {
        for document in documents(&yaml) {
            let Some(config) = document["data"]["pg2kv.toml"].as_str() else {
                continue;
            };
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("pg2kv.toml"), config).unwrap();
            for secret in ["password", "api-token"] {
                fs::write(folder.path().join(secret), "secret").unwrap();
            }
            let output = process::command()
                .args(["config", "print", "--config"])
                .arg(folder.path().join("pg2kv.toml"))
                .env(
                    "PG2KV__POSTGRES__PASSWORD_FILE",
                    folder.path().join("password"),
                )
                .env("PG2KV__KV__API_TOKEN_FILE", folder.path().join("api-token"))
                .env("PG2KV__LEASE__HOLDER", "pod")
                .env("PG2KV__OPS__LISTEN", "0.0.0.0:9464")
                .env("PG2KV__SHUTDOWN__GRACE", "25s")
                .output()
                .await
                .unwrap();
            assert!(output.status.success(), "{render}: {}", said(&output));
            syncs.insert(document["metadata"]["name"].to_string());
        }
    }
    assert!(syncs.len() >= 4, "{syncs:?}");
}

#[test]
fn versions_in_the_kit_are_this_one() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = fs::read_to_string(root().join("deploy/kubernetes/chart/Chart.yaml")).unwrap();
    for line in [
        format!("version: {version}"),
        format!("appVersion: {version}"),
    ] {
        assert!(
            chart.lines().any(|found| found == line),
            "Chart.yaml: {line}"
        );
    }
    let image = format!("image: registry.example.com/pg2kv:{version}");
    assert!(kustomize("production").contains(&image), "{image}");
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
    assert!(dockerfile.contains(&format!("ARG VERSION={version}\n")));
}

/// The validator takes what is wrong for wrong: the tests above prove nothing otherwise.
#[test]
fn a_misspelt_field_is_found() {
    let yaml = kustomize("production").replace("readOnlyRootFilesystem", "readOnlyRootFileSystem");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.yaml");
    fs::write(&path, yaml).unwrap();
    let output = tool("kubernetes-validate")
        .args(["--strict", "-k", KUBERNETES[0]])
        .arg(&path)
        .output()
        .unwrap();
    assert!(!output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("readOnlyRootFileSystem"));
    printed(tool("kubernetes-validate").arg("--version"));
}
