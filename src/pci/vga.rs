//! The legacy ranges of VGA: memory and ports that a display controller answers besides its BARs, at addresses that no
//! register holds (PCI appendix D, bridge 3.2.5.18). Pure.
//!
//! Only one device of a machine has them. They are there while it decodes memory, or ports, and while every bridge on the
//! way has its VGA Enable bit set and forwards memory, or ports.

use super::bar::{BARS, BarContent, Placement, Placements};
use super::bridge::Bridge;
use super::regs::{COMMAND_IO, COMMAND_MEMORY};
use crate::memory::Space;

/// Number of the ranges.
pub const RANGES: usize = 3;
/// The ranges: the frame buffer's window, then the ports with their monochrome and colour addresses.
pub const LEGACY: [Placement; RANGES] = [
    Placement { space: Space::Mmio, base: 0xa_0000, size: 0x2_0000 },
    Placement { space: Space::Pio, base: 0x3b0, size: 0xc },
    Placement { space: Space::Pio, base: 0x3c0, size: 0x20 },
];

/// What a function can have in the memory map: its BARs, then the legacy ranges.
pub(super) const PLACES: usize = BARS + RANGES;
/// The content of each.
pub(super) type Contents = [Option<BarContent>; PLACES];
/// Where each one is, `None` for one that answers nowhere.
pub(super) type Places = [Option<Placement>; PLACES];

/// Where the registers put everything: the BARs as they are forwarded, and the legacy ranges of a function that decodes by
/// `command` (0 without power) behind the bridges `above`.
pub(super) fn places(bars: Placements, command: u16, above: &[Bridge]) -> Places {
    std::array::from_fn(|index| match index.checked_sub(BARS) {
        None => bars.get(index).copied().flatten(),
        Some(range) => {
            let place = LEGACY.get(range).copied()?;
            let enable = if place.space == Space::Mmio { COMMAND_MEMORY } else { COMMAND_IO };
            (command & enable != 0 && above.iter().all(|bridge| bridge.forwards_vga(place.space))).then_some(place)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_ranges_follow_the_command_register_and_the_bridges() {
        let bridge = |memory, ports| Bridge { vga_memory: memory, vga_ports: ports, ..Bridge::default() };
        let cases: [(u16, &[Bridge], [bool; RANGES]); 7] = [
            (0, &[], [false; 3]),
            (COMMAND_MEMORY, &[], [true, false, false]),
            (COMMAND_IO, &[], [false, true, true]),
            (COMMAND_IO | COMMAND_MEMORY, &[bridge(true, true)], [true; 3]),
            (COMMAND_IO | COMMAND_MEMORY, &[bridge(true, false)], [true, false, false]),
            (COMMAND_IO | COMMAND_MEMORY, &[bridge(true, true), bridge(false, true)], [false, true, true]),
            (COMMAND_IO | COMMAND_MEMORY, &[Bridge::default()], [false; 3]),
        ];
        for (command, above, seen) in cases {
            let places = places([None; BARS], command, above);
            assert_eq!([7, 8, 9].map(|index| places[index].is_some()), seen, "{command:#x} {above:?}");
        }
    }
}
