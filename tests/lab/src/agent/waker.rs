//! Keeps L1 from stalling. QEMU 10.0's emulation of SVM loses interrupts in two ways, each in a race:
//!
//! - A local APIC has a pending interrupt, and the processor was not told. Any other interrupt tells it again.
//! - A local APIC keeps an interrupt in service that nobody handles: it was seen with the timer's vector. Nothing but
//!   the end of it (EOI) lets the processor have its timer, and any interrupt of a device, again.
//!
//! Two threads, each pinned to one of L1's processors, wake each other every 20 ms by an interrupt of the highest priority,
//! which comes through all the same. A thread that runs is in no handler: what its processor's APIC has in service then
//! is lost, and the thread ends it.
//!
//! The kernel sends one interrupt for one thing to do. Was it that one of which the processor was not told, then none
//! follows: a thread that is not heard for some time sends the next ones itself, that of the timer among them.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::libc::O_SYNC;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

const PERIOD: Duration = Duration::from_millis(20);
/// Periods in which a thread may be unheard because its processor is busy: L0 gives it no time, or it runs a guest.
const PATIENCE: u32 = 25;
/// Linux's vectors (arch/x86/include/asm/irq_vectors.h) of the interrupts by which a processor looks whether it has
/// something to do and what its timer is due for. Both do no harm where there is nothing.
const RESCHEDULE_VECTOR: u32 = 0xfd;
const LOCAL_TIMER_VECTOR: u32 = 0xec;

/// Starts the two threads; they run for ever.
pub fn start() -> Result<()> {
    let (to_second, from_first) = mpsc::sync_channel(1);
    let (to_first, from_second) = mpsc::sync_channel(1);
    thread::spawn(move || keep_awake(0, &from_second, &to_second));
    thread::spawn(move || keep_awake(1, &from_first, &to_first));
    Ok(())
}

/// Wakes the other thread once in a period. Is woken by it, also where this processor's timer is dead.
fn keep_awake(cpu: u8, from: &Receiver<()>, to: &SyncSender<()>) {
    let mut set = CpuSet::new();
    if set.set(usize::from(cpu)).is_ok() {
        // A machine with one processor leaves the thread where it is.
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
    let apic = Apic::open();
    if let Err(error) = &apic {
        eprintln!("lab agent: lost interrupts are not ended: {error:#}");
    }
    let mut next = Instant::now() + PERIOD;
    let mut unheard = 0;
    loop {
        match from.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => {
                next = Instant::now() + PERIOD;
                match to.try_send(()) {
                    Ok(()) => unheard = 0,
                    // The other thread has not run since the last time.
                    Err(TrySendError::Full(())) => unheard += 1,
                    Err(TrySendError::Disconnected(())) => return,
                }
                if unheard >= PATIENCE
                    && let Ok(apic) = &apic
                {
                    unheard = 0;
                    apic.interrupt(1 - cpu, RESCHEDULE_VECTOR);
                    apic.interrupt(1 - cpu, LOCAL_TIMER_VECTOR);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if let Ok(apic) = &apic
            && let Some(vector) = apic.in_service()
        {
            apic.end();
            eprintln!("lab agent: processor {cpu}: L0 has lost the interrupt with vector {vector}, which is ended");
        }
    }
}

/// The registers of the local APIC of the processor that this thread runs on (Intel SDM 3A, 11.4.1; AMD APM 2, 16.3.2).
struct Apic(MmapRegion);

impl Apic {
    /// Where every processor finds its own.
    const BASE: u64 = 0xfee0_0000;
    const LEN: usize = 4096;
    const VERSION: usize = 0x30;
    const EOI: usize = 0xb0;
    /// Interrupt command: writing the low half sends it; the APIC's id stands in the top byte of the high half.
    const COMMAND_LOW: usize = 0x300;
    const COMMAND_HIGH: usize = 0x310;
    /// In service: eight registers of 32 vectors, 16 bytes apart.
    const IN_SERVICE: usize = 0x100;

    fn open() -> Result<Self> {
        let memory = File::options().read(true).write(true).custom_flags(O_SYNC).open("/dev/mem")?;
        let apic = Self(MmapRegion::from_file(FileOffset::new(memory, Self::BASE), Self::LEN)?);
        let version = apic.read(Self::VERSION)?;
        // Zero or ones: it is in x2APIC mode, where it has no registers in memory.
        ensure!(version != 0 && version != u32::MAX, "there is no local APIC at {:#x}", Self::BASE);
        Ok(apic)
    }

    fn read(&self, at: usize) -> Result<u32> {
        Ok(self.0.get_ref::<u32>(at).context("outside of the registers")?.load())
    }

    /// The highest vector in service.
    fn in_service(&self) -> Option<u32> {
        (0..8u32).rev().find_map(|index| {
            let bits = self.read(Self::IN_SERVICE + index as usize * 0x10).ok()?;
            (bits != 0).then(|| index * 32 + bits.ilog2())
        })
    }

    /// Sends the processor whose APIC has the id `to` an interrupt (fixed delivery, edge).
    fn interrupt(&self, to: u8, vector: u32) {
        if let (Ok(high), Ok(low)) =
            (self.0.get_ref::<u32>(Self::COMMAND_HIGH), self.0.get_ref::<u32>(Self::COMMAND_LOW))
        {
            high.store(u32::from(to) << 24);
            low.store(vector);
        }
    }

    /// Ends the interrupt with the highest vector in service.
    fn end(&self) {
        if let Ok(register) = self.0.get_ref::<u32>(Self::EOI) {
            register.store(0);
        }
    }
}
