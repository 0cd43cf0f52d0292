//! The listener against a recorder in the place of the IOMMU.

use std::io;

use super::super::testing::MapRecorder;
use super::refusal::no_memory;
use super::*;
use crate::error::Code;
use crate::host::limits::memlock::LockRights;
use crate::memory::host::PageSize;
use crate::memory::{IoHandler, Memory, PRIORITY_PLATFORM, Piece, Region, Space, Stage};
use crate::vfio::backend::Backend;

const GIB: u64 = 1 << 30;

struct Nothing;
impl IoHandler for Nothing {
    fn read(&self, _: u64, _: &mut [u8]) {}
    fn write(&self, _: u64, _: &[u8]) {}
}

pub(super) fn host(len: u64) -> Arc<HostMem> {
    Arc::new(HostMem::anonymous(len, PageSize::Small).unwrap())
}

pub(super) fn ram(len: u64) -> Region {
    Region::whole("ram", len, PRIORITY_PLATFORM, Backing::Ram(host(len).slice()))
}

pub(super) fn bar(mem: &Arc<HostMem>) -> Region {
    Region::whole("gpu0 BAR1", mem.len(), 0, Backing::Device(mem.slice()))
}

struct Setup {
    memory: Arc<Memory>,
    mapper: Arc<MapRecorder>,
    dma: Arc<DmaSpace>,
    _listening: crate::memory::Listening,
}

fn setup(mapper: MapRecorder) -> Setup {
    let (memory, mapper) = (Memory::new(), Arc::new(mapper));
    let dma = Arc::new(DmaSpace::new(mapper.clone()));
    let listening = memory.listen(Stage::Dma, dma.clone()).unwrap();
    Setup { memory, mapper, dma, _listening: listening }
}

#[test]
fn one_request_for_each_range_of_ram_and_one_for_the_limits() {
    let s = setup(MapRecorder::default());
    s.dma.group_joined();
    s.memory
        .update(|layout| {
            layout.add(Space::Mmio, 0, ram(0x10000));
            layout.add(Space::Mmio, 4 * GIB, ram(0x20000));
            layout.add(Space::Mmio, 0xe000_0000, Region::whole("io", 4096, 0, Backing::io(Arc::new(Nothing))));
        })
        .unwrap();
    assert_eq!(s.mapper.take(), ["limits", "map 0x0+0x10000 rw", "map 0x100000000+0x20000 rw"]);
}

#[test]
fn rom_is_mapped_read_only_and_registers_with_a_shadow_are_not() {
    let s = setup(MapRecorder::default());
    let shadow = Backing::RomDevice { mem: host(4096).slice(), io: Arc::new(Nothing), offset: 0 };
    s.memory
        .update(|layout| {
            layout.add(Space::Mmio, 0xf000_0000, Region::whole("rom", 4096, 0, Backing::Rom(host(4096).slice())));
            layout.add(Space::Mmio, 0xe000_0000, Region::whole("ecam", 4096, 0, shadow));
        })
        .unwrap();
    assert_eq!(s.mapper.take(), ["limits", "map 0xf0000000+0x1000 r"]);
}

#[test]
fn a_bar_is_mapped_from_the_second_device_on() {
    let s = setup(MapRecorder::default());
    let mem = host(0x4000);
    s.dma.set_devices(1);
    let id = s.memory.update(|layout| layout.add(Space::Mmio, 0xc000_0000, bar(&mem))).unwrap();
    assert!(s.mapper.take().is_empty(), "nobody else could reach it");
    s.dma.set_devices(2);
    assert_eq!(s.mapper.take(), ["limits", "map 0xc0000000+0x4000 rw"]);
    s.memory
        .update(|layout| {
            layout.remove(id);
            layout.add(Space::Mmio, 0xd000_0000, bar(&mem));
        })
        .unwrap();
    assert_eq!(s.mapper.take(), ["unmap 0xc0000000+0x4000", "map 0xd0000000+0x4000 rw"]);
    s.dma.set_devices(1);
    assert_eq!(s.mapper.take(), ["unmap 0xd0000000+0x4000"]);
}

#[test]
fn the_policy_of_a_bar_overrules_the_count() {
    let s = setup(MapRecorder::default());
    let mem = host(0x4000);
    s.memory.update(|layout| layout.add(Space::Mmio, 0xc000_0000, bar(&mem))).unwrap();
    s.dma.set_policy(&mem, PeerToPeer::On);
    assert_eq!(s.mapper.take(), ["limits", "map 0xc0000000+0x4000 rw"]);
    s.dma.set_policy(&mem, PeerToPeer::Off);
    s.dma.set_devices(5);
    assert_eq!(s.mapper.take(), ["unmap 0xc0000000+0x4000"]);
    s.dma.set_policy(&mem, PeerToPeer::Auto);
    assert_eq!(s.mapper.take(), ["map 0xc0000000+0x4000 rw"]);
}

#[test]
fn a_bar_over_a_reserved_range_is_not_mapped_and_is_no_error() {
    let s = setup(MapRecorder::default());
    s.dma.set_devices(2);
    let mem = host(0x4000);
    let id = s.memory.update(|layout| layout.add(Space::Mmio, 0xfedf_f000, bar(&mem))).unwrap();
    assert_eq!(s.mapper.take(), ["limits"]);
    s.memory.update(|layout| layout.remove(id)).unwrap();
    assert!(s.mapper.take().is_empty());
}

#[test]
fn a_bar_that_the_kernel_refuses_is_no_error() {
    let s = setup(MapRecorder { refuse: Some(libc::EFAULT), ..MapRecorder::default() });
    s.dma.set_devices(2);
    s.memory.update(|layout| layout.add(Space::Mmio, 0xc000_0000, bar(&host(0x4000)))).unwrap();
    assert_eq!(s.dma.mappings(), 0);
}

#[test]
fn ram_in_a_reserved_range_names_the_range() {
    let s = setup(MapRecorder::default());
    let error = s.memory.update(|layout| layout.add(Space::Mmio, 0xfedf_0000, ram(0x20000))).unwrap_err();
    assert_eq!(error.code(), Code::ReservedIova);
    assert!(error.to_string().contains("reserved: 0xfee00000-0xfeefffff"), "{error}");
    assert!(error.to_string().contains("usable: 0x0-0xfedfffff"), "{error}");
    assert_eq!(s.dma.mappings(), 0);
}

#[test]
fn the_budget_is_kept_before_the_kernel_refuses() {
    let s = setup(MapRecorder { available: Some(2), ..MapRecorder::default() });
    let first = s.memory.update(|layout| layout.add(Space::Mmio, 0, ram(4096))).unwrap();
    s.memory.update(|layout| layout.add(Space::Mmio, 0x10000, ram(4096))).unwrap();
    s.mapper.take();
    let error = s.memory.update(|layout| layout.add(Space::Mmio, 0x20000, ram(4096))).unwrap_err();
    assert_eq!(error.code(), Code::DmaLimit);
    assert!(s.mapper.take().is_empty(), "the kernel was not asked");
    s.memory.update(|layout| layout.remove(first)).unwrap();
    s.memory.update(|layout| layout.add(Space::Mmio, 0x20000, ram(4096))).unwrap();
    assert_eq!(s.mapper.take(), ["unmap 0x0+0x1000", "map 0x20000+0x1000 rw"]);
}

#[test]
fn the_kernels_answers_have_codes() {
    for (errno, code) in [(libc::ENOSPC, Code::DmaLimit), (libc::EFAULT, Code::DmaFailed)] {
        let s = setup(MapRecorder { refuse: Some(errno), ..MapRecorder::default() });
        let error = s.memory.update(|layout| layout.add(Space::Mmio, 0, ram(4096))).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
}

#[test]
fn no_memory_is_the_limit_only_if_that_is_too_low() {
    let rights = |soft, hard, exempt| LockRights { soft, hard, locked: 0, exempt };
    let answer = io::Error::from_raw_os_error(libc::ENOMEM);
    for (backend, rights, code) in [
        (Backend::Type1, rights(4096, 4096, false), Code::Memlock),
        (Backend::Type1, rights(4096, 1 << 30, false), Code::Memlock),
        (Backend::Type1, rights(1 << 30, 1 << 30, false), Code::DmaFailed),
        (Backend::Type1, rights(4096, 4096, true), Code::DmaFailed),
        (Backend::Iommufd, rights(4096, 4096, false), Code::Memlock),
        // Other processes of the user count as well.
        (Backend::Iommufd, rights(1 << 30, 1 << 30, false), Code::Memlock),
        (Backend::Iommufd, rights(u64::MAX, u64::MAX, false), Code::DmaFailed),
        (Backend::Iommufd, rights(4096, 4096, true), Code::DmaFailed),
    ] {
        let error = no_memory(backend, "guest memory", 1 << 20, &answer, &rights);
        assert_eq!(error.code(), code, "{error}");
        assert!(error.to_string().contains("(ENOMEM)"), "{error}");
        assert!(error.fix_text().is_some());
    }
}

#[test]
fn the_end_of_listening_unmaps_everything_and_removal_is_idempotent() {
    let s = setup(MapRecorder::default());
    s.memory.update(|layout| layout.add(Space::Mmio, 0, ram(4096))).unwrap();
    s.mapper.take();
    let view = s.memory.view(Space::Mmio);
    s.dma.remove(&view.ranges()[0]);
    s.dma.remove(&view.ranges()[0]);
    assert_eq!(s.mapper.take(), ["unmap 0x0+0x1000"]);
    drop(s._listening);
    assert!(s.mapper.take().is_empty());
}

#[test]
fn a_hole_in_the_usable_ranges_is_found() {
    let usable = [0..0x1000, 0x1000..0x2000, 0x3000..0x4000];
    for (range, expected) in [
        (0..0x2000, None),
        (0x800..0x2001, Some(0x2000..0x3000)),
        (0x2800..0x3800, Some(0x2800..0x3000)),
        (0x3000..0x5000, Some(0x4000..u64::MAX)),
    ] {
        assert_eq!(first_reserved(&usable, range.clone()), expected, "{range:?}");
    }
    assert_eq!(first_reserved(&[], 0..1), Some(0..u64::MAX));
}

#[test]
fn a_piece_that_is_no_page_is_not_mapped() {
    let s = setup(MapRecorder::default());
    s.dma.set_devices(2);
    let mem = host(0x4000);
    let piece = Piece { range: 0x800..0x1000, backing: Backing::Device(mem.slice().cut(0x800, 0x800)) };
    let region = Region { name: "odd".into(), len: 0x1000, priority: 0, pieces: vec![piece] };
    s.memory.update(|layout| layout.add(Space::Mmio, 0xc000_0000, region)).unwrap();
    assert_eq!(s.mapper.take(), ["limits"]);
}
