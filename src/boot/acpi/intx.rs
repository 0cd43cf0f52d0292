//! How PCI's INTx pins reach the IOAPIC: the one rule that the `_PRT` tells the guest and that the PCI code follows.

/// The first of the GSIs that PCI interrupts use; those below are ISA's.
pub const GSI_BASE: u32 = 16;
/// How many GSIs PCI interrupts use: the rest of the IOAPIC's 24 pins.
pub const GSI_COUNT: u32 = 8;
/// Pins INTA to INTD.
pub const PINS: u8 = 4;
/// Device numbers on a bus.
pub const SLOTS: u8 = 32;

/// The GSI of a pin (0 for INTA to 3 for INTD) of the device in `slot` of the root bus.
///
/// Neighbouring slots start at neighbouring GSIs, so that devices, which mostly use INTA alone, seldom share one.
pub fn gsi(slot: u8, pin: u8) -> u32 {
    GSI_BASE + (u32::from(slot) + u32::from(pin)) % GSI_COUNT
}

/// The pin at a bridge's upstream side for a pin of the device in `slot` behind it (PCI-to-PCI Bridge Architecture
/// Specification 1.2, table 9-1; the same for PCI Express ports). To be applied at every bridge up to the root bus.
pub fn swizzle(slot: u8, pin: u8) -> u8 {
    (slot % PINS + pin % PINS) % PINS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_spread_over_all_gsis() {
        assert_eq!([gsi(0, 0), gsi(1, 0), gsi(1, 3), gsi(7, 0), gsi(7, 1), gsi(31, 3)], [16, 17, 20, 23, 16, 18]);
        for slot in 0..=u8::MAX {
            for pin in 0..=u8::MAX {
                assert!((16..24).contains(&gsi(slot, pin)));
                assert!(swizzle(slot, pin) < 4);
            }
        }
    }

    #[test]
    fn bridges_turn_pins_by_the_slot() {
        assert_eq!([swizzle(0, 0), swizzle(0, 3), swizzle(1, 0), swizzle(1, 3), swizzle(5, 1)], [0, 3, 1, 0, 2]);
    }
}
