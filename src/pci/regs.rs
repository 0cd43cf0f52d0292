//! The registers of the configuration space by name: offsets, and the bits that are used.

/// Size of a function's configuration space in bytes (PCIe 7.2.2).
pub const CONFIG_SIZE: u16 = 4096;
/// Where the conventional part ends and extended capabilities begin (PCIe 7.6).
pub const EXTENDED_START: u16 = 0x100;
/// Where capabilities may begin, after the header (PCI 6.7).
pub const CAPABILITIES_START: u16 = 0x40;

/// Vendor ID (PCI 6.2.1).
pub const VENDOR: u16 = 0x00;
/// Device ID.
pub const DEVICE: u16 = 0x02;

/// Command register (PCI 6.2.2).
pub const COMMAND: u16 = 0x04;
/// The function answers in port space.
pub const COMMAND_IO: u16 = 1 << 0;
/// The function answers in memory space.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// The function may write to memory, messages included.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Parity error response.
pub const COMMAND_PARITY: u16 = 1 << 6;
/// SERR# enable.
pub const COMMAND_SERR: u16 = 1 << 8;
/// The function may not assert INTx.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// Status register (PCI 6.2.3).
pub const STATUS: u16 = 0x06;
/// INTx is asserted inside the function, whatever INTX_DISABLE says.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// There is a list of capabilities.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// The error bits, cleared by writing ones.
pub const STATUS_ERRORS: u16 = 0xf900;

/// Revision ID.
pub const REVISION: u16 = 0x08;
/// Class code, three bytes: programming interface, subclass, base class.
pub const CLASS: u16 = 0x09;
/// Cache line size.
pub const CACHE_LINE: u16 = 0x0c;
/// Header type (PCI 6.2.1): layout in bits 0 to 6.
pub const HEADER_TYPE: u16 = 0x0e;
/// The header of an endpoint.
pub const HEADER_ENDPOINT: u8 = 0;
/// The header of a PCI-to-PCI bridge.
pub const HEADER_BRIDGE: u8 = 1;
/// The layout's bits of the header type.
pub const HEADER_LAYOUT: u8 = 0x7f;
/// The device has more functions than function 0.
pub const HEADER_MULTI_FUNCTION: u8 = 0x80;

/// The first base address register (PCI 6.2.5).
pub const BAR0: u16 = 0x10;
/// Subsystem vendor ID (endpoints).
pub const SUBSYSTEM_VENDOR: u16 = 0x2c;
/// Subsystem ID (endpoints).
pub const SUBSYSTEM: u16 = 0x2e;
/// Expansion ROM base address of an endpoint (PCI 6.2.5.2).
pub const ROM: u16 = 0x30;
/// Expansion ROM base address of a bridge (bridge 3.2.5.14).
pub const BRIDGE_ROM: u16 = 0x38;
/// Offset of the first capability.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line: where software notes to which interrupt input the pin is connected.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin: 0 none, 1 INTA to 4 INTD.
pub const INTERRUPT_PIN: u16 = 0x3d;

/// Primary bus number of a bridge (bridge 3.2.5.2).
pub const PRIMARY_BUS: u16 = 0x18;
/// Bus number directly behind a bridge.
pub const SECONDARY_BUS: u16 = 0x19;
/// Highest bus number behind a bridge.
pub const SUBORDINATE_BUS: u16 = 0x1a;
/// I/O base, bits 7:4 are address bits 15:12 (bridge 3.2.5.6).
pub const IO_BASE: u16 = 0x1c;
/// I/O limit.
pub const IO_LIMIT: u16 = 0x1d;
/// Secondary status.
pub const SECONDARY_STATUS: u16 = 0x1e;
/// Memory base, bits 15:4 are address bits 31:20 (bridge 3.2.5.8).
pub const MEMORY_BASE: u16 = 0x20;
/// Memory limit.
pub const MEMORY_LIMIT: u16 = 0x22;
/// Prefetchable memory base; its low bits say 1 for 64-bit addresses (bridge 3.2.5.9).
pub const PREFETCH_BASE: u16 = 0x24;
/// Prefetchable memory limit.
pub const PREFETCH_LIMIT: u16 = 0x26;
/// Upper half of the prefetchable base.
pub const PREFETCH_BASE_UPPER: u16 = 0x28;
/// Upper half of the prefetchable limit.
pub const PREFETCH_LIMIT_UPPER: u16 = 0x2c;
/// Bridge control (bridge 3.2.5.18).
pub const BRIDGE_CONTROL: u16 = 0x3e;
/// Legacy VGA memory and ports are forwarded; the latter with all 16 address bits.
pub const BRIDGE_CONTROL_VGA: u16 = 1 << 3;
/// VGA 16-bit decode.
pub const BRIDGE_CONTROL_VGA_16BIT: u16 = 1 << 4;
/// Secondary bus reset.
pub const BRIDGE_CONTROL_RESET: u16 = 1 << 6;

/// Power management capability (PCI Power Management 1.2, 3.2).
pub const CAP_POWER: u8 = 0x01;
/// Offset of the control and status register in it.
pub const POWER_CONTROL: u16 = 4;
/// The power state's bits: 0 is D0, 3 is D3hot.
pub const POWER_STATE: u16 = 0x3;
/// The registers survive the way from D3hot to D0.
pub const POWER_NO_SOFT_RESET: u16 = 1 << 3;

/// MSI capability (PCI 6.8.1).
pub const CAP_MSI: u8 = 0x05;
/// PCI Express capability (PCIe 7.5.3).
pub const CAP_EXPRESS: u8 = 0x10;
/// MSI-X capability (PCI 6.8.2).
pub const CAP_MSIX: u8 = 0x11;
/// Advanced Features capability (PCI ECN Advanced Capabilities).
pub const CAP_ADVANCED: u8 = 0x13;

/// Device capabilities in the PCI Express capability (PCIe 7.5.3.3).
pub const EXPRESS_DEVICE_CAP: u16 = 4;
/// The function can be reset alone.
pub const EXPRESS_DEVICE_CAP_FLR: u32 = 1 << 28;
/// Device control (PCIe 7.5.3.4).
pub const EXPRESS_DEVICE_CONTROL: u16 = 8;
/// Starts a function-level reset; reads as zero.
pub const EXPRESS_DEVICE_CONTROL_FLR: u16 = 1 << 15;
/// Advanced Features capabilities: bit 1 says that the function can be reset alone.
pub const ADVANCED_CAP: u16 = 3;
/// Advanced Features control: bit 0 starts the reset.
pub const ADVANCED_CONTROL: u16 = 4;
