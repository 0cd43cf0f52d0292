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

#[cfg(test)]
mod tests {
    use super::super::host_bridge::{self, HostBridge};
    use super::super::root_port::RootPort;
    use super::super::testing::{Bench, Fake, one_bar};
    use super::*;

    const BASE: u64 = 0xe000_0000;

    fn setup() -> (Bench, Arc<Ecam>) {
        let bench = Bench::new();
        bench.plug(HostBridge::new(), host_bridge::ADDRESS);
        bench.plug(RootPort::new("rp1", 1, &bench.decode, &bench.router).unwrap(), "1");
        bench.plug(Fake::new("nic0", one_bar(0, 0x1000), &bench.memory), "2");
        let ecam = Ecam::new(bench.root.clone());
        bench.memory.update(|layout| layout.add(Space::Mmio, BASE, ecam.region(1))).unwrap();
        (bench, ecam)
    }

    fn read(bench: &Bench, offset: u64) -> u32 {
        let mut data = [0; 4];
        bench.memory.read(Space::Mmio, BASE + offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn offsets_are_bus_devfn_and_register() {
        assert_eq!(target(0x12_3456), Some((1, Devfn::from_byte(0x23), 0x456)));
        assert_eq!(target(0x1000_0000), None);
        let (bench, _) = setup();
        assert_eq!(read(&bench, 0), 0x29c0_8086);
        assert_eq!(read(&bench, 8), 0x0600_0000);
        assert_eq!(read(&bench, 0x2c), 0x1100_1af4);
        assert_eq!(read(&bench, 1 << 15), 0x000c_1b36);
        assert_eq!(read(&bench, 3 << 15), u32::MAX);
        assert_eq!(read(&bench, 1 << 20), u32::MAX);
        let mut data = [0; 8];
        bench.memory.read(Space::Mmio, BASE + 0xffe, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "on to an absent function");
    }

    #[test]
    fn pages_of_emulated_functions_read_alike_and_follow_writes() {
        let (bench, ecam) = setup();
        let traps = |bench: &Bench| {
            let view = bench.memory.view(Space::Mmio);
            view.ranges().iter().filter(|range| matches!(range.backing, Backing::RomDevice { .. })).count()
        };
        bench.memory.write(Space::Mmio, BASE + 0x8018, &[0, 1, 1, 0]);
        let before: Vec<u32> = (0..0x3000).map(|n| read(&bench, n * 4 + 0x7000)).collect();
        let overlay = ecam.overlay(&bench.memory, BASE).unwrap();
        assert_eq!(traps(&bench), 2, "the passed-through function stays trapped");
        assert_eq!((0..0x3000).map(|n| read(&bench, n * 4 + 0x7000)).collect::<Vec<_>>(), before);
        bench.memory.write(Space::Mmio, BASE + 0x8018, &[0, 7, 9, 0]);
        assert_eq!((read(&bench, 0x8018), bench.read32(0, "1", 0x18)), (0x0009_0700, 0x0009_0700));
        bench.memory.write(Space::Mmio, BASE + 0x8000, &[0; 4]);
        assert_eq!(read(&bench, 0x8000), 0x000c_1b36, "read-only");
        drop(overlay);
        assert_eq!(traps(&bench), 0);
        assert_eq!(read(&bench, 0x8018), 0x0009_0700);
    }
}
