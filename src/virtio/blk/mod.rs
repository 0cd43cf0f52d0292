//! virtio-blk: a disk on a node of the block graph (virtio 5.2).

mod config;
mod front_end;
mod request;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use config::{LEN, Shape, WRITEBACK, bit};
pub use front_end::TYPE;
use request::ID_LEN;

use super::{Activation, Serve, Source, VirtQueue, VirtioDevice, VirtioInfo, Worker, read_bytes};
use crate::backends::block::BlockNode;
use crate::backends::table::Claim;
use crate::error::Result;
use crate::object::prop_enum;

/// The type of device.
const TYPE_BLOCK: u16 = 2;
/// PCI class: mass storage, SCSI, as QEMU has it.
const CLASS_STORAGE: [u8; 3] = [0, 0, 1];

prop_enum! {
    /// What becomes of a request that the back end could not do.
    pub enum ErrorPolicy {
        /// The guest is told.
        Report = "report",
        /// The guest is told that it is done.
        Ignore = "ignore",
    }
}

/// What the queues' workers share.
struct Medium {
    id: Arc<str>,
    node: Arc<dyn BlockNode>,
    serial: [u8; ID_LEN],
    rerror: ErrorPolicy,
    werror: ErrorPolicy,
    /// Whether a write is done before it is on the medium.
    write_back: AtomicBool,
}

impl Medium {
    fn write_back(&self) -> bool {
        self.write_back.load(Ordering::Acquire)
    }
}

/// A disk's properties that are no property of its shape.
#[derive(Debug, Clone)]
struct Options {
    /// What the guest calls it, up to 20 bytes.
    serial: String,
    /// After a failed read.
    rerror: ErrorPolicy,
    /// After a failed write.
    werror: ErrorPolicy,
    /// Whether the write cache is on after a reset.
    write_cache: bool,
}

/// The device.
pub struct Blk {
    /// One for each queue, so that queues do not wait for each other's requests. Before the node, whose users they are.
    workers: Mutex<Vec<Worker>>,
    shape: Shape,
    write_cache: bool,
    medium: Arc<Medium>,
    /// Keeps others from the node for as long as the device lives.
    _claim: Option<Claim<dyn BlockNode>>,
}

/// The node of a disk: one of the machine's, which no other may use meanwhile, or one of a test's.
pub struct Drive {
    node: Arc<dyn BlockNode>,
    claim: Option<Claim<dyn BlockNode>>,
}

impl From<Claim<dyn BlockNode>> for Drive {
    fn from(claim: Claim<dyn BlockNode>) -> Drive {
        Drive { node: claim.back().clone(), claim: Some(claim) }
    }
}

impl Blk {
    /// A disk on a node.
    fn new(id: Arc<str>, drive: Drive, shape: Shape, options: Options) -> Arc<Blk> {
        let Drive { node, claim } = drive;
        let mut serial = [0; ID_LEN];
        serial.iter_mut().zip(options.serial.bytes()).for_each(|(to, from)| *to = from);
        let write_cache = options.write_cache && node.info().write_back;
        let medium = Medium {
            id,
            node,
            serial,
            rerror: options.rerror,
            werror: options.werror,
            write_back: AtomicBool::new(write_cache),
        };
        Arc::new(Blk { workers: Mutex::default(), shape, write_cache, medium: Arc::new(medium), _claim: claim })
    }
}

impl VirtioDevice for Blk {
    fn info(&self) -> VirtioInfo {
        VirtioInfo {
            device_type: TYPE_BLOCK,
            class: CLASS_STORAGE,
            features: config::features(&self.shape, &self.medium.node.info()),
            config_len: LEN as u32,
            queues: self.shape.queues,
            queue_size: self.shape.queue_size,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let space = config::space(&self.shape, &self.medium.node.info(), self.medium.write_back());
        read_bytes(&space, offset, data);
    }

    /// Only the write cache's switch can be written. A driver that has not agreed on it does not write it.
    fn write_config(&self, offset: usize, data: &[u8]) {
        let switch = WRITEBACK.checked_sub(offset).and_then(|at| data.get(at));
        if let Some(value) = switch
            && self.info().features & bit::CONFIG_WCE != 0
        {
            self.medium.write_back.store(value & 1 != 0, Ordering::Release);
        }
    }

    fn activate(&self, run: Activation) -> Result<()> {
        // A driver that cannot flush has every write on the medium when it is done (virtio 5.2.6.2). A node that does that
        // by itself needs no flush after each.
        if !run.has(bit::FLUSH) {
            self.medium.write_back.store(!self.medium.node.info().write_back, Ordering::Release);
        } else if !run.has(bit::CONFIG_WCE) {
            self.medium.write_back.store(self.write_cache, Ordering::Release);
        }
        let mut workers = Vec::new();
        for queue in run.queues.iter().flatten() {
            let name = match queue.index() {
                0 => self.medium.id.to_string(),
                index => format!("{}.{index}", self.medium.id),
            };
            let sources = vec![Source::Event(queue.kick().clone())];
            let server = Server { medium: self.medium.clone(), features: run.features, queue: queue.clone() };
            // Those that were started stop if one cannot be.
            workers.push(Worker::start(&name, sources, server)?);
        }
        *self.workers.lock() = workers;
        Ok(())
    }

    fn deactivate(&self) {
        let workers = std::mem::take(&mut *self.workers.lock());
        drop(workers);
    }

    fn reset(&self) {
        self.medium.write_back.store(self.write_cache, Ordering::Release);
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let info = self.medium.node.info();
        let cache = match (info.write_back, self.medium.write_back()) {
            (false, _) => "none",
            (true, true) => "write-back",
            (true, false) => "write-through",
        };
        vec![("disk", format!("{} bytes", info.len)), ("write-cache", cache.into())]
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
        self.queue.drain(|chain| request::serve(&self.medium, self.features, chain));
    }
}

#[cfg(test)]
mod tests;
