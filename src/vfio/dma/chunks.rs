//! Which requests map a range of guest RAM; pure.

use std::ops::Range;

/// The largest piece of guest RAM that one request maps, in bytes; a piece ends where its address is a multiple of this.
///
/// A request holds the kernel's lock of the IOMMU address space until its last page is pinned, and all others wait behind
/// it: pieces bound that time, and a guest that ends while it is being pinned waits for one of them at most. They are as
/// large as the largest page of the IOMMU, so that none is lost. Type 1 refuses to unmap a part of what one request has
/// mapped (kernel: Documentation/driver-api/vfio.rst, VFIO_TYPE1v2_IOMMU), so the borders are a function of the range
/// alone: what was mapped piece by piece is unmapped by the same pieces.
pub const CHUNK: u64 = 1 << 30;

/// The pieces of `range`, ascending.
pub fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = (at / CHUNK).checked_add(1).and_then(|next| next.checked_mul(CHUNK)).unwrap_or(u64::MAX);
        let piece = at..end.min(range.end);
        at = piece.end;
        (piece.start < piece.end).then_some(piece)
    })
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "tables of ranges")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn borders_are_fixed() {
        const G: u64 = CHUNK;
        let table: [(Range<u64>, &[Range<u64>]); 6] = [
            (0..0, &[]),
            (0..4096, &[0..4096]),
            (0..G, &[0..G]),
            (0..3 * G - 4096, &[0..G, G..2 * G, 2 * G..3 * G - 4096]),
            (4 * G..4 * G + 1, &[4 * G..4 * G + 1]),
            (G / 2..2 * G + G / 2, &[G / 2..G, G..2 * G, 2 * G..2 * G + G / 2]),
        ];
        for (range, pieces) in table {
            assert_eq!(chunks(range.clone()).collect::<Vec<_>>(), pieces, "{range:x?}");
        }
        assert_eq!(chunks(u64::MAX - 5..u64::MAX).collect::<Vec<_>>(), [u64::MAX - 5..u64::MAX]);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range_once_and_meet_at_borders(start in 0u64..1 << 52, len in 1u64..1 << 36) {
            let pieces: Vec<_> = chunks(start..start + len).collect();
            prop_assert_eq!(pieces[0].start, start);
            prop_assert_eq!(pieces[pieces.len() - 1].end, start + len);
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.end - piece.start <= CHUNK));
            for pair in pieces.windows(2) {
                prop_assert_eq!(pair[0].end, pair[1].start);
                prop_assert!(pair[0].end.is_multiple_of(CHUNK));
            }
        }
    }
}
