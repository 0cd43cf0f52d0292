//! Message Signalled Interrupts: the capability's registers and the vectors behind them (PCI 6.8.1).

use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::config::ConfigSpace;
use super::regs::CAP_MSI;
use super::vectors::Vectors;
use crate::error::Result;
use crate::guest_error;
use crate::irq::{MsiMessage, Router};

/// Message control, from the start of the capability.
const CONTROL: u16 = 2;
const CONTROL_ENABLE: u16 = 1 << 0;
/// Multiple message capable: the number of vectors as a power of two, read-only.
const CONTROL_CAPABLE_SHIFT: u16 = 1;
/// Multiple message enable: how many of them the guest allows.
const CONTROL_ENABLED_SHIFT: u16 = 4;
const CONTROL_64BIT: u16 = 1 << 7;
const CONTROL_MASKING: u16 = 1 << 8;
const ADDRESS: u16 = 4;
/// 2^5 vectors are the most.
const MAX_VECTORS_LOG2: u16 = 5;

/// What a function's MSI capability can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiSpec {
    /// Number of vectors: a power of two up to 32; anything else is rounded up to one.
    pub vectors: u8,
    /// Whether messages may have addresses above 4 GiB.
    pub address_64bit: bool,
    /// Whether vectors can be masked one by one.
    pub maskable: bool,
}

impl MsiSpec {
    /// The capability of a function with these hardware bits in message control.
    pub fn from_control(control: u16) -> MsiSpec {
        let log2 = (control >> CONTROL_CAPABLE_SHIFT & 7).min(MAX_VECTORS_LOG2);
        MsiSpec {
            vectors: 1 << log2,
            address_64bit: control & CONTROL_64BIT != 0,
            maskable: control & CONTROL_MASKING != 0,
        }
    }

    /// The same, of which no more than `count` vectors can be delivered; 0 counts as 1.
    #[must_use]
    pub fn at_most(self, count: u32) -> MsiSpec {
        let most = 1u8 << count.max(1).ilog2().min(u32::from(MAX_VECTORS_LOG2));
        MsiSpec { vectors: self.vectors.min(most), ..self }
    }

    fn log2(self) -> u16 {
        (u16::from(self.vectors.max(1)).next_power_of_two().trailing_zeros() as u16).min(MAX_VECTORS_LOG2)
    }

    /// Length of the whole capability in bytes: 10, 14, 20 or 24.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u16 {
        match (self.address_64bit, self.maskable) {
            (false, false) => 10,
            (true, false) => 14,
            (false, true) => 20,
            (true, true) => 24,
        }
    }

    fn data(self) -> u16 {
        if self.address_64bit { 12 } else { 8 }
    }

    fn mask(self) -> Option<u16> {
        self.maskable.then_some(self.data() + 4)
    }

    fn pending(self) -> Option<u16> {
        self.maskable.then_some(self.data() + 8)
    }

    /// Writes the power-on values and masks of the registers of the capability at `at`; id and link are left alone.
    fn describe(self, config: &mut ConfigSpace, at: u16) {
        let mut control = self.log2() << CONTROL_CAPABLE_SHIFT;
        control |= if self.address_64bit { CONTROL_64BIT } else { 0 };
        control |= if self.maskable { CONTROL_MASKING } else { 0 };
        config.set_u16(at + CONTROL, control);
        for off in ADDRESS..self.len() {
            config.set_u8(at + off, 0);
        }
        config.allow(at + CONTROL, &(CONTROL_ENABLE | 7 << CONTROL_ENABLED_SHIFT).to_le_bytes());
        config.allow(at + ADDRESS, &0xffff_fffcu32.to_le_bytes());
        if self.address_64bit {
            config.allow(at + ADDRESS + 4, &[0xff; 4]);
        }
        config.allow(at + self.data(), &[0xff; 2]);
        if let Some(mask) = self.mask() {
            let vectors = ((1u64 << (1u32 << self.log2())) - 1) as u32;
            config.allow(at + mask, &vectors.to_le_bytes());
        }
    }

    /// Reads the registers of the capability at `at`.
    fn parse(self, config: &ConfigSpace, at: u16) -> Registers {
        let control = config.u16(at + CONTROL);
        let upper = if self.address_64bit { config.u32(at + ADDRESS + 4) } else { 0 };
        Registers {
            enabled: control & CONTROL_ENABLE != 0,
            // A guest that enables more than there are gets what there are.
            count: 1 << (control >> CONTROL_ENABLED_SHIFT & 7).min(self.log2()),
            address: u64::from(upper) << 32 | u64::from(config.u32(at + ADDRESS)),
            data: config.u16(at + self.data()),
            mask: self.mask().map_or(0, |mask| config.u32(at + mask)),
        }
    }
}

/// The registers of one capability at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Registers {
    enabled: bool,
    count: u32,
    address: u64,
    data: u16,
    mask: u32,
}

impl Registers {
    /// What vector `index` does: the low bits of the data are the vector's number.
    fn wanted(&self, index: u32) -> Option<MsiMessage> {
        let live = self.enabled && index < self.count && self.mask >> index & 1 == 0;
        let data = u32::from(self.data) & !(self.count - 1) | index;
        live.then_some(MsiMessage { address: self.address, data })
    }
}

/// The MSI capability of one function.
pub struct Msi {
    spec: MsiSpec,
    at: u16,
    vectors: Vectors,
    /// Held while the router is told, so that it sees the changes in their order.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    registers: Registers,
    /// What each vector does.
    current: Vec<Option<MsiMessage>>,
}

impl Msi {
    /// Appends the capability to an emulated function's list.
    pub fn add(config: &mut ConfigSpace, spec: MsiSpec, router: &Arc<Router>, owner: &str) -> Result<Msi> {
        let at = config.add_capability(CAP_MSI, &vec![0; usize::from(spec.len()) - 2])?;
        Ok(Msi::at(config, at, spec, router, owner))
    }

    /// Takes over the registers of the capability at `at`, where the hardware has it; id and link are the caller's.
    pub fn at(config: &mut ConfigSpace, at: u16, spec: MsiSpec, router: &Arc<Router>, owner: &str) -> Msi {
        spec.describe(config, at);
        let count = 1usize << spec.log2();
        let vectors = Vectors::new(router.clone(), owner.into(), count);
        Msi {
            spec,
            at,
            vectors,
            state: Mutex::new(State { registers: Registers::default(), current: vec![None; count] }),
        }
    }

    /// Where the capability is, and its length in bytes.
    pub fn place(&self) -> (u16, u16) {
        (self.at, self.spec.len())
    }

    /// Whether the guest has switched MSI on.
    pub fn enabled(&self) -> bool {
        self.state.lock().registers.enabled
    }

    /// How many vectors the guest uses: 0 while MSI is off.
    pub fn enabled_vectors(&self) -> usize {
        let registers = self.state.lock().registers;
        if registers.enabled { registers.count as usize } else { 0 }
    }

    /// How many vectors the capability offers.
    pub fn vectors(&self) -> usize {
        self.vectors.count()
    }

    /// Makes the eventfds now rather than when the guest switches MSI on, so that their lack is an error at the start.
    pub fn prepare(&self) -> Result<()> {
        self.vectors.make()
    }

    /// The vectors' eventfds, as many as the capability offers, in their order. Empty if MSI was never on, or if there
    /// were no descriptors left then.
    pub fn eventfds(&self) -> Vec<&EventFd> {
        self.vectors.eventfds()
    }

    /// Signals a vector of an emulated function. Nothing happens while MSI is off; a masked vector becomes pending.
    pub fn fire(&self, index: usize) {
        // A function that the guest allows fewer vectors folds them (PCI 6.8.3.4).
        let state = self.state.lock();
        if state.registers.enabled {
            self.vectors.fire(index & (state.registers.count as usize - 1));
        }
    }

    /// Whether a read of these bytes needs [`Msi::refresh`] first.
    pub(super) fn shows_pending(&self, off: u16, len: usize) -> bool {
        self.spec.pending().is_some_and(|pending| {
            let pending = usize::from(self.at + pending);
            usize::from(off) < pending + 4 && pending < usize::from(off) + len
        })
    }

    /// Puts the pending bits of masked vectors into the configuration space.
    pub(super) fn refresh(&self, config: &mut ConfigSpace) {
        let Some(pending) = self.spec.pending() else { return };
        let mask = self.state.lock().registers.mask;
        let bits = (0..self.vectors.count())
            .filter(|&index| mask >> index & 1 != 0 && self.vectors.is_pending(index))
            .fold(0u32, |bits, index| bits | 1 << index);
        config.set_u32(self.at + pending, bits);
    }

    /// Follows the registers after a write; whether the owner has to know.
    pub(super) fn follow(&self, config: &ConfigSpace) -> bool {
        let registers = self.spec.parse(config, self.at);
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.registers, registers);
        if before == registers {
            return false;
        }
        if registers.enabled && !before.enabled {
            if let Err(error) = self.vectors.make() {
                guest_error!(self.vectors.owner(), "MSI does not work: {error}");
            }
            // What came while MSI was off is stale; nothing signals the eventfds before the owner hears of the change.
            self.vectors.clear();
        }
        let wanted = (0..self.vectors.count()).map(|index| registers.wanted(index as u32)).collect();
        self.vectors.change(&mut state.current, wanted);
        (before.enabled, before.enabled.then_some(before.count))
            != (registers.enabled, registers.enabled.then_some(registers.count))
    }
}

#[cfg(test)]
mod tests;
