//! A descriptor that a thread of its own writes, so that a slow one never blocks a vCPU.
//!
//! Bytes wait in a bounded queue. When it is full the back end is not ready, which a serial port shows to its guest as a
//! full transmitter: a slow reader slows the guest's console down and loses nothing. When the descriptor takes nothing
//! for [`STALL`] (a terminal after Ctrl-S, a pipe whose reader sleeps) and the guest still asks, the back end claims to be
//! ready and drops what does not fit: a guest must not be held up by its console for ever. The loss is told once.
//!
//! The descriptor may come and go, as the client of a socket does. Without one all bytes are dropped, as by a cable that
//! leads nowhere.
//!
//! The lock protects the queue alone; it is never held during a system call or a callback.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::Attached;
use crate::error::{Code, Error, Result, explain_io};
use crate::log::warn;

/// Most bytes that wait for the descriptor.
const MAX_QUEUED: usize = 64 << 10;
/// The queue counts as full from here on: the UART's FIFO, and what the guest sends before it looks again, must fit.
const HIGH_WATER: usize = MAX_QUEUED - 4096;
/// A back end that was full is ready again from here on.
const LOW_WATER: usize = MAX_QUEUED / 2;
/// How long a full queue may stand still before its bytes are dropped.
const STALL: Duration = Duration::from_secs(1);
/// How long the first byte waits for others: a guest sends one byte with each exit, and a system call for each byte
/// would cost more than the exit.
const GATHER: Duration = Duration::from_millis(1);
/// How long the end of the process waits for a descriptor that takes nothing.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// The thread needs little stack: its buffer is on the heap.
const STACK_SIZE: usize = 64 << 10;

/// What bytes are written to: a file, pipe, terminal or socket. Dropping it writes what waits, for at most 2 s.
pub struct Output {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    queue: Mutex<Queue>,
    /// Wakes the writer: there are bytes, or enough of them, or no reason to gather more.
    wake: Condvar,
    /// Wakes `flush`: everything is written, or the writer has ended.
    idle: Condvar,
    /// Whom to tell that there is room again.
    front: Arc<Attached>,
}

/// A descriptor that is written to.
struct Target {
    fd: Arc<OwnedFd>,
    /// Readable when nothing more shall be written.
    stop: EventFd,
}

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Where they go; `None`: nowhere.
    target: Option<Arc<Target>>,
    /// The writer holds bytes that it has taken out of `bytes`.
    writing: bool,
    /// The writer sleeps until there are bytes.
    sleeping: bool,
    /// The writer lets bytes gather; many need not wait for more.
    gathering: bool,
    /// Somebody waits for everything to be written: do not gather.
    hurry: bool,
    closing: bool,
    /// Since when the queue has been full without a byte leaving it.
    full_since: Option<Instant>,
    /// The back end has said that it is not ready.
    refused: bool,
    dropped: u64,
}

impl Output {
    /// What writes to standard output.
    ///
    /// # Errors
    /// The system refuses a descriptor or a thread.
    pub fn stdout(front: &Arc<Attached>) -> Result<Output> {
        let fd = io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::system("duplicate standard output", &error))?;
        Output::to("standard output", Arc::new(fd), front)
    }

    /// What writes to a file, which is made, and emptied unless `append` says otherwise.
    ///
    /// # Errors
    /// [`Code::FileUnusable`] if the file cannot be written; or the system refuses a thread.
    pub fn file(path: &Path, append: bool, front: &Arc<Attached>) -> Result<Output> {
        let opened = File::options().write(true).create(true).append(append).truncate(!append).open(path);
        let file = opened.map_err(|error| {
            Error::new(Code::FileUnusable, "the file for a character back end's output cannot be written")
                .evidence(format!("{}: {}", path.display(), explain_io(&error)))
        })?;
        Output::to(&path.display().to_string(), Arc::new(file.into()), front)
    }

    /// Starts the writer of `fd`; `name` names it in warnings.
    ///
    /// # Errors
    /// The system refuses a thread or a descriptor.
    pub fn to(name: &str, fd: Arc<OwnedFd>, front: &Arc<Attached>) -> Result<Output> {
        let output = Output::unconnected(name, front)?;
        output.connect(fd)?;
        Ok(output)
    }

    /// Starts a writer that has nothing to write to yet.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn unconnected(name: &str, front: &Arc<Attached>) -> Result<Output> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            queue: Mutex::default(),
            wake: Condvar::new(),
            idle: Condvar::new(),
            front: front.clone(),
        });
        let writer = Writer { shared: Arc::clone(&shared), told_loss: false, told_error: false };
        thread::Builder::new()
            .name("chardev".to_owned())
            .stack_size(STACK_SIZE)
            .spawn(move || writer.run())
            .map_err(|error| Error::system(format!("start the thread that writes {name}"), &error))?;
        Ok(Output { shared })
    }

    /// Bytes go to `fd` from now on.
    ///
    /// # Errors
    /// The system refuses a descriptor.
    pub fn connect(&self, fd: Arc<OwnedFd>) -> Result<()> {
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| Error::system("make an eventfd", &errno.into()))?;
        self.shared.queue.lock().target = Some(Arc::new(Target { fd, stop }));
        Ok(())
    }

    /// Bytes go nowhere from now on; those that wait are dropped.
    pub fn disconnect(&self) {
        let mut queue = self.shared.queue.lock();
        if let Some(target) = queue.target.take() {
            // Fails only if the counter is about to overflow, and then it is readable.
            let _ = target.stop.write(1);
        }
        queue.bytes.clear();
        let announce = queue.progressed();
        drop(queue);
        if announce {
            self.shared.announce();
        }
    }

    /// Takes bytes; see [`super::Chardev::write`].
    pub fn write(&self, data: &[u8]) {
        let mut queue = self.shared.queue.lock();
        if queue.target.is_none() {
            return;
        }
        let room = MAX_QUEUED.saturating_sub(queue.bytes.len());
        let (taken, dropped) = data.split_at(room.min(data.len()));
        queue.bytes.extend(taken);
        queue.dropped = queue.dropped.saturating_add(u64::try_from(dropped.len()).unwrap_or(u64::MAX));
        let enough = queue.gathering && queue.bytes.len() >= LOW_WATER;
        if enough || queue.sleeping && !queue.bytes.is_empty() {
            (queue.sleeping, queue.gathering) = (false, false);
            drop(queue);
            self.shared.wake.notify_one();
        }
    }

    /// See [`super::Chardev::ready`].
    pub fn ready(&self) -> bool {
        self.shared.queue.lock().ready(Instant::now)
    }

    /// See [`super::Chardev::flush`].
    pub fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut queue = self.shared.queue.lock();
        queue.hurry = true;
        self.shared.wake.notify_one();
        while !queue.is_idle() {
            if self.shared.idle.wait_until(&mut queue, deadline).timed_out() {
                break;
            }
        }
        queue.hurry = false;
        queue.is_idle()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.flush(CLOSE_LIMIT);
        let mut queue = self.shared.queue.lock();
        queue.closing = true;
        // A writer that waits for room is woken; one that hangs in a system call is left to the end of the process.
        if let Some(target) = queue.target.take() {
            let _ = target.stop.write(1);
        }
        drop(queue);
        self.shared.wake.notify_one();
    }
}

impl Shared {
    fn announce(&self) {
        if let Some(front) = self.front.get() {
            front.output_ready();
        }
    }
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.bytes.is_empty() && !self.writing
    }

    /// See [`super::Chardev::ready`]. The clock is only read while the queue is full.
    fn ready(&mut self, now: impl FnOnce() -> Instant) -> bool {
        if self.bytes.len() < HIGH_WATER {
            return true;
        }
        let now = now();
        let since = *self.full_since.get_or_insert(now);
        let stalled = now.saturating_duration_since(since) >= STALL;
        self.refused |= !stalled;
        stalled
    }

    /// Notes that bytes have left; says whether it has to be announced that there is room again.
    fn progressed(&mut self) -> bool {
        self.full_since = None;
        self.refused && self.bytes.len() <= LOW_WATER && std::mem::take(&mut self.refused)
    }
}

/// The thread's side.
struct Writer {
    shared: Arc<Shared>,
    told_loss: bool,
    told_error: bool,
}

impl Writer {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut batch = VecDeque::new();
        let mut queue = shared.queue.lock();
        loop {
            self.wait_for_bytes(&mut queue);
            if queue.bytes.is_empty() {
                return;
            }
            std::mem::swap(&mut queue.bytes, &mut batch);
            let target = queue.target.clone();
            queue.writing = true;
            let announce = queue.progressed();
            drop(queue);
            if announce {
                shared.announce();
            }
            let result = target.map_or(Ok(()), |target| target.write_all(batch.make_contiguous()));
            batch.clear();
            queue = shared.queue.lock();
            queue.writing = false;
            let dropped = std::mem::take(&mut queue.dropped);
            if queue.is_idle() {
                shared.idle.notify_all();
            }
            if dropped > 0 || result.is_err() {
                drop(queue);
                self.tell(dropped, result);
                queue = shared.queue.lock();
            }
        }
    }

    /// Returns with bytes in the queue, or with none when it is closed.
    fn wait_for_bytes(&self, queue: &mut MutexGuard<'_, Queue>) {
        while queue.bytes.is_empty() {
            if queue.closing {
                return;
            }
            queue.sleeping = true;
            self.shared.wake.wait(queue);
        }
        queue.sleeping = false;
        if !queue.hurry && !queue.closing && queue.bytes.len() < LOW_WATER {
            queue.gathering = true;
            self.shared.wake.wait_for(queue, GATHER);
            queue.gathering = false;
        }
    }

    /// Warns once of a loss and once of an error. Called when the descriptor has moved again, because standard error
    /// is often the same terminal.
    fn tell(&mut self, dropped: u64, result: nix::Result<()>) {
        let name = &self.shared.name;
        if dropped > 0 && !std::mem::replace(&mut self.told_loss, true) {
            warn(format_args!("{name}: it took no bytes for too long, {dropped} of the guest's bytes were lost"));
        }
        // A client that goes away while it is written to is nothing to tell of.
        let gone = [Errno::EPIPE, Errno::ECONNRESET, Errno::ECANCELED];
        if let Err(errno) = result
            && !gone.contains(&errno)
            && !std::mem::replace(&mut self.told_error, true)
        {
            warn(format_args!("{name}: bytes were lost: {} ({errno:?})", errno.desc()));
        }
    }
}

impl Target {
    /// Writes everything, however long the descriptor takes.
    fn write_all(&self, mut bytes: &[u8]) -> nix::Result<()> {
        while !bytes.is_empty() {
            match nix::unistd::write(&*self.fd, bytes) {
                Ok(0) => return Err(Errno::EIO),
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                // A socket; or somebody else who shares the open file (a shell, a parent) has made it non-blocking.
                Err(Errno::EAGAIN) => self.wait_for_room()?,
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    fn wait_for_room(&self) -> nix::Result<()> {
        let room = PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT);
        let mut fds = [room, PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
        match nix::poll::poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        match fds[1].any() {
            Some(true) => Err(Errno::ECANCELED),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::mpsc;

    use super::*;
    use crate::backends::chardev::FrontEnd;

    const LONG: Duration = Duration::from_secs(60);

    fn output(fd: OwnedFd) -> Output {
        Output::to("test", Arc::new(fd), &Arc::default()).unwrap()
    }

    #[test]
    fn bytes_arrive_in_order_without_a_flush() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let output = output(writer);
        let mut seen = [0; 3];
        for byte in *b"abc" {
            output.write(&[byte]);
        }
        File::from(reader).read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"abc");
    }

    #[test]
    fn drop_writes_what_waits() {
        let mut file = tempfile::tempfile().unwrap();
        let output = output(file.try_clone().unwrap().into());
        let bytes: Vec<u8> = (0..50_000u32).map(|n| n as u8).collect();
        bytes.chunks(7).for_each(|chunk| output.write(chunk));
        drop(output);
        let mut seen = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, bytes);
    }

    #[test]
    fn file_is_emptied_and_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        std::fs::write(&path, "old content").unwrap();
        for (append, text, content) in [(false, &b"new"[..], &b"new"[..]), (true, b"er", b"newer")] {
            let output = Output::file(&path, append, &Arc::default()).unwrap();
            output.write(text);
            assert!(output.flush(LONG));
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        let error = Output::file(&folder.path().join("no/console"), false, &Arc::default()).map(drop).unwrap_err();
        assert_eq!(error.code(), Code::FileUnusable);
    }

    /// A front end that only tells that it was called back.
    struct Teller(Mutex<mpsc::Sender<()>>);

    impl FrontEnd for Teller {
        fn room(&self) -> usize {
            0
        }
        fn input(&self, _: &[u8]) {}
        fn output_ready(&self) {
            self.0.lock().send(()).unwrap();
        }
    }

    #[test]
    fn slow_reader_is_waited_for_and_announced() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (sender, receiver) = mpsc::channel();
        let teller: Arc<dyn FrontEnd> = Arc::new(Teller(Mutex::new(sender)));
        let front = Arc::new(Attached::default());
        front.set(Arc::downgrade(&teller));
        let output = Output::to("test", Arc::new(writer), &front).unwrap();
        let mut sent = 0u64;
        while output.ready() {
            output.write(&[1; 1000]);
            sent += 1000;
        }
        let counter = thread::spawn(move || io::copy(&mut File::from(reader), &mut io::sink()).unwrap());
        receiver.recv_timeout(LONG).expect("room is announced");
        assert!(output.ready());
        drop(output);
        assert_eq!(counter.join().unwrap(), sent);
    }

    #[test]
    fn full_queue_drops_and_never_grows() {
        let (_reader, writer) = nix::unistd::pipe().unwrap();
        let output = output(writer);
        // Until the pipe is full too, and the writer hangs.
        while output.flush(Duration::from_millis(100)) {
            for _ in 0..1000 {
                output.write(&[1; 1000]);
                assert!(output.shared.queue.lock().bytes.len() <= MAX_QUEUED);
            }
        }
        // It is left behind, as at the end of a process.
        std::mem::forget(output);
    }

    #[test]
    fn stalled_queue_claims_to_be_ready() {
        let mut queue = Queue { bytes: vec![0; HIGH_WATER].into(), ..Queue::default() };
        let start = Instant::now();
        assert!(!queue.ready(|| start));
        assert!(!queue.ready(|| start + STALL / 2));
        assert!(queue.ready(|| start + STALL));
        assert!(!queue.progressed(), "still above the low water mark");
        assert!(!queue.ready(|| start + STALL), "progress restarts the clock");
        queue.bytes.truncate(LOW_WATER);
        assert!(queue.progressed());
        assert!(!queue.progressed(), "announced once");
    }

    #[test]
    fn what_has_no_descriptor_drops_and_is_ready() {
        let output = Output::unconnected("test", &Arc::default()).unwrap();
        output.write(b"nobody hears this");
        let (reader, writer) = nix::unistd::pipe().unwrap();
        output.connect(Arc::new(writer)).unwrap();
        output.write(b"first");
        assert!(output.flush(LONG));
        output.disconnect();
        output.write(b"nor this");
        assert!(output.ready() && output.flush(LONG));
        let mut seen = Vec::new();
        File::from(reader).read_to_end(&mut seen).unwrap();
        assert_eq!(seen, b"first");
    }

    #[test]
    fn a_writer_that_waits_for_room_lets_go() {
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        writer.set_nonblocking(true).unwrap();
        let output = output(writer.into());
        while output.flush(Duration::from_millis(100)) {
            (0..1000).for_each(|_| output.write(&[1; 1000]));
        }
        output.disconnect();
        assert!(output.flush(LONG), "although nobody has read");
        drop(reader);
    }

    #[test]
    fn reader_that_is_gone_is_no_obstacle() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let output = output(writer);
        output.write(b"lost");
        assert!(output.flush(LONG));
        assert!(output.ready());
    }
}
