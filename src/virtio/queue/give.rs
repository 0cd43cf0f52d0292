//! Bytes for the driver that may need several of its requests: the packets of a network device (virtio 5.1.6.3).

use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestMemoryMmap};

use super::{Ring, VirtQueue};
use crate::memory::Buffers;
use crate::virtio::chain::{Broken, Chain};

/// Requests that bytes may need before their list needs memory of its own: a packet without offloads needs one.
const INLINE: usize = 2;

/// What became of bytes for the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// It has them.
    Done,
    /// It has not made enough requests yet, or the device is being stopped; the driver kicks when it makes the next.
    NoRoom,
    /// As many requests as they may take have no room for them.
    TooLong,
    /// The driver has broken the queue.
    Broken,
}

impl VirtQueue {
    /// Gives the driver `len` bytes, in as many of its requests as they need and `most` at most. All of these are used at
    /// once, so that the driver never sees a part. `fill` is told their number and writes into their buffers, in order.
    ///
    /// The driver is not told: that is for [`VirtQueue::tell`], after the last of several.
    pub fn give(&self, len: u64, most: u16, fill: impl FnOnce(u16, &mut [Buffers<'_>])) -> Given {
        let mut ring = self.ring.lock();
        if ring.broken {
            return Given::Broken;
        }
        let given = match self.ram.now() {
            Ok(ram) => ring.give(ram.memory(), &self.halted, len, most, fill),
            Err(error) => Err(Broken::new(error.to_string())),
        };
        given.unwrap_or_else(|broken| {
            self.breaks(&mut ring, &broken);
            Given::Broken
        })
    }

    /// Interrupts the driver if it wants to hear of what it was given since it was last told.
    pub fn tell(&self) {
        let mut ring = self.ring.lock();
        if ring.broken {
            return;
        }
        let wants = match self.ram.now() {
            Ok(ram) => ring.wants_interrupt(ram.memory()),
            Err(error) => Err(Broken::new(error.to_string())),
        };
        match wants {
            Ok(true) => self.interrupts.queue(self.index),
            Ok(false) => {}
            Err(broken) => self.breaks(&mut ring, &broken),
        }
    }
}

impl Ring {
    fn give(
        &mut self,
        ram: &GuestMemoryMmap,
        halted: &AtomicBool,
        len: u64,
        most: u16,
        fill: impl FnOnce(u16, &mut [Buffers<'_>]),
    ) -> Result<Given, Broken> {
        let most = most.min(self.queue.size());
        let first = self.queue.next_avail();
        loop {
            self.queue.disable_notification(ram)?;
            let mut heads: SmallVec<[(u16, u64); INLINE]> = SmallVec::new();
            let mut buffers: SmallVec<[Buffers<'_>; INLINE]> = SmallVec::new();
            let mut room = 0;
            while room < len && heads.len() < usize::from(most) {
                let Some(found) = self.queue.iter(ram)?.next() else { break };
                let head = found.head_index();
                let Chain { writable, .. } = Chain::parse(found, ram)?;
                room += writable.len();
                heads.push((head, writable.len()));
                buffers.push(writable);
            }
            if halted.load(Ordering::Acquire) {
                self.queue.set_next_avail(first);
                return Ok(Given::NoRoom);
            }
            if room >= len {
                // Not more than `most`.
                fill(heads.len() as u16, &mut buffers);
                self.use_all(ram, &heads, len)?;
                return Ok(Given::Done);
            }
            if heads.len() == usize::from(most) {
                self.queue.set_next_avail(first);
                return Ok(Given::TooLong);
            }
            // With everything taken, so that the driver kicks for the next request and not for one that is there.
            let more = self.queue.enable_notification(ram)?;
            self.queue.set_next_avail(first);
            if !more {
                return Ok(Given::NoRoom);
            }
        }
    }

    /// Shows the driver that these requests are done, which hold `len` bytes together: first all entries of the used ring,
    /// then its index.
    fn use_all(&mut self, ram: &GuestMemoryMmap, heads: &[(u16, u64)], len: u64) -> Result<(), Broken> {
        /// Offsets in the used ring, and the length of an entry (virtio 2.7.8).
        const INDEX: u64 = 2;
        const ENTRIES: u64 = 4;
        const ENTRY: u64 = 8;
        let failed = |error: vm_memory::GuestMemoryError| Broken::new(error.to_string());
        let at = |offset: u64| {
            self.used.checked_add(offset).ok_or_else(|| Broken::new("the used ring is at the end of the address space"))
        };
        let (mut next, mut left) = (self.queue.next_used(), len);
        for (head, room) in heads {
            let slot = u64::from(next % self.queue.size());
            // A request's room is less than 4 GiB.
            let written = (*room).min(left) as u32;
            left -= u64::from(written);
            let entry = [u32::from(*head).to_le(), written.to_le()];
            ram.write_obj(entry, at(ENTRIES + ENTRY * slot)?).map_err(failed)?;
            next = next.wrapping_add(1);
        }
        ram.store(next.to_le(), at(INDEX)?, Ordering::Release).map_err(failed)?;
        self.queue.set_next_used(next);
        Ok(())
    }
}
