//! Names of vendors, devices and classes from the PCI ID database (the `pci-ids` crate), for people.
//!
//! The tables are made by [the build script](../../src/pci_names/build.rs), which says why.

mod format;

use format::{ENTRY, HEADER};

static VENDORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pci-vendors"));
static DEVICES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pci-devices"));
static CLASSES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pci-classes"));

/// The vendor's name.
pub fn vendor(vendor: u16) -> Option<&'static str> {
    find(VENDORS, u32::from(vendor))
}

/// The device's name, without its vendor's.
pub fn device(vendor: u16, device: u16) -> Option<&'static str> {
    find(DEVICES, u32::from(vendor) << 16 | u32::from(device))
}

/// The name of a subclass, or else of its class: `Ethernet controller`.
pub fn class(base: u8, sub: u8) -> Option<&'static str> {
    let base = u32::from(base) << 8;
    find(CLASSES, base | u32::from(sub)).or_else(|| find(CLASSES, base | 0xff))
}

fn find(table: &'static [u8], key: u32) -> Option<&'static str> {
    let count = word(table, 0)? as usize;
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low.midpoint(high);
        if word(table, HEADER + middle * ENTRY)? < key {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let entry = HEADER + low * ENTRY;
    if low == count || word(table, entry)? != key {
        return None;
    }
    let text = table.get(HEADER + count * ENTRY + word(table, entry + 4)? as usize..)?;
    let (len, text) = text.split_first()?;
    std::str::from_utf8(text.get(..usize::from(*len))?).ok()
}

fn word(table: &[u8], at: usize) -> Option<u32> {
    table.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_crate_is_found() {
        let mut seen = 0;
        for of in pci_ids::Vendors::iter() {
            let expected: String = of.name().chars().take(60).collect();
            assert!(vendor(of.id()).unwrap().starts_with(&expected));
            for known in of.devices() {
                let expected: String = known.name().chars().take(60).collect();
                assert!(device(of.id(), known.id()).unwrap().starts_with(&expected));
                seen += 1;
            }
        }
        assert!(seen > 10_000);
    }

    #[test]
    fn classes_fall_back_and_the_unknown_has_no_name() {
        assert_eq!(class(0x02, 0x00), Some("Ethernet controller"));
        assert_eq!(class(0x02, 0x7e), Some("Network controller"));
        assert_eq!(class(0x7e, 0x00), None);
        assert_eq!(vendor(0x8086), Some("Intel Corporation"));
        assert_eq!(device(0x8086, 0xfffe), None);
        assert_eq!(vendor(0x0002), None);
    }
}
