//! The page tables for the 64-bit entry: the first 4 GiB mapped to themselves with 2 MiB pages (Intel SDM volume 3,
//! section 4.5). The Linux boot protocol asks that the kernel, the zero page and the command line are mapped so.
//!
//! 1 GiB pages would need one table less but also a processor that has them.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{PAGE, PAGE_TABLES};

/// Bytes of all tables: PML4, PDPT and a page directory for each of the 4 GiB.
pub const TABLES_LEN: u64 = (2 + DIRECTORIES) * PAGE;

const DIRECTORIES: u64 = 4;
const ENTRIES: u64 = 512;
const PRESENT_WRITABLE: u64 = 0b11;
/// The entry maps a page of 2 MiB instead of naming another table.
const LARGE: u64 = 1 << 7;

/// The tables as they lie in memory from `base` on.
fn tables(base: u64) -> Vec<u64> {
    let pdpt = base + PAGE;
    let directories = pdpt + PAGE;
    let pad = |used: u64| std::iter::repeat_n(0, (ENTRIES - used) as usize);
    let mut entries = Vec::with_capacity((TABLES_LEN / 8) as usize);
    entries.push(pdpt | PRESENT_WRITABLE);
    entries.extend(pad(1));
    entries.extend((0..DIRECTORIES).map(|i| (directories + i * PAGE) | PRESENT_WRITABLE));
    entries.extend(pad(DIRECTORIES));
    entries.extend((0..DIRECTORIES * ENTRIES).map(|i| (i << 21) | LARGE | PRESENT_WRITABLE));
    entries
}

/// Writes the tables to [`PAGE_TABLES`].
pub fn write(mem: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let bytes: Vec<u8> = tables(PAGE_TABLES).iter().flat_map(|entry| entry.to_le_bytes()).collect();
    mem.write_slice(&bytes, GuestAddress(PAGE_TABLES))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Walks the tables as the processor does; `None` is a page fault.
    fn translate(tables: &[u64], base: u64, address: u64) -> Option<u64> {
        let entry = |table: u64, shift: u32| {
            let index = (address >> shift) & 511;
            tables.get((table.checked_sub(base)? / 8 + index) as usize).copied().filter(|entry| entry & 1 == 1)
        };
        let pml4e = entry(base, 39)?;
        let pdpte = entry(pml4e & !0xfff, 30)?;
        let pde = entry(pdpte & !0xfff, 21)?;
        assert_eq!(pde & LARGE, LARGE);
        Some((pde & !0x1f_ffff) | (address & 0x1f_ffff))
    }

    #[test]
    fn tables_fill_their_room() {
        assert_eq!(tables(PAGE_TABLES).len() as u64 * 8, TABLES_LEN);
    }

    proptest! {
        #[test]
        fn four_gib_are_mapped_to_themselves_and_nothing_else(address in 0u64..1 << 34) {
            let tables = tables(PAGE_TABLES);
            let expected = (address < 1 << 32).then_some(address);
            prop_assert_eq!(translate(&tables, PAGE_TABLES, address), expected);
        }
    }
}
