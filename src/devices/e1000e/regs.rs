//! Offsets of the registers that do something, and their bits (Intel 82574 datasheet, section 10.2).

/// Device control.
pub const CTRL: u32 = 0x0000;
/// No new DMA is begun (GIO master disable).
pub const CTRL_NO_MASTER: u32 = 1 << 2;
pub const CTRL_RESET: u32 = 1 << 26;
/// VLAN tags are taken out of what comes.
pub const CTRL_VLAN: u32 = 1 << 30;
pub const CTRL_PHY_RESET: u32 = 1 << 31;
/// Full duplex, link up asked for, 1000 Mb/s.
pub const CTRL_START: u32 = 1 | 1 << 6 | 2 << 8;

/// Device status.
pub const STATUS: u32 = 0x0008;
/// Full duplex, 1000 Mb/s.
pub const STATUS_FIXED: u32 = 1 | 2 << 6;
pub const STATUS_LINK: u32 = 1 << 1;
pub const STATUS_MASTER: u32 = 1 << 19;

/// NVM control: the memory is there and was read; its grant follows its request.
pub const EECD: u32 = 0x0010;
pub const EECD_FIXED: u32 = 1 << 8 | 1 << 9;
pub const EECD_REQUEST: u32 = 1 << 6;
pub const EECD_GRANT: u32 = 1 << 7;
/// NVM read: start, done, word address, data.
pub const EERD: u32 = 0x0014;
pub const EERD_START: u32 = 1 << 0;
pub const EERD_DONE: u32 = 1 << 1;

/// Extended control: how interrupts mask themselves.
pub const CTRL_EXT: u32 = 0x0018;
/// By MSI-X messages (EIAME), by reading the cause (IAME).
pub const CTRL_EXT_MESSAGE_MASKS: u32 = 1 << 24;
pub const CTRL_EXT_READ_MASKS: u32 = 1 << 27;

/// The way to the PHY.
pub const MDIC: u32 = 0x0020;
pub const MDIC_READY: u32 = 1 << 28;
pub const MDIC_INTERRUPT: u32 = 1 << 29;
pub const MDIC_ERROR: u32 = 1 << 30;

/// The Ethernet type of VLAN tags.
pub const VET: u32 = 0x0038;

/// Interrupts: causes, setting causes, mask set and clear, auto clear, auto mask, vectors.
pub const ICR: u32 = 0x00c0;
pub const ICS: u32 = 0x00c8;
pub const IMS: u32 = 0x00d0;
pub const IMC: u32 = 0x00d8;
pub const EIAC: u32 = 0x00dc;
pub const IAM: u32 = 0x00e0;
pub const IVAR: u32 = 0x00e4;

/// Receive control.
pub const RCTL: u32 = 0x0100;
pub const RCTL_ENABLE: u32 = 1 << 1;
pub const RCTL_UNICAST: u32 = 1 << 3;
pub const RCTL_MULTICAST: u32 = 1 << 4;
pub const RCTL_LONG: u32 = 1 << 5;
/// Descriptor type: packet split.
pub const RCTL_SPLIT: u32 = 1 << 10;
pub const RCTL_BROADCAST: u32 = 1 << 15;
pub const RCTL_VLAN_FILTER: u32 = 1 << 18;
/// The frame check sequence is taken off.
pub const RCTL_STRIP: u32 = 1 << 26;

/// Transmit control.
pub const TCTL: u32 = 0x0400;
pub const TCTL_ENABLE: u32 = 1 << 1;

/// Packet buffer: how much of it, in KiB, is for what comes (low half) and what goes.
pub const PBA: u32 = 0x1000;
pub const PBA_START: u32 = 20 << 16 | 20;
pub const PBA_TOTAL: u32 = 40;

/// Sizes of the buffers of packet split descriptors.
pub const PSRCTL: u32 = 0x2170;

/// The rings: of what comes, of what goes; another [`RING`] bytes on, the second ones.
pub const RX_RING: u32 = 0x2800;
pub const TX_RING: u32 = 0x3800;
pub const RING: u32 = 0x100;
/// Of a ring: address, length in bytes, head, tail.
pub const BASE_LOW: u32 = 0x00;
pub const BASE_HIGH: u32 = 0x04;
pub const LENGTH: u32 = 0x08;
pub const HEAD: u32 = 0x10;
pub const TAIL: u32 = 0x18;

/// Statistics, which reading clears.
pub const STATISTICS: std::ops::Range<u32> = 0x4000..0x4128;

/// Receive filter control: extended descriptors.
pub const RFCTL: u32 = 0x5008;
pub const RFCTL_EXTENDED: u32 = 1 << 15;
/// Multicast table, addresses, VLAN table.
pub const MTA: u32 = 0x5200;
pub const RA: u32 = 0x5400;
pub const RA_COUNT: u32 = 16;
pub const RAH_VALID: u32 = 1 << 31;
pub const VFTA: u32 = 0x5600;

/// Software semaphore: reading it takes it.
pub const SWSM: u32 = 0x5b50;
pub const SWSM_TAKEN: u32 = 1 << 0;
/// What the firmware says; there is none.
pub const FWSM: u32 = 0x5b54;

/// Interrupt causes: a descriptor was written back, link status, receive overrun, a packet came, the PHY was reached.
pub const CAUSE_TXDW: u32 = 1 << 0;
pub const CAUSE_LINK: u32 = 1 << 2;
pub const CAUSE_RXT0: u32 = 1 << 7;
pub const CAUSE_MDAC: u32 = 1 << 9;
/// Those of MSI-X: queues in both directions, and all others.
pub const CAUSE_RXQ0: u32 = 1 << 20;
pub const CAUSE_TXQ0: u32 = 1 << 22;
pub const CAUSE_OTHER: u32 = 1 << 24;
/// What [`CAUSE_OTHER`] stands for: link, receive overrun, PHY, small packet, acknowledgement, manageability.
pub const OTHERS: u32 = CAUSE_LINK | 1 << 6 | CAUSE_MDAC | 1 << 16 | 1 << 17 | 1 << 18;
/// An interrupt was asked for.
pub const CAUSE_ASSERTED: u32 = 1 << 31;
