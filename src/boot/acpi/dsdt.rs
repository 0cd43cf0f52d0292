//! DSDT (ACPI 6.5, section 5.2.11.1): the namespace. The PCI root is in [`super::pci_root`]; here are the devices
//! that no bus enumerates, what is reserved, and soft-off.

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope};
use acpi_tables::sdt::Sdt;

use super::{AcpiInput, pci_root, pm, raw_table};
use crate::boot::layout::{ECAM_BUS_LEN, KVM_PAGES};

/// From revision 2 on, integers have 64 bits.
const REVISION: u8 = 2;

/// The first serial port.
const COM1_PORT: u16 = 0x3f8;
const COM1_IRQ: u32 = 4;
/// The real-time clock's index and data ports.
const RTC_PORT: u16 = 0x70;
const RTC_IRQ: u32 = 8;

/// The table.
pub fn build(input: &AcpiInput) -> Sdt {
    let root = pci_root::PciRoot::new(input);
    let mut devices: Vec<&dyn Aml> = vec![&root];
    let reserved = Reserved::new(input);
    devices.push(&reserved);
    devices.extend(input.devices);

    let mut contents = Vec::new();
    Scope::new("\\_SB_".into(), devices).to_aml_bytes(&mut contents);
    soft_off(&mut contents);
    raw_table(*b"DSDT", REVISION, &contents)
}

/// `\_S5`: the SLP_TYP values that power the machine off.
fn soft_off(contents: &mut Vec<u8>) {
    let (sleep_type, zero) = (pm::SLEEP_TYPE_S5, 0u8);
    let package = Package::new(vec![&sleep_type, &sleep_type, &zero, &zero]);
    Name::new("\\_S5_".into(), &package).to_aml_bytes(contents);
}

/// Motherboard resources (PNP0C02): what no device may be given. Linux uses ECAM only if it is reserved here as one
/// range of all buses.
struct Reserved {
    ecam: Memory32Fixed,
    kvm: Memory32Fixed,
    pm: IO,
}

impl Reserved {
    fn new(input: &AcpiInput) -> Reserved {
        let ecam_len = (u32::from(input.last_bus) + 1).saturating_mul(ECAM_BUS_LEN as u32);
        Reserved {
            ecam: Memory32Fixed::new(true, input.ecam_base as u32, ecam_len),
            kvm: Memory32Fixed::new(false, KVM_PAGES.start as u32, (KVM_PAGES.end - KVM_PAGES.start) as u32),
            pm: IO::new(input.pm_base, input.pm_base, 1, pm::LEN),
        }
    }
}

impl Aml for Reserved {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let resources = ResourceTemplate::new(vec![&self.ecam, &self.kvm, &self.pm]);
        device("MBRD", "PNP0C02", &resources, sink);
    }
}

/// The devices of the ISA bus, inside the PCI root, whose I/O window they use.
pub(super) struct IsaDevices {
    pub serial_port: bool,
}

impl Aml for IsaDevices {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        if self.serial_port {
            let ports = IO::new(COM1_PORT, COM1_PORT, 1, 8);
            let interrupt = edge_interrupt(COM1_IRQ);
            device("COM1", "PNP0501", &ResourceTemplate::new(vec![&ports, &interrupt]), sink);
        }

        let ports = IO::new(RTC_PORT, RTC_PORT, 1, 2);
        let interrupt = edge_interrupt(RTC_IRQ);
        device("RTC_", "PNP0B00", &ResourceTemplate::new(vec![&ports, &interrupt]), sink);
    }
}

/// An ISA interrupt: edge-triggered, active high, not shared.
fn edge_interrupt(number: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, number)
}

/// A device with a `_HID` and a `_CRS`.
fn device(name: &str, id: &str, resources: &ResourceTemplate, sink: &mut dyn acpi_tables::AmlSink) {
    let id = EISAName::new(id);
    let id = Name::new("_HID".into(), &id);
    let uid = Name::new("_UID".into(), &0u8);
    let resources = Name::new("_CRS".into(), resources);
    Device::new(name.into(), vec![&id, &uid, &resources]).to_aml_bytes(sink);
}
