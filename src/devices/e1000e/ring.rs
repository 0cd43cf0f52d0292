//! A ring of descriptors in guest memory (82574 datasheet, sections 7.1.5 and 7.2.4): the controller serves from the head
//! up to the tail, which the driver moves.

/// Bytes of a descriptor; heads and tails count in it. Those of packet split have two.
pub const DESCRIPTOR: u64 = 16;

/// A ring, as its registers are now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    base: u64,
    entries: u32,
    pub head: u32,
    tail: u32,
}

impl Ring {
    /// Of the values of its registers. One whose head or tail is outside has nothing to serve.
    pub fn new(base: u64, length: u32, head: u32, tail: u32) -> Ring {
        // Lengths are of 128 bytes, 20 bits of them.
        let entries = (length & 0x000f_ff80) / DESCRIPTOR as u32;
        let (head, tail) = if head < entries && tail < entries { (head, tail) } else { (0, 0) };
        Ring { base: base & !(DESCRIPTOR - 1), entries, head, tail }
    }

    /// Descriptors that the driver has given.
    pub fn given(&self) -> u32 {
        match self.tail.checked_sub(self.head) {
            Some(count) => count,
            None => self.entries - self.head + self.tail,
        }
    }

    /// Where the descriptor is that is `index` behind the head.
    pub fn at(&self, index: u32) -> u64 {
        let place = match self.entries {
            0 => 0,
            entries => (u64::from(self.head) + u64::from(index)) % u64::from(entries),
        };
        self.base.wrapping_add(place * DESCRIPTOR)
    }

    /// The head, so many descriptors on.
    pub fn after(&self, count: u32) -> u32 {
        match self.entries {
            0 => 0,
            entries => ((u64::from(self.head) + u64::from(count)) % u64::from(entries)) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rings_wrap() {
        let ring = Ring::new(0x1000, 128, 6, 2);
        assert_eq!((ring.given(), ring.at(0), ring.at(2), ring.after(3)), (4, 0x1060, 0x1000, 1));
        assert_eq!(Ring::new(0x1000, 128, 3, 3).given(), 0);
        for (length, head, tail) in [(0, 0, 0), (128, 8, 0), (128, 0, 8), (127, 1, 2)] {
            assert_eq!(Ring::new(0, length, head, tail).given(), 0);
        }
    }

    proptest! {
        #[test]
        fn a_ring_never_gives_more_than_it_has(base: u64, length: u32, head: u32, tail: u32, index: u32) {
            let ring = Ring::new(base, length, head, tail);
            prop_assert!(ring.given() <= ring.entries.saturating_sub(1));
            prop_assert!(ring.at(index).wrapping_sub(ring.base) < u64::from(ring.entries.max(1)) * DESCRIPTOR);
            prop_assert!(ring.after(index) < ring.entries.max(1));
        }
    }
}
