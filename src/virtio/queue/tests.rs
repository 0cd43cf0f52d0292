use proptest::prelude::*;

use super::*;
use crate::irq::Router;
use crate::memory::host::PageSize;
use crate::memory::{Backing, HostMem, Memory, PRIORITY_PLATFORM, Region, Space};
use crate::pci::{ConfigSpace, PciCore};

const RINGS: Rings = Rings { size: 4, descriptors: 0x1000, available: 0x2000, used: 0x3000 };
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Guest {
    memory: Arc<Memory>,
    queue: Arc<VirtQueue>,
    /// Whether several requests are served at a time, and how many.
    many: Option<usize>,
}

fn memory() -> Arc<Memory> {
    let memory = Memory::new();
    let ram = Arc::new(HostMem::anonymous(0x10000, PageSize::Small).unwrap());
    let region = Region::whole("ram", 0x10000, PRIORITY_PLATFORM, Backing::Ram(ram.slice()));
    memory.update(|layout| layout.add(Space::Mmio, 0, region)).unwrap();
    memory
}

fn queue(memory: &Arc<Memory>, rings: Rings, event_idx: bool) -> Result<Arc<VirtQueue>, Broken> {
    let core = Arc::new(PciCore::new("dev0", ConfigSpace::new(), None, None));
    let interrupts = Interrupts::new(core, Router::new(), 1);
    let kick = Arc::new(EventFd::from_flags(nix::sys::eventfd::EfdFlags::EFD_NONBLOCK).unwrap());
    VirtQueue::new(0, 256, rings, event_idx, LiveRam::new(memory.clone()), interrupts, kick)
}

impl Guest {
    fn new(event_idx: bool) -> Guest {
        let memory = memory();
        Guest { queue: queue(&memory, RINGS, event_idx).unwrap(), memory, many: None }
    }
    fn put(&self, addr: u64, value: u64, len: usize) {
        self.memory.write(Space::Mmio, addr, &value.to_le_bytes()[..len]);
    }
    fn u16(&self, addr: u64) -> u16 {
        let mut data = [0; 2];
        self.memory.read(Space::Mmio, addr, &mut data);
        u16::from_le_bytes(data)
    }
    fn descriptor(&self, table: u64, index: u64, (addr, len, flags, next): (u64, u32, u16, u16)) {
        let at = table + 16 * index;
        self.put(at, addr, 8);
        self.put(at + 8, len.into(), 4);
        self.put(at + 12, flags.into(), 2);
        self.put(at + 14, next.into(), 2);
    }
    /// Makes these heads available, from the ring's start on.
    fn available(&self, heads: &[u16]) {
        for (index, head) in heads.iter().enumerate() {
            self.put(RINGS.available + 4 + 2 * (index as u64 % 4), (*head).into(), 2);
        }
        self.put(RINGS.available + 2, heads.len() as u64, 2);
    }
    /// The lengths of what is served.
    fn drain(&self) -> (Drained, Vec<(u64, u64)>) {
        let mut served = Vec::new();
        let mut serve = |chain: Chain<'_>| {
            served.push((chain.readable.len(), chain.writable.len()));
            Served::Done(0)
        };
        let drained = match self.many {
            None => self.queue.drain(serve),
            Some(many) => self.queue.drain_many(many, |chains| {
                assert!((1..=many).contains(&chains.len()));
                chains.into_iter().map(&mut serve).collect()
            }),
        };
        (drained, served)
    }
}

#[test]
fn queues_are_checked_before_they_are_used() {
    let memory = memory();
    for wrong in [
        Rings { size: 0, ..RINGS },
        Rings { size: 3, ..RINGS },
        Rings { size: 512, ..RINGS },
        Rings { descriptors: 0x1008, ..RINGS },
        Rings { available: 0x2001, ..RINGS },
        Rings { used: 0x3002, ..RINGS },
        Rings { descriptors: 0xfff0, ..RINGS },
        Rings { used: !3, ..RINGS },
    ] {
        assert!(queue(&memory, wrong, false).is_err(), "{wrong:?}");
    }
    assert!(queue(&Memory::new(), RINGS, false).is_err(), "no memory at all");
}

#[test]
fn chains_are_followed_through_both_kinds_of_tables() {
    let guest = Guest::new(false);
    guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, NEXT, 3));
    guest.descriptor(RINGS.descriptors, 3, (0x9000, 8, WRITE, 0));
    guest.descriptor(RINGS.descriptors, 1, (0x4000, 48, INDIRECT, 0));
    for (index, flags) in [(0, NEXT), (1, NEXT | WRITE), (2, WRITE)] {
        guest.descriptor(0x4000, index, (0x8000, 100, flags, index as u16 + 1));
    }
    guest.available(&[0, 1]);
    assert_eq!(guest.drain(), (Drained::Empty, vec![(16, 8), (100, 200)]));
    assert_eq!(guest.u16(RINGS.used + 2), 2);
    assert_eq!([guest.u16(RINGS.used + 4), guest.u16(RINGS.used + 12)], [0, 1]);
}

#[test]
fn what_the_driver_gets_wrong_breaks_the_queue_for_good() {
    type Wrong = fn(&Guest);
    let table: [(&str, Wrong); 9] = [
        ("a loop", |guest| {
            guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, NEXT, 1));
            guest.descriptor(RINGS.descriptors, 1, (0x8000, 16, NEXT, 0));
            guest.available(&[0]);
        }),
        ("a link out of the table", |guest| {
            guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, NEXT, 4));
            guest.available(&[0]);
        }),
        ("a head out of the table", |guest| guest.available(&[4])),
        ("memory that is not there", |guest| {
            guest.descriptor(RINGS.descriptors, 0, (0xfff8, 16, 0, 0));
            guest.available(&[0]);
        }),
        ("nothing at all", |guest| {
            guest.descriptor(RINGS.descriptors, 0, (0x8000, 0, 0, 0));
            guest.available(&[0]);
        }),
        ("reading after writing", |guest| {
            guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, NEXT | WRITE, 1));
            guest.descriptor(RINGS.descriptors, 1, (0x8000, 16, 0, 0));
            guest.available(&[0]);
        }),
        ("a table in a table", |guest| {
            guest.descriptor(RINGS.descriptors, 0, (0x4000, 16, INDIRECT, 0));
            guest.descriptor(0x4000, 0, (0x4000, 16, INDIRECT, 0));
            guest.available(&[0]);
        }),
        ("a table of half a descriptor", |guest| {
            guest.descriptor(RINGS.descriptors, 0, (0x4000, 8, INDIRECT, 0));
            guest.available(&[0]);
        }),
        ("more requests than the queue is long", |guest| guest.put(RINGS.available + 2, 5, 2)),
    ];
    for ((what, wrong), many) in table.iter().flat_map(|row| [(row, None), (row, Some(3))]) {
        let guest = Guest { many, ..Guest::new(false) };
        wrong(&guest);
        assert_eq!(guest.drain(), (Drained::Broken, vec![]), "{what}");
        assert_eq!(guest.u16(RINGS.used + 2), 0, "{what}");
        // It stays broken when the ring is right again.
        guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, 0, 0));
        guest.available(&[0]);
        assert_eq!(guest.drain(), (Drained::Broken, vec![]), "{what}");
        assert!(guest.queue.interrupts.needs_reset());
    }
}

#[test]
fn what_cannot_be_served_now_stays_first() {
    let guest = Guest::new(false);
    guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, 0, 0));
    guest.available(&[0, 0]);
    assert_eq!(guest.queue.drain(|_| Served::Later), Drained::Waiting);
    assert_eq!(guest.u16(RINGS.used + 2), 0);
    assert_eq!(guest.drain().1.len(), 2);
}

#[test]
fn of_several_those_in_front_of_what_must_wait_are_done() {
    let several = |answers: &[Served]| {
        let guest = Guest::new(false);
        guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, 0, 0));
        guest.available(&[0, 0, 0, 0]);
        let drained = guest.queue.drain_many(3, |chains| {
            assert_eq!(chains.len(), 3);
            answers.to_vec()
        });
        (drained, guest.u16(RINGS.used + 2), guest.drain().1.len())
    };
    use Served::{Done, Later, Malformed};
    assert_eq!(several(&[Done(0), Later, Done(0)]), (Drained::Waiting, 1, 3));
    assert_eq!(several(&[Later, Done(0), Done(0)]), (Drained::Waiting, 0, 4));
    assert_eq!(several(&[Done(0), Done(0)]), (Drained::Waiting, 2, 2));
    assert_eq!(several(&[Done(0), Malformed("wrong"), Done(0)]), (Drained::Broken, 1, 0));
}

#[test]
fn of_several_those_in_front_of_what_is_wrong_are_done() {
    let guest = Guest { many: Some(4), ..Guest::new(false) };
    guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, 0, 0));
    guest.descriptor(RINGS.descriptors, 1, (0xfff8, 16, 0, 0));
    guest.available(&[0, 0, 1, 0]);
    assert_eq!((guest.drain(), guest.u16(RINGS.used + 2)), ((Drained::Broken, vec![(16, 0); 2]), 2));
}

#[test]
fn a_halted_queue_gives_nothing() {
    for many in [None, Some(2)] {
        let guest = Guest { many, ..Guest::new(false) };
        guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, 0, 0));
        guest.available(&[0, 0, 0]);
        guest.queue.halt(true);
        assert_eq!(guest.drain(), (Drained::Waiting, vec![]));
        guest.queue.halt(false);
        assert_eq!(guest.drain().1.len(), 3);
    }
}

#[test]
fn a_batch_ends_though_the_driver_never_does() {
    let guest = Guest::new(true);
    guest.descriptor(RINGS.descriptors, 0, (0x8000, 16, 0, 0));
    guest.available(&[0, 0, 0, 0]);
    let mut served = 0u16;
    let drained = guest.queue.drain(|_| {
        served += 1;
        guest.put(RINGS.available + 2, u64::from(4 + served), 2);
        Served::Done(0)
    });
    assert_eq!((drained, served), (Drained::Again, RINGS.size));
    assert_eq!(guest.queue.kick().read().unwrap(), 1);
}

proptest! {
    /// Whatever is in the rings: a batch ends, serves no more than the queue is long, and gives no more than 4 GiB.
    #[test]
    fn any_content_is_survived(
        content in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>(), Just(4u8), Just(1u8)], 0x40),
        ring in prop::collection::vec(0u8..8, 16),
        event_idx in any::<bool>(),
        many in prop::option::of(1usize..6),
    ) {
        let guest = Guest { many, ..Guest::new(event_idx) };
        guest.memory.write(Space::Mmio, RINGS.descriptors, &content);
        guest.memory.write(Space::Mmio, RINGS.available, &ring);
        for _ in 0..4 {
            let (_, served) = guest.drain();
            prop_assert!(served.len() <= usize::from(RINGS.size));
            prop_assert!(served.iter().all(|(read, write)| read + write <= u64::from(u32::MAX)));
        }
    }
}
