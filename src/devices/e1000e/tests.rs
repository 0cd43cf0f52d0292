use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use vm_memory::{Bytes, GuestAddress};

use super::function::{E1000e, Ids};
use super::regs::*;
use crate::backends::Backends;
use crate::backends::net::testing::queue_pair;
use crate::backends::net::{HEADER, MAX_PACKET, NetQueue, Netdev, Offloads};
use crate::device::Device;
use crate::memory::host::PageSize;
use crate::memory::ram::GuestRam;
use crate::memory::{Backing, HostMem, PRIORITY_PLATFORM, Region, Space};
use crate::pci::testing::Bench;

const BAR: u64 = 0xe000_0000;
/// Where the driver has its rings and buffers.
const TX: u64 = 0x1000;
const RX: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// A back end whose other end is the test's.
struct Fake(Vec<Arc<dyn NetQueue>>);

impl Netdev for Fake {
    fn pairs(&self) -> &[Arc<dyn NetQueue>] {
        &self.0
    }
    fn offloads(&self) -> Offloads {
        Offloads::all()
    }
    fn set_offloads(&self, on: Offloads) -> io::Result<()> {
        assert_eq!(on, Offloads::empty());
        Ok(())
    }
    fn set_pairs(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn place(&self) -> String {
        "fake".into()
    }
}

/// A machine with the controller, and its driver.
struct Driver {
    bench: Bench,
    device: Arc<E1000e>,
    wire: UnixDatagram,
}

impl Driver {
    fn new() -> Driver {
        let bench = Bench::new();
        let ram = Arc::new(HostMem::anonymous(1 << 20, PageSize::Small).unwrap());
        let region = Region::whole("ram", 1 << 20, PRIORITY_PLATFORM, Backing::Ram(ram.slice()));
        bench.memory.update(|map| map.add(Space::Mmio, 0, region)).unwrap();
        let (queue, wire) = queue_pair();
        let backends = Arc::new(Backends::default());
        backends.netdevs.add("n0".into(), "tap", Arc::new(Fake(vec![queue])), false).unwrap();
        let claim = backends.netdevs.claim("n0", "nic0").unwrap();
        let ids = Ids { subsystem_vendor: 0x8086, subsystem: 0 };
        let device = E1000e::new(&bench.cx("nic0", &backends), claim, MAC, ids).unwrap();
        device.reset();
        bench.plug(device.clone(), "3");
        bench.enable(0, "3", 0, BAR as u32, 6);
        let driver = Driver { bench, device, wire };
        for (ring, base) in [(TX_RING, TX), (RX_RING, RX)] {
            driver.write(ring + BASE_LOW, base as u32);
            driver.write(ring + LENGTH, 256);
        }
        driver
    }

    fn write(&self, register: u32, value: u32) {
        self.bench.memory.write(Space::Mmio, BAR + u64::from(register), &value.to_le_bytes());
    }

    fn read(&self, register: u32) -> u32 {
        let mut bytes = [0; 4];
        self.bench.memory.read(Space::Mmio, BAR + u64::from(register), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.bench.memory.write(Space::Mmio, at, bytes);
    }

    fn descriptor(&self, at: u64, dwords: [u32; 4]) {
        dwords.iter().zip(0u64..).for_each(|(dword, index)| self.put(at + 4 * index, &dword.to_le_bytes()));
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let ram = GuestRam::of(&self.bench.memory.view(Space::Mmio)).unwrap();
        let mut bytes = vec![0; len];
        ram.memory().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn dword(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.get(at, 4).try_into().unwrap())
    }

    /// The next frame on the wire, without its header.
    fn frame(&self) -> Vec<u8> {
        let mut bytes = vec![0; MAX_PACKET];
        let len = self.wire.recv(&mut bytes).unwrap();
        assert_eq!(bytes[..HEADER], [0; HEADER]);
        bytes[HEADER..len].to_vec()
    }

    fn arrive(&self, frame: &[u8]) {
        self.wire.send(&[&[0; HEADER], frame].concat()).unwrap();
    }

    fn until(&self, mut what: impl FnMut(&Driver) -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !what(self) {
            assert!(Instant::now() < end, "it did not come");
            thread::yield_now();
        }
    }
}

#[test]
fn packets_go_by_both_kinds_of_descriptors() {
    let driver = Driver::new();
    driver.write(TCTL, TCTL_ENABLE | 1 << 3);
    driver.put(BUFFERS, &[7; 100]);
    // Two legacy descriptors, a checksum of what is behind byte 20 at 30.
    driver.descriptor(TX, [BUFFERS as u32, 0, 40, 0]);
    driver.descriptor(TX + 16, [BUFFERS as u32, 0, 60 | 30 << 16 | 0xd << 24, 20 << 8]);
    driver.write(TX_RING + TAIL, 2);
    let frame = driver.frame();
    assert_eq!((frame.len(), &frame[..30], &frame[32..]), (100, &[7; 30][..], &[7; 68][..]));
    let sum: u32 = frame[20..].chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
    // With what was there before in the place of the checksum, which is part of it.
    let before = 40 * 0x0707;
    assert_eq!(((sum - u32::from(frame[30]) * 256 - u32::from(frame[31])) + 0x0707) % 0xffff, before % 0xffff);
    driver.until(|it| it.read(TX_RING + HEAD) == 2);
    assert_eq!(driver.dword(TX + 28) & 1, 1);
    assert_ne!(driver.read(ICR) & CAUSE_TXDW, 0);
    // A tag, and what is too short is filled up.
    driver.write(VET, 0x8100);
    driver.write(CTRL, driver.read(CTRL) | CTRL_VLAN);
    driver.descriptor(TX + 32, [BUFFERS as u32, 0, 20 | 1 << 20 | 0x69 << 24, 0x2005 << 16]);
    driver.write(TX_RING + TAIL, 3);
    let frame = driver.frame();
    assert_eq!((frame.len(), &frame[12..16], frame[16]), (60, &[0x81, 0, 0x20, 5][..], 7));
    assert_eq!((driver.read(0x4080), driver.read(0x4090)), (2, 168));
    driver.device.unplug();
}

#[test]
fn long_segments_are_cut() {
    let driver = Driver::new();
    driver.write(TCTL, TCTL_ENABLE);
    driver.put(BUFFERS, &(0..=255).cycle().take(54 + 2500).collect::<Vec<u8>>());
    let context = [33 << 16 | 24 << 8 | 14, 50 << 8 | 34, 0x27 << 24 | 2500, 1000 << 16 | 54 << 8];
    driver.descriptor(TX, context);
    driver.descriptor(TX + 16, [BUFFERS as u32, 0, 54 | 1 << 20 | 0x24 << 24, 3 << 8]);
    driver.descriptor(TX + 32, [BUFFERS as u32 + 54, 0, 2500 | 1 << 20 | 0x2d << 24, 3 << 8]);
    driver.write(TX_RING + TAIL, 3);
    let frames = [driver.frame(), driver.frame(), driver.frame()];
    assert_eq!(frames.each_ref().map(Vec::len), [1054, 1054, 554]);
    let payload: Vec<u8> = frames.iter().flat_map(|frame| frame[54..].to_vec()).collect();
    assert_eq!(payload, driver.get(BUFFERS + 54, 2500));
    driver.device.unplug();
}

#[test]
fn packets_come_into_every_kind_of_descriptor() {
    let frame: Vec<u8> = MAC.into_iter().chain([2; 6]).chain([8, 0]).chain((0..).take(186)).collect();
    for (rfctl, rctl, status, length) in [
        (0, 0, (RX + 12, 0x07), RX + 8),
        (RFCTL_EXTENDED, 0, (RX + 8, 0x07), RX + 12),
        (RFCTL_EXTENDED, RCTL_SPLIT, (RX + 8, 0x07), RX + 12),
    ] {
        let driver = Driver::new();
        driver.write(RFCTL, rfctl);
        driver.write(PSRCTL, 4 << 8 | 1);
        for at in [0, 8, 16, 24] {
            driver.put(RX + at, &(BUFFERS + 0x100 * at).to_le_bytes());
        }
        // It waits until there is a descriptor for it.
        driver.arrive(&frame);
        driver.write(RCTL, RCTL_ENABLE | RCTL_STRIP | rctl);
        driver.write(RX_RING + TAIL, 2);
        driver.until(|it| it.dword(status.0) & 1 != 0);
        assert_eq!(driver.dword(status.0) & 0xff, status.1);
        let bytes = match rctl {
            0 => {
                assert_eq!(driver.dword(length) & 0xffff, 200);
                driver.get(BUFFERS, 200)
            }
            _ => {
                assert_eq!((driver.dword(length) & 0xffff, driver.dword(RX + 16) >> 16), (128, 72));
                [driver.get(BUFFERS, 128), driver.get(BUFFERS + 0x800, 72)].concat()
            }
        };
        assert!(bytes == frame);
        driver.until(|it| it.read(RX_RING + HEAD) == if rctl == 0 { 1 } else { 2 });
        assert_ne!(driver.read(ICR) & CAUSE_RXT0, 0);
        driver.device.unplug();
    }
}

#[test]
fn packets_of_others_and_of_a_controller_that_was_reset_do_not_come() {
    let driver = Driver::new();
    driver.put(RX, &BUFFERS.to_le_bytes());
    driver.put(RX + 16, &BUFFERS.to_le_bytes());
    driver.write(RCTL, RCTL_ENABLE);
    driver.write(RX_RING + TAIL, 3);
    driver.arrive(&[0x52; 100]);
    let ours = [&MAC[..], &[9; 40]].concat();
    driver.arrive(&ours);
    driver.until(|it| it.dword(RX + 12) & 1 != 0);
    // Filled up, and with a check sequence.
    assert_eq!(driver.dword(RX + 8) & 0xffff, 64);
    assert_eq!(driver.get(BUFFERS, 46), ours);
    driver.write(CTRL, CTRL_RESET);
    assert_eq!([driver.read(RX_RING + TAIL), driver.read(RCTL), driver.read(0x4074)], [0; 3]);
    driver.arrive(&ours);
    driver.bench.write(0, "3", 4, 2, 2);
    assert_eq!(driver.dword(RX + 28), 0);
    drop(driver.wire.shutdown(std::net::Shutdown::Both));
    driver.device.unplug();
    driver.write(TX_RING + TAIL, 3);
}

#[test]
fn hostile_rings_do_no_harm() {
    let driver = Driver::new();
    driver.write(TCTL, TCTL_ENABLE);
    driver.write(RCTL, RCTL_ENABLE | RCTL_UNICAST);
    for base in [0xffff_fff0, 0xf_fff0, 0] {
        for ring in [TX_RING, TX_RING + RING, RX_RING] {
            driver.write(ring + BASE_LOW, base);
            driver.write(ring + LENGTH, u32::MAX);
            driver.write(ring + HEAD, 5);
            driver.write(ring + TAIL, 4);
        }
        driver.arrive(&[0; 100]);
    }
    driver.write(TX_RING + TAIL, u32::MAX);
    driver.device.reset();
    assert_eq!(driver.read(STATUS) & STATUS_LINK, STATUS_LINK);
    driver.device.unplug();
    driver.device.unplug();
}
