//! What a disk says of itself: its feature bits and its configuration space (virtio 5.2.3 and 5.2.4). Pure.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::backends::block::BlockInfo;

/// Bytes of a sector, the unit of addresses whatever the block size is.
pub const SECTOR: u64 = 512;
/// Length of struct virtio_blk_config up to and with the members of write zeroes.
pub const LEN: usize = 60;
/// Offset of the write cache's switch, the one byte that a driver may write.
pub const WRITEBACK: usize = 32;
/// The most sectors of one range to discard or to zero, 2 GiB as in QEMU.
pub const MAX_RANGE: u32 = 0x3f_ffff;
/// The most ranges of one such request.
pub const MAX_RANGES: u32 = 32;
/// Descriptors of a request that are no data: header and status.
const NO_DATA: u32 = 2;

/// Feature bits.
pub mod bit {
    use super::*;
    pub const SEG_MAX: u64 = 1 << VIRTIO_BLK_F_SEG_MAX;
    pub const RO: u64 = 1 << VIRTIO_BLK_F_RO;
    pub const BLK_SIZE: u64 = 1 << VIRTIO_BLK_F_BLK_SIZE;
    pub const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
    pub const TOPOLOGY: u64 = 1 << VIRTIO_BLK_F_TOPOLOGY;
    pub const CONFIG_WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;
    pub const MQ: u64 = 1 << VIRTIO_BLK_F_MQ;
    pub const DISCARD: u64 = 1 << VIRTIO_BLK_F_DISCARD;
    pub const WRITE_ZEROES: u64 = 1 << VIRTIO_BLK_F_WRITE_ZEROES;
}

/// What the user says of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of a block that the guest addresses; a power of two of 512 or more.
    pub logical: u32,
    /// Bytes of a block of the medium, if the user says; a power of two, not less than `logical`.
    pub physical: Option<u32>,
    /// Number of queues.
    pub queues: u16,
    /// Descriptors of a queue.
    pub queue_size: u16,
    /// Whether the driver may say what nobody needs any more.
    pub discard: bool,
    /// Whether it may have zeros written.
    pub write_zeroes: bool,
    /// Whether it may switch the write cache.
    pub config_wce: bool,
}

/// The features of a disk: only what the back end can do is offered.
pub fn features(shape: &Shape, info: &BlockInfo) -> u64 {
    let writable = !info.read_only;
    [
        (true, bit::SEG_MAX | bit::BLK_SIZE | bit::TOPOLOGY),
        (info.read_only, bit::RO),
        // Without it a driver knows that every write is on the medium when it is done.
        (info.write_back && writable, bit::FLUSH),
        (info.write_back && writable && shape.config_wce, bit::CONFIG_WCE),
        (shape.queues > 1, bit::MQ),
        (shape.discard && writable && info.discard.is_some(), bit::DISCARD),
        (shape.write_zeroes && writable && info.write_zeroes.is_some(), bit::WRITE_ZEROES),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .fold(0, |features, (_, feature)| features | feature)
}

/// The configuration space.
pub fn space(shape: &Shape, info: &BlockInfo, write_back: bool) -> [u8; LEN] {
    let mut space = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
    let features = features(shape, info);
    let sectors = |bytes: u32| (u64::from(bytes) / SECTOR).max(1) as u32;
    let physical = shape.physical.unwrap_or(info.physical_block_size).max(shape.logical);
    put(0, &(info.len / SECTOR).to_le_bytes());
    put(12, &u32::from(shape.queue_size).saturating_sub(NO_DATA).max(1).to_le_bytes());
    put(20, &shape.logical.to_le_bytes());
    // How many logical blocks make a physical one, as a power of two.
    put(24, &[(physical / shape.logical).max(1).ilog2() as u8]);
    put(WRITEBACK, &[u8::from(write_back)]);
    put(34, &shape.queues.to_le_bytes());
    if let Some(unit) = info.discard.filter(|_| features & bit::DISCARD != 0) {
        put(36, &MAX_RANGE.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &sectors(unit.max(shape.logical)).to_le_bytes());
    }
    if features & bit::WRITE_ZEROES != 0 {
        put(48, &MAX_RANGE.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[1]);
    }
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        logical: 512,
        physical: None,
        queues: 1,
        queue_size: 256,
        discard: true,
        write_zeroes: true,
        config_wce: true,
    };
    const INFO: BlockInfo = BlockInfo {
        len: 1 << 30,
        read_only: false,
        block_size: 1,
        physical_block_size: 4096,
        discard: Some(4096),
        write_zeroes: Some(4096),
        write_back: true,
    };

    #[test]
    fn only_what_the_back_end_can_do_is_offered() {
        let always = bit::SEG_MAX | bit::BLK_SIZE | bit::TOPOLOGY;
        let cache = bit::FLUSH | bit::CONFIG_WCE;
        let zeros = bit::DISCARD | bit::WRITE_ZEROES;
        let table = [
            (SHAPE, INFO, always | cache | zeros),
            (SHAPE, BlockInfo { read_only: true, ..INFO }, always | bit::RO),
            (SHAPE, BlockInfo { discard: None, ..INFO }, always | cache | bit::WRITE_ZEROES),
            (SHAPE, BlockInfo { write_zeroes: None, ..INFO }, always | cache | bit::DISCARD),
            (SHAPE, BlockInfo { write_back: false, ..INFO }, always | zeros),
            (Shape { discard: false, write_zeroes: false, ..SHAPE }, INFO, always | cache),
            (Shape { config_wce: false, queues: 4, ..SHAPE }, INFO, always | bit::FLUSH | zeros | bit::MQ),
        ];
        for (shape, info, expected) in table {
            assert_eq!(features(&shape, &info), expected, "{shape:?} {info:?}");
        }
    }

    #[test]
    fn the_space_is_struct_virtio_blk_config() {
        let space_of = |shape, info| space(&shape, &info, true);
        let u32_at = |space: &[u8], at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        let space = space_of(Shape { queues: 3, ..SHAPE }, INFO);
        assert_eq!(u64::from_le_bytes(space[..8].try_into().unwrap()), 1 << 21);
        assert_eq!([u32_at(&space, 12), u32_at(&space, 20)], [254, 512]);
        assert_eq!((space[24], space[WRITEBACK], space[34]), (3, 1, 3));
        assert_eq!(
            [36, 40, 44, 48, 52].map(|at| u32_at(&space, at)),
            [MAX_RANGE, MAX_RANGES, 8, MAX_RANGE, MAX_RANGES]
        );
        assert_eq!(space[56], 1);
        let space = space_of(Shape { logical: 4096, physical: Some(4096), discard: false, ..SHAPE }, INFO);
        assert_eq!((space[24], u32_at(&space, 36), u32_at(&space, 20)), (0, 0, 4096));
        // A part of a sector at the end is not there.
        assert_eq!(space_of(SHAPE, BlockInfo { len: 1023, ..INFO })[0], 1);
    }
}
