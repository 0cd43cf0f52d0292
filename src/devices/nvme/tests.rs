use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::function::Nvme;
use super::namespace::{Namespace, NvmeBus};
use super::shared::Options;
use crate::backends::Backends;
use crate::backends::block::testing::MemoryNode;
use crate::device::{Device, Unit};
use crate::devices::disk::testing::{Heard, OPTIONS, listener};
use crate::devices::disk::{Disk, Drive};
use crate::irq::testing::Recorder;
use crate::memory::host::PageSize;
use crate::memory::{Backing, HostMem, PRIORITY_PLATFORM, Region, Space};
use crate::pci::testing::Bench;

const REGISTERS: u64 = 0xe000_0000;
const MSIX: u32 = 0xe010_0000;
const RAM: u64 = 1 << 20;
/// Queues of 4 entries.
const ADMIN: (u64, u64) = (0x1000, 0x2000);
const IO: (u64, u64) = (0x3000, 0x4000);
const ENTRIES: u64 = 4;
const DATA: u64 = 0x10000;

/// A guest's driver.
struct Guest {
    bench: Bench,
    node: Arc<MemoryNode>,
    nvme: Arc<Nvme>,
    heard: Heard,
    /// Tail of submissions, number of completions: of the admin queues, of the others.
    at: [(u64, u64); 2],
}

/// A completion: its first dword, its status without the phase bit, the command's identifier.
type Said = (u32, u16, u16);

impl Guest {
    fn new() -> Guest {
        let bench = Bench::new();
        bench.router.set_chip(Arc::new(Recorder::default())).unwrap();
        let ram = Arc::new(HostMem::anonymous(RAM, PageSize::Small).unwrap());
        let region = Region::whole("ram", RAM, PRIORITY_PLATFORM, Backing::Ram(ram.slice()));
        bench.memory.update(|layout| layout.add(Space::Mmio, 0, region)).unwrap();
        let node = Arc::new(MemoryNode::new((0..=255u8).flat_map(|block| [block; 512]).collect()));
        let (tell, heard) = listener();
        let disk = Disk::new("ns1".into(), Drive::own(node.clone()), OPTIONS, tell);
        let bus = NvmeBus::new(&"nvme0".into());
        Namespace::new(disk, 512, (7, [0; 16]), None, &bus).attach().unwrap();
        let cx = bench.cx("nvme0", &Arc::new(Backends::default()));
        let nvme = Nvme::new(&cx, Options { serial: "LAB-9".into(), pairs: 2 }, bus).unwrap();
        bench.plug(nvme.clone(), "2");
        for (off, value) in [(0x10, REGISTERS as u32), (0x14, 0), (0x20, MSIX), (0x04, 6)] {
            bench.write(0, "2", off, value, 4);
        }
        Guest { bench, node, nvme, heard, at: [(0, 0); 2] }
    }

    fn write(&self, addr: u64, value: u64, len: usize) {
        self.bench.memory.write(Space::Mmio, addr, &value.to_le_bytes()[..len]);
    }

    fn read(&self, addr: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.bench.memory.read(Space::Mmio, addr, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.bench.memory.read(Space::Mmio, addr, &mut data);
        data
    }

    /// Switches the controller on, and makes a pair of queues.
    fn start(&mut self) {
        self.bench.memory.write(Space::Mmio, ADMIN.1, &[0; 64]);
        self.bench.memory.write(Space::Mmio, IO.1, &[0; 64]);
        self.at = [(0, 0); 2];
        self.write(REGISTERS + 0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1), 4);
        self.write(REGISTERS + 0x28, ADMIN.0, 8);
        self.write(REGISTERS + 0x30, ADMIN.1, 8);
        self.write(REGISTERS + 0x14, 0x0046_0001, 4);
        assert_eq!(self.read(REGISTERS + 0x1c, 4), 1);
        assert_eq!(self.command(0, 0x05, 0, IO.1, 0, [(ENTRIES as u32 - 1) << 16 | 1, 3, 0]).1, 0);
        assert_eq!(self.command(0, 0x01, 0, IO.0, 0, [(ENTRIES as u32 - 1) << 16 | 1, 1 << 16 | 1, 0]).1, 0);
    }

    /// Puts a command into a queue and rings its doorbell.
    fn submit(&mut self, queue: usize, opcode: u8, nsid: u32, prp: u64, prp2: u64, dwords: [u32; 3]) {
        let (tail, done) = self.at[queue];
        let at = [ADMIN, IO][queue].0 + 64 * (tail % ENTRIES);
        self.write(at, u64::from(opcode) | 0x77 << 16 | u64::from(nsid) << 32, 8);
        self.write(at + 24, prp, 8);
        self.write(at + 32, prp2, 8);
        for (index, dword) in (0..).zip(dwords) {
            self.write(at + 40 + 4 * index, dword.into(), 4);
        }
        self.at[queue] = (tail + 1, done);
        self.write(REGISTERS + 0x1000 + 8 * queue as u64, (tail + 1) % ENTRIES, 4);
    }

    /// Waits for the next completion and takes it.
    fn completed(&mut self, queue: usize) -> Said {
        let (tail, done) = self.at[queue];
        let at = [ADMIN, IO][queue].1 + 16 * (done % ENTRIES);
        let phase = 1 - done / ENTRIES % 2;
        let give_up = Instant::now() + Duration::from_secs(60);
        while self.read(at + 14, 2) & 1 != phase {
            assert!(Instant::now() < give_up, "nothing happens");
            std::thread::yield_now();
        }
        self.at[queue] = (tail, done + 1);
        let said = (self.read(at, 4) as u32, (self.read(at + 14, 2) >> 1) as u16, self.read(at + 12, 2) as u16);
        self.write(REGISTERS + 0x1004 + 8 * queue as u64, (done + 1) % ENTRIES, 4);
        said
    }

    fn command(&mut self, queue: usize, opcode: u8, nsid: u32, prp: u64, prp2: u64, dwords: [u32; 3]) -> Said {
        self.submit(queue, opcode, nsid, prp, prp2, dwords);
        self.completed(queue)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.nvme.unplug();
    }
}

#[test]
fn a_controller_says_what_it_is() {
    let mut guest = Guest::new();
    guest.start();
    assert_eq!(guest.command(0, 0x06, 0, DATA, 0, [1, 0, 0]), (0, 0, 0x77));
    assert_eq!(guest.bytes(DATA + 4, 20), b"LAB-9               ");
    assert_eq!((guest.read(DATA + 77, 1), guest.read(DATA + 516, 4), guest.read(DATA + 520, 2)), (7, 256, 0xc));
    // In two pages.
    assert_eq!(guest.command(0, 0x06, 1, DATA + 0x800, DATA + 0x2000, [0, 0, 0]).1, 0);
    assert_eq!((guest.read(DATA + 0x800, 8), guest.read(DATA + 0x800 + 130, 1)), (256, 9));
    assert_eq!(guest.command(0, 0x06, 0, DATA, 0, [2, 0, 0]).1, 0);
    assert_eq!(guest.read(DATA, 8), 1);
    assert_eq!(guest.command(0, 0x06, 1, DATA, 0, [3, 0, 0]).1, 0);
    assert_eq!(guest.bytes(DATA, 12), [1, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    assert_eq!(guest.command(0, 0x02, u32::MAX, DATA, 0, [127 << 16 | 2, 0, 0]).1, 0);
    assert_eq!(guest.command(0, 0x0a, 0, 0, 0, [7, 0, 0]), (0x1_0001, 0, 0x77));
    for (opcode, dwords, status) in [
        (0xff, [0, 0, 0], 0x4001),
        (0x06, [0x99, 0, 0], 0x4002),
        (0x02, [127 << 16 | 0x99, 0, 0], 0x4109),
        (0x05, [3 << 16 | 1, 3, 0], 0x4101),
        (0x05, [3 << 16 | 3, 3, 0], 0x4101),
        (0x05, [3 << 16 | 2, 9 << 16 | 3, 0], 0x4108),
        (0x01, [3 << 16 | 2, 2 << 16 | 1, 0], 0x4100),
        (0x04, [1, 0, 0], 0x410c),
    ] {
        assert_eq!(guest.command(0, opcode, 0, 0, 0, dwords).1, status, "{opcode:#x} {dwords:x?}");
    }
}

#[test]
fn blocks_are_read_written_and_given_back() {
    let mut guest = Guest::new();
    guest.start();
    assert_eq!(guest.command(1, 2, 1, DATA, 0, [5, 0, 1]), (0, 0, 0x77));
    assert_eq!([guest.read(DATA, 1), guest.read(DATA + 1023, 1)], [5, 6]);
    guest.bench.memory.write(Space::Mmio, DATA, &[0xaa; 512]);
    assert_eq!(guest.command(1, 1, 1, DATA, 0, [7, 0, 1 << 30]).1, 0);
    assert_eq!(guest.node.bytes()[7 * 512..8 * 512], [0xaa; 512]);
    assert_eq!(guest.command(1, 8, 1, 0, 0, [7, 0, 0]).1, 0);
    assert_eq!(guest.node.bytes()[7 * 512..8 * 512], [0; 512]);
    guest.bench.memory.write(Space::Mmio, DATA, &[0, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.command(1, 9, 1, DATA, 0, [0, 4, 0]).1, 0);
    assert_eq!(guest.node.bytes()[9 * 512..10 * 512], [0; 512]);
    assert_eq!(guest.command(1, 0, u32::MAX, 0, 0, [0; 3]).1, 0);
    for (opcode, nsid, prp, dwords, status) in [
        (2, 1, DATA, [256, 0, 0], 0x4080),
        (2, 1, DATA, [u32::MAX, u32::MAX, 0], 0x4080),
        (2, 2, DATA, [0, 0, 0], 0x400b),
        (2, 1, RAM, [0, 0, 0], 0x0004),
        (2, 1, DATA, [0, 0, 0xffff], 0x4080),
        (0x55, 1, DATA, [0, 0, 0], 0x4001),
    ] {
        assert_eq!(guest.command(1, opcode, nsid, prp, 0, dwords).1, status, "{opcode:#x} {dwords:x?}");
    }
    guest.node.bad_from(0);
    assert_eq!(guest.command(1, 2, 1, DATA, 0, [0, 0, 0]).1, 0x4281);
}

#[test]
fn a_full_disk_keeps_the_command_until_the_machine_goes_on() {
    let mut guest = Guest::new();
    guest.start();
    guest.node.full_after(0);
    guest.submit(1, 1, 1, DATA, 0, [0, 0, 0]);
    let give_up = Instant::now() + Duration::from_secs(60);
    while guest.heard.lock().is_empty() {
        assert!(Instant::now() < give_up, "nothing happens");
        std::thread::yield_now();
    }
    assert_eq!(guest.heard.lock()[0], (true, "stop"));
    guest.node.full_after(u64::MAX);
    guest.nvme.resumed();
    assert_eq!(guest.completed(1).1, 0);
}

#[test]
fn shadow_doorbells_are_heard_and_a_stop_forgets_everything() {
    let mut guest = Guest::new();
    guest.start();
    let (doorbells, events) = (0x8000, 0x9000);
    assert_eq!(guest.command(0, 0x7c, 0, doorbells, events, [0; 3]).1, 0);
    let (tail, _) = guest.at[1];
    guest.write(doorbells + 8, tail + 1, 4);
    guest.submit(1, 2, 1, DATA, 0, [5, 0, 0]);
    assert_eq!(guest.completed(1).1, 0);
    assert_eq!(guest.read(DATA, 1), 5);
    guest.write(REGISTERS + 0x14, 0x0046_4001, 4);
    assert_eq!(guest.read(REGISTERS + 0x1c, 4), 9);
    guest.write(REGISTERS + 0x14, 0, 4);
    assert_eq!(guest.read(REGISTERS + 0x1c, 4), 0);
    guest.start();
    assert_eq!(guest.command(1, 2, 1, DATA, 0, [6, 0, 0]).1, 0);
}

#[test]
fn nothing_is_touched_without_bus_mastering() {
    let mut guest = Guest::new();
    guest.start();
    guest.bench.write(0, "2", 4, 2, 2);
    guest.submit(1, 2, 1, DATA, 0, [5, 0, 0]);
    assert_eq!(guest.read(IO.1 + 14, 2), 0);
    guest.bench.write(0, "2", 4, 6, 2);
    assert_eq!(guest.completed(1).1, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// Whatever a driver writes into registers and queues, the controller can be switched off and on again.
    #[test]
    fn any_driver_is_survived(
        steps in prop::collection::vec((0u8..4, 0u64..0x1040, any::<u32>(), 0u64..0x12000), 1..60),
    ) {
        let mut guest = Guest::new();
        guest.start();
        for (kind, register, value, at) in steps {
            match kind {
                0 => guest.write(REGISTERS + register, value.into(), 4),
                1 => guest.write(at, value.into(), 4),
                2 => guest.write(REGISTERS + 0x1000 + u64::from(value % 6) * 4, at % ENTRIES, 4),
                _ => { guest.read(REGISTERS + register, 4); }
            }
        }
        guest.write(REGISTERS + 0x14, 0, 4);
        guest.start();
        prop_assert_eq!(guest.node.bytes().len(), 256 * 512);
    }
}
