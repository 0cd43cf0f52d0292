//! The user's terminal: raw while the guest owns it, and put back as it was on every way out.
//!
//! The ways out: dropping [`Terminal`] (normal end, errors, signals that the event loop turns into an end), a panic of
//! any thread (hook), `abort` (SIGABRT), and being stopped ([`suspend`]). Nothing can be done about SIGKILL.
//!
//! The original modes live in a static that is written once, because a panic hook and a signal handler must reach
//! them without a lock: `tcgetattr(3)` and `tcsetattr(3)` are async-signal-safe.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc;
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{
    self, ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios,
};
use vmm_sys_util::signal::register_signal_handler;

/// The one terminal of the process.
static TERMINAL: OnceLock<Modes> = OnceLock::new();

/// A terminal's two sets of modes.
struct Modes {
    fd: OwnedFd,
    original: libc::termios,
    /// The raw modes leave the keys that make signals to the terminal.
    signals: bool,
    raw: AtomicBool,
}

impl Modes {
    fn of(fd: OwnedFd, signals: bool) -> io::Result<Modes> {
        let original = termios::tcgetattr(&fd)?.into();
        Ok(Modes { fd, original, signals, raw: AtomicBool::new(false) })
    }

    fn enter_raw(&self) -> io::Result<()> {
        let mut modes = Termios::from(self.original);
        modes.input_flags.remove(
            InputFlags::IGNBRK
                | InputFlags::BRKINT
                | InputFlags::PARMRK
                | InputFlags::ISTRIP
                | InputFlags::INLCR
                | InputFlags::IGNCR
                | InputFlags::ICRNL
                | InputFlags::IXON,
        );
        // Output processing stays on: passthru's own messages, and those of other programs, end with a plain line feed.
        modes.output_flags.insert(OutputFlags::OPOST);
        modes.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::IEXTEN);
        if !self.signals {
            modes.local_flags.remove(LocalFlags::ISIG);
        }
        modes.control_flags.remove(ControlFlags::CSIZE | ControlFlags::PARENB);
        modes.control_flags.insert(ControlFlags::CS8);
        for (index, value) in [(SpecialCharacterIndices::VMIN, 1), (SpecialCharacterIndices::VTIME, 0)] {
            if let Some(character) = modes.control_chars.get_mut(index as usize) {
                *character = value;
            }
        }
        // Set before the call: a panic in between restores modes that have not changed, which does no harm.
        self.raw.store(true, Ordering::SeqCst);
        // TCSANOW, here and below: waiting for the output to drain would hang on a terminal after Ctrl-S.
        termios::tcsetattr(&self.fd, SetArg::TCSANOW, &modes)?;
        Ok(())
    }

    fn restore(&self) {
        if self.raw.swap(false, Ordering::SeqCst) {
            // The way out goes on whatever happens: a terminal that is gone needs no modes.
            let _ = termios::tcsetattr(&self.fd, SetArg::TCSANOW, &Termios::from(self.original));
        }
    }
}

/// Puts the terminal back as it was, if it is raw. For ways out that run no destructors; may be called at any time and
/// from any thread or signal handler.
pub fn restore() {
    if let Some(modes) = TERMINAL.get() {
        modes.restore();
    }
}

/// Stops the process, as SIGTSTP asks, with the terminal restored. Returns when it continues; SIGCONT follows.
pub fn suspend() {
    restore();
    // Cannot fail: the signal is valid. SIGSTOP, because SIGTSTP is blocked for the signalfd.
    let _ = raise(Signal::SIGSTOP);
}

extern "C" fn restore_on_abort(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
    // On return abort() takes the handler away and raises the signal again.
    restore();
}

/// The user's terminal in raw mode. Dropping it restores the modes.
pub struct Terminal(());

impl Terminal {
    /// Makes the terminal behind `fd` raw; `Ok(None)` if `fd` is no terminal. `signals`: whether its keys still make
    /// signals (Ctrl-C). In the background of a shell this stops
    /// the process until it is brought to the foreground, as with any program that wants the terminal.
    ///
    /// # Errors
    /// The terminal's modes cannot be read or set, or the process has one already.
    pub fn open(fd: impl AsFd, signals: bool) -> io::Result<Option<Terminal>> {
        if !nix::unistd::isatty(&fd).unwrap_or(false) {
            return Ok(None);
        }
        let modes = Modes::of(fd.as_fd().try_clone_to_owned()?, signals)?;
        if TERMINAL.set(modes).is_err() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inner = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            inner(info);
        }));
        register_signal_handler(libc::SIGABRT, restore_on_abort)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        let terminal = Terminal(());
        terminal.enter_raw()?;
        Ok(Some(terminal))
    }

    /// Makes the terminal raw again, after SIGCONT.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn enter_raw(&self) -> io::Result<()> {
        TERMINAL.get().map_or(Ok(()), Modes::enter_raw)
    }

    /// Whether the process is in the terminal's foreground and may read from it and set its modes.
    pub fn is_foreground(&self) -> bool {
        let owner = TERMINAL.get().and_then(|modes| nix::unistd::tcgetpgrp(&modes.fd).ok());
        owner == Some(nix::unistd::getpgrp())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;

    use super::*;

    fn is_raw(fd: BorrowedFd<'_>) -> bool {
        let modes = termios::tcgetattr(fd).unwrap();
        !modes.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
            && modes.output_flags.contains(OutputFlags::OPOST)
    }

    #[test]
    fn modes_go_and_come_back() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let before: libc::termios = termios::tcgetattr(&pty.slave).unwrap().into();
        let modes = Modes::of(pty.slave.try_clone().unwrap(), false).unwrap();
        for _ in 0..2 {
            modes.enter_raw().unwrap();
            assert!(is_raw(pty.slave.as_fd()));
            modes.restore();
            let after: libc::termios = termios::tcgetattr(&pty.slave).unwrap().into();
            assert_eq!(after, before);
        }
    }

    #[test]
    fn restore_leaves_a_terminal_alone_that_is_not_raw() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let modes = Modes::of(pty.slave.try_clone().unwrap(), false).unwrap();
        let mut others = termios::tcgetattr(&pty.slave).unwrap();
        others.local_flags.remove(LocalFlags::ECHO);
        termios::tcsetattr(&pty.slave, SetArg::TCSANOW, &others).unwrap();
        modes.restore();
        assert!(!termios::tcgetattr(&pty.slave).unwrap().local_flags.contains(LocalFlags::ECHO));
    }

    /// The only test that may use the process's one terminal.
    #[test]
    fn panic_of_any_thread_and_drop_restore() {
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(Terminal::open(&null, false).unwrap().is_none());

        let pty = nix::pty::openpty(None, None).unwrap();
        let terminal = Terminal::open(&pty.slave, false).unwrap().unwrap();
        assert!(is_raw(pty.slave.as_fd()));
        std::thread::spawn(|| panic!("on purpose")).join().unwrap_err();
        assert!(!is_raw(pty.slave.as_fd()));

        terminal.enter_raw().unwrap();
        assert!(is_raw(pty.slave.as_fd()));
        assert!(!terminal.is_foreground(), "the pty is not the controlling terminal");
        assert!(Terminal::open(&pty.slave, false).is_err());
        assert!(is_raw(pty.slave.as_fd()));
        drop(terminal);
        assert!(!is_raw(pty.slave.as_fd()));
    }
}
