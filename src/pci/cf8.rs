//! Configuration access by ports 0xcf8 and 0xcfc (PCI 3.2.2.3.2, mechanism 1).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Devfn, PciRoot};
use crate::memory::{Backing, IoHandler, PRIORITY_PLATFORM, Region};

/// The first of the eight ports.
pub const BASE: u16 = 0xcf8;
/// Number of ports.
pub const LEN: u16 = 8;
const DATA: u64 = 4;
/// The byte port in the middle of the address register that a PC's reset control has.
const RESET_CONTROL: u64 = 1;

/// CONFIG_ADDRESS: accesses to CONFIG_DATA are configuration accesses.
const ENABLE: u32 = 1 << 31;
/// The bits of CONFIG_ADDRESS that exist.
const ADDRESS_MASK: u32 = 0x80ff_fffc;

/// The two registers.
pub struct Cf8 {
    root: Arc<PciRoot>,
    /// Where the other accesses to port 0xcf9 go.
    reset_control: Arc<dyn IoHandler>,
    /// Whether the registers are not there at all.
    hidden: bool,
    address: AtomicU32,
}

impl Cf8 {
    /// The registers of a root. Accesses to port 0xcf9 that are no dword go to `reset_control`, at offset 0.
    ///
    /// With `hidden`, everything but reset control reads as ones and ignores writes: a guest that is booted without
    /// firmware then uses the ECAM window, which takes one exit for an access rather than two.
    pub fn new(root: Arc<PciRoot>, reset_control: Arc<dyn IoHandler>, hidden: bool) -> Arc<Cf8> {
        Arc::new(Cf8 { root, reset_control, hidden, address: AtomicU32::new(0) })
    }

    /// Whether the guest finds the registers.
    pub fn is_there(&self) -> bool {
        !self.hidden
    }

    /// The ports, to be placed at [`BASE`].
    pub fn region(self: &Arc<Self>) -> Region {
        Region::whole("pci cf8", u64::from(LEN), PRIORITY_PLATFORM, Backing::io(self.clone()))
    }

    /// The state after power-on.
    pub fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
    }

    /// The function and register that an access to the data port at `offset` means.
    fn target(&self, offset: u64) -> Option<(u8, Devfn, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, devfn, bus, _] = address.to_le_bytes();
        (!self.hidden && address & ENABLE != 0)
            .then(|| (bus, Devfn::from_byte(devfn), u16::from(register) + (offset - DATA) as u16))
    }
}

impl IoHandler for Cf8 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) if !self.hidden => data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes()),
            (RESET_CONTROL, 1) => self.reset_control.read(0, data),
            (DATA..8, len) if offset as usize + len <= usize::from(LEN) => match self.target(offset) {
                Some((bus, devfn, register)) => self.root.read(bus, devfn, register, data),
                None => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, &[a, b, c, d]) if !self.hidden => {
                self.address.store(u32::from_le_bytes([a, b, c, d]) & ADDRESS_MASK, Ordering::Relaxed);
            }
            (RESET_CONTROL, [_]) => self.reset_control.write(0, data),
            (DATA..8, _) if offset as usize + data.len() <= usize::from(LEN) => {
                if let Some((bus, devfn, register)) = self.target(offset) {
                    self.root.write(bus, devfn, register, data);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::host_bridge::{self, HostBridge};
    use super::super::testing::{Bench, Filled};
    use super::*;
    use crate::memory::Space;

    fn setup(hidden: bool) -> Bench {
        let bench = Bench::new();
        bench.plug(HostBridge::new(), host_bridge::ADDRESS);
        let cf8 = Cf8::new(bench.root.clone(), Arc::new(Filled(0x06)), hidden);
        bench.memory.update(|layout| layout.add(Space::Pio, u64::from(BASE), cf8.region())).unwrap();
        bench
    }

    fn read(bench: &Bench, port: u64, len: usize) -> u32 {
        let mut data = [0; 4];
        bench.memory.read(Space::Pio, port, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    fn address(bench: &Bench, value: u32) {
        bench.memory.write(Space::Pio, 0xcf8, &value.to_le_bytes());
    }

    #[test]
    fn data_is_the_register_that_the_address_names() {
        let bench = setup(false);
        address(&bench, 0x8000_0003);
        assert_eq!(read(&bench, 0xcf8, 4), 0x8000_0000);
        assert_eq!(read(&bench, 0xcfc, 4), 0x29c0_8086);
        assert_eq!(read(&bench, 0xcfe, 2), 0x29c0);
        assert_eq!(read(&bench, 0xcff, 1), 0x29);
        assert_eq!(read(&bench, 0xcfe, 4), 0xffff_29c0, "the ports end");
        address(&bench, 0x8000_003c);
        bench.memory.write(Space::Pio, 0xcfc, &[0x0b]);
        assert_eq!(bench.read32(0, "0", 0x3c), 0x0b);
        address(&bench, 0x8000_0800);
        assert_eq!(read(&bench, 0xcfc, 4), u32::MAX);
        address(&bench, 0x0000_0000);
        assert_eq!(read(&bench, 0xcfc, 4), u32::MAX, "not enabled");
    }

    #[test]
    fn the_byte_in_the_middle_is_reset_control() {
        for hidden in [false, true] {
            let bench = setup(hidden);
            assert_eq!(read(&bench, 0xcf9, 1), 0x06);
            assert_eq!(read(&bench, 0xcf8, 1), 0xff);
            assert_eq!(read(&bench, 0xcfa, 2), 0xffff);
        }
    }

    #[test]
    fn hidden_there_is_nothing() {
        let bench = setup(true);
        address(&bench, 0x8000_0000);
        assert_eq!((read(&bench, 0xcf8, 4), read(&bench, 0xcfc, 4)), (u32::MAX, u32::MAX));
        bench.memory.write(Space::Pio, 0xcfc, &[0; 4]);
    }
}
