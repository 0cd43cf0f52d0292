//! INTx: to which interrupt input each pin is wired (PCI 2.2.6, bridge 9.1). Pure; the ACPI _PRT says the same.

/// The GSI of the first of the lines that PCI pins share: the IOAPIC's inputs above the 16 of ISA.
pub const FIRST_GSI: u32 = 16;
/// Number of those lines.
pub const LINES: u32 = 8;
/// Number of slots of a bus.
pub const SLOTS: u8 = 32;
/// Number of pins of a slot.
pub const PINS: u8 = 4;

/// The GSI of a pin (0 is INTA) of a slot of the root bus. Neighbouring slots and pins get different lines.
pub const fn intx_gsi(slot: u8, pin: u8) -> u32 {
    FIRST_GSI + (slot as u32 + pin as u32) % LINES
}

/// The pin on a bridge's own bus that it passes a pin of a slot behind it on to.
pub const fn swizzle(slot: u8, pin: u8) -> u8 {
    ((slot as u32 + pin as u32) % PINS as u32) as u8
}

/// Slot, pin and GSI of every pin of the root bus: the rows of its _PRT.
pub fn routes() -> impl Iterator<Item = (u8, u8, u32)> {
    (0..SLOTS).flat_map(|slot| (0..PINS).map(move |pin| (slot, pin, intx_gsi(slot, pin))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pin_has_a_line_and_lines_are_shared_evenly() {
        let mut used = [0; LINES as usize];
        for (_, _, gsi) in routes() {
            assert!((16..24).contains(&gsi));
            used[(gsi - FIRST_GSI) as usize] += 1;
        }
        assert_eq!(used, [16; 8]);
        assert_eq!((intx_gsi(0, 0), intx_gsi(1, 0), intx_gsi(7, 1), intx_gsi(31, 3)), (16, 17, 16, 18));
    }

    #[test]
    fn bridges_rotate_pins_by_the_slot() {
        assert_eq!([0, 1, 2, 3].map(|pin| swizzle(0, pin)), [0, 1, 2, 3]);
        assert_eq!([0, 1, 2, 3].map(|pin| swizzle(5, pin)), [1, 2, 3, 0]);
    }
}
