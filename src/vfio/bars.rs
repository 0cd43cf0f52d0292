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
/// expansion ROM, index 6, is shown if `rom` is its region.
pub fn specs(config: &ConfigSpace, regions: &[RegionInfo; BARS], rom: Option<&RegionInfo>) -> [Option<BarSpec>; 7] {
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
    let rom = rom.and_then(|rom| shown_size(rom.size)).filter(|size| *size <= MAX_ROM);
    specs[6] = rom.map(|size| BarSpec { size: size.max(MIN_ROM), kind: BarKind::Mem32, prefetchable: false });
    specs
}

/// A register shows powers of two only.
fn shown_size(size: u64) -> Option<u64> {
    (size > 0).then(|| size.checked_next_power_of_two()).flatten()
}

/// The parts of BAR `bar` in ascending order, without gaps up to its size.
///
/// A BAR smaller than a page is trapped: the rest of its page is not the guest's to reach.
pub fn parts(bar: u8, region: &RegionInfo, msix: Option<&MsixSpec>) -> Vec<(Range<u64>, Part)> {
    let holes = msix.map(|msix| emulated(bar, msix)).unwrap_or_default().map(pages);
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

/// Whether the table and the pending bits are where a guest can reach them.
pub fn msix_fits(msix: &MsixSpec, specs: &[Option<BarSpec>; 7]) -> bool {
    let fits = |bar: u8, offset: u32, len: u64| {
        let spec = specs.get(usize::from(bar)).filter(|_| usize::from(bar) < BARS).copied().flatten();
        spec.is_some_and(|spec| spec.kind != BarKind::Io && u64::from(offset) + len <= spec.size)
    };
    fits(msix.table_bar, msix.table_offset, msix.table_len())
        && fits(msix.pending_bar, msix.pending_offset, msix.pending_len())
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
mod tests {
    use super::Part::{Mapped, Trapped};
    use super::*;
    use proptest::prelude::*;

    fn region(size: u64, mappable: &[Range<u64>]) -> RegionInfo {
        RegionInfo { size, readable: true, writable: true, mappable: mappable.to_vec() }
    }

    fn msix(vectors: u16, table: (u8, u32), pending: (u8, u32)) -> MsixSpec {
        MsixSpec {
            vectors,
            table_bar: table.0,
            table_offset: table.1,
            pending_bar: pending.0,
            pending_offset: pending.1,
        }
    }

    #[test]
    fn parts_around_table_and_pending_bits() {
        let whole = |size: u64| region(size, &[0..size]);
        let cases: Vec<(&str, RegionInfo, Option<MsixSpec>, Vec<(Range<u64>, Part)>)> = vec![
            ("no MSI-X", whole(0x4000), None, vec![(0..0x4000, Mapped)]),
            ("in another BAR", whole(0x4000), Some(msix(5, (3, 0), (3, 0x1000))), vec![(0..0x4000, Mapped)]),
            (
                "QEMU's nvme: both in the middle of the registers' BAR",
                whole(0x4000),
                Some(msix(65, (0, 0x2000), (0, 0x3000))),
                vec![(0..0x2000, Mapped), (0x2000..0x4000, Trapped)],
            ),
            (
                "table and pending bits share a page",
                whole(0x4000),
                Some(msix(5, (0, 0x1000), (0, 0x1800))),
                vec![(0..0x1000, Mapped), (0x1000..0x2000, Trapped), (0x2000..0x4000, Mapped)],
            ),
            (
                "table crosses a page",
                whole(0x8000),
                Some(msix(300, (0, 0x1ff8), (0, 0x6000))),
                vec![
                    (0..0x1000, Mapped),
                    (0x1000..0x4000, Trapped),
                    (0x4000..0x6000, Mapped),
                    (0x6000..0x7000, Trapped),
                    (0x7000..0x8000, Mapped),
                ],
            ),
            ("table fills the BAR", whole(0x8000), Some(msix(2048, (0, 0), (1, 0))), vec![(0..0x8000, Trapped)]),
            (
                "table reaches beyond the BAR",
                whole(0x1000),
                Some(msix(2048, (0, 0x800), (0, 0xfff8))),
                vec![(0..0x1000, Trapped)],
            ),
            ("smaller than a page", region(0x100, &[0..0x100]), None, vec![(0..0x100, Trapped)]),
            ("not mappable", region(0x4000, &[]), None, vec![(0..0x4000, Trapped)]),
            (
                "sparse areas of an old kernel",
                region(0x4000, &[0x3000..0x4000, 0..0x2000]),
                Some(msix(65, (0, 0x2000), (0, 0x2800))),
                vec![(0..0x2000, Mapped), (0x2000..0x3000, Trapped), (0x3000..0x4000, Mapped)],
            ),
            (
                "areas that are no pages",
                region(0x4000, &[0x10..0x1800, 0x1800..0x3010]),
                None,
                vec![(0..0x2000, Trapped), (0x2000..0x3000, Mapped), (0x3000..0x4000, Trapped)],
            ),
            ("empty", region(0, &[]), None, vec![]),
        ];
        for (name, region, msix, expected) in cases {
            assert_eq!(parts(0, &region, msix.as_ref()), expected, "{name}");
        }
    }

    #[test]
    fn bytes_of_a_trapped_page_find_their_target() {
        let spec = msix(2, (0, 0x1000), (0, 0x1040));
        let cases = [
            (0x0, (Target::Device, 0x1000)),
            (0x1000, (Target::Table(0), 0x1020)),
            (0x101f, (Target::Table(0x1f), 0x1020)),
            (0x1020, (Target::Device, 0x1040)),
            (0x1044, (Target::Pending(4), 0x1048)),
            (0x1048, (Target::Device, u64::MAX)),
        ];
        for (offset, expected) in cases {
            assert_eq!(target(0, Some(&spec), offset), expected, "at {offset:#x}");
        }
        assert_eq!(target(1, Some(&spec), 0x1000), (Target::Device, u64::MAX));
    }

    #[test]
    fn sizes_come_from_the_regions_and_kinds_from_the_registers() {
        let mut config = ConfigSpace::new();
        for (index, flags) in [0x4u32, 0, 0x1, 0x8, 0xc, 0].into_iter().enumerate() {
            config.set_u32(0x10 + 4 * index as u16, flags);
        }
        let none = RegionInfo::default;
        let regions = [
            region(0x4000, &[]),
            region(0x99, &[]),
            region(0x20, &[]),
            region(0x3000, &[]),
            region(1 << 36, &[]),
            none(),
        ];
        let specs = specs(&config, &regions, Some(&region(0x400, &[])));
        let row = |size, kind, prefetchable| Some(BarSpec { size, kind, prefetchable });
        assert_eq!(
            specs,
            [
                row(0x4000, BarKind::Mem64, false),
                None,
                row(0x20, BarKind::Io, false),
                row(0x4000, BarKind::Mem32, true),
                row(1 << 36, BarKind::Mem64, true),
                None,
                row(0x800, BarKind::Mem32, false),
            ]
        );
    }

    #[test]
    fn a_table_that_no_guest_could_reach_does_not_fit() {
        let spec = |size, kind| Some(BarSpec { size, kind, prefetchable: false });
        let specs = [
            spec(0x1000, BarKind::Mem32),
            spec(0x1000, BarKind::Io),
            None,
            None,
            None,
            None,
            spec(0x1000, BarKind::Mem32),
        ];
        assert!(msix_fits(&msix(5, (0, 0), (0, 0x800)), &specs));
        assert!(!msix_fits(&msix(5, (0, 0xff8), (0, 0x800)), &specs));
        assert!(!msix_fits(&msix(5, (0, 0), (2, 0)), &specs));
        assert!(!msix_fits(&msix(5, (1, 0), (0, 0)), &specs));
        assert!(!msix_fits(&msix(5, (6, 0), (7, 0)), &specs));
    }

    proptest! {
        /// The parts cover the BAR exactly; nothing emulated and nothing unmappable is ever mapped.
        #[test]
        fn parts_are_exact(
            size in 0u64..0x20000,
            areas in prop::collection::vec((0u64..0x24000, 0u64..0x8000), 0..5),
            vectors in 1u16..=2048, table in 0u32..0x20000, pending in 0u32..0x20000,
        ) {
            let mappable: Vec<_> = areas.iter().map(|(start, len)| *start..start + len).collect();
            let spec = msix(vectors, (0, table & !7), (0, pending & !7));
            let region = region(size, &mappable);
            let mut at = 0;
            for (range, part) in parts(0, &region, Some(&spec)) {
                prop_assert_eq!(range.start, at);
                prop_assert!(range.end > range.start);
                at = range.end;
                if part == Mapped {
                    prop_assert!(range.start % PAGE == 0 && range.end % PAGE == 0);
                    for page in (range.start..range.end).step_by(PAGE as usize) {
                        let (target, until) = target(0, Some(&spec), page);
                        prop_assert!(target == Target::Device && until >= page + PAGE);
                        let inside = |byte: u64| mappable.iter().any(|area| area.contains(&byte));
                        prop_assert!(inside(page) && inside(page + PAGE - 1));
                    }
                }
            }
            prop_assert_eq!(at, size);
        }

        #[test]
        fn no_register_or_size_panics(flags in prop::array::uniform6(any::<u32>()), sizes in prop::array::uniform6(any::<u64>()), rom: u64) {
            let mut config = ConfigSpace::new();
            for (index, flags) in flags.into_iter().enumerate() {
                config.set_u32(0x10 + 4 * index as u16, flags);
            }
            let regions = sizes.map(|size| region(size, std::slice::from_ref(&(0..size))));
            let specs = specs(&config, &regions, Some(&region(rom, &[])));
            prop_assert!(specs.iter().flatten().all(|spec| spec.size.is_power_of_two()));
        }
    }
}
