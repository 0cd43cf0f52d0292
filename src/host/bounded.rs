//! What may block in the kernel for ever, done by a child process that is waited for only so long.
//!
//! A driver that cannot let go of its device keeps whoever asked it to in state D: that process cannot be killed, not even
//! with SIGKILL, and a thread of ours in that state would keep us from ending. A child in that state is left alone. It ends
//! when the kernel lets it, and init collects it if we have ended before.

use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Host;
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
/// Longest text that the child reads from its input; a page is what sysfs takes.
const MAX_VALUE: u64 = 4096;
/// The child's exit code where its failure has no number of the system.
const UNNUMBERED: u8 = 255;

/// Writes `value` to an attribute that exists, in a child process, and waits for it up to [`LIMIT`].
///
/// # Errors
/// The kernel's answer, or one that [`is_stuck`].
pub(super) fn write(file: &Path, value: &str) -> io::Result<()> {
    let mut child = Command::new(OURSELVES);
    child.arg0("passthru").arg(WRITE_COMMAND).arg(file);
    let ended = run(child, value, LIMIT)?;
    match ended.code {
        Some(0) => Ok(()),
        Some(number) if number != i32::from(UNNUMBERED) => Err(io::Error::from_raw_os_error(number)),
        _ => Err(io::Error::other(ended.words)),
    }
}

/// The child's half of [`write`]: writes what comes on standard input, in one write(2), as sysfs demands, and gives the exit
/// code that says how it went.
pub fn write_from_input(file: &Path) -> u8 {
    let mut value = String::new();
    let written = io::stdin().lock().take(MAX_VALUE).read_to_string(&mut value);
    match written.and_then(|_| write_here(file, &value)) {
        Ok(()) => 0,
        Err(error) => {
            // Read by the parent if the code says nothing.
            let _ = write!(io::stderr().lock(), "{error}");
            error.raw_os_error().and_then(|number| u8::try_from(number).ok()).unwrap_or(UNNUMBERED)
        }
    }
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

/// Runs a program that reads `input`, and waits for its end up to `limit`.
pub(super) fn run(mut command: Command, input: &str, limit: Duration) -> io::Result<Ended> {
    // A group of its own: Ctrl-C ends us, and what the child is at is done in full.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn()?;
    // What is written fits into the pipe; a child that does not read it is told by its exit code.
    let _ = child.stdin.take().map(|mut pipe| pipe.write_all(input.as_bytes()));
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
        let _ = pipe.take(MAX_VALUE).read_to_end(&mut words);
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
            true => Error::new(Code::Stuck, format!("the kernel does not come to an end with this step: {step}"))
                .evidence(format!("writing {:?} to {}: {error}", value.trim_end(), file.display()))
                .fix(
                    "`dmesg | tail` says what the driver waits for; when it has ended, as root, `passthru recover` brings \
                     back what was before",
                ),
        })
    }
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
        let ended = run(shell("read a; echo \"no $a\" >&2; echo more >&2; exit 16"), "value\n", LIMIT).unwrap();
        assert_eq!((ended.code, ended.words.as_str()), (Some(16), "no value"));
        assert_eq!(run(shell("kill -9 $$"), "", LIMIT).unwrap().code, None);
        // One that does not read its input.
        assert_eq!(run(shell("exec <&-; exit 0"), &"x".repeat(4096), LIMIT).unwrap().code, Some(0));
        assert!(run(Command::new("/nonexistent"), "", LIMIT).is_err());
    }

    #[test]
    fn a_child_that_does_not_end_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Blocks until someone writes, as a driver may.
        let mut command = shell("read a <\"$1\"");
        command.arg("-").arg(&fifo);
        let error = run(command, "", Duration::from_millis(50)).unwrap_err();
        assert!(is_stuck(&error) && error.to_string().contains("is still at it"), "{error}");
        assert!(!is_stuck(&io::Error::from_raw_os_error(libc::ETIMEDOUT)));
        std::fs::write(&fifo, "\n").unwrap();
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
