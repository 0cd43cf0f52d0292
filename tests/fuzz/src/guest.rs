//! A machine without CPUs: memory map, interrupt router and PCI root, with the device behind a root port, and a guest
//! that reads and writes where the fuzzer wants.

use std::io;
use std::sync::Arc;

use passthru::device::Device;
use passthru::irq::{IrqChip, Route, Router};
use passthru::memory::{Memory, RegionId, Space};
use passthru::pci::ecam::{BUS_SIZE, Ecam};
use passthru::pci::root_port::RootPort;
use passthru::pci::{Decode, PciFunction, PciRoot, Slot};
use passthru::vfio::{Attachment, HostPci, VfioPci, VfioPciOptions};
use vmm_sys_util::eventfd::EventFd;

use crate::input::Input;

/// Where the ECAM window is.
const ECAM: u64 = 0xe000_0000;
/// Bytes of one step in the input.
pub const STEP: usize = 10;
/// Steps of one run at most.
const MAX_STEPS: usize = 64;

/// The machine.
pub struct Guest {
    // In the order in which they go: off the bus, then the device, then the rest.
    slots: Vec<Slot>,
    window: RegionId,
    device: Arc<VfioPci>,
    memory: Arc<Memory>,
    root: Arc<PciRoot>,
    _router: Arc<Router>,
}

impl Guest {
    /// Plugs the device; `None`: it was refused, with an error for the user.
    pub fn plug(host: Arc<dyn HostPci>) -> Option<Guest> {
        let (memory, router) = (Memory::new(), Router::new());
        router.set_chip(Arc::new(Chip)).ok()?;
        let decode = Decode::new(memory.clone());
        let root = PciRoot::new("pcie.0", &decode);
        let port = RootPort::new("port", 1, &decode, &router).ok()?;
        let bus = port.bus().clone();
        let options = VfioPciOptions { id: "dev".into(), attachment: Attachment::Port, ..VfioPciOptions::default() };
        let device = VfioPci::new(host, &router, options).ok()?;
        let slots = vec![bus.attach(device.clone(), Some("0")).ok()?, root.bus().attach(port, Some("1")).ok()?];
        let ecam = Ecam::new(root.clone());
        let window = memory.update(|map| map.add(Space::Mmio, ECAM, ecam.region(1))).ok()?;
        let guest = Guest { slots, window, device, memory, root, _router: router };
        guest.device.reset();
        guest.open_the_port();
        Some(guest)
    }

    /// Bus numbers, windows and decoding of the port, as firmware leaves them.
    fn open_the_port(&self) {
        for (register, value) in
            [(0x18, 0x0001_0100_u32), (0x1c, 0xf0f0), (0x20, 0xcff0_c000), (0x24, 0xfff1_0001), (0x2c, 0x1f), (0x04, 7)]
        {
            self.memory.write(Space::Mmio, ECAM + (1 << 15) + register, &value.to_le_bytes());
        }
    }

    /// What the guest does, [`STEP`] bytes a step: a register of the device or the port, an address of a BAR, a reset.
    pub fn run(&self, input: &mut Input) {
        for _ in 0..MAX_STEPS {
            if input.is_empty() {
                return;
            }
            let (kind, at, value, more) = (input.u8(), input.u32(), input.u32(), input.u8());
            let len = [1, 2, 4, 8][usize::from(more & 3)];
            let data = &mut [value.to_le_bytes(), value.rotate_left(16).to_le_bytes()].concat()[..len];
            let space = if more & 4 != 0 { Space::Pio } else { Space::Mmio };
            match kind % 8 {
                0 | 1 => self.memory.write(Space::Mmio, ECAM + BUS_SIZE + u64::from(at & 0xfff), data),
                2 => self.memory.read(Space::Mmio, ECAM + BUS_SIZE + u64::from(at & 0xfff), data),
                3 => self.memory.write(Space::Mmio, ECAM + (1 << 15) + u64::from(at & 0xfff), data),
                4 => self.memory.write(space, u64::from(at), data),
                5 => self.memory.read(space, u64::from(at), data),
                6 => self.memory.read(Space::Mmio, u64::from(at) << 8 | u64::from(more), data),
                _ => self.restart(),
            }
        }
    }

    fn restart(&self) {
        self.root.reset();
        self.device.reset();
        self.open_the_port();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.slots.clear();
        self.device.unplug();
        // The map holds the window, which holds the root, which holds the map.
        let removed = self.memory.update(|map| map.remove(self.window));
        assert!(removed.is_ok(), "taking a range away cannot be refused");
        let mut after = [0; 4];
        self.device.config_read(0, &mut after);
        assert_eq!(after, [0xff; 4], "an unplugged device answers");
    }
}

/// KVM's interrupt chips, deaf.
pub struct Chip;

impl IrqChip for Chip {
    fn set_level(&self, _: u32, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn commit_routes(&self, _: &[Route]) -> io::Result<()> {
        Ok(())
    }
    fn attach(&self, _: u32, _: &EventFd, _: Option<&EventFd>) -> io::Result<()> {
        Ok(())
    }
    fn detach(&self, _: u32, _: &EventFd) -> io::Result<()> {
        Ok(())
    }
}
