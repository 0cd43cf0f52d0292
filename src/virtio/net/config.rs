//! What a network device says of itself: its feature bits and its configuration space (virtio 5.1.3 and 5.1.4). Pure.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
};

use crate::backends::net::Offloads;

/// Length of struct virtio_net_config up to and with the MTU.
pub const LEN: usize = 12;
/// The status of a device whose link is there.
const LINK_UP: u16 = 1;

/// Feature bits.
pub mod bit {
    use super::*;
    pub const CSUM: u64 = 1 << VIRTIO_NET_F_CSUM;
    pub const GUEST_CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
    pub const MTU: u64 = 1 << VIRTIO_NET_F_MTU;
    pub const MAC: u64 = 1 << VIRTIO_NET_F_MAC;
    pub const GUEST_TSO4: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;
    pub const GUEST_TSO6: u64 = 1 << VIRTIO_NET_F_GUEST_TSO6;
    pub const GUEST_ECN: u64 = 1 << VIRTIO_NET_F_GUEST_ECN;
    pub const HOST_TSO4: u64 = 1 << VIRTIO_NET_F_HOST_TSO4;
    pub const HOST_TSO6: u64 = 1 << VIRTIO_NET_F_HOST_TSO6;
    pub const HOST_ECN: u64 = 1 << VIRTIO_NET_F_HOST_ECN;
    pub const MRG_RXBUF: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
    pub const STATUS: u64 = 1 << VIRTIO_NET_F_STATUS;
    pub const CTRL_VQ: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;
    pub const CTRL_RX: u64 = 1 << VIRTIO_NET_F_CTRL_RX;
    pub const MQ: u64 = 1 << VIRTIO_NET_F_MQ;
}

/// What is the device's own, whoever moves its packets.
pub const OWN: u64 = bit::MTU | bit::MAC | bit::STATUS | bit::CTRL_VQ | bit::CTRL_RX | bit::MQ;

/// What the back end's abilities are called on either side: what the guest may leave to the device, and the device to the
/// guest.
const OFFLOADS: [(Offloads, u64, u64); 4] = [
    (Offloads::CSUM, bit::CSUM, bit::GUEST_CSUM),
    (Offloads::TSO4, bit::HOST_TSO4, bit::GUEST_TSO4),
    (Offloads::TSO6, bit::HOST_TSO6, bit::GUEST_TSO6),
    (Offloads::ECN, bit::HOST_ECN, bit::GUEST_ECN),
];

/// What the user says of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Its address.
    pub mac: [u8; 6],
    /// The largest packet without its Ethernet header, if the guest is told.
    pub mtu: Option<u16>,
    /// Pairs of queues.
    pub pairs: u16,
    /// Descriptors of a queue.
    pub queue_size: u16,
    /// Whether packets may lie in several buffers of the driver's.
    pub mergeable: bool,
    /// What the user lets the two sides leave to each other.
    pub offloads: Offloads,
}

/// The features: only what the back end can do is offered.
pub fn features(shape: &Shape, back: Offloads) -> u64 {
    let offloads = shape.offloads & back;
    let offered = OFFLOADS.into_iter().filter(|(offload, ..)| offloads.contains(*offload));
    let offered = offered.fold(0, |bits, (_, host, guest)| bits | host | guest);
    [
        (true, bit::MAC | bit::STATUS | bit::CTRL_VQ | bit::CTRL_RX),
        (shape.mtu.is_some(), bit::MTU),
        (shape.mergeable, bit::MRG_RXBUF),
        (shape.pairs > 1, bit::MQ),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .fold(offered, |bits, (_, bit)| bits | bit)
}

/// What the device may leave to a guest that agreed on `features`.
pub fn guest_offloads(features: u64) -> Offloads {
    let agreed = OFFLOADS.into_iter().filter(|(.., guest)| features & guest != 0);
    agreed.fold(Offloads::empty(), |all, (offload, ..)| all | offload)
}

/// The index of the control queue, which comes after all others that there can be (virtio 5.1.2).
pub fn control_queue(shape: &Shape, features: u64) -> usize {
    2 * if features & bit::MQ != 0 { usize::from(shape.pairs) } else { 1 }
}

/// The configuration space. `link`: whether the other end is there.
pub fn space(shape: &Shape, link: bool) -> [u8; LEN] {
    let mut space = [0; LEN];
    let status = if link { LINK_UP } else { 0 };
    space[..6].copy_from_slice(&shape.mac);
    space[6..8].copy_from_slice(&status.to_le_bytes());
    space[8..10].copy_from_slice(&shape.pairs.to_le_bytes());
    space[10..12].copy_from_slice(&shape.mtu.unwrap_or(0).to_le_bytes());
    space
}

#[cfg(test)]
pub const SHAPE: Shape = Shape {
    mac: [0x52, 0x54, 0, 0x12, 0x34, 0x56],
    mtu: None,
    pairs: 1,
    queue_size: 256,
    mergeable: true,
    offloads: Offloads::all(),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_back_end_cannot_do_is_not_offered() {
        let plain = features(&SHAPE, Offloads::empty());
        assert_eq!(plain, bit::MAC | bit::STATUS | bit::CTRL_VQ | bit::CTRL_RX | bit::MRG_RXBUF);
        let csum = features(&SHAPE, Offloads::CSUM);
        assert_eq!(csum ^ plain, bit::CSUM | bit::GUEST_CSUM);
        let refused = Shape { offloads: Offloads::CSUM, mergeable: false, ..SHAPE };
        assert_eq!(features(&refused, Offloads::all()) & (bit::GUEST_TSO4 | bit::HOST_TSO4 | bit::MRG_RXBUF), 0);
        let wide = Shape { pairs: 4, mtu: Some(9000), ..SHAPE };
        assert_eq!(features(&wide, Offloads::empty()) ^ plain, bit::MQ | bit::MTU);
    }

    #[test]
    fn what_the_guest_takes_is_what_it_agreed_on() {
        assert_eq!(guest_offloads(features(&SHAPE, Offloads::all())), Offloads::all());
        assert_eq!(guest_offloads(bit::CSUM | bit::HOST_TSO4), Offloads::empty());
        assert_eq!(guest_offloads(bit::GUEST_CSUM | bit::GUEST_TSO6), Offloads::CSUM | Offloads::TSO6);
    }

    #[test]
    fn the_control_queue_is_the_last() {
        let wide = Shape { pairs: 4, ..SHAPE };
        assert_eq!((control_queue(&wide, bit::MQ), control_queue(&wide, 0), control_queue(&SHAPE, 0)), (8, 2, 2));
    }

    #[test]
    fn the_configuration_space() {
        let wide = Shape { pairs: 2, mtu: Some(9000), ..SHAPE };
        assert_eq!(space(&wide, true), [0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 2, 0, 0x28, 0x23]);
        assert_eq!(space(&SHAPE, false)[6..], [0, 0, 1, 0, 0, 0]);
    }
}
