//! Runs the binary and compares what it does with the golden files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The binary, in an environment that does not depend on who runs the test.
pub fn passthru() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_passthru"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// Compares every case with its golden file, or writes the files if UPDATE_GOLDEN is set. All differences are shown,
/// and a file that belongs to no case is one.
pub fn check(cases: &[(&str, &[&str])]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/golden");
    let mut failures = String::new();
    let mut expected_files = BTreeSet::new();
    for (name, words) in cases {
        let file = folder.join(format!("{name}.txt"));
        assert!(expected_files.insert(file.clone()), "two cases are called {name}");
        failures += &compare(&file, &transcript(words));
    }
    for file in files(&folder).difference(&expected_files) {
        if updating() {
            fs::remove_file(file).expect("the golden file is removed");
        } else {
            failures += &format!("{}: no case has this golden file\n", file.display());
        }
    }
    report(&failures);
}

/// Compares a file of the repository with the text that it should have, or writes it if UPDATE_GOLDEN is set.
pub fn check_file(path: &str, text: &str) {
    report(&compare(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path), text));
}

fn report(failures: &str) {
    assert!(failures.is_empty(), "\n{failures}UPDATE_GOLDEN=1 cargo test --test cli accepts what is new\n");
}

fn updating() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

/// How `seen` differs from the file, if it does and the file is not to be rewritten.
fn compare(file: &Path, seen: &str) -> String {
    let golden = fs::read_to_string(file).unwrap_or_default();
    if seen == golden {
        return String::new();
    }
    if updating() {
        fs::write(file, seen).expect("the golden file is written");
        return String::new();
    }
    format!("{}:\n{}\n", file.display(), difference(&golden, seen))
}

/// What a person would see: the command, what it prints, and its exit code if it is not 0.
fn transcript(words: &[&str]) -> String {
    let output = passthru().args(words).output().expect("passthru starts");
    let stdout = String::from_utf8(output.stdout).expect("standard output is UTF-8");
    let stderr = String::from_utf8(output.stderr).expect("standard error is UTF-8");
    let command = std::iter::once(&"passthru").chain(words).map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    let code = output.status.code().expect("an exit code");
    format!("$ {command}\n[exit code {code}]\n[standard output]\n{stdout}[standard error]\n{stderr}")
}

/// `word` as a shell would need it.
fn quoted(word: &str) -> String {
    let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_=,.:+/".contains(c));
    if plain { word.to_owned() } else { format!("'{word}'") }
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder of the golden files");
    entries.map(|entry| entry.expect("a golden file").path()).collect()
}

/// The lines that differ: those of `old` marked `-`, those of `new` marked `+`, without the common ones at both ends.
fn difference(old: &str, new: &str) -> String {
    let (mut old, mut new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    old.drain(..same);
    new.drain(..same);
    while old.last().is_some_and(|line| new.last() == Some(line)) {
        old.pop();
        new.pop();
    }
    let marked = |mark: &str, lines: &[&str]| lines.iter().map(|line| format!("  {mark} {line}\n")).collect::<String>();
    format!("  from line {}:\n{}{}", same + 1, marked("-", &old), marked("+", &new))
}

#[test]
fn a_difference_shows_only_what_differs() {
    assert_eq!(difference("a\nb\nc\n", "a\nx\ny\nc\n"), "  from line 2:\n  - b\n  + x\n  + y\n");
    assert_eq!(difference("a\n", "a\na\n"), "  from line 2:\n  + a\n");
}

/// What is printed is written for people: nothing of it is how the program sees its own values.
#[test]
fn no_message_shows_the_insides_of_the_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli");
    let all: Vec<PathBuf> = ["golden", "hosts", "convert"].iter().flat_map(|name| files(&root.join(name))).collect();
    assert!(all.len() > 100, "only {} files", all.len());
    for file in all {
        let text = fs::read_to_string(&file).expect("a golden file");
        for inside in ["Error(", "Err(", "Some(", "Os {", "ErrorKind", "PathBuf"] {
            assert!(!text.contains(inside), "{}: {inside}", file.display());
        }
    }
}
