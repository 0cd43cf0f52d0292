//! The few programs that this machine itself must have, and how they get there.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use nix::unistd::Uid;

use super::progress;

/// Exit code of `cargo lab` when the machine lacks something that only root can add.
pub const EXIT_MISSING: i32 = 3;

/// Installs the packages whose file is absent (root), or names the command that does
/// (another user) and ends the program.
pub fn provide() -> Result<()> {
    let mut wanted = vec![
        ("mmdebstrap", "/usr/bin/mmdebstrap"),
        ("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
        // The fuzzer that the fuzz targets are linked with is written in C++.
        ("g++", "/usr/bin/g++"),
    ];
    if !Uid::effective().is_root() {
        // Another user unpacks packages in a user namespace with its subordinate ids.
        wanted.push(("uidmap", "/usr/bin/newuidmap"));
    }
    let missing: Vec<&str> =
        wanted.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(package, _)| *package).collect();
    install(&missing)
}

/// Python's installer of packages; any will do.
pub fn provide_pip() -> Result<()> {
    let has = Command::new("python3").args(["-m", "pip", "--version"]).output();
    if has.is_ok_and(|o| o.status.success()) {
        return Ok(());
    }
    install(&["python3", "python3-pip"])
}

/// Installs Debian's packages, or says to a user who may not how that is done, and ends.
fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get update && apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !Uid::effective().is_root() {
        eprintln!("lab: this machine lacks what the lab needs; as root, run:\n");
        eprintln!("    sudo sh -c '{command}'\n");
        std::process::exit(EXIT_MISSING);
    }
    progress(&format!("installing {} with apt-get", missing.join(", ")));
    let output = Command::new("sh")
        .args(["-c", &command])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(std::process::Stdio::null())
        .output()?;
    ensure!(output.status.success(), "`{command}` failed:\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
