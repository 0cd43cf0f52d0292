//! Build script: the names of the `pci-ids` crate as three flat tables.
//!
//! The crate's own tables are full of pointers, which the dynamic linker relocates when the program starts: 1.3 MiB of
//! memory that every running guest would pay for, and a slower start, for names that only people read. A flat table
//! stays on disk until somebody looks into it.

#[path = "format.rs"]
mod format;

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=src/pci_names/build.rs");
    println!("cargo::rerun-if-changed=src/pci_names/format.rs");
    let out = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    let write = |name: &str, names: BTreeMap<u32, &str>| fs::write(Path::new(&out).join(name), table(names));
    let vendors = pci_ids::Vendors::iter().map(|vendor| (u32::from(vendor.id()), vendor.name()));
    write("pci-vendors", vendors.collect())?;
    let devices = pci_ids::Vendors::iter().flat_map(|vendor| {
        vendor.devices().map(|device| (u32::from(vendor.id()) << 16 | u32::from(device.id()), device.name()))
    });
    write("pci-devices", devices.collect())?;
    // A class as a whole has the key of its subclass 0xff, which no class defines.
    let classes = pci_ids::Classes::iter().flat_map(|class| {
        let base = u32::from(class.id()) << 8;
        let whole = std::iter::once((base | 0xff, class.name()));
        whole.chain(class.subclasses().map(move |subclass| (base | u32::from(subclass.id()), subclass.name())))
    });
    write("pci-classes", classes.collect())
}

fn table(names: BTreeMap<u32, &str>) -> Vec<u8> {
    let mut entries = Vec::with_capacity(format::HEADER + names.len() * format::ENTRY);
    let mut text = Vec::new();
    entries.extend_from_slice(&(names.len() as u32).to_le_bytes());
    for (key, name) in names {
        entries.extend_from_slice(&key.to_le_bytes());
        entries.extend_from_slice(&(text.len() as u32).to_le_bytes());
        let mut end = name.len().min(usize::from(u8::MAX));
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        text.push(end as u8);
        text.extend_from_slice(&name.as_bytes()[..end]);
    }
    entries.extend(text);
    entries
}
