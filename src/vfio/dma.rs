//! The IOMMU's view of the guest's memory: a listener of the memory layout that maps what devices may reach.
//!
//! | backing | mapped |
//! |---|---|
//! | RAM | always, read and write; a refusal undoes the change of the layout |
//! | ROM | read only; a refusal is a warning, because a guest moves option ROMs |
//! | a passed-through BAR | if another device could reach it (`p2p=`); a refusal is a warning |
//! | registers that trap | never |
//!
//! I/O virtual addresses are guest physical addresses. One VFIO_IOMMU_MAP_DMA is made for each contiguous range.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};

use nix::errno::Errno;
use parking_lot::Mutex;

use super::seams::{DmaLimits, DmaMapper};
use crate::error::{Code, Error, Result, explain_io};
use crate::guest_error;
use crate::memory::{Backing, FlatRange, HostMem, HostSlice, MemoryListener};

/// Whether other devices may reach a device's BARs by DMA (property `p2p=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerToPeer {
    /// If there is another passed-through device.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// One IOMMU address space that follows the memory layout. A listener of stage [`crate::memory::Stage::Dma`].
pub struct DmaSpace {
    mapper: Arc<dyn DmaMapper>,
    /// Taken inside the layout lock and while nothing else but the mapper's own lock is taken.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Read when it is first needed after a group joined.
    limits: Option<DmaLimits>,
    /// How many more mappings the kernel takes.
    budget: Option<u32>,
    /// Passed-through devices of the whole machine.
    devices: usize,
    /// Exceptions from [`PeerToPeer::Auto`], for BARs whose mapping still exists.
    policies: Vec<(Weak<HostMem>, PeerToPeer)>,
    /// Every BAR that the guest has placed, mapped or not, by guest address.
    bars: BTreeMap<u64, FlatRange>,
    /// What is mapped: address and length.
    mapped: BTreeMap<u64, u64>,
}

/// Why a range was not mapped.
enum Refusal {
    Reserved(Range<u64>),
    Limit,
    Kernel(io::Error),
    Unknown(Error),
}

impl DmaSpace {
    /// An empty space.
    pub fn new(mapper: Arc<dyn DmaMapper>) -> DmaSpace {
        DmaSpace { mapper, state: Mutex::default() }
    }

    /// A group has joined: what can be mapped may have changed, and is read again when it is next needed.
    pub fn group_joined(&self) {
        let mut state = self.state.lock();
        state.limits = None;
        state.budget = None;
    }

    /// The addresses that can be mapped, ascending.
    pub fn usable(&self) -> Result<Vec<Range<u64>>> {
        let mut state = self.state.lock();
        state.read_limits(&*self.mapper).map(|limits| limits.usable.clone())
    }

    /// Sets how many devices of the machine are passed through; BARs become or cease to be mapped accordingly.
    pub fn set_devices(&self, devices: usize) {
        let mut state = self.state.lock();
        state.devices = devices;
        state.settle_bars(&*self.mapper);
    }

    /// Sets whether the BAR behind this mapping may be reached by other devices.
    pub fn set_policy(&self, bar: &Arc<HostMem>, policy: PeerToPeer) {
        let mut state = self.state.lock();
        state.policies.retain(|(known, _)| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), Arc::as_ptr(bar)));
        if policy != PeerToPeer::Auto {
            state.policies.push((Arc::downgrade(bar), policy));
        }
        state.settle_bars(&*self.mapper);
    }

    /// How many ranges are mapped.
    pub fn mappings(&self) -> usize {
        self.state.lock().mapped.len()
    }
}

impl State {
    fn read_limits(&mut self, mapper: &dyn DmaMapper) -> Result<&DmaLimits> {
        let limits = match self.limits.take() {
            Some(limits) => limits,
            None => {
                let limits = mapper.limits()?;
                self.budget = limits.available;
                limits
            }
        };
        Ok(self.limits.insert(limits))
    }

    fn wants(&self, bar: &FlatRange) -> bool {
        let Some(host) = bar.backing.host() else { return false };
        // The address of a weak pointer is not used again while it exists.
        let policy = self.policies.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(host.mem())));
        match policy.map(|(_, policy)| *policy).unwrap_or_default() {
            PeerToPeer::Auto => self.devices > 1,
            PeerToPeer::On => true,
            PeerToPeer::Off => false,
        }
    }

    /// Maps the BARs that other devices may now reach and unmaps those that they may not.
    fn settle_bars(&mut self, mapper: &dyn DmaMapper) {
        for bar in self.bars.values().cloned().collect::<Vec<_>>() {
            match (self.wants(&bar), self.mapped.contains_key(&bar.start)) {
                (true, false) => self.map_bar(mapper, &bar),
                (false, true) => self.unmap(mapper, bar.start),
                _ => {}
            }
        }
    }

    fn map_bar(&mut self, mapper: &dyn DmaMapper, bar: &FlatRange) {
        let Backing::Device(host) = &bar.backing else { return };
        if let Err(refusal) = self.map(mapper, bar, host, true) {
            guest_error!(bar.name, "other devices cannot reach it by DMA: {}", refusal.reason());
        }
    }

    fn map(
        &mut self,
        mapper: &dyn DmaMapper,
        range: &FlatRange,
        host: &HostSlice,
        writable: bool,
    ) -> Result<(), Refusal> {
        let limits = self.read_limits(mapper).map_err(Refusal::Unknown)?;
        let granule = limits.granule();
        if !range.start.is_multiple_of(granule) || !host.addr().is_multiple_of(granule) {
            return Err(Refusal::Kernel(io::ErrorKind::InvalidInput.into()));
        }
        if let Some(reserved) = first_reserved(&limits.usable, range.start..range.end()) {
            return Err(Refusal::Reserved(reserved));
        }
        if self.budget == Some(0) {
            return Err(Refusal::Limit);
        }
        mapper.map(range.start, host.clone(), writable).map_err(Refusal::Kernel)?;
        self.budget = self.budget.map(|left| left.saturating_sub(1));
        self.mapped.insert(range.start, range.len);
        Ok(())
    }

    fn unmap(&mut self, mapper: &dyn DmaMapper, start: u64) {
        let Some(len) = self.mapped.remove(&start) else { return };
        match mapper.unmap(start, len) {
            Ok(()) => self.budget = self.budget.map(|left| left.saturating_add(1)),
            // The mapper keeps the memory: a device may still reach it, and finds what it was.
            Err(error) => guest_error!("dma", "the kernel kept a mapping at {start:#x}: {error}"),
        }
    }
}

impl Refusal {
    fn reason(&self) -> String {
        match self {
            Refusal::Reserved(range) => format!("the IOMMU reserves {}", text(range)),
            Refusal::Limit => "the limit of mappings is reached".to_owned(),
            Refusal::Kernel(error) => explain_io(error),
            Refusal::Unknown(error) => error.cause().to_owned(),
        }
    }

    /// The error for guest RAM at `at` that could not be mapped.
    fn for_ram(self, at: &Range<u64>, usable: &[Range<u64>], mapped: usize) -> Error {
        let what = format!("guest memory at {}", text(at));
        match self {
            Refusal::Reserved(reserved) => {
                let error = Error::new(Code::ReservedIova, format!("{what} meets addresses that the IOMMU reserves"))
                    .evidence(format!("reserved: {}", text(&reserved)));
                usable.iter().fold(error, |error, range| error.evidence(format!("usable: {}", text(range))))
            }
            Refusal::Limit => {
                Error::new(Code::DmaLimit, format!("{what} cannot be mapped for DMA: no mapping is left"))
                    .evidence(format!("this guest has {mapped} mappings, and the kernel takes no more"))
                    .fix("raise the limit: `echo 1048576 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit`")
            }
            Refusal::Kernel(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOMEM) => memlock(&what, at.end - at.start, &error),
                Some(Errno::ENOSPC) => Refusal::Limit.for_ram(at, usable, mapped),
                _ => Error::new(Code::DmaFailed, format!("{what} could not be mapped for DMA"))
                    .evidence(format!("VFIO_IOMMU_MAP_DMA: {}", explain_io(&error))),
            },
            Refusal::Unknown(error) => error,
        }
    }
}

/// ENOMEM of a mapping is the limit of locked memory nearly always: the kernel pins page by page and never swaps.
fn memlock(what: &str, needed: u64, error: &io::Error) -> Error {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK);
    let error = Error::new(Code::Memlock, format!("{what} could not be pinned"))
        .evidence(format!("VFIO_IOMMU_MAP_DMA: {}", explain_io(error)))
        .evidence(format!("needed: {} KiB and what was pinned before", needed / 1024));
    match limit {
        Ok((soft, _)) if soft != libc::RLIM_INFINITY => {
            error.evidence(format!("RLIMIT_MEMLOCK of this process: {} KiB", soft / 1024))
        }
        _ => error,
    }
    .fix("`ulimit -l unlimited`, or LimitMEMLOCK=infinity in the unit")
}

fn text(range: &Range<u64>) -> String {
    format!("{:#x}-{:#x}", range.start, range.end.saturating_sub(1))
}

/// The first part of `range` that no usable range covers.
pub fn first_reserved(usable: &[Range<u64>], range: Range<u64>) -> Option<Range<u64>> {
    let mut at = range.start;
    for free in usable {
        if free.start > at {
            break;
        }
        at = at.max(free.end);
    }
    if at >= range.end {
        return None;
    }
    let next = usable.iter().map(|free| free.start).find(|start| *start > at).unwrap_or(u64::MAX);
    Some(at..next)
}

impl MemoryListener for DmaSpace {
    fn remove(&self, range: &FlatRange) {
        let mut state = self.state.lock();
        state.bars.remove(&range.start);
        // Only what is exactly this range: a BAR's range that was refused may start where RAM was mapped before.
        if state.mapped.get(&range.start) == Some(&range.len) {
            state.unmap(&*self.mapper, range.start);
        }
    }

    fn add(&self, range: &FlatRange) -> Result<()> {
        let mut state = self.state.lock();
        match &range.backing {
            Backing::Ram(host) => state.map(&*self.mapper, range, host, true).map_err(|refusal| {
                let usable = state.limits.as_ref().map(|limits| limits.usable.clone()).unwrap_or_default();
                refusal.for_ram(&(range.start..range.end()), &usable, state.mapped.len())
            })?,
            Backing::Rom(host) => {
                if let Err(refusal) = state.map(&*self.mapper, range, host, false) {
                    guest_error!(range.name, "devices cannot read it by DMA: {}", refusal.reason());
                }
            }
            Backing::Device(_) => {
                state.bars.insert(range.start, range.clone());
                if state.wants(range) {
                    state.map_bar(&*self.mapper, range);
                }
            }
            Backing::RomDevice { .. } | Backing::Io { .. } => {}
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, clippy::type_complexity, reason = "tables of ranges")]
mod tests {
    use super::super::testing::MapRecorder;
    use super::*;
    use crate::memory::host::PageSize;
    use crate::memory::{IoHandler, Memory, PRIORITY_PLATFORM, Piece, Region, Space, Stage};

    const GIB: u64 = 1 << 30;

    struct Nothing;
    impl IoHandler for Nothing {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {}
    }

    fn host(len: u64) -> Arc<HostMem> {
        Arc::new(HostMem::anonymous(len, PageSize::Small).unwrap())
    }

    fn ram(len: u64) -> Region {
        Region::whole("ram", len, PRIORITY_PLATFORM, Backing::Ram(host(len).slice()))
    }

    fn bar(mem: &Arc<HostMem>) -> Region {
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
        for (errno, code) in
            [(libc::ENOMEM, Code::Memlock), (libc::ENOSPC, Code::DmaLimit), (libc::EFAULT, Code::DmaFailed)]
        {
            let s = setup(MapRecorder { refuse: Some(errno), ..MapRecorder::default() });
            let error = s.memory.update(|layout| layout.add(Space::Mmio, 0, ram(4096))).unwrap_err();
            assert_eq!(error.code(), code, "{error}");
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
}
