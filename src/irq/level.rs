//! A level-triggered source that the kernel serves alone: eventfd in, end of interrupt out, no user space in between.

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Router;
use crate::error::{Error, Result};

/// One source on a wire, connected by two eventfds as long as it lives. A signal of [`Resample::trigger`] raises the wire;
/// the guest's end of interrupt lowers it and signals [`Resample::unmask`], which lets the device raise it again.
pub struct Resample {
    router: Arc<Router>,
    id: u64,
    trigger: EventFd,
    unmask: EventFd,
}

impl Resample {
    pub(super) fn new(router: &Arc<Router>, gsi: u32) -> Result<Resample> {
        let eventfd =
            || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|error| Error::system("make an eventfd", &error));
        let clone = |fd: &EventFd| fd.try_clone().map_err(|error| Error::system("copy an eventfd", &error));
        let (trigger, unmask) = (eventfd()?, eventfd()?);
        let id = router.connect_level(Level { gsi, trigger: clone(&trigger)?, unmask: clone(&unmask)? })?;
        Ok(Resample { router: router.clone(), id, trigger, unmask })
    }

    /// What raises the wire.
    pub fn trigger(&self) -> &EventFd {
        &self.trigger
    }

    /// What the guest's end of interrupt signals.
    pub fn unmask(&self) -> &EventFd {
        &self.unmask
    }
}

impl Drop for Resample {
    fn drop(&mut self) {
        self.router.disconnect_level(self.id);
    }
}

/// What the router keeps of a [`Resample`], to connect it to the next chip too.
pub(super) struct Level {
    pub(super) gsi: u32,
    pub(super) trigger: EventFd,
    pub(super) unmask: EventFd,
}

#[cfg(test)]
mod tests {
    use super::super::testing::Recorder;
    use super::*;

    #[test]
    fn it_is_connected_to_each_chip_while_it_lives() {
        let router = Router::new();
        let first = Arc::new(Recorder::default());
        router.set_chip(first.clone()).unwrap();
        first.take();
        let source = router.resample(17).unwrap();
        assert_eq!(first.take(), ["attach 17 resample"]);
        let second = Arc::new(Recorder::default());
        router.set_chip(second.clone()).unwrap();
        assert_eq!(second.take(), ["routes 0", "attach 17 resample"]);
        drop(source);
        assert_eq!(second.take(), ["detach 17"]);
    }

    /// KVM ors the sources of a wire and tells every unmask eventfd of an end of interrupt, so each one is attached by
    /// itself and none knows of the others.
    #[test]
    fn several_sources_share_a_wire_with_emulated_ones() {
        let router = Router::new();
        let chip = Arc::new(Recorder::default());
        router.set_chip(chip.clone()).unwrap();
        chip.take();
        let (a, b, line) = (router.resample(17).unwrap(), router.resample(17).unwrap(), router.line(17));
        line.set(true);
        assert_eq!(chip.take(), ["attach 17 resample", "attach 17 resample", "level 17 true"]);
        drop(a);
        assert_eq!(chip.attached.lock().len(), 1, "the other source stays");
        line.set(false);
        assert_eq!(chip.take(), ["detach 17", "level 17 false"]);
        drop(b);
        assert!(chip.attached.lock().is_empty());
    }

    #[test]
    fn before_there_is_a_chip_it_waits_for_one() {
        let router = Router::new();
        let source = router.resample(16).unwrap();
        let chip = Arc::new(Recorder::default());
        router.set_chip(chip.clone()).unwrap();
        assert_eq!(chip.take(), ["routes 0", "attach 16 resample"]);
        drop(source);
    }
}
