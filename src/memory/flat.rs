//! The flat view: which backing answers at each address. Pure, and the only place that knows about overlap.

use std::cmp::Reverse;
use std::sync::{Arc, OnceLock};

use super::ram::GuestRam;
use super::{Backing, Region, Space};
use crate::error::Result;

/// A range of addresses with one backing.
#[derive(Clone, Debug)]
pub struct FlatRange {
    /// First address.
    pub start: u64,
    /// Length in bytes, never 0; `start + len` does not overflow.
    pub len: u64,
    /// The name of the region that it comes from.
    pub name: Arc<str>,
    /// What answers; offset and length are those of this range.
    pub backing: Backing,
}

impl FlatRange {
    /// One past the last address.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }
}

impl PartialEq for FlatRange {
    /// Whether both map the same thing at the same place; the name does not count.
    fn eq(&self, other: &FlatRange) -> bool {
        self.start == other.start && self.len == other.len && self.backing == other.backing
    }
}

/// An immutable map of one address space: ranges in ascending order, without overlap.
#[derive(Debug, Default)]
pub struct FlatView {
    ranges: Vec<FlatRange>,
    /// Its RAM, for all who ask, once somebody has. Here it goes with the view, whoever has asked.
    ram: OnceLock<Arc<GuestRam>>,
}

impl FlatView {
    pub(super) fn new(ranges: Vec<FlatRange>) -> FlatView {
        debug_assert!(ranges.windows(2).all(|pair| pair[0].end() <= pair[1].start));
        FlatView { ranges, ram: OnceLock::new() }
    }

    /// The RAM of this view.
    ///
    /// # Errors
    /// As [`GuestRam::of`].
    pub fn ram(&self) -> Result<Arc<GuestRam>> {
        if let Some(ram) = self.ram.get() {
            return Ok(ram.clone());
        }
        let ram = Arc::new(GuestRam::of(self)?);
        // Of two who make it at the same time one is heard.
        Ok(self.ram.get_or_init(|| ram).clone())
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[FlatRange] {
        &self.ranges
    }

    /// The range that holds `addr`.
    pub fn find(&self, addr: u64) -> Option<&FlatRange> {
        let after = self.ranges.partition_point(|range| range.start <= addr);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        (addr - range.start < range.len).then_some(range)
    }

    /// The first range that starts above `addr`.
    pub fn next_start(&self, addr: u64) -> Option<u64> {
        let after = self.ranges.partition_point(|range| range.start <= addr);
        self.ranges.get(after).map(|range| range.start)
    }
}

/// The last usable address of a space, plus one. Memory ends where the widest x86 physical address does (52 bits).
const fn limit(space: Space) -> u64 {
    match space {
        Space::Mmio => 1 << 52,
        Space::Pio => 1 << 16,
    }
}

/// Flattens placed regions into ranges: the higher priority shadows the lower, the earlier the later.
pub fn flatten<'a>(regions: impl Iterator<Item = (u64, &'a Region)>, space: Space) -> Vec<FlatRange> {
    let mut sorted: Vec<_> = regions.collect();
    // Stable: regions of one priority stay in the order in which they were placed.
    sorted.sort_by_key(|(_, region)| Reverse(region.priority));
    let mut out: Vec<FlatRange> = Vec::new();
    for (base, region) in sorted {
        for piece in &region.pieces {
            let Some(start) = base.checked_add(piece.range.start) else { continue };
            let end = base.saturating_add(piece.range.end.min(region.len)).min(limit(space));
            place(&mut out, &region.name, start, end, &piece.backing);
        }
    }
    out
}

/// Inserts the parts of `start..end` that nothing covers yet, keeping `out` in ascending order.
fn place(out: &mut Vec<FlatRange>, name: &Arc<str>, start: u64, end: u64, backing: &Backing) {
    let mut at = start;
    let mut index = out.partition_point(|range| range.end() <= start);
    while at < end {
        let hole_end = out.get(index).map_or(end, |range| range.start.min(end));
        if at < hole_end {
            let part = FlatRange {
                start: at,
                len: hole_end - at,
                name: name.clone(),
                backing: backing.cut(at - start, hole_end - at),
            };
            out.insert(index, part);
            index += 1;
        }
        match out.get(index) {
            Some(range) if range.start < end => at = range.end(),
            _ => break,
        }
        index += 1;
    }
}

/// The ranges of `old` that are not in `new`: with the arguments swapped, those that are new.
pub fn difference<'a>(old: &'a [FlatRange], new: &[FlatRange]) -> Vec<&'a FlatRange> {
    let kept = |range: &FlatRange| {
        new.binary_search_by_key(&range.start, |other| other.start).is_ok_and(|index| new[index] == *range)
    };
    old.iter().filter(|range| !kept(range)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::IoHandler;
    use super::*;
    use proptest::prelude::*;

    struct Nothing;
    impl IoHandler for Nothing {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {}
    }

    fn region(name: &str, len: u64, priority: i8) -> Region {
        Region::whole(name, len, priority, Backing::io(Arc::new(Nothing)))
    }

    fn offset(range: &FlatRange) -> u64 {
        match range.backing {
            Backing::Io { offset, .. } => offset,
            _ => panic!("not trapped"),
        }
    }

    fn flat(regions: &[(u64, Region)]) -> Vec<(String, u64, u64, u64)> {
        flatten(regions.iter().map(|(base, region)| (*base, region)), Space::Mmio)
            .iter()
            .map(|range| (range.name.to_string(), range.start, range.end(), offset(range)))
            .collect()
    }

    fn row(name: &str, start: u64, end: u64, offset: u64) -> (String, u64, u64, u64) {
        (name.into(), start, end, offset)
    }

    #[test]
    fn higher_priority_splits_the_lower() {
        let view = flat(&[(0, region("low", 100, 0)), (40, region("high", 20, 1))]);
        assert_eq!(view, [row("low", 0, 40, 0), row("high", 40, 60, 0), row("low", 60, 100, 60)]);
    }

    #[test]
    fn on_a_tie_the_first_placed_wins() {
        let view = flat(&[(10, region("first", 10, 0)), (0, region("second", 30, 0))]);
        assert_eq!(view, [row("second", 0, 10, 0), row("first", 10, 20, 0), row("second", 20, 30, 20)]);
    }

    #[test]
    fn what_lies_beyond_the_end_is_cut() {
        let view = flat(&[((1 << 52) - 10, region("edge", 100, 0)), (u64::MAX - 5, region("beyond", 100, 0))]);
        assert_eq!(view, [row("edge", (1 << 52) - 10, 1 << 52, 0)]);
    }

    #[test]
    fn find_hits_first_and_last_byte_only_inside() {
        let regions = [(10, region("a", 10, 0)), (20, region("b", 1, 0))];
        let view = FlatView::new(flatten(regions.iter().map(|(base, region)| (*base, region)), Space::Mmio));
        for (addr, expected) in [(9, None), (10, Some("a")), (19, Some("a")), (20, Some("b")), (21, None)] {
            assert_eq!(view.find(addr).map(|range| &*range.name), expected, "at {addr}");
        }
        assert_eq!(view.next_start(9), Some(10));
        assert_eq!(view.next_start(20), None);
    }

    proptest! {
        /// Every address gives the region that a slow search for the best priority gives.
        #[test]
        fn agrees_with_the_definition(specs in prop::collection::vec((0u64..200, 1u64..80, 0i8..4), 0..12)) {
            let regions: Vec<_> = specs.iter().enumerate()
                .map(|(index, &(base, len, priority))| (base, region(&index.to_string(), len, priority))).collect();
            let view = FlatView::new(flatten(regions.iter().map(|(base, region)| (*base, region)), Space::Mmio));
            prop_assert!(view.ranges().windows(2).all(|pair| pair[0].end() <= pair[1].start));
            for addr in 0..300u64 {
                let best = regions.iter().filter(|(base, region)| (*base..base + region.len).contains(&addr))
                    .rev().max_by_key(|(_, region)| region.priority);
                let found = view.find(addr);
                prop_assert_eq!(found.map(|range| &*range.name), best.map(|(_, region)| &*region.name));
                if let (Some(range), Some((base, _))) = (found, best) {
                    prop_assert_eq!(offset(range) + addr - range.start, addr - base);
                }
            }
        }

        /// Removing the one difference and adding the other turns the old view into the new one.
        #[test]
        fn differences_are_exact(cut in 0usize..8, specs in prop::collection::vec((0u64..200, 1u64..80, 0i8..4), 0..8)) {
            let regions: Vec<_> = specs.iter().map(|&(base, len, priority)| (base, region("r", len, priority))).collect();
            let fewer = &regions[cut.min(regions.len())..];
            let old = flatten(regions.iter().map(|(base, region)| (*base, region)), Space::Mmio);
            let new = flatten(fewer.iter().map(|(base, region)| (*base, region)), Space::Mmio);
            let mut changed: Vec<FlatRange> = old.clone();
            let gone: Vec<FlatRange> = difference(&old, &new).into_iter().cloned().collect();
            changed.retain(|range| !gone.contains(range));
            changed.extend(difference(&new, &old).into_iter().cloned());
            changed.sort_by_key(|range| range.start);
            prop_assert!(changed == new);
        }
    }
}
