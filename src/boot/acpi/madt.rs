//! MADT (ACPI 6.5, section 5.2.12): the interrupt controllers. It must agree with KVM's default routing table: GSI 0
//! to 15 reach the PIC and the IOAPIC under the same number, but ISA interrupt 0 reaches the IOAPIC's pin 2.
//!
//! The crate's MADT has neither flags nor interrupt overrides, so the table is put together from raw structures.

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::{pm, raw_table};
use crate::boot::layout::{IOAPIC, LOCAL_APIC};
use crate::error::{Code, Error, Result};

/// The highest id that a local APIC entry can name; 255 is the broadcast address.
pub const APIC_ID_MAX: u32 = 254;
/// Id of the IOAPIC as KVM has it after a reset.
const IOAPIC_ID: u8 = 0;
/// The machine also has the two 8259 PICs.
const PCAT_COMPAT: u32 = 1 << 0;
/// MADT revision of ACPI 5.0 to 6.2: enough for all structures here.
const REVISION: u8 = 3;

const INTERRUPT_SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
/// MPS INTI flags: as the bus has it (ISA: edge-triggered, active high).
const CONFORMS: u16 = 0;
/// MPS INTI flags: active high (bits 0 and 1: 01), level-triggered (bits 2 and 3: 11).
const LEVEL_HIGH: u16 = 0b1101;
/// Processor UID that means every processor.
const ALL_PROCESSORS: u8 = 0xff;
/// The local interrupt pin that NMIs come in on.
const LINT1: u8 = 1;

/// The table for processors with these APIC ids; each id is also the processor's ACPI UID.
pub fn build(apic_ids: &[u32]) -> Result<Sdt> {
    let mut contents = Vec::new();
    contents.extend_from_slice(&(LOCAL_APIC.start as u32).to_le_bytes());
    contents.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for &id in apic_ids {
        let Some(id) = u8::try_from(id).ok().filter(|&id| u32::from(id) <= APIC_ID_MAX) else {
            return Err(Error::new(Code::BadTopology, format!("a vCPU would have the APIC id {id}"))
                .evidence(format!("the highest APIC id is {APIC_ID_MAX}"))
                .fix("give the guest fewer CPUs, or cores and threads in powers of two, with --smp"));
        };
        ProcessorLocalApic::new(id, id, EnabledStatus::Enabled).to_aml_bytes(&mut contents);
    }
    IoApic::new(IOAPIC_ID, IOAPIC.start as u32, 0).to_aml_bytes(&mut contents);
    contents.extend_from_slice(&interrupt_override(0, 2, CONFORMS));
    contents.extend_from_slice(&interrupt_override(pm::SCI, pm::SCI.into(), LEVEL_HIGH));
    contents.extend_from_slice(&local_apic_nmi(ALL_PROCESSORS, LINT1));
    Ok(raw_table(*b"APIC", REVISION, &contents))
}

/// Interrupt source override (section 5.2.12.5): ISA interrupt `irq` is GSI `gsi`, with these MPS INTI flags.
fn interrupt_override(irq: u8, gsi: u32, flags: u16) -> [u8; 10] {
    const ISA: u8 = 0;
    let (gsi, flags) = (gsi.to_le_bytes(), flags.to_le_bytes());
    [INTERRUPT_SOURCE_OVERRIDE, 10, ISA, irq, gsi[0], gsi[1], gsi[2], gsi[3], flags[0], flags[1]]
}

/// Local APIC NMI (section 5.2.12.7): NMIs reach this local interrupt pin of the processor.
fn local_apic_nmi(uid: u8, pin: u8) -> [u8; 6] {
    let flags = CONFORMS.to_le_bytes();
    [LOCAL_APIC_NMI, 6, uid, flags[0], flags[1], pin]
}
