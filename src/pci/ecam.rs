//! Configuration access by memory: the ECAM window (PCIe 7.2.2), one MiB for each bus.

use std::sync::Arc;

use super::root::dwords;
use super::{Devfn, PciRoot};
use crate::memory::host::PAGE;
use crate::memory::{Backing, IoHandler, PRIORITY_PLATFORM, Region};

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

#[cfg(test)]
mod tests {
    use super::super::testing::{ECAM, ecam_read, with_ecam};
    use super::*;

    use crate::memory::Space;

    #[test]
    fn offsets_are_bus_devfn_and_register() {
        assert_eq!(target(0x12_3456), Some((1, Devfn::from_byte(0x23), 0x456)));
        assert_eq!(target(0x1000_0000), None);
        let (bench, _) = with_ecam();
        assert_eq!(ecam_read(&bench, 0), 0x29c0_8086);
        assert_eq!(ecam_read(&bench, 8), 0x0600_0000);
        assert_eq!(ecam_read(&bench, 0x2c), 0x1100_1af4);
        assert_eq!(ecam_read(&bench, 1 << 15), 0x000c_1b36);
        assert_eq!(ecam_read(&bench, 3 << 15), u32::MAX);
        assert_eq!(ecam_read(&bench, 1 << 20), u32::MAX);
        let mut data = [0; 8];
        bench.memory.read(Space::Mmio, ECAM + 0xffe, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "on to an absent function");
    }
}
