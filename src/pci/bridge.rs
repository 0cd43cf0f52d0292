//! PCI-to-PCI bridges: which bus numbers and addresses their registers forward (bridge 3.2.5). Pure.

use std::ops::Range;

use super::bar::Placement;
use super::config::ConfigSpace;
use super::regs::{
    BRIDGE_CONTROL, BRIDGE_CONTROL_VGA, COMMAND, COMMAND_IO, COMMAND_MEMORY, HEADER_BRIDGE, IO_BASE, IO_LIMIT,
    MEMORY_BASE, MEMORY_LIMIT, PREFETCH_BASE, PREFETCH_BASE_UPPER, PREFETCH_LIMIT, PREFETCH_LIMIT_UPPER, SECONDARY_BUS,
    SUBORDINATE_BUS,
};
use crate::memory::Space;

/// Granularity of the port window.
pub const IO_GRAIN: u64 = 4 << 10;
/// Granularity of the memory windows.
pub const MEMORY_GRAIN: u64 = 1 << 20;
/// The low bits of the window registers say how wide the addresses are.
const IO_ADDRESS: u8 = 0xf0;
const MEMORY_ADDRESS: u16 = 0xfff0;

/// What a bridge forwards to the bus behind it. An empty range forwards nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Windows {
    /// Ports.
    pub io: Range<u64>,
    /// Memory below 4 GiB.
    pub memory: Range<u64>,
    /// Prefetchable memory, anywhere.
    pub prefetchable: Range<u64>,
}

impl Windows {
    /// What the registers say, whether or not forwarding is enabled.
    pub fn read(config: &ConfigSpace) -> Windows {
        let io = |off| u64::from(config.u8(off) & IO_ADDRESS) << 8;
        let memory = |off| u64::from(config.u16(off) & MEMORY_ADDRESS) << 16;
        let upper = |off| u64::from(config.u32(off)) << 32;
        let window = |base: u64, limit: u64, grain: u64| base..limit.saturating_add(grain).max(base);
        Windows {
            io: window(io(IO_BASE), io(IO_LIMIT), IO_GRAIN),
            memory: window(memory(MEMORY_BASE), memory(MEMORY_LIMIT), MEMORY_GRAIN),
            prefetchable: window(
                upper(PREFETCH_BASE_UPPER) | memory(PREFETCH_BASE),
                upper(PREFETCH_LIMIT_UPPER) | memory(PREFETCH_LIMIT),
                MEMORY_GRAIN,
            ),
        }
    }

    /// The registers, as dwords at their offsets, that say this. A window that is empty gets a base above its limit;
    /// the registers are then not zero, which spares the guest the test whether they exist.
    pub fn registers(&self) -> [(u16, u32); 5] {
        let io = fields(&self.io, IO_GRAIN, 8, u64::from(IO_ADDRESS));
        let memory = fields(&self.memory, MEMORY_GRAIN, 16, u64::from(MEMORY_ADDRESS));
        let prefetchable = fields(&self.prefetchable, MEMORY_GRAIN, 16, u64::from(MEMORY_ADDRESS));
        let (base, limit) =
            if self.prefetchable.is_empty() { (0, 0) } else { (self.prefetchable.start, self.prefetchable.end - 1) };
        [
            (IO_BASE, io.1 << 8 | io.0),
            (MEMORY_BASE, memory.1 << 16 | memory.0),
            (PREFETCH_BASE, prefetchable.1 << 16 | prefetchable.0),
            (PREFETCH_BASE_UPPER, (base >> 32) as u32),
            (PREFETCH_LIMIT_UPPER, (limit >> 32) as u32),
        ]
    }
}

/// The base and limit fields of a window: the address bits from `grain` up, shifted down by `shift`.
fn fields(window: &Range<u64>, grain: u64, shift: u32, mask: u64) -> (u32, u32) {
    if window.is_empty() {
        return (mask as u32, 0);
    }
    ((window.start >> shift & mask) as u32, (window.end.saturating_sub(grain) >> shift & mask) as u32)
}

/// A bridge's state at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bridge {
    /// The bus directly behind it; 0 before software numbers the buses.
    pub secondary: u8,
    /// The highest bus behind it.
    pub subordinate: u8,
    /// What it forwards: the windows whose space is enabled.
    pub forwards: Windows,
    /// Whether it forwards the legacy memory of VGA.
    pub vga_memory: bool,
    /// Whether it forwards the legacy ports of VGA.
    pub vga_ports: bool,
}

impl Bridge {
    /// The registers of a bridge; `None` for another header. Without power nothing is forwarded.
    pub fn read(config: &ConfigSpace, powered: bool) -> Option<Bridge> {
        if config.layout() != HEADER_BRIDGE {
            return None;
        }
        let command = if powered { config.u16(COMMAND) } else { 0 };
        let mut forwards = Windows::read(config);
        if command & COMMAND_IO == 0 {
            forwards.io = 0..0;
        }
        if command & COMMAND_MEMORY == 0 {
            (forwards.memory, forwards.prefetchable) = (0..0, 0..0);
        }
        let vga = config.u16(BRIDGE_CONTROL) & BRIDGE_CONTROL_VGA != 0;
        Some(Bridge {
            secondary: config.u8(SECONDARY_BUS),
            subordinate: config.u8(SUBORDINATE_BUS),
            forwards,
            vga_memory: vga && command & COMMAND_MEMORY != 0,
            vga_ports: vga && command & COMMAND_IO != 0,
        })
    }

    /// Whether configuration accesses to a bus go through it.
    pub fn leads_to(&self, bus: u8) -> bool {
        self.secondary != 0 && (self.secondary..=self.subordinate.max(self.secondary)).contains(&bus)
    }

    /// Whether accesses to the legacy ranges of VGA in this space reach the bus behind it.
    pub fn forwards_vga(&self, space: Space) -> bool {
        match space {
            Space::Mmio => self.vga_memory,
            Space::Pio => self.vga_ports,
        }
    }

    /// Whether accesses to the whole of a BAR reach the bus behind it. One that lies partly outside of a window is not
    /// reachable at all.
    pub fn forwards(&self, bar: &Placement) -> bool {
        let bar_range = bar.range();
        let inside = |window: &Range<u64>| window.start <= bar_range.start && bar_range.end <= window.end;
        match bar.space {
            Space::Pio => inside(&self.forwards.io),
            Space::Mmio => inside(&self.forwards.memory) || inside(&self.forwards.prefetchable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::regs::HEADER_TYPE;
    use super::*;
    use proptest::prelude::*;

    fn bridge(command: u16, registers: &[(u16, u32)]) -> Bridge {
        let mut config = ConfigSpace::new();
        config.set_u8(HEADER_TYPE, HEADER_BRIDGE);
        config.set_u16(COMMAND, command);
        for &(at, value) in registers {
            config.set_u32(at, value);
        }
        Bridge::read(&config, true).unwrap()
    }

    fn memory(base: u64, size: u64) -> Placement {
        Placement { space: Space::Mmio, base, size }
    }

    const BOTH: u16 = COMMAND_IO | COMMAND_MEMORY;

    #[test]
    fn windows_are_read_as_the_specification_says() {
        let b = bridge(BOTH, &[(0x1c, 0x2010), (0x20, 0xc010_c000), (0x24, 0x0011_0001), (0x28, 0x10), (0x2c, 0x11)]);
        assert_eq!(b.forwards.io, 0x1000..0x3000);
        assert_eq!(b.forwards.memory, 0xc000_0000..0xc020_0000);
        assert_eq!(b.forwards.prefetchable, 0x10_0000_0000..0x11_0020_0000);
    }

    #[test]
    fn a_bar_is_seen_only_inside_an_enabled_window() {
        let registers = [(0x20, 0xc010_c000), (0x24, 0x0001_fff1), (0x1c, 0x1010)];
        let b = bridge(BOTH, &registers);
        for (bar, seen) in [
            (memory(0xc000_0000, 0x20_0000), true),
            (memory(0xc01f_f000, 0x1000), true),
            (memory(0xc010_0000, 0x20_0000), false),
            (memory(0xbfff_f000, 0x1000), false),
            (memory(0xc020_0000, 0x1000), false),
            (memory(0xfff0_0000, 0x1000), false),
            (Placement { space: Space::Pio, base: 0x1fe0, size: 0x20 }, true),
            (Placement { space: Space::Pio, base: 0x2000, size: 0x20 }, false),
        ] {
            assert_eq!(b.forwards(&bar), seen, "{bar:x?}");
        }
        assert!(!bridge(COMMAND_IO, &registers).forwards(&memory(0xc000_0000, 0x1000)));
        assert!(!bridge(COMMAND_MEMORY, &registers).forwards(&Placement { space: Space::Pio, base: 0x1000, size: 4 }));
    }

    #[test]
    fn bus_numbers_route_only_after_they_were_given() {
        let mut b = bridge(0, &[]);
        assert!(!b.leads_to(0) && !b.leads_to(1));
        (b.secondary, b.subordinate) = (2, 4);
        assert_eq!((0..6).filter(|&bus| b.leads_to(bus)).collect::<Vec<_>>(), [2, 3, 4]);
        b.subordinate = 0;
        assert!(b.leads_to(2) && !b.leads_to(3));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(io in 0u64..15, io_len in 0u64..4, low in 1u64..4000, low_len in 0u64..90, high in 1u64..1 << 31, high_len in 0u64..1 << 20) {
            let range = |base: u64, len: u64, grain: u64| if len == 0 { 0..0 } else { base * grain..(base + len) * grain };
            let io_len = io_len.min(16 - io);
            let windows = Windows { io: range(io, io_len, IO_GRAIN), memory: range(low, low_len, MEMORY_GRAIN), prefetchable: range(high, high_len, MEMORY_GRAIN) };
            let read = bridge(BOTH, &windows.registers()).forwards;
            for (read, given) in [(read.io, windows.io), (read.memory, windows.memory), (read.prefetchable, windows.prefetchable)] {
                prop_assert!(read == given || read.is_empty() && given.is_empty());
            }
        }

        #[test]
        fn no_registers_panic(bytes in prop::collection::vec(any::<u8>(), 64), base: u64, log2 in 0u32..52) {
            let mut config = ConfigSpace::new();
            config.set(0, &bytes);
            if let Some(bridge) = Bridge::read(&config, true) {
                bridge.forwards(&memory(base & ((1 << 51) - 1), 1 << log2));
            }
        }
    }
}
