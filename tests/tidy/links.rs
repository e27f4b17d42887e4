//! Links between the pages of the repository: each leads to a file that is there, and to a heading of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::{read, root};

/// Pages with links: the README and everything below `deploy`, without what npm has put there.
fn pages() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("README.md")];
    let mut folders = vec![PathBuf::from("deploy")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                if entry.file_name() != "node_modules" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The lines outside fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// A line without what stands between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

/// What a page links to: `[text](target)`, pictures too.
fn targets(text: &str) -> Vec<String> {
    let after = |line: &str| -> Vec<String> {
        let parts = line.split("](").skip(1);
        parts
            .filter_map(|part| Some(part.split_once(')')?.0.to_owned()))
            .collect()
    };
    // Code may stand in the text of a link, so it goes before the target is looked for.
    prose(text)
        .flat_map(|line| after(&without_code(line)))
        .collect()
}

/// Names of the headings of a page, as GitHub and GitLab make them: lower case, hyphens for spaces, no
/// other punctuation, and a number where one comes again.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut names = BTreeSet::new();
    for line in prose(text) {
        let hashes = line.len() - line.trim_start_matches('#').len();
        let Some(title) = line
            .get(hashes..)
            .and_then(|rest| rest.strip_prefix(' '))
            .filter(|_| (1..=6).contains(&hashes))
        else {
            continue;
        };
        let name: String = title
            .trim()
            .to_lowercase()
            .chars()
            .filter(|char| char.is_alphanumeric() || " -_".contains(*char))
            .map(|char| if char == ' ' { '-' } else { char })
            .collect();
        let before = seen.entry(name.clone()).or_default();
        names.insert(match *before {
            0 => name,
            again => format!("{name}-{again}"),
        });
        *before += 1;
    }
    names
}

/// `a/../b` is `b`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                assert!(plain.pop(), "{} leaves the repository", path.display());
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

/// What is wrong with a link of a page to a place in this repository.
fn fault(page: &Path, target: &str) -> Option<String> {
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (target, None),
    };
    let path = match path {
        "" => page.to_owned(),
        path => plain(&page.parent().unwrap().join(path)),
    };
    if !root().join(&path).exists() {
        return Some(format!("there is no {}", path.display()));
    }
    let anchor = anchor?;
    (!anchors(&read(&path)).contains(anchor))
        .then(|| format!("{} has no heading #{anchor}", path.display()))
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for page in pages() {
        for target in targets(&read(&page)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            looked_at += 1;
            if let Some(fault) = fault(&page, &target) {
                wrong.push(format!("{}: {target}: {fault}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        looked_at > 100,
        "the pages were not understood: {looked_at}"
    );
}

#[test]
fn headings_are_named_as_on_the_hosts_of_repositories() {
    let page = "# `/api/status`\n\n## How late it may be\n```\n# no heading\n```\n### COPY, bulk loads: what?\n\n## How late it may be\n";
    let names = anchors(page);
    let wanted = [
        "apistatus",
        "copy-bulk-loads-what",
        "how-late-it-may-be",
        "how-late-it-may-be-1",
    ];
    assert_eq!(names, wanted.map(str::to_owned).into());
    let links = targets("[`a](b)`](c.md) ![d](e.png) `[f](g)`\n```\n[h](i)\n```\n[![j](k)](l)");
    assert_eq!(links, ["c.md", "e.png", "k", "l"]);
}
