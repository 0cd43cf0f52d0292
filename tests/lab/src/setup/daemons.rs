//! Daemons that are devices of guests (vhost-user) and that Debian does not have: built once, from crates.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{progress, recipe};
use crate::build;

/// Builds them below the empty folder `to`, whose `bin` L1 gets in its `/usr/local/bin`.
pub fn build(to: &Path) -> Result<()> {
    for daemon in recipe::DAEMONS {
        let (name, version) = daemon.split_once('@').unwrap_or((daemon, ""));
        progress(&format!("building {name} (once)"));
        // --debug: building it optimised takes longer than all that it does.
        let output = build::cargo()
            .args(["install", "--quiet", "--locked", "--debug", name, "--version", version, "--root"])
            .arg(to)
            .output()
            .context("cannot start cargo")?;
        ensure!(output.status.success(), "{name}:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
