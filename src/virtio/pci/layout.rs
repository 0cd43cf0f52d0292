//! Where a device's registers are in its BAR, and the capabilities that say so (virtio 4.1.4). Pure.
//!
//! Each block has pages of its own, at the offsets where QEMU has them.

use std::ops::Range;

use crate::memory::host::PAGE;

/// The BAR with all blocks: 64-bit, prefetchable (a read has no side effect but the ISR's, which has a page of its own).
pub const BAR: u8 = 4;
/// The BAR with the MSI-X table.
pub const MSIX_BAR: u8 = 1;
/// The BAR with the device's shared memory, if it has some: 64-bit, prefetchable.
pub const MEMORY_BAR: u8 = 2;
/// Bytes between the doorbells of neighbouring queues.
pub const NOTIFY_MULTIPLIER: u32 = 4;
/// The most queues of a device: their doorbells share a page.
pub const MAX_QUEUES: u16 = (PAGE / NOTIFY_MULTIPLIER as u64) as u16;

/// Length of the common configuration (virtio 4.1.4.3), up to and with queue_device.
pub const COMMON_LEN: u64 = 0x38;
/// Length of the ISR status (virtio 4.1.4.5).
const ISR_LEN: u64 = 1;

/// The blocks, in the order of their `cfg_type` (virtio 4.1.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Features, status, queues.
    Common = 1,
    /// Doorbells.
    Notify = 2,
    /// The cause of an interrupt by the pin.
    Isr = 3,
    /// The device's own configuration space.
    Device = 4,
}

/// The `cfg_type` of the capability that reaches BARs through configuration space (virtio 4.1.4.9).
const CFG_ACCESS: u8 = 5;
/// The `cfg_type` of the capability that names shared memory (virtio 4.1.4.7).
const SHARED_MEMORY: u8 = 8;
/// Registers of that capability from its start.
pub const CFG_BAR: u16 = 4;
/// Offset in the BAR.
pub const CFG_OFFSET: u16 = 8;
/// Bytes of the access.
pub const CFG_LENGTH: u16 = 12;
/// The data, 4 bytes.
pub const CFG_DATA: u16 = 16;

/// Where the blocks of a device are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Each with its bytes in the BAR; ascending.
    pub blocks: Vec<(Block, Range<u64>)>,
    /// Size of the BAR.
    pub bar_size: u64,
}

impl Layout {
    /// The layout for a device with so many bytes of configuration space and so many queues.
    pub fn new(config_len: u32, queues: u16) -> Layout {
        let lengths = [
            (Block::Common, COMMON_LEN),
            (Block::Isr, ISR_LEN),
            (Block::Device, u64::from(config_len)),
            (Block::Notify, u64::from(NOTIFY_MULTIPLIER) * u64::from(queues.clamp(1, MAX_QUEUES))),
        ];
        let mut next = 0;
        let mut blocks = Vec::new();
        for (block, len) in lengths {
            if len > 0 {
                blocks.push((block, next..next + len));
            }
            next += len.max(1).next_multiple_of(PAGE);
        }
        Layout { blocks, bar_size: next.next_power_of_two() }
    }

    /// The capabilities, each without id and link, in the order of the list.
    pub fn capabilities(&self) -> Vec<Vec<u8>> {
        self.blocks.iter().map(|(block, range)| capability(*block, range)).collect()
    }
}

/// struct virtio_pci_cap from `cap_len` on.
fn body(kind: u8, bar: u8, offset: u32, length: u32, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, kind, bar, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(more);
    body
}

fn capability(block: Block, range: &Range<u64>) -> Vec<u8> {
    let (offset, length) = (range.start as u32, (range.end - range.start) as u32);
    match block {
        Block::Notify => body(block as u8, BAR, offset, length, &NOTIFY_MULTIPLIER.to_le_bytes()),
        _ => body(block as u8, BAR, offset, length, &[]),
    }
}

/// The capability by which firmware without memory decoding reaches the blocks, without id and link.
pub fn cfg_access() -> Vec<u8> {
    body(CFG_ACCESS, 0, 0, 0, &[0; 4])
}

/// The capability that names the shared memory region 0, which is so many bytes from the start of its BAR, without id and
/// link.
pub fn shared_memory(len: u64) -> Vec<u8> {
    // Lower halves where every capability has them, then the upper ones.
    let upper = [[0; 4], ((len >> 32) as u32).to_le_bytes()].concat();
    body(SHARED_MEMORY, MEMORY_BAR, 0, len as u32, &upper)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blocks_are_where_qemu_has_them() {
        let layout = Layout::new(60, 2);
        assert_eq!(layout.bar_size, 0x4000);
        let expected = [
            (Block::Common, 0..0x38),
            (Block::Isr, 0x1000..0x1001),
            (Block::Device, 0x2000..0x203c),
            (Block::Notify, 0x3000..0x3008),
        ];
        assert_eq!(layout.blocks, expected);
    }

    #[test]
    fn a_device_without_configuration_has_no_capability_for_it() {
        let capabilities = Layout::new(0, 1).capabilities();
        assert_eq!(capabilities.iter().map(|body| body[1]).collect::<Vec<_>>(), [1, 3, 2]);
        // Length, type, BAR, id and padding; offset; length; multiplier.
        assert_eq!(capabilities[2], [20, 2, 4, 0, 0, 0, 0, 0x30, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(cfg_access().len(), 18);
    }

    #[test]
    fn shared_memory_has_64_bits() {
        let expected = [24, 8, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0];
        assert_eq!(shared_memory(0x3_0000_1000), expected);
    }

    proptest! {
        #[test]
        fn blocks_never_share_a_page(config_len in 0u32..0x3000, queues in 0u16..2000) {
            let layout = Layout::new(config_len, queues);
            prop_assert!(layout.bar_size.is_power_of_two());
            for pair in layout.blocks.windows(2) {
                prop_assert!(pair[0].1.end.next_multiple_of(PAGE) <= pair[1].1.start);
            }
            prop_assert!(layout.blocks.last().is_some_and(|(_, range)| range.end <= layout.bar_size));
        }
    }
}
