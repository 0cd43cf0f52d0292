//! A descriptor that the main loop reads for a front end.
//!
//! It is read as far as the front end has room; what is left waits in the kernel, so that nothing is lost. A **file** or
//! /dev/null cannot be waited for (epoll answers EPERM): it is read in steps as there is room.
//!
//! The lock protects the reader's state. Only the main thread takes it, and calls the front end with it held.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
use parking_lot::Mutex;

use super::Attached;
use crate::event_loop::{EventLoop, LoopHandle, Token};

/// Most bytes taken by one read.
const CHUNK: usize = 4096;

/// What has been found out about the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Waited for by epoll.
    Polled(Token),
    /// Always ready: read when there is room.
    Direct,
    /// There is no more input, or none yet.
    Ended,
}

/// Called on the main thread when the input has ended.
type OnEnd = Box<dyn Fn(&mut EventLoop) + Send + Sync>;

/// The reader of one descriptor at a time. Dropping it ends the reading.
pub struct Input {
    shared: Arc<Shared>,
    event_loop: LoopHandle,
}

struct Shared {
    /// The front end has no room, or there is none; it will say when there is.
    paused: AtomicBool,
    reader: Mutex<Reader>,
    front: Arc<Attached>,
    on_end: OnEnd,
}

struct Reader {
    fd: Option<Arc<OwnedFd>>,
    mode: Mode,
    /// Not to be read for now: the terminal belongs to another program.
    asleep: bool,
}

impl Input {
    /// A reader that has nothing to read yet. `on_end` is called when a descriptor has no more bytes.
    pub fn new(
        event_loop: &LoopHandle,
        front: &Arc<Attached>,
        on_end: impl Fn(&mut EventLoop) + Send + Sync + 'static,
    ) -> Input {
        let reader = Mutex::new(Reader { fd: None, mode: Mode::Ended, asleep: false });
        let (front, on_end) = (front.clone(), Box::new(on_end));
        let shared = Arc::new(Shared { paused: AtomicBool::new(false), reader, front, on_end });
        Input { shared, event_loop: event_loop.clone() }
    }

    /// Reads `fd` as soon as the main loop runs.
    pub fn start_soon(&self, fd: Arc<OwnedFd>) {
        let shared = Arc::downgrade(&self.shared);
        self.event_loop.post(move |event_loop| {
            if let Some(shared) = shared.upgrade()
                && let Err(error) = shared.start(fd, event_loop)
            {
                crate::log::warn(format_args!("the input of a character back end cannot be waited for: {error}"));
            }
        });
    }

    /// Reads `fd` from now on. On the main thread.
    ///
    /// # Errors
    /// The kernel is out of memory.
    pub fn start(&self, fd: Arc<OwnedFd>, event_loop: &mut EventLoop) -> io::Result<()> {
        self.shared.start(fd, event_loop)
    }

    /// The front end has room again, or has only come now.
    pub fn resume(&self) {
        if self.shared.paused.swap(false, Ordering::SeqCst) {
            let shared = Arc::downgrade(&self.shared);
            self.event_loop.post(move |event_loop| {
                if let Some(shared) = shared.upgrade() {
                    shared.wake(event_loop);
                }
            });
        }
    }

    /// Lets the descriptor alone, or reads it again. On the main thread.
    pub fn set_asleep(&self, asleep: bool, event_loop: &mut EventLoop) {
        self.shared.reader.lock().asleep = asleep;
        self.shared.wake(event_loop);
    }

    /// Lets go of the descriptor, as soon as the main loop runs; until then it is not read without a front end.
    pub fn stop_soon(&self) {
        let shared = Arc::downgrade(&self.shared);
        self.event_loop.post(move |event_loop| {
            if let Some(shared) = shared.upgrade() {
                shared.reader.lock().end(event_loop);
            }
        });
    }

    /// Whether there is a descriptor to read.
    pub fn is_live(&self) -> bool {
        self.shared.reader.lock().mode != Mode::Ended
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let shared = self.shared.clone();
        // Where the loop has ended, its sources go with it.
        self.event_loop.post(move |event_loop| shared.reader.lock().end(event_loop));
    }
}

impl Shared {
    fn start(self: &Arc<Self>, fd: Arc<OwnedFd>, event_loop: &mut EventLoop) -> io::Result<()> {
        let weak: Weak<Shared> = Arc::downgrade(self);
        let polled = event_loop.add(fd.clone(), EpollFlags::EPOLLIN, move |event_loop, _| {
            if let Some(shared) = weak.upgrade() {
                shared.step(event_loop);
            }
        });
        let mode = match polled {
            Ok(token) => Mode::Polled(token),
            Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => Mode::Direct,
            Err(error) => return Err(error),
        };
        let mut reader = self.reader.lock();
        reader.end(event_loop);
        (reader.fd, reader.mode) = (Some(fd), mode);
        drop(reader);
        self.paused.store(false, Ordering::SeqCst);
        self.wake(event_loop);
        Ok(())
    }

    /// Goes on after a pause.
    fn wake(self: &Arc<Self>, event_loop: &mut EventLoop) {
        let (mode, asleep) = {
            let reader = self.reader.lock();
            (reader.mode, reader.asleep)
        };
        match mode {
            Mode::Polled(token) => {
                let interest = if asleep { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
                // If the kernel is out of memory the input stays paused, and the guest goes on.
                let _ = event_loop.set_interest(token, interest);
            }
            Mode::Direct if !asleep => self.step(event_loop),
            Mode::Direct | Mode::Ended => {}
        }
    }

    /// Moves at most one chunk on.
    fn step(self: &Arc<Self>, event_loop: &mut EventLoop) {
        if !self.reader.lock().step(&self.paused, &self.front, event_loop) {
            (self.on_end)(event_loop);
            return;
        }
        let goes_on = self.reader.lock().mode == Mode::Direct && !self.paused.load(Ordering::SeqCst);
        if goes_on {
            let weak = Arc::downgrade(self);
            // Not at once: other sources of the loop have their turn.
            event_loop.handle().post(move |event_loop| {
                if let Some(shared) = weak.upgrade() {
                    shared.wake(event_loop);
                }
            });
        }
    }
}

impl Reader {
    /// Says whether the input goes on.
    fn step(&mut self, paused: &AtomicBool, front: &Attached, event_loop: &mut EventLoop) -> bool {
        if self.mode == Mode::Ended {
            return true;
        }
        // Said before the question, so that room which comes in between is heard of.
        paused.store(true, Ordering::SeqCst);
        let front = front.get();
        let room = front.as_ref().map_or(0, |front| front.room()).min(CHUNK);
        let (Some(front), true) = (front, room > 0) else {
            if let Mode::Polled(token) = self.mode
                && paused.load(Ordering::SeqCst)
            {
                let _ = event_loop.set_interest(token, EpollFlags::empty());
            }
            return true;
        };
        paused.store(false, Ordering::SeqCst);
        let mut chunk = [0; CHUNK];
        let (Some(fd), Some(buffer)) = (&self.fd, chunk.get_mut(..room)) else { return true };
        match nix::unistd::read(&**fd, buffer) {
            // Spurious: somebody else reads the same pipe, or has made it non-blocking.
            Err(Errno::EINTR | Errno::EAGAIN) => true,
            Ok(count) if count > 0 => {
                front.input(buffer.get(..count).unwrap_or_default());
                true
            }
            Ok(_) | Err(_) => {
                self.end(event_loop);
                false
            }
        }
    }

    fn end(&mut self, event_loop: &mut EventLoop) {
        if let Mode::Polled(token) = self.mode {
            event_loop.remove(token);
        }
        self.mode = Mode::Ended;
        self.fd = None;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};

    use super::super::testing::{Port, event_loop, settle};
    use super::*;

    struct Bench {
        event_loop: EventLoop,
        port: Arc<Port>,
        input: Input,
        ended: Arc<AtomicBool>,
    }

    impl Bench {
        fn new(fd: impl Into<OwnedFd>, room: usize) -> Bench {
            let event_loop = event_loop();
            let (port, front, ended) =
                (Port::new(room), Arc::new(Attached::default()), Arc::new(AtomicBool::new(false)));
            front.set(port.weak());
            let end = ended.clone();
            let input = Input::new(&event_loop.handle(), &front, move |_| end.store(true, Ordering::SeqCst));
            input.start_soon(Arc::new(fd.into()));
            Bench { event_loop, port, input, ended }
        }

        fn settle(&mut self) {
            settle(&mut self.event_loop);
        }

        fn make_room(&mut self, room: usize) {
            self.port.room.store(room, Ordering::SeqCst);
            self.input.resume();
            self.settle();
        }

        fn has_ended(&self) -> bool {
            assert_ne!(self.input.is_live(), self.ended.load(Ordering::SeqCst));
            !self.input.is_live()
        }
    }

    #[test]
    fn a_pipe_waits_for_room_and_loses_nothing() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut bench = Bench::new(reader, 3);
        File::from(writer).write_all(b"0123456789").unwrap();
        bench.settle();
        assert_eq!(bench.port.seen(), b"012");
        bench.make_room(100);
        assert_eq!(bench.port.seen(), b"0123456789");
        assert!(bench.has_ended());
    }

    #[test]
    fn a_regular_file_is_read_in_steps_as_there_is_room() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.rewind().unwrap();
        let mut bench = Bench::new(file, 600);
        bench.settle();
        assert_eq!(bench.port.seen(), bytes[..600]);
        bench.make_room(100_000);
        while bench.input.is_live() {
            bench.settle();
        }
        assert_eq!(bench.port.seen(), bytes);
        assert!(bench.has_ended());
    }

    #[test]
    fn inputs_without_bytes_end_quietly() {
        let folder = tempfile::tempdir().unwrap();
        let write_only = File::create(folder.path().join("file")).unwrap();
        for file in [File::open("/dev/null").unwrap(), File::open(folder.path()).unwrap(), write_only] {
            let mut bench = Bench::new(file, 100);
            bench.settle();
            assert!(bench.has_ended());
            assert!(bench.port.seen().is_empty());
            bench.make_room(100);
        }
    }

    #[test]
    fn without_a_front_end_nothing_is_read() {
        let mut event_loop = event_loop();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let front = Arc::new(Attached::default());
        let input = Input::new(&event_loop.handle(), &front, |_| ());
        input.start_soon(Arc::new(reader));
        nix::unistd::write(&writer, b"early").unwrap();
        settle(&mut event_loop);
        let port = Port::new(100);
        front.set(port.weak());
        input.resume();
        settle(&mut event_loop);
        assert_eq!(port.seen(), b"early");
    }

    #[test]
    fn a_reader_that_sleeps_leaves_the_bytes_to_others() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut bench = Bench::new(reader, 100);
        bench.settle();
        bench.input.set_asleep(true, &mut bench.event_loop);
        nix::unistd::write(&writer, b"x").unwrap();
        bench.settle();
        assert!(bench.port.seen().is_empty());
        bench.input.set_asleep(false, &mut bench.event_loop);
        bench.settle();
        assert_eq!(bench.port.seen(), b"x");
    }

    #[test]
    fn a_dropped_reader_is_forgotten_by_the_loop() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut bench = Bench::new(reader, 100);
        bench.settle();
        let Bench { mut event_loop, port, input, .. } = bench;
        drop(input);
        settle(&mut event_loop);
        assert_eq!(nix::unistd::write(&writer, b"x"), Err(Errno::EPIPE), "its end of the pipe is closed");
        assert!(port.seen().is_empty());
    }
}
