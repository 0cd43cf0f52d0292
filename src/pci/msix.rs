//! MSI-X: the capability, the table and the pending bit array, and the vectors behind them (PCI 6.8.2).
//!
//! While a vector is masked its eventfd counts and nothing reads it: the pending bit is "the eventfd is readable", and
//! KVM injects the interrupt when the irqfd is attached again. A vector that was never unmasked costs no GSI.

use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use super::bar::{BarContent, BarKind};
use super::config::ConfigSpace;
use super::regs::CAP_MSIX;
use super::vectors::Vectors;
use crate::error::Result;
use crate::guest_error;
use crate::irq::{MsiMessage, Router};
use crate::memory::host::PAGE;
use crate::memory::{Backing, IoHandler, Piece};

/// Message control, from the start of the capability.
const CONTROL: u16 = 2;
const CONTROL_SIZE: u16 = 0x7ff;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;
/// Offset and BAR of the table, and of the pending bits.
const TABLE: u16 = 4;
const PENDING: u16 = 8;
/// Length of the capability in bytes.
pub const CAP_LEN: u16 = 12;
/// Bytes of a table entry: address, upper address, data, vector control.
pub const ENTRY: u64 = 16;
const VECTOR_CONTROL: usize = 3;
const VECTOR_MASKED: u32 = 1;
/// The most vectors that the capability can name.
pub const MAX_VECTORS: u16 = 2048;

/// Where a function has its table and its pending bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixSpec {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR with the table, 0 to 5.
    pub table_bar: u8,
    /// Its offset in that BAR: a multiple of 8.
    pub table_offset: u32,
    /// The BAR with the pending bits, 0 to 5.
    pub pending_bar: u8,
    /// Their offset in that BAR: a multiple of 8.
    pub pending_offset: u32,
}

impl MsixSpec {
    /// A BAR that holds nothing but the table and, on a page of their own, the pending bits.
    pub fn exclusive(bar: u8, vectors: u16) -> MsixSpec {
        let vectors = vectors.clamp(1, MAX_VECTORS);
        let table = (u64::from(vectors) * ENTRY).next_multiple_of(PAGE);
        MsixSpec { vectors, table_bar: bar, table_offset: 0, pending_bar: bar, pending_offset: table as u32 }
    }

    /// The capability at `at` of a hardware's configuration space.
    pub fn parse(config: &ConfigSpace, at: u16) -> MsixSpec {
        let (table, pending) = (config.u32(at + TABLE), config.u32(at + PENDING));
        MsixSpec {
            vectors: (config.u16(at + CONTROL) & CONTROL_SIZE) + 1,
            table_bar: (table & 7) as u8,
            table_offset: table & !7,
            pending_bar: (pending & 7) as u8,
            pending_offset: pending & !7,
        }
    }

    /// Length of the table in bytes.
    pub fn table_len(self) -> u64 {
        u64::from(self.vectors) * ENTRY
    }

    /// Length of the pending bits in bytes: whole qwords.
    pub fn pending_len(self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }

    /// Writes the power-on values and masks of the registers of the capability at `at`; id and link are left alone.
    fn describe(self, config: &mut ConfigSpace, at: u16) {
        config.set_u16(at + CONTROL, self.vectors.clamp(1, MAX_VECTORS) - 1);
        config.set_u32(at + TABLE, self.table_offset & !7 | u32::from(self.table_bar & 7));
        config.set_u32(at + PENDING, self.pending_offset & !7 | u32::from(self.pending_bar & 7));
        config.allow(at + CONTROL, &(CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes());
    }
}

/// The MSI-X capability of one function, its table and its pending bits.
pub struct Msix {
    spec: MsixSpec,
    at: u16,
    vectors: Vectors,
    /// Held while the router is told, so that it sees the changes in their order.
    state: Mutex<State>,
}

struct State {
    enabled: bool,
    function_mask: bool,
    table: Vec<[u32; 4]>,
    /// What each vector does.
    current: Vec<Option<MsiMessage>>,
}

impl State {
    fn wanted(&self, entry: &[u32; 4]) -> Option<MsiMessage> {
        let [low, high, data, control] = *entry;
        let live = self.enabled && !self.function_mask && control & VECTOR_MASKED == 0;
        // The two low bits of the address must be zero.
        live.then_some(MsiMessage { address: u64::from(high) << 32 | u64::from(low & !3), data })
    }

    fn masked(&self, index: usize) -> bool {
        self.function_mask || self.table.get(index).is_none_or(|entry| entry[VECTOR_CONTROL] & VECTOR_MASKED != 0)
    }
}

impl Msix {
    /// Appends the capability to an emulated function's list.
    pub fn add(config: &mut ConfigSpace, spec: MsixSpec, router: &Arc<Router>, owner: &str) -> Result<Arc<Msix>> {
        let at = config.add_capability(CAP_MSIX, &[0; CAP_LEN as usize - 2])?;
        Ok(Msix::at(config, at, spec, router, owner))
    }

    /// Takes over the registers of the capability at `at`, where the hardware has it; id and link are the caller's.
    pub fn at(config: &mut ConfigSpace, at: u16, spec: MsixSpec, router: &Arc<Router>, owner: &str) -> Arc<Msix> {
        spec.describe(config, at);
        let count = usize::from(spec.vectors.clamp(1, MAX_VECTORS));
        let state = State {
            enabled: false,
            function_mask: false,
            table: vec![[0, 0, 0, VECTOR_MASKED]; count],
            current: vec![None; count],
        };
        Arc::new(Msix {
            spec,
            at,
            vectors: Vectors::new(router.clone(), owner.into(), count),
            state: Mutex::new(state),
        })
    }

    /// Where the capability is.
    pub fn place(&self) -> u16 {
        self.at
    }

    /// Where table and pending bits are.
    pub fn spec(&self) -> MsixSpec {
        self.spec
    }

    /// Whether the guest has switched MSI-X on.
    pub fn enabled(&self) -> bool {
        self.state.lock().enabled
    }

    /// Makes the eventfds now rather than when the guest switches MSI-X on, so that their lack is an error at the start.
    pub fn prepare(&self) -> Result<()> {
        self.vectors.make()
    }

    /// All vectors' eventfds in the order of the table. Empty if MSI-X was never on, or if there were no descriptors
    /// left then.
    pub fn eventfds(&self) -> Vec<&EventFd> {
        self.vectors.eventfds()
    }

    /// Signals a vector of an emulated function. Nothing happens while MSI-X is off; a masked vector becomes pending.
    pub fn fire(&self, index: usize) {
        let state = self.state.lock();
        if state.enabled {
            self.vectors.fire(index);
        }
    }

    /// Reads table bytes; `off` is from the start of the table. What lies beyond its end reads as ones.
    pub fn table_read(&self, off: u64, data: &mut [u8]) {
        let state = self.state.lock();
        data.fill(0xff);
        for (byte, at) in data.iter_mut().zip(off..=u64::MAX) {
            *byte = locate(at)
                .and_then(|(entry, dword, shift)| Some(state.table.get(entry)?[dword] >> shift))
                .unwrap_or(0xff) as u8;
        }
    }

    /// Writes table bytes of any width and alignment; vectors that it masks, unmasks or redirects change in one batch.
    pub fn table_write(&self, off: u64, data: &[u8]) {
        let mut state = self.state.lock();
        for (&byte, at) in data.iter().zip(off..=u64::MAX) {
            let Some((entry, dword, shift)) = locate(at) else { continue };
            if let Some(entry) = state.table.get_mut(entry) {
                // All but the mask bit of vector control is reserved.
                let mask = if dword == VECTOR_CONTROL { VECTOR_MASKED } else { u32::MAX };
                entry[dword] = (entry[dword] & !(0xff << shift) | u32::from(byte) << shift) & mask;
            }
        }
        self.settle(&mut state);
    }

    /// Reads pending bits; `off` is from their start.
    pub fn pending_read(&self, off: u64, data: &mut [u8]) {
        let state = self.state.lock();
        data.fill(0);
        for (byte, at) in data.iter_mut().zip(off..=u64::MAX) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            *byte = (0..8)
                .filter(|bit| {
                    let index = first.saturating_add(*bit);
                    index < self.vectors.count() && state.masked(index) && self.vectors.is_pending(index)
                })
                .fold(0, |bits, bit| bits | 1 << bit);
        }
    }

    /// The table as a trapped piece: its handler's offset 0 is the table's first byte.
    pub fn table_io(self: &Arc<Self>) -> Arc<dyn IoHandler> {
        Arc::new(Table(self.clone()))
    }

    /// The pending bits as a trapped piece: its handler's offset 0 is their first byte.
    pub fn pending_io(self: &Arc<Self>) -> Arc<dyn IoHandler> {
        Arc::new(Pending(self.clone()))
    }

    /// The BAR of an emulated function whose [`MsixSpec`] is [`MsixSpec::exclusive`].
    pub fn exclusive_bar(self: &Arc<Self>) -> BarContent {
        let pending = u64::from(self.spec.pending_offset);
        let size = (pending + self.spec.pending_len()).next_power_of_two();
        BarContent {
            name: format!("{} MSI-X", self.vectors.owner()).into(),
            size,
            kind: BarKind::Mem32,
            prefetchable: false,
            pieces: vec![
                Piece { range: 0..pending, backing: Backing::io(self.table_io()) },
                Piece { range: pending..size, backing: Backing::io(self.pending_io()) },
            ],
        }
    }

    /// Follows message control after a write; whether the owner has to know.
    pub(super) fn follow(&self, config: &ConfigSpace) -> bool {
        let control = config.u16(self.at + CONTROL);
        let (enabled, function_mask) = (control & CONTROL_ENABLE != 0, control & CONTROL_FUNCTION_MASK != 0);
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.enabled, enabled);
        if before == enabled && state.function_mask == function_mask {
            return false;
        }
        state.function_mask = function_mask;
        if enabled && !before {
            if let Err(error) = self.vectors.make() {
                guest_error!(self.vectors.owner(), "MSI-X does not work: {error}");
            }
            // What came while MSI-X was off is stale; nothing signals the eventfds before the owner hears of the change.
            self.vectors.clear();
        }
        self.settle(&mut state);
        before != enabled
    }

    /// Puts the table into the state after power-on. The control register is reset with the configuration space.
    pub(super) fn reset(&self) {
        let mut state = self.state.lock();
        state.table.fill([0, 0, 0, VECTOR_MASKED]);
        self.settle(&mut state);
        self.vectors.clear();
    }

    fn settle(&self, state: &mut State) {
        let wanted = state.table.iter().map(|entry| state.wanted(entry)).collect();
        self.vectors.change(&mut state.current, wanted);
    }
}

/// Entry, dword in it and shift in that of a byte of the table.
fn locate(at: u64) -> Option<(usize, usize, u32)> {
    let entry = usize::try_from(at / ENTRY).ok()?;
    Some((entry, (at % ENTRY / 4) as usize, (at % 4 * 8) as u32))
}

struct Table(Arc<Msix>);

impl IoHandler for Table {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.table_read(offset, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        self.0.table_write(offset, data);
    }
}

struct Pending(Arc<Msix>);

impl IoHandler for Pending {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.pending_read(offset, data);
    }
    /// Software must not write pending bits (PCI 6.8.2.10).
    fn write(&self, _: u64, _: &[u8]) {}
}

#[cfg(test)]
mod tests;
