//! PVH's description of the machine: `hvm_start_info` version 1 with its module list and memory map
//! (Xen's public header arch-x86/hvm/start_info.h), all in one page.

use std::ops::Range;

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::ByteValued;

use super::e820;
use super::layout::{CMDLINE, PAGE, PVH_START_INFO};

/// `magic`: "xEn3" with the top bit of the E set.
const MAGIC: u32 = 0x336e_c578;
/// Version 1 added the memory map.
const VERSION: u32 = 1;
/// Offset of the module list in the page.
const MODULES: u64 = 0x40;
/// Offset of the memory map in the page.
const MEMORY_MAP: u64 = 0x80;
const MEMORY_MAP_MAX: usize = (PAGE - MEMORY_MAP) as usize / size_of::<hvm_memmap_table_entry>();

/// The page for [`PVH_START_INFO`]. A memory map of more than 165 entries is cut.
pub fn build(memory: &[e820::Entry], initrd: Option<&Range<u64>>, rsdp: u64) -> Vec<u8> {
    let map = memory.iter().take(MEMORY_MAP_MAX).map(|entry| hvm_memmap_table_entry {
        addr: entry.range.start,
        size: entry.range.end - entry.range.start,
        type_: entry.kind as u32,
        reserved: 0,
    });
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: PVH_START_INFO + MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut module = hvm_modlist_entry::default();
    if let Some(initrd) = initrd {
        module.paddr = initrd.start;
        module.size = initrd.end - initrd.start;
        info.nr_modules = 1;
        info.modlist_paddr = PVH_START_INFO + MODULES;
    }
    let mut page = Vec::with_capacity(PAGE as usize);
    page.extend_from_slice(info.as_slice());
    page.resize(MODULES as usize, 0);
    page.extend_from_slice(module.as_slice());
    page.resize(MEMORY_MAP as usize, 0);
    for entry in map {
        page.extend_from_slice(entry.as_slice());
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u64_at(page: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(page[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn fields_are_where_the_abi_has_them() {
        let memory = [
            e820::Entry { range: 0..0x9_fc00, kind: e820::Kind::Ram },
            e820::Entry { range: 0x9_fc00..0x10_0000, kind: e820::Kind::Reserved },
        ];
        let page = build(&memory, Some(&(0x700_0000..0x700_0005)), 0xe_0000);
        assert_eq!(u64_at(&page, 0), 0x0000_0001_336e_c578);
        assert_eq!(u64_at(&page, 8), 1 << 32, "no flags, one module");
        assert_eq!(u64_at(&page, 16), 0x6040);
        assert_eq!((u64_at(&page, 24), u64_at(&page, 32)), (0x2_0000, 0xe_0000));
        assert_eq!((u64_at(&page, 40), u64_at(&page, 48)), (0x6080, 2));
        assert_eq!((u64_at(&page, 0x40), u64_at(&page, 0x48)), (0x700_0000, 5));
        assert_eq!((u64_at(&page, 0x98), u64_at(&page, 0xa0), u64_at(&page, 0xa8)), (0x9_fc00, 0x6_0400, 2));
    }

    #[test]
    fn fits_in_its_page() {
        let memory = vec![e820::Entry { range: 0..1, kind: e820::Kind::Ram }; 300];
        let page = build(&memory, None, 0);
        assert!(page.len() as u64 <= PAGE);
        assert_eq!(u64_at(&page, 48), 165);
        assert_eq!(u64_at(&page, 8), 0, "no module");
    }
}
