//! What keeps a device from DMA until all of the guest's RAM is mapped for it.
//!
//! A guest's first write of Bus Master Enable waits here, on the vCPU's thread and without any lock; and whatever
//! happened to the waiting, the bit reaches the hardware only while the gate is open.

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};

/// One for each IOMMU address space.
#[derive(Default)]
pub struct Gate {
    /// Innermost: nothing else is locked or called with it.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Pieces of RAM that are not mapped yet.
    missing: usize,
    /// Why one of them was refused: it stays closed.
    failure: Option<Error>,
    /// Nobody may wait: the vCPUs are being stopped.
    released: bool,
    /// How many wait.
    waiting: usize,
}

impl State {
    fn open(&self) -> bool {
        self.missing == 0 && self.failure.is_none()
    }
}

impl Gate {
    /// Whether everything is mapped.
    pub fn is_open(&self) -> bool {
        self.state.lock().open()
    }

    /// What came of the mapping; `None`: it is going on.
    pub fn outcome(&self) -> Option<Result<()>> {
        let state = self.state.lock();
        match &state.failure {
            Some(error) => Some(Err(error.clone())),
            None => state.open().then_some(Ok(())),
        }
    }

    /// Waits until it is open, or never will be, or waiting has no sense any more; says whether it is open.
    pub fn wait(&self) -> bool {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while !state.open() && state.failure.is_none() && !state.released {
            self.changed.wait(&mut state);
        }
        state.waiting -= 1;
        state.open()
    }

    /// Sleeps until somebody waits for the gate, or `over` says so after a [`Gate::nudge`].
    pub(in crate::vfio) fn until_wanted(&self, over: impl Fn() -> bool) {
        let mut state = self.state.lock();
        while state.waiting == 0 && !over() {
            self.changed.wait(&mut state);
        }
    }

    /// Lets [`Gate::until_wanted`] ask again.
    pub(in crate::vfio) fn nudge(&self) {
        // With the lock: who has asked and does not sleep yet would miss it.
        let _state = self.state.lock();
        self.changed.notify_all();
    }

    /// Lets every vCPU go on that waits, and those that come: they are to stop. `false` undoes it.
    pub fn release(&self, released: bool) {
        self.state.lock().released = released;
        self.changed.notify_all();
    }

    /// So many more pieces will be mapped.
    pub(in crate::vfio) fn expect(&self, pieces: usize) {
        self.state.lock().missing += pieces;
    }

    /// So many of them are mapped now, or will not be wanted any more.
    pub(in crate::vfio) fn settled(&self, pieces: usize) {
        let mut state = self.state.lock();
        state.missing = state.missing.saturating_sub(pieces);
        drop(state);
        self.changed.notify_all();
    }

    /// A piece was refused: it stays closed for good.
    pub(in crate::vfio) fn fail(&self, why: Error) {
        self.state.lock().failure = Some(why);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use std::sync::Arc;

    #[test]
    fn it_opens_with_the_last_piece_and_never_after_a_refusal() {
        let gate = Gate::default();
        assert!(gate.is_open() && gate.wait());
        gate.expect(2);
        gate.settled(1);
        assert!(!gate.is_open() && gate.outcome().is_none());
        gate.settled(1);
        assert!(gate.is_open() && gate.outcome().is_some_and(|outcome| outcome.is_ok()));
        gate.expect(1);
        gate.fail(Error::new(Code::DmaFailed, "why"));
        assert!(!gate.wait());
        gate.settled(1);
        assert!(!gate.is_open() && !gate.wait());
        assert_eq!(gate.outcome().unwrap().unwrap_err().cause(), "why");
    }

    #[test]
    fn who_waits_is_let_go_by_the_last_piece_or_by_a_release() {
        for release in [false, true] {
            let gate = Arc::new(Gate::default());
            gate.expect(1);
            let waiting = gate.clone();
            let waiter = std::thread::spawn(move || waiting.wait());
            match release {
                true => gate.release(true),
                false => gate.settled(1),
            }
            assert_eq!(waiter.join().unwrap(), !release);
            gate.release(false);
            assert_eq!(gate.is_open(), !release);
        }
    }
}
