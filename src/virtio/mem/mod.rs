//! virtio-mem: memory that comes and goes while the guest runs, in blocks (virtio 5.15).
//!
//! The device has a region of guest addresses behind all RAM. The monitor says how much of it the guest is to have
//! (requested-size); the guest asks for blocks, or gives them back, by requests. A plugged block is a region of the memory
//! map like any RAM: KVM and the IOMMUs of passed-through devices have it when the guest is told that it may use it, so
//! each of them may refuse it, and then the block does not come. One that is given back leaves IOMMUs and KVM before its
//! memory goes back to the host.
//!
//! The lock of the blocks is held while the memory map changes, so it comes before the layout lock. Only the worker of the
//! device and what ends it take it for long.

mod blocks;
mod front_end;
mod server;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

pub use front_end::{NAME, TYPE};

use super::{Activation, Interrupts, Source, VirtioDevice, VirtioInfo, Worker, read_bytes};
use crate::backends::table::Claim;
use crate::device::{PluggableMemory, Tell, Word};
use crate::error::{Code, Error, Result};
use crate::guest_error;
use crate::memory::room::Part;
use crate::memory::{Backing, HostMem, Memory, PRIORITY_PLATFORM, Region, RegionId, Space};
use blocks::{Blocks, Condition};
use server::Server;

/// The type of device.
const TYPE_MEM: u16 = 24;
/// No class fits: PCI class 00, subclass ff, as QEMU has it.
const CLASS_OTHER: [u8; 3] = [0, 0xff, 0];
/// Descriptors of the queue, as in QEMU.
const QUEUE_SIZE: u16 = 128;
/// The driver must not touch what is not plugged (VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE): there is nothing.
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;
/// The configuration space (virtio 5.15.4): block size, node, address, sizes of region, of what may be used, of what is
/// plugged, and of what is wanted.
const CONFIG_LEN: usize = 56;
/// The most blocks of a region: each is a range of the memory map, a slot of KVM and a mapping of each IOMMU.
pub const MAX_BLOCKS: u64 = 4096;

/// The device.
pub struct VirtioMem {
    worker: Mutex<Option<Worker>>,
    shared: Arc<Shared>,
}

/// What the worker shares with the registers.
struct Shared {
    id: Arc<str>,
    memory: Arc<Memory>,
    tell: Tell,
    /// Bytes of a block.
    block_size: u64,
    node: u16,
    /// Bytes that the guest is to have.
    requested: AtomicU64,
    /// Bytes that it has. Follows `state`, so that registers are read without its lock.
    plugged: AtomicU64,
    /// The machine was told of a change, and has not looked yet.
    told: AtomicBool,
    state: Mutex<State>,
    /// Of the driver that runs. Nothing else is locked with it.
    interrupts: Mutex<Option<Arc<Interrupts>>>,
    /// The addresses.
    part: Part,
    backend: Claim<HostMem>,
}

struct State {
    blocks: Blocks,
    /// What each plugged block is in the memory map.
    regions: Vec<Option<RegionId>>,
}

/// What comes of a request (virtio 5.15.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ack = 0,
    Nack = 1,
    Error = 3,
}

/// What a memory device is made with.
struct Parameters {
    block_size: u64,
    node: u16,
    requested: u64,
}

impl VirtioMem {
    fn new(
        id: Arc<str>,
        parameters: &Parameters,
        part: Part,
        backend: Claim<HostMem>,
        memory: Arc<Memory>,
        tell: Tell,
    ) -> Arc<VirtioMem> {
        let range = part.range();
        let count = ((range.end - range.start) / parameters.block_size) as usize;
        let state = State {
            blocks: Blocks::new(range.start, parameters.block_size, count),
            regions: std::iter::repeat_with(|| None).take(count).collect(),
        };
        let shared = Shared {
            id,
            memory,
            tell,
            block_size: parameters.block_size,
            node: parameters.node,
            requested: AtomicU64::new(parameters.requested),
            plugged: AtomicU64::new(0),
            told: AtomicBool::new(false),
            state: Mutex::new(state),
            interrupts: Mutex::new(None),
            part,
            backend,
        };
        Arc::new(VirtioMem { worker: Mutex::default(), shared: Arc::new(shared) })
    }
}

impl Shared {
    fn region_size(&self) -> u64 {
        let range = self.part.range();
        range.end - range.start
    }

    /// The guest asks for these blocks.
    fn plug(&self, addr: u64, count: u16) -> Answer {
        let mut state = self.state.lock();
        let Some(range) = state.blocks.range(addr, count) else { return Answer::Error };
        if state.blocks.condition(&range) != Condition::Unplugged {
            return Answer::Error;
        }
        let after = state.blocks.bytes() + range.len() as u64 * self.block_size;
        if after > self.requested.load(Ordering::Acquire) {
            return Answer::Nack;
        }
        let blocks: Vec<(usize, u64, Region)> = range.clone().map(|number| self.block(&state, number)).collect();
        // Devices of the host may use a block as soon as the guest has it: their IOMMUs map it now, not in the background.
        let added = self.memory.update_at_once(|layout| {
            let add = |(number, addr, region)| (number, layout.add(Space::Mmio, addr, region));
            blocks.into_iter().map(add).collect::<Vec<(usize, RegionId)>>()
        });
        match added {
            Ok(added) => {
                for (number, region) in added {
                    state.regions[number] = Some(region);
                }
                state.blocks.set(&range, true);
                self.changed(&state);
                Answer::Ack
            }
            Err(error) => {
                guest_error!(&self.id, "the guest gets no more memory: {error}");
                Answer::Nack
            }
        }
    }

    fn block(&self, state: &State, number: usize) -> (usize, u64, Region) {
        let slice = self.backend.back().slice().cut(number as u64 * self.block_size, self.block_size);
        let name = format!("{} block {number}", self.id);
        (number, state.blocks.address(number), Region::whole(name, slice.len(), PRIORITY_PLATFORM, Backing::Ram(slice)))
    }

    /// The guest gives these blocks back.
    fn unplug(&self, addr: u64, count: u16) -> Answer {
        let mut state = self.state.lock();
        let Some(range) = state.blocks.range(addr, count) else { return Answer::Error };
        if state.blocks.condition(&range) != Condition::Plugged {
            return Answer::Error;
        }
        self.take_back(&mut state, &range.collect::<Vec<usize>>());
        Answer::Ack
    }

    /// Takes all blocks back.
    fn unplug_all(&self) {
        let mut state = self.state.lock();
        let all = state.blocks.all_plugged();
        self.take_back(&mut state, &all);
    }

    fn take_back(&self, state: &mut State, numbers: &[usize]) {
        if numbers.is_empty() {
            return;
        }
        let regions: Vec<RegionId> = numbers.iter().filter_map(|number| state.regions[*number].take()).collect();
        let gone = self.memory.update(|layout| regions.into_iter().for_each(|region| layout.remove(region)));
        if let Err(error) = gone {
            // Nothing is added, so nothing can be refused.
            guest_error!(&self.id, "memory could not be taken from the map: {error}");
        }
        for &number in numbers {
            state.blocks.set(&(number..number + 1), false);
            // What the host cannot take back stays with the object.
            let _ = self.backend.back().slice().cut(number as u64 * self.block_size, self.block_size).discard();
        }
        self.changed(state);
    }

    /// What these blocks are; `None`: there are no such blocks.
    fn condition(&self, addr: u64, count: u16) -> Option<Condition> {
        let state = self.state.lock();
        state.blocks.range(addr, count).map(|range| state.blocks.condition(&range))
    }

    /// More or less is plugged.
    fn changed(&self, state: &State) {
        let bytes = state.blocks.bytes();
        if self.plugged.swap(bytes, Ordering::AcqRel) != bytes && !self.told.swap(true, Ordering::AcqRel) {
            (self.tell)(&self.id, Word::MemoryChanged);
        }
    }

    fn config_changed(&self) {
        if let Some(interrupts) = &*self.interrupts.lock() {
            interrupts.config_changed();
        }
    }
}

impl PluggableMemory for VirtioMem {
    fn requested(&self) -> u64 {
        self.shared.requested.load(Ordering::Acquire)
    }

    fn request(&self, bytes: u64) -> Result<()> {
        let Shared { block_size, .. } = *self.shared;
        let most = self.shared.region_size();
        if bytes > most || !bytes.is_multiple_of(block_size) {
            let cause = format!("{} cannot have {bytes} bytes", self.shared.id);
            return Err(Error::new(Code::BadProperty, cause)
                .evidence(format!("it has up to {most} bytes, in blocks of {block_size}")));
        }
        self.shared.requested.store(bytes, Ordering::Release);
        self.shared.config_changed();
        Ok(())
    }

    fn plugged(&self) -> u64 {
        self.shared.told.store(false, Ordering::Release);
        self.shared.plugged.load(Ordering::Acquire)
    }

    fn range(&self) -> Range<u64> {
        self.shared.part.range()
    }

    fn block_size(&self) -> u64 {
        self.shared.block_size
    }

    fn node(&self) -> u16 {
        self.shared.node
    }

    fn backend(&self) -> String {
        self.shared.backend.name().to_string()
    }
}

impl VirtioDevice for VirtioMem {
    fn info(&self) -> VirtioInfo {
        VirtioInfo {
            device_type: TYPE_MEM,
            class: CLASS_OTHER,
            features: UNPLUGGED_INACCESSIBLE,
            config_len: CONFIG_LEN as u32,
            queues: 1,
            queue_size: QUEUE_SIZE,
        }
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let Shared { block_size, node, part, .. } = &*self.shared;
        let (range, region) = (part.range(), self.shared.region_size());
        let plugged = self.shared.plugged.load(Ordering::Acquire);
        let requested = self.shared.requested.load(Ordering::Acquire);
        // All of the region may be used: the sum is what is limited.
        let words = [*block_size, u64::from(*node), range.start, region, region, plugged, requested];
        read_bytes(words.map(u64::to_le_bytes).as_flattened(), offset, data);
    }

    fn activate(&self, run: Activation) -> Result<()> {
        *self.shared.interrupts.lock() = Some(run.interrupts.clone());
        let Some(queue) = run.queue(0) else { return Ok(()) };
        let sources = vec![Source::Event(queue.kick().clone())];
        let server = Server::new(self.shared.clone(), queue);
        *self.worker.lock() = Some(Worker::start(&self.shared.id, sources, server)?);
        Ok(())
    }

    fn deactivate(&self) {
        let worker = self.worker.lock().take();
        drop(worker);
        *self.shared.interrupts.lock() = None;
    }

    /// The guest begins anew, with the memory of -m alone. Nobody uses a block any more: no device masters the bus.
    fn power_on(&self) {
        self.shared.unplug_all();
    }

    fn pluggable_memory(&self) -> Option<&dyn PluggableMemory> {
        Some(self)
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let kib = |bytes: u64| format!("{} KiB", bytes >> 10);
        vec![
            ("memory", format!("{}, {}", self.shared.backend.name(), kib(self.shared.region_size()))),
            ("requested", kib(self.shared.requested.load(Ordering::Acquire))),
            ("plugged", kib(self.shared.plugged.load(Ordering::Acquire))),
            ("block", kib(self.shared.block_size)),
        ]
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.unplug_all();
    }
}

#[cfg(test)]
mod tests;
