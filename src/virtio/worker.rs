//! The thread that serves a device: it waits for kicks, other descriptors and a deadline, and ends when its owner says so.
//!
//! A device has one of its own, named by the device's id. Nothing else of a device knows of threads, so that several
//! devices can share one later.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::error::{Error, Result, explain_io};

/// Events taken by one system call.
const BATCH: usize = 16;
/// The longest name of a thread (TASK_COMM_LEN without its end).
const MAX_NAME: usize = 15;
/// The event of the stop; sources are named by their index.
const STOP: u64 = u64::MAX;

/// What a worker does. Called on its thread only.
pub trait Serve: Send {
    /// The source with this index is ready. Eventfds were emptied before.
    fn ready(&mut self, source: usize);

    /// Whether this source, a descriptor that becomes readable, is not waited for now. Asked after each call.
    fn paused(&self, _source: usize) -> bool {
        false
    }

    /// When [`Serve::expired`] is to be called, if at all.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The deadline is over.
    fn expired(&mut self) {}
}

/// What a worker waits for.
pub enum Source {
    /// An eventfd, which the worker empties.
    Event(Arc<EventFd>),
    /// Anything else that becomes readable.
    Readable(Arc<OwnedFd>),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Event(fd) => fd.as_fd(),
            Source::Readable(fd) => fd.as_fd(),
        }
    }
}

/// The name of a device's thread with this number.
pub fn name(id: &str, index: usize) -> String {
    match index {
        0 => id.to_owned(),
        index => format!("{id}.{index}"),
    }
}

/// A running worker. Dropping it returns when its thread has ended.
pub struct Worker {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread that first finds every source ready once: what came before it is not lost.
    ///
    /// # Errors
    /// [`crate::error::Code::SystemFailed`]: no thread or descriptor is left.
    pub fn start(name: &str, sources: Vec<Source>, serve: impl Serve + 'static) -> Result<Worker> {
        let failed = |error: io::Error| Error::system("start a device's thread", &error);
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|e| failed(e.into()))?;
        let stop = Arc::new(stop);
        let epoll = prepare(&stop, &sources).map_err(failed)?;
        let name: String = name.chars().take(MAX_NAME).collect();
        let thread =
            std::thread::Builder::new().name(name).spawn(move || run(&epoll, &sources, serve)).map_err(failed)?;
        Ok(Worker { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // EAGAIN would mean that the counter is at its maximum: readable all the same.
        let _ = self.stop.write(1);
        // A worker that panicked has ended, too, and has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn prepare(stop: &EventFd, sources: &[Source]) -> io::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
    for (index, source) in sources.iter().enumerate() {
        epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
    }
    Ok(epoll)
}

fn run(epoll: &Epoll, sources: &[Source], mut serve: impl Serve) {
    (0..sources.len()).for_each(|index| serve.ready(index));
    let mut armed = vec![true; sources.len()];
    let mut events = [EpollEvent::empty(); BATCH];
    loop {
        if let Err(error) = rearm(epoll, sources, &mut armed, &serve) {
            return crate::log::warn(format_args!("a device's thread cannot wait: {}", explain_io(&error)));
        }
        let count = match epoll.wait(&mut events, timeout(serve.deadline())) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            // The descriptor is ours and open: there is nothing else that it could say.
            Err(error) => return crate::log::warn(format_args!("a device's thread cannot wait: {error}")),
        };
        let ready = &events[..count];
        // Before anything else, so that the owner does not wait for what comes meanwhile.
        if ready.iter().any(|event| event.data() == STOP) {
            return;
        }
        if serve.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            serve.expired();
        }
        for index in ready.iter().filter_map(|event| usize::try_from(event.data()).ok()) {
            if let Some(Source::Event(fd)) = sources.get(index) {
                // EAGAIN: somebody else has emptied it.
                let _ = fd.read();
            }
            serve.ready(index);
        }
    }
}

/// Waits for what the worker wants to hear of. A descriptor that it does not is taken out: a hang-up would be told else.
fn rearm(epoll: &Epoll, sources: &[Source], armed: &mut [bool], serve: &impl Serve) -> io::Result<()> {
    for (index, (source, armed)) in sources.iter().zip(armed).enumerate() {
        let wanted = !matches!(source, Source::Readable(_)) || !serve.paused(index);
        match (*armed, wanted) {
            (false, true) => epoll.add(source, EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?,
            (true, false) => epoll.delete(source)?,
            _ => {}
        }
        *armed = wanted;
    }
    Ok(())
}

/// Rounded up, so that the deadline is over when the time is.
fn timeout(deadline: Option<Instant>) -> EpollTimeout {
    let Some(deadline) = deadline else { return EpollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now());
    let millis = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    EpollTimeout::try_from(millis).unwrap_or(EpollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    struct Tell(Sender<Option<usize>>, Option<Instant>);

    impl Serve for Tell {
        fn ready(&mut self, source: usize) {
            let _ = self.0.send(Some(source));
        }
        fn deadline(&self) -> Option<Instant> {
            self.1
        }
        fn expired(&mut self) {
            self.1 = None;
            let _ = self.0.send(None);
        }
    }

    fn event() -> Arc<EventFd> {
        Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap())
    }

    #[test]
    fn every_source_is_ready_at_first_then_when_it_is_signalled() {
        let (sender, told) = channel();
        let (a, b) = (event(), event());
        let worker = Worker::start(
            "a-name-that-is-too-long",
            vec![Source::Event(a), Source::Event(b.clone())],
            Tell(sender, None),
        )
        .unwrap();
        assert_eq!([told.recv().unwrap(), told.recv().unwrap()], [Some(0), Some(1)]);
        b.write(3).unwrap();
        assert_eq!(told.recv().unwrap(), Some(1));
        drop(worker);
        b.write(1).unwrap();
        assert!(told.recv().is_err(), "its thread has ended");
        assert_eq!(b.read().unwrap(), 1);
    }

    #[test]
    fn a_deadline_is_told_once() {
        let (sender, told) = channel();
        let soon = Instant::now() + Duration::from_millis(1);
        let _worker = Worker::start("t", Vec::new(), Tell(sender, Some(soon))).unwrap();
        assert_eq!(told.recv().unwrap(), None);
    }
}
