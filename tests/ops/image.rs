//! The image: the Dockerfile as it stands, built on stand-ins of its bases, and run as a cluster
//! with restrictions runs it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;

use crate::support::wait::{DEADLINE, say};
use crate::support::world::{NAMESPACE, Plan, Sync, World};

/// What it is said to be built of.
const REVISION: &str = "0123456789abcdef";
const IMAGE: &str = "localhost/pg2kv:test";
/// What a registry stores and a node pulls: the layers, compressed.
const PULLED_MAX_BYTES: u64 = 30_000_000;

const PLAN: Plan = Plan {
    sql: "create table public.note (id int primary key, text text not null);
          insert into public.note select id, 'note ' || id from generate_series(1, 2000) as id;",
    syncs: &[Sync {
        name: "note",
        toml: "table = \"public.note\"\nkey = \"note:{id}\"\ncolumns = [\"text\"]",
        namespace: NAMESPACE,
        oracle: "select 'note:' || id, json_build_object('text', text)::text from public.note",
    }],
    settings: &[],
    limits: None,
};

/// The storage of images, apart from the machine's own: the stand-ins go by the names of real ones.
struct Storage {
    directory: PathBuf,
}

impl Storage {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--root")
            .arg(self.directory.join("images"))
            .arg("--runroot")
            .arg(self.directory.join("run"));
        command
    }

    fn buildah(&self, arguments: &[&str]) -> Output {
        let mut command = self.command("buildah");
        command.args(arguments).output().unwrap()
    }

    /// `None`, after saying so, where images cannot be built.
    fn usable() -> Option<Self> {
        let storage = Self {
            directory: Path::new(env!("CARGO_TARGET_TMPDIR")).join("../tools/image"),
        };
        let missing = ["buildah", "podman", "runc", "mmdebstrap"]
            .into_iter()
            .find(|program| Command::new(program).arg("--version").output().is_err());
        let reason = match missing {
            Some(program) => format!("there is no {program}"),
            None if !geteuid().is_root() => "it takes root".to_owned(),
            None => {
                fs::create_dir_all(&storage.directory).unwrap();
                let made = storage.buildah(&["from", "scratch"]);
                if made.status.success() {
                    let name = String::from_utf8(made.stdout).unwrap();
                    succeed("buildah rm", &storage.buildah(&["rm", name.trim()]));
                    return Some(storage);
                }
                format!("buildah does not work here: {}", said(&made))
            }
        };
        say(&format!("\nNOT TESTED: THE IMAGE, for {reason}\n"));
        None
    }

    /// Builds the Dockerfile; what was compiled before is not compiled again.
    fn build(&self) {
        let root = env!("CARGO_MANIFEST_DIR");
        let bases = Command::new(Path::new(root).join("scripts/image-bases"))
            .arg(&self.directory)
            .output()
            .unwrap();
        succeed("scripts/image-bases", &bases);
        let sysroot = Command::new("rustc")
            .args(["--print", "sysroot"])
            .output()
            .unwrap();
        let sysroot = String::from_utf8(sysroot.stdout).unwrap();
        let built = self.buildah(&[
            "bud",
            // What did not change since the last time is not done again.
            "--layers",
            "--isolation=chroot",
            "--pull-never",
            "--network=host",
            "--volume",
            &format!("{}:/opt/rust:ro", sysroot.trim()),
            "--volume=/etc/ssl/certs:/etc/ssl/certs:ro",
            &format!("--build-arg=REVISION={REVISION}"),
            "--tag",
            IMAGE,
            root,
        ]);
        succeed("buildah bud", &built);
    }

    fn inspect(&self) -> Value {
        let inspected = self.buildah(&["inspect", "--type=image", IMAGE]);
        succeed("buildah inspect", &inspected);
        serde_json::from_slice(&inspected.stdout).unwrap()
    }

    /// Size of what a node pulls.
    fn pulled_bytes(&self) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let target = format!("oci:{}:test", folder.path().join("image").display());
        succeed(
            "buildah push",
            &self.buildah(&["push", "--quiet", IMAGE, &target]),
        );
        let blobs = fs::read_dir(folder.path().join("image/blobs/sha256")).unwrap();
        blobs
            .map(|blob| blob.unwrap().metadata().unwrap().len())
            .sum()
    }

    /// Copies the files of the image out, and looks at them.
    fn files<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        let made = self.buildah(&["from", "--pull-never", IMAGE]);
        succeed("buildah from", &made);
        let container = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        let mounted = self.buildah(&["mount", &container]);
        succeed("buildah mount", &mounted);
        let seen = look(Path::new(String::from_utf8(mounted.stdout).unwrap().trim()));
        succeed("buildah rm", &self.buildah(&["rm", &container]));
        seen
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn succeed(what: &str, output: &Output) {
    assert!(
        output.status.success(),
        "{what}: {}: {}",
        output.status,
        said(output)
    );
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// A container in the foreground; it ends with its test.
struct Container {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Container {
    fn run(storage: &Storage, config: &Path) -> Self {
        let folder = config.parent().unwrap();
        let mut command = storage.command("podman");
        command
            .args([
                "--runtime=runc",
                "--cgroup-manager=cgroupfs",
                "--events-backend=file",
            ])
            .args(["run", "--rm", "--network=host", "--memory=64m"])
            .args(["--read-only", "--read-only-tmpfs=false", "--cap-drop=all"])
            .args(["--security-opt=no-new-privileges"])
            // More than this machine's own cannot be had everywhere.
            .args(["--ulimit=nofile=20000:20000", "--ulimit=nproc=4096:4096"])
            .arg("--volume")
            .arg(format!("{0}:{0}:ro", folder.display()))
            // The port is free for sure this way only.
            .arg("--env=PG2KV__OPS__LISTEN=127.0.0.1:0")
            .args([IMAGE, "run", "--config"])
            .arg(config);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // Nobody reads on once the test has seen enough.
                let _ = sender.send(line);
            }
        });
        Self { child, lines }
    }

    /// The first line that has this text.
    fn logged(&self, text: &str) -> String {
        let mut log = Vec::new();
        loop {
            match self.lines.recv_timeout(DEADLINE) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => log.push(line),
                Err(error) => panic!("never logged {text:?} ({error}), but {log:#?}"),
            }
        }
    }

    /// Has podman pass SIGTERM on.
    fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            let _ = self.child.wait();
        }
    }
}

#[tokio::test]
async fn the_image_is_small_and_runs_with_next_to_nothing() {
    let Some(storage) = Storage::usable() else {
        return;
    };
    storage.build();

    let image = storage.inspect();
    let config = &image["OCIv1"]["config"];
    assert_eq!(config["User"], "65532:65532", "{config:#}");
    assert_eq!(config["Entrypoint"][0], "/usr/local/bin/pg2kv");
    let labels = &config["Labels"];
    for (label, value) in [
        ("title", "pg2kv"),
        ("version", env!("CARGO_PKG_VERSION")),
        ("revision", REVISION),
        ("licenses", "Apache-2.0"),
        ("base.name", "gcr.io/distroless/cc-debian12:nonroot"),
    ] {
        assert_eq!(
            labels[format!("org.opencontainers.image.{label}")],
            value,
            "{labels:#}"
        );
    }
    let pulled = storage.pulled_bytes();
    assert!(pulled < PULLED_MAX_BYTES, "{pulled} bytes to pull");
    let binary = storage.files(|root| {
        for shell in [
            "bin/sh",
            "usr/bin/sh",
            "bin/bash",
            "usr/bin/bash",
            "bin/busybox",
        ] {
            assert!(!root.join(shell).exists(), "{shell}");
        }
        let binary = root.join("usr/local/bin/pg2kv");
        let version = Command::new(&binary)
            .args(["version", "--json"])
            .output()
            .unwrap();
        succeed("pg2kv version", &version);
        let version: Value = serde_json::from_slice(&version.stdout).unwrap();
        assert_eq!(version["revision"], REVISION);
        fs::read(binary).unwrap()
    });
    assert!(
        !contains(&binary, b".symtab\0"),
        "the binary is not stripped"
    );
    assert!(
        contains(&binary, b".dep-v0\0"),
        "the binary does not list its dependencies"
    );
    say(&format!(
        "image: {pulled} bytes to pull, binary: {} bytes",
        binary.len()
    ));

    let world = World::start(PLAN).await;
    let path = world.configure("pg2kv", &world.settings());
    // Its user is not ours.
    fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut container = Container::run(&storage, &path);
    let started: Value = serde_json::from_str(&container.logged("pg2kv started")).unwrap();
    let listen = started["listen"].as_str().unwrap();
    let reply = reqwest::get(format!("http://{listen}/livez"))
        .await
        .unwrap();
    assert_eq!(reply.status().as_u16(), 200);
    container.logged("this process leads");
    world.converges().await;
    assert_eq!(
        world.value("note:2000").as_deref(),
        Some(r#"{"text":"note 2000"}"#)
    );
    container.terminate();
    container.logged("\"stopped\"");
    let status = container.child.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
}
