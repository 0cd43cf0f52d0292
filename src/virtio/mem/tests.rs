use std::sync::Arc;

use super::*;
use crate::backends::table::Table;
use crate::memory::host::PageSize;
use crate::memory::room::Room;
use crate::memory::{FlatRange, MemoryListener, Stage};
use crate::object::Kind;
use crate::pci::testing::Bench;
use crate::virtio::VirtioDevice;
use crate::virtio::pci::PciOptions;
use crate::virtio::testing::{CONFIG, Driver};

const REQUEST: u64 = 0x20000;
const ANSWER: u64 = REQUEST + 0x100;
const BASE: u64 = 4 << 30;
const BLOCK: u64 = 2 << 20;
const BLOCKS: u64 = 8;

struct Machine {
    driver: Driver,
    device: Arc<VirtioMem>,
    told: Arc<Mutex<Vec<Word>>>,
}

/// Refuses memory at one address, and notes whether it is told what is at once.
#[derive(Default)]
struct Refuses {
    at: AtomicU64,
    at_once: AtomicBool,
    seen: Mutex<Vec<(u64, bool)>>,
}

impl MemoryListener for Refuses {
    fn remove(&self, _: &FlatRange) {}

    fn add(&self, range: &FlatRange) -> Result<()> {
        if range.start >= BASE {
            self.seen.lock().push((range.start, self.at_once.load(Ordering::Relaxed)));
        }
        match range.start == self.at.load(Ordering::Relaxed) {
            true => Err(Error::new(Code::DeviceFailed, "refused")),
            false => Ok(()),
        }
    }

    fn at_once(&self, on: bool) {
        self.at_once.store(on, Ordering::Relaxed);
    }
}

fn machine(requested: u64) -> Machine {
    let bench = Bench::new();
    let table: Arc<Table<HostMem>> = Table::new(Kind::Object);
    let backend = Arc::new(HostMem::memfd("m0", BLOCKS * BLOCK, PageSize::Small).unwrap());
    table.add("m0".into(), "memory-backend-memfd", backend, false).unwrap();
    let part = Room::new(BASE..BASE + (1 << 30)).take(BLOCKS * BLOCK, BLOCK, None).unwrap();
    let told: Arc<Mutex<Vec<Word>>> = Arc::default();
    let words = told.clone();
    let tell: Tell = Arc::new(move |_, word| words.lock().push(word));
    let parameters = Parameters { block_size: BLOCK, node: 1, requested };
    let claim = table.claim("m0", "vm0").unwrap();
    let device = VirtioMem::new("vm0".into(), &parameters, part, claim, bench.memory.clone(), tell);
    let mut driver = Driver::on(bench, device.clone(), &PciOptions::default());
    assert_eq!(driver.offered() & 0xff, UNPLUGGED_INACCESSIBLE);
    driver.start(UNPLUGGED_INACCESSIBLE);
    Machine { driver, device, told }
}

impl Machine {
    /// The answer and what the blocks are.
    fn ask(&mut self, request: u16, block: u64, count: u16) -> (u16, u16) {
        let mut bytes = [0; 24];
        bytes[..2].copy_from_slice(&request.to_le_bytes());
        bytes[8..16].copy_from_slice(&(BASE + block * BLOCK).to_le_bytes());
        bytes[16..18].copy_from_slice(&count.to_le_bytes());
        self.driver.put(REQUEST, &bytes);
        assert_eq!(self.driver.request(0, &[(REQUEST, 24, false), (ANSWER, 10, true)]), 10);
        (self.driver.read(ANSWER, 2) as u16, self.driver.read(ANSWER + 8, 2) as u16)
    }

    fn config(&self, word: u64) -> u64 {
        self.driver.read(CONFIG + 8 * word, 8)
    }
}

const PLUG: u16 = 0;
const UNPLUG: u16 = 1;
const UNPLUG_ALL: u16 = 2;
const STATE: u16 = 3;
const ACK: u16 = 0;
const NACK: u16 = 1;
const ERROR: u16 = 3;

#[test]
fn a_guest_gets_what_is_wanted_and_gives_it_back() {
    let mut machine = machine(4 * BLOCK);
    assert_eq!(
        [0, 1, 2, 3, 4, 5, 6].map(|word| machine.config(word)),
        [BLOCK, 1, BASE, BLOCKS * BLOCK, BLOCKS * BLOCK, 0, 4 * BLOCK]
    );
    // There is nothing before it is plugged, and memory of zeros afterwards.
    assert_eq!(machine.driver.read(BASE + BLOCK, 8), u64::MAX);
    assert_eq!(machine.ask(PLUG, 1, 2), (ACK, 0));
    assert_eq!(machine.driver.read(BASE + BLOCK, 8), 0);
    machine.driver.put(BASE + 3 * BLOCK - 4, b"kept");
    assert_eq!(machine.driver.bytes(BASE + 3 * BLOCK - 4, 4), b"kept");
    assert_eq!((machine.config(5), machine.told.lock().len()), (2 * BLOCK, 1));
    for (request, block, count, expected) in [
        (STATE, 1, 2, (ACK, 0)),
        (STATE, 3, 5, (ACK, 1)),
        (STATE, 0, 2, (ACK, 2)),
        (STATE, 7, 2, (ERROR, 0)),
        (PLUG, 2, 1, (ERROR, 0)),
        (PLUG, 8, 1, (ERROR, 0)),
        (PLUG, 3, 0, (ERROR, 0)),
        // More than is wanted.
        (PLUG, 3, 3, (NACK, 0)),
        (UNPLUG, 0, 2, (ERROR, 0)),
        (7, 1, 1, (ERROR, 0)),
        (UNPLUG, 2, 1, (ACK, 0)),
    ] {
        assert_eq!(machine.ask(request, block, count), expected, "{request} {block} {count}");
    }
    assert_eq!(machine.driver.read(BASE + 2 * BLOCK, 8), u64::MAX);
    assert_eq!(machine.driver.read(BASE + BLOCK, 8), 0);
    // What comes back is empty.
    assert_eq!(machine.ask(PLUG, 2, 1), (ACK, 0));
    assert_eq!(machine.driver.bytes(BASE + 3 * BLOCK - 4, 4), [0; 4]);
    assert_eq!(machine.ask(UNPLUG_ALL, 0, 0), (ACK, 0));
    assert_eq!((machine.config(5), machine.driver.read(BASE + BLOCK, 8)), (0, u64::MAX));
}

#[test]
fn buffers_may_lie_in_plugged_memory_and_nowhere_else() {
    let mut machine = machine(BLOCKS * BLOCK);
    machine.ask(PLUG, 0, 1);
    machine.driver.put(BASE, &machine.driver.bytes(REQUEST, 24));
    machine.driver.write(BASE, STATE.into(), 2);
    assert_eq!(machine.driver.request(0, &[(BASE, 24, false), (BASE + 0x100, 10, true)]), 10);
    assert_eq!(machine.driver.read(BASE + 0x100, 2), 0);
    machine.driver.submit(0, &[(BASE + BLOCK, 24, false), (ANSWER, 10, true)]);
    machine.driver.kick(0);
    machine.driver.until(|driver| driver.status() & 0x40 != 0);
}

#[test]
fn a_malformed_request_breaks_the_queue() {
    for buffers in [[(REQUEST, 23, false), (ANSWER, 10, true)], [(REQUEST, 24, false), (ANSWER, 9, true)]] {
        let mut machine = machine(BLOCK);
        machine.driver.submit(0, &buffers);
        machine.driver.kick(0);
        machine.driver.until(|driver| driver.status() & 0x40 != 0);
        assert_eq!(machine.config(5), 0);
    }
}

#[test]
fn what_an_iommu_refuses_does_not_come_and_what_comes_is_mapped_at_once() {
    let mut machine = machine(BLOCKS * BLOCK);
    let refuses = Arc::new(Refuses { at: AtomicU64::new(u64::MAX), ..Refuses::default() });
    let memory = machine.driver.bench.memory.clone();
    let _listening = memory.listen(Stage::Dma, refuses.clone()).unwrap();
    refuses.at.store(BASE + 2 * BLOCK, Ordering::Relaxed);
    assert_eq!(machine.ask(PLUG, 1, 3), (NACK, 0));
    assert_eq!((machine.config(5), machine.driver.read(BASE + BLOCK, 8)), (0, u64::MAX));
    assert_eq!(machine.ask(PLUG, 0, 2), (ACK, 0));
    assert!(refuses.seen.lock().iter().all(|(_, at_once)| *at_once));
    assert!(!refuses.at_once.load(Ordering::Relaxed));
}

#[test]
fn the_monitor_says_how_much_and_a_restart_takes_all_back() {
    let mut machine = machine(0);
    machine.driver.enable_msix();
    assert_eq!(machine.ask(PLUG, 0, 1), (NACK, 0));
    for wrong in [BLOCK + 1, (BLOCKS + 1) * BLOCK] {
        assert_eq!(machine.device.request(wrong).unwrap_err().code(), Code::BadProperty);
    }
    machine.device.request(2 * BLOCK).unwrap();
    assert_eq!((machine.config(6), machine.ask(PLUG, 0, 2)), (2 * BLOCK, (ACK, 0)));
    assert_eq!(machine.device.plugged(), 2 * BLOCK);
    // Less than the guest has: it gives the rest back when it can, and gets no more.
    machine.device.request(0).unwrap();
    assert_eq!(machine.device.plugged(), 2 * BLOCK);
    assert_eq!(machine.ask(PLUG, 2, 1), (NACK, 0));
    // A driver that begins anew finds what is plugged; a machine that does, does not.
    machine.driver.start(UNPLUGGED_INACCESSIBLE);
    assert_eq!(machine.config(5), 2 * BLOCK);
    machine.device.power_on();
    assert_eq!((machine.config(5), machine.driver.read(BASE, 8)), (0, u64::MAX));
}
