//! A guest's driver for tests: a machine without processors, with one virtio device behind its real registers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::VirtioDevice;
use super::pci::{PciOptions, VirtioPci, Wiring};
use crate::irq::testing::Recorder;
use crate::memory::host::PageSize;
use crate::memory::{Backing, HostMem, PRIORITY_PLATFORM, Region, Space};
use crate::pci::PciFunction;
use crate::pci::testing::Bench;

/// RAM of the machine, from address 0.
pub const RAM: u64 = 1 << 20;
/// Where the BAR with the registers is, and its blocks.
pub const COMMON: u64 = 0xe000_0000;
pub const ISR: u64 = COMMON + 0x1000;
pub const CONFIG: u64 = COMMON + 0x2000;
pub const NOTIFY: u64 = COMMON + 0x3000;
/// Where the MSI-X table is.
pub const MSIX: u64 = 0xd000_0000;
/// Size of every queue.
pub const SIZE: u16 = 8;
const VERSION_1: u64 = 1 << 32;

/// A buffer of a request: address, length, whether the device writes it.
pub type Buffer = (u64, u32, bool);

/// The driver.
pub struct Driver {
    pub bench: Bench,
    pub chip: Arc<Recorder>,
    pub function: Arc<VirtioPci>,
    queues: Vec<Ring>,
}

/// The driver's side of one queue.
#[derive(Clone, Copy, Default)]
struct Ring {
    next_descriptor: u16,
    available: u16,
    seen: u16,
}

/// Where a queue's descriptors, available and used ring are.
pub fn rings(queue: u16) -> [u64; 3] {
    let base = 0x1000 * (u64::from(queue) + 1);
    [base, base + 0x400, base + 0x800]
}

impl Driver {
    /// A device at 2.0 of the root bus that decodes and masters the bus, with a guest that has done nothing to it yet.
    pub fn new(device: Arc<dyn VirtioDevice>, options: &PciOptions) -> Driver {
        Driver::on(Bench::new(), device, options)
    }

    /// The same on a machine that there is already.
    pub fn on(bench: Bench, device: Arc<dyn VirtioDevice>, options: &PciOptions) -> Driver {
        let chip = Arc::new(Recorder::default());
        bench.router.set_chip(chip.clone()).unwrap();
        let ram = Arc::new(HostMem::memfd("ram", RAM, PageSize::Small).unwrap());
        let region = Region::whole("ram", RAM, PRIORITY_PLATFORM, Backing::Ram(ram.slice()));
        bench.memory.update(|layout| layout.add(Space::Mmio, 0, region)).unwrap();
        let queues = vec![Ring::default(); device.info().queues.into()];
        let wiring = Wiring {
            id: "dev0".into(),
            on_root_bus: false,
            memory: bench.memory.clone(),
            router: bench.router.clone(),
        };
        let function = VirtioPci::new(device, options, wiring).unwrap();
        bench.plug(function.clone(), "2");
        let driver = Driver { bench, chip, function, queues };
        driver.set_up_function();
        driver
    }

    /// What firmware and bus driver do: addresses, decoding, bus mastering.
    pub fn set_up_function(&self) {
        for (off, value) in [(0x14, MSIX as u32), (0x20, COMMON as u32), (0x24, 0)] {
            self.config_write(off, value, 4);
        }
        self.config_write(4, 6, 2);
    }

    pub fn config_write(&self, off: u16, value: u32, len: usize) {
        self.bench.write(0, "2", off, value, len);
    }

    pub fn config_read(&self, off: u16) -> u32 {
        self.bench.read32(0, "2", off)
    }

    /// The offset of the last capability with this id.
    pub fn capability(&self, id: u8) -> u16 {
        let found = self.function.core().with(|config| config.capabilities());
        found.into_iter().rfind(|(other, _)| *other == id).unwrap().1
    }

    pub fn write(&self, addr: u64, value: u64, len: usize) {
        self.bench.memory.write(Space::Mmio, addr, &value.to_le_bytes()[..len]);
    }

    pub fn read(&self, addr: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.bench.memory.read(Space::Mmio, addr, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.bench.memory.read(Space::Mmio, addr, &mut data);
        data
    }

    pub fn put(&self, addr: u64, data: &[u8]) {
        self.bench.memory.write(Space::Mmio, addr, data);
    }

    pub fn status(&self) -> u64 {
        self.read(COMMON + 0x14, 1)
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let half = |select: u64| {
            self.write(COMMON, select, 4);
            self.read(COMMON + 4, 4) << (32 * select)
        };
        half(0) | half(1)
    }

    /// Resets the device, and agrees on version 1 and these features.
    pub fn negotiate(&mut self, features: u64) {
        self.write(COMMON + 0x14, 0, 1);
        self.queues.fill(Ring::default());
        self.write(COMMON + 0x14, 3, 1);
        for half in [0, 1] {
            self.write(COMMON + 8, half, 4);
            self.write(COMMON + 12, (features | VERSION_1) >> (32 * half), 4);
        }
        self.write(COMMON + 0x14, 0xb, 1);
        assert_eq!(self.status(), 0xb);
    }

    /// Puts a queue where [`rings`] says, with empty rings, and enables it with an MSI-X vector.
    pub fn enable(&self, queue: u16, vector: u16) {
        let rings = rings(queue);
        self.put(rings[1], &[0; 0x20]);
        self.put(rings[2], &[0; 0x60]);
        self.write(COMMON + 0x16, queue.into(), 2);
        self.write(COMMON + 0x18, SIZE.into(), 2);
        self.write(COMMON + 0x1a, vector.into(), 2);
        for (at, ring) in [0x20, 0x28, 0x30].into_iter().zip(rings) {
            self.write(COMMON + at, ring, 8);
        }
        self.write(COMMON + 0x1c, 1, 2);
    }

    pub fn driver_ok(&self) {
        self.write(COMMON + 0x14, 0xf, 1);
    }

    /// Negotiates, enables every queue without a vector, and lets the device run.
    pub fn start(&mut self, features: u64) {
        self.negotiate(features);
        (0..self.queues.len() as u16).for_each(|queue| self.enable(queue, 0xffff));
        self.driver_ok();
        assert_eq!(self.status(), 0xf);
    }

    /// Makes a request available, without a kick, and gives its head.
    pub fn submit(&mut self, queue: u16, buffers: &[Buffer]) -> u16 {
        let [descriptors, available, _] = rings(queue);
        let ring = self.queues[usize::from(queue)];
        let head = ring.next_descriptor % SIZE;
        for (index, (addr, len, write)) in buffers.iter().enumerate() {
            let at = (ring.next_descriptor + index as u16) % SIZE;
            let flags = u16::from(index + 1 < buffers.len()) | u16::from(*write) << 1;
            self.descriptor(queue, at, *addr, *len, flags, (at + 1) % SIZE);
        }
        self.write(available + 4 + 2 * u64::from(ring.available % SIZE), head.into(), 2);
        let ring = &mut self.queues[usize::from(queue)];
        ring.next_descriptor = ring.next_descriptor.wrapping_add(buffers.len() as u16);
        ring.available = ring.available.wrapping_add(1);
        let index = ring.available;
        self.write(available + 2, index.into(), 2);
        assert!(descriptors < RAM);
        head
    }

    pub fn descriptor(&self, queue: u16, at: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = rings(queue)[0] + 16 * u64::from(at);
        for (offset, value, size) in [(0, addr, 8), (8, len.into(), 4), (12, flags.into(), 2), (14, next.into(), 2)] {
            self.write(at + offset, value, size);
        }
    }

    pub fn kick(&self, queue: u16) {
        self.write(NOTIFY + 4 * u64::from(queue), queue.into(), 2);
    }

    /// The next used request, waiting for it: its head and the bytes that were written.
    pub fn used(&mut self, queue: u16) -> (u16, u32) {
        let used = rings(queue)[2];
        let ring = self.queues[usize::from(queue)];
        self.until(|driver| driver.read(used + 2, 2) as u16 != ring.seen);
        let element = used + 4 + 8 * u64::from(ring.seen % SIZE);
        self.queues[usize::from(queue)].seen = ring.seen.wrapping_add(1);
        (self.read(element, 4) as u16, self.read(element + 4, 4) as u32)
    }

    /// How many requests the device has used.
    pub fn used_index(&self, queue: u16) -> u64 {
        self.read(rings(queue)[2] + 2, 2)
    }

    /// Submits, kicks and waits: the bytes that were written.
    pub fn request(&mut self, queue: u16, buffers: &[Buffer]) -> u32 {
        let head = self.submit(queue, buffers);
        self.kick(queue);
        let (used, written) = self.used(queue);
        assert_eq!(used, head);
        written
    }

    /// Waits for what another thread does.
    pub fn until(&self, done: impl Fn(&Driver) -> bool) {
        let give_up = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            assert!(Instant::now() < give_up, "nothing happens");
            std::thread::yield_now();
        }
    }

    /// Switches MSI-X on, with every vector unmasked.
    pub fn enable_msix(&self) {
        let msix = self.function.core().msix().unwrap();
        self.config_write(msix.place() + 2, 0x8000, 2);
        for vector in 0..u64::from(msix.spec().vectors) {
            for (at, value) in [(0, 0xfee0_0000), (4, 0), (8, vector), (12, 0)] {
                self.write(MSIX + 16 * vector + at, value, 4);
            }
        }
    }

    /// How often a vector was fired since the last call.
    pub fn fired(&self, vector: usize) -> u64 {
        let msix = self.function.core().msix().unwrap();
        msix.eventfds()[vector].read().unwrap_or(0)
    }
}
