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
use crate::host::Host;
use crate::host::limits::memlock::{LockRights, MemlockPlan, plan_memlock};
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
                Some(Errno::ENOMEM) => no_memory(&what, at.end - at.start, &error, &Host::real().lock_rights()),
                Some(Errno::ENOSPC) => Refusal::Limit.for_ram(at, usable, mapped),
                _ => Error::new(Code::DmaFailed, format!("{what} could not be mapped for DMA"))
                    .evidence(format!("VFIO_IOMMU_MAP_DMA: {}", explain_io(&error))),
            },
            Refusal::Unknown(error) => error,
        }
    }
}

/// ENOMEM: the limit of locked memory, if it does not suffice, else the host has no page left to pin.
fn no_memory(what: &str, needed: u64, answer: &io::Error, rights: &LockRights) -> Error {
    let asked = format!("VFIO_IOMMU_MAP_DMA of {what}: {}", explain_io(answer));
    match plan_memlock(needed, rights) {
        Err(error) => error.evidence(asked),
        Ok(MemlockPlan::Raise(hard)) => Error::new(Code::Memlock, format!("{what} could not be pinned"))
            .evidence(asked)
            .evidence(format!("RLIMIT_MEMLOCK of this process: soft {} bytes, hard {hard} bytes", rights.soft))
            .fix("`ulimit -S -l hard` before it"),
        Ok(MemlockPlan::Enough) => Error::new(Code::DmaFailed, format!("{what} could not be pinned"))
            .evidence(asked)
            .evidence("the limit of locked memory suffices: the host has no memory left for it")
            .fix("give the guest less memory with -m, or free memory"),
    }
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
mod tests;
