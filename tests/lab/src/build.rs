//! The workspace: where it is, and building what is tested.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::report;
use crate::runner::Tally;

/// The workspace's root folder.
pub fn workspace() -> PathBuf {
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let package = PathBuf::from(package);
    package.ancestors().nth(2).map_or(package.clone(), Path::to_owned)
}

/// Cargo's output folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// A cargo command in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
}

/// The `passthru` to test: `given`, else `LAB_PASSTHRU`, else one built with `profile`.
pub fn passthru(given: Option<&Path>, profile: &str) -> Result<PathBuf> {
    let given = given
        .map(Path::to_owned)
        .or_else(|| std::env::var_os("LAB_PASSTHRU").filter(|v| !v.is_empty()).map(PathBuf::from));
    if let Some(file) = given {
        ensure!(file.is_file(), "there is no file {}", file.display());
        return file.canonicalize().context("passthru's path");
    }
    built(profile)
}

/// The `passthru` of this tree, built with `profile`.
pub fn built(profile: &str) -> Result<PathBuf> {
    let status = cargo()
        .args(["build", "--quiet", "--package", "passthru", "--profile", profile])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("passthru does not build");
    }
    Ok(target().join(profile).join("passthru"))
}

/// Runs `cargo test` on the workspace, only what has one of `filters` in its name, and sums up its results.
pub fn cargo_test(filters: &[String]) -> Result<Tally> {
    eprintln!("lab: cargo test --workspace {}", filters.join(" "));
    let output = cargo()
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        .args(filters)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut tally = sum_up(&text);
    if !output.status.success() {
        println!("{}", report::tail(&text, 200));
        // What does not even build has no result lines.
        tally.failed = tally.failed.max(1);
    }
    println!("cargo test: {tally}");
    Ok(tally)
}

/// Adds up lines like `test result: ok. 3 passed; 0 failed; 1 ignored; ...`.
fn sum_up(text: &str) -> Tally {
    let mut tally = Tally::default();
    for line in text.lines().filter_map(|l| l.strip_prefix("test result: ")) {
        let of = |what: &str| -> u64 {
            let words: Vec<&str> = line.split([' ', ';']).collect();
            let at = words.iter().position(|w| *w == what);
            at.and_then(|i| words.get(i.checked_sub(1)?)?.parse().ok()).unwrap_or(0)
        };
        tally += Tally { passed: of("passed"), failed: of("failed"), skipped: of("ignored") };
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_add_up() {
        let text = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 12 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let expected = Tally { passed: 15, failed: 2, skipped: 1 };
        assert_eq!(sum_up(text), expected);
    }
}
