//! Which memory a request of the balloon's means, and how the host takes it back.

use std::ops::Range;

use crate::memory::{Backing, FlatView};

/// The unit of the balloon, whatever the guest's pages are (virtio 5.5.6).
pub const PAGE: u64 = 4096;

/// The memory that these pages are, where neighbours are one range. In the order in which the driver has them, which need
/// not be an order of addresses.
pub fn ranges(pages: impl IntoIterator<Item = u32>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for page in pages {
        let start = u64::from(page) * PAGE;
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end += PAGE,
            // Linux's balloon takes pages from the top down.
            Some(last) if last.start == start + PAGE => last.start = start,
            _ => ranges.push(start..start + PAGE),
        }
    }
    ranges
}

/// Gives the RAM in a range of guest addresses back to the host; what is no RAM stays as it is.
pub fn discard(view: &FlatView, range: &Range<u64>) {
    for ram in view.ranges() {
        let (start, end) = (range.start.max(ram.start), range.end.min(ram.end()));
        if let Backing::Ram(slice) = &ram.backing
            && start < end
        {
            // What the host cannot take back, such as a part of a huge page of its pool, stays.
            let _ = slice.cut(start - ram.start, end - start).discard();
        }
    }
}

/// Gives memory back that the guest has named as a buffer: `at` is where passthru has it mapped.
pub fn discard_mapped(view: &FlatView, at: u64, len: u64) {
    let inside = view.ranges().iter().filter_map(|range| match &range.backing {
        Backing::Ram(slice) => Some((at.checked_sub(slice.addr())?, slice)),
        _ => None,
    });
    for (offset, slice) in inside.filter(|(offset, slice)| *offset < slice.len()) {
        // Whole pages only: a report may not name others.
        if offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) {
            let _ = slice.cut(offset, len).discard();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_are_one_range_upwards_and_downwards() {
        let found = |pages: &[u32]| {
            let ranges = ranges(pages.iter().copied());
            ranges.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>()
        };
        assert_eq!(found(&[5, 6, 7, 9]), [(0x5000, 0x8000), (0x9000, 0xa000)]);
        assert_eq!(found(&[7, 6, 5]), [(0x5000, 0x8000)]);
        assert_eq!(found(&[u32::MAX]), [(0x0fff_ffff_f000, 0x1000_0000_0000)]);
    }

    proptest! {
        #[test]
        fn no_page_is_lost_and_none_is_added(pages in prop::collection::btree_set(0u32..200, 0..60), down: bool) {
            let mut order: Vec<u32> = pages.iter().copied().collect();
            if down {
                order.reverse();
            }
            let found = ranges(order).into_iter().flat_map(|range| (range.start / PAGE..range.end / PAGE).map(|page| page as u32));
            prop_assert_eq!(found.collect::<std::collections::BTreeSet<_>>(), pages);
        }
    }
}
