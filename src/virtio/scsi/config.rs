//! What an adapter says of itself: its feature bits and its configuration space (virtio 5.6.3 and 5.6.4). Pure.

use crate::scsi::{MAX_LUN, MAX_TARGET};

/// Length of struct virtio_scsi_config.
pub const LEN: usize = 36;
/// Where the driver's two lengths are.
const SENSE_SIZE: usize = 20;
const CDB_SIZE: usize = 24;
/// Bytes of an event.
const EVENT_INFO: u32 = 16;
/// Descriptors of a command that are no data: header and response.
const NO_DATA: u32 = 2;
/// The most that the driver can make of the lengths: more than any command needs.
const MAX_SENSE: u32 = 252;
const MAX_CDB: u32 = 260;

/// Feature bits.
pub mod feature {
    /// The driver is told of units that come and go.
    pub const HOTPLUG: u64 = 1 << 1;
    /// The driver is told of units that change.
    pub const CHANGE: u64 = 1 << 2;
}

/// What the user says of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of queues for commands.
    pub queues: u16,
    /// Descriptors of a queue.
    pub queue_size: u16,
    /// The longest transfer, in units of 512 bytes.
    pub max_sectors: u32,
    /// The most commands of a unit at a time.
    pub cmd_per_lun: u32,
    pub hotplug: bool,
    pub change: bool,
}

/// Lengths of the parts of a request, of which the driver may change two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Of sense data.
    pub sense: u32,
    /// Of a command.
    pub cdb: u32,
}

impl Default for Sizes {
    fn default() -> Sizes {
        Sizes { sense: 96, cdb: 32 }
    }
}

impl Sizes {
    /// A write of a whole field; what is beyond any sense is not taken.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        match offset {
            SENSE_SIZE if value <= MAX_SENSE => self.sense = value,
            CDB_SIZE if value <= MAX_CDB => self.cdb = value,
            _ => {}
        }
    }
}

/// The features of an adapter.
pub fn features(shape: &Shape) -> u64 {
    let offered = [(shape.hotplug, feature::HOTPLUG), (shape.change, feature::CHANGE)];
    offered.into_iter().filter(|(on, _)| *on).fold(0, |features, (_, feature)| features | feature)
}

/// The configuration space.
pub fn space(shape: &Shape, sizes: Sizes) -> [u8; LEN] {
    let mut space = [0; LEN];
    let mut put = |at: usize, value: u32| space[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put(0, shape.queues.into());
    put(4, u32::from(shape.queue_size).saturating_sub(NO_DATA).max(1));
    put(8, shape.max_sectors);
    put(12, shape.cmd_per_lun);
    put(16, EVENT_INFO);
    put(SENSE_SIZE, sizes.sense);
    put(CDB_SIZE, sizes.cdb);
    // The highest channel, 0, and the highest target are two bytes each.
    put(28, u32::from(MAX_TARGET) << 16);
    put(32, MAX_LUN.into());
    space
}
