//! `cargo lab package`: the Debian package and the RPM, as the metadata in Cargo.toml and packaging/ describe them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::setup::{self, progress};

/// The tools that make packages, at the versions that the metadata was written for.
const TOOLS: [&str; 2] = ["cargo-deb@3.8.0", "cargo-generate-rpm@0.21.1"];

/// The Debian package for the scenarios of a run, made when the first of them wants it.
pub fn debian_for_scenarios() -> Result<PathBuf> {
    /// Held while it is made: scenarios run side by side.
    static MADE: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    if made.is_none() {
        *made = run("lab")?.into_iter().next();
    }
    made.clone().context("no package was made")
}

/// Makes both packages of a passthru that is built with `profile`; returns the files.
pub fn run(profile: &str) -> Result<Vec<PathBuf>> {
    let tools = tools()?;
    // cargo-deb takes the one of this tree: another one is not asked for its man pages either.
    let passthru = build::built(profile)?;
    let folder = build::target().join("package");
    // What an earlier version has made must not come along.
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    for what in ["man", "completions"] {
        call(Command::new(&passthru).args(["generate", what]).arg(folder.join(what)))?;
    }
    progress("making packages");
    let deb = folder.join("passthru.deb");
    let tool = |name: &str| {
        let mut command = Command::new(tools.join("bin").join(name));
        command.current_dir(build::workspace());
        command
    };
    call(tool("cargo-deb").args(["--no-build", "--no-strip", "--locked", "--profile", profile, "--output"]).arg(&deb))?;
    let rpm = folder.join("passthru.rpm");
    call(tool("cargo-generate-rpm").args(["--profile", profile, "--output"]).arg(&rpm))?;
    check(&deb)?;
    Ok(vec![deb, rpm])
}

/// The folder of [`TOOLS`], which are built when they are first needed.
fn tools() -> Result<PathBuf> {
    let folder = setup::cache_folder()?.join("tools");
    for tool in TOOLS {
        let (name, version) = tool.split_once('@').unwrap_or((tool, ""));
        let program = folder.join("bin").join(name);
        if program.exists() {
            continue;
        }
        progress(&format!("building {name} (once)"));
        let mut install = build::cargo();
        // --debug: building them optimised takes longer than all that they do.
        call(
            install
                .args(["install", "--quiet", "--locked", "--debug", name, "--version", version, "--root"])
                .arg(&folder),
        )?;
    }
    Ok(folder)
}

/// Has lintian look at the package, where it is installed. No error and no warning is accepted, but for those that
/// packaging/debian/lintian-overrides gives a reason for.
fn check(deb: &Path) -> Result<()> {
    if !Path::new("/usr/bin/lintian").exists() {
        progress("lintian is not installed and has not looked at the package");
        return Ok(());
    }
    let mut lintian = Command::new("/usr/bin/lintian");
    call(lintian.args(["--fail-on", "error,warning", "--allow-root", "--no-cfg", "--tag-display-limit", "0"]).arg(deb))
}

fn call(command: &mut Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {name}"))?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{name} failed:\n{said}");
    Ok(())
}
