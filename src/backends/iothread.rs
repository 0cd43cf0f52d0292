//! Threads that serve devices: each waits for the descriptors and deadlines of those that it serves. A device has threads of
//! its own, or those that `--object iothread` makes for several.
//!
//! Locks: a thread's list of those that it serves -> nothing; one that is served is locked for as long as it is at work, and
//! whoever takes it off the thread waits for that.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::gettid;
use parking_lot::Mutex;

use crate::device::ObjectCx;
use crate::error::{Error, Result, explain_io};
use crate::object::{Create, Kind, Refers, TypeInfo, props, reference};

/// Events taken by one system call.
const BATCH: usize = 16;
/// The longest name of a thread (TASK_COMM_LEN without its end).
const MAX_NAME: usize = 15;
/// The event that says that something has changed; sources are named by their owner's key and their index.
const CHANGED: u64 = u64::MAX;

/// A row of the table of objects.
pub static TYPE: TypeInfo<(), ObjectCx> = TypeInfo::of::<IoThreadType>();

reference! {
    /// The id of a thread that serves.
    pub struct IoThreadRef(Refers { kind: Kind::Object, types: &["iothread"], shared: true });
}

props! {
    /// A thread that serves the disks of several devices.
    struct IoThreadProps {}
}

struct IoThreadType;

impl Create<(), ObjectCx> for IoThreadType {
    const NAME: &'static str = "iothread";
    const GROUP: &'static str = "Back ends";
    type Props = IoThreadProps;

    fn create(_: IoThreadProps, cx: &ObjectCx) -> Result<()> {
        cx.backends.iothreads.add(cx.id.clone(), Self::NAME, Arc::new(IoThread::start(&cx.id)?), true)
    }
}

/// What is done for a device. Called on its thread only.
pub trait Serve: Send {
    /// The source with this index is ready. Eventfds were emptied before.
    fn ready(&mut self, source: usize);

    /// Whether this source, a descriptor that becomes readable or writable, is not waited for now. Asked after each call.
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

/// What is waited for.
pub enum Source {
    /// An eventfd, which is emptied before the call.
    Event(Arc<EventFd>),
    /// Anything else that becomes readable.
    Readable(Arc<OwnedFd>),
    /// What becomes writable.
    Writable(Arc<OwnedFd>),
}

impl Source {
    fn wanted(&self) -> EpollFlags {
        match self {
            Source::Event(_) | Source::Readable(_) => EpollFlags::EPOLLIN,
            Source::Writable(_) => EpollFlags::EPOLLOUT,
        }
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Source::Event(fd) => fd.as_fd(),
            Source::Readable(fd) | Source::Writable(fd) => fd.as_fd(),
        }
    }
}

/// A running thread. Dropping it returns when it has ended.
pub struct IoThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// The kernel's number of the thread; 0 until it runs.
    id: AtomicI32,
    epoll: Epoll,
    changed: EventFd,
    served: Mutex<Served>,
}

#[derive(Default)]
struct Served {
    by_key: BTreeMap<u32, Arc<Slot>>,
    next: u32,
    stop: bool,
}

/// `None` once it is off the thread.
type Slot = Mutex<Option<Active>>;

/// What is served, with what it waits for.
struct Active {
    key: u32,
    serve: Box<dyn Serve>,
    sources: Vec<Source>,
    /// Which of them the thread waits for.
    armed: Vec<bool>,
    /// Whether the thread has not yet looked at it.
    fresh: bool,
}

impl IoThread {
    /// Starts a thread, which serves nobody yet.
    ///
    /// # Errors
    /// [`crate::error::Code::SystemFailed`]: no thread or descriptor is left.
    pub fn start(name: &str) -> Result<IoThread> {
        let failed = |error: io::Error| Error::system("start a device's thread", &error);
        let name: String = name.chars().take(MAX_NAME).collect();
        let shared = Arc::new(Shared::new().map_err(failed)?);
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || run(&of_thread)).map_err(failed)?;
        Ok(IoThread { shared, thread: Some(thread) })
    }

    /// The kernel's number of the thread; 0 until it runs.
    pub fn thread_id(&self) -> i32 {
        self.shared.id.load(Ordering::Relaxed)
    }

    /// Has the thread serve this, too, until [`IoThread::end`]. It finds every source ready once at first: what came before
    /// is not lost. Gives the key for the end.
    ///
    /// # Errors
    /// [`crate::error::Code::SystemFailed`]: no descriptor can be waited for.
    pub fn serve(&self, sources: Vec<Source>, serve: impl Serve + 'static) -> Result<u32> {
        let mut served = self.shared.served.lock();
        // Keys are not used again: an event that was fetched for one that has gone finds nobody.
        let key = served.next;
        served.next = served.next.wrapping_add(1);
        let armed = vec![false; sources.len()];
        let mut active = Active { key, serve: Box::new(serve), sources, armed, fresh: true };
        if let Err(error) = active.rearm(&self.shared.epoll) {
            active.disarm(&self.shared.epoll);
            return Err(Error::system("start a device's thread", &error));
        }
        served.by_key.insert(key, Arc::new(Mutex::new(Some(active))));
        drop(served);
        self.shared.tell();
        Ok(key)
    }

    /// Takes it off the thread; returns when it is not at work any more. Not for the thread itself.
    pub fn end(&self, key: u32) {
        let Some(slot) = self.shared.served.lock().by_key.remove(&key) else { return };
        if let Some(active) = slot.lock().take() {
            active.disarm(&self.shared.epoll);
        }
        // The thread lets go of its place.
        self.shared.tell();
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.shared.served.lock().stop = true;
        self.shared.tell();
        // A thread that panicked has ended, too, and has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Shared {
    fn new() -> io::Result<Shared> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let changed = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&changed, EpollEvent::new(EpollFlags::EPOLLIN, CHANGED))?;
        Ok(Shared { id: AtomicI32::new(0), epoll, changed, served: Mutex::default() })
    }

    fn tell(&self) {
        // EAGAIN would mean that the counter is at its maximum: readable all the same.
        let _ = self.changed.write(1);
    }

    /// Those that are served now; `None`: the thread is to end.
    fn list(&self) -> Option<BTreeMap<u32, Arc<Slot>>> {
        // EAGAIN: nobody has said anything.
        let _ = self.changed.read();
        let served = self.served.lock();
        (!served.stop).then(|| served.by_key.clone())
    }
}

impl Active {
    /// Waits for what is wanted. A descriptor that is not is taken out: a hang-up would be told else.
    fn rearm(&mut self, epoll: &Epoll) -> io::Result<()> {
        for (index, (source, armed)) in self.sources.iter().zip(&mut self.armed).enumerate() {
            let wanted = matches!(source, Source::Event(_)) || !self.serve.paused(index);
            match (*armed, wanted) {
                (false, true) => {
                    let name = u64::from(self.key) << 32 | index as u64;
                    epoll.add(source, EpollEvent::new(source.wanted(), name))?;
                }
                (true, false) => epoll.delete(source)?,
                _ => {}
            }
            *armed = wanted;
        }
        Ok(())
    }

    fn disarm(&self, epoll: &Epoll) {
        for (source, _) in self.sources.iter().zip(&self.armed).filter(|(_, armed)| **armed) {
            // It was added and is open.
            let _ = epoll.delete(source);
        }
    }

    /// What is to be done before the thread waits; gives when it has to be back.
    fn prepare(&mut self, epoll: &Epoll) -> io::Result<Option<Instant>> {
        if std::mem::take(&mut self.fresh) {
            (0..self.sources.len()).for_each(|index| self.serve.ready(index));
        }
        self.rearm(epoll)?;
        Ok(self.serve.deadline())
    }

    fn ready(&mut self, index: usize) {
        if let Some(Source::Event(fd)) = self.sources.get(index) {
            // EAGAIN: somebody else has emptied it.
            let _ = fd.read();
        }
        self.serve.ready(index);
    }
}

fn run(shared: &Shared) {
    shared.id.store(gettid().as_raw(), Ordering::Relaxed);
    let Some(mut served) = shared.list() else { return };
    let mut events = [EpollEvent::empty(); BATCH];
    loop {
        let mut deadline: Option<Instant> = None;
        for slot in served.values() {
            let mut slot = slot.lock();
            match slot.as_mut().map(|active| active.prepare(&shared.epoll)) {
                None => {}
                Some(Ok(own)) => deadline = deadline.into_iter().chain(own).min(),
                Some(Err(error)) => {
                    crate::log::warn(format_args!("a device's thread cannot wait: {}", explain_io(&error)));
                    *slot = None;
                }
            }
        }
        let count = match shared.epoll.wait(&mut events, timeout(deadline)) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            // The descriptor is ours and open: there is nothing else that it could say.
            Err(error) => return crate::log::warn(format_args!("a device's thread cannot wait: {error}")),
        };
        let ready = &events[..count];
        // Before anything else, so that an owner does not wait for what comes meanwhile.
        if ready.iter().any(|event| event.data() == CHANGED) {
            match shared.list() {
                Some(list) => served = list,
                None => return,
            }
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            served.values().for_each(|slot| expire(slot));
        }
        for event in ready.iter().filter(|event| event.data() != CHANGED) {
            let (key, index) = ((event.data() >> 32) as u32, (event.data() & u64::from(u32::MAX)) as usize);
            if let Some(active) = served.get(&key).map(|slot| slot.lock()).as_deref_mut().and_then(Option::as_mut) {
                active.ready(index);
            }
        }
    }
}

fn expire(slot: &Slot) {
    if let Some(active) = slot.lock().as_mut()
        && active.serve.deadline().is_some_and(|deadline| deadline <= Instant::now())
    {
        active.serve.expired();
    }
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
        let thread = IoThread::start("a-name-that-is-too-long").unwrap();
        let key = thread.serve(vec![Source::Event(a), Source::Event(b.clone())], Tell(sender, None)).unwrap();
        assert_eq!([told.recv().unwrap(), told.recv().unwrap()], [Some(0), Some(1)]);
        b.write(3).unwrap();
        assert_eq!(told.recv().unwrap(), Some(1));
        thread.end(key);
        b.write(1).unwrap();
        assert!(told.recv().is_err(), "it is dropped");
        assert_eq!(b.read().unwrap(), 1);
    }

    #[test]
    fn a_deadline_is_told_once() {
        let (sender, told) = channel();
        let soon = Instant::now() + Duration::from_millis(1);
        let thread = IoThread::start("t").unwrap();
        thread.serve(Vec::new(), Tell(sender, Some(soon))).unwrap();
        assert_eq!(told.recv().unwrap(), None);
    }

    #[test]
    fn several_are_served_by_one_thread_and_go_one_by_one() {
        let thread = IoThread::start("t").unwrap();
        let mut served: Vec<_> = (0..3)
            .map(|_| {
                let ((sender, told), kick) = (channel(), event());
                let key = thread.serve(vec![Source::Event(kick.clone())], Tell(sender, None)).unwrap();
                assert_eq!(told.recv().unwrap(), Some(0));
                (key, told, kick)
            })
            .collect();
        while let Some((key, told, kick)) = served.pop() {
            for (_, told, kick) in served.iter().chain([&(key, told, kick.clone())]) {
                kick.write(1).unwrap();
                assert_eq!(told.recv().unwrap(), Some(0));
            }
            thread.end(key);
            kick.write(1).unwrap();
            assert_eq!(kick.read().unwrap(), 1, "nobody empties it any more");
        }
    }

    #[test]
    fn what_cannot_be_waited_for_is_refused_and_leaves_nothing() {
        let (sender, told) = channel();
        let (kick, thread) = (event(), IoThread::start("t").unwrap());
        let twice = || vec![Source::Event(kick.clone()), Source::Event(kick.clone())];
        assert!(thread.serve(twice(), Tell(sender.clone(), None)).is_err());
        thread.serve(vec![Source::Event(kick.clone())], Tell(sender, None)).unwrap();
        assert_eq!(told.recv().unwrap(), Some(0));
    }
}
