//! The power management registers (ACPI 6.5, section 4.8) as the tables promise them; the device that answers at
//! these ports is built to the same constants.
//!
//! SCI_EN in PM1a control must always read 1: without an SMI command port there is no other mode than ACPI.

/// Offset from the base of PM1a status (2 bytes) and PM1a enable (2 bytes).
pub const PM1A_EVENT: u16 = 0;
/// Bytes of PM1a status and enable together.
pub const PM1A_EVENT_LEN: u8 = 4;
/// Offset from the base of PM1a control.
pub const PM1A_CONTROL: u16 = 4;
/// Bytes of PM1a control.
pub const PM1A_CONTROL_LEN: u8 = 2;
/// Offset from the base of the PM timer, which counts 3 579 545 times a second; its low 24 bits are promised.
pub const PM_TIMER: u16 = 8;
/// Bytes of the PM timer.
pub const PM_TIMER_LEN: u8 = 4;
/// Bytes from the base to the end of the last register.
pub const LEN: u8 = 12;

/// SLP_TYP (bits 10 to 12 of PM1a control) that, written with SLP_EN (bit 13), powers the machine off.
pub const SLEEP_TYPE_S5: u8 = 5;
/// The interrupt of all of this, level-triggered, active high: the same number as GSI and as ISA interrupt.
pub const SCI: u8 = 9;
/// What a write to [`crate::boot::layout::RESET_PORT`] must have to reset the machine: RST_CPU and SYS_RST.
pub const RESET_VALUE: u8 = 6;
