//! The memory map that the kernel is given: e820 types of ACPI 6.5, table 15.374, used in the zero page and in PVH's
//! memory map alike.

use std::ops::Range;

use super::layout::{BASE_MEMORY_END, HIGH_MEMORY, IOAPIC, KVM_PAGES, LOCAL_APIC, Layout, PAGE};

/// What a range of addresses is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Memory that the kernel may use.
    Ram = 1,
    /// Not to be used as memory, nor for PCI devices.
    Reserved = 2,
}

/// One line of the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What they are.
    pub kind: Kind,
}

/// The map of the machine, ascending.
///
/// ECAM must be reserved here and in ACPI: Linux uses it early only if e820 says so, and late only if a PNP0C02
/// device does.
pub fn map(layout: &Layout) -> Vec<Entry> {
    let ram = |range| Entry { range, kind: Kind::Ram };
    let reserved = |range| Entry { range, kind: Kind::Reserved };
    let mut map = vec![
        ram(0..BASE_MEMORY_END),
        reserved(BASE_MEMORY_END..HIGH_MEMORY),
        ram(HIGH_MEMORY..layout.low_ram.end),
        reserved(layout.ecam.clone()),
        reserved(IOAPIC),
        reserved(LOCAL_APIC.start..LOCAL_APIC.start + PAGE),
        reserved(KVM_PAGES),
    ];
    map.extend(layout.high_ram.clone().map(ram));
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_is_ascending_and_covers_all_memory() {
        for mib in [64, 3072, 8192] {
            let layout = Layout::new(mib << 20, 40, 3).unwrap();
            let map = map(&layout);
            assert!(map.windows(2).all(|pair| pair[0].range.end <= pair[1].range.start), "{map:x?}");
            assert!(map.iter().all(|entry| !entry.range.is_empty()));
            let legacy = HIGH_MEMORY - BASE_MEMORY_END;
            let usable: u64 = map.iter().filter(|e| e.kind == Kind::Ram).map(|e| e.range.end - e.range.start).sum();
            assert_eq!(usable + legacy, mib << 20);
        }
    }

    #[test]
    fn configuration_space_is_reserved_as_one_entry() {
        let layout = Layout::new(64 << 20, 40, 7).unwrap();
        let entry = Entry { range: 0xe000_0000..0xe080_0000, kind: Kind::Reserved };
        assert!(map(&layout).contains(&entry));
    }
}
