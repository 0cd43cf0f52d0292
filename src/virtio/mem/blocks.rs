//! Which blocks of a region are plugged, and what a request may do to them (virtio 5.15.6). Pure.

use std::ops::Range;

/// The blocks of a region of guest addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// Where the region starts, a multiple of the block size.
    base: u64,
    /// Bytes of a block, a power of two.
    size: u64,
    /// Whether each is plugged.
    plugged: Vec<bool>,
}

/// What a range of blocks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// All of them are plugged.
    Plugged,
    /// None is.
    Unplugged,
    /// Some are.
    Mixed,
}

impl Blocks {
    /// `count` blocks of `size` bytes from `base` on, none of them plugged.
    pub fn new(base: u64, size: u64, count: usize) -> Blocks {
        Blocks { base, size, plugged: vec![false; count] }
    }

    /// The numbers of the `count` blocks from the guest address `addr` on; `None`: there are no such blocks.
    pub fn range(&self, addr: u64, count: u16) -> Option<Range<usize>> {
        let offset = addr.checked_sub(self.base)?;
        if count == 0 || !offset.is_multiple_of(self.size) {
            return None;
        }
        let first = usize::try_from(offset / self.size).ok()?;
        let end = first.checked_add(count.into())?;
        (end <= self.plugged.len()).then_some(first..end)
    }

    /// What these blocks, of [`Blocks::range`], are.
    pub fn condition(&self, range: &Range<usize>) -> Condition {
        let blocks = self.plugged.get(range.clone()).unwrap_or_default();
        match blocks.iter().filter(|plugged| **plugged).count() {
            0 => Condition::Unplugged,
            all if all == blocks.len() => Condition::Plugged,
            _ => Condition::Mixed,
        }
    }

    /// Makes these blocks plugged, or not.
    pub fn set(&mut self, range: &Range<usize>, plugged: bool) {
        self.plugged.get_mut(range.clone()).unwrap_or_default().fill(plugged);
    }

    /// The numbers of all plugged blocks.
    pub fn all_plugged(&self) -> Vec<usize> {
        (0..).zip(&self.plugged).filter(|(_, plugged)| **plugged).map(|(number, _)| number).collect()
    }

    /// Bytes of all plugged blocks.
    pub fn bytes(&self) -> u64 {
        self.plugged.iter().filter(|plugged| **plugged).count() as u64 * self.size
    }

    /// The guest address of a block.
    pub fn address(&self, number: usize) -> u64 {
        self.base + number as u64 * self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: u64 = 1 << 32;
    const SIZE: u64 = 2 << 20;

    #[test]
    fn a_request_means_blocks_that_there_are() {
        let blocks = Blocks::new(BASE, SIZE, 8);
        for (addr, count, expected) in [
            (BASE, 1, Some(0..1)),
            (BASE + 7 * SIZE, 1, Some(7..8)),
            (BASE, 8, Some(0..8)),
            (BASE + SIZE, 8, None),
            (BASE, 0, None),
            (BASE + 4096, 1, None),
            (BASE - SIZE, 2, None),
            (u64::MAX - SIZE + 1, u16::MAX, None),
        ] {
            assert_eq!(blocks.range(addr, count), expected, "{addr:#x} {count}");
        }
    }

    proptest! {
        #[test]
        fn what_is_plugged_is_what_was_plugged_last(
            requests in prop::collection::vec((0usize..20, 1usize..20, any::<bool>()), 0..40),
        ) {
            let mut blocks = Blocks::new(BASE, SIZE, 32);
            let mut naive = [false; 32];
            for (first, count, plug) in requests {
                let range = blocks.range(BASE + first as u64 * SIZE, count as u16);
                prop_assert_eq!(range.is_some(), first + count <= 32);
                let Some(range) = range else { continue };
                let before = naive[range.clone()].iter().filter(|plugged| **plugged).count();
                let expected = match before {
                    0 => Condition::Unplugged,
                    all if all == count => Condition::Plugged,
                    _ => Condition::Mixed,
                };
                prop_assert_eq!(blocks.condition(&range), expected);
                blocks.set(&range, plug);
                naive[range].fill(plug);
                let plugged = naive.iter().filter(|plugged| **plugged).count();
                prop_assert_eq!(blocks.bytes(), plugged as u64 * SIZE);
                prop_assert_eq!(blocks.all_plugged().len(), plugged);
            }
        }
    }
}
