//! Standard input as the source of a serial port's bytes: a terminal, a pipe or socket, a file, or nothing at all.
//!
//! * A **terminal** is raw, its escape keys work ([`crate::terminal::escape`]), and it is read even while the guest
//!   takes nothing, so that Ctrl-A x ends a guest that hangs; what the guest has no room for is dropped.
//! * A **pipe or socket** is read as fast as the guest takes it; nothing is lost.
//! * A **file** or /dev/null cannot be waited for (epoll answers EPERM): it is read in steps as the guest makes room.
//!
//! The end of the input, or an error, ends the input and not the guest.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;

use super::CharSink;
use crate::event_loop::{EventLoop, Token};
use crate::terminal::escape::{Action, Escape, HELP};
use crate::terminal::{self, Terminal};

/// Most bytes taken by one read.
const CHUNK: usize = 256;

/// What takes the input: a serial port.
pub trait CharInput: Send + Sync {
    /// How many bytes it will take now. After an answer of 0 it announces room.
    fn room(&self) -> usize;

    /// Takes bytes; drops those beyond `room`.
    fn input(&self, bytes: &[u8]);

    /// Takes a break.
    fn input_break(&self);
}

/// Wakes the reader when the guest has made room; the device's side, for any thread.
#[derive(Clone)]
pub struct RoomSignal(Arc<EventFd>);

impl RoomSignal {
    /// A signal that nobody has raised.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub fn new() -> io::Result<RoomSignal> {
        let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(RoomSignal(Arc::new(fd)))
    }

    /// There is room again.
    pub fn raise(&self) {
        // Fails only if the counter is about to overflow, and then the reader is awake.
        let _ = self.0.write(1);
    }
}

/// What has been found out about the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Waited for by epoll.
    Polled(Token),
    /// Always ready: read when there is room.
    Direct,
    /// There is no more input.
    Ended,
}

/// The reader of standard input; lives on the main thread. Dropping it restores the terminal, the loop's callbacks
/// notwithstanding.
pub struct Stdio {
    reader: Rc<RefCell<Reader>>,
    terminal: Option<Terminal>,
}

struct Reader {
    fd: Option<Rc<OwnedFd>>,
    mode: Mode,
    /// The escape keys of a terminal.
    escape: Option<Escape>,
    port: Arc<dyn CharInput>,
    room: RoomSignal,
    echo: Arc<dyn CharSink>,
}

impl Stdio {
    /// Reads `fd` (standard input) for `port` from now on, in raw mode if it is a terminal. `room` is what `port`
    /// raises when it has room again, `echo` where the help of the escape keys goes, `on_quit` what Ctrl-A x does.
    ///
    /// # Errors
    /// The terminal's modes cannot be set, or the system is out of descriptors or memory.
    pub fn attach(
        event_loop: &mut EventLoop,
        fd: impl AsFd,
        port: Arc<dyn CharInput>,
        room: RoomSignal,
        echo: Arc<dyn CharSink>,
        on_quit: impl Fn(&mut EventLoop) + 'static,
    ) -> io::Result<Stdio> {
        let owned = match fd.as_fd().try_clone_to_owned() {
            Ok(owned) => Some(Rc::new(owned)),
            // A closed standard input is one without bytes.
            Err(error) if error.raw_os_error() == Some(Errno::EBADF as i32) => None,
            Err(error) => return Err(error),
        };
        let terminal = owned.as_ref().map_or(Ok(None), Terminal::open)?;
        let reader = Reader {
            fd: owned.clone(),
            mode: Mode::Ended,
            escape: terminal.is_some().then(Escape::default),
            port,
            room: room.clone(),
            echo,
        };
        let stdio = Stdio { reader: Rc::new(RefCell::new(reader)), terminal };
        let Some(fd) = owned else { return Ok(stdio) };

        let on_quit: Rc<dyn Fn(&mut EventLoop)> = Rc::new(on_quit);
        let step = |on_quit: Rc<dyn Fn(&mut EventLoop)>| {
            let reader = Rc::clone(&stdio.reader);
            move |event_loop: &mut EventLoop, resume: bool| {
                let quit = reader.borrow_mut().step(event_loop, resume);
                if quit {
                    on_quit(event_loop);
                }
            }
        };
        let (on_readable, on_room) = (step(Rc::clone(&on_quit)), step(on_quit));
        let polled = event_loop.add(fd, EpollFlags::EPOLLIN, move |event_loop, _| on_readable(event_loop, false));
        let mode = match polled {
            Ok(token) => Mode::Polled(token),
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Mode::Direct,
            Err(error) => return Err(error),
        };
        stdio.reader.borrow_mut().mode = mode;
        let eventfd = Arc::clone(&room.0);
        event_loop.add(Arc::clone(&eventfd), EpollFlags::EPOLLIN, move |event_loop, _| {
            // Empties the counter; fails only if somebody else has.
            let _ = eventfd.read();
            on_room(event_loop, true);
        })?;
        if mode == Mode::Direct {
            room.raise();
        }
        Ok(stdio)
    }

    /// Job control, for the event loop's signal callback: stops on SIGTSTP with the terminal restored, and takes the
    /// terminal again on SIGCONT, unless the shell has continued the process in the background.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn job_control(&self, event_loop: &mut EventLoop, signal: Signal) -> io::Result<()> {
        match (signal, &self.terminal) {
            (Signal::SIGTSTP, _) => terminal::suspend(),
            (Signal::SIGCONT, Some(terminal)) => {
                let foreground = terminal.is_foreground();
                if foreground {
                    terminal.enter_raw()?;
                }
                if let Mode::Polled(token) = self.reader.borrow().mode {
                    // Reading in the background would stop the process (SIGTTIN).
                    let interest = if foreground { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
                    event_loop.set_interest(token, interest)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Reader {
    /// Moves at most one chunk of input on; says whether the user wants to quit. `resume`: the port has room again.
    fn step(&mut self, event_loop: &mut EventLoop, resume: bool) -> bool {
        if self.mode == Mode::Ended {
            return false;
        }
        if resume && let Mode::Polled(token) = self.mode {
            // If the kernel is out of memory the input stays paused, and the guest goes on.
            let _ = event_loop.set_interest(token, EpollFlags::EPOLLIN);
            return false;
        }
        let room = if self.escape.is_some() { CHUNK } else { self.port.room().min(CHUNK) };
        if room == 0 {
            if let Mode::Polled(token) = self.mode {
                let _ = event_loop.set_interest(token, EpollFlags::empty());
            }
            return false;
        }
        let mut chunk = [0; CHUNK];
        let (Some(fd), Some(buffer)) = (&self.fd, chunk.get_mut(..room)) else { return false };
        let count = match nix::unistd::read(fd, buffer) {
            // Spurious: somebody else reads the same pipe, or has made it non-blocking.
            Err(Errno::EINTR | Errno::EAGAIN) => return false,
            Ok(count) if count > 0 => count,
            Ok(_) | Err(_) => {
                self.end(event_loop);
                return false;
            }
        };
        if self.mode == Mode::Direct {
            self.room.raise();
        }
        self.deliver(buffer.get(..count).unwrap_or_default())
    }

    fn end(&mut self, event_loop: &mut EventLoop) {
        if let Mode::Polled(token) = self.mode {
            event_loop.remove(token);
        }
        self.mode = Mode::Ended;
        self.fd = None;
    }

    fn deliver(&mut self, bytes: &[u8]) -> bool {
        let Some(escape) = &mut self.escape else {
            self.port.input(bytes);
            return false;
        };
        let mut quit = false;
        for action in escape.feed(bytes) {
            match action {
                Action::Send(bytes) => self.port.input(&bytes),
                Action::Break => self.port.input_break(),
                Action::Help => self.echo.write(HELP.as_bytes()),
                Action::Quit => quit = true,
            }
        }
        quit
    }
}

#[cfg(test)]
#[path = "stdio_tests.rs"]
mod tests;
