//! virtio-scsi: a SCSI host adapter with a bus of its own (virtio 5.6).

mod config;
mod control;
mod event;
mod front_end;
mod request;

use std::sync::{Arc, Weak};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use config::{LEN, Shape, Sizes, feature};
use control::Control;
use event::Events;
pub use front_end::TYPE;

use super::{Activation, Serve, Source, VirtQueue, VirtioDevice, VirtioInfo, Worker, read_bytes, worker_name};
use crate::backends::iothread::IoThread;
use crate::backends::table::Claim;
use crate::error::{Error, Result};
use crate::scsi::ScsiBus;

/// The type of device.
const TYPE_SCSI: u16 = 8;
/// PCI class: mass storage, SCSI.
const CLASS_STORAGE: [u8; 3] = [0, 0, 1];
/// The queues before the ones for commands.
const CONTROL: usize = 0;
const EVENT: usize = 1;
const REQUESTS: usize = 2;

/// The device.
pub struct Scsi {
    id: Arc<str>,
    shape: Shape,
    bus: Arc<ScsiBus>,
    events: Arc<Events>,
    /// What the driver has made of the two lengths that it may change.
    sizes: Mutex<Sizes>,
    /// One for control and events, and one for each queue of commands.
    workers: Mutex<Vec<Worker>>,
    /// Where they run, if the user says so.
    iothread: Option<Claim<IoThread>>,
}

impl Scsi {
    /// An adapter for this bus.
    ///
    /// # Errors
    /// No descriptor is left.
    fn new(id: Arc<str>, shape: Shape, bus: Arc<ScsiBus>, iothread: Option<Claim<IoThread>>) -> Result<Arc<Scsi>> {
        let events = Arc::new(Events::new(eventfd()?));
        let to: Weak<Events> = Arc::downgrade(&events);
        bus.listen(Arc::new(move |at, change| {
            if let Some(events) = to.upgrade() {
                events.push(at, change);
            }
        }));
        Ok(Arc::new(Scsi { id, shape, bus, events, sizes: Mutex::default(), workers: Mutex::default(), iothread }))
    }
}

fn eventfd() -> Result<Arc<EventFd>> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map(Arc::new)
        .map_err(|error| Error::system("make an eventfd", &error.into()))
}

impl VirtioDevice for Scsi {
    fn info(&self) -> VirtioInfo {
        VirtioInfo {
            device_type: TYPE_SCSI,
            class: CLASS_STORAGE,
            features: config::features(&self.shape),
            config_len: LEN as u32,
            queues: REQUESTS as u16 + self.shape.queues,
            queue_size: self.shape.queue_size,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&config::space(&self.shape, *self.sizes.lock()), offset, data);
    }

    /// The lengths of sense data and commands can be changed, before the device runs.
    fn write_config(&self, offset: usize, data: &[u8]) {
        if self.workers.lock().is_empty() {
            self.sizes.lock().write(offset, data);
        }
    }

    fn activate(&self, run: Activation) -> Result<()> {
        let sizes = *self.sizes.lock();
        let requests: Vec<Arc<VirtQueue>> = run.queues.iter().skip(REQUESTS).flatten().cloned().collect();
        self.events.begin(run.has(feature::HOTPLUG));
        let control = Control {
            bus: self.bus.clone(),
            sizes,
            requests: requests.clone(),
            control: run.queue(CONTROL),
            event: run.queue(EVENT),
            events: self.events.clone(),
        };
        // A queue that the driver does not use is never kicked.
        let kick = |queue: &Option<Arc<VirtQueue>>| match queue {
            Some(queue) => Ok(Source::Event(queue.kick().clone())),
            None => eventfd().map(Source::Event),
        };
        let sources = vec![kick(&control.control)?, kick(&control.event)?, Source::Event(self.events.wake().clone())];
        let thread = self.iothread.as_ref();
        let mut workers = vec![Worker::start_on(thread, &self.id, sources, control)?];
        for (index, queue) in requests.into_iter().enumerate() {
            let sources = vec![Source::Event(queue.kick().clone())];
            let server = Server { bus: self.bus.clone(), sizes, queue };
            // Those that were started stop if one cannot be.
            workers.push(Worker::start_on(thread, &worker_name(&self.id, index + 1), sources, server)?);
        }
        *self.workers.lock() = workers;
        Ok(())
    }

    fn deactivate(&self) {
        let workers = std::mem::take(&mut *self.workers.lock());
        drop(workers);
    }

    fn reset(&self) {
        *self.sizes.lock() = Sizes::default();
        self.events.begin(false);
    }
}

/// What the worker of one queue of commands does.
struct Server {
    bus: Arc<ScsiBus>,
    sizes: Sizes,
    queue: Arc<VirtQueue>,
}

impl Serve for Server {
    fn ready(&mut self, _: usize) {
        self.queue.drain(|chain| request::serve(&self.bus, self.sizes, chain));
    }
}

#[cfg(test)]
mod tests;
