//! Network back ends: where the packets of a network device go to and come from.
//!
//! | file | what |
//! |---|---|
//! | [`tap`] | an interface of the host: a new one, one that is there, or one that passthru was started with |
//! | [`stream`] | a socket on which each packet follows its length |
//! | [`socket`] | the same in QEMU's older words |
//! | [`vhost_user`] | a daemon that serves the device's queues itself |
//! | [`user`] | the host's network without any privilege, by the program passt |
//! | `frames` | packets in a stream of bytes |
//! | `tun` | the requests of /dev/net/tun |
//!
//! A queue is called from one thread of the device at a time. It never blocks: a packet that there is no room for now stays
//! the driver's, and one that nobody takes is lost, as on a wire.

pub mod frames;
pub mod socket;
pub mod stream;
pub mod tap;
#[cfg(test)]
pub mod testing;
mod tun;
pub mod user;
pub mod vhost_user;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bitflags::bitflags;

use super::BackendCx;
use crate::object::{Id, Props, Registry, props};

/// Bytes of the header before each packet: `struct virtio_net_hdr_v1` (virtio 5.1.6), which the kernel's tap shares.
pub const HEADER: usize = 12;
/// The longest packet with its header: the longest that segmentation offload makes, and its Ethernet header with VLAN tags.
pub const MAX_PACKET: usize = HEADER + 65535 + 18;
/// Pairs of queues that a back end may have. Each is a descriptor and a thread.
pub const MAX_PAIRS: u64 = 64;

bitflags! {
    /// What one side may leave to the other in the header of a packet.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Offloads: u8 {
        /// The checksum is not computed yet.
        const CSUM = 1 << 0;
        /// A TCP segment over IPv4 is longer than the MTU.
        const TSO4 = 1 << 1;
        /// The same over IPv6.
        const TSO6 = 1 << 2;
        /// Such a segment may have ECN set.
        const ECN = 1 << 3;
    }
}

/// The host's side of a network device.
pub trait Netdev: Send + Sync {
    /// Its pairs of queues, at least one.
    fn pairs(&self) -> &[Arc<dyn NetQueue>];

    /// What the guest may leave to it, and it to the guest.
    fn offloads(&self) -> Offloads;

    /// What it may leave to the guest from now on: some of [`Netdev::offloads`].
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_offloads(&self, on: Offloads) -> io::Result<()>;

    /// How many of its pairs get packets: the first ones.
    ///
    /// # Errors
    /// The kernel refuses.
    fn set_pairs(&self, count: usize) -> io::Result<()>;

    /// Where the packets go, for people.
    fn place(&self) -> String;

    /// The taps of its pairs, if the kernel is to move the packets itself (vhost-net).
    fn taps(&self) -> Vec<&File> {
        Vec::new()
    }

    /// The socket of the daemon that moves the packets itself (vhost-user).
    fn daemon(&self) -> Option<&str> {
        None
    }
}

/// A queue each way. Packets have their [`HEADER`] in front.
pub trait NetQueue: Send + Sync {
    /// What becomes readable when a packet is there.
    fn watch(&self) -> &Arc<OwnedFd>;

    /// Takes the next packet into `into`, which has room for [`MAX_PACKET`] bytes; `None`: none is there.
    ///
    /// # Errors
    /// Nothing will come any more.
    fn receive(&self, into: &mut [u8]) -> io::Result<Option<usize>>;

    /// Sends a packet, perhaps only with the next [`NetQueue::flush`].
    ///
    /// # Errors
    /// Nothing can be sent any more.
    fn send(&self, packet: &[u8]) -> io::Result<Sent>;

    /// Sends what waits; `false`: there is no room for all of it.
    ///
    /// # Errors
    /// Those of [`NetQueue::send`].
    fn flush(&self) -> io::Result<bool> {
        Ok(true)
    }

    /// What becomes writable when there is room again; `None`: there always is.
    fn room(&self) -> Option<&Arc<OwnedFd>> {
        None
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way, or lost.
    Taken,
    /// There is no room for it now.
    Later,
}

/// The types of `--netdev`.
pub static NETDEVS: Registry<Arc<dyn Netdev>, BackendCx> = Registry {
    what: "network back end",
    option: "--netdev",
    key: "type",
    common: Common::TABLE,
    on_bus: &[],
    aliases: &[],
    types: &[&tap::TYPE, &user::TYPE, &stream::TYPE, &socket::TYPE, &vhost_user::TYPE],
};

props! {
    /// What every network back end has.
    pub struct Common {
        /// Unique name of the back end
        id: Id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::testing::check_registry;

    #[test]
    fn the_table_is_sound() {
        check_registry(&NETDEVS);
    }
}
