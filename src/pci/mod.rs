//! PCI Express as a guest sees it: buses, functions, configuration space, BARs, MSI and MSI-X, root ports.
//!
//! A function is a [`PciFunction`]: it owns a [`PciCore`] (the emulated registers) and describes, once, what its BARs
//! contain. Everything else is done here: a write to a register goes from [`ecam`] or [`cf8`] through [`PciBus`] to the
//! function, [`bar`] and [`bridge`] compute from the registers where BARs are, and [`decode`] brings the machine's
//! memory map to that in one transaction. Nothing that a guest writes is an error.
//!
//! The pure parts ([`bar`], [`bridge`], [`assign`], [`intx`], [`rom`], [`vga`]) take and return data. "PCI" in comments is the PCI Local
//! Bus Specification 3.0, "PCIe" the PCI Express Base Specification 5.0, "bridge" the PCI-to-PCI Bridge Architecture
//! Specification 1.2.
//!
//! Locks, outermost first: [`decode::Decode`] (one per machine), the core's registers, the table of [`Msix`] or [`Msi`],
//! the interrupt router. The bus's own lock is held only to look something up.

mod address;
pub mod assign;
pub mod bar;
pub mod bridge;
mod bus;
pub mod cf8;
mod config;
pub mod decode;
pub mod ecam;
pub mod endpoint;
mod function;
pub mod host_bridge;
pub mod intx;
mod msi;
mod msix;
pub mod pages;
pub mod pcie_pci_bridge;
pub mod pin;
pub mod regs;
pub mod rom;
mod root;
pub mod root_port;
pub mod slot;
#[cfg(test)]
pub(crate) mod testing;
mod vectors;
pub mod vga;
pub mod view;

use std::sync::Arc;

use bitflags::bitflags;

use crate::device::Device;
use crate::memory::HostSlice;

pub use address::Devfn;
pub use bar::{BarContent, BarKind, BarSpec};
pub use bus::{PciBus, Slot, Slots, choose_address};
pub use config::ConfigSpace;
pub use decode::Decode;
pub use function::PciCore;
pub use msi::{Msi, MsiSpec};
pub use msix::{Msix, MsixSpec};
pub use root::PciRoot;

bitflags! {
    /// What a write to the configuration space changed.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Changes: u16 {
        /// Which addresses the function answers: command bits 0 and 1, a BAR, the ROM's register, a bridge's windows.
        const DECODE = 1 << 0;
        /// MSI was switched on or off, or its number of vectors changed. Messages and masks are no change of the owner's.
        const MSI = 1 << 1;
        /// MSI-X was switched on or off. The function mask, messages and masks are no change of the owner's.
        const MSIX = 1 << 2;
        /// Command bit 10.
        const INTX_DISABLE = 1 << 3;
        /// Command bit 2.
        const BUS_MASTER = 1 << 4;
        /// The power state in the power management capability.
        const POWER = 1 << 5;
        /// The function was reset by the guest (function-level reset, or the reset of the bus that it is on). Its core is
        /// in the state after power-on already.
        const RESET = 1 << 6;
        /// A bridge was told to reset what is behind it; those functions get `RESET`.
        const SECONDARY_RESET = 1 << 7;
    }
}

/// A function on a PCI bus.
///
/// Configuration accesses come on vCPU threads, several at once, each inside one aligned dword. A write that can change
/// decoding ([`PciCore::affects_decoding`]) runs with the machine's decode mutex held from before `config_write` to
/// after `changed`, so such writes never interleave; all others run without any lock.
pub trait PciFunction: Device {
    /// The emulated registers.
    fn core(&self) -> &PciCore;

    /// What BAR `index` (0 to 5; 6 is the expansion ROM) contains. Asked once, at the attachment to a bus. A 64-bit BAR
    /// is described at its lower index and takes the next one too.
    fn bar(&self, _index: usize) -> Option<BarContent> {
        None
    }

    /// What answers at the legacy VGA ranges ([`vga::LEGACY`]), if the function has them. Asked once, at the attachment.
    fn legacy_vga(&self) -> Option<[BarContent; vga::RANGES]> {
        None
    }

    /// Reads 1, 2 or 4 bytes inside a dword.
    fn config_read(&self, off: u16, data: &mut [u8]) {
        self.core().read(off, data);
    }

    /// Called before every `config_write` of a guest, on its thread and without any lock: the place to wait.
    fn before_write(&self, _off: u16, _data: &[u8]) {}

    /// Writes 1, 2 or 4 bytes inside a dword and says what changed.
    ///
    /// A function with hardware behind it that is switched on here (decoding, power) tells the hardware before it
    /// returns, because the BARs are mapped next; what is switched off, and a reset, it tells the hardware in `changed`,
    /// when the guest cannot reach the BARs any more.
    fn config_write(&self, off: u16, data: &[u8]) -> Changes {
        self.core().write(off, data)
    }

    /// Called after every write that changed something, when the memory map follows the registers already. Only the
    /// decode mutex is held, and that only if the write could change decoding: take your own lock, and act on what
    /// [`PciFunction::core`] says now, not on what this write said.
    fn changed(&self, _what: Changes) {}

    /// What the addresses behind it are to have room for beyond what is there, if it is a bridge.
    fn reserve(&self) -> assign::Reserve {
        assign::Reserve::default()
    }

    /// The bus behind the function, if it is a bridge.
    fn secondary(&self) -> Option<&Arc<PciBus>> {
        None
    }

    /// Keeps `page` (4096 bytes) equal to what `config_read` gives, from before this returns until
    /// [`PciFunction::hide_page`]. `false`: it cannot, and every access must trap. No vCPU runs.
    fn show_page(&self, _page: &HostSlice) -> bool {
        false
    }

    /// Whether the page still is what `config_read` gives. Asked after each write to the function; once it is not, the
    /// page is taken away from the guest.
    fn page_is_current(&self) -> bool {
        true
    }

    /// The page is not needed any more.
    fn hide_page(&self) {
        self.core().with(|config| config.mirror(None));
    }
}
