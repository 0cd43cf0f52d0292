//! The workspace: where it is, and building what is tested.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The workspace's root folder.
pub fn workspace() -> PathBuf {
    let package = std::env::var("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let package = PathBuf::from(package);
    package
        .ancestors()
        .nth(2)
        .map_or(package.clone(), Path::to_owned)
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
    let given = given.map(Path::to_owned).or_else(|| {
        std::env::var_os("LAB_PASSTHRU")
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    });
    if let Some(file) = given {
        ensure!(file.is_file(), "there is no file {}", file.display());
        return file.canonicalize().context("passthru's path");
    }
    let status = cargo()
        .args([
            "build",
            "--quiet",
            "--package",
            "passthru",
            "--profile",
            profile,
        ])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("passthru does not build");
    }
    Ok(target().join(profile).join("passthru"))
}
