//! What a DMA space knows: what is mapped, what is queued, and what could be mapped. No thread and no waiting here.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};

use super::PeerToPeer;
use super::refusal::{Refusal, first_reserved, text};
use crate::boot_trace::{self, Span, phases};
use crate::error::{Error, Result};
use crate::guest_error;
use crate::memory::{Backing, FlatRange, HostMem, HostSlice};
use crate::vfio::backend::Backend;
use crate::vfio::seams::{DmaLimits, DmaMapper};

/// What a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Ram,
    Rom,
    Bar,
}

/// One request to the IOMMU.
pub(super) struct Job {
    pub range: Range<u64>,
    pub name: Arc<str>,
    pub host: HostSlice,
    pub kind: Use,
}

impl Job {
    pub(super) fn of(range: &FlatRange, host: &HostSlice, kind: Use) -> Job {
        Job { range: range.start..range.end(), name: range.name.clone(), host: host.clone(), kind }
    }

    /// A phase of the start that is about this range, named as errors name it.
    pub(super) fn span(&self, phase: &'static str) -> Span {
        boot_trace::phase(phase).bytes(self.host.len()).what(|| text(&self.range))
    }

    pub(super) fn request(&self, mapper: &dyn DmaMapper) -> Result<(), Refusal> {
        let _span = self.span(phases::DMA_MAP);
        mapper.map(self.range.start, self.host.clone(), self.kind != Use::Rom).map_err(Refusal::Kernel)
    }
}

#[derive(Default)]
pub(super) struct State {
    /// Whose requests they are.
    backend: Backend,
    /// Read when it is first needed after a group joined.
    limits: Option<DmaLimits>,
    /// How many more mappings the kernel takes, when all queued RAM is mapped.
    budget: Option<u32>,
    /// Passed-through devices of the whole machine.
    pub devices: usize,
    /// Exceptions from [`PeerToPeer::Auto`], for BARs whose mapping still exists.
    policies: Vec<(Weak<HostMem>, PeerToPeer)>,
    /// Every BAR that the guest has placed, mapped or not, by guest address.
    pub bars: BTreeMap<u64, FlatRange>,
    /// Devices of which the user was told that others cannot reach their BARs.
    unreachable: BTreeSet<String>,
    /// What is mapped: address and length.
    pub mapped: BTreeMap<u64, u64>,
    /// Pieces of RAM that are checked and counted but not mapped yet.
    pub ram: VecDeque<Job>,
    /// BARs and ROMs that wait for the RAM.
    pub others: VecDeque<Job>,
    /// What the thread maps at this moment.
    pub running: Option<Range<u64>>,
    /// The thread looks at the queues again before it ends.
    pub working: bool,
}

impl State {
    pub(super) fn of(backend: Backend) -> State {
        State { backend, ..State::default() }
    }

    pub(super) fn forget_limits(&mut self) {
        self.limits = None;
        self.budget = None;
    }

    pub(super) fn read_limits(&mut self, mapper: &dyn DmaMapper) -> Result<&DmaLimits> {
        let limits = match self.limits.take() {
            Some(limits) => limits,
            None => {
                let limits = mapper.limits()?;
                // What is running may be counted by the kernel already, or not.
                let promised = self.ram.len() + usize::from(self.running.is_some());
                let promised = u32::try_from(promised).unwrap_or(u32::MAX);
                self.budget = limits.available.map(|left| left.saturating_sub(promised));
                limits
            }
        };
        Ok(self.limits.insert(limits))
    }

    pub(super) fn set_policy(&mut self, bar: &Arc<HostMem>, policy: PeerToPeer) {
        self.policies.retain(|(known, _)| known.strong_count() > 0 && !std::ptr::eq(known.as_ptr(), Arc::as_ptr(bar)));
        if policy != PeerToPeer::Auto {
            self.policies.push((Arc::downgrade(bar), policy));
        }
    }

    /// Whether other devices may reach the BAR.
    pub(super) fn wants(&self, bar: &FlatRange) -> bool {
        let Some(host) = bar.backing.host() else { return false };
        if matches!(bar.backing, Backing::Shared(_)) {
            return true;
        }
        // The address of a weak pointer is not used again while it exists.
        let policy = self.policies.iter().find(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(host.mem())));
        match policy.map(|(_, policy)| *policy).unwrap_or_default() {
            PeerToPeer::Auto => self.devices > 1,
            PeerToPeer::On => true,
            PeerToPeer::Off => false,
        }
    }

    /// Whether the range is mapped or will be.
    pub(super) fn has(&self, range: &Range<u64>) -> bool {
        self.mapped.contains_key(&range.start)
            || self.running.as_ref() == Some(range)
            || self.others.iter().any(|job| job.range == *range)
    }

    /// The next request: RAM, then what waits for it.
    pub(super) fn next(&mut self) -> Option<Job> {
        self.ram.pop_front().or_else(|| self.others.pop_front())
    }

    /// Takes a request out of its queue.
    pub(super) fn cancel(&mut self, range: &Range<u64>) -> Option<Use> {
        [&mut self.ram, &mut self.others].into_iter().find_map(|queue| {
            let at = queue.iter().position(|job| job.range == *range)?;
            queue.remove(at).map(|job| job.kind)
        })
    }

    /// Checks pieces of RAM, and takes a mapping for each.
    pub(super) fn admit(&mut self, mapper: &dyn DmaMapper, jobs: &[Job]) -> Result<()> {
        for (at, job) in jobs.iter().enumerate() {
            if let Err(refusal) = self.check(mapper, job) {
                self.give_back(at);
                let missing = jobs.iter().map(|job| job.host.len()).sum();
                return Err(self.ram_error(refusal, &job.range, missing));
            }
        }
        Ok(())
    }

    /// So many mappings that were taken are free again.
    pub(super) fn give_back(&mut self, mappings: usize) {
        let mappings = u32::try_from(mappings).unwrap_or(u32::MAX);
        self.budget = self.budget.map(|left| left.saturating_add(mappings));
    }

    pub(super) fn ram_error(&self, refusal: Refusal, at: &Range<u64>, missing: u64) -> Error {
        let usable = self.limits.as_ref().map(|limits| limits.usable.as_slice()).unwrap_or_default();
        refusal.for_ram(self.backend, at, missing, usable, self.mapped.len())
    }

    /// Whether it can be mapped, as far as that is known before the kernel is asked; takes a mapping.
    pub(super) fn check(&mut self, mapper: &dyn DmaMapper, job: &Job) -> Result<(), Refusal> {
        let limits = self.read_limits(mapper).map_err(Refusal::Unknown)?;
        let granule = limits.granule();
        if !job.range.start.is_multiple_of(granule) || !job.host.addr().is_multiple_of(granule) {
            return Err(Refusal::Odd);
        }
        if let Some(reserved) = first_reserved(&limits.usable, job.range.clone()) {
            return Err(Refusal::Reserved(reserved));
        }
        match &mut self.budget {
            Some(0) => return Err(Refusal::Limit),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    /// Remembers what the request for a BAR or a ROM came to, or says why it is not mapped.
    pub(super) fn record(&mut self, job: &Job, answer: Result<(), Refusal>) {
        let refusal = match answer {
            Ok(()) => {
                self.mapped.insert(job.range.start, job.host.len());
                return;
            }
            Err(refusal) => refusal,
        };
        if let Refusal::Kernel(_) = refusal {
            self.give_back(1);
        }
        match job.kind {
            Use::Bar => {
                // The name is that of the device, then the BAR's: its other BARs would say the same.
                let device = job.name.rsplit_once(' ').map_or(&*job.name, |(device, _)| device);
                if self.unreachable.insert(device.to_owned()) {
                    guest_error!(device, "other devices cannot reach it by DMA: {}", refusal.reason());
                }
            }
            _ => guest_error!(job.name, "devices cannot read it by DMA: {}", refusal.reason()),
        }
    }

    pub(super) fn unmap(&mut self, mapper: &dyn DmaMapper, start: u64) {
        let Some(len) = self.mapped.remove(&start) else { return };
        match mapper.unmap(start, len) {
            Ok(()) => self.give_back(1),
            // The mapper keeps the memory: a device may still reach it, and finds what it was.
            Err(error) => guest_error!("dma", "the kernel kept a mapping at {start:#x}: {error}"),
        }
    }
}
