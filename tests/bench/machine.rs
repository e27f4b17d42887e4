//! What this ran on: a figure without it says little.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use pg2kv::throwaway::programs;
use rustix::fs::{major, minor};

use crate::rounds::median;

/// Times that a flush is measured.
const FLUSHES: usize = 200;

/// The machine, one line.
pub(crate) fn describe() -> String {
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok())
        .map_or(0.0, |kib| kib / 1_048_576.0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let postgres = programs::find_bin_dir()
        .map(|dir| version(dir.join("postgres").as_os_str()))
        .unwrap_or_default();
    // The same directory that throw-away servers live in.
    let directory = std::env::temp_dir();
    let (disk, flush) = (disk(&directory), flush_ms(&directory));
    format!(
        "{cpu}, {cores} cores, {memory:.0} GiB, Linux {}, {disk} (a flush takes {flush:.2} ms), \
         {postgres}, {}",
        kernel.trim(),
        version("rustc".as_ref()),
    )
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn version(program: &std::ffi::OsStr) -> String {
    let output = Command::new(program).arg("--version").output();
    let said = output.map(|output| output.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    // Without dates and packages, which stand in parentheses behind.
    let plain = said.trim().replace("postgres (PostgreSQL)", "PostgreSQL");
    plain.split(" (").next().unwrap_or_default().to_owned()
}

/// File system and device of a directory.
fn disk(directory: &Path) -> String {
    let device = fs::metadata(directory).map_or(0, |found| found.dev());
    let numbers = format!("{}:{}", major(device), minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(&numbers));
    let behind = mount.and_then(|line| line.split_once(" - "));
    let mut words = behind
        .map(|(_, words)| words.split(' '))
        .into_iter()
        .flatten();
    let system = words.next().unwrap_or("unknown file system");
    let source = words.next().unwrap_or("an unknown device");
    // Of a partition, the queue is its disk's.
    let block = format!("/sys/dev/block/{numbers}");
    let rotates = [
        format!("{block}/queue/rotational"),
        format!("{block}/../queue/rotational"),
    ]
    .iter()
    .find_map(|file| fs::read_to_string(file).ok());
    let kind = match rotates.as_deref().map(str::trim) {
        // What a virtual disk says of itself means nothing.
        _ if source.contains("/vd") || source.contains("/xvd") => ", a virtual disk",
        Some("0") => ", an SSD",
        Some(_) => ", a hard disk",
        None => "",
    };
    format!("{system} on {source}{kind}")
}

/// What a commit waits for at the least: 8 KiB more in a file, on the disk.
fn flush_ms(directory: &Path) -> f64 {
    let path = directory.join(format!("pg2kv-bench-{}", std::process::id()));
    let mut file = File::create(&path).unwrap();
    let block = [0; 8192];
    let samples: Vec<f64> = (0..FLUSHES)
        .map(|_| {
            let began = Instant::now();
            file.write_all(&block).unwrap();
            file.sync_data().unwrap();
            began.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    fs::remove_file(path).unwrap();
    median(&samples)
}
