//! The programs that judge, which `scripts/setup test` installs below the target directory, and the
//! manifests as they render.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// How a chart's release and namespace are named here.
pub(super) const RELEASE: [&str; 4] = ["template", "edge", "--namespace", "edge"];

pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program that `scripts/setup test` has installed.
pub(crate) fn tool(name: &str) -> Command {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools");
    let path = match name {
        "python" => tools.join("python/bin/python"),
        name => tools.join("bin").join(name),
    };
    assert!(
        path.exists(),
        "{} is missing: run `scripts/setup test`",
        path.display()
    );
    Command::new(path)
}

/// Standard output of a command that must succeed.
pub(super) fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Both outputs, for people.
pub(crate) fn said(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    format!("{}\n{out}\n{error}", output.status)
}

/// An overlay, as `kubectl apply -k` would send it.
pub(super) fn kustomize(overlay: &str) -> String {
    let folder = root().join("deploy/kubernetes/overlays").join(overlay);
    printed(tool("kubectl").arg("kustomize").arg(folder))
}

/// The chart with a file of values.
pub(super) fn chart(values: &str) -> String {
    printed(&mut helm(&[values]))
}

/// The command that renders the chart with these files of values.
pub(super) fn helm(values: &[&str]) -> Command {
    let chart = root().join("deploy/kubernetes/chart");
    let mut command = tool("helm");
    command.args(RELEASE).arg(&chart);
    for values in values {
        command.arg("--values").arg(chart.join("ci").join(values));
    }
    command
}

/// Everything that an installation may apply, by name.
pub(super) fn renders() -> [(&'static str, String); 4] {
    [
        ("production", kustomize("production")),
        ("development", kustomize("development")),
        ("chart-default", chart("default-values.yaml")),
        ("chart-all", chart("all-values.yaml")),
    ]
}

/// The documents of a YAML text.
pub(super) fn documents(yaml: &str) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("manifests.yaml");
    std::fs::write(&path, yaml).unwrap();
    let script = "import json, sys, yaml; \
                  print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let json = printed(tool("python").args(["-c", script]).arg(path));
    serde_json::from_str(&json).unwrap()
}
