//! The compose file, the unit of systemd and the Dockerfile.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::tools::{printed, root, said, tool};
use crate::support::process::ENVIRONMENT;
use crate::support::wait::say;

/// The highest exposure that is let pass, out of 100: `systemd-analyze security` says what adds to
/// it. Loaded, a service of systemd's own is at about 90.
const EXPOSURE_MAX: &str = "15";

#[test]
fn docker_compose_takes_the_file_and_finds_what_it_names() {
    let file = root().join("deploy/compose/compose.yaml");
    let model = printed(
        tool("docker-compose")
            .arg("--file")
            .arg(&file)
            .args(["config", "--format", "json"]),
    );
    let model: Value = serde_json::from_str(&model).unwrap();
    let services: Vec<&String> = model["services"].as_object().unwrap().keys().collect();
    let wanted = [
        "emulator",
        "grafana",
        "install",
        "pg2kv",
        "postgres",
        "prometheus",
        "standby",
    ];
    assert_eq!(services, wanted);
    for (name, config) in model["configs"].as_object().unwrap() {
        let path = config["file"].as_str().unwrap();
        assert!(Path::new(path).is_file(), "{name}: there is no {path}");
    }
    let built = model["services"]["install"]["build"]["context"]
        .as_str()
        .unwrap();
    assert!(Path::new(built).join("Dockerfile").is_file(), "{built}");
    // Nothing of it is to be reached from other machines.
    for (name, service) in model["services"].as_object().unwrap() {
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name}");
        }
    }
}

#[test]
fn systemd_takes_the_unit_and_finds_it_hardened() {
    let unit = fs::read_to_string(root().join("deploy/systemd/pg2kv.service")).unwrap();
    for line in [
        "Type=notify",
        "WatchdogSec=30s",
        "TimeoutStopSec=40s",
        "DynamicUser=yes",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        say("NOT CHECKED: the unit of systemd, for systemd-analyze is not installed here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pg2kv.service");
    // It looks whether the program is there.
    let binary = env!("CARGO_BIN_EXE_pg2kv");
    fs::write(&path, unit.replace("/usr/local/bin/pg2kv", binary)).unwrap();
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&path)
        .output()
        .unwrap();
    // It also complains of other units of the machine, which are none of ours.
    let said_of_ours = said(&verify)
        .lines()
        .any(|line| line.contains("pg2kv.service:"));
    assert!(!said_of_ours, "{}", said(&verify));
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold", EXPOSURE_MAX])
        .arg(&path)
        .output()
        .unwrap();
    assert!(security.status.success(), "{}", said(&security));
}

#[test]
fn image_and_unit_set_what_is_measured() {
    let read = |path| fs::read_to_string(root().join(path)).unwrap();
    let (image, unit) = (read("Dockerfile"), read("deploy/systemd/pg2kv.service"));
    for (name, value) in ENVIRONMENT {
        let has = |text: &str, line: String| text.lines().any(|found| found == line);
        assert!(has(&image, format!("ENV {name}={value}")), "{name}");
        assert!(has(&unit, format!("Environment={name}={value}")), "{name}");
    }
}

#[test]
fn what_the_binary_embeds_is_there_where_the_image_is_built() {
    let ignored = fs::read_to_string(root().join(".dockerignore")).unwrap();
    let kept: Vec<_> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .collect();
    let mut folders = vec![root().join("src")];
    let mut embedded = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            for found in fs::read_to_string(&path)
                .unwrap()
                .split("include_str!(\"")
                .skip(1)
            {
                let file = folder.join(found.split('"').next().unwrap());
                let file = fs::canonicalize(&file).unwrap_or(file);
                let file = file
                    .strip_prefix(fs::canonicalize(root()).unwrap())
                    .unwrap();
                embedded += 1;
                let is_kept = kept.iter().any(|kept| file.starts_with(kept));
                assert!(is_kept, ".dockerignore lacks !{}", file.display());
            }
        }
    }
    assert!(embedded > 5, "{embedded}");
}

#[test]
fn a_linter_finds_nothing_in_the_dockerfile() {
    let output = tool("hadolint")
        .arg("--failure-threshold")
        .arg("style")
        .arg(root().join("Dockerfile"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}
