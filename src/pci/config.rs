//! The 4096 bytes of a function's configuration space: values, what a guest may change in them, and the lists of
//! capabilities (PCI 6.1 and 6.7, PCIe 7.5 and 7.6).

use std::ops::Range;

use super::regs::{
    CACHE_LINE, CAPABILITIES, CAPABILITIES_START, CONFIG_SIZE, EXTENDED_START, HEADER_TYPE, INTERRUPT_LINE, STATUS,
    STATUS_CAPABILITIES,
};
use crate::error::{Code, Error, Result};
use crate::memory::HostSlice;

const SIZE: usize = CONFIG_SIZE as usize;
/// As many capabilities as fit between the header and the end; a longer list is a loop.
const MAX_CAPABILITIES: usize = ((EXTENDED_START - CAPABILITIES_START) / 4) as usize;
/// As many extended capabilities as fit.
const MAX_EXTENDED: usize = ((CONFIG_SIZE - EXTENDED_START) / 4) as usize;

/// Values and masks of every byte. Offsets beyond the end read as ones and ignore writes.
pub struct ConfigSpace {
    value: Vec<u8>,
    /// Bits that a guest's write sets.
    writable: Vec<u8>,
    /// Bits that a guest clears by writing ones.
    clearable: Vec<u8>,
    /// Where the next capability and the next extended capability go.
    next: u16,
    next_extended: u16,
    /// The bytes that have bits set after power-on which a guest can change.
    power_on: Vec<(usize, u8)>,
    /// A page that is kept equal to `value`.
    mirror: Option<HostSlice>,
}

impl Default for ConfigSpace {
    fn default() -> ConfigSpace {
        ConfigSpace::new()
    }
}

impl ConfigSpace {
    /// All zero and nothing writable, except the two registers that belong to software alone: cache line size and
    /// interrupt line.
    pub fn new() -> ConfigSpace {
        let mut config = ConfigSpace {
            value: vec![0; SIZE],
            writable: vec![0; SIZE],
            clearable: vec![0; SIZE],
            next: CAPABILITIES_START,
            next_extended: EXTENDED_START,
            power_on: Vec::new(),
            mirror: None,
        };
        config.allow(CACHE_LINE, &[0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    fn range(off: u16, len: usize) -> Range<usize> {
        let start = usize::from(off).min(SIZE);
        start..start.saturating_add(len).min(SIZE)
    }

    /// A byte.
    pub fn u8(&self, off: u16) -> u8 {
        self.value.get(usize::from(off)).copied().unwrap_or(0xff)
    }

    /// A word.
    pub fn u16(&self, off: u16) -> u16 {
        u16::from_le_bytes([self.u8(off), self.u8(off.saturating_add(1))])
    }

    /// A dword.
    pub fn u32(&self, off: u16) -> u32 {
        u32::from(self.u16(off)) | u32::from(self.u16(off.saturating_add(2))) << 16
    }

    /// Sets bytes, whatever the masks say: the owner's side of the registers.
    pub fn set(&mut self, off: u16, bytes: &[u8]) {
        let range = Self::range(off, bytes.len());
        let len = range.len();
        self.value[range].copy_from_slice(&bytes[..len]);
        self.reflect(off, len);
    }

    /// Sets a byte.
    pub fn set_u8(&mut self, off: u16, value: u8) {
        self.set(off, &[value]);
    }

    /// Sets a word.
    pub fn set_u16(&mut self, off: u16, value: u16) {
        self.set(off, &value.to_le_bytes());
    }

    /// Sets a dword.
    pub fn set_u32(&mut self, off: u16, value: u32) {
        self.set(off, &value.to_le_bytes());
    }

    /// Lets a guest write the bits of `mask`, and no others, in these bytes.
    pub fn allow(&mut self, off: u16, mask: &[u8]) {
        let range = Self::range(off, mask.len());
        let len = range.len();
        self.writable[range].copy_from_slice(&mask[..len]);
    }

    /// Lets a guest clear the bits of `mask` by writing ones to them, and no others.
    pub fn allow_clear(&mut self, off: u16, mask: &[u8]) {
        let range = Self::range(off, mask.len());
        let len = range.len();
        self.clearable[range].copy_from_slice(&mask[..len]);
    }

    /// The bits that a guest can change in a byte.
    pub fn changeable(&self, off: u16) -> u8 {
        let bits = |mask: &Vec<u8>| mask.get(usize::from(off)).copied().unwrap_or(0);
        bits(&self.writable) | bits(&self.clearable)
    }

    /// A guest's read.
    pub fn read(&self, off: u16, data: &mut [u8]) {
        let range = Self::range(off, data.len());
        let (inside, beyond) = data.split_at_mut(range.len());
        inside.copy_from_slice(&self.value[range]);
        beyond.fill(0xff);
    }

    /// A guest's write: only bits that it may change do.
    pub fn write(&mut self, off: u16, data: &[u8]) {
        let range = Self::range(off, data.len());
        let len = range.len();
        for (at, &byte) in range.zip(data) {
            let writable = self.writable[at];
            self.value[at] = self.value[at] & !writable & !(byte & self.clearable[at]) | byte & writable;
        }
        self.reflect(off, len);
    }

    /// Remembers the present values as those after power-on. The end of construction.
    pub(super) fn seal(&mut self) {
        let bits = |at: usize| self.value[at] & (self.writable[at] | self.clearable[at]);
        self.power_on = (0..SIZE).map(|at| (at, bits(at))).filter(|(_, bits)| *bits != 0).collect();
    }

    /// Gives every bit that a guest can change its value after power-on.
    pub fn reset(&mut self) {
        for at in 0..SIZE {
            self.value[at] &= !(self.writable[at] | self.clearable[at]);
        }
        for &(at, bits) in &self.power_on {
            self.value[at] |= bits;
        }
        self.reflect(0, SIZE);
    }

    /// Keeps a page equal to the space from now on. Every change reaches it before the change's author goes on, so also
    /// before any interrupt that announces it. `None` ends it.
    pub fn mirror(&mut self, page: Option<HostSlice>) {
        self.mirror = page;
        self.reflect(0, SIZE);
    }

    fn reflect(&self, off: u16, len: usize) {
        if let Some(mirror) = &self.mirror {
            mirror.write(u64::from(off), &self.value[Self::range(off, len)]);
        }
    }

    /// The layout part of the header type: [`super::regs::HEADER_ENDPOINT`] or [`super::regs::HEADER_BRIDGE`].
    pub fn layout(&self) -> u8 {
        self.u8(HEADER_TYPE) & super::regs::HEADER_LAYOUT
    }

    /// Appends a capability whose registers after id and link are `body`, and links it. Gives its offset.
    ///
    /// # Errors
    /// [`Code::DeviceFailed`] if the conventional space is full.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Result<u16> {
        let at = self.next;
        let end = end_of(at, body.len() + 2, EXTENDED_START)?;
        let link = match self.capabilities().last() {
            Some((_, last)) => last + 1,
            None => CAPABILITIES,
        };
        self.set_u8(link, at as u8);
        self.set_u16(STATUS, self.u16(STATUS) | STATUS_CAPABILITIES);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.next = end;
        Ok(at)
    }

    /// Appends an extended capability whose registers after the header are `body`, and links it. Gives its offset.
    ///
    /// # Errors
    /// [`Code::DeviceFailed`] if the extended space is full.
    pub fn add_ext_capability(&mut self, id: u16, version: u8, body: &[u8]) -> Result<u16> {
        let at = self.next_extended;
        let end = end_of(at, body.len() + 4, CONFIG_SIZE)?;
        if let Some((_, last)) = self.ext_capabilities().last() {
            self.set_u32(*last, self.u32(*last) & 0x000f_ffff | u32::from(at) << 20);
        }
        self.set_u32(at, u32::from(id) | u32::from(version & 0xf) << 16);
        self.set(at + 4, body);
        self.next_extended = end;
        Ok(at)
    }

    /// The ids and offsets of the capabilities in the order of their links; ends at a link that leads nowhere or back.
    pub fn capabilities(&self) -> Vec<(u8, u16)> {
        let mut found: Vec<(u8, u16)> = Vec::new();
        if self.u16(STATUS) & STATUS_CAPABILITIES == 0 {
            return found;
        }
        let mut at = u16::from(self.u8(CAPABILITIES) & !3);
        while at >= CAPABILITIES_START && found.len() < MAX_CAPABILITIES && found.iter().all(|(_, other)| *other != at)
        {
            found.push((self.u8(at), at));
            at = u16::from(self.u8(at + 1) & !3);
        }
        found
    }

    /// The ids and offsets of the extended capabilities, as [`ConfigSpace::capabilities`].
    pub fn ext_capabilities(&self) -> Vec<(u16, u16)> {
        let mut found: Vec<(u16, u16)> = Vec::new();
        let mut at = EXTENDED_START;
        while at >= EXTENDED_START && found.len() < MAX_EXTENDED && found.iter().all(|(_, other)| *other != at) {
            let header = self.u32(at);
            if header == 0 || header == u32::MAX {
                break;
            }
            found.push((header as u16, at));
            at = (header >> 20) as u16 & !3;
        }
        found
    }

    /// The offset of the first capability with this id.
    pub fn find(&self, id: u8) -> Option<u16> {
        self.capabilities().into_iter().find(|(other, _)| *other == id).map(|(_, at)| at)
    }
}

/// The dword after `len` bytes at `at`, if it is not beyond `limit`.
fn end_of(at: u16, len: usize, limit: u16) -> Result<u16> {
    usize::from(at)
        .checked_add(len)
        .and_then(|end| u16::try_from(end.next_multiple_of(4)).ok())
        .filter(|end| *end <= limit)
        .ok_or_else(|| Error::new(Code::DeviceFailed, "a capability does not fit into the configuration space"))
}

#[cfg(test)]
mod tests;
