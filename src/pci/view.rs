//! The PCI tree as its registers say now, as plain data: for `query-pci` and `info pci`.

use std::ops::Range;

use serde::Serialize;

use super::bar::{BarKind, ROM_INDEX};
use super::regs::{BAR0, DEVICE, HEADER_ENDPOINT, INTERRUPT_LINE, REVISION, ROM, SUBSYSTEM, SUBSYSTEM_VENDOR, VENDOR};
use super::{BarContent, Devfn, PciBus, PciFunction};
use crate::memory::Backing;

/// A bus.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BusView {
    /// The number that software gave it; 0: the root bus, or none yet.
    pub number: u8,
    /// Its name.
    pub name: String,
    /// Its functions, by their addresses.
    pub functions: Vec<FunctionView>,
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionView {
    /// Its id.
    pub id: String,
    /// Its address on the bus.
    pub devfn: Devfn,
    /// Class and subclass.
    pub class: u16,
    /// Vendor and device.
    pub ids: (u16, u16),
    /// Vendor and device of the subsystem, if it is an endpoint.
    pub subsystem: Option<(u16, u16)>,
    /// Interrupt pin, 0 for INTA, and the line that software noted.
    pub interrupt: Option<(u8, u8)>,
    /// Its BARs; 6 is the expansion ROM.
    pub bars: Vec<BarView>,
    /// If it is a bridge.
    pub bridge: Option<BridgeView>,
}

/// A BAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarView {
    /// 0 to 5; 6 is the expansion ROM.
    pub index: usize,
    /// What the register holds, whether or not it is decoded.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Ports, or memory with 32 or 64 address bits.
    pub kind: BarKind,
    /// Whether it is prefetchable.
    pub prefetchable: bool,
}

/// How the BAR of a passed-through function answers the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BarUse {
    /// 0 to 5; 6 is the expansion ROM.
    pub bar: usize,
    /// Offsets that the hardware answers itself, without an exit.
    pub mapped: Vec<Range<u64>>,
    /// Offsets whose accesses trap.
    pub trapped: Vec<Range<u64>>,
}

impl BarUse {
    /// Of a BAR with these contents.
    pub fn of(bar: usize, content: &BarContent) -> BarUse {
        let of_kind = |traps: bool| {
            let pieces = content.pieces.iter().filter(|piece| matches!(piece.backing, Backing::Io { .. }) == traps);
            pieces.map(|piece| piece.range.clone()).collect()
        };
        BarUse { bar, mapped: of_kind(false), trapped: of_kind(true) }
    }
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeView {
    /// The highest bus number behind it.
    pub subordinate: u8,
    /// Ports that it forwards.
    pub io: Range<u64>,
    /// Memory below 4 GiB that it forwards.
    pub memory: Range<u64>,
    /// Prefetchable memory that it forwards.
    pub prefetchable: Range<u64>,
    /// The bus behind it.
    pub bus: BusView,
}

/// A bus whose number is `number`, and all that is behind it.
pub fn bus(bus: &PciBus, number: u8) -> BusView {
    let functions = bus.functions().into_iter().map(|(devfn, at)| function(devfn, &*at)).collect();
    BusView { number, name: bus.name().to_owned(), functions }
}

fn function(devfn: Devfn, function: &dyn PciFunction) -> FunctionView {
    let core = function.core();
    // The emulated registers: all of these are, for a passed-through function too.
    let word = |off: u16| core.with(|config| config.u16(off));
    let endpoint = core.with(|config| config.layout()) == HEADER_ENDPOINT;
    let bridge = core.bridge().zip(function.secondary()).map(|(bridge, behind)| BridgeView {
        subordinate: bridge.subordinate,
        io: bridge.forwards.io,
        memory: bridge.forwards.memory,
        prefetchable: bridge.forwards.prefetchable,
        bus: self::bus(behind, bridge.secondary),
    });
    FunctionView {
        id: function.id().to_owned(),
        devfn,
        class: word(REVISION + 2),
        ids: (word(VENDOR), word(DEVICE)),
        subsystem: endpoint.then(|| (word(SUBSYSTEM_VENDOR), word(SUBSYSTEM))),
        interrupt: core.pin().map(|pin| (pin, word(INTERRUPT_LINE) as u8)),
        bars: bars(function),
        bridge,
    }
}

fn bars(function: &dyn PciFunction) -> Vec<BarView> {
    let core = function.core();
    let specs = core.bars();
    let known = specs.iter().enumerate().filter_map(|(index, spec)| Some((index, (*spec)?)));
    known
        .map(|(index, spec)| {
            let at = if index == ROM_INDEX { ROM } else { BAR0 + 4 * index as u16 };
            let (low, high) = core.with(|config| (config.u32(at), config.u32(at + 4)));
            let mask = match spec.kind {
                BarKind::Io => !3,
                _ if index == ROM_INDEX => !0x7ff,
                _ => !0xf,
            };
            let high = if spec.kind == BarKind::Mem64 && index != ROM_INDEX { u64::from(high) << 32 } else { 0 };
            BarView {
                index,
                address: high | u64::from(low & mask),
                size: spec.size,
                kind: spec.kind,
                prefetchable: spec.prefetchable,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::with_ecam;
    use super::*;

    #[test]
    fn the_tree_is_what_the_registers_say() {
        let (bench, _) = with_ecam();
        bench.write(0, "1", 0x18, 0x01_01_00, 4);
        bench.enable(0, "2", 0, 0xc000_0000, 2);
        let seen = bus(bench.root.bus(), 0);
        assert_eq!((seen.name.as_str(), seen.functions.len()), ("pcie.0", 3));
        let port = &seen.functions[1];
        assert_eq!((port.id.as_str(), port.class, port.ids), ("rp1", 0x0604, (0x1b36, 0x000c)));
        assert_eq!(port.bridge.as_ref().unwrap().bus.number, 1);
        let nic = &seen.functions[2];
        let bar = BarView { index: 0, address: 0xc000_0000, size: 0x1000, kind: BarKind::Mem32, prefetchable: false };
        assert_eq!((nic.bars.as_slice(), nic.interrupt), (&[bar][..], Some((0, 0))));
    }
}
