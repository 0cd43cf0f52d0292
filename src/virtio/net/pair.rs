//! The thread of one pair of queues: packets from the back end into the driver's buffers, and the driver's to the back end.

use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Shared;
use super::config::bit;
use super::control;
use crate::backends::net::{HEADER, MAX_PACKET, NetQueue, Sent};
use crate::error::{Error, Result};
use crate::virtio::{Buffers, Given, Serve, Served, Source, VirtQueue, feature};

/// Packets that are taken from the back end before the thread looks at anything else.
const BATCH: usize = 64;
/// Where a packet's header has the number of buffers that it lies in (num_buffers). For a legacy driver that merges no
/// buffers the header ends there (virtio 5.1.6.1).
const NUM_BUFFERS: usize = 10;

/// What the worker of one pair does.
pub struct Pair {
    pub shared: Arc<Shared>,
    pub features: u64,
    pub back: Arc<dyn NetQueue>,
    /// To the driver.
    pub receive: Option<Arc<VirtQueue>>,
    /// From the driver.
    pub transmit: Option<Arc<VirtQueue>>,
    /// The control queue, which the first pair's worker serves, too.
    pub control: Option<Arc<VirtQueue>>,
    pub buffers: Packets,
}

/// The packets that a worker has at hand.
pub struct Packets {
    incoming: Vec<u8>,
    /// Bytes of a packet that came and that the driver had no room for yet.
    waiting: usize,
    outgoing: Vec<u8>,
    /// The back end has no room, and packets of the driver wait.
    full: bool,
}

impl Default for Packets {
    fn default() -> Self {
        Packets { incoming: vec![0; MAX_PACKET], waiting: 0, outgoing: vec![0; MAX_PACKET], full: false }
    }
}

/// What a worker's sources are, in their order.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Receive,
    Transmit,
    Packet,
    Control,
    Room,
}

const EVENTS: [Event; 5] = [Event::Receive, Event::Transmit, Event::Packet, Event::Control, Event::Room];

impl Pair {
    /// What the worker waits for: the order is that of [`EVENTS`], where a queue that is not served here has a descriptor
    /// of its own that never becomes readable (epoll takes none twice).
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn sources(&self) -> Result<Vec<Source>> {
        let never = || {
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map(|never| Source::Event(Arc::new(never)))
                .map_err(|error| Error::system("make an eventfd", &error.into()))
        };
        let kick = |queue: &Option<Arc<VirtQueue>>| match queue {
            Some(queue) => Ok(Source::Event(queue.kick().clone())),
            None => never(),
        };
        Ok(vec![
            kick(&self.receive)?,
            kick(&self.transmit)?,
            Source::Readable(self.back.watch().clone()),
            kick(&self.control)?,
            self.back.room().map_or_else(never, |room| Ok(Source::Writable(room.clone())))?,
        ])
    }

    /// Packets for the driver, as long as there are some and it has room. It is told once of all of them.
    fn receive(&mut self) {
        let Some(queue) = self.receive.clone() else { return };
        self.receive_some(&queue);
        queue.tell();
    }

    fn receive_some(&mut self, queue: &VirtQueue) {
        let most = if self.features & bit::MRG_RXBUF != 0 { u16::MAX } else { 1 };
        for _ in 0..BATCH {
            let Packets { incoming, waiting, .. } = &mut self.buffers;
            if *waiting == 0 {
                match self.back.receive(incoming) {
                    // What has no header is no packet, and is lost.
                    Ok(Some(len)) if len < HEADER => continue,
                    Ok(Some(len)) => *waiting = len,
                    Ok(None) => return,
                    Err(error) => return self.shared.link_lost(&error),
                }
            }
            let packet = &mut incoming[..*waiting];
            let header = header_len(self.features);
            let given = queue.give((packet.len() - (HEADER - header)) as u64, most, |count, to| {
                packet[NUM_BUFFERS..HEADER].copy_from_slice(&count.to_le_bytes());
                // A short header ends where the packet begins.
                packet.copy_within(..header, HEADER - header);
                let mut rest = &packet[HEADER - header..];
                to.iter_mut().for_each(|buffers| {
                    let written = buffers.write(rest);
                    rest = &rest[written..];
                });
            });
            match given {
                Given::Done | Given::TooLong => *waiting = 0,
                // Its kick comes when there is room.
                Given::NoRoom => return,
                Given::Broken => return,
            }
        }
        // There may be more: the back end's descriptor is still readable.
    }

    fn transmit(&mut self) {
        let Some(queue) = &self.transmit else { return };
        let (back, outgoing, shared) = (&self.back, &mut self.buffers.outgoing, &self.shared);
        let header = header_len(self.features);
        queue.drain(|chain| send(&**back, outgoing, shared, header, chain.readable));
        self.buffers.full = match back.flush() {
            Ok(all) => !all,
            Err(error) => {
                shared.link_lost(&error);
                false
            }
        };
    }

    fn control(&mut self) {
        let Some(queue) = &self.control else { return };
        queue.drain(|chain| control::serve(self.features, chain, |request| self.shared.act(request)));
    }
}

/// Bytes of the header that the driver has in front of each packet.
fn header_len(features: u64) -> usize {
    if features & (bit::MRG_RXBUF | feature::VERSION_1) == 0 { NUM_BUFFERS } else { HEADER }
}

/// Sends one packet. What is too long for a packet, or shorter than its header, is lost.
fn send(back: &dyn NetQueue, outgoing: &mut [u8], shared: &Shared, header: usize, mut from: Buffers<'_>) -> Served {
    let missing = HEADER - header;
    let fits = (header as u64..=(MAX_PACKET - missing) as u64).contains(&from.len());
    if fits && shared.is_up() {
        let len = from.read(&mut outgoing[missing..]) + missing;
        outgoing.copy_within(missing..HEADER, 0);
        outgoing[header..HEADER].fill(0);
        match back.send(&outgoing[..len]) {
            Ok(Sent::Taken) => {}
            Ok(Sent::Later) => return Served::Later,
            Err(error) => shared.link_lost(&error),
        }
    }
    Served::Done(0)
}

impl Serve for Pair {
    fn ready(&mut self, source: usize) {
        match EVENTS.get(source) {
            Some(Event::Receive | Event::Packet) => self.receive(),
            Some(Event::Transmit | Event::Room) => self.transmit(),
            Some(Event::Control) => self.control(),
            None => {}
        }
    }

    fn paused(&self, source: usize) -> bool {
        let Packets { waiting, full, .. } = self.buffers;
        match EVENTS.get(source) {
            // As long as the driver has no room, the packets wait in the back end; a link that is gone stays readable.
            Some(Event::Packet) => waiting > 0 || self.receive.is_none() || !self.shared.is_up(),
            // The end of a link is told as room: what waits is lost then.
            Some(Event::Room) => !full,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_short_for_a_legacy_driver_without_merging() {
        assert_eq!([header_len(0), header_len(bit::MRG_RXBUF), header_len(feature::VERSION_1)], [10, 12, 12]);
    }
}
