//! Where a command's data are in guest memory: physical region pages (NVMe 4.3).

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::registers::PAGE;
use super::status::Status;
use crate::memory::Buffers;

/// The longest transfer, as a power of two of pages (MDTS), and in bytes.
pub const MAX_TRANSFER_SHIFT: u8 = 7;
/// See [`MAX_TRANSFER_SHIFT`].
pub const MAX_TRANSFER: u64 = PAGE << MAX_TRANSFER_SHIFT;

/// The `len` bytes that a command's two entries lead to.
///
/// # Errors
/// They are too many, an entry is at an odd place, or leads out of memory.
pub fn buffers(ram: &GuestMemoryMmap, len: u64, first: u64, second: u64) -> Result<Buffers<'_>, Status> {
    let mut buffers = Buffers::default();
    if len == 0 {
        return Ok(buffers);
    }
    if len > MAX_TRANSFER {
        return Err(Status::INVALID_FIELD);
    }
    let mut left = len;
    let mut push = |address: u64, left: &mut u64| {
        let part = (PAGE - address % PAGE).min(*left);
        *left -= part;
        buffers.push(ram, address, part as u32).map_err(|_| Status::TRANSFER_ERROR)
    };
    push(first, &mut left)?;
    if left > 0 && left <= PAGE {
        page(second)?;
        push(second, &mut left)?;
    } else if left > 0 {
        // A list, which goes on in another page where its last entry leads. Every page behind the first gives 511 entries
        // before it leads on, so the length of the transfer bounds it, wherever it leads.
        let mut list = second;
        if !list.is_multiple_of(8) {
            return Err(Status::PRP_OFFSET);
        }
        while left > 0 {
            let entry: u64 = ram.read_obj(GuestAddress(list)).map_err(|_| Status::TRANSFER_ERROR)?;
            let entry = u64::from_le(entry);
            page(entry)?;
            if list % PAGE == PAGE - 8 && left > PAGE {
                list = entry;
                continue;
            }
            push(entry, &mut left)?;
            list += 8;
        }
    }
    Ok(buffers)
}

fn page(address: u64) -> Result<(), Status> {
    if address.is_multiple_of(PAGE) { Ok(()) } else { Err(Status::PRP_OFFSET) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ram() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn lens(ram: &GuestMemoryMmap, len: u64, first: u64, second: u64) -> Result<u64, Status> {
        buffers(ram, len, first, second).map(|buffers| buffers.len())
    }

    #[test]
    fn one_page_two_pages_and_a_list() {
        let ram = ram();
        assert_eq!(lens(&ram, 512, 0x1e00, 0), Ok(512));
        assert_eq!(lens(&ram, 4096, 0x1e00, 0x3000), Ok(4096));
        assert_eq!(lens(&ram, 4096, 0x1e00, 0x3001), Err(Status::PRP_OFFSET));
        // A list that begins near the end of its page, and goes on in another.
        for (at, entry) in [(0x5ff0u64, 0x10000u64), (0x5ff8, 0x6000), (0x6000, 0x11000), (0x6008, 0x12000)] {
            ram.write_obj(entry, GuestAddress(at)).unwrap();
        }
        assert_eq!(lens(&ram, 4 * PAGE, 0x2000, 0x5ff0), Ok(4 * PAGE));
        assert_eq!(lens(&ram, 4 * PAGE, 0x2000, 0x5ff1), Err(Status::PRP_OFFSET));
        assert_eq!(lens(&ram, MAX_TRANSFER + 1, 0x2000, 0x5ff0), Err(Status::INVALID_FIELD));
        assert_eq!(lens(&ram, 512, u64::MAX - 100, 0), Err(Status::TRANSFER_ERROR));
    }

    proptest! {
        /// Whatever is in memory, the buffers are as long as the command says, or there are none.
        #[test]
        fn any_list_ends(len in 0..2 * MAX_TRANSFER, first in 0u64..1 << 21, second in 0u64..1 << 21, entries in prop::collection::vec(0u64..256, 512)) {
            let ram = ram();
            for page in 0..8u64 {
                for (index, entry) in (0u64..).zip(&entries) {
                    ram.write_obj((entry.wrapping_add(page) % 256) * PAGE, GuestAddress(page * PAGE + index * 8)).unwrap();
                }
            }
            if let Ok(total) = lens(&ram, len, first, second) {
                prop_assert_eq!(total, len);
            }
        }
    }
}
