use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::command::MAX_CDB;
use super::testing::{cd, disk};
use super::*;
use crate::backends::block::testing::MemoryNode;
use crate::device::Unit;
use crate::devices::disk::testing::{OPTIONS, listener};
use crate::devices::disk::{Disk, Drive};
use crate::memory::Buffers;

const DISK: Address = Address { target: 0, lun: 0 };
const CD: Address = Address { target: 1, lun: 0 };
/// Where data for the units are, and where theirs go.
const OUT: u64 = 0;
const INTO: u64 = 0x8000;

struct Bench {
    bus: Arc<ScsiBus>,
    ram: GuestMemoryMmap,
    node: Arc<MemoryNode>,
}

/// A disk of 256 blocks at 0:0, a CD at 1:0, both past their first attention.
fn bench() -> Bench {
    let bus = ScsiBus::new(&"scsi0.0".into(), true);
    let node = Arc::new(MemoryNode::new((0..=255u8).flat_map(|sector| [sector; 512]).collect()));
    let own = |id: &str, node: &Arc<MemoryNode>| Disk::new(id.into(), Drive::own(node.clone()), OPTIONS, listener().0);
    disk(own("disk0", &node), &bus).attach().unwrap();
    cd(own("cd0", &Arc::new(MemoryNode::new(vec![3; 64 << 10]))), &bus).attach().unwrap();
    let bench = Bench { bus, ram: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap(), node };
    for at in [DISK, CD] {
        assert_eq!(bench.run(at, &[0], &[], 0).0, Answer::Check(Sense::RESET));
    }
    bench
}

impl Bench {
    fn run(&self, at: Address, command: &[u8], out: &[u8], room: u32) -> (Answer, Vec<u8>) {
        self.ram.write_slice(out, GuestAddress(OUT)).unwrap();
        let buffers = |from: u64, len: u32| {
            let mut buffers = Buffers::default();
            if len > 0 {
                buffers.push(&self.ram, from, len).unwrap();
            }
            buffers
        };
        let mut cdb = [0; MAX_CDB];
        cdb[..command.len()].copy_from_slice(command);
        let command = Command { cdb, out: buffers(OUT, out.len() as u32), into: buffers(INTO, room) };
        let answer = self.bus.execute(at, command).unwrap();
        let len = if let Answer::Good(len) = answer { (len as usize).min(room as usize) } else { 0 };
        let mut data = vec![0; len];
        self.ram.read_slice(&mut data, GuestAddress(INTO)).unwrap();
        (answer, data)
    }

    fn good(&self, at: Address, command: &[u8], room: u32) -> Vec<u8> {
        let (answer, data) = self.run(at, command, &[], room);
        assert!(matches!(answer, Answer::Good(_)), "{command:x?}: {answer:?}");
        data
    }
}

#[test]
fn a_unit_says_what_it_is() {
    let bench = bench();
    let standard = bench.good(DISK, &[0x12, 0, 0, 0, 255], 255);
    assert_eq!((standard.len(), standard[0], &standard[8..32]), (36, 0, &b"QEMU    QEMU HARDDISK   "[..]));
    assert_eq!(bench.good(DISK, &[0x12, 0, 0, 0, 5], 255).len(), 5);
    assert_eq!(bench.good(CD, &[0x12, 0, 0, 0, 36], 36)[..2], [5, 0x80]);
    let pages = bench.good(DISK, &[0x12, 1, 0, 0, 255], 255);
    assert_eq!(pages[4..], [0, 0x80, 0x83, 0xb0, 0xb1, 0xb2]);
    for page in &pages[4..] {
        let data = bench.good(DISK, &[0x12, 1, *page, 0, 255], 255);
        assert_eq!((data[1], usize::from(data[3])), (*page, data.len() - 4));
    }
    assert_eq!(bench.good(DISK, &[0x12, 1, 0x80, 0, 255], 255)[4..], *b"LAB-7");
    let limits = bench.good(DISK, &[0x12, 1, 0xb0, 0, 255], 255);
    assert_eq!((limits[4], &limits[20..24], &limits[28..32]), (1, &[0, 0x40, 0, 0][..], &[0, 0, 0, 1][..]));
    assert_eq!(bench.good(DISK, &[0x12, 1, 0xb2, 0, 255], 255)[5], 0xe0);
    for wrong in [&[0x12, 1, 0x84, 0, 255][..], &[0x12, 0, 0x80, 0, 255]] {
        assert_eq!(bench.run(DISK, wrong, &[], 255).0, Answer::Check(Sense::INVALID_FIELD));
    }
    assert_eq!(bench.good(Address { target: 0, lun: 9 }, &[0x12, 0, 0, 0, 36], 36)[0], 0x7f);
    assert!(
        bench
            .bus
            .execute(
                Address { target: 9, lun: 0 },
                Command { cdb: [0; MAX_CDB], out: Buffers::default(), into: Buffers::default() }
            )
            .is_none()
    );
}

#[test]
fn capacity_modes_and_units() {
    let bench = bench();
    assert_eq!(bench.good(DISK, &[0x25], 8), [0, 0, 0, 255, 0, 0, 2, 0]);
    let long = bench.good(DISK, &[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32], 32);
    assert_eq!((long[7], long[10], long[14]), (255, 2, 0x80));
    assert_eq!(bench.good(CD, &[0x25], 8), [0, 0, 0, 31, 0, 0, 8, 0]);
    // The write cache is on, can be switched, and nothing else can.
    let mode = bench.good(DISK, &[0x1a, 8, 8, 0, 255], 255);
    assert_eq!((usize::from(mode[0]), mode[3], mode[4], mode[6]), (mode.len() - 1, 0, 8, 4));
    let mut list = [0, 0, 0, 0, 8, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(matches!(bench.run(DISK, &[0x15, 0x10, 0, 0, 24], &list, 0).0, Answer::Good(_)));
    assert_eq!(bench.good(DISK, &[0x1a, 8, 8, 0, 255], 255)[6], 0);
    list[7] = 1;
    assert_eq!(bench.run(DISK, &[0x15, 0x10, 0, 0, 24], &list, 0).0, Answer::Check(Sense::INVALID_PARAMETER));
    assert_eq!(bench.run(DISK, &[0x15, 0x10, 0, 0, 23], &list[..23], 0).0, Answer::Check(Sense::PARAMETER_LENGTH));
    let all = bench.good(DISK, &[0x5a, 0, 0x3f, 0, 0, 0, 0, 1, 0], 256);
    assert_eq!(usize::from(all[1]) + 2, all.len());
    let luns = bench.good(DISK, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 64], 64);
    assert_eq!((luns.len(), luns[3]), (16, 8));
}

#[test]
fn blocks_are_read_written_unmapped_and_filled() {
    let bench = bench();
    for (read, first) in [
        (&[0x08, 0, 0, 9, 2][..], 9),
        (&[0x28, 0, 0, 0, 0, 10, 0, 0, 2][..], 10),
        (&[0xa8, 0, 0, 0, 0, 11, 0, 0, 0, 2], 11),
        (&[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 12, 0, 0, 0, 2], 12),
    ] {
        let data = bench.good(DISK, read, 1024);
        assert_eq!((data[0], data[1023]), (first, first + 1));
    }
    let write = [0x2a, 0, 0, 0, 0, 1, 0, 0, 1];
    assert_eq!(bench.run(DISK, &write, &[7; 512], 0).0, Answer::Good(512));
    assert_eq!(bench.run(DISK, &write, &[7; 511], 0).0, Answer::Overrun);
    assert_eq!(bench.node.bytes()[512..1024], [7; 512]);
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend([0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(bench.run(DISK, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24], &list, 0).0, Answer::Good(24));
    assert_eq!(bench.node.bytes()[1024..1536], [0; 512]);
    list[8 + 7 - 1] = 1;
    assert_eq!(bench.run(DISK, &[0x42, 0, 0, 0, 0, 0, 0, 0, 24], &list, 0).0, Answer::Check(Sense::OUT_OF_RANGE));
    assert_eq!(bench.run(DISK, &[0x41, 0, 0, 0, 0, 4, 0, 0, 2], &[9; 512], 0).0, Answer::Good(512));
    assert_eq!(bench.node.bytes()[2048..3072], [9; 1024]);
    let no_data = [0x93, 9, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1];
    assert_eq!(bench.run(DISK, &no_data, &[], 0).0, Answer::Good(0));
    assert_eq!(bench.node.bytes()[2048..2560], [0; 512]);
    assert_eq!(bench.run(DISK, &[0x41, 0, 0, 0, 0, 4, 0, 0, 0], &[9; 512], 0).0, Answer::Check(Sense::INVALID_FIELD));
    bench.node.bad_from(0);
    assert_eq!(bench.run(DISK, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1], &[], 512).0, Answer::Check(Sense::READ_ERROR));
}

#[test]
fn a_cd_has_one_track_and_a_tray() {
    let bench = bench();
    assert_eq!(bench.good(CD, &[0x28, 0, 0, 0, 0, 31, 0, 0, 1], 2048), [3; 2048]);
    assert_eq!(bench.run(CD, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 2048], 0).0, Answer::Check(Sense::UNKNOWN_COMMAND));
    let toc = bench.good(CD, &[0x43, 0, 0, 0, 0, 0, 0, 1, 0], 256);
    assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 0, 0, 32]);
    assert_eq!(bench.good(CD, &[0x46, 0, 0, 0, 0, 0, 0, 1, 0], 256)[6..8], [0, 8]);
    bench.good(CD, &[0x1e, 0, 0, 0, 1], 0);
    assert_eq!(bench.run(CD, &[0x1b, 0, 0, 0, 2], &[], 0).0, Answer::Check(Sense::REMOVAL_PREVENTED));
    bench.good(CD, &[0x1e, 0, 0, 0, 0], 0);
    bench.good(CD, &[0x1b, 0, 0, 0, 2], 0);
    assert_eq!(bench.run(CD, &[0x00], &[], 0).0, Answer::Check(Sense::NO_MEDIUM));
    assert_eq!(bench.good(CD, &[0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8], 8)[5], 1);
    bench.good(CD, &[0x1b, 0, 0, 0, 3], 0);
    assert_eq!(bench.run(CD, &[0x00], &[], 0).0, Answer::Check(Sense::MEDIUM_CHANGED));
    bench.good(CD, &[0x00], 0);
    // Only a CD drive has these.
    assert_eq!(bench.run(DISK, &[0x43], &[], 256).0, Answer::Check(Sense::UNKNOWN_COMMAND));
}

#[test]
fn places_are_given_and_taken() {
    let bus = ScsiBus::new(&"b".into(), true);
    let unit = || {
        let node = Arc::new(MemoryNode::new(vec![0; 512]));
        disk(Disk::new("d".into(), Drive::own(node), OPTIONS, listener().0), &bus)
    };
    let place = |target, lun| bus.attach(&unit(), target, lun).map(|at| (at.target, at.lun)).ok();
    assert_eq!(place(None, None), Some((0, 0)));
    assert_eq!(place(None, Some(3)), Some((0, 3)));
    assert_eq!(place(Some(0), None), Some((0, 1)));
    assert_eq!(place(Some(0), Some(1)), None);
    assert_eq!(place(None, None), Some((1, 0)));
    assert_eq!(place(Some(255), Some(MAX_LUN)), Some((255, MAX_LUN)));
}

proptest! {
    /// Whatever a command says, it is answered, and a disk holds as many bytes as before.
    #[test]
    fn any_command_is_answered(
        commands in prop::collection::vec(
            (prop::array::uniform16(prop_oneof![Just(0u8), any::<u8>()]), prop::collection::vec(any::<u8>(), 0..600), 0u32..2000, any::<bool>()),
            1..20,
        ),
    ) {
        let bench = bench();
        for (cdb, out, room, cd) in commands {
            bench.run(if cd { CD } else { DISK }, &cdb, &out, room);
        }
        prop_assert_eq!(bench.node.bytes().len(), 256 * 512);
    }
}
