//! Base address registers: what they contain, how they are sized, and where they put a function's memory and ports
//! (PCI 6.2.5). The computation is pure: registers in, ranges out.

use std::ops::Range;
use std::sync::Arc;

use super::config::ConfigSpace;
use super::regs::{BAR0, BRIDGE_ROM, COMMAND, COMMAND_IO, COMMAND_MEMORY, HEADER_BRIDGE, HEADER_ENDPOINT, ROM};
use crate::error::{Code, Error, Result};
use crate::memory::{Piece, Space};

/// Registers of a function that hold addresses: six BARs and the expansion ROM.
pub const BARS: usize = 7;
/// The index of the expansion ROM.
pub const ROM_INDEX: usize = 6;

/// Low bits of a port BAR; the address begins at bit 2.
const IO_BIT: u32 = 1;
const IO_FLAGS: u32 = 0x3;
/// Low bits of a memory BAR; the address begins at bit 4.
const MEM_64BIT: u32 = 0b100;
const MEM_PREFETCHABLE: u32 = 0b1000;
const MEM_FLAGS: u32 = 0xf;
/// The ROM's enable bit; its address begins at bit 11.
const ROM_ENABLE: u32 = 1;
const ROM_FLAGS: u32 = 0x7ff;

/// One past the last port of an x86 processor.
const IO_END: u64 = 1 << 16;
/// One past the last physical address of an x86 processor.
const MEMORY_END: u64 = 1 << 52;

/// The kind of a base address register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarKind {
    /// Ports.
    Io,
    /// Memory below 4 GiB.
    Mem32,
    /// Memory anywhere; takes two registers.
    Mem64,
}

/// A BAR without its content: all that its register shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarSpec {
    /// Size in bytes, a power of two.
    pub size: u64,
    /// Kind of the register.
    pub kind: BarKind,
    /// Whether reads have no side effects and writes may be merged.
    pub prefetchable: bool,
}

/// What a BAR contains.
#[derive(Debug, Clone)]
pub struct BarContent {
    /// Who it belongs to, for people: "gpu0 BAR1".
    pub name: Arc<str>,
    /// Size in bytes, a power of two: 4 B to 64 KiB of ports, 16 B or more of memory, 2 KiB or more of ROM.
    pub size: u64,
    /// Kind of the register. The expansion ROM is always [`BarKind::Mem32`].
    pub kind: BarKind,
    /// Whether reads have no side effects and writes may be merged.
    pub prefetchable: bool,
    /// The pieces, in ascending order and without overlap; what they leave out reads as ones. A memory BAR smaller than a
    /// page may have one that is the whole page, if nothing else of the host is in that.
    pub pieces: Vec<Piece>,
}

impl BarContent {
    /// What the register shows of it.
    pub fn spec(&self) -> BarSpec {
        BarSpec { size: self.size, kind: self.kind, prefetchable: self.prefetchable }
    }
}

impl BarSpec {
    /// Whether a register `index` of a header with `layout` can show it.
    fn is_possible(self, index: usize, layout: u8) -> bool {
        let bars = match layout {
            HEADER_ENDPOINT => 6,
            HEADER_BRIDGE => 2,
            _ => 0,
        };
        let (sizes, last) = match (index, self.kind) {
            (ROM_INDEX, BarKind::Mem32) => {
                return bars > 0 && (2 << 10..=1 << 31).contains(&self.size) && self.size.is_power_of_two();
            }
            (_, BarKind::Io) => (4..=IO_END, index),
            (_, BarKind::Mem32) => (16..=1 << 31, index),
            (_, BarKind::Mem64) => (16..=MEMORY_END / 2, index.saturating_add(1)),
        };
        self.size.is_power_of_two() && sizes.contains(&self.size) && last < bars
    }
}

/// The BARs of a function, by index.
pub type BarSpecs = [Option<BarSpec>; BARS];

/// The offset of the register with this index.
pub fn register(index: usize, layout: u8) -> u16 {
    match (index, layout) {
        (ROM_INDEX, HEADER_BRIDGE) => BRIDGE_ROM,
        (ROM_INDEX, _) => ROM,
        _ => BAR0 + 4 * index as u16,
    }
}

/// Gives the registers of these BARs their type bits and the masks that a sizing write shows, and makes all others read
/// as zero.
///
/// # Errors
/// [`Code::DeviceFailed`] if a BAR is one that no register can show, or sits on the upper half of another.
pub fn define(config: &mut ConfigSpace, specs: &BarSpecs, name: &str) -> Result<()> {
    let layout = config.layout();
    let registers = match layout {
        HEADER_ENDPOINT => 0..6,
        HEADER_BRIDGE => 0..2,
        _ => 0..0,
    };
    for index in registers.chain((layout <= HEADER_BRIDGE).then_some(ROM_INDEX)) {
        config.set_u32(register(index, layout), 0);
        config.allow(register(index, layout), &[0; 4]);
    }
    let mut upper_half = None;
    for (index, spec) in specs.iter().enumerate() {
        let Some(spec) = spec else { continue };
        if !spec.is_possible(index, layout) || upper_half == Some(index) {
            return Err(Error::new(Code::DeviceFailed, format!("BAR {index} of {name} cannot exist"))
                .evidence(format!("{:?} of {:#x} bytes", spec.kind, spec.size)));
        }
        let at = register(index, layout);
        let mask = !(spec.size - 1);
        if index == ROM_INDEX {
            config.allow(at, &(mask as u32 & !ROM_FLAGS | ROM_ENABLE).to_le_bytes());
            continue;
        }
        let prefetchable = if spec.prefetchable { MEM_PREFETCHABLE } else { 0 };
        let (flags, flag_mask) = match spec.kind {
            BarKind::Io => (IO_BIT, IO_FLAGS),
            BarKind::Mem32 => (prefetchable, MEM_FLAGS),
            BarKind::Mem64 => (prefetchable | MEM_64BIT, MEM_FLAGS),
        };
        config.set_u32(at, flags);
        config.allow(at, &(mask as u32 & !flag_mask).to_le_bytes());
        if spec.kind == BarKind::Mem64 {
            config.allow(at + 4, &((mask >> 32) as u32).to_le_bytes());
            upper_half = Some(index + 1);
        }
    }
    Ok(())
}

/// A range that a function answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// Memory or ports.
    pub space: Space,
    /// First address.
    pub base: u64,
    /// Size in bytes; `base + size` does not overflow.
    pub size: u64,
}

impl Placement {
    /// The addresses.
    pub fn range(&self) -> Range<u64> {
        self.base..self.base + self.size
    }
}

/// Where each BAR is, `None` for one that answers nowhere.
pub type Placements = [Option<Placement>; BARS];

/// The registers that decide about addresses, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registers {
    /// The command register.
    pub command: u16,
    /// The six registers; those that the header does not have are zero.
    pub bars: [u32; 6],
    /// The expansion ROM's.
    pub rom: u32,
    /// Whether the function is in power state D0; in any other it answers configuration accesses only.
    pub powered: bool,
}

impl Registers {
    /// Reads them; `powered` is the caller's knowledge.
    pub fn read(config: &ConfigSpace, powered: bool) -> Registers {
        let layout = config.layout();
        let count = if layout == HEADER_ENDPOINT { 6 } else { 2 };
        let mut bars = [0; 6];
        for (index, bar) in bars.iter_mut().enumerate().take(count) {
            *bar = config.u32(register(index, layout));
        }
        Registers { command: config.u16(COMMAND), bars, rom: config.u32(register(ROM_INDEX, layout)), powered }
    }
}

/// Where the registers put the BARs.
///
/// A BAR at address 0 answers nowhere: it was not assigned yet (all are 0 after power-on). Nor does one that reaches
/// beyond the end of its space, as every BAR does while it is sized with decoding on.
pub fn decode(registers: &Registers, specs: &BarSpecs) -> Placements {
    let mut placements = [None; BARS];
    if !registers.powered {
        return placements;
    }
    for (index, (placement, spec)) in placements.iter_mut().zip(specs).enumerate() {
        let Some(spec) = spec else { continue };
        let low = registers.bars.get(index).copied().unwrap_or(0);
        let (space, enable, base, end) = match spec.kind {
            _ if index == ROM_INDEX && registers.rom & ROM_ENABLE == 0 => continue,
            _ if index == ROM_INDEX => (Space::Mmio, COMMAND_MEMORY, u64::from(registers.rom & !ROM_FLAGS), 1 << 32),
            BarKind::Io => (Space::Pio, COMMAND_IO, u64::from(low & !IO_FLAGS), IO_END),
            BarKind::Mem32 => (Space::Mmio, COMMAND_MEMORY, u64::from(low & !MEM_FLAGS), 1 << 32),
            BarKind::Mem64 => {
                let high = registers.bars.get(index + 1).copied().unwrap_or(0);
                (Space::Mmio, COMMAND_MEMORY, u64::from(high) << 32 | u64::from(low & !MEM_FLAGS), MEMORY_END)
            }
        };
        let base = base & !(spec.size.saturating_sub(1));
        let fits = base.checked_add(spec.size).is_some_and(|last| last <= end);
        if registers.command & enable != 0 && base != 0 && spec.size != 0 && fits {
            *placement = Some(Placement { space, base, size: spec.size });
        }
    }
    placements
}

#[cfg(test)]
mod tests;
