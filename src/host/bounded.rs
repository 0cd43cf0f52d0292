//! What may block in the kernel for ever, done by a child process that is waited for only so long.
//!
//! A driver that cannot let go of its device keeps whoever asked it to in state D: that process cannot be killed, not even
//! with SIGKILL, and a thread of ours in that state would keep us from ending. A child in that state is left alone. It ends
//! when the kernel lets it, and init collects it if we have ended before.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use super::setting::VfAttribute;
use super::{Host, read};
use crate::bdf::Bdf;
use crate::error::{Code, Error, Result};

/// How long a step may take. Drivers that stop hardware in their own time take some seconds.
pub(super) const LIMIT: Duration = Duration::from_secs(30);
/// How often the child is looked at, at first and later.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// This program: what is running, even if its file has been replaced meanwhile.
const OURSELVES: &str = "/proc/self/exe";
/// The hidden command by which the child writes.
pub const WRITE_COMMAND: &str = "write-attribute";
/// The hidden command by which the child speaks with the driver of a physical function.
pub const SET_VF_COMMAND: &str = "set-vf";
/// Longest message of a child that is read.
const MAX_WORDS: u64 = 4096;
/// How long a child is waited for whose parent was killed.
const ORPHAN_LIMIT: Duration = Duration::from_secs(5);
/// The child's exit code where its failure has no number of the system.
const UNNUMBERED: u8 = 255;

/// Writes `value` to an attribute that exists, in a child process, and waits for it up to [`LIMIT`].
///
/// # Errors
/// The kernel's answer, or one that [`is_stuck`].
pub(super) fn write(file: &Path, value: &str) -> io::Result<()> {
    ask(WRITE_COMMAND, [file.as_os_str(), OsStr::new(value)])
}

/// Tells a physical function's driver what a virtual function of its is to be, in a child process, and waits for it up to
/// [`LIMIT`]: the kernel asks the card, with all of its network interfaces locked meanwhile.
///
/// # Errors
/// As [`write`].
pub(super) fn set_vf(interface: &Path, number: u32, attribute: VfAttribute) -> io::Result<()> {
    let attribute = serde_json::to_string(&attribute)?;
    ask(SET_VF_COMMAND, [interface.as_os_str(), OsStr::new(&number.to_string()), OsStr::new(&attribute)])
}

/// Lets a child of this program do something.
fn ask<'a>(command: &str, words: impl IntoIterator<Item = &'a OsStr>) -> io::Result<()> {
    let mut child = Command::new(OURSELVES);
    child.arg0("passthru").arg(command).arg(std::process::id().to_string()).args(words);
    let ended = run(child, LIMIT)?;
    match ended.code {
        Some(0) => Ok(()),
        Some(number) if number != i32::from(UNNUMBERED) => Err(io::Error::from_raw_os_error(number)),
        _ => Err(io::Error::other(ended.words)),
    }
}

/// The child's half: does it, and gives the exit code that says how it went.
///
/// A child whose parent has been killed must not begin: `recover` may be undoing the step already. One that has begun is
/// waited for by [`Host::wait_for_writer`].
pub fn act_for(parent: i32, act: impl FnOnce() -> io::Result<()>) -> u8 {
    let done = set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from).and_then(|()| {
        // Asked after the signal is ordered: a parent that dies from here on takes us along.
        if getppid().as_raw() == parent { act() } else { Err(Errno::ESRCH.into()) }
    });
    match done {
        Ok(()) => 0,
        Err(error) => {
            // Read by the parent if the code says nothing.
            let _ = write!(io::stderr().lock(), "{error}");
            error.raw_os_error().and_then(|number| u8::try_from(number).ok()).unwrap_or(UNNUMBERED)
        }
    }
}

/// The child's half of [`write`]: in one write(2), as sysfs demands.
pub fn write_for(parent: i32, file: &Path, value: &str) -> u8 {
    act_for(parent, || write_here(file, value))
}

/// Writes in this process.
pub(super) fn write_here(file: &Path, value: &str) -> io::Result<()> {
    let mut attribute = std::fs::OpenOptions::new().write(true).open(file)?;
    let written = attribute.write(value.as_bytes())?;
    if written == value.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
}

/// How a child ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its exit code; `None`: a signal ended it.
    pub code: Option<i32>,
    /// The first line that it wrote to standard error.
    pub words: String,
}

/// Runs a program, and waits for its end up to `limit`.
pub(super) fn run(mut command: Command, limit: Duration) -> io::Result<Ended> {
    // A group of its own: Ctrl-C ends us, and what the child is at is done in full.
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    let mut pause = FIRST_PAUSE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() >= limit {
            let text = format!("process {} is still at it after {} s", child.id(), limit.as_secs());
            return Err(io::Error::new(ErrorKind::TimedOut, text));
        }
        sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    };
    let mut words = Vec::new();
    if let Some(pipe) = child.stderr.take() {
        let _ = pipe.take(MAX_WORDS).read_to_end(&mut words);
    }
    let words = String::from_utf8_lossy(&words).lines().next().unwrap_or("it says nothing").trim().to_owned();
    Ok(Ended { code: status.code(), words })
}

/// Whether the kernel has not answered: it may still do what it was asked for.
pub(super) fn is_stuck(error: &io::Error) -> bool {
    // The kernel's own ETIMEDOUT has a number.
    error.kind() == ErrorKind::TimedOut && error.raw_os_error().is_none()
}

impl Host {
    /// Waits until no child of a passthru that was killed is still writing to a device: what is read of the device until
    /// then may change, and with nobody's knowledge. To be called with the journal's lock, under which no new one begins.
    ///
    /// # Errors
    /// [`Code::Stuck`] if one does not end.
    pub(super) fn wait_for_writer(&self, bdf: Bdf) -> Result<()> {
        self.wait_for_writer_within(bdf, ORPHAN_LIMIT)
    }

    fn wait_for_writer_within(&self, bdf: Bdf, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while let Some((pid, file)) = self.writer_of(bdf) {
            if start.elapsed() >= limit {
                return Err(Error::new(Code::Stuck, format!("the kernel is still at an earlier step: {bdf}"))
                    .evidence(format!("process {pid} writes to {file}"))
                    .fix("`dmesg | tail` says what the driver waits for; try again when it has ended"));
            }
            sleep(LONGEST_PAUSE);
        }
        Ok(())
    }

    /// A process that writes to a device, or its address to a driver, and the file.
    fn writer_of(&self, bdf: Bdf) -> Option<(String, String)> {
        let bdf = bdf.to_string();
        read::names(self.proc("")).into_iter().filter(|name| name.bytes().all(|c| c.is_ascii_digit())).find_map(|pid| {
            let words = std::fs::read(self.proc(&pid).join("cmdline")).ok()?;
            let words: Vec<String> =
                words.split(|byte| *byte == 0).map(|it| String::from_utf8_lossy(it).into()).collect();
            let [_, command, _, file, value, ..] = words.as_slice() else { return None };
            let writes = command == WRITE_COMMAND && (file.contains(&bdf) || value.contains(&bdf));
            // It names a virtual function by its number.
            (writes || command == SET_VF_COMMAND).then(|| (pid, file.clone()))
        })
    }

    /// Writes an attribute as a step of a change; `refused` makes an error of the kernel's answer.
    ///
    /// # Errors
    /// [`Code::Stuck`] if there is no answer, else what `refused` makes.
    pub(super) fn set_attribute(
        &self,
        step: impl Display,
        file: &Path,
        value: &str,
        refused: impl FnOnce(&io::Error) -> Error,
    ) -> Result<()> {
        self.effects().write(file, value).map_err(|error| match is_stuck(&error) {
            false => refused(&error),
            true => stuck(step, format!("writing {:?} to {}: {error}", value.trim_end(), file.display())),
        })
    }
}

/// The error for a step to which there is no answer; `seen`: what was done, and how long ago.
pub(super) fn stuck(step: impl Display, seen: String) -> Error {
    Error::new(Code::Stuck, format!("the kernel does not come to an end with this step: {step}")).evidence(seen).fix(
        "`dmesg | tail` says what the driver waits for; when it has ended, as root, `passthru recover` brings back what was \
         before",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script);
        command
    }

    #[test]
    fn a_child_is_heard_out() {
        let ended = run(shell("echo no value >&2; echo more >&2; exit 16"), LIMIT).unwrap();
        assert_eq!((ended.code, ended.words.as_str()), (Some(16), "no value"));
        assert_eq!(run(shell("kill -9 $$"), LIMIT).unwrap().code, None);
        assert!(run(Command::new("/nonexistent"), LIMIT).is_err());
    }

    #[test]
    fn a_child_that_does_not_end_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Blocks until someone writes, as a driver may.
        let mut command = shell("read a <\"$1\"");
        command.arg("-").arg(&fifo);
        let error = run(command, Duration::from_millis(50)).unwrap_err();
        assert!(is_stuck(&error) && error.to_string().contains("is still at it"), "{error}");
        assert!(!is_stuck(&io::Error::from_raw_os_error(libc::ETIMEDOUT)));
        std::fs::write(&fifo, "\n").unwrap();
    }

    #[test]
    fn what_a_killed_parent_left_is_waited_for() {
        let tree = crate::host::testtree::TestTree::new();
        let bdf = crate::host::testtree::bdf("01:00.0");
        let wait = || tree.host().wait_for_writer_within(bdf, Duration::from_millis(50));
        for (words, waits) in [
            ("passthru\0write-attribute\x007\0/sys/bus/pci/devices/0000:01:00.0/driver_override\0x\n\0", true),
            ("passthru\0write-attribute\x007\0/sys/bus/pci/drivers_probe\x000000:01:00.0\0", true),
            ("passthru\0write-attribute\x007\0/sys/bus/pci/drivers_probe\x000000:02:00.0\0", false),
            ("passthru\0bind\x000000:01:00.0\0", false),
            ("", false),
        ] {
            tree.file("proc/42/cmdline", words);
            assert_eq!(wait().is_err_and(|error| error.code() == Code::Stuck), waits, "{words}");
        }
    }

    #[test]
    fn a_child_of_someone_else_does_not_begin() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("attribute");
        std::fs::write(&file, "before").unwrap();
        assert_eq!(i32::from(write_for(-1, &file, "after")), libc::ESRCH);
        // This process is the tests', which must outlive its parent's thread.
        set_pdeathsig(None).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "before");
    }

    #[test]
    fn an_attribute_that_is_absent_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("driver_override");
        assert_eq!(write_here(&file, "x").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!file.exists());
        std::fs::write(&file, "").unwrap();
        write_here(&file, "vfio-pci\n").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "vfio-pci\n");
    }
}
