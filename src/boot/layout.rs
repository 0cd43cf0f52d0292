//! The machine's guest-physical address map: every fixed address in one place, and the parts that depend on the size
//! of memory, the CPU's physical address bits and the number of PCI buses.
//!
//! ```text
//! 0                 low RAM, up to 3 GiB (0x9fc00..0x100000 is reserved in the e820 map: ACPI tables at 0xe0000)
//! 0xc000_0000       32-bit PCI window, first part
//! 0xe000_0000       ECAM, 1 MiB for each bus in use; the rest up to the IOAPIC is the window's second part
//! 0xfec0_0000       IOAPIC
//! 0xfee0_0000       local APIC and MSI messages
//! 0xfffb_c000       KVM's identity map page and three TSS pages (Intel hosts)
//! 0x1_0000_0000     RAM that does not fit below 3 GiB
//! above RAM         64-bit PCI window, up to the highest physical address
//! ```

use std::ops::Range;

use crate::error::{Code, Error, Result};

/// The size of a page, and the granularity of everything here.
pub const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The GDT that the first vCPU's segment registers were "loaded" from.
pub const GDT: u64 = 0x1000;
/// PVH `hvm_start_info` and, behind it, the module list and the memory map: one page.
pub const PVH_START_INFO: u64 = 0x6000;
/// The zero page (`struct boot_params`) of the Linux boot protocol: one page.
pub const ZERO_PAGE: u64 = 0x7000;
/// The identity map for the 64-bit entry: [`crate::boot::paging::TABLES_LEN`] bytes.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line and its final NUL.
pub const CMDLINE_LEN: u64 = 0x1_0000;
/// End of the memory that a PC's BIOS calls base memory. The KiB up to 640 KiB would be the BIOS's data area.
pub const BASE_MEMORY_END: u64 = 0x9_fc00;
/// The ACPI tables. The RSDP comes first: kernels that are not told its address search this area for it.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0x10_0000;
/// Where memory above the legacy area begins, and the lowest address that a kernel may be loaded at.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Highest end of the low RAM.
pub const LOW_RAM_MAX: u64 = 3 * GIB;
/// Where RAM goes on that does not fit below [`LOW_RAM_MAX`].
pub const HIGH_RAM_START: u64 = 4 * GIB;
/// The least memory a guest can have: the legacy area and some MiB for anything that could be called a kernel.
pub const RAM_MIN: u64 = 16 * MIB;

/// Start of the 32-bit PCI window.
pub const MMIO32_START: u64 = LOW_RAM_MAX;
/// End of the 32-bit PCI window.
pub const MMIO32_END: u64 = IOAPIC.start;
/// PCI Express configuration space (ECAM) of segment 0, bus 0.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// ECAM bytes of one bus: 32 devices of 8 functions of 4 KiB.
pub const ECAM_BUS_LEN: u64 = MIB;
/// The IOAPIC's registers.
pub const IOAPIC: Range<u64> = 0xfec0_0000..0xfec0_1000;
/// The local APICs' registers, and the addresses that MSI messages are written to.
pub const LOCAL_APIC: Range<u64> = 0xfee0_0000..0xfef0_0000;
/// The page for KVM_SET_IDENTITY_MAP_ADDR: a page table for real mode without "unrestricted guest".
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// The three pages for KVM_SET_TSS_ADDR.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// The four pages that KVM uses on Intel hosts: neither RAM nor a PCI device may be there.
pub const KVM_PAGES: Range<u64> = KVM_IDENTITY_MAP..KVM_TSS + 3 * PAGE;

/// Addresses that AMD processors use for HyperTransport: their IOMMU never maps them, so no BAR is put there.
const HYPERTRANSPORT: Range<u64> = 0xfd_0000_0000..0x100_0000_0000;
/// The 64-bit window starts at a multiple of this, so that large BARs waste nothing below them.
const MMIO64_ALIGN: u64 = GIB;
/// Memory that comes later starts at a multiple of this and has room in such units, so that blocks are aligned.
const ROOM_ALIGN: u64 = GIB;
/// More than this KVM maps only with five-level nested page tables, which few hosts have.
const PHYS_BITS_MAX: u8 = 48;
/// Every x86-64 processor has at least these.
const PHYS_BITS_MIN: u8 = 36;

/// Ports that I/O BARs are placed at: above the legacy devices, PCI's own ports and the power management ports.
pub const PIO_BARS: Range<u32> = 0x1000..0x1_0000;
/// PCI's configuration mechanism 1 (address and data); the reset port 0xcf9 lies within.
pub const PCI_CONFIG_PORTS: Range<u32> = 0xcf8..0xd00;
/// The first power management port, see [`crate::boot::acpi::pm`].
pub const PM_BASE: u16 = 0x600;
/// Configuration mechanism 1 has its reset control register here (ICH9 RST_CNT).
pub const RESET_PORT: u16 = 0xcf9;

/// The address map of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// RAM from address 0.
    pub low_ram: Range<u64>,
    /// RAM from 4 GiB on, where there is that much.
    pub high_ram: Option<Range<u64>>,
    /// Configuration space of buses 0 to `last_bus`.
    pub ecam: Range<u64>,
    /// The highest bus number in use.
    pub last_bus: u8,
    /// The 32-bit PCI window, in ascending order.
    pub mmio32: Vec<Range<u64>>,
    /// What is kept free for memory that comes while the guest runs; empty where there is none.
    pub room: Range<u64>,
    /// The 64-bit PCI window, in ascending order; empty where RAM ends at the highest physical address.
    pub mmio64: Vec<Range<u64>>,
}

impl Layout {
    /// Plans the map for `ram` bytes (a multiple of the page size), a CPU with `phys_bits` physical address bits
    /// (CPUID 0x8000_0008 as the guest sees it; of more than 48, 48 are used) and the buses 0 to `last_bus`.
    pub fn new(ram: u64, phys_bits: u8, last_bus: u8) -> Result<Layout> {
        Layout::with_room(ram, 0, phys_bits, last_bus)
    }

    /// [`Layout::new`] with `more` bytes of addresses behind RAM for memory that comes while the guest runs.
    pub fn with_room(ram: u64, more: u64, phys_bits: u8, last_bus: u8) -> Result<Layout> {
        if ram < RAM_MIN || !ram.is_multiple_of(PAGE) {
            return Err(Error::new(Code::BadProperty, format!("a guest cannot have {ram} bytes of memory"))
                .evidence(format!("the least is {} MiB, in steps of {PAGE} bytes", RAM_MIN / MIB))
                .fix("give the guest more memory with -m"));
        }
        let phys_bits = phys_bits.clamp(PHYS_BITS_MIN, PHYS_BITS_MAX);
        let top = 1u64 << phys_bits;
        let low_end = ram.min(LOW_RAM_MAX);
        let above = ram - low_end;
        let room = room(ram, more);
        let ram_end = match HIGH_RAM_START.checked_add(above) {
            Some(end) if end <= top && room.end <= top => end,
            _ => {
                let most = top - HIGH_RAM_START + LOW_RAM_MAX;
                let all = ram.saturating_add(room.end - room.start);
                return Err(Error::new(Code::PhysBits, format!("{} MiB of memory do not fit", all / MIB))
                    .evidence(format!("{phys_bits} physical address bits leave room for {} MiB", most / MIB))
                    .fix("give the guest less memory with -m"));
            }
        };
        let ecam = ECAM_BASE..ECAM_BASE + (u64::from(last_bus) + 1) * ECAM_BUS_LEN;
        Ok(Layout {
            low_ram: 0..low_end,
            high_ram: (above > 0).then_some(HIGH_RAM_START..ram_end),
            mmio32: cut(MMIO32_START..MMIO32_END, &ecam),
            mmio64: cut(ram_end.max(room.end).next_multiple_of(MMIO64_ALIGN).min(top)..top, &HYPERTRANSPORT),
            room,
            ecam,
            last_bus,
        })
    }

    /// Everything that has a place in the address map, with a name; for reports and for the check that nothing
    /// overlaps.
    pub fn regions(&self) -> Vec<(&'static str, Range<u64>)> {
        let mut regions = vec![("RAM below 4 GiB", self.low_ram.clone())];
        regions.extend(self.high_ram.iter().map(|range| ("RAM above 4 GiB", range.clone())));
        regions.extend(self.mmio32.iter().map(|range| ("32-bit PCI window", range.clone())));
        regions.extend([
            ("PCI configuration space", self.ecam.clone()),
            ("IOAPIC", IOAPIC),
            ("local APIC", LOCAL_APIC),
            ("KVM's pages", KVM_PAGES),
        ]);
        regions.extend(Some(("room for memory", self.room.clone())).filter(|(_, room)| !room.is_empty()));
        regions.extend(self.mmio64.iter().map(|range| ("64-bit PCI window", range.clone())));
        regions
    }
}

/// The addresses that are kept free for `more` bytes of memory behind `ram` bytes: whole GiB, above 4 GiB. Known before buses
/// are, because devices are given parts of it.
pub fn room(ram: u64, more: u64) -> Range<u64> {
    if more == 0 {
        return 0..0;
    }
    let above = ram.saturating_sub(LOW_RAM_MAX);
    let start = HIGH_RAM_START.saturating_add(above).checked_next_multiple_of(ROOM_ALIGN).unwrap_or(u64::MAX);
    start..more.checked_next_multiple_of(ROOM_ALIGN).and_then(|len| start.checked_add(len)).unwrap_or(u64::MAX)
}

/// What boot puts into the first MiB of RAM, with names.
pub fn boot_regions() -> Vec<(&'static str, Range<u64>)> {
    vec![
        ("GDT", GDT..GDT + PAGE),
        ("PVH start info", PVH_START_INFO..PVH_START_INFO + PAGE),
        ("zero page", ZERO_PAGE..ZERO_PAGE + PAGE),
        ("page tables", PAGE_TABLES..PAGE_TABLES + super::paging::TABLES_LEN),
        ("command line", CMDLINE..CMDLINE + CMDLINE_LEN),
        ("BIOS data and ACPI tables", BASE_MEMORY_END..HIGH_MEMORY),
    ]
}

/// The names of two regions that overlap, if any do.
pub fn first_overlap<'a>(regions: &[(&'a str, Range<u64>)]) -> Option<(&'a str, &'a str)> {
    let mut sorted: Vec<_> = regions.iter().collect();
    sorted.sort_by_key(|(_, range)| (range.start, range.end));
    sorted.windows(2).find_map(|pair| match pair {
        [(a, first), (b, second)] if first.end > second.start => Some((*a, *b)),
        _ => None,
    })
}

/// `range` without `hole`: no, one or two ranges in ascending order. An empty hole cuts nothing.
pub fn cut(range: Range<u64>, hole: &Range<u64>) -> Vec<Range<u64>> {
    if hole.is_empty() {
        return vec![range];
    }
    let below = range.start..range.end.min(hole.start);
    let above = range.start.max(hole.end)..range.end;
    [below, above].into_iter().filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_guest_has_all_its_memory_at_zero() {
        let layout = Layout::new(256 * MIB, 39, 0).unwrap();
        assert_eq!(layout.low_ram, 0..256 * MIB);
        assert_eq!(layout.high_ram, None);
        assert_eq!(layout.ecam, 0xe000_0000..0xe010_0000);
        assert_eq!(layout.mmio32, [0xc000_0000..0xe000_0000, 0xe010_0000..0xfec0_0000]);
        assert_eq!(layout.mmio64, vec![4 * GIB..1 << 39]);
    }

    #[test]
    fn large_guest_is_split_around_the_hole() {
        let layout = Layout::new(5 * GIB + MIB, 46, 255).unwrap();
        assert_eq!(layout.low_ram, 0..3 * GIB);
        assert_eq!(layout.high_ram, Some(4 * GIB..6 * GIB + MIB));
        assert_eq!(layout.ecam, 0xe000_0000..0xf000_0000);
        assert_eq!(layout.mmio64, [7 * GIB..0xfd_0000_0000, 0x100_0000_0000..1 << 46]);
    }

    #[test]
    fn memory_that_the_cpu_cannot_address_is_refused_with_numbers() {
        let most = (1u64 << 36) - GIB;
        let layout = Layout::new(most, 36, 0).unwrap();
        assert!(layout.mmio64.is_empty());
        let error = Layout::new(most + PAGE, 36, 0).unwrap_err();
        assert_eq!(error.code(), Code::PhysBits);
        assert!(error.evidence_lines()[0].contains("64512 MiB"), "{error}");
        assert_eq!(Layout::new(u64::MAX - PAGE + 1, 52, 0).unwrap_err().code(), Code::PhysBits);
    }

    #[test]
    fn memory_that_comes_later_has_addresses_behind_ram() {
        let layout = Layout::with_room(256 * MIB, 768 * MIB, 40, 0).unwrap();
        assert_eq!((layout.room, layout.mmio64[0].start), (4 * GIB..5 * GIB, 5 * GIB));
        let layout = Layout::with_room(4 * GIB + MIB, 3 * GIB, 40, 0).unwrap();
        assert_eq!((layout.room, layout.mmio64[0].start), (6 * GIB..9 * GIB, 9 * GIB));
        assert!(Layout::new(GIB, 40, 0).unwrap().room.is_empty());
        for more in [1 << 36, u64::MAX] {
            assert_eq!(Layout::with_room(GIB, more, 36, 0).unwrap_err().code(), Code::PhysBits);
        }
    }

    #[test]
    fn too_little_and_odd_memory_is_refused() {
        for ram in [0, MIB, 64 * MIB + 1] {
            assert_eq!(Layout::new(ram, 40, 0).unwrap_err().code(), Code::BadProperty);
        }
    }

    #[test]
    fn what_boot_puts_into_low_memory_does_not_overlap() {
        assert_eq!(first_overlap(&boot_regions()), None);
        assert!(boot_regions().iter().all(|(_, range)| range.end <= HIGH_MEMORY));
    }

    #[test]
    fn overlaps_are_found() {
        let names = first_overlap(&[("b", 5..9), ("c", 20..30), ("a", 0..6)]);
        assert_eq!(names, Some(("a", "b")));
        assert_eq!(first_overlap(&[("a", 0..5), ("b", 5..9)]), None);
    }

    proptest! {
        #[test]
        fn nothing_overlaps_and_everything_is_addressable(
            pages in 4096u64..1 << 40, more in 0u64..1 << 40, bits in 30u8..64, bus: u8,
        ) {
            if let Ok(layout) = Layout::with_room(pages * PAGE, more, bits, bus) {
                let regions = layout.regions();
                prop_assert_eq!(first_overlap(&regions), None);
                let top = 1u64 << bits.clamp(PHYS_BITS_MIN, PHYS_BITS_MAX);
                for (name, range) in regions {
                    prop_assert!(range.start < range.end && range.end <= top, "{} {:x?}", name, range);
                    prop_assert!(range.start % PAGE == 0 && range.end % PAGE == 0, "{} {:x?}", name, range);
                }
                let high = layout.high_ram.map_or(0, |range| range.end - range.start);
                prop_assert_eq!(layout.low_ram.end + high, pages * PAGE);
            }
        }
    }
}
