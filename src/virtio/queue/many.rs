//! Several requests at a time, for a back end that does them together.

use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::{Drained, Ring, Served, VirtQueue};
use crate::virtio::chain::{Broken, Chain};

impl VirtQueue {
    /// As [`VirtQueue::drain`], with up to `most` requests at a time, at least one, and an interrupt after all of them where
    /// the driver wants one.
    ///
    /// `serve` says in their order what became of them. From the first on that is to be served later, or that it says nothing
    /// of, they stay in the queue: what was done of these is done again.
    pub fn drain_many(&self, most: usize, mut serve: impl FnMut(Vec<Chain<'_>>) -> Vec<Served>) -> Drained {
        let interrupt = || self.interrupts.queue(self.index);
        self.work(|ring, ram| ring.drain_many(ram, &self.halted, most, &mut serve, interrupt))
    }
}

/// Requests that were taken out of the ring.
#[derive(Default)]
struct Taken<'a> {
    heads: Vec<u16>,
    chains: Vec<Chain<'a>>,
    /// Why the one behind them cannot be.
    broken: Option<Broken>,
}

impl Ring {
    fn drain_many(
        &mut self,
        ram: &GuestMemoryMmap,
        halted: &AtomicBool,
        most: usize,
        serve: &mut dyn FnMut(Vec<Chain<'_>>) -> Vec<Served>,
        interrupt: impl Fn(),
    ) -> Result<Drained, Broken> {
        let mut left = usize::from(self.queue.size());
        loop {
            self.queue.disable_notification(ram)?;
            loop {
                if halted.load(Ordering::Acquire) {
                    return Ok(Drained::Waiting);
                }
                if left == 0 {
                    return Ok(Drained::Again);
                }
                let first = self.queue.next_avail();
                let Taken { heads, chains, broken } = self.take(ram, most.clamp(1, left))?;
                left -= heads.len();
                let served = if chains.is_empty() { Vec::new() } else { serve(chains) };
                let mut used = 0;
                let mut malformed = None;
                for (head, served) in heads.iter().zip(served) {
                    match served {
                        Served::Done(written) => self.queue.add_used(ram, *head, written)?,
                        Served::Later => break,
                        Served::Malformed(what) => {
                            malformed = Some(Broken::new(what));
                            break;
                        }
                    }
                    used += 1;
                }
                if used > 0 && self.wants_interrupt(ram)? {
                    interrupt();
                }
                if let Some(broken) = malformed {
                    return Err(broken);
                }
                if used < heads.len() {
                    // Less than the queue is long.
                    self.queue.set_next_avail(first.wrapping_add(used as u16));
                    return Ok(Drained::Waiting);
                }
                match broken {
                    Some(broken) => return Err(broken),
                    None if heads.is_empty() => break,
                    None => {}
                }
            }
            // Says whether something came between the last look and the driver's leave to kick.
            if !self.queue.enable_notification(ram)? {
                return Ok(Drained::Empty);
            }
        }
    }

    /// Takes up to `most` requests.
    fn take<'a>(&mut self, ram: &'a GuestMemoryMmap, most: usize) -> Result<Taken<'a>, Broken> {
        let mut taken = Taken::default();
        while taken.heads.len() < most {
            let Some(found) = self.queue.iter(ram)?.next() else { break };
            let head = found.head_index();
            match Chain::parse(found, ram) {
                Ok(chain) => {
                    taken.heads.push(head);
                    taken.chains.push(chain);
                }
                Err(broken) => {
                    taken.broken = Some(broken);
                    break;
                }
            }
        }
        Ok(taken)
    }
}
