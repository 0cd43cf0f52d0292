//! The main thread's loop: level-triggered epoll, signals by signalfd, closures posted by other threads.
//!
//! Callbacks run on the main thread, one at a time, with no lock held, and get the loop to add and remove sources.
//! Two rules keep it from spinning: a source without interest is taken out of epoll (epoll reports a hang-up however
//! little one asks for), and a source that only reports a hang-up or an error is removed after its callback.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use parking_lot::Mutex;

/// The signals that the loop takes: those that end passthru in an orderly way, and those of job control.
pub const SIGNALS: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGCONT];

/// Events taken by one system call.
const BATCH: usize = 16;

/// Why [`EventLoop::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// [`EventLoop::stop`]: the process ends. Goes before a yield.
    Stopped,
    /// [`EventLoop::yield_now`]: there is work that needs more than a callback has.
    Yielded,
}

/// Names a source. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u64);

type Callback = Box<dyn FnMut(&mut EventLoop, EpollFlags)>;
type Posted = Box<dyn FnOnce(&mut EventLoop) + Send>;

struct Source {
    fd: Box<dyn AsFd>,
    interest: EpollFlags,
    /// Absent while it runs.
    callback: Option<Callback>,
}

struct Mailbox {
    /// Protects the posted closures; never held while one runs.
    posted: Mutex<Vec<Posted>>,
    wake: EventFd,
}

/// Reaches the loop from any thread.
#[derive(Clone)]
pub struct LoopHandle(Arc<Mailbox>);

impl LoopHandle {
    /// Runs `f` on the main thread, soon. Callers bound how often: a guest must not be able to fill the queue.
    pub fn post(&self, f: impl FnOnce(&mut EventLoop) + Send + 'static) {
        self.0.posted.lock().push(Box::new(f));
        // Fails only if the counter is about to overflow, and then the loop is awake.
        let _ = self.0.wake.write(1);
    }

    /// Makes [`EventLoop::run`] return.
    pub fn stop(&self) {
        self.post(EventLoop::stop);
    }
}

/// The loop. Make it before any thread is started: threads inherit the blocked signals.
pub struct EventLoop {
    epoll: Epoll,
    sources: HashMap<Token, Source>,
    next_token: u64,
    stopped: bool,
    yielded: bool,
    mailbox: Arc<Mailbox>,
}

impl EventLoop {
    /// A loop that calls `on_signal` for each of [`SIGNALS`], which are blocked in this thread and in those that it
    /// starts from now on.
    ///
    /// # Errors
    /// The system is out of descriptors or memory.
    pub fn new(mut on_signal: impl FnMut(&mut EventLoop, Signal) + 'static) -> io::Result<EventLoop> {
        let signals: SigSet = SIGNALS.into_iter().collect();
        signals.thread_block()?;
        let signal_fd = Arc::new(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?);
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let mailbox = Arc::new(Mailbox { posted: Mutex::default(), wake });
        let mut event_loop = EventLoop {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            sources: HashMap::new(),
            next_token: 0,
            stopped: false,
            yielded: false,
            mailbox: Arc::clone(&mailbox),
        };
        event_loop.add(WakeFd(mailbox), EpollFlags::EPOLLIN, |event_loop, _| event_loop.run_posted())?;
        event_loop.add(Arc::clone(&signal_fd), EpollFlags::EPOLLIN, move |event_loop, _| {
            while let Ok(Some(info)) = signal_fd.read_signal() {
                let number = i32::try_from(info.ssi_signo).ok();
                if let Some(signal) = number.and_then(|number| Signal::try_from(number).ok()) {
                    on_signal(event_loop, signal);
                }
            }
        })?;
        Ok(event_loop)
    }

    /// A handle for other threads.
    pub fn handle(&self) -> LoopHandle {
        LoopHandle(Arc::clone(&self.mailbox))
    }

    /// Calls `callback` whenever `fd` is ready as `interest` says. The loop owns `fd` until the source is removed.
    ///
    /// # Errors
    /// EPERM: `fd` is always ready and cannot be waited for (a regular file, /dev/null).
    pub fn add(
        &mut self,
        fd: impl AsFd + 'static,
        interest: EpollFlags,
        callback: impl FnMut(&mut EventLoop, EpollFlags) + 'static,
    ) -> io::Result<Token> {
        let token = Token(self.next_token);
        self.next_token += 1;
        self.epoll.add(&fd, EpollEvent::new(interest, token.0))?;
        self.sources.insert(token, Source { fd: Box::new(fd), interest, callback: Some(Box::new(callback)) });
        Ok(token)
    }

    /// Changes what is waited for; an empty `interest` pauses the source. Without effect on one that is removed.
    ///
    /// # Errors
    /// The kernel is out of memory.
    pub fn set_interest(&mut self, token: Token, interest: EpollFlags) -> io::Result<()> {
        let Some(source) = self.sources.get_mut(&token) else { return Ok(()) };
        match (source.interest.is_empty(), interest.is_empty()) {
            (true, true) => {}
            (true, false) => self.epoll.add(&source.fd, EpollEvent::new(interest, token.0))?,
            (false, true) => self.epoll.delete(&source.fd)?,
            (false, false) => self.epoll.modify(&source.fd, &mut EpollEvent::new(interest, token.0))?,
        }
        source.interest = interest;
        Ok(())
    }

    /// Forgets a source. Without effect on one that is already removed.
    pub fn remove(&mut self, token: Token) {
        if let Some(source) = self.sources.remove(&token)
            && !source.interest.is_empty()
        {
            // Explicit, because another descriptor of the same open file would keep the registration alive. It cannot
            // fail for a registered descriptor.
            let _ = self.epoll.delete(&source.fd);
        }
    }

    /// Makes [`EventLoop::run`] return once the current callback is done; a stop before `run` counts too.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// As [`EventLoop::stop`], for work that the owner of the loop does before it runs the loop again.
    pub fn yield_now(&mut self) {
        self.yielded = true;
    }

    /// Runs callbacks until [`EventLoop::stop`] or [`EventLoop::yield_now`]. May be called again.
    ///
    /// # Errors
    /// The kernel's epoll fails, which it does not in a sound process.
    pub fn run(&mut self) -> io::Result<Return> {
        self.run_until(None)
    }

    /// As [`EventLoop::run`]; yields when `deadline` has come, too.
    ///
    /// # Errors
    /// As [`EventLoop::run`].
    pub fn run_until(&mut self, deadline: Option<Instant>) -> io::Result<Return> {
        loop {
            if std::mem::take(&mut self.stopped) {
                return Ok(Return::Stopped);
            }
            if std::mem::take(&mut self.yielded) {
                return Ok(Return::Yielded);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(Return::Yielded);
            }
            // Rounded up, or the last millisecond would be spent in a loop.
            let timeout = left.map(|left| i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX));
            self.wait(timeout.and_then(|ms| EpollTimeout::try_from(ms).ok()).unwrap_or(EpollTimeout::NONE))?;
        }
    }

    /// Waits for events, at most for `timeout`, and runs their callbacks.
    fn wait(&mut self, timeout: EpollTimeout) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = match self.epoll.wait(&mut events, timeout) {
            Err(Errno::EINTR) => 0,
            result => result?,
        };
        for event in events.iter().take(count) {
            if self.stopped || self.yielded {
                break;
            }
            self.dispatch(Token(event.data()), event.events());
        }
        Ok(())
    }

    fn dispatch(&mut self, token: Token, ready: EpollFlags) {
        // An earlier callback of this batch may have removed the source or paused it.
        let Some(source) = self.sources.get_mut(&token) else { return };
        if source.interest.is_empty() {
            return;
        }
        let Some(mut callback) = source.callback.take() else { return };
        callback(self, ready);
        if let Some(source) = self.sources.get_mut(&token) {
            source.callback = Some(callback);
        }
        if !ready.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLPRI) {
            self.remove(token);
        }
    }

    fn run_posted(&mut self) {
        // Emptied before the closures are taken: one posted in between wakes the loop again.
        let _ = self.mailbox.wake.read();
        let posted = std::mem::take(&mut *self.mailbox.posted.lock());
        for f in posted {
            f(self);
        }
    }
}

/// The mailbox as a descriptor to wait for.
struct WakeFd(Arc<Mailbox>);

impl AsFd for WakeFd {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    use std::thread;

    use super::*;

    fn quiet() -> EventLoop {
        EventLoop::new(|_, signal| panic!("{signal}")).unwrap()
    }

    #[test]
    fn posts_run_in_order_on_the_loops_thread() {
        let mut event_loop = quiet();
        let (handle, main) = (event_loop.handle(), thread::current().id());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sender = Arc::clone(&seen);
        let poster = thread::spawn(move || {
            for number in 0..100 {
                let seen = Arc::clone(&sender);
                handle.post(move |_| seen.lock().push((number, thread::current().id())));
            }
            handle.stop();
        });
        event_loop.run().unwrap();
        poster.join().unwrap();
        assert_eq!(*seen.lock(), (0..100).map(|number| (number, main)).collect::<Vec<_>>());
    }

    #[test]
    fn stop_before_run_counts_once() {
        let mut event_loop = quiet();
        event_loop.stop();
        event_loop.run().unwrap();
        event_loop.handle().stop();
        event_loop.run().unwrap();
    }

    #[test]
    fn a_yield_returns_and_a_stop_goes_before_it() {
        let mut event_loop = quiet();
        event_loop.yield_now();
        event_loop.stop();
        assert_eq!(event_loop.run().unwrap(), Return::Stopped);
        assert_eq!(event_loop.run().unwrap(), Return::Yielded);
        event_loop.handle().post(EventLoop::yield_now);
        assert_eq!(event_loop.run().unwrap(), Return::Yielded);
    }

    #[test]
    fn hang_up_without_data_removes_the_source() {
        let mut event_loop = quiet();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let calls = Rc::new(Cell::new(0));
        let counter = Rc::clone(&calls);
        let token = event_loop
            .add(reader, EpollFlags::EPOLLIN, move |_, ready| {
                assert!(ready.contains(EpollFlags::EPOLLHUP));
                counter.set(counter.get() + 1);
            })
            .unwrap();
        drop(writer);
        for _ in 0..3 {
            event_loop.wait(EpollTimeout::ZERO).unwrap();
        }
        assert_eq!(calls.get(), 1);
        assert!(!event_loop.sources.contains_key(&token));
        event_loop.remove(token);
        event_loop.set_interest(token, EpollFlags::EPOLLIN).unwrap();
    }

    #[test]
    fn paused_source_is_silent_even_on_hang_up() {
        let mut event_loop = quiet();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let calls = Rc::new(Cell::new(0));
        let counter = Rc::clone(&calls);
        let token = event_loop.add(reader, EpollFlags::EPOLLIN, move |_, _| counter.set(counter.get() + 1)).unwrap();
        nix::unistd::write(&writer, b"x").unwrap();
        drop(writer);
        event_loop.set_interest(token, EpollFlags::empty()).unwrap();
        event_loop.set_interest(token, EpollFlags::empty()).unwrap();
        event_loop.wait(EpollTimeout::ZERO).unwrap();
        assert_eq!(calls.get(), 0);
        event_loop.set_interest(token, EpollFlags::EPOLLIN).unwrap();
        event_loop.wait(EpollTimeout::ZERO).unwrap();
        assert_eq!(calls.get(), 1);
    }

    #[test]
    fn callback_may_remove_itself_and_others() {
        let mut event_loop = quiet();
        let calls = Rc::new(Cell::new(0));
        let tokens: Rc<RefCell<Vec<Token>>> = Rc::default();
        for _ in 0..2 {
            let (calls, all) = (Rc::clone(&calls), Rc::clone(&tokens));
            let fd = EventFd::from_value(1).unwrap();
            let token = event_loop
                .add(fd, EpollFlags::EPOLLIN, move |event_loop, _| {
                    calls.set(calls.get() + 1);
                    all.borrow().iter().for_each(|&token| event_loop.remove(token));
                })
                .unwrap();
            tokens.borrow_mut().push(token);
        }
        for _ in 0..3 {
            event_loop.wait(EpollTimeout::ZERO).unwrap();
        }
        assert_eq!(calls.get(), 1);
        assert_eq!(event_loop.sources.len(), 2, "the loop's own");
    }

    #[test]
    fn always_ready_files_are_refused() {
        for file in [tempfile::tempfile().unwrap(), std::fs::File::open("/dev/null").unwrap()] {
            let error = quiet().add(file, EpollFlags::EPOLLIN, |_, _| ()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::EPERM as i32));
        }
    }

    #[test]
    fn signals_become_calls() {
        let seen: Rc<RefCell<Vec<Signal>>> = Rc::default();
        let sink = Rc::clone(&seen);
        let mut event_loop = EventLoop::new(move |event_loop, signal| {
            sink.borrow_mut().push(signal);
            if signal == Signal::SIGTERM {
                event_loop.stop();
            }
        })
        .unwrap();
        for signal in [Signal::SIGHUP, Signal::SIGTERM] {
            // To this thread alone: the other tests' threads do not block it.
            nix::sys::signal::raise(signal).unwrap();
        }
        event_loop.run().unwrap();
        seen.borrow_mut().sort();
        assert_eq!(*seen.borrow(), [Signal::SIGHUP, Signal::SIGTERM]);
    }
}
