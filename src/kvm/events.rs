//! How the VM's end reaches the main loop: from vCPU threads, and from the devices that can reset or switch off.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use crate::error::{Error, Result};

/// An end of the VM's run.
#[derive(Debug)]
pub enum VmEvent {
    /// The guest asked for a reset, or its processor shut down (triple fault).
    Reset,
    /// The guest switched the machine off.
    Shutdown,
    /// The guest cannot go on.
    Failed(Error),
}

/// The one event that is pending, and the descriptor that says so.
///
/// A guest can ask for a reset as often as it likes: the first event stays until it is taken, later ones are dropped,
/// except that a failure replaces what a guest asked for.
pub struct VmEvents {
    /// Held for the change of the event and of the descriptor together. No other lock is taken inside.
    pending: Mutex<Option<VmEvent>>,
    wake: EventFd,
}

impl VmEvents {
    /// Nothing pending.
    ///
    /// # Errors
    /// [`crate::error::Code::SystemFailed`] if the process may not have another descriptor.
    pub fn new() -> Result<Arc<VmEvents>> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .map_err(|error| Error::system("make an eventfd", &error.into()))?;
        Ok(Arc::new(VmEvents { pending: Mutex::new(None), wake }))
    }

    /// Reports an event and wakes the main loop. Callable from any thread.
    pub fn post(&self, event: VmEvent) {
        let mut pending = self.pending.lock();
        let replaces = matches!(event, VmEvent::Failed(_)) && !matches!(*pending, Some(VmEvent::Failed(_)));
        if pending.is_none() || replaces {
            *pending = Some(event);
            // EAGAIN would mean that the counter is at its maximum: readable all the same.
            let _ = self.wake.write(1);
        }
    }

    /// Takes the pending event, if there is one.
    pub fn take(&self) -> Option<VmEvent> {
        let mut pending = self.pending.lock();
        // EAGAIN: nothing was posted.
        let _ = self.wake.read();
        pending.take()
    }
}

impl AsFd for VmEvents {
    /// Readable while an event is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn readable(events: &VmEvents) -> bool {
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn the_first_event_stays_and_a_failure_replaces_it() {
        let events = VmEvents::new().unwrap();
        assert!(!readable(&events));
        assert!(events.take().is_none());
        events.post(VmEvent::Shutdown);
        events.post(VmEvent::Reset);
        assert!(readable(&events));
        assert!(matches!(events.take(), Some(VmEvent::Shutdown)));
        assert!(!readable(&events) && events.take().is_none());
        events.post(VmEvent::Reset);
        events.post(VmEvent::Failed(Error::new(Code::GuestFailed, "first")));
        events.post(VmEvent::Failed(Error::new(Code::GuestFailed, "second")));
        match events.take() {
            Some(VmEvent::Failed(error)) => assert_eq!(error.cause(), "first"),
            other => panic!("{other:?}"),
        }
        assert!(!readable(&events));
    }
}
