//! The ISA bus of the board: fixed ports and interrupts, of which each has one holder.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Code, Error, Result};
use crate::irq::{IrqLine, Router};
use crate::memory::{Backing, IoHandler, Memory, PRIORITY_PLATFORM, Region, RegionId, Space};

/// Its name.
pub const NAME: &str = "isa.0";
/// Ports that devices may have: above those of the board's own chips, and below those of PCI's BARs.
pub const PORTS: Range<u16> = 0x100..0x400;
/// Interrupts that devices may have: those of a PC's serial and parallel ports and cards.
pub const IRQS: [u8; 7] = [3, 4, 5, 7, 10, 11, 12];

/// The bus.
pub struct IsaBus {
    memory: Arc<Memory>,
    router: Arc<Router>,
    /// Ports that are taken, and by whom.
    taken: Mutex<Vec<(Range<u16>, Arc<str>)>>,
}

/// Ports that a device has. Dropping it gives them back.
pub struct IsaPorts {
    bus: Arc<IsaBus>,
    first: u16,
    region: RegionId,
}

impl IsaBus {
    /// A bus on which nobody has a port.
    pub fn new(memory: Arc<Memory>, router: Arc<Router>) -> Arc<IsaBus> {
        Arc::new(IsaBus { memory, router, taken: Mutex::default() })
    }

    /// Keeps ports for a device of the board.
    pub fn keep(&self, first: u16, len: u16, holder: &str) {
        self.taken.lock().push((first..first + len, holder.into()));
    }

    /// Whether nobody has the port.
    pub fn is_free(&self, port: u16) -> bool {
        self.taken.lock().iter().all(|(ports, _)| !ports.contains(&port))
    }

    /// The wire of an interrupt, which is edge-triggered.
    pub fn line(&self, irq: u8) -> IrqLine {
        self.router.line(irq.into())
    }

    /// Puts a device's registers at their ports.
    ///
    /// # Errors
    /// [`Code::BadBus`]: they are another's, or none of the bus.
    pub fn attach(
        self: &Arc<Self>,
        holder: &str,
        first: u16,
        len: u16,
        device: Arc<dyn IoHandler>,
    ) -> Result<IsaPorts> {
        let refuse = |cause: String| Err(Error::new(Code::BadBus, cause));
        let Some(ports) =
            first.checked_add(len).map(|end| first..end).filter(|it| PORTS.start <= it.start && it.end <= PORTS.end)
        else {
            return refuse(format!("{NAME} has no ports {first:#x} to {:#x}", u32::from(first) + u32::from(len) - 1));
        };
        let mut taken = self.taken.lock();
        if let Some((_, by)) = taken.iter().find(|(other, _)| other.start < ports.end && ports.start < other.end) {
            return refuse(format!("the ports from {first:#x} on are taken by {by}"));
        }
        let region = Region::whole(holder, len.into(), PRIORITY_PLATFORM, Backing::io(device));
        let region = self.memory.update(|layout| layout.add(Space::Pio, first.into(), region))?;
        taken.push((ports, holder.into()));
        Ok(IsaPorts { bus: self.clone(), first, region })
    }
}

impl Drop for IsaPorts {
    fn drop(&mut self) {
        // Taking a range of ports away cannot be refused.
        let _ = self.bus.memory.update(|layout| layout.remove(self.region));
        self.bus.taken.lock().retain(|(ports, _)| ports.start != self.first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Byte;

    impl IoHandler for Byte {
        fn read(&self, _: u64, data: &mut [u8]) {
            data.fill(7);
        }
        fn write(&self, _: u64, _: &[u8]) {}
    }

    #[test]
    fn ports_have_one_holder() {
        let memory = Memory::new();
        let bus = IsaBus::new(memory.clone(), Router::new());
        bus.keep(0x3f8, 8, "serial0");
        let attach = |holder: &str, first: u16| bus.attach(holder, first, 8, Arc::new(Byte));
        let second = attach("second", 0x2f8).unwrap();
        assert!(!bus.is_free(0x2ff) && bus.is_free(0x300));
        for wrong in [0x3f8, 0x3f1, 0x2ff, 0x60, 0x3f9, 0xfff8] {
            assert_eq!(attach("another", wrong).map(drop).unwrap_err().code(), Code::BadBus, "{wrong:#x}");
        }
        let mut data = [0];
        memory.read(Space::Pio, 0x2f8, &mut data);
        assert_eq!(data, [7]);
        drop(second);
        memory.read(Space::Pio, 0x2f8, &mut data);
        assert_eq!(data, [0xff]);
        attach("another", 0x2f8).unwrap();
    }
}
