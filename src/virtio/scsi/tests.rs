use std::sync::Arc;

use super::*;
use crate::backends::block::testing::MemoryNode;
use crate::device::Unit;
use crate::devices::disk::testing::{OPTIONS, listener};
use crate::devices::disk::{Disk, Drive};
use crate::scsi::testing::{cd, disk};
use crate::virtio::pci::PciOptions;
use crate::virtio::testing::{Buffer, CONFIG, Driver};

const SHAPE: Shape =
    Shape { queues: 1, queue_size: 256, max_sectors: 65535, cmd_per_lun: 128, hotplug: true, change: true };
const HEADER: u64 = 0x20000;
const RESPONSE: u64 = 0x20100;
const DATA: u64 = 0x21000;
const HEAD: u32 = 19 + 32;
const TAIL: u32 = 12 + 96;

struct Bench {
    driver: Driver,
    bus: Arc<ScsiBus>,
    node: Arc<MemoryNode>,
}

/// An adapter with a disk of 64 sectors, whose bytes are their sectors' numbers, at 0:0.
fn bench() -> Bench {
    let bus = ScsiBus::new(&"scsi0.0".into(), true);
    let node = Arc::new(MemoryNode::new((0..64u8).flat_map(|sector| [sector; 512]).collect()));
    let own = Disk::new("disk0".into(), Drive::own(node.clone()), OPTIONS, listener().0);
    disk(own, &bus).attach().unwrap();
    let scsi = Scsi::new("scsi0".into(), SHAPE, bus.clone(), None).unwrap();
    let mut driver = Driver::new(scsi, &PciOptions::default());
    driver.start(feature::HOTPLUG);
    Bench { driver, bus, node }
}

/// Virtio's response, the unit's status, residual bytes, sense key and code.
type Said = (u8, u8, u32, (u8, u8));

impl Bench {
    fn header(&self, lun: [u8; 4], cdb: &[u8]) {
        self.driver.put(HEADER, &[0; HEAD as usize]);
        self.driver.put(HEADER, &lun);
        self.driver.put(HEADER + 19, cdb);
        self.driver.put(RESPONSE, &[0xee; TAIL as usize]);
    }

    fn command(&mut self, lun: [u8; 4], cdb: &[u8], out: &[Buffer], into: &[Buffer]) -> Said {
        self.header(lun, cdb);
        let buffers: Vec<Buffer> = [&[(HEADER, HEAD, false)], out, &[(RESPONSE, TAIL, true)], into].concat();
        self.driver.request(2, &buffers);
        self.said()
    }

    fn said(&self) -> Said {
        let said = self.driver.bytes(RESPONSE, TAIL as usize);
        let sense = if said[0] == 0 { (0, 0) } else { (said[12 + 2] & 0xf, said[12 + 12]) };
        (said[11], said[10], u32::from_le_bytes(said[4..8].try_into().unwrap()), sense)
    }

    /// The first command after power-on is told of that.
    fn settle(&mut self) {
        assert_eq!(self.command([1, 0, 0x40, 0], &[0; 6], &[], &[]), (0, 2, 0, (6, 0x29)));
        assert_eq!(self.command([1, 0, 0x40, 0], &[0; 6], &[], &[]), (0, 0, 0, (0, 0)));
    }
}

#[test]
fn commands_reach_their_unit() {
    let mut bench = bench();
    assert_eq!(bench.driver.read(CONFIG, 4), 1);
    assert_eq!(bench.driver.read(CONFIG + 20, 4), 96);
    bench.settle();
    let at = [1, 0, 0x40, 0];
    assert_eq!(bench.command(at, &[0x28, 0, 0, 0, 0, 5, 0, 0, 2, 0], &[], &[(DATA, 1024, true)]), (0, 0, 0, (0, 0)));
    assert_eq!([bench.driver.read(DATA, 1), bench.driver.read(DATA + 1023, 1)], [5, 6]);
    bench.driver.put(DATA, &[0xaa; 512]);
    assert_eq!(bench.command(at, &[0x2a, 0, 0, 0, 0, 7, 0, 0, 1, 0], &[(DATA, 512, false)], &[]).1, 0);
    assert_eq!(bench.node.bytes()[7 * 512..8 * 512], [0xaa; 512]);
    // More room than the command uses; less than it needs; nobody there; no unit of the target; both ways.
    let read = [0x28, 0, 0, 0, 0, 5, 0, 0, 1, 0];
    assert_eq!(bench.command(at, &read, &[], &[(DATA, 1024, true)]), (0, 0, 512, (0, 0)));
    assert_eq!(bench.command(at, &read, &[], &[(DATA, 511, true)]).0, 1);
    assert_eq!(bench.command([1, 1, 0x40, 0], &read, &[], &[(DATA, 512, true)]).0, 3);
    assert_eq!(bench.command([2, 0, 0x40, 0], &read, &[], &[(DATA, 512, true)]).0, 3);
    assert_eq!(bench.command([1, 0, 0x40, 1], &read, &[], &[(DATA, 512, true)]), (0, 2, 512, (5, 0x25)));
    assert_eq!(bench.command(at, &read, &[(DATA, 8, false)], &[(DATA, 512, true)]).0, 9);
    // Beyond the end; an unknown command.
    assert_eq!(bench.command(at, &[0x28, 0, 0, 0, 0, 64, 0, 0, 1, 0], &[], &[(DATA, 512, true)]).3, (5, 0x21));
    assert_eq!(bench.command(at, &[0xff], &[], &[]).3, (5, 0x20));
}

#[test]
fn a_full_disk_keeps_a_command_and_what_would_abort_it() {
    let mut bench = bench();
    bench.settle();
    bench.node.full_after(0);
    bench.header([1, 0, 0x40, 0], &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    let head = bench.driver.submit(2, &[(HEADER, HEAD, false), (DATA, 512, false), (RESPONSE, TAIL, true)]);
    bench.driver.kick(2);
    bench.driver.put(0x22000, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let abort = bench.driver.submit(0, &[(0x22000, 24, false), (0x22100, 1, true)]);
    bench.driver.kick(0);
    bench.node.full_after(u64::MAX);
    // Whether the abort or the worker had it done: both are answered, the command before the abort.
    crate::device::Device::resumed(&*bench.driver.function);
    assert_eq!((bench.driver.used(0).0, bench.driver.read(0x22100, 1)), (abort, 0));
    assert_eq!((bench.driver.used_index(2) as u16, bench.said().1), (3, 0));
    assert_eq!(bench.driver.used(2).0, head);
}

#[test]
fn units_that_come_and_go_are_told_and_missed_ones_too() {
    let mut bench = bench();
    bench.settle();
    let event = |bench: &mut Bench, at: u64| {
        bench.driver.submit(1, &[(at, 16, true)]);
        bench.driver.kick(1);
        bench.driver.used(1);
        bench.driver.bytes(at, 16)
    };
    let node = Arc::new(MemoryNode::new(vec![0; 4096]));
    let own = Disk::new("cd0".into(), Drive::own(node), OPTIONS, listener().0);
    let unit = cd(own, &bench.bus);
    unit.clone().attach().unwrap();
    assert_eq!(unit.addr(), "0:1:0");
    assert_eq!(event(&mut bench, DATA), [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    unit.detach();
    assert_eq!(event(&mut bench, DATA), [1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    for _ in 0..33 {
        bench.events_twice(&unit);
    }
    let first = event(&mut bench, DATA);
    assert_eq!(first[..4], [1, 0, 0, 0x80], "some are missing");
}

impl Bench {
    fn events_twice(&self, unit: &Arc<crate::scsi::testing::Unit>) {
        unit.clone().attach().unwrap();
        unit.detach();
    }
}

#[test]
fn what_is_no_request_breaks_the_queue() {
    for buffers in [
        &[(HEADER, HEAD - 1, false), (RESPONSE, TAIL, true)][..],
        &[(HEADER, HEAD, false)],
        &[(HEADER, HEAD, false), (RESPONSE, TAIL - 1, true)],
    ] {
        let mut bench = bench();
        bench.driver.submit(2, buffers);
        bench.driver.kick(2);
        bench.driver.until(|driver| driver.status() == 0x4f);
    }
}
