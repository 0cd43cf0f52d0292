//! FADT (ACPI 6.5, section 5.2.9): the fixed hardware.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{AcpiInput, OEM_ID, OEM_REVISION, OEM_TABLE_ID, pm};
use crate::boot::layout::RESET_PORT;

/// IAPC_BOOT_ARCH bit 0: devices on an ISA bus that a user can see, here the serial port. Bit 1 (8042) is clear, so
/// no keyboard controller is looked for; bit 5 (no RTC) is clear, there is one.
const LEGACY_DEVICES: u16 = 1 << 0;
/// IAPC_BOOT_ARCH bit 2: no VGA ports or memory may be probed.
const VGA_NOT_PRESENT: u16 = 1 << 2;
/// Latencies above which a C2 or C3 state is not supported.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// The table for a FACS and a DSDT at these addresses, both below 4 GiB.
pub fn build(input: &AcpiInput, facs: u64, dsdt: u64) -> FADT {
    let port = |offset| input.pm_base.saturating_add(offset);
    let (event, control, timer) = (port(pm::PM1A_EVENT), port(pm::PM1A_CONTROL), port(pm::PM_TIMER));

    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // A fixed sleep button and RTC wake status are not there.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    if !input.power_button {
        fadt = fadt.flag(Flags::PwrButton);
    }
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = u16::from(pm::SCI).into();

    fadt.pm1a_evt_blk = u32::from(event).into();
    fadt.pm1_evt_len = pm::PM1A_EVENT_LEN;
    fadt.x_pm1a_evt_blk = io(event, pm::PM1A_EVENT_LEN, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(control).into();
    fadt.pm1_cnt_len = pm::PM1A_CONTROL_LEN;
    fadt.x_pm1a_cnt_blk = io(control, pm::PM1A_CONTROL_LEN, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(timer).into();
    fadt.pm_tmr_len = pm::PM_TIMER_LEN;
    fadt.x_pm_tmr_blk = io(timer, pm::PM_TIMER_LEN, AccessSize::DwordAccess);

    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    // Linux resets by this register first, before it tries a keyboard controller and a triple fault.
    fadt.reset_reg = io(RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = pm::RESET_VALUE;
    fadt.finalize()
}

/// A register of `len` bytes at an I/O port.
fn io(port: u16, len: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, len.saturating_mul(8), 0, access, port.into())
}
