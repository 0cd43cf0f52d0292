use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use vm_memory::VolatileSlice;

use super::*;
use crate::backends::block::qcow2::create::{New, create};
use crate::backends::block::testing::{MemoryNode, graph};
use crate::backends::block::{BlockInfo, BlockNode};
use crate::devices::disk::testing::{OPTIONS, listener};
use crate::devices::disk::{DiskOptions, Drive, ErrorPolicy};
use crate::virtio::pci::PciOptions;
use crate::virtio::testing::{Buffer, CONFIG, Driver};

const SHAPE: Shape = Shape {
    logical: 512,
    physical: None,
    queues: 1,
    queue_size: 256,
    discard: true,
    write_zeroes: true,
    config_wce: true,
};
/// Where requests have their parts.
const HEADER: u64 = 0x20000;
const STATUS: u64 = 0x20100;
const DATA: u64 = 0x21000;

/// A disk of 64 sectors whose bytes are their sectors' numbers, and what it was asked for.
struct Counted {
    memory: MemoryNode,
    info: BlockInfo,
    calls: Mutex<Vec<String>>,
    /// How many transfers it takes together.
    depth: AtomicUsize,
}

impl Counted {
    fn new(change: impl FnOnce(&mut BlockInfo)) -> Arc<Counted> {
        let memory = MemoryNode::new((0..64u8).flat_map(|sector| [sector; 512]).collect());
        let mut info = memory.info();
        change(&mut info);
        Arc::new(Counted { memory, info, calls: Mutex::default(), depth: AtomicUsize::new(1) })
    }
    fn took(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock())
    }
    fn call(&self, what: String) {
        self.calls.lock().push(what);
    }
}

impl BlockNode for Counted {
    fn info(&self) -> BlockInfo {
        self.info
    }
    fn read(&self, offset: u64, into: &[VolatileSlice]) -> std::io::Result<()> {
        self.memory.read(offset, into)
    }
    fn write(&self, offset: u64, from: &[VolatileSlice]) -> std::io::Result<()> {
        self.call(format!("write {offset}"));
        self.memory.write(offset, from)
    }
    fn depth(&self) -> usize {
        self.depth.load(Ordering::Relaxed)
    }
    fn flush(&self) -> std::io::Result<()> {
        self.call("flush".into());
        self.memory.flush()
    }
    fn discard(&self, range: Range<u64>) -> std::io::Result<()> {
        self.call(format!("discard {range:?}"));
        self.memory.discard(range)
    }
    fn write_zeroes(&self, range: Range<u64>, may_unmap: bool) -> std::io::Result<()> {
        self.call(format!("zero {range:?} {may_unmap}"));
        self.memory.write_zeroes(range, may_unmap)
    }
    fn children(&self) -> Vec<Arc<str>> {
        Vec::new()
    }
}

fn start(node: &Arc<Counted>, options: DiskOptions, features: u64) -> Driver {
    let disk = Disk::new("disk0".into(), Drive::own(node.clone()), options, listener().0);
    let blk = Blk::new(disk, SHAPE, "a-serial-number-that-is-too-long", None);
    let mut driver = Driver::new(blk, &PciOptions::default());
    driver.start(features);
    driver
}

/// Does a request with these buffers between header and status; its status.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[Buffer]) -> u64 {
    driver.write(HEADER, kind.into(), 8);
    driver.write(HEADER + 8, sector, 8);
    driver.write(STATUS, 0xee, 1);
    let buffers: Vec<Buffer> = [&[(HEADER, 16, false)], data, &[(STATUS, 1, true)]].concat();
    driver.request(0, &buffers);
    driver.read(STATUS, 1)
}

fn ranges(driver: &mut Driver, kind: u32, ranges: &[(u64, u32, u32)]) -> u64 {
    for (index, (sector, count, flags)) in ranges.iter().enumerate() {
        let at = DATA + 16 * index as u64;
        driver.write(at, *sector, 8);
        driver.write(at + 8, (*count).into(), 4);
        driver.write(at + 12, (*flags).into(), 4);
    }
    let data = (DATA, 16 * ranges.len() as u32, false);
    request(driver, kind, 0, if ranges.is_empty() { &[] } else { std::slice::from_ref(&data) })
}

#[test]
fn what_is_written_is_read_and_nothing_beyond_the_end() {
    let node = Counted::new(|_| ());
    let mut driver = start(&node, OPTIONS, bit::FLUSH);
    assert_eq!(driver.read(CONFIG, 8), 64);
    assert_eq!(request(&mut driver, 0, 5, &[(DATA, 1024, true)]), 0);
    assert_eq!([driver.read(DATA, 1), driver.read(DATA + 1023, 1)], [5, 6]);
    driver.put(DATA, &[0xaa; 1024]);
    assert_eq!(request(&mut driver, 1, 62, &[(DATA, 700, false), (DATA, 324, false)]), 0);
    assert_eq!(node.memory.bytes()[62 * 512..], [0xaa; 1024]);
    for (sector, len) in [(63, 1024), (64, 512), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511), (0, 513)] {
        for kind in [0, 1] {
            assert_eq!(request(&mut driver, kind, sector, &[(DATA, len, kind == 0)]), 1, "{kind} {sector} {len}");
        }
    }
    assert_eq!(node.took(), ["write 31744"]);
    assert_eq!(request(&mut driver, 4, 0, &[]), 0);
    assert_eq!(node.took(), ["flush"]);
}

#[test]
fn the_serial_number_is_cut_and_unknown_requests_are_told() {
    let node = Counted::new(|_| ());
    let mut driver = start(&node, OPTIONS, 0);
    assert_eq!(request(&mut driver, 8, 0, &[(DATA, 20, true)]), 0);
    assert_eq!(driver.bytes(DATA, 20), b"a-serial-number-that");
    for kind in [2, 7, 12, u32::MAX] {
        assert_eq!(request(&mut driver, kind, 0, &[(DATA, 512, true)]), 2, "{kind}");
    }
    // Not agreed on.
    assert_eq!(ranges(&mut driver, 11, &[(0, 1, 0)]), 2);
    assert_eq!(ranges(&mut driver, 13, &[(0, 1, 0)]), 2);
    assert!(node.took().is_empty());
}

#[test]
fn ranges_are_all_checked_before_one_is_changed() {
    let node = Counted::new(|_| ());
    let mut driver = start(&node, OPTIONS, bit::FLUSH | bit::DISCARD | bit::WRITE_ZEROES);
    assert_eq!(ranges(&mut driver, 11, &[(1, 2, 0), (8, 1, 0)]), 0);
    assert_eq!(ranges(&mut driver, 13, &[(3, 1, 1), (4, 1, 0)]), 0);
    let done = ["discard 512..1536", "discard 4096..4608", "zero 1536..2048 true", "zero 2048..2560 false"];
    assert_eq!(node.took(), done);
    for wrong in [&[(1, 1, 0), (64, 1, 0)][..], &[(u64::MAX, 1, 0)], &[(0, u32::MAX, 0)], &[]] {
        assert_eq!(ranges(&mut driver, 13, wrong), 1, "{wrong:?}");
    }
    assert_eq!(ranges(&mut driver, 13, &[(0, 1, 2)]), 2);
    assert_eq!(ranges(&mut driver, 11, &[(0, 1, 1)]), 2, "unmap is a flag of the other");
    assert_eq!(request(&mut driver, 11, 0, &[(DATA, 17, false)]), 1);
    assert_eq!(ranges(&mut driver, 11, &[(0, 1, 0); 33]), 1);
    assert!(node.took().is_empty());
}

#[test]
fn without_a_write_cache_every_change_is_flushed() {
    let write = |driver: &mut Driver| request(driver, 1, 0, &[(DATA, 512, false)]);
    let node = Counted::new(|_| ());
    // A driver that cannot flush; one that can; one that switches the cache off and on.
    let mut driver = start(&node, OPTIONS, 0);
    assert_eq!((write(&mut driver), node.took()), (0, vec!["write 0".into(), "flush".into()]));
    driver.start(bit::FLUSH);
    assert_eq!((write(&mut driver), node.took()), (0, vec!["write 0".into()]));
    driver.start(bit::FLUSH | bit::CONFIG_WCE);
    assert_eq!(driver.read(CONFIG + 32, 1), 1);
    driver.write(CONFIG + 32, 0, 1);
    assert_eq!((write(&mut driver), node.took().len(), driver.read(CONFIG + 32, 1)), (0, 2, 0));
    driver.write(CONFIG + 32, 1, 1);
    assert_eq!((write(&mut driver), node.took().len()), (0, 1));
    // Nothing else can be written.
    driver.write(CONFIG, u64::MAX, 8);
    assert_eq!(driver.read(CONFIG, 8), 64);
    // A back end that has every write on its medium needs no flush.
    let through = Counted::new(|info| info.write_back = false);
    let mut driver = start(&through, OPTIONS, 0);
    assert_eq!((write(&mut driver), through.took()), (0, vec!["write 0".into()]));
    // The user's word.
    let mut driver = start(&node, DiskOptions { write_cache: false, ..OPTIONS }, bit::FLUSH);
    assert_eq!((write(&mut driver), node.took().len()), (0, 2));
}

#[test]
fn a_read_only_disk_is_not_changed() {
    let node = Counted::new(|info| info.read_only = true);
    let mut driver = start(&node, OPTIONS, bit::RO);
    assert_eq!(request(&mut driver, 1, 0, &[(DATA, 512, false)]), 1);
    assert_eq!(request(&mut driver, 0, 1, &[(DATA, 512, true)]), 0);
    assert_eq!(request(&mut driver, 4, 0, &[]), 0);
    assert!(node.took().is_empty());
}

#[test]
fn errors_of_the_back_end_are_told_or_ignored() {
    let node = Counted::new(|_| ());
    let mut driver = start(&node, DiskOptions { werror: ErrorPolicy::Report, ..OPTIONS }, 0);
    node.memory.bad_from(1024);
    node.memory.full_after(0);
    assert_eq!(request(&mut driver, 0, 1, &[(DATA, 512, true)]), 0);
    assert_eq!(request(&mut driver, 0, 2, &[(DATA, 512, true)]), 1);
    assert_eq!(request(&mut driver, 1, 0, &[(DATA, 512, false)]), 1);
    let ignoring = DiskOptions { werror: ErrorPolicy::Ignore, ..OPTIONS };
    let mut driver = start(&node, ignoring, 0);
    assert_eq!(request(&mut driver, 1, 0, &[(DATA, 512, false)]), 0);
    assert_eq!(request(&mut driver, 0, 2, &[(DATA, 512, true)]), 1);
}

#[test]
fn a_request_that_stops_the_machine_waits_for_it_to_go_on() {
    let node = Counted::new(|_| ());
    let mut driver = start(&node, OPTIONS, 0);
    node.memory.full_after(0);
    driver.write(HEADER, 1, 8);
    driver.write(HEADER + 8, 0, 8);
    let head = driver.submit(0, &[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
    driver.kick(0);
    driver.until(|_| node.took().contains(&"write 0".into()));
    assert_eq!(driver.used_index(0), 0);
    node.memory.full_after(u64::MAX);
    crate::device::Device::resumed(&*driver.function);
    assert_eq!((driver.used(0), driver.read(STATUS, 1)), ((head, 1), 0));
}

#[test]
fn requests_that_are_there_together_are_done_together() {
    let node = Counted::new(|_| ());
    node.depth.store(4, Ordering::Relaxed);
    let mut driver = start(&node, DiskOptions { write_cache: false, ..OPTIONS }, bit::FLUSH);
    // They are there before the device runs: each with its header, status and data.
    let begin = |driver: &mut Driver, requests: &[(u64, u64)]| {
        driver.negotiate(bit::FLUSH);
        driver.enable(0, 0xffff);
        for (slot, (kind, sector)) in requests.iter().enumerate() {
            let at = 0x200 * slot as u64;
            driver.write(HEADER + at, *kind, 8);
            driver.write(HEADER + at + 8, *sector, 8);
            driver.write(STATUS + at, 0xee, 1);
            let (header, status) = ((HEADER + at, 16, false), (STATUS + at, 1, true));
            match kind {
                4 => driver.submit(0, &[header, status]),
                _ => driver.submit(0, &[header, (DATA + at, 512, *kind == 0), status]),
            };
        }
        driver.driver_ok();
    };
    let status = |driver: &Driver, slot: u64| driver.read(STATUS + 0x200 * slot, 1);
    begin(&mut driver, &[(1, 3), (1, 9)]);
    for _ in 0..2 {
        driver.used(0);
    }
    assert_eq!([status(&driver, 0), status(&driver, 1)], [0, 0]);
    assert_eq!(node.took(), ["write 1536", "write 4608", "flush"], "one flush for both");

    begin(&mut driver, &[(1, 3), (4, 0), (0, 64)]);
    for _ in 0..3 {
        driver.used(0);
    }
    assert_eq!([0, 1, 2].map(|slot| status(&driver, slot)), [0, 0, 1]);
    assert_eq!(node.took(), ["write 1536", "flush", "flush"]);

    node.memory.full_after(1);
    begin(&mut driver, &[(1, 3), (1, 9)]);
    driver.used(0);
    assert_eq!((status(&driver, 0), status(&driver, 1)), (0, 0xee), "the second waits for room");
    node.memory.full_after(u64::MAX);
    crate::device::Device::resumed(&*driver.function);
    driver.used(0);
    assert_eq!(status(&driver, 1), 0);
}

#[test]
fn a_request_without_its_parts_breaks_the_queue() {
    for buffers in [&[(HEADER, 16, false)][..], &[(HEADER, 15, false), (STATUS, 1, true)], &[(STATUS, 1, true)]] {
        let node = Counted::new(|_| ());
        let mut driver = start(&node, OPTIONS, 0);
        driver.submit(0, buffers);
        driver.kick(0);
        driver.until(|driver| driver.status() == 0x4f);
    }
}

#[test]
fn header_and_status_may_share_their_buffers_with_data() {
    let node = Counted::new(|_| ());
    let mut driver = start(&node, OPTIONS, 0);
    driver.write(HEADER, 1, 8);
    driver.write(HEADER + 8, 3, 8);
    driver.put(HEADER + 16, &[0xbb; 512]);
    driver.request(0, &[(HEADER, 528, false), (STATUS, 1, true)]);
    assert_eq!(node.memory.bytes()[3 * 512..4 * 512], [0xbb; 512]);
    driver.write(HEADER, 0, 8);
    assert_eq!(driver.request(0, &[(HEADER, 16, false), (DATA, 513, true)]), 513);
    assert_eq!(driver.bytes(DATA, 513), [&[0xbb; 512][..], &[0]].concat());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a request says, it is answered, and the disk holds as many bytes as before.
    #[test]
    fn any_request_is_answered(
        requests in prop::collection::vec(
            (prop_oneof![0u32..16, any::<u32>()], prop_oneof![0u64..70, any::<u64>()], prop::collection::vec(any::<u8>(), 48), 1u32..1100, any::<bool>()),
            1..8,
        ),
        depth in 1usize..3,
    ) {
        let node = Counted::new(|_| ());
        node.depth.store(depth, Ordering::Relaxed);
        let mut driver = start(&node, OPTIONS, bit::FLUSH | bit::DISCARD | bit::WRITE_ZEROES);
        for (kind, sector, content, len, writable) in requests {
            driver.put(DATA, &content);
            prop_assert!(request(&mut driver, kind, sector, &[(DATA, len, writable)]) <= 2);
        }
        prop_assert_eq!(node.memory.bytes().len(), 64 * 512);
    }
}

/// What a guest is offered on a disk of each driver, and of each that stands on another.
#[test]
fn each_driver_offers_what_it_can_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (raw, image) = (path("raw"), path("image"));
    std::fs::write(&raw, [0; 65536]).unwrap();
    std::fs::write(&image, []).unwrap();
    let file = graph(&[&format!("file,node-name=i,filename={image}")]).unwrap().claim("i", "img").unwrap();
    create(file.back().clone(), &New::of(1 << 20)).unwrap();
    drop(file);
    let (raw, image) = (format!("file,node-name=f,filename={raw}"), format!("file,node-name=f,filename={image}"));
    let always = bit::SEG_MAX | bit::BLK_SIZE | bit::TOPOLOGY;
    let (cache, zeroes, both) = (bit::FLUSH | bit::CONFIG_WCE, bit::WRITE_ZEROES, bit::DISCARD | bit::WRITE_ZEROES);
    let unmap = ",discard=unmap";
    for (below, top, offered) in [
        ("null-co,node-name=f".to_owned(), "", both),
        ("null-co,node-name=f,read-only=on".to_owned(), "", bit::RO),
        (raw.clone(), "", cache | zeroes),
        (format!("{raw}{unmap}"), "", cache | both),
        (format!("{raw}{unmap},read-only=on"), "", bit::RO),
        (raw.clone(), "raw", cache | zeroes),
        (format!("{raw}{unmap}"), "raw", cache | both),
        (format!("{raw}{unmap}"), "raw,discard=ignore", cache | zeroes),
        (format!("{raw}{unmap}"), "throttle,throttle-group=t0", cache | both),
        (format!("{raw}{unmap}"), "copy-on-read", cache | both),
        (image.clone(), "qcow2", cache | zeroes),
        (image.clone(), "qcow2,discard=unmap", cache | both),
        (format!("{image},read-only=on"), "qcow2,read-only=on", bit::RO),
        (format!("{image}{unmap}"), "qcow2,discard=unmap,read-only=on", bit::RO),
    ] {
        let over = format!("{top},node-name=top,file=f");
        let lines: Vec<&str> = std::iter::once(&*below).chain((!top.is_empty()).then_some(&*over)).collect();
        let nodes = graph(&lines).unwrap();
        let name = if top.is_empty() { "f" } else { "top" };
        let info = nodes.claim(name, "disk0").unwrap().info();
        assert_eq!(config::features(&SHAPE, &info), always | offered, "{lines:?}");
    }
}
