//! Passthrough of host PCI functions by VFIO (kernel: include/uapi/linux/vfio.h, Documentation/driver-api/vfio.rst).
//!
//! | file | what | kernel's word |
//! |---|---|---|
//! | [`seams`] | what the rest needs of a device, of an IOMMU, of KVM; fakes of them in tests | |
//! | [`space`] | every descriptor of a machine: who shares an address space, who closes what when | container, group, IOAS, cdev |
//! | [`backend`], [`inherited`], [`object`] | groups or iommufd, and why (pure); descriptors that came with the process; the object `iommufd` | |
//! | [`container`], [`ioas`], [`device`], `uapi` | the descriptors and their requests; the only `unsafe` here | VFIO_GROUP_*, VFIO_DEVICE_*, VFIO_IOMMU_*, IOMMU_IOAS_* |
//! | [`token`] | the token of a physical function and its virtual ones | VFIO_GROUP_GET_DEVICE_FD, VFIO_DEVICE_BIND_FLAG_TOKEN |
//! | `held`, `peer` | memory stays while it is mapped; how a BAR is mapped for other devices | VFIO_DEVICE_FEATURE_DMA_BUF |
//! | [`dma`] | the IOMMU's mappings, a listener of the memory layout | VFIO_IOMMU_MAP_DMA |
//! | [`front_end`], [`pci`] | the type `vfio-pci`, and the function on a bus of the guest | |
//! | [`config`], `page` | which configuration bits are whose (pure); registers that are read without an exit | VFIO_PCI_CONFIG_REGION_INDEX |
//! | [`bars`], [`trap`], [`rom`], [`vga`] | what is mapped and what traps (pure), and the trapped rest | VFIO_DEVICE_GET_REGION_INFO |
//! | [`irq`] | which interrupts VFIO delivers | VFIO_DEVICE_SET_IRQS |
//! | [`notices`] | what the host says of a device by itself | VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX |
//! | [`reset`], `hot_reset` | resets and whether they worked | VFIO_DEVICE_RESET, VFIO_DEVICE_PCI_HOT_RESET |
//!
//! Locks: the context's ([`space::Vfio`]) before the layout lock before a DMA space's; a function's own are taken with
//! at most the machine's decode mutex held, and call nothing but the kernel and the interrupt router.

pub mod backend;
pub mod bars;
pub mod config;
pub mod container;
pub mod device;
pub mod dma;
pub mod front_end;
mod held;
mod hot_reset;
pub mod inherited;
pub mod ioas;
pub mod irq;
pub mod notices;
pub mod object;
mod page;
pub mod pci;
mod peer;
pub mod reset;
pub mod rom;
pub mod seams;
pub mod space;
pub mod token;
pub mod trap;
mod uapi;
pub mod vga;

#[cfg(test)]
pub(crate) mod testing;

pub use backend::{IommuChoice, Wish};
pub use config::Attachment;
pub use device::VfioDevice;
pub use dma::{DmaSpace, PeerToPeer};
pub use pci::{VfioPci, VfioPciOptions};
pub use seams::{DmaMapper, GroupSink, HostPci};
pub use space::Vfio;
pub use token::VfToken;
