//! QMP on a character back end (`--mon ID,mode=control`): whoever is at its other end is a client like those of the
//! sockets.
//!
//! Between the back end and the [`super::Client`] is a pair of sockets, so that the client's rules (bounded buffers, one
//! request after the other) are the same wherever it comes from. Each new peer of the back end is a new client.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use parking_lot::Mutex;

use crate::backends::chardev::{Chardev, FrontEnd};
use crate::backends::table::Claim;
use crate::event_loop::{EventLoop, LoopHandle, Token};

/// Most bytes that wait for the client.
const MAX_WAITING: usize = 4096;

/// A back end that has a client.
pub(super) struct Wire {
    front: Arc<Front>,
    session: Option<Session>,
    chardev: Claim<dyn Chardev>,
}

/// The connection of the peer that there is.
struct Session {
    ours: Rc<UnixStream>,
    token: Token,
}

/// What the back end calls.
struct Front {
    state: Mutex<State>,
    event_loop: LoopHandle,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<u8>,
    /// Somebody new is at the other end, or nobody any more.
    changed: Option<bool>,
}

impl FrontEnd for Front {
    fn room(&self) -> usize {
        MAX_WAITING.saturating_sub(self.state.lock().waiting.len())
    }

    fn input(&self, bytes: &[u8]) {
        let mut state = self.state.lock();
        let room = MAX_WAITING.saturating_sub(state.waiting.len());
        state.waiting.extend(bytes.iter().take(room));
        drop(state);
        self.event_loop.post(EventLoop::yield_now);
    }

    fn output_ready(&self) {
        self.event_loop.post(EventLoop::yield_now);
    }

    fn peer_changed(&self, present: bool) {
        let mut state = self.state.lock();
        state.waiting.clear();
        state.changed = Some(present);
        drop(state);
        self.event_loop.post(EventLoop::yield_now);
    }
}

impl Wire {
    /// Whoever is there already is the first client.
    pub(super) fn new(chardev: Claim<dyn Chardev>, event_loop: LoopHandle) -> Wire {
        let front = Arc::new(Front { state: Mutex::default(), event_loop });
        let as_front: Arc<dyn FrontEnd> = front.clone();
        chardev.attach(Arc::downgrade(&as_front));
        front.state.lock().changed.get_or_insert(chardev.peer().present);
        Wire { front, session: None, chardev }
    }

    /// Moves bytes both ways. A new peer's end of its connection goes to `adopt`.
    pub(super) fn step(&mut self, event_loop: &mut EventLoop, adopt: impl FnOnce(UnixStream, &mut EventLoop)) {
        let changed = self.front.state.lock().changed.take();
        if let Some(present) = changed {
            if let Some(Session { token, .. }) = self.session.take() {
                event_loop.remove(token);
            }
            if present && let Some((session, theirs)) = Session::new(event_loop) {
                self.session = Some(session);
                adopt(theirs, event_loop);
            }
        }
        self.take_in();
        let ready = self.bring_out();
        if let Some(Session { token, .. }) = &self.session {
            let interest = if ready { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
            super::wait(event_loop, *token, interest);
        }
    }

    /// What has come, to the client, as far as that takes it.
    fn take_in(&self) {
        let Some(Session { ours, .. }) = &self.session else { return };
        let mut state = self.front.state.lock();
        let before = state.waiting.len();
        while !state.waiting.is_empty() {
            match (&**ours).write(state.waiting.make_contiguous()) {
                Ok(count) => drop(state.waiting.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let taken = state.waiting.len() < before;
        drop(state);
        if taken {
            self.chardev.resume();
        }
    }

    /// What the client is sent, to the back end; says whether that takes more.
    fn bring_out(&self) -> bool {
        let Some(Session { ours, .. }) = &self.session else { return true };
        let mut chunk = [0; MAX_WAITING];
        while self.chardev.ready() {
            match (&**ours).read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => self.chardev.write(chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        false
    }

    /// The end of the process: what is left leaves.
    pub(super) fn finish(&self, limit: Duration) {
        self.bring_out();
        self.chardev.flush(limit);
    }
}

impl Session {
    fn new(event_loop: &mut EventLoop) -> Option<(Session, UnixStream)> {
        let made = UnixStream::pair().and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            theirs.set_nonblocking(true)?;
            let ours = Rc::new(ours);
            let token = event_loop.add(ours.clone(), EpollFlags::EPOLLIN, |event_loop, _| event_loop.yield_now())?;
            Ok((Session { ours, token }, theirs))
        });
        made.inspect_err(|error| crate::log::warn(format_args!("a monitor has no connection: {error}"))).ok()
    }
}
