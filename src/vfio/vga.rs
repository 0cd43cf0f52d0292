//! The legacy VGA ranges of a display controller (`x-vga=on`), by VFIO's VGA region: its offsets are the addresses and
//! ports themselves (kernel: drivers/vfio/pci/vfio_pci_rdwr.c, `vfio_pci_vga_rw`). Every access traps; the kernel's VGA
//! arbiter routes each one to the device.

use std::sync::{Arc, Weak};

use super::seams::{HostPci, RegionIndex};
use crate::error::{Code, Error, Result};
use crate::guest_error;
use crate::memory::{Backing, IoHandler, Piece, Space};
use crate::pci::vga::{LEGACY, RANGES};
use crate::pci::{BarContent, BarKind};

/// The ranges of a device, whose id is `id`.
///
/// # Errors
/// [`Code::VgaUnavailable`] if VFIO has no VGA region for it.
pub fn ranges(host: &Arc<dyn HostPci>, id: &str) -> Result<[BarContent; RANGES]> {
    let region = host.region(RegionIndex::Vga);
    if region.size == 0 || !region.readable || !region.writable {
        return Err(Error::new(Code::VgaUnavailable, format!("{} has no legacy VGA ranges to give", host.name()))
            .evidence("VFIO has no VGA region for it")
            .fix("leave x-vga=on out; drivers of Linux and UEFI firmware do without"));
    }
    let trap = Arc::new(VgaTrap { host: Arc::downgrade(host) });
    Ok(LEGACY.map(|place| {
        let (kind, what) = match place.space {
            Space::Mmio => (BarKind::Mem32, "VGA memory"),
            Space::Pio => (BarKind::Io, "VGA ports"),
        };
        let backing = Backing::Io { io: trap.clone(), offset: place.base };
        BarContent {
            name: format!("{id} {what}").into(),
            size: place.size,
            kind,
            prefetchable: false,
            pieces: vec![Piece { range: 0..place.size, backing }],
        }
    }))
}

/// Answers for all ranges; its offsets are addresses.
struct VgaTrap {
    /// Weak, as for BARs: a flat view that a vCPU still reads must not keep the device open.
    host: Weak<dyn HostPci>,
}

impl IoHandler for VgaTrap {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Some(host) = self.host.upgrade() else { return data.fill(0xff) };
        if let Err(error) = host.read(RegionIndex::Vga, offset, data) {
            guest_error!(host.name(), "VGA at {offset:#x} cannot be read: {error}");
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(host) = self.host.upgrade() else { return };
        if let Err(error) = host.write(RegionIndex::Vga, offset, data) {
            guest_error!(host.name(), "VGA at {offset:#x} cannot be written: {error}");
        }
    }
}
