//! The configuration page of a function that nothing uses yet (see [`crate::pci::pages`]).
//!
//! While a function neither decodes nor masters the bus and is in D0, its registers change by configuration writes
//! alone, and those trap: the page is brought up to date before a write returns. A write whose effects are not known to
//! stay within its capability (vital product data, vendor-specific ones), and the first sign of a driver, end the page;
//! from then on the hardware answers every read.

use std::ops::Range;

use parking_lot::Mutex;

use super::config::{Division, SIZE};
use super::seams::{HostPci, RegionIndex};
use crate::memory::HostSlice;
use crate::pci::regs::{COMMAND_BUS_MASTER, COMMAND_IO, COMMAND_MEMORY};
use crate::pci::{Msix, PciCore};

/// A function's page, while there is one. The lock is taken after the core's registers were written, and holds while the
/// hardware is read, so that two vCPUs' writes reach the page in the order of their reads.
#[derive(Default)]
pub struct QuietPage(Mutex<Option<Shadow>>);

struct Shadow {
    page: HostSlice,
    /// What the hardware read when it was last asked.
    hardware: Vec<u8>,
}

/// Whether nothing uses the function: it does not decode, does not master the bus, is in D0 and has no interrupt on.
pub fn is_quiet(core: &PciCore) -> bool {
    let idle = core.command() & (COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER) == 0 && core.power_state() == 0;
    let msi = core.msi().is_some_and(|msi| msi.enabled());
    idle && !msi && !core.msix().is_some_and(|msix| Msix::enabled(msix))
}

impl QuietPage {
    /// Fills `page` and keeps it current from now on, if the function is quiet and its registers can be read.
    pub fn show(&self, page: &HostSlice, host: &dyn HostPci, core: &PciCore, division: &Division) -> bool {
        let mut state = self.0.lock();
        *state = None;
        let mut hardware = vec![0xff; SIZE];
        let size = (host.region(RegionIndex::Config).size as usize).min(SIZE);
        if !is_quiet(core) || host.read(RegionIndex::Config, 0, &mut hardware[..size]).is_err() {
            return false;
        }
        let shadow = Shadow { page: page.clone(), hardware };
        shadow.fill(0..SIZE as u16, core, division);
        *state = Some(shadow);
        true
    }

    /// After a write of `len` bytes at `off`: brings the page up to date, or ends it.
    pub fn after_write(&self, off: u16, len: usize, host: &dyn HostPci, core: &PciCore, division: &Division) {
        let mut state = self.0.lock();
        let Some(shadow) = &mut *state else { return };
        let range = division.steady(off).filter(|range| usize::from(off) + len <= usize::from(range.end));
        let current = is_quiet(core) && range.is_some_and(|range| shadow.refresh(range, host, core, division));
        if !current {
            *state = None;
        }
    }

    /// Whether there is a page, and it is current.
    pub fn is_current(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Forgets the page.
    pub fn end(&self) {
        *self.0.lock() = None;
    }
}

impl Shadow {
    /// Reads the hardware's part of a range anew.
    fn refresh(&mut self, range: Range<u16>, host: &dyn HostPci, core: &PciCore, division: &Division) -> bool {
        let bytes = usize::from(range.start)..usize::from(range.end);
        let Some(hardware) = self.hardware.get_mut(bytes) else { return false };
        let known = !division.reads_hardware(range.start, hardware.len())
            || host.read(RegionIndex::Config, u64::from(range.start), hardware).is_ok();
        if known {
            self.fill(range, core, division);
        }
        known
    }

    /// Writes a range of the page: the hardware's bits as they were read, and the emulated ones.
    fn fill(&self, range: Range<u16>, core: &PciCore, division: &Division) {
        let hardware = &self.hardware[usize::from(range.start)..usize::from(range.end)];
        let mut shown = vec![0; hardware.len()];
        core.read(range.start, &mut shown);
        division.merge(range.start, hardware, &mut shown);
        self.page.write(u64::from(range.start), &shown);
    }
}
