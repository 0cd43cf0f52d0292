//! Configuration pages: registers that a guest reads without an exit.
//!
//! Reading configuration space is what a booting guest spends most of its exits on. A function whose registers change
//! by configuration writes alone can therefore have its page of the ECAM window backed by memory: reads go there
//! directly, writes trap as ever and bring the memory up to date before they return.
//!
//! Emulated functions can always have one. A passed-through function can as long as nothing uses it, which is until a
//! driver enables it ([`PciFunction::show_page`]); its page then goes away and every access traps again.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::bus::PciBus;
use super::regs::PRIMARY_BUS;
use super::{Devfn, PciFunction, PciRoot};
use crate::error::{Error, Result};
use crate::memory::host::{HostMem, PAGE, PageSize};
use crate::memory::{Backing, IoHandler, Memory, PRIORITY_OVERLAY, Region, RegionId, Space};

/// Registers of a bridge that decide which bus number leads behind it.
const BUS_NUMBERS: std::ops::Range<usize> = PRIMARY_BUS as usize..PRIMARY_BUS as usize + 3;

/// The pages of a root's functions that are shown now, by bus number and address.
#[derive(Default)]
pub(super) struct Shown {
    /// Taken on writes to configuration space, after everything that the write does, and before the layout lock.
    pages: Mutex<BTreeMap<(u8, Devfn), Page>>,
}

struct Page {
    function: Arc<dyn PciFunction>,
    region: RegionId,
    memory: Arc<Memory>,
}

impl Shown {
    /// Takes the pages of functions away for which `keep` says no.
    pub(super) fn retain(&self, keep: impl Fn(u8, Devfn, &Arc<dyn PciFunction>) -> bool) {
        let mut pages = self.pages.lock();
        let gone: Vec<_> = pages
            .iter()
            .filter(|((bus, devfn), page)| !keep(*bus, *devfn, &page.function))
            .map(|(key, _)| *key)
            .collect();
        let gone: Vec<_> = gone.iter().filter_map(|key| pages.remove(key)).collect();
        // Without the lock: with its page a function may go for good, which closes its descriptors.
        drop(pages);
        gone.into_iter().for_each(|page| hide(Some(page)));
    }

    /// After a write to a register of a function: takes pages away that are not current any more.
    pub(super) fn after_write(&self, bus: u8, devfn: Devfn, off: usize, len: usize) {
        let mut pages = self.pages.lock();
        let Some(page) = pages.get(&(bus, devfn)) else { return };
        if !page.function.page_is_current() {
            hide(pages.remove(&(bus, devfn)));
        } else if page.function.secondary().is_some() && off < BUS_NUMBERS.end && BUS_NUMBERS.start < off + len {
            // Bus numbers may lead elsewhere now. Only functions of the root bus keep their place.
            let moved: Vec<_> = pages.keys().copied().filter(|(bus, _)| *bus != 0).collect();
            moved.iter().for_each(|key| hide(pages.remove(key)));
        }
    }
}

fn hide(page: Option<Page>) {
    let Some(Page { function, region, memory }) = page else { return };
    if let Err(error) = memory.update(|layout| layout.remove(region)) {
        crate::log::warn(format_args!("a configuration page cannot be taken away: {error}"));
    }
    function.hide_page();
}

/// The pages of one start of the machine. Dropping it makes every access trap.
pub struct ConfigPages {
    root: Arc<PciRoot>,
}

impl ConfigPages {
    /// Shows the page of every function that can have one, over the ECAM window at `base` whose handler is `ecam`. Bus
    /// numbers are assigned, and no vCPU runs.
    ///
    /// # Errors
    /// If there is no memory for the pages, or a listener of the memory map refuses them.
    pub fn show(
        root: &Arc<PciRoot>,
        memory: &Arc<Memory>,
        base: u64,
        ecam: &Arc<dyn IoHandler>,
    ) -> Result<ConfigPages> {
        let shown = ConfigPages { root: root.clone() };
        let functions = numbered(root.bus(), 0);
        if functions.is_empty() {
            return Ok(shown);
        }
        let mem = HostMem::anonymous(functions.len() as u64 * PAGE, PageSize::Small);
        let mem = Arc::new(mem.map_err(|error| Error::system("allocate configuration pages", &error))?);
        let mut pages = root.shown().pages.lock();
        memory.update(|layout| {
            for ((bus, devfn, function), skip) in functions.into_iter().zip((0..).step_by(PAGE as usize)) {
                let page = mem.slice().cut(skip, PAGE);
                if !function.show_page(&page) {
                    continue;
                }
                let offset = (u64::from(bus) << 20) + (u64::from(devfn.byte()) << 12);
                let backing = Backing::RomDevice { mem: page, io: ecam.clone(), offset };
                let name = format!("pci config {bus:02x}:{devfn}");
                let region = Region::whole(name, PAGE, PRIORITY_OVERLAY, backing);
                let region = layout.add(Space::Mmio, base + offset, region);
                pages.insert((bus, devfn), Page { function, region, memory: memory.clone() });
            }
        })?;
        drop(pages);
        Ok(shown)
    }
}

impl Drop for ConfigPages {
    fn drop(&mut self) {
        let pages = std::mem::take(&mut *self.root.shown().pages.lock());
        pages.into_values().for_each(|page| hide(Some(page)));
    }
}

/// Every function with the number of the bus that it is on, by the bridges' registers.
fn numbered(bus: &PciBus, number: u8) -> Vec<(u8, Devfn, Arc<dyn PciFunction>)> {
    let mut all = Vec::new();
    for (devfn, function) in bus.functions() {
        if let (Some(behind), Some(bridge)) = (function.secondary(), function.core().bridge())
            && bridge.secondary > number
        {
            all.extend(numbered(behind, bridge.secondary));
        }
        all.push((number, devfn, function));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::ecam::Ecam;
    use super::super::testing::{Bench, ECAM, Fake, ecam_read, one_bar, with_ecam};
    use super::*;
    use std::sync::atomic::Ordering;

    fn pages(bench: &Bench) -> usize {
        let view = bench.memory.view(Space::Mmio);
        view.ranges().iter().filter(|range| matches!(range.backing, Backing::RomDevice { .. })).count()
    }

    fn show(bench: &Bench, ecam: &Arc<Ecam>) -> ConfigPages {
        let ecam: Arc<dyn IoHandler> = ecam.clone();
        ConfigPages::show(&bench.root, &bench.memory, ECAM, &ecam).unwrap()
    }

    #[test]
    fn pages_of_emulated_functions_read_alike_and_follow_writes() {
        let (bench, ecam) = with_ecam();
        bench.memory.write(Space::Mmio, ECAM + 0x8018, &[0, 1, 1, 0]);
        let before: Vec<u32> = (0..0x3000).map(|n| ecam_read(&bench, n * 4 + 0x7000)).collect();
        let shown = show(&bench, &ecam);
        assert_eq!(pages(&bench), 2, "a function that shows no page stays trapped");
        assert_eq!((0..0x3000).map(|n| ecam_read(&bench, n * 4 + 0x7000)).collect::<Vec<_>>(), before);
        bench.memory.write(Space::Mmio, ECAM + 0x8018, &[0, 7, 9, 0]);
        assert_eq!((ecam_read(&bench, 0x8018), bench.read32(0, "1", 0x18)), (0x0009_0700, 0x0009_0700));
        bench.memory.write(Space::Mmio, ECAM + 0x8000, &[0; 4]);
        assert_eq!(ecam_read(&bench, 0x8000), 0x000c_1b36, "read-only");
        drop(shown);
        assert_eq!(pages(&bench), 0);
        assert_eq!(ecam_read(&bench, 0x8018), 0x0009_0700);
    }

    #[test]
    fn a_page_goes_when_its_function_says_so_or_its_bus_moves() {
        let (bench, ecam) = with_ecam();
        bench.memory.write(Space::Mmio, ECAM + 0x8018, &[0, 1, 1, 0]);
        let nic = Fake::new("nic1", one_bar(0, 0x1000), &bench.memory);
        bench.plug_behind("1", nic.clone(), "0");
        nic.quiet.store(true, Ordering::Relaxed);
        let shown = show(&bench, &ecam);
        assert_eq!(pages(&bench), 3);
        assert_eq!(ecam_read(&bench, 0x10_0000), bench.read32(1, "0", 0));
        nic.quiet.store(false, Ordering::Relaxed);
        assert_eq!(pages(&bench), 3, "noticed at the next write");
        bench.memory.write(Space::Mmio, ECAM + 0x10_003c, &[5]);
        assert_eq!(pages(&bench), 2);
        assert_eq!(ecam_read(&bench, 0x10_003c) & 0xff, 5, "and trapped from then on");
        drop(shown);
        nic.quiet.store(true, Ordering::Relaxed);
        let _shown = show(&bench, &ecam);
        assert_eq!(pages(&bench), 3);
        bench.memory.write(Space::Mmio, ECAM + 0x8018, &[0, 3, 3, 0]);
        assert_eq!(pages(&bench), 2, "bus 1 is not there any more");
        assert_eq!(ecam_read(&bench, 0x10_0000), u32::MAX);
    }
}
