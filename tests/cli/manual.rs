//! Completions and pages of the manual, judged by the programs that read them.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{printed, run};

/// What bash offers after these words, the last of which is being typed.
fn bash_offers(script: &Path, words: &[&str]) -> Vec<String> {
    let typed = words.last().unwrap();
    let before = words[words.len() - 2];
    let program = "source \"$0\"; COMP_WORDS=(\"${@:3}\"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
                   _pg2kv pg2kv \"$1\" \"$2\"; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["--norc", "-c", program])
        .arg(script)
        .args([typed, &before])
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let offered = String::from_utf8(output.stdout).unwrap();
    offered.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_verbs_and_options() {
    let files = tempfile::tempdir().unwrap();
    let script = files.path().join("pg2kv.bash");
    std::fs::write(&script, printed(&["completions", "bash"])).unwrap();
    assert_eq!(bash_offers(&script, &["pg2kv", "sta"]), ["status"]);
    assert_eq!(
        bash_offers(&script, &["pg2kv", "status", "--w"]),
        ["--watch"]
    );
    assert_eq!(
        bash_offers(&script, &["pg2kv", "dead-letters", "re"]),
        ["retry"]
    );
    assert_eq!(bash_offers(&script, &["pg2kv", "config", "s"]), ["schema"]);
    assert_eq!(
        bash_offers(&script, &["pg2kv", "completions", "ba"]),
        ["bash"]
    );
}

#[test]
fn every_shell_has_its_script() {
    for (shell, word) in [
        ("bash", "complete -F _pg2kv"),
        ("zsh", "#compdef pg2kv"),
        ("fish", "complete -c pg2kv"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion:arg-completer[pg2kv]"),
    ] {
        let script = printed(&["completions", shell]);
        assert!(script.contains(word), "{shell}: {script}");
        assert!(!script.contains('\u{1b}'), "{shell}");
        // Without the shell, what it says of its own script has to do.
        if let Ok(mut child) = Command::new(shell)
            .arg("-n")
            .stdin(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
        {
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
            assert!(child.wait().unwrap().success(), "{shell}");
        }
    }
    assert_eq!(run(&["completions", "tcl"]).status.code(), Some(2));
}

/// The requests that our pages are made of.
const MACROS: [&str; 12] = [
    ".TH", ".SH", ".TP", ".IP", ".PP", ".RS", ".RE", ".nf", ".fi", ".br", ".ie", ".el",
];

#[test]
fn each_verb_has_a_page_of_the_manual() {
    let files = tempfile::tempdir().unwrap();
    let folder = files.path().join("new").join("man1");
    let said = printed(&["man", folder.to_str().unwrap()]);
    let mut pages: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|page| page.unwrap().path())
        .collect();
    pages.sort();
    assert!(
        said.starts_with(&format!("ok  {} pages in ", pages.len())),
        "{said}"
    );
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        let name = page.file_stem().unwrap().to_str().unwrap();
        assert!(text.contains(&format!("\n.TH {name} 1 ")), "{text}");
        for section in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS"] {
            assert!(
                text.contains(&format!("\n.SH {section}\n")),
                "{name}: {section}"
            );
        }
        let example = ["\n.SH EXAMPLE\n.nf\n", "\n.SH EXAMPLES\n.nf\n"];
        assert!(
            example.iter().any(|example| text.contains(example)),
            "{text}"
        );
        assert_eq!(
            text.matches("\n.nf\n").count(),
            text.matches("\n.fi\n").count(),
            "{name}"
        );
        for line in text.lines().filter(|line| line.starts_with('.')) {
            let request = line.split(' ').next().unwrap();
            assert!(MACROS.contains(&request), "{name}: {line}");
        }
        assert!(!text.contains('\u{1b}'), "{name}");
        well_formed(page);
    }
    for name in ["pg2kv", "pg2kv-status", "pg2kv-dead-letters-retry"] {
        assert!(folder.join(format!("{name}.1")).exists(), "{name}");
    }
    let main = std::fs::read_to_string(folder.join("pg2kv.1")).unwrap();
    assert_eq!(printed(&["man"]), main);
    assert!(main.contains("\n.SH \"EXIT CODES\"\n"), "{main}");
    assert!(main.contains("pg2kv\\-status(1)"), "{main}");
}

/// As groff sees it, where it is there.
fn well_formed(page: &Path) {
    let judged = Command::new("groff")
        .args(["-man", "-ww", "-z", "-Tascii"])
        .arg(page)
        .output();
    if let Ok(judged) = judged {
        let said = String::from_utf8_lossy(&judged.stderr);
        assert!(
            judged.status.success() && said.is_empty(),
            "{}: {said}",
            page.display()
        );
    }
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = run(&["man", file.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("error: cannot write to "), "{said}");
}
