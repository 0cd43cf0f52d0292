//! virtio-net: a network device on a network back end (virtio 5.1).

mod config;
mod control;
mod front_end;
mod pair;
mod path;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use config::{LEN, Shape};
use control::Request;
pub use front_end::TYPE;
use pair::{Packets, Pair};
use path::Path;

use super::vhost::kernel;
use super::{Activation, Interrupts, VirtioDevice, VirtioInfo, Worker, read_bytes, worker_name};
use crate::backends::net::{Netdev, Offloads};
use crate::backends::table::Claim;
use crate::error::{Result, explain_io};
use crate::guest_error;

/// The type of device.
const TYPE_NETWORK: u16 = 1;
/// PCI class: network controller, Ethernet.
const CLASS_ETHERNET: [u8; 3] = [0, 0, 2];

/// The device.
pub struct Net {
    /// Before the back end, whose users they are.
    workers: Mutex<Vec<Worker>>,
    path: Path,
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
    pub fn new(id: Arc<str>, netdev: Claim<dyn Netdev>, shape: Shape, path: Path) -> Arc<Net> {
        let shared = Shared { id, netdev, up: AtomicBool::new(true), interrupts: Mutex::new(None) };
        Arc::new(Net { workers: Mutex::default(), path, shape, shared: Arc::new(shared) })
    }

    /// The worker of a pair. `moves`: whether it moves packets, and does not only serve the control queue.
    fn worker(&self, index: usize, run: &Activation, moves: bool) -> Result<Option<Worker>> {
        let Some(back) = self.shared.netdev.pairs().get(index) else { return Ok(None) };
        let control = config::control_queue(&self.shape, run.features);
        if 2 * index >= control {
            return Ok(None);
        }
        let pair = Pair {
            shared: self.shared.clone(),
            features: run.features,
            back: back.clone(),
            receive: run.queue(2 * index).filter(|_| moves),
            transmit: run.queue(2 * index + 1).filter(|_| moves),
            control: if index == 0 { run.queue(control) } else { None },
            buffers: Packets::default(),
        };
        let sources = pair.sources()?;
        Worker::start(&worker_name(&self.shared.id, index), sources, pair).map(Some)
    }

    /// Whether threads of ours move the packets of a driver with these features.
    fn moves(&self, features: u64) -> bool {
        match &self.path {
            Path::Threads => true,
            Path::Kernel(_) => !kernel::fits(features),
            Path::Daemon(_) => false,
        }
    }
}

impl VirtioDevice for Net {
    fn info(&self) -> VirtioInfo {
        VirtioInfo {
            device_type: TYPE_NETWORK,
            class: CLASS_ETHERNET,
            features: self.path.features(&self.shape, self.shared.netdev.offloads()),
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
        let pairs = match (config::control_queue(&self.shape, run.features) / 2).min(self.shape.pairs.into()) {
            pairs if self.moves(run.features) => pairs,
            // The control queue alone.
            _ => 1,
        };
        let mut workers = Vec::new();
        for index in 0..pairs {
            // Those that were started stop if one cannot be.
            workers.extend(self.worker(index, &run, self.moves(run.features))?);
        }
        match &self.path {
            Path::Kernel(kernel) if !self.moves(run.features) => {
                let mut taps = self.shared.netdev.taps();
                taps.truncate(config::control_queue(&self.shape, run.features) / 2);
                kernel.start(&run, &taps)?;
            }
            Path::Daemon(daemon) => {
                // Without the control queue, which is not the daemon's.
                let queues = run.queues.iter().take(config::control_queue(&self.shape, run.features));
                daemon.activate(Activation { queues: queues.cloned().collect(), ..run })?;
            }
            Path::Kernel(_) | Path::Threads => {}
        }
        *self.workers.lock() = workers;
        Ok(())
    }

    fn interrupts_changed(&self) {
        match &self.path {
            Path::Kernel(kernel) => kernel.interrupts_changed(),
            Path::Daemon(daemon) => daemon.interrupts_changed(),
            Path::Threads => {}
        }
    }

    fn ring_features(&self) -> u64 {
        self.path.ring_features()
    }

    fn deactivate(&self) {
        let workers = std::mem::take(&mut *self.workers.lock());
        drop(workers);
        match &self.path {
            Path::Kernel(kernel) => kernel.stop(),
            Path::Daemon(daemon) => daemon.deactivate(),
            Path::Threads => {}
        }
        *self.shared.interrupts.lock() = None;
    }

    fn reset(&self) {
        if let Path::Daemon(daemon) = &self.path {
            daemon.reset();
        }
        self.shared.told(self.shared.netdev.set_pairs(1));
        self.shared.told(self.shared.netdev.set_offloads(Offloads::empty()));
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mac = self.shape.mac.map(|byte| format!("{byte:02x}")).join(":");
        let link = if self.shared.is_up() { "up" } else { "down" };
        let mut facts = vec![("network", self.shared.netdev.place()), ("mac", mac), ("link", link.into())];
        match &self.path {
            Path::Threads => {}
            Path::Kernel(_) => facts.push(("packets", "moved by the kernel (vhost-net)".into())),
            Path::Daemon(daemon) => facts.extend(daemon.facts()),
        }
        facts
    }
}

#[cfg(test)]
mod tests;
