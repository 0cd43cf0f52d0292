//! The PCI Express root in the namespace (PCI Firmware Specification 3.3, chapter 4): its windows (`_CRS`), who
//! controls its features (`_OSC`), and where its INTx pins go (`_PRT`).

use std::ops::Range;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If, Local,
    Method, Name, NotEqual, Or, PackageBuilder, Path, ResourceTemplate, Return, Store, Uuid,
};
use acpi_tables::{Aml, AmlSink};

use super::{AcpiInput, dsdt};
use crate::boot::layout::PCI_CONFIG_PORTS;
use crate::pci::intx;
use crate::pci::vga::LEGACY;

/// The `_OSC` interface of PCI host bridges.
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
const OSC_REVISION: u8 = 1;
/// What the guest may control (`_OSC` control field): native hot-plug (bit 0), PME (2), AER (3), the PCI Express
/// capability (4). Not SHPC hot-plug (1), LTR (5) and DPC (7), which no emulated port has.
pub const OSC_GRANTED: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;
/// Status bits that `_OSC` returns in its first word.
const OSC_UNKNOWN_UUID: u8 = 1 << 2;
const OSC_UNKNOWN_REVISION: u8 = 1 << 3;
const OSC_MASKED: u8 = 1 << 4;

/// `\_SB.PCI0`.
pub struct PciRoot<'a> {
    last_bus: u8,
    mmio32: &'a [Range<u64>],
    mmio64: &'a [Range<u64>],
    serial_port: bool,
    legacy_vga: bool,
}

impl<'a> PciRoot<'a> {
    /// The root bus of the machine.
    pub fn new(input: &AcpiInput<'a>) -> PciRoot<'a> {
        PciRoot {
            last_bus: input.last_bus,
            mmio32: input.mmio32,
            mmio64: input.mmio64,
            serial_port: input.serial_port,
            legacy_vga: input.legacy_vga,
        }
    }

    /// `_CRS`. Windows that are empty, or that reach beyond what their descriptor can express, are left out.
    fn windows(&self) -> Vec<Box<dyn Aml>> {
        let ports = PCI_CONFIG_PORTS.start as u16..=(PCI_CONFIG_PORTS.end - 1) as u16;
        let ports_len = (PCI_CONFIG_PORTS.end - PCI_CONFIG_PORTS.start) as u8;
        let mut windows: Vec<Box<dyn Aml>> = vec![
            Box::new(AddressSpace::<u16>::new_bus_number(0, self.last_bus.into())),
            Box::new(IO::new(*ports.start(), *ports.start(), 1, ports_len)),
            Box::new(AddressSpace::<u16>::new_io(0, *ports.start() - 1, None)),
            Box::new(AddressSpace::<u16>::new_io(*ports.end() + 1, u16::MAX, None)),
        ];
        let memory = AddressSpaceCacheable::NotCacheable;
        if self.legacy_vga {
            let [window, ..] = LEGACY;
            let range = window.range();
            windows.push(Box::new(AddressSpace::new_memory(
                memory,
                true,
                range.start as u32,
                range.end as u32 - 1,
                None,
            )));
        }
        for window in self.mmio32.iter().filter(|window| !window.is_empty()) {
            if let (Ok(first), Ok(last)) = (u32::try_from(window.start), u32::try_from(window.end - 1)) {
                windows.push(Box::new(AddressSpace::new_memory(memory, true, first, last, None)));
            }
        }
        for window in self.mmio64.iter().filter(|window| !window.is_empty()) {
            windows.push(Box::new(AddressSpace::new_memory(memory, true, window.start, window.end - 1, None)));
        }
        windows
    }
}

impl Aml for PciRoot<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (express, conventional) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
        let id = Name::new("_HID".into(), &express);
        let compatible = Name::new("_CID".into(), &conventional);
        let uid = Name::new("_UID".into(), &0u8);
        let segment = Name::new("_SEG".into(), &0u8);
        let bus = Name::new("_BBN".into(), &0u8);
        let windows = self.windows();
        let resources = ResourceTemplate::new(windows.iter().map(|window| window.as_ref()).collect());
        let resources = Name::new("_CRS".into(), &resources);
        let routing = routing();
        let routing = Name::new("_PRT".into(), &routing);
        Device::new(
            "PCI0".into(),
            vec![
                &id,
                &compatible,
                &uid,
                &segment,
                &bus,
                &resources,
                &routing,
                &OperatingSystemCapabilities,
                &dsdt::IsaDevices { serial_port: self.serial_port },
            ],
        )
        .to_aml_bytes(sink);
    }
}

/// `_PRT` (ACPI 6.5, section 6.2.13): for each slot and pin, the GSI.
fn routing() -> PackageBuilder {
    const ANY_FUNCTION: u32 = 0xffff;
    let mut table = PackageBuilder::new();
    for (slot, pin, gsi) in intx::routes() {
        let mut entry = PackageBuilder::new();
        entry.add_element(&(u32::from(slot) << 16 | ANY_FUNCTION));
        entry.add_element(&pin);
        entry.add_element(&0u8); // no interrupt link device: the next element is a GSI
        entry.add_element(&gsi);
        table.add_element(&entry);
    }
    table
}

/// `_OSC` (ACPI 6.5, section 6.2.11): grants what is asked for of [`OSC_GRANTED`].
struct OperatingSystemCapabilities;

impl Aml for OperatingSystemCapabilities {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        let (uuid, revision, buffer) = (Arg(0), Arg(1), Arg(3));
        let status: Path = "CDW1".into();
        let control: Path = "CDW3".into();
        let granted = Local(0);

        let status_field = CreateDWordField::new(&status, &buffer, &0u8);
        let control_field = CreateDWordField::new(&control, &buffer, &8u8);
        let mask = And::new(&granted, &control, &OSC_GRANTED);

        let unknown_revision = Or::new(&status, &status, &OSC_UNKNOWN_REVISION);
        let wrong_revision = NotEqual::new(&revision, &OSC_REVISION);
        let check_revision = If::new(&wrong_revision, vec![&unknown_revision]);

        let masked = Or::new(&status, &status, &OSC_MASKED);
        let differs = NotEqual::new(&control, &granted);
        let check_masked = If::new(&differs, vec![&masked]);
        let answer = Store::new(&control, &granted);

        let interface = Uuid::new(OSC_UUID);
        let known = Equal::new(&uuid, &interface);
        let negotiate = If::new(&known, vec![&control_field, &mask, &check_revision, &check_masked, &answer]);
        let unknown_uuid = Or::new(&status, &status, &OSC_UNKNOWN_UUID);
        let refuse = Else::new(vec![&unknown_uuid]);
        let result = Return::new(&buffer);
        Method::new("_OSC".into(), 4, true, vec![&status_field, &negotiate, &refuse, &result]).to_aml_bytes(sink);
    }
}
