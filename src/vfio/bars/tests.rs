//! Tables of BARs, and properties of every split.

use super::Part::{Mapped, Trapped};
use super::*;
use proptest::prelude::*;

fn region(size: u64, mappable: &[Range<u64>]) -> RegionInfo {
    RegionInfo { size, readable: true, writable: true, mappable: mappable.to_vec() }
}

fn msix(vectors: u16, table: (u8, u32), pending: (u8, u32)) -> MsixSpec {
    MsixSpec { vectors, table_bar: table.0, table_offset: table.1, pending_bar: pending.0, pending_offset: pending.1 }
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
        ("smaller than a page, which is its own", region(0x100, &[0..0x100]), None, vec![(0..0x1000, Mapped)]),
        ("smaller than a page, which is not", region(0x100, &[]), None, vec![(0..0x100, Trapped)]),
        (
            "smaller than a page, with a table",
            region(0x800, &[0..0x800]),
            Some(msix(5, (0, 0), (0, 0x400))),
            vec![(0..0x800, Trapped)],
        ),
        (
            "smaller than a page, with the pending bits",
            region(0x100, &[0..0x100]),
            Some(msix(5, (1, 0), (0, 0x80))),
            vec![(0..0x100, Trapped)],
        ),
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
fn registers_that_share_a_page_with_the_table_are_told() {
    for (spec, lost) in [
        (msix(5, (0, 0), (0, 0x800)), false),
        (msix(5, (0, 0x2000), (0, 0x3000)), false),
        (msix(5, (1, 0x800), (1, 0)), true),
        (msix(5, (0, 0x800), (1, 0)), true),
        (msix(5, (0, 0x2000), (0, 0x3800)), true),
        (msix(256, (0, 0x1000), (0, 0x2000)), false),
        (msix(5, (1, 0x800), (2, 0x800)), false),
    ] {
        assert_eq!(loses_registers(0, &spec), lost && spec.table_bar == 0, "{spec:?}");
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
    let regions =
        [region(0x4000, &[]), region(0x99, &[]), region(0x20, &[]), region(0x3000, &[]), region(1 << 36, &[]), none()];
    let specs = specs(&config, &regions, Some(0x400));
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
    let specs =
        [spec(0x1000, BarKind::Mem32), spec(0x1000, BarKind::Io), None, None, None, None, spec(0x1000, BarKind::Mem32)];
    assert!(table_fits(&msix(5, (0, 0), (0, 0x800)), &specs));
    assert!(!table_fits(&msix(5, (0, 0xff8), (0, 0x800)), &specs));
    assert!(table_fits(&msix(5, (0, 0), (2, 0)), &specs), "pending bits are not needed");
    assert!(!table_fits(&msix(5, (1, 0), (0, 0)), &specs));
    assert!(!table_fits(&msix(5, (6, 0), (0, 0)), &specs));
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
        prop_assert!(at == size || (1..PAGE).contains(&size) && at == PAGE);
    }

    /// What is whole pages of one area and has nothing emulated in it is mapped: nothing is slow without a reason.
    #[test]
    fn nothing_traps_without_a_reason(
        pages in 1u64..32,
        areas in prop::collection::vec((0u64..0x24000, 0u64..0x8000), 0..5),
        vectors in 1u16..=2048, table in 0u32..0x20000, pending in 0u32..0x20000, elsewhere: bool,
    ) {
        let size = pages * PAGE;
        let mappable: Vec<_> = areas.iter().map(|(start, len)| *start..start + len).collect();
        let spec = msix(vectors, (0, table & !7), (u8::from(elsewhere), pending & !7));
        let parts = parts(0, &region(size, &mappable), Some(&spec));
        for page in (0..size).step_by(PAGE as usize) {
            let (what, until) = target(0, Some(&spec), page);
            let clean = what == Target::Device && until >= page + PAGE;
            let in_one_area = mappable.iter().any(|area| area.start <= page && page + PAGE <= area.end);
            let (_, part) = parts.iter().find(|(range, _)| range.contains(&page)).unwrap();
            prop_assert!(!(clean && in_one_area) || *part == Mapped, "page {:#x} of {:?}", page, parts);
        }
    }

    /// The order of the areas, areas that are listed twice, and the MSI-X structures of other BARs decide about nothing.
    #[test]
    fn the_list_of_areas_is_a_set(
        size in 1u64..0x20000,
        areas in prop::collection::vec((0u64..0x24000, 0u64..0x8000), 0..5).prop_shuffle(),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
        vectors in 1u16..=2048, table in 0u32..0x20000,
    ) {
        let listed: Vec<_> = areas.iter().map(|(start, len)| *start..start + len).collect();
        let mut sorted = listed.clone();
        sorted.sort_by_key(|area| (area.start, area.end));
        let mut twice = listed.clone();
        twice.extend(again.iter().filter(|_| !listed.is_empty()).map(|index| index.get(&listed).clone()));
        let spec = msix(vectors, (0, table & !7), (1, 0));
        let mapped = |areas: &[Range<u64>]| -> Vec<u64> {
            let parts = parts(0, &region(size, areas), Some(&spec)).into_iter();
            let mapped = parts.filter(|(_, part)| *part == Mapped);
            mapped.flat_map(|(range, _)| range.step_by(PAGE as usize)).collect()
        };
        let expected = mapped(&sorted);
        prop_assert_eq!(mapped(&listed), expected.clone());
        prop_assert_eq!(mapped(&twice), expected);
        let foreign = msix(vectors, (1, table & !7), (2, 0));
        prop_assert_eq!(parts(0, &region(size, &listed), Some(&foreign)), parts(0, &region(size, &listed), None));
    }

    /// The bytes of a trapped page, walked from target to target, are the table's, the pending bits' and the device's, each
    /// once.
    #[test]
    fn targets_follow_each_other(
        vectors in 1u16..=64, table in 0u32..0x2000, pending in 0u32..0x2000, start in 0u64..0x3000,
    ) {
        let spec = msix(vectors, (0, table & !7), (0, pending & !7));
        let mut at = start;
        while at < 0x4000 {
            let (what, until) = target(0, Some(&spec), at);
            prop_assert!(until > at);
            let last = until.min(0x4000) - 1;
            let (other, end) = target(0, Some(&spec), last);
            prop_assert_eq!(end, until);
            match (what, other) {
                (Target::Table(first), Target::Table(other)) | (Target::Pending(first), Target::Pending(other)) => {
                    prop_assert_eq!(other - first, last - at);
                }
                (what, other) => prop_assert_eq!(what, other),
            }
            at = until;
        }
    }

    #[test]
    fn no_register_or_size_panics(flags in prop::array::uniform6(any::<u32>()), sizes in prop::array::uniform6(any::<u64>()), rom: u64) {
        let mut config = ConfigSpace::new();
        for (index, flags) in flags.into_iter().enumerate() {
            config.set_u32(0x10 + 4 * index as u16, flags);
        }
        let regions = sizes.map(|size| region(size, std::slice::from_ref(&(0..size))));
        let specs = specs(&config, &regions, Some(rom));
        prop_assert!(specs.iter().flatten().all(|spec| spec.size.is_power_of_two()));
    }
}
