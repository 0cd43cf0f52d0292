//! The trapped part of a BAR: the MSI-X table and pending bits, and the registers that share a page with them or cannot
//! be mapped.

use std::ops::Range;
use std::sync::{Arc, Weak};

use super::bars::{Target, target};
use super::seams::{HostPci, RegionIndex};
use crate::guest_error;
use crate::memory::IoHandler;
use crate::pci::Msix;

/// Answers for all trapped parts of one BAR; its offsets are those in the BAR.
pub struct BarTrap {
    bar: u8,
    /// Weak: a flat view that a vCPU still reads must not keep the device open. What comes later reads as ones.
    host: Weak<dyn HostPci>,
    msix: Option<Arc<Msix>>,
}

impl BarTrap {
    /// The trapped parts of BAR `bar`.
    pub fn new(bar: u8, host: &Arc<dyn HostPci>, msix: Option<Arc<Msix>>) -> BarTrap {
        BarTrap { bar, host: Arc::downgrade(host), msix }
    }

    /// Cuts an access where it crosses from one target to another: nearly every access is one piece, so registers are
    /// reached with the width that the guest used.
    fn split(&self, offset: u64, len: usize, mut each: impl FnMut(Target, Range<usize>, u64)) {
        let spec = self.msix.as_ref().map(|msix| msix.spec());
        let mut done = 0;
        while done < len {
            let Some(at) = offset.checked_add(done as u64) else { return };
            let (what, until) = target(self.bar, spec.as_ref(), at);
            let room = usize::try_from(until.saturating_sub(at)).unwrap_or(usize::MAX);
            let end = done.saturating_add(room.max(1)).min(len);
            each(what, done..end, at);
            done = end;
        }
    }
}

impl IoHandler for BarTrap {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.split(offset, data.len(), |target, part, at| {
            let Some(data) = data.get_mut(part) else { return };
            match (target, &self.msix) {
                (Target::Table(off), Some(msix)) => msix.table_read(off, data),
                (Target::Pending(off), Some(msix)) => msix.pending_read(off, data),
                _ => {
                    let Some(host) = self.host.upgrade() else { return data.fill(0xff) };
                    if let Err(error) = host.read(RegionIndex::Bar(self.bar), at, data) {
                        guest_error!(host.name(), "BAR {} at {at:#x} cannot be read: {error}", self.bar);
                        data.fill(0xff);
                    }
                }
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.split(offset, data.len(), |target, part, at| {
            let Some(data) = data.get(part) else { return };
            match (target, &self.msix) {
                (Target::Table(off), Some(msix)) => msix.table_write(off, data),
                // Software must not write pending bits (PCI 6.8.2.10).
                (Target::Pending(_), _) => {}
                _ => {
                    let Some(host) = self.host.upgrade() else { return };
                    if let Err(error) = host.write(RegionIndex::Bar(self.bar), at, data) {
                        guest_error!(host.name(), "BAR {} at {at:#x} cannot be written: {error}", self.bar);
                    }
                }
            }
        });
    }
}
