//! What the adapter tells its driver of units that come and go (virtio 5.6.6.3).

use std::collections::VecDeque;
use std::sync::Arc;

use nix::sys::eventfd::EventFd;
use parking_lot::Mutex;

use crate::scsi::{Address, Change};
use crate::virtio::{Given, VirtQueue};

/// Events that wait for the driver to take them; with more it is told that some are missing, and looks everywhere.
const MAX_WAITING: usize = 64;
/// Bytes of an event.
const LEN: usize = 16;

const TRANSPORT_RESET: u32 = 1;
const NO_EVENT: u32 = 0;
/// Set in an event if others before it were lost.
const MISSED: u32 = 1 << 31;
/// Reasons of a transport reset.
const RESCAN: u32 = 1;
const REMOVED: u32 = 2;

/// Events on their way to the driver.
pub struct Events {
    wake: Arc<EventFd>,
    /// Innermost but for the ring's, with which it is held: events keep their order.
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// The driver wants to hear.
    on: bool,
    events: VecDeque<(Address, Change)>,
    missed: bool,
}

impl Events {
    /// None yet; `wake` wakes who calls [`Events::give`].
    pub fn new(wake: Arc<EventFd>) -> Events {
        Events { wake, waiting: Mutex::default() }
    }

    /// What is signalled when there is an event.
    pub fn wake(&self) -> &Arc<EventFd> {
        &self.wake
    }

    /// A driver begins, which looks at all units by itself first.
    pub fn begin(&self, on: bool) {
        *self.waiting.lock() = Waiting { on, ..Waiting::default() };
    }

    /// Adds an event.
    pub fn push(&self, at: Address, change: Change) {
        let mut waiting = self.waiting.lock();
        if !waiting.on {
            return;
        }
        match waiting.events.len() < MAX_WAITING {
            true => waiting.events.push_back((at, change)),
            false => waiting.missed = true,
        }
        // EAGAIN would mean that the counter is at its maximum: signalled all the same.
        let _ = self.wake.write(1);
    }

    /// Gives the driver what it has room for.
    pub fn give(&self, queue: &VirtQueue) {
        let mut waiting = self.waiting.lock();
        loop {
            let missed = if waiting.missed { MISSED } else { 0 };
            let event = match waiting.events.front() {
                Some((at, change)) => encode(*at, *change, missed),
                None if waiting.missed => {
                    let mut event = [0; LEN];
                    event[..4].copy_from_slice(&(NO_EVENT | MISSED).to_le_bytes());
                    event
                }
                None => return,
            };
            let given = queue.give(LEN as u64, 1, |_, buffers| {
                buffers.iter_mut().for_each(|buffer| {
                    buffer.write(&event);
                });
            });
            match given {
                Given::Done => {
                    queue.tell();
                    waiting.events.pop_front();
                    waiting.missed = false;
                }
                // The driver kicks when there is room.
                Given::NoRoom | Given::TooLong | Given::Broken => return,
            }
        }
    }
}

fn encode(at: Address, change: Change, missed: u32) -> [u8; LEN] {
    let reason = match change {
        Change::Added => RESCAN,
        Change::Removed => REMOVED,
    };
    let mut event = [0; LEN];
    event[..4].copy_from_slice(&(TRANSPORT_RESET | missed).to_le_bytes());
    // As the driver addresses units itself.
    let [high, low] = (at.lun | 0x4000).to_be_bytes();
    event[4..8].copy_from_slice(&[1, at.target, if at.lun < 256 { 0 } else { high }, low]);
    event[12..].copy_from_slice(&reason.to_le_bytes());
    event
}
