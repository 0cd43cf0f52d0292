//! virtio-net: a network device on a network back end (virtio 5.1).

mod config;
mod control;
mod front_end;
mod pair;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use config::{LEN, Shape};
use control::Request;
pub use front_end::TYPE;
use pair::{Packets, Pair};

use super::{Activation, Interrupts, VirtioDevice, VirtioInfo, Worker, read_bytes, worker_name};
use crate::backends::net::{Netdev, Offloads};
use crate::backends::table::Claim;
use crate::error::{Error, Result, explain_io};
use crate::guest_error;

/// The type of device.
const TYPE_NETWORK: u16 = 1;
/// PCI class: network controller, Ethernet.
const CLASS_ETHERNET: [u8; 3] = [0, 0, 2];

/// The device.
pub struct Net {
    /// Before the back end, whose users they are.
    workers: Mutex<Vec<Worker>>,
    shape: Shape,
    shared: Arc<Shared>,
}

/// What the workers share.
pub struct Shared {
    id: Arc<str>,
    netdev: Claim<dyn Netdev>,
    up: AtomicBool,
    /// Of the driver that runs, for a change of the link. Nothing else is locked with it.
    interrupts: Mutex<Option<Arc<Interrupts>>>,
}

impl Shared {
    fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    /// The other end has gone, which the driver is told once. `why`: for people.
    fn link_lost(&self, why: &io::Error) {
        if self.up.swap(false, Ordering::AcqRel) {
            crate::log::warn(format_args!(
                "{}: the link is down: {}: {}",
                self.id,
                self.netdev.place(),
                explain_io(why)
            ));
            if let Some(interrupts) = &*self.interrupts.lock() {
                interrupts.config_changed();
            }
        }
    }

    /// Does what the driver asks for; says whether it could be done.
    fn act(&self, request: Request) -> bool {
        match request {
            Request::Filter => true,
            Request::Pairs(pairs) => {
                let pairs = usize::from(pairs);
                let known = (1..=self.netdev.pairs().len()).contains(&pairs);
                known && self.told(self.netdev.set_pairs(pairs))
            }
        }
    }

    fn told(&self, done: io::Result<()>) -> bool {
        if let Err(error) = &done {
            guest_error!(&self.id, "{}: {}", self.netdev.place(), explain_io(error));
        }
        done.is_ok()
    }
}

impl Net {
    /// A device on `netdev`.
    pub fn new(id: Arc<str>, netdev: Claim<dyn Netdev>, shape: Shape) -> Arc<Net> {
        let shared = Shared { id, netdev, up: AtomicBool::new(true), interrupts: Mutex::new(None) };
        Arc::new(Net { workers: Mutex::default(), shape, shared: Arc::new(shared) })
    }

    fn worker(&self, index: usize, run: &Activation, never: &Arc<EventFd>) -> Result<Option<Worker>> {
        let Some(back) = self.shared.netdev.pairs().get(index) else { return Ok(None) };
        let control = config::control_queue(&self.shape, run.features);
        if 2 * index >= control {
            return Ok(None);
        }
        let pair = Pair {
            shared: self.shared.clone(),
            features: run.features,
            back: back.clone(),
            receive: run.queue(2 * index),
            transmit: run.queue(2 * index + 1),
            control: if index == 0 { run.queue(control) } else { None },
            buffers: Packets::default(),
        };
        let sources = pair.sources(never);
        Worker::start(&worker_name(&self.shared.id, index), sources, pair).map(Some)
    }
}

impl VirtioDevice for Net {
    fn info(&self) -> VirtioInfo {
        VirtioInfo {
            device_type: TYPE_NETWORK,
            class: CLASS_ETHERNET,
            features: config::features(&self.shape, self.shared.netdev.offloads()),
            config_len: LEN as u32,
            queues: 2 * self.shape.pairs + 1,
            queue_size: self.shape.queue_size,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&config::space(&self.shape, self.shared.is_up()), offset, data);
    }

    fn activate(&self, run: Activation) -> Result<()> {
        *self.shared.interrupts.lock() = Some(run.interrupts.clone());
        // What the guest cannot take must not be left to it; without an answer the back end leaves nothing.
        self.shared.told(self.shared.netdev.set_offloads(config::guest_offloads(run.features)));
        let never = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| Error::system("make an eventfd", &error.into()))?;
        let never = Arc::new(never);
        let mut workers = Vec::new();
        for index in 0..usize::from(self.shape.pairs) {
            // Those that were started stop if one cannot be.
            workers.extend(self.worker(index, &run, &never)?);
        }
        *self.workers.lock() = workers;
        Ok(())
    }

    fn deactivate(&self) {
        let workers = std::mem::take(&mut *self.workers.lock());
        drop(workers);
        *self.shared.interrupts.lock() = None;
    }

    fn reset(&self) {
        self.shared.told(self.shared.netdev.set_pairs(1));
        self.shared.told(self.shared.netdev.set_offloads(Offloads::empty()));
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mac = self.shape.mac.map(|byte| format!("{byte:02x}")).join(":");
        let link = if self.shared.is_up() { "up" } else { "down" };
        vec![("network", self.shared.netdev.place()), ("mac", mac), ("link", link.into())]
    }
}

#[cfg(test)]
mod tests;
