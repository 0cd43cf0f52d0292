//! What each part of a BAR is: mapped into the guest, or trapped. Pure.
//!
//! The MSI-X table and the pending bits are emulated (PCI 6.8.2), so the pages that hold them are trapped; whatever else
//! lies in such a page is served by single accesses of the device. Everything else is mapped, as far as the kernel
//! allows. Nothing that a device says is fatal: what cannot be mapped is trapped.

use std::ops::Range;

use super::seams::{BARS, RegionInfo};
use crate::memory::host::PAGE;
use crate::pci::{BarKind, BarSpec, ConfigSpace, MsixSpec, regs};

/// Low bits of a BAR's register (PCI 6.2.5.1).
const BAR_IO: u32 = 1 << 0;
const BAR_64BIT: u32 = 1 << 2;
const BAR_PREFETCHABLE: u32 = 1 << 3;
/// The smallest size that a register can show.
const MIN_IO: u64 = 4;
const MIN_MEM: u64 = 16;
/// The size of the port space, and of the largest BAR below 4 GiB.
const MAX_IO: u64 = 1 << 16;
const MAX_MEM32: u64 = 1 << 31;
const MAX_MEM64: u64 = 1 << 51;
/// The smallest expansion ROM (PCI 6.2.5.2), and the largest that is shown (PCIe 7.5.1.2.4).
const MIN_ROM: u64 = 2 << 10;
const MAX_ROM: u64 = 16 << 20;

/// How a part of a BAR answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// By the hardware, without an exit.
    Mapped,
    /// By [`Target`], with an exit.
    Trapped,
}

/// What a byte of a trapped part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Of the MSI-X table, at this offset.
    Table(u64),
    /// Of the pending bits, at this offset.
    Pending(u64),
    /// A register of the device.
    Device,
}

/// The registers that a device's BARs show the guest, by index: sizes from VFIO, kinds from the configuration space. The
/// expansion ROM, index 6, is shown if `rom` is its size.
pub fn specs(config: &ConfigSpace, regions: &[RegionInfo; BARS], rom: Option<u64>) -> [Option<BarSpec>; 7] {
    let mut specs = [None; 7];
    let mut upper_half = false;
    for (index, region) in regions.iter().enumerate() {
        if std::mem::take(&mut upper_half) {
            continue;
        }
        let flags = config.u32(regs::BAR0 + 4 * index as u16);
        let (kind, sizes) = match flags {
            _ if flags & BAR_IO != 0 => (BarKind::Io, MIN_IO..=MAX_IO),
            // The last register has no neighbour for the upper half.
            _ if flags & BAR_64BIT != 0 && index + 1 < BARS => (BarKind::Mem64, MIN_MEM..=MAX_MEM64),
            _ => (BarKind::Mem32, MIN_MEM..=MAX_MEM32),
        };
        let Some(size) = shown_size(region.size).filter(|size| sizes.contains(size)) else { continue };
        upper_half = kind == BarKind::Mem64;
        specs[index] = Some(BarSpec { size, kind, prefetchable: flags & BAR_IO == 0 && flags & BAR_PREFETCHABLE != 0 });
    }
    let rom = rom.and_then(shown_size).filter(|size| *size <= MAX_ROM);
    specs[6] = rom.map(|size| BarSpec { size: size.max(MIN_ROM), kind: BarKind::Mem32, prefetchable: false });
    specs
}

/// A register shows powers of two only.
fn shown_size(size: u64) -> Option<u64> {
    (size > 0).then(|| size.checked_next_power_of_two()).flatten()
}

/// The parts of BAR `bar` in ascending order, without gaps up to its size.
///
/// A BAR smaller than a page is one mapped part, of a whole page, if VFIO lets it be mapped: it does so only where it has
/// reserved the rest of the page, so that no other device can ever be there (kernel: `vfio_pci_probe_mmaps`). With the
/// MSI-X table or the pending bits in it, it is trapped.
pub fn parts(bar: u8, region: &RegionInfo, msix: Option<&MsixSpec>) -> Vec<(Range<u64>, Part)> {
    let emulated = msix.map(|msix| emulated(bar, msix)).unwrap_or_default();
    let whole = 0..region.size;
    if (1..PAGE).contains(&region.size) && region.mappable.contains(&whole) && emulated.iter().all(Range::is_empty) {
        return vec![(0..PAGE, Part::Mapped)];
    }
    let holes = emulated.map(pages);
    let mut areas: Vec<Range<u64>> = region.mappable.iter().map(|area| whole_pages(area, region.size)).collect();
    areas.sort_by_key(|area| area.start);
    let mut parts = Vec::new();
    let mut at = 0;
    for area in areas {
        for mapped in subtract(area, &holes) {
            // Areas that overlap are mapped once.
            let mapped = mapped.start.max(at)..mapped.end;
            if mapped.is_empty() {
                continue;
            }
            if at < mapped.start {
                parts.push((at..mapped.start, Part::Trapped));
            }
            at = mapped.end;
            parts.push((mapped, Part::Mapped));
        }
    }
    if at < region.size {
        parts.push((at..region.size, Part::Trapped));
    }
    parts
}

/// Whether registers of the device may lie in a page that is trapped for the sake of the table or the pending bits, which
/// makes them slow: the page begins with something else, as it should not (PCI 6.8.2 asks for pages apart).
pub fn loses_registers(bar: u8, msix: &MsixSpec) -> bool {
    let emulated = emulated(bar, msix);
    let is_emulated = |byte: u64| emulated.iter().any(|range| range.contains(&byte));
    emulated.iter().any(|range| !range.is_empty() && !is_emulated(range.start & !(PAGE - 1)))
}

/// What the byte at `offset` of BAR `bar` is, and up to where the bytes after it are the same.
pub fn target(bar: u8, msix: Option<&MsixSpec>, offset: u64) -> (Target, u64) {
    let [table, pending] = msix.map(|msix| emulated(bar, msix)).unwrap_or_default();
    if table.contains(&offset) {
        return (Target::Table(offset - table.start), table.end);
    }
    if pending.contains(&offset) {
        return (Target::Pending(offset - pending.start), pending.end);
    }
    let next = [table, pending]
        .iter()
        .filter(|range| !range.is_empty() && range.start > offset)
        .map(|range| range.start)
        .min();
    (Target::Device, next.unwrap_or(u64::MAX))
}

/// Whether the table is where a guest can reach it. Pending bits that it cannot reach are no hindrance: drivers look at
/// them rarely, if ever.
pub fn table_fits(msix: &MsixSpec, specs: &[Option<BarSpec>; 7]) -> bool {
    let spec = specs.get(usize::from(msix.table_bar)).filter(|_| usize::from(msix.table_bar) < BARS);
    spec.copied()
        .flatten()
        .is_some_and(|spec| spec.kind != BarKind::Io && u64::from(msix.table_offset) + msix.table_len() <= spec.size)
}

/// The bytes of the table and of the pending bits in this BAR, empty where they are in another.
fn emulated(bar: u8, msix: &MsixSpec) -> [Range<u64>; 2] {
    let range = |in_bar: u8, offset: u32, len: u64| {
        let start = u64::from(offset);
        if in_bar == bar { start..start + len } else { 0..0 }
    };
    [
        range(msix.table_bar, msix.table_offset, msix.table_len()),
        range(msix.pending_bar, msix.pending_offset, msix.pending_len()),
    ]
}

/// The pages that `range` touches.
fn pages(range: Range<u64>) -> Range<u64> {
    if range.is_empty() { 0..0 } else { range.start & !(PAGE - 1)..range.end.next_multiple_of(PAGE) }
}

/// The whole pages inside `area` and inside the region.
fn whole_pages(area: &Range<u64>, size: u64) -> Range<u64> {
    let end = area.end.min(size) & !(PAGE - 1);
    area.start.checked_next_multiple_of(PAGE).unwrap_or(end).min(end)..end
}

/// `area` without the holes.
fn subtract(area: Range<u64>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    holes.iter().filter(|hole| !hole.is_empty()).fold(vec![area], |areas, hole| {
        let split = areas.into_iter().flat_map(|area| {
            let before = area.start..area.end.min(hole.start);
            let after = area.start.max(hole.end)..area.end;
            [before, after]
        });
        split.filter(|area| area.start < area.end).collect()
    })
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, clippy::type_complexity, reason = "tables of ranges")]
mod tests;
