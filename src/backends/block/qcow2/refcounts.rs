//! Whether an image's refcounts cover what is used: without that it is not written.
//!
//! The crate imago puts a new block of refcounts where there is none, into the clusters below it. It takes for granted that
//! a cluster which was used once is covered: freed where it is not, it is looked for again and again, with no end. And a
//! header that is not covered would be overwritten.

use std::io;

use super::header::Header;
use crate::backends::block::BlockNode;
use crate::backends::block::io::read_into;

/// Bits of an entry of the refcount table that are an offset.
const OFFSET: u64 = 0xffff_ffff_ffff_fe00;
/// Bytes of the table that are read at a time.
const PART: u64 = 64 << 10;

/// Refuses a table that leaves out a block before its last one.
///
/// # Errors
/// Those of the file, and [`io::ErrorKind::InvalidData`].
pub fn check_covered(file: &dyn BlockNode, header: &Header) -> io::Result<()> {
    let start = header.refcount_table_offset;
    let end = start.saturating_add(u64::from(header.refcount_table_clusters) << header.cluster_bits);
    // What is behind the file's end reads as zeros: no block.
    let end = end.min(file.info().len);
    let (mut at, mut ended) = (start, false);
    let mut first = true;
    while at < end {
        let mut bytes = vec![0; PART.min(end - at) as usize];
        read_into(file, at, &mut bytes)?;
        at += bytes.len() as u64;
        for entry in bytes.chunks_exact(8) {
            let entry = entry.iter().fold(0, |entry, byte| entry << 8 | u64::from(*byte));
            let is_there = entry & OFFSET != 0;
            if is_there && ended || first && !is_there {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "its table of refcounts has holes"));
            }
            ended |= !is_there;
            first = false;
        }
    }
    if first { Err(io::Error::new(io::ErrorKind::InvalidData, "it has no table of refcounts")) } else { Ok(()) }
}
