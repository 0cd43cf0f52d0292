//! The eventfds by which the other side interrupts the guest: those of MSI-X vectors, which KVM waits for itself. Where
//! the guest uses the pin, a thread stands between them, because the cause goes into a register first.

use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd as OwnEvent};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::{Error, Result};
use crate::kvm::doorbells::duplicate;
use crate::virtio::interrupt::Way;
use crate::virtio::{Interrupts, Serve, Source, VirtQueue, Worker};

/// One for each queue that the driver uses.
pub struct Calls {
    fds: Vec<Option<EventFd>>,
    /// What turns signals into the pin's level, if something must.
    _relay: Option<Worker>,
}

impl Calls {
    /// The calls of these queues, as the guest has its interrupts now. `name`: of the device.
    ///
    /// # Errors
    /// No thread or descriptor is left.
    pub fn new(name: &str, queues: &[Option<Arc<VirtQueue>>], interrupts: &Arc<Interrupts>) -> Result<Calls> {
        let failed = |error: std::io::Error| Error::system("make an eventfd", &error);
        let mut relayed = Vec::new();
        let mut sources = Vec::new();
        let mut fds = Vec::new();
        for queue in queues {
            let Some(queue) = queue else {
                fds.push(None);
                continue;
            };
            let fd = match interrupts.way(queue.index()).map_err(failed)? {
                Way::Vector(fd) => fd,
                // Nobody waits for it.
                Way::Nowhere => EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(failed)?,
                Way::Pin => {
                    let own = OwnEvent::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                        .map_err(|error| failed(error.into()))?;
                    let fd = duplicate(&own).map_err(failed)?;
                    relayed.push(queue.index());
                    sources.push(Source::Event(Arc::new(own)));
                    fd
                }
            };
            fds.push(Some(fd));
        }
        let relay = match relayed.is_empty() {
            true => None,
            false => Some(Worker::start(name, sources, Relay { interrupts: interrupts.clone(), queues: relayed })?),
        };
        Ok(Calls { fds, _relay: relay })
    }

    /// The call of a queue that the driver uses.
    pub fn of(&self, index: usize) -> Option<&EventFd> {
        self.fds.get(index)?.as_ref()
    }
}

struct Relay {
    interrupts: Arc<Interrupts>,
    /// By the index of the source.
    queues: Vec<u16>,
}

impl Serve for Relay {
    fn ready(&mut self, source: usize) {
        // Once at the start for nothing, which drivers bear: what was used is in the ring.
        if let Some(queue) = self.queues.get(source) {
            self.interrupts.queue(*queue);
        }
    }
}
