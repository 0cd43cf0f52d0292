//! Virtio devices (Virtual I/O Device Specification 1.2, "virtio" in comments): what a guest has drivers for everywhere.
//!
//! A device is a [`VirtioDevice`]: what it offers, its configuration space, and what it does while it runs. Everything
//! else is the transport's ([`pci`]): registers, feature negotiation, the status byte, interrupts, doorbells. A device
//! that runs serves its [`VirtQueue`]s on a [`Worker`]'s thread; a guest's kick wakes that by an eventfd of KVM's, and what
//! is done interrupts the guest by another, so neither leaves the kernel on a vCPU's thread.
//!
//! Guest memory is reached through checked access only ([`crate::memory::ram::LiveRam`]). A ring that contradicts itself,
//! or a chain of buffers that leads nowhere, breaks its queue: the device asks for a reset (DEVICE_NEEDS_RESET) and
//! touches the queue no more before that.
//!
//! Locks, outermost first: the transport's registers, which are held while a device starts and stops; the lock of a queue's
//! ring, which is its worker's for the length of a batch; the interrupt's. A worker never takes the transport's lock:
//! the transport waits for workers with it.

pub mod balloon;
pub mod blk;
mod chain;
mod interrupt;
pub mod mem;
pub mod net;
pub mod pci;
pub mod pmem;
mod queue;
pub mod rng;
pub mod scsi;
pub mod serial;
#[cfg(test)]
mod testing;
pub mod vhost;
mod worker;

use std::sync::Arc;

pub use chain::Chain;
pub use interrupt::Interrupts;
pub use queue::{Given, Served, VirtQueue};
pub use worker::{Serve, Source, Worker, name as worker_name};

use crate::error::Result;
pub use crate::memory::Buffers;
use crate::memory::HostSlice;

/// Feature bits that belong to the transport and the rings (virtio 6); the bits below 24 and from 50 on are the device's.
pub mod feature {
    use virtio_bindings::{virtio_config, virtio_ring};

    /// Descriptors may be in a table of their own.
    pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
    /// Interrupts and kicks are suppressed by index and not by a flag.
    pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
    /// The device follows the specification from 1.0 on.
    pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
}

/// What a device is and offers. Does not change while the device lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioInfo {
    /// The type of device (virtio 5): 1 network, 2 block, 4 entropy, 5 balloon.
    pub device_type: u16,
    /// PCI class code: programming interface, subclass, base class.
    pub class: [u8; 3],
    /// The device's own feature bits.
    pub features: u64,
    /// Bytes of its configuration space.
    pub config_len: u32,
    /// Number of queues.
    pub queues: u16,
    /// The largest size of each queue: a power of two up to 1024.
    pub queue_size: u16,
}

/// A virtio device without its transport.
pub trait VirtioDevice: Send + Sync {
    /// What it is. Asked once, when it is plugged.
    fn info(&self) -> VirtioInfo;

    /// Whether there is no legacy interface for it, although there is one for devices of its type.
    fn modern_only(&self) -> bool {
        false
    }

    /// Memory that the guest has in a BAR: the shared memory region 0 (virtio 2.10). Asked once, when it is plugged.
    fn shared_memory(&self) -> Option<HostSlice> {
        None
    }

    /// Where the guest has that BAR now. Said before the configuration space is read.
    fn shared_memory_is_at(&self, _address: u64) {}

    /// Reads its configuration space. The transport has cut the access at the end of the space.
    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }

    /// Writes its configuration space, within its length. Called on a vCPU's thread, with the transport's lock held.
    fn write_config(&self, _offset: usize, _data: &[u8]) {}

    /// Begins to serve queues: the driver is there, and the device may reach memory. Called with the transport's lock held,
    /// never twice without [`VirtioDevice::deactivate`] in between.
    ///
    /// # Errors
    /// The host has no thread or descriptor left; the device then asks the driver for a reset.
    fn activate(&self, run: Activation) -> Result<()>;

    /// Returns only when no queue is touched any more. Idempotent. Queues go on where they were if it is activated again
    /// without a reset.
    fn deactivate(&self);

    /// The features of transport and rings (virtio 6) that whoever serves the queues knows: the others are not offered.
    fn ring_features(&self) -> u64 {
        u64::MAX
    }

    /// A queue's interrupt goes another way than when the device was activated. Called with the transport's lock held.
    fn interrupts_changed(&self) {}

    /// Forgets what the driver has set. Deactivated before.
    fn reset(&self) {}

    /// The machine is reset: what the guest has of the host goes back. Reset before, as all other devices are.
    fn power_on(&self) {}

    /// It as memory that comes and goes, if it is that.
    fn pluggable_memory(&self) -> Option<&dyn crate::device::PluggableMemory> {
        None
    }

    /// It as a balloon, if it is one.
    fn balloon(&self) -> Option<&dyn crate::device::Balloon> {
        None
    }

    /// What there is to say of it now, for people: name and value.
    fn facts(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
}

/// What a device needs to run.
pub struct Activation {
    /// The features that device and driver agreed on, the transport's included.
    pub features: u64,
    /// The queues by their index; `None` for one that the driver does not use.
    pub queues: Vec<Option<Arc<VirtQueue>>>,
    /// For a change of the configuration space.
    pub interrupts: Arc<Interrupts>,
}

impl Activation {
    /// Whether device and driver agreed on all of these features.
    pub fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// The queue with this index, if the driver uses it.
    pub fn queue(&self, index: usize) -> Option<Arc<VirtQueue>> {
        self.queues.get(index).cloned().flatten()
    }
}

/// Copies from a configuration space that is `bytes`: what lies behind its end reads as zero.
pub fn read_bytes(bytes: &[u8], offset: usize, data: &mut [u8]) {
    data.fill(0);
    if let Some(rest) = bytes.get(offset..) {
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }
}
