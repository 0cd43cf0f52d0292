//! The two seams of passthrough: the host's function ([`HostPci`]) and the IOMMU ([`DmaMapper`]).
//!
//! Behind them are the file descriptors of VFIO (`device.rs`, `container.rs`), and fakes in tests. Words and numbers are
//! those of `linux/vfio.h`.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vfio_bindings::bindings::vfio as uapi;
use vmm_sys_util::eventfd::EventFd;

use super::backend::Backend;
use super::dma::Gate;
use crate::error::Result;
use crate::host::reset::{Affected, Alone};
use crate::memory::{HostMem, HostSlice};

/// Number of base address registers of a type 0 function.
pub const BARS: usize = 6;

/// A region of a vfio-pci device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RegionIndex {
    /// Base address register 0 to 5.
    Bar(u8),
    /// The expansion ROM.
    Rom,
    /// Configuration space.
    Config,
    /// Legacy VGA memory and ports; offsets are the addresses.
    Vga,
}

impl RegionIndex {
    /// The number in `struct vfio_region_info`.
    pub fn number(self) -> u32 {
        match self {
            RegionIndex::Bar(bar) => uapi::VFIO_PCI_BAR0_REGION_INDEX + u32::from(bar),
            RegionIndex::Rom => uapi::VFIO_PCI_ROM_REGION_INDEX,
            RegionIndex::Config => uapi::VFIO_PCI_CONFIG_REGION_INDEX,
            RegionIndex::Vga => uapi::VFIO_PCI_VGA_REGION_INDEX,
        }
    }
}

/// What VFIO says of a region (`struct vfio_region_info` and its capabilities).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Size in bytes; 0: the device has no such region.
    pub size: u64,
    /// Whether it can be read.
    pub readable: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// The areas that can be mapped: all of it, the sparse areas, or none.
    pub mappable: Vec<Range<u64>>,
}

/// An interrupt index of a vfio-pci device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IrqKind {
    /// The level-triggered pin.
    Intx,
    /// Message-signalled interrupts.
    Msi,
    /// The extended kind, with a table in a BAR.
    Msix,
    /// No interrupt of the device: the kernel has found an uncorrectable error.
    Error,
    /// No interrupt of the device: the host wants it back.
    Request,
}

impl IrqKind {
    /// The number in `struct vfio_irq_set`.
    pub fn number(self) -> u32 {
        match self {
            IrqKind::Intx => uapi::VFIO_PCI_INTX_IRQ_INDEX,
            IrqKind::Msi => uapi::VFIO_PCI_MSI_IRQ_INDEX,
            IrqKind::Msix => uapi::VFIO_PCI_MSIX_IRQ_INDEX,
            IrqKind::Error => uapi::VFIO_PCI_ERR_IRQ_INDEX,
            IrqKind::Request => uapi::VFIO_PCI_REQ_IRQ_INDEX,
        }
    }
}

/// What VFIO says of an interrupt index (`struct vfio_irq_info`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IrqInfo {
    /// Number of vectors; 0: the device has none of this kind.
    pub count: u32,
    /// Whether the kernel masks it when it fires, as it does all pins so far: who masks it otherwise would have to be here.
    pub automasked: bool,
}

/// A function of the host, as the kernel lets a process use it.
///
/// Calls come from vCPU threads and from the main thread, several at once. After a surprise removal every call fails or
/// reads ones, and none blocks.
pub trait HostPci: Send + Sync {
    /// The host's address, for messages: `0000:01:00.0`.
    fn name(&self) -> &str;
    /// A region's size and what may be done with it.
    fn region(&self, region: RegionIndex) -> RegionInfo;
    /// Reads `data.len()` bytes at `offset`; 1, 2, 4 or 8 aligned bytes are one access of the hardware where the kernel
    /// can do that width. On an error the contents of `data` are unspecified.
    fn read(&self, region: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`, by the same widths.
    fn write(&self, region: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Maps a part of a mappable area; both ends are multiples of a page.
    fn map(&self, region: RegionIndex, area: Range<u64>) -> io::Result<Arc<HostMem>>;
    /// How many vectors there are.
    fn irq(&self, kind: IrqKind) -> IrqInfo;
    /// Gives the kernel the eventfds of the vectors from `first` on, in one request; `None` takes a vector's away.
    fn arm(&self, kind: IrqKind, first: u32, fds: &[Option<&EventFd>]) -> io::Result<()>;
    /// Takes all vectors' eventfds away and disables the kind in the hardware.
    fn disarm(&self, kind: IrqKind) -> io::Result<()>;
    /// Masks (or unmasks) the pin in the hardware.
    fn mask(&self, kind: IrqKind, masked: bool) -> io::Result<()>;
    /// From now on a signal of `fd` unmasks the pin, inside the kernel.
    fn unmask_fd(&self, kind: IrqKind, fd: &EventFd) -> io::Result<()>;
    /// Resets the function by the kernel's best method; `false`: it has none.
    fn reset(&self) -> io::Result<bool>;
    /// What [`HostPci::reset`], which the kernel also does when it opens the device, is worth.
    fn resets_alone(&self) -> Alone {
        Alone::Thorough
    }
    /// All functions that a hot reset of the slot or the bus would hit, itself among them, and which are this machine's.
    /// An error: the kernel has none for it.
    fn hot_reset_reach(&self) -> io::Result<Vec<Affected>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Resets all of them. Nothing is done if a hot reset has hit this function since its own last [`HostPci::reset`].
    fn hot_reset(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Notes that the function did not come back from a reset, so that the next start refuses it.
    fn quarantine(&self, _reason: &str) {}
    /// By which of the kernel's interfaces it is open, and why: names and values, for `info vfio`.
    fn facts(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// What keeps it from DMA until all of the guest's RAM is mapped for it; `None`: nothing needs to.
    fn gate(&self) -> Option<&Gate> {
        None
    }
}

/// What the IOMMU behind a container can map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmaLimits {
    /// Bit N: pages of 2^N bytes.
    pub page_sizes: u64,
    /// The addresses that may be mapped, ascending.
    pub usable: Vec<Range<u64>>,
    /// How many more mappings the kernel takes at the time of reading; `None`: an old kernel does not say.
    pub available: Option<u32>,
}

impl DmaLimits {
    /// The smallest page in bytes.
    pub fn granule(&self) -> u64 {
        match self.page_sizes {
            0 => crate::memory::host::PAGE,
            sizes => 1 << sizes.trailing_zeros(),
        }
    }
}

/// An IOMMU address space that guest memory is mapped into.
pub trait DmaMapper: Send + Sync {
    /// Lets devices reach `host` at `iova`. The mapper keeps the memory mapped until [`DmaMapper::unmap`] of the same
    /// range has succeeded, so that no device ever reaches memory that has become something else.
    fn map(&self, iova: u64, host: HostSlice, writable: bool) -> io::Result<()>;
    /// Undoes a `map` of exactly this range.
    fn unmap(&self, iova: u64, len: u64) -> io::Result<()>;
    /// Whose requests they are: for messages, and for how locked memory is counted.
    fn backend(&self) -> Backend {
        Backend::Type1
    }
    /// What can be mapped now. Reading it is a request to the kernel: once for each group that joins.
    fn limits(&self) -> Result<DmaLimits>;
}

/// KVM's list of the IOMMU groups and devices of a virtual machine (the KVM-VFIO pseudo device), which decides about cache
/// coherence and, for some devices, about who may use the group.
pub trait GroupSink: Send + Sync {
    /// KVM_DEV_VFIO_FILE_ADD of the descriptor of a group, or of a device that was opened by its own node. It stays open
    /// until [`GroupSink::del_group`].
    fn add_group(&self, fd: BorrowedFd<'_>) -> Result<()>;
    /// KVM_DEV_VFIO_FILE_DEL of the same. If KVM refuses, that is logged.
    fn del_group(&self, fd: BorrowedFd<'_>);
}
