//! virtio-balloon: memory that the guest does without goes back to the host (virtio 5.5).
//!
//! A page in the balloon loses its content: the host takes it back, and gives an empty one when the guest touches it again.
//! An IOMMU would go on to reach the old page, so there is no balloon beside a passed-through device
//! ([`crate::error::Code::BalloonBesideDevice`]).

mod front_end;
mod pages;
mod server;
mod stats;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

pub use front_end::{NAME, TYPE};

use super::{Activation, Interrupts, VirtioDevice, VirtioInfo, Worker, read_bytes};
use crate::device::{Balloon as Control, Tell, Word};
use crate::error::Result;
use crate::memory::Memory;
use server::Server;
use stats::Stats;

/// The type of device.
const TYPE_BALLOON: u16 = 5;
/// No class fits: PCI class 00, subclass ff, as QEMU has it.
const CLASS_OTHER: [u8; 3] = [0, 0xff, 0];
/// Descriptors of each queue, as in QEMU.
const QUEUE_SIZE: u16 = 128;
/// The configuration space (virtio 5.5.4): pages wanted, pages in the balloon, the id of a hint, which there is none of, and
/// what a free page is filled with.
const CONFIG_LEN: usize = 16;
const CONFIG_ACTUAL: usize = 4;
const CONFIG_POISON: usize = 12;

/// Feature bits (virtio 5.5.3).
mod bit {
    pub const STATS: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const POISON: u64 = 1 << 4;
    pub const REPORTING: u64 = 1 << 5;
}

/// What the user says of a balloon.
#[derive(Debug, Clone, Copy)]
struct Options {
    deflate_on_oom: bool,
    reporting: bool,
    /// Seconds between two looks at the guest's statistics; 0: none.
    interval: u32,
}

/// The device.
pub struct Balloon {
    worker: Mutex<Option<Worker>>,
    shared: Arc<Shared>,
}

/// What the worker shares with the registers.
struct Shared {
    id: Arc<str>,
    options: Options,
    memory: Arc<Memory>,
    tell: Tell,
    /// Pages that the guest is to do without.
    target: AtomicU32,
    /// Pages that it says it does without.
    actual: AtomicU32,
    /// The machine was told of a change, and has not looked yet.
    told: AtomicBool,
    /// What the guest has in free pages, other than zeros.
    poison: AtomicU32,
    stats: Mutex<Stats>,
    /// Of the driver that runs. Nothing else is locked with it.
    interrupts: Mutex<Option<Arc<Interrupts>>>,
}

impl Balloon {
    fn new(id: Arc<str>, options: Options, memory: Arc<Memory>, tell: Tell) -> Arc<Balloon> {
        let shared = Shared {
            id,
            options,
            memory,
            tell,
            target: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            told: AtomicBool::new(false),
            poison: AtomicU32::new(0),
            stats: Mutex::default(),
            interrupts: Mutex::new(None),
        };
        Arc::new(Balloon { worker: Mutex::default(), shared: Arc::new(shared) })
    }
}

impl Control for Balloon {
    fn set_target(&self, pages: u32) {
        self.shared.target.store(pages, Ordering::Release);
        if let Some(interrupts) = &*self.shared.interrupts.lock() {
            interrupts.config_changed();
        }
    }

    fn actual(&self) -> u32 {
        self.shared.told.store(false, Ordering::Release);
        self.shared.actual.load(Ordering::Acquire)
    }
}

impl VirtioDevice for Balloon {
    fn info(&self) -> VirtioInfo {
        let Options { deflate_on_oom, reporting, .. } = self.shared.options;
        let offered = [(deflate_on_oom, bit::DEFLATE_ON_OOM), (reporting, bit::REPORTING | bit::POISON)];
        VirtioInfo {
            device_type: TYPE_BALLOON,
            class: CLASS_OTHER,
            features: offered.iter().filter(|(on, _)| *on).fold(bit::STATS, |features, (_, bit)| features | bit),
            config_len: CONFIG_LEN as u32,
            queues: if reporting { 4 } else { 3 },
            queue_size: QUEUE_SIZE,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let Shared { target, actual, poison, .. } = &*self.shared;
        let words = [target.load(Ordering::Acquire), actual.load(Ordering::Acquire), 0, poison.load(Ordering::Acquire)];
        read_bytes(words.map(u32::to_le_bytes).as_flattened(), offset, data);
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let Ok(word) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(word);
        match offset {
            CONFIG_ACTUAL => {
                let before = self.shared.actual.swap(value, Ordering::AcqRel);
                if before != value && !self.shared.told.swap(true, Ordering::AcqRel) {
                    (self.shared.tell)(&self.shared.id, Word::BalloonChanged);
                }
            }
            CONFIG_POISON => self.shared.poison.store(value, Ordering::Release),
            _ => {}
        }
    }

    fn activate(&self, run: Activation) -> Result<()> {
        *self.shared.interrupts.lock() = Some(run.interrupts.clone());
        let server = Server::new(self.shared.clone(), &run);
        *self.worker.lock() = Some(Worker::start(&self.shared.id, server.sources(), server)?);
        Ok(())
    }

    fn deactivate(&self) {
        let worker = self.worker.lock().take();
        drop(worker);
        *self.shared.interrupts.lock() = None;
    }

    /// The pages are the guest's again: whoever resets the device uses them anew.
    fn reset(&self) {
        self.shared.actual.store(0, Ordering::Release);
        self.shared.poison.store(0, Ordering::Release);
        *self.shared.stats.lock() = Stats::default();
    }

    fn balloon(&self) -> Option<&dyn Control> {
        Some(self)
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let pages =
            |count: &AtomicU32| format!("{} KiB", u64::from(count.load(Ordering::Acquire)) * (pages::PAGE >> 10));
        let mut facts = vec![("balloon", pages(&self.shared.actual)), ("target", pages(&self.shared.target))];
        facts.extend(self.shared.stats.lock().described());
        facts
    }
}

#[cfg(test)]
mod tests;
