//! Address assignment, as firmware does it, for a guest that is booted directly. Pure: a tree and the machine's apertures
//! in, every BAR's address, every bridge's windows and bus numbers out.
//!
//! Memory goes to one of two classes. High, above 4 GiB: 64-bit prefetchable BARs, and on the root bus every 64-bit BAR.
//! Low, below 4 GiB: all others, for the non-prefetchable window of a bridge has 32 bits. In each class and on each bus
//! the largest alignment is placed first.
//!
//! Decoding is left off and Linux switches it on when a driver takes the device: it sizes the BARs of every function,
//! and would have to switch decoding off and on again for that, which is two exits and two changes of the memory map for
//! each function. Bridges get Bus Master Enable, which saves Linux one write; endpoints do not: that is their driver's.

use std::ops::Range;

use super::bar::{BARS, BarKind, BarSpec, BarSpecs, ROM_INDEX, register};
use super::bridge::{IO_GRAIN, MEMORY_GRAIN, Windows};
use super::regs::{COMMAND, COMMAND_BUS_MASTER, INTERRUPT_LINE, IO_BASE, PRIMARY_BUS};
use super::{Devfn, PciRoot};
use crate::error::{Code, Error, Result};
use crate::memory::host::PAGE;

/// Addresses that a bridge keeps free, for devices that come later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// How many, with what is there already.
    pub bytes: u64,
    /// Whether the user asked for it: its lack is an error. Other room is given if there is enough for all.
    pub hard: bool,
}

/// What a bridge keeps free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reserve {
    /// Bus numbers.
    pub buses: u8,
    /// Ports.
    pub io: Room,
    /// Memory below 4 GiB.
    pub low: Room,
    /// Prefetchable memory.
    pub high: Room,
}

/// A function as the planner sees it.
#[derive(Debug, Clone)]
pub struct Node {
    /// For people: "gpu0".
    pub name: String,
    /// The address on its bus.
    pub devfn: Devfn,
    /// The layout of its header.
    pub layout: u8,
    /// Its BARs.
    pub bars: BarSpecs,
    /// The GSI of its pin.
    pub gsi: Option<u32>,
    /// What it keeps free behind it, if it is a bridge.
    pub reserve: Reserve,
    /// What is behind it, if it is a bridge.
    pub behind: Option<Vec<Node>>,
}

/// What the machine leaves for BARs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apertures {
    /// Ports.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub low: Range<u64>,
    /// Memory above 4 GiB; empty where there is none, and then all BARs go below.
    pub high: Range<u64>,
}

/// A bridge's share of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BridgePlan {
    /// The bus behind it.
    pub secondary: u8,
    /// The highest bus behind it.
    pub subordinate: u8,
    /// Its windows.
    pub windows: Windows,
}

/// A function's share of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The bus that it is on.
    pub bus: u8,
    /// Its address there.
    pub devfn: Devfn,
    /// The layout of its header.
    pub layout: u8,
    /// The address of each BAR, with the kind that says how many registers hold it.
    pub bars: [Option<(u64, BarKind)>; BARS],
    /// The GSI of its pin.
    pub gsi: Option<u32>,
    /// If it is a bridge.
    pub bridge: Option<BridgePlan>,
}

/// The whole plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Every function of the tree; a bridge comes before what is behind it.
    pub functions: Vec<Assigned>,
    /// The highest bus number in use.
    pub last_bus: u8,
}

/// A write to a function's configuration space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigWrite {
    /// Bus number.
    pub bus: u8,
    /// Address on the bus.
    pub devfn: Devfn,
    /// Register.
    pub off: u16,
    /// 1, 2 or 4 bytes.
    pub data: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Io,
    Low,
    High,
}

impl Class {
    const ALL: [Class; 3] = [Class::Io, Class::Low, Class::High];

    fn of(index: usize, bar: &BarSpec, on_root: bool, high_exists: bool) -> Class {
        match bar.kind {
            BarKind::Io => Class::Io,
            BarKind::Mem64 if index != ROM_INDEX && high_exists && (bar.prefetchable || on_root) => Class::High,
            BarKind::Mem32 | BarKind::Mem64 => Class::Low,
        }
    }

    /// BARs smaller than a page get a page of their own, so that no two share one.
    fn unit(self) -> u64 {
        if self == Class::Io { 4 } else { PAGE }
    }

    fn grain(self) -> u64 {
        if self == Class::Io { IO_GRAIN } else { MEMORY_GRAIN }
    }

    fn aperture(self, apertures: &Apertures) -> &Range<u64> {
        match self {
            Class::Io => &apertures.io,
            Class::Low => &apertures.low,
            Class::High => &apertures.high,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Class::Io => "ports",
            Class::Low => "memory below 4 GiB",
            Class::High => "memory above 4 GiB",
        }
    }
}

/// What is being placed.
#[derive(Debug, Clone, Copy)]
struct Want {
    class: Class,
    high_exists: bool,
    /// Whether room that nobody asked for is given too.
    soft: bool,
}

impl Want {
    /// What a bridge keeps free of the class.
    fn room(self, reserve: Reserve) -> u64 {
        let room = match self.class {
            Class::Io => reserve.io,
            Class::Low => reserve.low,
            // Without addresses above 4 GiB all memory is low.
            Class::High if !self.high_exists => Room::default(),
            Class::High => reserve.high,
        };
        if room.hard || self.soft { room.bytes } else { 0 }
    }
}

/// Something to be placed on one bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    /// Index of the function on the bus.
    node: usize,
    /// A BAR of it, or `None` for its window.
    bar: Option<usize>,
    size: u64,
    align: u64,
}

/// Plans addresses and bus numbers for a tree.
///
/// # Errors
/// [`Code::OutOfAddressSpace`] with the list of who needs how much, if an aperture or the 256 bus numbers are too few.
pub fn plan(tree: &[Node], apertures: &Apertures) -> Result<Plan> {
    let mut functions = Vec::new();
    let mut next_bus = 1u16;
    number(tree, 0, &mut next_bus, &mut functions);
    let last_bus = u8::try_from(next_bus - 1)
        .map_err(|_| Error::new(Code::OutOfAddressSpace, "there are more than 255 buses behind bridges"))?;
    let high_exists = !apertures.high.is_empty();
    for class in Class::ALL {
        let aperture = class.aperture(apertures).clone();
        let done = [true, false].into_iter().any(|soft| {
            let class = Want { class, high_exists, soft };
            place(tree, class, true, aperture.clone(), &mut functions.iter_mut()).is_some()
        });
        if !done {
            return Err(exhausted(tree, class, high_exists, &aperture));
        }
    }
    Ok(Plan { functions, last_bus })
}

/// Makes the list of all functions with their bus numbers, in the order of the tree. Numbers beyond 255 are cut; the
/// caller sees that in `next`.
fn number(nodes: &[Node], bus: u8, next: &mut u16, out: &mut Vec<Assigned>) {
    for node in nodes {
        let at = out.len();
        let (devfn, layout, gsi) = (node.devfn, node.layout, node.gsi);
        out.push(Assigned { bus, devfn, layout, bars: [None; BARS], gsi, bridge: None });
        let Some(behind) = &node.behind else { continue };
        let secondary = *next as u8;
        *next = next.saturating_add(1);
        number(behind, secondary, next, out);
        *next = next.saturating_add(node.reserve.buses.into());
        let subordinate = (*next - 1) as u8;
        if let Some(function) = out.get_mut(at) {
            function.bridge = Some(BridgePlan { secondary, subordinate, windows: Windows::default() });
        }
    }
}

/// What one bus needs of a class.
fn items(nodes: &[Node], want: Want, on_root: bool) -> Option<Vec<Item>> {
    let Want { class, high_exists, .. } = want;
    let mut items = Vec::new();
    for (node, function) in nodes.iter().enumerate() {
        for (index, bar) in function.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            if Class::of(index, bar, on_root, high_exists) == class {
                let size = bar.size.max(class.unit());
                items.push(Item { node, bar: Some(index), size, align: size });
            }
        }
        if let Some(behind) = &function.behind
            && let Some((size, align)) = window(behind, function.reserve, want)?
        {
            items.push(Item { node, bar: None, size, align });
        }
    }
    Some(items)
}

/// Size and alignment of the window of a bridge with these functions behind it; nothing if they need none. The outer
/// `None`: more than there are addresses.
fn window(behind: &[Node], reserve: Reserve, want: Want) -> Option<Option<(u64, u64)>> {
    let class = want.class;
    let items = items(behind, want, false)?;
    let room = want.room(reserve);
    let align = items.iter().map(|item| item.align).max().unwrap_or(1);
    let offsets = pack(&items, 0..u64::MAX)?;
    let end = offsets.iter().zip(&items).map(|(offset, item)| offset + item.size).max().unwrap_or(0).max(room);
    if end == 0 {
        return Some(None);
    }
    Some(Some((end.checked_next_multiple_of(class.grain())?, align.max(class.grain()))))
}

/// Places the items of a bus in a range and those behind its bridges in their windows. `out` walks the functions in the
/// order of the tree. `None` if the range is too small.
fn place<'a>(
    nodes: &[Node],
    want: Want,
    on_root: bool,
    within: Range<u64>,
    out: &mut impl Iterator<Item = &'a mut Assigned>,
) -> Option<()> {
    let items = items(nodes, want, on_root)?;
    let addresses = pack(&items, within)?;
    for (index, node) in nodes.iter().enumerate() {
        let function = out.next()?;
        let mut forwarded = 0..0;
        for (item, &address) in items.iter().zip(&addresses).filter(|(item, _)| item.node == index) {
            match item.bar {
                Some(bar) => *function.bars.get_mut(bar)? = Some((address, node.bars.get(bar)?.as_ref()?.kind)),
                None => forwarded = address..address + item.size,
            }
        }
        if let Some(bridge) = &mut function.bridge {
            let window = match want.class {
                Class::Io => &mut bridge.windows.io,
                Class::Low => &mut bridge.windows.memory,
                Class::High => &mut bridge.windows.prefetchable,
            };
            *window = forwarded.clone();
        }
        if let Some(behind) = &node.behind {
            place(behind, want, false, forwarded, out)?;
        }
    }
    Some(())
}

/// First fit, the largest alignment first: an address for each item, or `None` if they do not all fit.
fn pack(items: &[Item], within: Range<u64>) -> Option<Vec<u64>> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse((items[index].align, items[index].size)));
    let mut free = vec![within];
    let mut addresses = vec![0; items.len()];
    for index in order {
        let Item { size, align, .. } = items[index];
        let fit = |hole: &Range<u64>| {
            let start = hole.start.checked_next_multiple_of(align)?;
            let end = start.checked_add(size)?;
            (end <= hole.end).then_some(start..end)
        };
        let (at, taken) = free.iter().enumerate().find_map(|(at, hole)| Some((at, fit(hole)?)))?;
        addresses[index] = taken.start;
        let hole = free.remove(at);
        let rest = [hole.start..taken.start, taken.end..hole.end];
        free.splice(at..at, rest.into_iter().filter(|rest| !rest.is_empty()));
    }
    Some(addresses)
}

fn exhausted(tree: &[Node], class: Class, high_exists: bool, aperture: &Range<u64>) -> Error {
    let space = aperture.end.saturating_sub(aperture.start);
    let cause = format!("the BARs of all devices do not fit into the guest's {}", class.name());
    let mut holders = Vec::new();
    list(tree, class, true, high_exists, &mut holders);
    holders.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    let error = Error::new(Code::OutOfAddressSpace, cause).evidence(format!(
        "{:#x} to {:#x}: {}",
        aperture.start,
        aperture.end,
        human(space)
    ));
    holders.into_iter().fold(error, |error, (name, size)| error.evidence(format!("{name}: {}", human(size))))
}

/// Who holds what of a class.
fn list(nodes: &[Node], class: Class, on_root: bool, high_exists: bool, out: &mut Vec<(String, u64)>) {
    for node in nodes {
        for (index, bar) in node.bars.iter().enumerate() {
            if let Some(bar) = bar
                && Class::of(index, bar, on_root, high_exists) == class
            {
                let register = if index == ROM_INDEX { "ROM".to_string() } else { format!("BAR{index}") };
                out.push((format!("{} {register}", node.name), bar.size));
            }
        }
        if let Some(behind) = &node.behind {
            list(behind, class, false, high_exists, out);
        }
    }
}

/// A size in the largest unit that divides it.
fn human(size: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| size != 0 && size.is_multiple_of(1 << shift)) {
        Some((shift, unit)) => format!("{} {unit}", size >> shift),
        None => format!("{size} B"),
    }
}

impl Plan {
    /// The writes that put the plan into the functions' registers, bridges before what is behind them.
    pub fn writes(&self) -> Vec<ConfigWrite> {
        let mut writes = Vec::new();
        for function in &self.functions {
            let mut put = |off: u16, data: &[u8]| {
                writes.push(ConfigWrite { bus: function.bus, devfn: function.devfn, off, data: data.to_vec() });
            };
            for (index, bar) in function.bars.iter().enumerate() {
                let Some((address, kind)) = *bar else { continue };
                let at = register(index, function.layout);
                put(at, &(address as u32).to_le_bytes());
                if kind == BarKind::Mem64 {
                    put(at + 4, &((address >> 32) as u32).to_le_bytes());
                }
            }
            if let Some(gsi) = function.gsi {
                put(INTERRUPT_LINE, &[gsi as u8]);
            }
            if let Some(bridge) = &function.bridge {
                put(PRIMARY_BUS, &[function.bus, bridge.secondary, bridge.subordinate, 0]);
                for (off, value) in bridge.windows.registers() {
                    // The other half of the port window's dword is the secondary status.
                    let len = if off == IO_BASE { 2 } else { 4 };
                    put(off, &value.to_le_bytes()[..len]);
                }
                put(COMMAND, &COMMAND_BUS_MASTER.to_le_bytes());
            }
        }
        writes
    }

    /// Writes the plan into the functions' registers.
    pub fn apply(&self, root: &PciRoot) {
        for write in self.writes() {
            root.write(write.bus, write.devfn, write.off, &write.data);
        }
    }
}

#[cfg(test)]
mod tests;
