//! Where the initial RAM disk goes: as high as the kernel can reach it, so that the kernel never has to move it.

use std::io::Seek;
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::PAGE;
use super::source::Source;
use crate::error::{Code, Error, Result, explain_io};

/// The address for a disk of `len` bytes: page aligned, not below `floor` (the end of the memory that the kernel
/// needs to unpack itself), not above `limit` (exclusive). `None` if there is not enough room.
pub fn place(len: u64, floor: u64, limit: u64) -> Option<u64> {
    let start = limit.checked_sub(len)? / PAGE * PAGE;
    (start >= floor).then_some(start)
}

/// Reads the disk to the top of `room` and returns where it is.
pub(super) fn load(source: &Source, room: &Range<u64>, mem: &GuestMemoryMmap) -> Result<Range<u64>> {
    let len = source.len()?;
    let needs = room.start..room.start.saturating_add(len);
    let start = place(len, room.start, room.end).filter(|_| len > 0);
    let start = start.ok_or_else(|| source.too_large("the initial RAM disk", &needs, room))?;
    let mut file = source.file();
    let unreadable = |evidence: String| {
        Error::new(Code::FileUnusable, format!("{} cannot be read", source.path().display())).evidence(evidence)
    };
    file.rewind().map_err(|e| unreadable(explain_io(&e)))?;
    mem.read_exact_volatile_from(GuestAddress(start), &mut file, len as usize)
        .map_err(|e| unreadable(e.to_string()))?;
    Ok(start..start + len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn goes_to_the_top() {
        assert_eq!(place(0x1801, 0x100_0000, 0x800_0000), Some(0x7ff_e000));
        assert_eq!(place(0x1000, 0x100_0000, 0x100_1000), Some(0x100_0000));
        assert_eq!(place(0x1001, 0x100_0000, 0x100_1000), None);
        assert_eq!(place(u64::MAX, 0, 0x100_1000), None);
    }

    proptest! {
        #[test]
        fn lies_within_its_bounds(len in 1u64.., floor: u64, limit: u64) {
            if let Some(start) = place(len, floor, limit) {
                prop_assert!(start >= floor && start.checked_add(len).unwrap() <= limit && start % PAGE == 0);
            }
        }
    }
}
