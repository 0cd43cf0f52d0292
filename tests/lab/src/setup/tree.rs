//! The Debian tree, made by mmdebstrap(1) as an archive and unpacked with the
//! user's own ids, so that it is the same for root and for other users.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::unistd::Uid;

use super::{host, progress, recipe, sources};

/// Builds the tree in the empty folder `to`.
pub fn build(to: &Path) -> Result<()> {
    host::provide()?;
    let mirror = sources::find_mirror(Path::new("/etc/apt"))?;
    progress(&format!("making a Debian {} tree from {} (about a minute)", recipe::SUITE, mirror.uri));
    let mut bootstrap = mmdebstrap("minbase", recipe::PACKAGES)
        .args(recipe::EXCLUDED.iter().map(|e| format!("--dpkgopt=path-exclude={e}")))
        .arg(format!("--essential-hook={}", recipe::NO_INITRAMFS_HOOK))
        // Read by Debian's kernel package: no initramfs.
        .env("INITRD", "No")
        .args(["--format=tar", recipe::SUITE, "-", &mirror.line()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start mmdebstrap")?;
    let archive = bootstrap.stdout.take().context("no pipe")?;
    let messages = bootstrap.stderr.take().context("no pipe")?;
    let log = thread::spawn(move || show_stages(BufReader::new(messages)));
    let unpacked = Command::new("tar")
        .arg("-C")
        .arg(to)
        .args(["-xf", "-", "--no-same-owner", "--exclude=./dev/*", "--exclude=./boot/initrd*"])
        .stdin(archive)
        .status()
        .context("cannot start tar")?;
    let made = bootstrap.wait()?;
    let log = log.join().unwrap_or_default();
    ensure!(made.success(), "mmdebstrap: {made}\n{log}");
    ensure!(unpacked.success(), "tar: {unpacked}");
    Ok(())
}

/// A call of mmdebstrap that lacks the suite, the target and the mirror.
pub fn mmdebstrap<P: AsRef<str>>(variant: &str, packages: &[P]) -> Command {
    let mut command = Command::new("mmdebstrap");
    let mode = if Uid::effective().is_root() { "root" } else { "unshare" };
    let packages: Vec<&str> = packages.iter().map(AsRef::as_ref).collect();
    command
        .args([&format!("--variant={variant}"), "--architectures=amd64", &format!("--mode={mode}")])
        .arg(format!("--include={}", packages.join(",")))
        .args(["--aptopt=Acquire::Languages \"none\""])
        .args(["--dpkgopt=force-confold", "--dpkgopt=force-unsafe-io"])
        .args(proxy_options());
    command
}

/// The machine's proxy for apt, which mmdebstrap does not take over by itself.
fn proxy_options() -> Vec<String> {
    let Ok(dump) = Command::new("apt-config").arg("dump").output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&dump.stdout)
        .lines()
        .filter(|l| l.starts_with("Acquire::http") && l.contains("::Proxy"))
        .map(|l| format!("--aptopt={}", l.trim_end_matches(';')))
        .collect()
}

/// Passes mmdebstrap's stages on as progress and keeps everything for an error message.
fn show_stages(messages: impl BufRead) -> String {
    let mut log = String::new();
    for line in messages.lines().map_while(Result::ok) {
        if let Some(stage) = line.strip_prefix("I: ") {
            let interesting = ["downloading", "extracting", "installing", "creating"];
            if interesting.iter().any(|w| stage.starts_with(w)) {
                progress(&format!("  {stage}"));
            }
        }
        log.push_str(&line);
        log.push('\n');
    }
    log
}
