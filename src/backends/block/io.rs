//! What nodes have in common: bounds, buffers, and the errors of a request.

use std::io;
use std::ops::Range;

use vm_memory::VolatileSlice;

use super::BlockNode;

/// Longest request that is made of others at once: when zeros are written where nothing cheaper can be done, and when
/// blocks are copied.
pub const MAX_CHUNK: usize = 1 << 20;

/// The bytes of all `slices`.
pub fn total(slices: &[VolatileSlice]) -> u64 {
    slices.iter().map(|slice| slice.len() as u64).sum()
}

/// The range of a request, if it lies inside a node of `len` bytes.
pub fn within(len: u64, offset: u64, count: u64) -> io::Result<Range<u64>> {
    match offset.checked_add(count) {
        Some(end) if end <= len => Ok(offset..end),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{count} bytes at {offset} do not lie inside {len} bytes"),
        )),
    }
}

/// The error of a write to what is read-only.
pub fn read_only() -> io::Error {
    io::Error::from_raw_os_error(libc::EROFS)
}

/// Fills `slices` with zeros.
pub fn fill_zero(slices: &[VolatileSlice]) {
    static ZEROS: [u8; 4096] = [0; 4096];
    for slice in slices {
        let mut rest = Ok(*slice);
        // An empty rest, or none, ends it.
        while let Ok(left) = rest
            && !left.is_empty()
        {
            left.copy_from(&ZEROS);
            rest = left.offset(ZEROS.len().min(left.len()));
        }
    }
}

/// Whether all bytes are zero.
pub fn is_zero(slices: &[VolatileSlice]) -> bool {
    let mut part = [0u8; 4096];
    for slice in slices {
        let mut rest = Ok(*slice);
        // An empty rest, or none, ends it.
        while let Ok(left) = rest
            && !left.is_empty()
        {
            let len = left.copy_to(&mut part);
            if part[..len].iter().any(|byte| *byte != 0) {
                return false;
            }
            rest = left.offset(len);
        }
    }
    true
}

/// Reads into plain memory.
pub fn read_into(node: &(impl BlockNode + ?Sized), offset: u64, into: &mut [u8]) -> io::Result<()> {
    node.read(offset, &[VolatileSlice::from(into)])
}

/// Writes from plain memory, which has to be mutable to be a [`VolatileSlice`] and is not changed.
pub fn write_from(node: &(impl BlockNode + ?Sized), offset: u64, from: &mut [u8]) -> io::Result<()> {
    node.write(offset, &[VolatileSlice::from(from)])
}

/// Writes zeros by requests of at most [`MAX_CHUNK`].
pub fn write_plain_zeroes(node: &(impl BlockNode + ?Sized), range: Range<u64>) -> io::Result<()> {
    let mut zeros = vec![0; range_len(&range).min(MAX_CHUNK as u64) as usize];
    for part in chunks(range) {
        let count = range_len(&part) as usize;
        write_from(node, part.start, &mut zeros[..count])?;
    }
    Ok(())
}

/// `range` in pieces of at most [`MAX_CHUNK`], which end at multiples of it.
pub fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        if start >= range.end {
            return None;
        }
        let border = (start / MAX_CHUNK as u64).saturating_add(1).saturating_mul(MAX_CHUNK as u64);
        let piece = start..border.min(range.end);
        start = piece.end;
        Some(piece)
    })
}

/// The bytes of a range.
pub fn range_len(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_stay_inside() {
        assert_eq!(within(512, 0, 512).unwrap(), 0..512);
        assert_eq!(within(512, 512, 0).unwrap(), 512..512);
        for (offset, count) in [(0, 513), (512, 1), (513, 0), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
            assert_eq!(within(512, offset, count).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{offset} {count}");
        }
    }

    proptest! {
        #[test]
        fn pieces_make_the_range(start in 0..u64::MAX / 2, len in 0..64 * MAX_CHUNK as u64) {
            let mut at = start;
            for piece in chunks(start..start + len) {
                prop_assert_eq!(piece.start, at);
                prop_assert!(range_len(&piece) > 0 && range_len(&piece) <= MAX_CHUNK as u64);
                at = piece.end;
            }
            prop_assert_eq!(at, start + len);
        }
    }
}
