//! The ACPI tables (ACPI specification 6.5, chapter 5): what the machine is, for any operating system.
//!
//! Full ACPI hardware rather than the hardware-reduced kind: the PM1a registers, the PM timer and the SCI are there,
//! ACPI mode is always on (there is no SMI command port). Nothing is described that the machine does not have, so
//! that a kernel does not probe for it: no 8042, no VGA, no HPET, one COM port.
//!
//! The tables lie in [`layout::ACPI_TABLES`], the RSDP first, and are the same after every reset.

pub mod dsdt;
pub mod fadt;
pub mod madt;
pub mod numa;
pub mod pci_root;
pub mod pm;

use std::ops::Range;

use acpi_tables::facs::FACS;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{self, Layout};
use crate::error::{Code, Error, Result};

/// The manufacturer in every table's header.
const OEM_ID: [u8; 6] = *b"PASSTH";
/// The machine in every table's header.
const OEM_TABLE_ID: [u8; 8] = *b"PASSTHRU";
const OEM_REVISION: u32 = 1;
/// The FACS is 64-byte aligned (ACPI 6.5, section 5.2.10); so is everything else here.
const ALIGN: u64 = 64;

/// The machine as ACPI describes it.
pub struct AcpiInput<'a> {
    /// The vCPUs' APIC ids, the boot processor's first; at most 254.
    pub apic_ids: &'a [u32],
    /// Address of bus 0's configuration space, below 4 GiB.
    pub ecam_base: u64,
    /// The highest bus number in use.
    pub last_bus: u8,
    /// 32-bit PCI windows, without ECAM, IOAPIC, local APIC and KVM's pages.
    pub mmio32: &'a [Range<u64>],
    /// 64-bit PCI windows.
    pub mmio64: &'a [Range<u64>],
    /// First port of the power management registers, see [`pm`].
    pub pm_base: u16,
    /// Whether the power button's event bit in PM1a works.
    pub power_button: bool,
    /// Whether there is a first serial port.
    pub serial_port: bool,
    /// Whether a device has the legacy memory of VGA.
    pub legacy_vga: bool,
    /// The guest's memory nodes, where the user says them.
    pub numa: Option<&'a numa::NumaInput>,
    /// What devices add to `\_SB`: objects that may stand in a scope. `Scope("PCI0")` leads to the PCI root.
    pub devices: &'a [&'a dyn Aml],
}

impl<'a> AcpiInput<'a> {
    /// The input for a machine laid out as `layout`, with no devices of its own in the DSDT.
    pub fn new(layout: &'a Layout, apic_ids: &'a [u32]) -> AcpiInput<'a> {
        AcpiInput {
            apic_ids,
            ecam_base: layout.ecam.start,
            last_bus: layout.last_bus,
            mmio32: &layout.mmio32,
            mmio64: &layout.mmio64,
            pm_base: layout::PM_BASE,
            power_button: false,
            serial_port: true,
            legacy_vga: false,
            numa: None,
            devices: &[],
        }
    }
}

/// The finished tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tables {
    /// Address and bytes of each, ascending. The first is the RSDP.
    tables: Vec<(u64, Vec<u8>)>,
}

impl Tables {
    /// Builds the tables.
    pub fn build(input: &AcpiInput) -> Result<Tables> {
        let mut area = Area { next: layout::ACPI_TABLES.start, tables: Vec::new() };
        // The RSDP must come first but holds the address of the XSDT, which comes last.
        let rsdp = area.put(vec![0; Rsdp::len()])?;
        let facs = area.put(bytes(&FACS::new()))?;
        let dsdt = area.put(bytes(&dsdt::build(input)))?;
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        xsdt.add_entry(area.put(bytes(&fadt::build(input, facs, dsdt)))?);
        xsdt.add_entry(area.put(bytes(&madt::build(input.apic_ids)?))?);
        xsdt.add_entry(area.put(bytes(&mcfg(input)))?);
        if let Some(numa) = input.numa {
            xsdt.add_entry(area.put(bytes(&numa::srat(numa, input.apic_ids)))?);
            if let Some(distances) = &numa.distances {
                xsdt.add_entry(area.put(bytes(&numa::slit(distances)))?);
            }
        }
        let xsdt = area.put(bytes(&xsdt))?;
        if let Some((_, bytes_of_rsdp)) = area.tables.iter_mut().find(|(address, _)| *address == rsdp) {
            *bytes_of_rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
        }
        Ok(Tables { tables: area.tables })
    }

    /// Address of the RSDP.
    pub fn rsdp(&self) -> u64 {
        layout::ACPI_TABLES.start
    }

    /// Address and bytes of each table, ascending.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.tables.iter().map(|(address, bytes)| (*address, bytes.as_slice()))
    }

    /// Writes the tables to guest memory.
    pub fn write(&self, mem: &GuestMemoryMmap) -> Result<()> {
        self.iter().try_for_each(|(address, bytes)| {
            mem.write_slice(bytes, GuestAddress(address)).map_err(|e| {
                Error::new(Code::SystemFailed, "the ACPI tables could not be written to the guest's memory")
                    .evidence(e.to_string())
            })
        })
    }
}

/// [`layout::ACPI_TABLES`] while it fills up.
struct Area {
    next: u64,
    tables: Vec<(u64, Vec<u8>)>,
}

impl Area {
    fn put(&mut self, table: Vec<u8>) -> Result<u64> {
        let address = self.next;
        let end = address + table.len() as u64;
        if end > layout::ACPI_TABLES.end {
            let room = layout::ACPI_TABLES.end - layout::ACPI_TABLES.start;
            return Err(Error::new(Code::OutOfAddressSpace, "the ACPI tables are too long")
                .evidence(format!("{} bytes, there is room for {room}", end - layout::ACPI_TABLES.start))
                .fix("give the guest fewer devices"));
        }
        self.next = end.next_multiple_of(ALIGN);
        self.tables.push((address, table));
        Ok(address)
    }
}

/// A table whose contents the crate has no structure for.
fn raw_table(signature: [u8; 4], revision: u8, contents: &[u8]) -> Sdt {
    const HEADER_LEN: u32 = 36;
    let mut table = Sdt::new(signature, HEADER_LEN, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(contents);
    table
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// MCFG (PCI Firmware Specification 3.3, section 4.1.2): configuration space of segment 0.
fn mcfg(input: &AcpiInput) -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(input.ecam_base, 0, 0, input.last_bus);
    mcfg
}

#[cfg(test)]
mod tests;
