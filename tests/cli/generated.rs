//! The man pages and completions that packages install, looked at by the tools that use them, where these are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::golden::passthru;

/// Writes `what` into a new folder below `folder`.
fn generate(what: &str, folder: &Path) -> Vec<PathBuf> {
    let folder = folder.join(what);
    let output = passthru().args(["generate", what]).arg(&folder).output().expect("it starts");
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let entries = std::fs::read_dir(&folder).expect("the folder is there");
    let files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    assert!(!files.is_empty());
    files
}

/// Whether the tool can be started at all.
fn is_there(tool: &str) -> bool {
    Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

#[test]
fn man_has_nothing_to_say_of_the_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    for page in generate("man", folder.path()) {
        if is_there("man") {
            let mut man = Command::new("man");
            man.args(["--warnings", "--encoding=UTF-8", "-l"]).arg(&page);
            let output = man.env("MANWIDTH", "80").env("LC_ALL", "C.UTF-8").output().expect("man starts");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{}: {said}", page.display());
            assert!(String::from_utf8_lossy(&output.stdout).contains("SYNOPSIS"), "{}", page.display());
        }
        if is_there("mandoc") {
            let output = Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&page).output();
            let output = output.expect("mandoc starts");
            assert!(output.status.success(), "{}: {}", page.display(), String::from_utf8_lossy(&output.stdout));
        }
    }
}

#[test]
fn shells_take_the_completions() {
    let folder = tempfile::tempdir().expect("a folder");
    for file in generate("completions", folder.path()) {
        let shell = match file.extension().and_then(|extension| extension.to_str()) {
            Some("bash") => "bash",
            Some("fish") => "fish",
            _ => "zsh",
        };
        if is_there(shell) {
            let output = Command::new(shell).arg("-n").arg(&file).output().expect("the shell starts");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{}: {said}", file.display());
        }
    }
}
