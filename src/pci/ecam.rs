//! Configuration access by memory: the ECAM window (PCIe 7.2.2), one MiB for each bus.

use std::sync::Arc;

use super::root::dwords;
use super::{Devfn, PciRoot};
use crate::error::{Error, Result};
use crate::memory::host::{HostMem, PAGE, PageSize};
use crate::memory::{Backing, IoHandler, Memory, PRIORITY_OVERLAY, PRIORITY_PLATFORM, Region, RegionId, Space};

/// Bytes of the window for each bus.
pub const BUS_SIZE: u64 = 1 << 20;
const BUS_SHIFT: u32 = 20;
const DEVFN_SHIFT: u32 = 12;

/// The window. A read of a function that is not there gives all-ones.
pub struct Ecam {
    root: Arc<PciRoot>,
}

impl Ecam {
    /// The window of a root.
    pub fn new(root: Arc<PciRoot>) -> Arc<Ecam> {
        Arc::new(Ecam { root })
    }

    /// The window with buses 0 to `last_bus`; MCFG, _CRS and the memory map say the same length.
    pub fn region(self: &Arc<Self>, last_bus: u8) -> Region {
        let len = (u64::from(last_bus) + 1) * BUS_SIZE;
        Region::whole("pci ecam", len, PRIORITY_PLATFORM, Backing::io(self.clone()))
    }

    /// Lets the guest read the registers of the root bus's emulated functions without an exit: each gets a page over the
    /// window at `base` that mirrors them; writes still trap. Made when all functions are attached; the pages go with the
    /// returned value.
    ///
    /// # Errors
    /// If there is no memory for the pages, or a listener of the memory map refuses them.
    pub fn overlay(self: &Arc<Self>, memory: &Arc<Memory>, base: u64) -> Result<Overlay> {
        let functions: Vec<_> =
            self.root.bus().functions().into_iter().filter(|(_, function)| function.reads_are_emulated()).collect();
        let mut overlay = Overlay { root: self.root.clone(), memory: memory.clone(), regions: Vec::new() };
        if functions.is_empty() {
            return Ok(overlay);
        }
        let pages = HostMem::anonymous(functions.len() as u64 * PAGE, PageSize::Small);
        let pages = Arc::new(pages.map_err(|error| Error::system("allocate configuration pages", &error))?);
        overlay.regions = memory.update(|layout| {
            let places = functions.iter().zip((0..).step_by(PAGE as usize));
            places
                .map(|((devfn, function), skip)| {
                    let page = pages.slice().cut(skip, PAGE);
                    function.core().with(|config| config.mirror(Some(page.clone())));
                    let offset = u64::from(devfn.byte()) << DEVFN_SHIFT;
                    let backing = Backing::RomDevice { mem: page, io: self.clone(), offset };
                    let name = format!("pci config {devfn}");
                    layout.add(Space::Mmio, base + offset, Region::whole(name, PAGE, PRIORITY_OVERLAY, backing))
                })
                .collect()
        })?;
        Ok(overlay)
    }
}

/// Bus, function and register of an offset in the window.
fn target(offset: u64) -> Option<(u8, Devfn, u16)> {
    let bus = u8::try_from(offset >> BUS_SHIFT).ok()?;
    Some((bus, Devfn::from_byte((offset >> DEVFN_SHIFT) as u8), (offset & (PAGE - 1)) as u16))
}

impl IoHandler for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for part in dwords(offset, data.len()) {
            let at = offset.checked_add(part.start as u64).and_then(target);
            let Some(data) = data.get_mut(part) else { continue };
            match at {
                Some((bus, devfn, register)) => self.root.read(bus, devfn, register, data),
                None => data.fill(0xff),
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for part in dwords(offset, data.len()) {
            let at = offset.checked_add(part.start as u64).and_then(target);
            if let (Some((bus, devfn, register)), Some(data)) = (at, data.get(part)) {
                self.root.write(bus, devfn, register, data);
            }
        }
    }
}

/// Pages over the ECAM window that are read without an exit.
pub struct Overlay {
    root: Arc<PciRoot>,
    memory: Arc<Memory>,
    regions: Vec<RegionId>,
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let removed = self.memory.update(|layout| self.regions.iter().for_each(|id| layout.remove(*id)));
        if let Err(error) = removed {
            crate::log::warn(format_args!("the ECAM window cannot be trapped again: {error}"));
        }
        for (_, function) in self.root.bus().functions() {
            function.core().with(|config| config.mirror(None));
        }
    }
}
