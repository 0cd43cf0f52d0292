//! The root of the PCI tree: configuration accesses by bus number, as the bridges' registers route them (PCI 3.2.2.3).

use std::ops::Range;
use std::sync::Arc;

use super::assign::Node;
use super::bus::{self, Attached};
use super::decode::Decode;
use super::pages::Shown;
use super::regs::{BRIDGE_CONTROL, BRIDGE_CONTROL_VGA, COMMAND, COMMAND_IO, COMMAND_MEMORY};
use super::{Devfn, PciBus};

/// The root bus, which is bus 0, and all that is behind its bridges.
pub struct PciRoot {
    bus: Arc<PciBus>,
    decode: Arc<Decode>,
    shown: Shown,
}

impl PciRoot {
    /// The root with an empty bus of this name ("pcie.0").
    pub fn new(name: &str, decode: &Arc<Decode>) -> Arc<PciRoot> {
        Arc::new(PciRoot { bus: PciBus::root(name, decode), decode: decode.clone(), shown: Shown::default() })
    }

    /// The root bus.
    pub fn bus(&self) -> &Arc<PciBus> {
        &self.bus
    }

    /// A guest's read of any length. What is absent reads as ones.
    pub fn read(&self, number: u8, devfn: Devfn, off: u16, data: &mut [u8]) {
        let target = self.locate(number, devfn);
        for part in dwords(u64::from(off), data.len()) {
            let at = usize::from(off) + part.start;
            let Some(data) = data.get_mut(part) else { continue };
            match (&target, u16::try_from(at)) {
                (Some(target), Ok(at)) => target.function().config_read(at, data),
                _ => data.fill(0xff),
            }
        }
    }

    /// A guest's write of any length. What is absent ignores it.
    pub fn write(&self, number: u8, devfn: Devfn, off: u16, data: &[u8]) {
        let Some(target) = self.locate(number, devfn) else { return };
        for part in dwords(u64::from(off), data.len()) {
            if let (Ok(at), Some(data)) = (u16::try_from(usize::from(off) + part.start), data.get(part)) {
                target.write(at, data);
            }
        }
        self.shown.after_write(number, devfn, usize::from(off), data.len());
        if target.function().secondary().is_some() {
            self.hide_unreachable_pages();
        }
    }

    /// Takes the pages of functions away that the guest cannot reach any more: they have gone, or lost their power.
    pub fn hide_unreachable_pages(&self) {
        self.shown.retain(|bus, devfn, function| {
            self.locate(bus, devfn).is_some_and(|at| Arc::ptr_eq(at.function(), function)) && function.page_is_current()
        });
    }

    /// The functions whose registers the guest reads from memory.
    pub(super) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Follows the bridges' bus numbers. Each step goes down one level of the tree, so it ends.
    fn locate(&self, number: u8, devfn: Devfn) -> Option<Arc<Attached>> {
        let (mut here, mut bus) = (0, self.bus.clone());
        while here != number {
            (here, bus) = bus.towards(number)?;
        }
        bus.find(devfn)
    }

    /// Puts the registers of every function into the state after power-on and unmaps every BAR, in one transaction: the
    /// first step of a machine's reset, with all vCPUs stopped. Each function's [`crate::device::Device::reset`] comes
    /// after it.
    pub fn reset(&self) {
        let mut mapped = self.decode.lock();
        let all = self.bus.all();
        all.iter().for_each(|attached| attached.function().core().reset());
        bus::settle(&self.decode, &mut mapped, &all);
    }

    /// Leads the legacy ranges of VGA to the function that has them, as firmware does: bridges forward them, and the function
    /// decodes. Comes after the addresses were assigned.
    pub fn route_legacy_vga(&self) {
        route_legacy_vga(&self.bus);
    }

    /// Whether a function has the legacy ranges of VGA, so that RAM must leave them out.
    pub fn has_legacy_vga(&self) -> bool {
        self.decode.lock().has_legacy_vga()
    }

    /// The tree as the planner of addresses takes it.
    pub fn nodes(&self) -> Vec<Node> {
        nodes(&self.bus)
    }
}

/// Whether the function is on this bus or behind it.
fn route_legacy_vga(bus: &PciBus) -> bool {
    bus.all_here().iter().any(|attached| {
        let function = attached.function();
        let behind = function.secondary().is_some_and(|bus| route_legacy_vga(bus));
        if behind {
            let control = function.core().with(|config| config.u16(BRIDGE_CONTROL)) | BRIDGE_CONTROL_VGA;
            attached.write(BRIDGE_CONTROL, &control.to_le_bytes());
        }
        let found = behind || function.legacy_vga().is_some();
        if found {
            let command = function.core().command() | COMMAND_IO | COMMAND_MEMORY;
            attached.write(COMMAND, &command.to_le_bytes());
        }
        found
    })
}

fn nodes(bus: &PciBus) -> Vec<Node> {
    let functions = bus.functions();
    functions
        .into_iter()
        .map(|(devfn, function)| Node {
            name: function.core().name().to_string(),
            devfn,
            layout: function.core().with(|config| config.layout()),
            bars: function.core().bars(),
            gsi: function.core().gsi(),
            reserve: function.reserve(),
            behind: function.secondary().map(|bus| nodes(bus)),
        })
        .collect()
}

/// Cuts an access at the borders of dwords; functions see no access across one.
pub(super) fn dwords(start: u64, len: usize) -> impl Iterator<Item = Range<usize>> {
    let first = 4 - (start % 4) as usize;
    let mut done = 0;
    std::iter::from_fn(move || {
        let part = done..len.min(if done == 0 { first } else { done + 4 });
        done = part.end;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_cut_at_dwords() {
        let cut = |start, len| dwords(start, len).map(|part| (part.start, part.end)).collect::<Vec<_>>();
        assert_eq!(cut(0, 4), [(0, 4)]);
        assert_eq!(cut(2, 4), [(0, 2), (2, 4)]);
        assert_eq!(cut(0, 8), [(0, 4), (4, 8)]);
        assert_eq!(cut(3, 8), [(0, 1), (1, 5), (5, 8)]);
        assert_eq!(cut(1, 0), []);
    }
}
