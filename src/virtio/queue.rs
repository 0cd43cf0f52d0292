//! Split virtqueues (virtio 2.7), by the crate virtio-queue with what it leaves out: the driver's flag against interrupts,
//! and what to do about a ring that contradicts itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use nix::sys::eventfd::EventFd;
use parking_lot::Mutex;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

mod give;
mod many;

pub use give::Given;

use super::chain::{Broken, Chain};
use super::interrupt::Interrupts;
use crate::guest_error;
use crate::memory::ram::LiveRam;

/// Where the driver has put a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rings {
    /// Number of descriptors.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring, which the driver writes.
    pub available: u64,
    /// Guest address of the used ring, which the device writes.
    pub used: u64,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// It is done, and so many bytes were written into its buffers.
    Done(u32),
    /// It cannot be served now and stays first in the queue, whose owner will look again by itself.
    Later,
    /// It is none that the device knows how to answer: the queue is broken. What is wrong with it, for people.
    Malformed(&'static str),
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Nothing is left, and the driver kicks for the next request.
    Empty,
    /// A request waits ([`Served::Later`]), or the device is being stopped.
    Waiting,
    /// The queue wants to be looked at again at once; it has kicked itself.
    Again,
    /// The driver has broken it.
    Broken,
}

/// A queue that the driver has enabled.
pub struct VirtQueue {
    index: u16,
    ram: Arc<LiveRam>,
    interrupts: Arc<Interrupts>,
    kick: Arc<EventFd>,
    /// No further request is taken: the device is being stopped.
    halted: AtomicBool,
    ring: Mutex<Ring>,
}

struct Ring {
    queue: Queue,
    available: GuestAddress,
    used: GuestAddress,
    /// Up to where the driver's wish for interrupts was looked at.
    asked: u16,
    event_idx: bool,
    broken: bool,
}

impl VirtQueue {
    /// The queue of the driver's description.
    ///
    /// # Errors
    /// What is wrong with that: a size that is no power of two or more than `max_size`, rings that are not in memory or
    /// not aligned.
    pub(super) fn new(
        index: u16,
        max_size: u16,
        rings: Rings,
        event_idx: bool,
        ram: Arc<LiveRam>,
        interrupts: Arc<Interrupts>,
        kick: Arc<EventFd>,
    ) -> Result<Arc<VirtQueue>, Broken> {
        let ring = Ring::new(max_size, rings, event_idx)?;
        let now = ram.now().map_err(|error| Broken::new(error.to_string()))?;
        if !ring.queue.is_valid(now.memory()) {
            return Err(Broken::new("its rings are not in memory"));
        }
        Ok(Arc::new(VirtQueue { index, ram, interrupts, kick, halted: AtomicBool::new(false), ring: Mutex::new(ring) }))
    }

    /// Its index in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// What the driver's kick signals.
    pub fn kick(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// Where the driver has put it.
    pub(super) fn rings(&self) -> Rings {
        let ring = self.ring.lock();
        let queue = &ring.queue;
        Rings {
            size: queue.size(),
            descriptors: queue.desc_table(),
            available: ring.available.raw_value(),
            used: ring.used.raw_value(),
        }
    }

    /// The index of the next request in the available ring, for who serves the queue in our place.
    pub(super) fn position(&self) -> u16 {
        self.ring.lock().queue.next_avail()
    }

    /// The next request is the one with this index.
    pub(super) fn set_position(&self, next: u16) {
        self.ring.lock().queue.set_next_avail(next);
    }

    /// How many requests were used, as the ring says.
    pub(super) fn used_index(&self) -> Option<u16> {
        let at = self.ring.lock().used.checked_add(2)?;
        let ram = self.ram.now().ok()?;
        ram.memory().load(at, Ordering::Acquire).map(u16::from_le).ok()
    }

    /// Makes the worker take no further request, or lets it again.
    pub(super) fn halt(&self, on: bool) {
        self.halted.store(on, Ordering::Release);
    }

    /// Serves what is available, with an interrupt after each request where the driver wants one. At most as many requests
    /// as the queue has descriptors, so that the thread hears of a stop however fast the driver is.
    ///
    /// `serve` is called with the queue's lock held: it must not use the same queue.
    pub fn drain(&self, mut serve: impl FnMut(Chain<'_>) -> Served) -> Drained {
        self.work(|ring, ram| ring.drain(ram, &self.halted, &mut serve, || self.interrupts.queue(self.index)))
    }

    /// Works on the ring, and does what that comes to.
    fn work(&self, work: impl FnOnce(&mut Ring, &GuestMemoryMmap) -> Result<Drained, Broken>) -> Drained {
        let mut ring = self.ring.lock();
        if ring.broken {
            return Drained::Broken;
        }
        let drained = match self.ram.now() {
            Ok(ram) => work(&mut ring, ram.memory()),
            Err(error) => Err(Broken::new(error.to_string())),
        };
        match drained {
            Ok(drained) => {
                if drained == Drained::Again {
                    // EAGAIN would mean that the counter is at its maximum: readable all the same.
                    let _ = self.kick.write(1);
                }
                drained
            }
            Err(broken) => {
                self.breaks(&mut ring, &broken);
                Drained::Broken
            }
        }
    }

    /// The driver has broken the queue: it is served no more before a reset.
    fn breaks(&self, ring: &mut Ring, Broken(what): &Broken) {
        ring.broken = true;
        guest_error!(self.interrupts.name(), "queue {}: {what}; the device needs a reset", self.index);
        self.interrupts.need_reset();
    }
}

impl Ring {
    fn new(max_size: u16, rings: Rings, event_idx: bool) -> Result<Ring, Broken> {
        let mut queue = Queue::new(max_size)?;
        queue.try_set_size(rings.size)?;
        queue.try_set_desc_table_address(GuestAddress(rings.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(rings.available))?;
        queue.try_set_used_ring_address(GuestAddress(rings.used))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(Ring {
            queue,
            available: GuestAddress(rings.available),
            used: GuestAddress(rings.used),
            asked: 0,
            event_idx,
            broken: false,
        })
    }

    fn drain(
        &mut self,
        ram: &GuestMemoryMmap,
        halted: &AtomicBool,
        serve: &mut dyn FnMut(Chain<'_>) -> Served,
        interrupt: impl Fn(),
    ) -> Result<Drained, Broken> {
        let mut left = self.queue.size();
        loop {
            self.queue.disable_notification(ram)?;
            // The iterator refuses an index that is further ahead than the queue is long.
            while let Some(found) = self.queue.iter(ram)?.next() {
                if halted.load(Ordering::Acquire) {
                    self.put_back();
                    return Ok(Drained::Waiting);
                }
                if left == 0 {
                    self.put_back();
                    return Ok(Drained::Again);
                }
                left -= 1;
                let head = found.head_index();
                match serve(Chain::parse(found, ram)?) {
                    Served::Done(written) => {
                        self.queue.add_used(ram, head, written)?;
                        if self.wants_interrupt(ram)? {
                            interrupt();
                        }
                    }
                    Served::Later => {
                        self.put_back();
                        return Ok(Drained::Waiting);
                    }
                    Served::Malformed(what) => return Err(Broken::new(what)),
                }
            }
            // Says whether something came between the last look and the driver's leave to kick.
            if !self.queue.enable_notification(ram)? {
                return Ok(Drained::Empty);
            }
        }
    }

    /// The request that was taken last is the next one again.
    fn put_back(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// Whether the driver wants to hear of what was used since it was last asked (virtio 2.7.7.1). Not the crate's, which
    /// does not know the flag, nor what it has not put into the used ring itself.
    fn wants_interrupt(&mut self, ram: &GuestMemoryMmap) -> Result<bool, Broken> {
        let load = |at: GuestAddress| ram.load(at, Ordering::Relaxed).map(u16::from_le);
        let failed = |error: vm_memory::GuestMemoryError| Broken::new(error.to_string());
        // The used index must be visible before the wish is read: the driver says what it wants, then looks at the index.
        fence(Ordering::SeqCst);
        let used = self.queue.next_used();
        let asked = std::mem::replace(&mut self.asked, used);
        if !self.event_idx {
            let flags = load(self.available).map_err(failed)?;
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        // Behind flags, index and entries of the available ring: its place was found to be in memory with the ring.
        let at = self.available.unchecked_add(4 + 2 * u64::from(self.queue.size()));
        let event = load(at).map_err(failed)?;
        Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(asked))
    }
}

#[cfg(test)]
mod tests;
