//! Copying what one node holds to another.

use std::io;
use std::ops::Range;

use super::io::{MAX_CHUNK, chunks, range_len, read_into, write_from};
use super::{BlockNode, Extent};

/// Zeros within data are found in pieces of this many bytes.
const PIECE: usize = 4096;

/// Which bytes are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// All that the node reads as.
    All,
    /// What the node has itself; not what its backing image has.
    Own,
}

/// Copies `range` of `from` to the same place of `to`. What reads as zeros is not written if `blank` says that `to` does
/// so already, and else by [`BlockNode::write_zeroes`]. `progress` is told the end of what is done.
pub fn copy(
    from: &dyn BlockNode,
    to: &dyn BlockNode,
    range: Range<u64>,
    what: What,
    blank: bool,
    progress: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let mut buffer = vec![0; range_len(&range).min(MAX_CHUNK as u64) as usize];
    let mut at = range.start;
    while at < range.end {
        let (extent, end) = from.extent(at, range.end)?;
        // An extent has one byte at least, whatever a damaged image says.
        let end = end.clamp(at + 1, range.end);
        match (extent, what) {
            (Extent::Zero, _) => zeros(to, at..end, blank)?,
            (Extent::Backing, What::Own) => {}
            (Extent::Data | Extent::Backing, _) => {
                for part in chunks(at..end) {
                    let bytes = &mut buffer[..range_len(&part) as usize];
                    read_into(from, part.start, bytes)?;
                    write_sparse(to, part.start, bytes, blank)?;
                    progress(part.end);
                }
            }
        }
        progress(end);
        at = end;
    }
    Ok(())
}

/// Writes `bytes`, the pieces of zeros among them as zeros.
fn write_sparse(to: &dyn BlockNode, offset: u64, bytes: &mut [u8], blank: bool) -> io::Result<()> {
    let mut start = 0;
    while start < bytes.len() {
        let zero = is_zero(piece(bytes, start));
        let mut end = start;
        while end < bytes.len() && is_zero(piece(bytes, end)) == zero {
            end = (end + PIECE).min(bytes.len());
        }
        let range = offset + start as u64..offset + end as u64;
        if zero {
            zeros(to, range, blank)?;
        } else {
            write_from(to, range.start, &mut bytes[start..end])?;
        }
        start = end;
    }
    Ok(())
}

fn piece(bytes: &[u8], at: usize) -> &[u8] {
    &bytes[at..(at + PIECE).min(bytes.len())]
}

fn zeros(to: &dyn BlockNode, range: Range<u64>, blank: bool) -> io::Result<()> {
    if blank { Ok(()) } else { to.write_zeroes(range, true) }
}

/// Whether all bytes are 0.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Words first: the compiler makes vectors of it.
    let (words, tail) = bytes.as_chunks::<16>();
    words.iter().fold(0, |bits, word| bits | u128::from_ne_bytes(*word)) == 0 && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::MemoryNode;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_copy_is_equal(
            parts in prop::collection::vec((any::<bool>(), 1usize..9000), 0..12),
            blank in any::<bool>(),
        ) {
            let bytes: Vec<u8> = parts.iter().flat_map(|(zero, len)| vec![if *zero { 0 } else { 7 }; *len]).collect();
            let from = MemoryNode::new(bytes.clone());
            let to = MemoryNode::new(vec![if blank { 0 } else { 9 }; bytes.len()]);
            let mut last = 0;
            copy(&from, &to, 0..bytes.len() as u64, What::All, blank, &mut |at| {
                assert!(at >= last);
                last = at;
            }).unwrap();
            prop_assert!(to.bytes() == bytes);
            prop_assert_eq!(last, bytes.len() as u64);
        }

        #[test]
        fn zeros_are_found(at in 0usize..100, len in 0usize..100) {
            let mut bytes = vec![0; len];
            prop_assert!(is_zero(&bytes));
            if let Some(byte) = bytes.get_mut(at) {
                *byte = 1;
                prop_assert!(!is_zero(&bytes));
            }
        }
    }
}
