//! The IOMMU's view of the guest's memory: a listener of the memory layout that maps what devices may reach.
//!
//! | backing | mapped |
//! |---|---|
//! | RAM | always, read and write; a refusal undoes the change of the layout, or ends the guest if it comes later |
//! | ROM | read only; a refusal is a warning, because a guest moves option ROMs |
//! | a passed-through BAR | if another device could reach it (`p2p=`); a refusal is a warning |
//! | registers that trap | never |
//!
//! I/O virtual addresses are guest physical addresses. RAM is mapped by pieces ([`chunks`]), anything else by one request.
//!
//! **In the background** ([`Pinning::background`]): a request pins every page that it maps, and the kernel's lock is held
//! until it is done. So RAM is only checked when it comes into the layout (reserved addresses, alignment, number of
//! mappings) and queued; a thread maps it while the guest boots already. BARs and ROMs that come meanwhile are queued
//! behind all RAM, so a vCPU that moves one never waits for the kernel. What leaves the layout while it is queued is
//! forgotten; what is being mapped at that moment is waited for and then unmapped. RAM that a running guest gets
//! ([`MemoryListener::at_once`]) is mapped before the guest is told of it, because its devices master the bus already. Until the last piece of RAM is mapped
//! the [`Gate`] is closed, and no device of the space gets to master the bus.

mod chunks;
mod gate;
mod prefault;
mod queue;
mod refusal;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex, MutexGuard};

pub use chunks::{CHUNK, chunks};
pub use gate::Gate;
use queue::{Job, State, Use};
pub use refusal::first_reserved;

use super::seams::DmaMapper;
use crate::boot_trace::phases;
use crate::error::{Error, Result};
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

/// How guest RAM is pinned.
#[derive(Clone, Default)]
pub struct Pinning {
    /// Threads that take memory from the host before a request pins it; 0: the request does it.
    pub threads: usize,
    /// They give way to all other threads until a vCPU waits for the memory.
    pub gently: bool,
    /// Who is told by the thread that maps RAM in the background that the gate has an outcome, perhaps more than once;
    /// `None`: RAM is mapped when [`MemoryListener::add`] returns. Called without any lock.
    pub background: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// One IOMMU address space that follows the memory layout. A listener of stage [`crate::memory::Stage::Dma`].
pub struct DmaSpace {
    shared: Arc<Shared>,
    /// The thread that maps what is queued; it ends when nothing is. Taken before `Shared::state`.
    worker: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and the listener share.
struct Shared {
    mapper: Arc<dyn DmaMapper>,
    pinning: Pinning,
    gate: Arc<Gate>,
    /// Taken inside the layout lock. The thread does not hold it while it maps RAM; whoever holds it takes nothing but
    /// the mapper's own lock and the gate's.
    state: Mutex<State>,
    /// The thread is done with a request.
    done: Condvar,
    /// What the thread is at is not wanted any more. Set and cleared with `state` held.
    abandoned: AtomicBool,
    /// RAM that comes now is in use when it is there. Set and read with the layout lock held.
    at_once: AtomicBool,
}

impl DmaSpace {
    /// An empty space that maps RAM at once.
    pub fn new(mapper: Arc<dyn DmaMapper>) -> DmaSpace {
        DmaSpace::with(mapper, Pinning::default())
    }

    /// An empty space.
    pub fn with(mapper: Arc<dyn DmaMapper>, pinning: Pinning) -> DmaSpace {
        let state = Mutex::new(State::of(mapper.backend()));
        let shared = Shared {
            mapper,
            pinning,
            gate: Arc::default(),
            state,
            done: Condvar::new(),
            abandoned: AtomicBool::new(false),
            at_once: AtomicBool::new(false),
        };
        DmaSpace { shared: Arc::new(shared), worker: Mutex::default() }
    }

    /// A group has joined: what can be mapped may have changed, and is read again when it is next needed.
    pub fn group_joined(&self) {
        self.shared.state.lock().forget_limits();
    }

    /// The addresses that can be mapped, ascending.
    pub fn usable(&self) -> Result<Vec<Range<u64>>> {
        let mut state = self.shared.state.lock();
        state.read_limits(&*self.shared.mapper).map(|limits| limits.usable.clone())
    }

    /// What keeps devices from DMA until all RAM is mapped.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.shared.gate
    }

    /// Sets how many devices of the machine are passed through; BARs become or cease to be mapped accordingly.
    pub fn set_devices(&self, devices: usize) {
        let mut state = self.shared.state.lock();
        state.devices = devices;
        self.shared.settle_bars(&mut state);
    }

    /// Sets whether the BAR behind this mapping may be reached by other devices.
    pub fn set_policy(&self, bar: &Arc<HostMem>, policy: PeerToPeer) {
        let mut state = self.shared.state.lock();
        state.set_policy(bar, policy);
        self.shared.settle_bars(&mut state);
    }

    /// How many ranges are mapped.
    pub fn mappings(&self) -> usize {
        self.shared.state.lock().mapped.len()
    }

    /// How many bytes are mapped.
    pub fn mapped_bytes(&self) -> u64 {
        self.shared.state.lock().mapped.values().sum()
    }

    fn add_ram(&self, range: &FlatRange, host: &HostSlice) -> Result<()> {
        let shared = &self.shared;
        let jobs: Vec<Job> = chunks(range.start..range.end())
            .map(|piece| {
                let host = host.cut(piece.start - range.start, piece.end - piece.start);
                Job { range: piece, name: range.name.clone(), host, kind: Use::Ram }
            })
            .collect();
        let mut worker = self.worker.lock();
        let mut state = shared.state.lock();
        state.admit(&*shared.mapper, &jobs)?;
        if shared.pinning.background.is_none() || shared.at_once.load(Ordering::Relaxed) {
            return shared.map_now(&mut state, jobs);
        }
        let count = jobs.len();
        shared.gate.expect(count);
        state.ram.extend(jobs);
        if !state.working {
            // The one before has nothing left to do but to end.
            worker.take().map(JoinHandle::join);
            let of_thread = shared.clone();
            match thread::Builder::new().name("dma-map".into()).spawn(move || of_thread.work()) {
                Ok(handle) => {
                    state.working = true;
                    *worker = Some(handle);
                }
                Err(error) => {
                    let jobs = state.ram.drain(..).count();
                    state.give_back(jobs);
                    shared.gate.settled(count);
                    return Err(Error::system("start a thread", &error));
                }
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Maps pieces of RAM one after the other, all or none.
    fn map_now(&self, state: &mut State, jobs: Vec<Job>) -> Result<()> {
        for (at, job) in jobs.iter().enumerate() {
            self.prefault(job);
            if let Err(refusal) = job.request(&*self.mapper) {
                let missing = jobs[at..].iter().map(|job| job.host.len()).sum();
                let error = state.ram_error(refusal, &job.range, missing);
                jobs[..at].iter().for_each(|job| state.unmap(&*self.mapper, job.range.start));
                state.give_back(jobs.len() - at);
                return Err(error);
            }
            state.mapped.insert(job.range.start, job.host.len());
        }
        Ok(())
    }

    fn prefault(&self, job: &Job) {
        let _span = job.span(phases::PREFAULT);
        let patience = self.pinning.gently.then_some(&*self.gate);
        prefault::prefault(&job.host, self.pinning.threads, patience, &self.abandoned);
    }

    /// The thread: maps what is queued, RAM first, and ends when nothing is.
    fn work(&self) {
        loop {
            let mut state = self.state.lock();
            let Some(job) = state.next() else {
                state.working = false;
                drop(state);
                // Also where the last piece was not mapped but taken back.
                return self.tell();
            };
            state.running = Some(job.range.clone());
            match job.kind {
                Use::Ram => {
                    drop(state);
                    self.map_ram(&job);
                }
                Use::Rom | Use::Bar => {
                    let admitted = state.check(&*self.mapper, &job);
                    drop(state);
                    let answer = admitted.and_then(|()| job.request(&*self.mapper));
                    self.finish(&mut self.state.lock(), |state| state.record(&job, answer));
                }
            }
        }
    }

    fn map_ram(&self, job: &Job) {
        self.prefault(job);
        if self.abandoned.load(Ordering::Relaxed) {
            self.finish(&mut self.state.lock(), |state| state.give_back(1));
            return self.gate.settled(1);
        }
        let answer = job.request(&*self.mapper);
        let mut state = self.state.lock();
        let Err(refusal) = answer else {
            self.finish(&mut state, |state| state.mapped.insert(job.range.start, job.host.len()));
            self.gate.settled(1);
            drop(state);
            if self.gate.is_open() {
                self.tell();
            }
            return;
        };
        let missing = state.ram.iter().chain([job]).map(|job| job.host.len()).sum();
        let error = state.ram_error(refusal, &job.range, missing);
        let left = state.ram.drain(..).count();
        self.gate.fail(error);
        self.finish(&mut state, |state| state.give_back(left + 1));
        drop(state);
        self.tell();
    }

    fn tell(&self) {
        if let Some(tell) = &self.pinning.background {
            tell();
        }
    }

    /// What the thread is at is not wanted any more. With `state` held.
    fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
        self.gate.nudge();
    }

    /// The end of the thread's request.
    fn finish<R>(&self, state: &mut State, then: impl FnOnce(&mut State) -> R) {
        then(state);
        state.running = None;
        self.abandoned.store(false, Ordering::Relaxed);
        self.done.notify_all();
    }

    /// Maps a BAR or a ROM: now if the kernel's lock is free, else behind what is queued.
    fn submit(&self, state: &mut State, job: Job) {
        match state.working {
            true => state.others.push_back(job),
            false => {
                let answer = state.check(&*self.mapper, &job).and_then(|()| job.request(&*self.mapper));
                state.record(&job, answer);
            }
        }
    }

    /// Undoes what [`Shared::submit`] or the queueing of RAM did, if it was for exactly this range.
    fn withdraw(&self, state: &mut MutexGuard<'_, State>, range: &Range<u64>) {
        while state.running.as_ref() == Some(range) {
            self.abandon();
            self.done.wait(state);
        }
        match state.cancel(range) {
            Some(Use::Ram) => {
                state.give_back(1);
                self.gate.settled(1);
            }
            Some(Use::Rom | Use::Bar) => {}
            // Only what is exactly this range: a BAR's range that was refused may start where RAM was mapped before.
            None if state.mapped.get(&range.start) == Some(&(range.end - range.start)) => {
                state.unmap(&*self.mapper, range.start);
            }
            None => {}
        }
    }

    /// Maps the BARs that other devices may now reach and unmaps those that they may not.
    fn settle_bars(&self, state: &mut MutexGuard<'_, State>) {
        for bar in state.bars.values().cloned().collect::<Vec<_>>() {
            let (Backing::Device(host) | Backing::Shared(host)) = &bar.backing else { continue };
            let range = bar.start..bar.end();
            match (state.wants(&bar), state.has(&range)) {
                (true, false) => self.submit(state, Job::of(&bar, host, Use::Bar)),
                (false, true) => self.withdraw(state, &range),
                _ => {}
            }
        }
    }
}

impl MemoryListener for DmaSpace {
    fn remove(&self, range: &FlatRange) {
        let mut state = self.shared.state.lock();
        let whole = range.start..range.end();
        match &range.backing {
            // The last first: what is queued is forgotten before what is being mapped is waited for.
            Backing::Ram(_) => {
                let pieces: Vec<_> = chunks(whole).collect();
                pieces.iter().rev().for_each(|piece| self.shared.withdraw(&mut state, piece));
            }
            _ => {
                state.bars.remove(&range.start);
                self.shared.withdraw(&mut state, &whole);
            }
        }
    }

    fn add(&self, range: &FlatRange) -> Result<()> {
        match &range.backing {
            Backing::Ram(host) => self.add_ram(range, host)?,
            Backing::Rom(host) => {
                let mut state = self.shared.state.lock();
                self.shared.submit(&mut state, Job::of(range, host, Use::Rom));
            }
            Backing::Device(host) | Backing::Shared(host) => {
                let mut state = self.shared.state.lock();
                state.bars.insert(range.start, range.clone());
                if state.wants(range) {
                    self.shared.submit(&mut state, Job::of(range, host, Use::Bar));
                }
            }
            Backing::RomDevice { .. } | Backing::Io { .. } => {}
        }
        Ok(())
    }

    fn at_once(&self, on: bool) {
        self.shared.at_once.store(on, Ordering::Relaxed);
    }
}

impl Drop for DmaSpace {
    fn drop(&mut self) {
        {
            let mut state = self.shared.state.lock();
            state.ram.clear();
            state.others.clear();
            if state.running.is_some() {
                self.shared.abandon();
            }
        }
        if let Some(worker) = self.worker.lock().take()
            && worker.join().is_err()
        {
            guest_error!("dma", "the thread that maps memory has failed");
        }
    }
}

#[cfg(test)]
mod background_tests;
#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, clippy::type_complexity, reason = "tables of ranges")]
mod tests;
