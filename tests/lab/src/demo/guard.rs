//! What the demo takes from this host, it gives back: at its end, on an error, on Ctrl-C
//! and on a panic.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How long passthru may take to end its guest when asked to.
const END_LIMIT: Duration = Duration::from_secs(15);
/// How often a guest is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Ctrl-C and its like, noted instead of ending this program. (A blocked signal with a
/// signalfd would not do: the mask would pass on to passthru.)
pub struct Interrupts(Arc<AtomicBool>);

impl Interrupts {
    /// From now on the signals no longer end this program.
    pub fn catch() -> Result<Self> {
        let noted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&noted))?;
        }
        Ok(Self(noted))
    }

    /// Whether a signal has come.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs a guest; ends it when a signal comes. Returns the exit code.
pub fn run_guest(command: &mut Command, interrupts: &Interrupts, limit: Duration) -> Result<i32> {
    let mut child = command.spawn().context("cannot start passthru")?;
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().unwrap_or(-1));
        }
        let interrupted = interrupts.came();
        if interrupted || Instant::now() > end {
            stop(&mut child)?;
            bail!(if interrupted { "interrupted" } else { "the guest did not end in time" });
        }
        thread::sleep(TICK);
    }
}

/// Asks a child to end, and makes it if it does not.
fn stop(child: &mut Child) -> Result<()> {
    if let Ok(pid) = i32::try_from(child.id()) {
        // It may have ended a moment ago.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    let end = Instant::now() + END_LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// Devices taken from the host; dropping it gives them back.
pub struct Taken {
    passthru: PathBuf,
    devices: Vec<String>,
}

impl Taken {
    pub fn none(passthru: &Path) -> Self {
        Self { passthru: passthru.to_owned(), devices: Vec::new() }
    }

    /// Takes a device with `passthru bind`.
    pub fn take(&mut self, bdf: &str) -> Result<()> {
        // Noted first: a bind that fails half-way is released, too.
        self.devices.push(bdf.to_owned());
        self.passthru("bind", bdf)
    }

    /// Gives all devices back and reports the first failure.
    pub fn give_back(&mut self) -> Result<()> {
        let mut result = Ok(());
        for bdf in std::mem::take(&mut self.devices).iter().rev() {
            result = result.and(self.passthru("release", bdf));
        }
        result
    }

    fn passthru(&self, verb: &str, bdf: &str) -> Result<()> {
        super::shows(&format!("passthru {verb} {bdf}"));
        let output = Command::new(&self.passthru)
            .args([verb, bdf])
            .stdin(Stdio::null())
            // A Ctrl-C on the terminal must not stop a release half-way.
            .process_group(0)
            .output()
            .context("cannot start passthru")?;
        super::output(&String::from_utf8_lossy(&output.stdout));
        super::output(&String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "passthru {verb} {bdf}: {}", output.status);
        Ok(())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.devices.is_empty() {
            println!("\nGiving the devices back:");
            if let Err(e) = self.give_back() {
                eprintln!("lab: {e:#}\nlab: give them back with `passthru release`");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A stand-in for passthru that notes what it is asked.
    fn stand_in(dir: &Path) -> PathBuf {
        let file = dir.join("passthru");
        let script = format!("#!/bin/sh\necho \"$@\" >> {}/log\n", dir.display());
        fs::write(&file, script).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        file
    }

    #[test]
    fn a_panic_gives_the_devices_back() {
        let dir = tempfile::tempdir().unwrap();
        let passthru = stand_in(dir.path());
        let work = std::panic::AssertUnwindSafe(|| {
            let mut taken = Taken::none(&passthru);
            taken.take("0000:01:00.0").unwrap();
            taken.take("0000:02:00.0").unwrap();
            panic!("on purpose");
        });
        assert!(std::panic::catch_unwind(work).is_err());
        let log = fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(log, "bind 0000:01:00.0\nbind 0000:02:00.0\nrelease 0000:02:00.0\nrelease 0000:01:00.0\n");
    }

    #[test]
    fn a_signal_ends_the_guest() {
        let interrupts = Interrupts::catch().unwrap();
        nix::sys::signal::raise(Signal::SIGINT).unwrap();
        let mut guest = Command::new("sleep");
        guest.arg("300");
        let error = run_guest(&mut guest, &interrupts, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
    }
}
