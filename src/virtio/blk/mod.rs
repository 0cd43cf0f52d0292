//! virtio-blk: a disk on a node of the block graph (virtio 5.2).

mod config;
mod front_end;
mod request;

use std::sync::Arc;

use parking_lot::Mutex;

use config::{LEN, Shape, WRITEBACK, bit};
pub use front_end::TYPE;
use request::ID_LEN;

use super::{Activation, Serve, Source, VirtQueue, VirtioDevice, VirtioInfo, Worker, read_bytes, worker_name};
use crate::backends::iothread::IoThread;
use crate::backends::table::Claim;
use crate::devices::disk::Disk;
use crate::error::Result;

/// The type of device.
const TYPE_BLOCK: u16 = 2;
/// PCI class: mass storage, SCSI, as QEMU has it.
const CLASS_STORAGE: [u8; 3] = [0, 0, 1];

/// What the queues' workers share.
struct Medium {
    disk: Disk,
    serial: [u8; ID_LEN],
}

/// The device.
pub struct Blk {
    /// One for each queue, so that queues do not wait for each other's requests. Before the disk, whose users they are.
    workers: Mutex<Vec<Worker>>,
    /// Where they run, if the user says so.
    iothread: Option<Claim<IoThread>>,
    shape: Shape,
    medium: Arc<Medium>,
}

impl Blk {
    /// A disk with this serial number, of which the guest is told [`ID_LEN`] bytes.
    fn new(disk: Disk, shape: Shape, serial: &str, iothread: Option<Claim<IoThread>>) -> Arc<Blk> {
        let mut told = [0; ID_LEN];
        told.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        let medium = Arc::new(Medium { disk, serial: told });
        Arc::new(Blk { workers: Mutex::default(), iothread, shape, medium })
    }
}

impl VirtioDevice for Blk {
    fn info(&self) -> VirtioInfo {
        VirtioInfo {
            device_type: TYPE_BLOCK,
            class: CLASS_STORAGE,
            features: config::features(&self.shape, &self.medium.disk.info()),
            config_len: LEN as u32,
            queues: self.shape.queues,
            queue_size: self.shape.queue_size,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let disk = &self.medium.disk;
        let space = config::space(&self.shape, &disk.info(), disk.write_back());
        read_bytes(&space, offset, data);
    }

    /// Only the write cache's switch can be written. A driver that has not agreed on it does not write it.
    fn write_config(&self, offset: usize, data: &[u8]) {
        let switch = WRITEBACK.checked_sub(offset).and_then(|at| data.get(at));
        if let Some(value) = switch
            && self.info().features & bit::CONFIG_WCE != 0
        {
            self.medium.disk.set_write_back(value & 1 != 0);
        }
    }

    fn activate(&self, run: Activation) -> Result<()> {
        // A driver that cannot flush has every write on the medium when it is done (virtio 5.2.6.2). A node that does that
        // by itself needs no flush after each.
        let disk = &self.medium.disk;
        if !run.has(bit::FLUSH) {
            disk.set_write_back(!disk.info().write_back);
        } else if !run.has(bit::CONFIG_WCE) {
            disk.reset();
        }
        let mut workers = Vec::new();
        for queue in run.queues.iter().flatten() {
            let sources = vec![Source::Event(queue.kick().clone())];
            let server = Server { medium: self.medium.clone(), features: run.features, queue: queue.clone() };
            // Those that were started stop if one cannot be.
            let name = worker_name(disk.id(), queue.index().into());
            workers.push(Worker::start_on(self.iothread.as_ref(), &name, sources, server)?);
        }
        *self.workers.lock() = workers;
        Ok(())
    }

    fn deactivate(&self) {
        let workers = std::mem::take(&mut *self.workers.lock());
        drop(workers);
    }

    fn reset(&self) {
        self.medium.disk.reset();
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        self.medium.disk.facts()
    }
}

/// What the worker of one queue does.
struct Server {
    medium: Arc<Medium>,
    features: u64,
    queue: Arc<VirtQueue>,
}

impl Serve for Server {
    fn ready(&mut self, _: usize) {
        match self.medium.disk.depth() {
            0 | 1 => self.queue.drain(|chain| request::serve(&self.medium, self.features, chain)),
            depth => self.queue.drain_many(depth, |chains| request::serve_many(&self.medium, self.features, chains)),
        };
    }
}

#[cfg(test)]
mod tests;
