//! The thread that watches a device's daemon: it hears of its end and of what it says unasked, and connects to the next.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Shared;
use crate::error::{Error, Result};

/// How long one attempt to get a connection takes at the longest: the device's end waits for it.
const ATTEMPT: Duration = Duration::from_secs(1);
/// The longest name of a thread (TASK_COMM_LEN without its end).
const MAX_NAME: usize = 15;

/// The running thread. Dropping it returns when it has ended.
pub(super) struct Watch {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Watches over the daemon of a device that has offered these features to its driver.
    ///
    /// # Errors
    /// [`crate::error::Code::SystemFailed`]: no thread or descriptor is left.
    pub(super) fn start(shared: &Arc<Shared>, offered: u64) -> Result<Watch> {
        let failed = |error: std::io::Error| Error::system("start a device's thread", &error);
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).map_err(|e| failed(e.into()))?;
        let stop = Arc::new(stop);
        let name: String = shared.id.chars().take(MAX_NAME).collect();
        let (shared, stopped) = (shared.clone(), stop.clone());
        let thread =
            std::thread::Builder::new().name(name).spawn(move || watch(&shared, &stopped, offered)).map_err(failed)?;
        Ok(Watch { stop, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // EAGAIN would mean that the counter is at its maximum: readable all the same.
        let _ = self.stop.write(1);
        // A thread that panicked has ended, too, and has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What has happened.
enum Event {
    Stop,
    Gone,
    Said,
    Nothing,
}

fn watch(shared: &Shared, stop: &EventFd, offered: u64) {
    let mut told = String::new();
    loop {
        let fds = watched(shared);
        let event = match (&fds, shared.peer.again()) {
            (Some((socket, notices)), _) => wait(stop, Some(socket), notices.as_ref(), None),
            (None, Some(delay)) => wait(stop, None, None, Some(delay)),
            (None, None) => wait(stop, None, None, None),
        };
        match (event, fds.is_some()) {
            (Event::Stop, _) => return,
            (Event::Gone, true) => shared.lost(),
            (Event::Said, true) => shared.hear(),
            (_, false) if shared.peer.again().is_some() => reconnect(shared, offered, &mut told),
            _ => {}
        }
    }
}

/// The descriptors of the connection, if there is one.
fn watched(shared: &Shared) -> Option<(OwnedFd, Option<OwnedFd>)> {
    let mut state = shared.state.lock();
    let session = state.session.as_mut()?;
    // Where no descriptor is left, the daemon's end is not heard of: it counts as gone.
    let socket = session.socket().as_fd().try_clone_to_owned().ok()?;
    let notices = session.notices().and_then(|notices| notices.socket().as_fd().try_clone_to_owned().ok());
    Some((socket, notices))
}

fn wait(stop: &EventFd, socket: Option<&OwnedFd>, notices: Option<&OwnedFd>, limit: Option<Duration>) -> Event {
    let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    // Only its end (POLLHUP, which need not be asked for): answers are others' to read.
    fds.extend(socket.map(|socket| PollFd::new(socket.as_fd(), PollFlags::empty())));
    fds.extend(notices.map(|notices| PollFd::new(notices.as_fd(), PollFlags::POLLIN)));
    let timeout =
        limit.map_or(PollTimeout::NONE, |limit| PollTimeout::try_from(limit.as_millis()).unwrap_or(PollTimeout::MAX));
    if poll(&mut fds, timeout).is_err() {
        // EINTR: there is nothing else that it could say of descriptors that are open.
        return Event::Nothing;
    }
    let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
    match (ready(0), socket.is_some() && ready(1), ready(2)) {
        (true, ..) => Event::Stop,
        (_, true, _) => Event::Gone,
        (_, _, true) => Event::Said,
        _ => Event::Nothing,
    }
}

/// One attempt. `told`: why the last one failed, which is said once.
fn reconnect(shared: &Shared, offered: u64, told: &mut String) {
    let joined = match shared.connect(ATTEMPT) {
        Ok((session, _)) if offered & !session.features() != 0 => {
            shared.peer.lost();
            Err("it offers less than the one before, which the driver has seen".to_owned())
        }
        Ok(joined) => Ok(joined),
        // A daemon that is not there yet is no news.
        Err(why) => Err(why),
    };
    match joined {
        Ok((session, config)) => {
            told.clear();
            shared.joined(session, config);
        }
        Err(why) if *told != why => {
            crate::log::note(format_args!("{}: waiting for the daemon at {}: {why}", shared.id, shared.peer.place()));
            *told = why;
        }
        Err(_) => {}
    }
}
