//! How often each vCPU came back from the kernel, and why.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why KVM_RUN returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    IoRead,
    IoWrite,
    MmioRead,
    MmioWrite,
    Interrupted,
    Other,
}

/// One vCPU's counters. Only its own thread writes them, so a plain load and store suffice. A cache line to themselves:
/// neighbours' exits do not slow each other.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Counters([AtomicU64; 6]);

impl Counters {
    /// Counts an exit; called by the vCPU's thread.
    pub(super) fn count(&self, kind: Kind) {
        let Some(counter) = self.0.get(kind as usize) else { return };
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// The counts so far; callable from any thread.
    pub(super) fn snapshot(&self) -> ExitCounts {
        let [io_reads, io_writes, mmio_reads, mmio_writes, interrupted, other] =
            self.0.each_ref().map(|counter| counter.load(Ordering::Relaxed));
        ExitCounts { io_reads, io_writes, mmio_reads, mmio_writes, interrupted, other }
    }
}

/// Exits to user space since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExitCounts {
    /// Reads of ports; a string instruction that KVM gathers is one.
    pub io_reads: u64,
    /// Writes of ports.
    pub io_writes: u64,
    /// Reads of trapped memory.
    pub mmio_reads: u64,
    /// Writes of trapped memory.
    pub mmio_writes: u64,
    /// Returns because of a signal, and of a processor that waited for its start.
    pub interrupted: u64,
    /// Everything else, such as a triple fault.
    pub other: u64,
}

impl ExitCounts {
    /// The counts, each with its cause.
    pub fn by_cause(&self) -> [(&'static str, u64); 6] {
        [
            ("port-read", self.io_reads),
            ("port-write", self.io_writes),
            ("mmio-read", self.mmio_reads),
            ("mmio-write", self.mmio_writes),
            ("interrupted", self.interrupted),
            ("other", self.other),
        ]
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        let ExitCounts { io_reads, io_writes, mmio_reads, mmio_writes, interrupted, other } = self;
        io_reads + io_writes + mmio_reads + mmio_writes + interrupted + other
    }
}

impl std::ops::AddAssign for ExitCounts {
    fn add_assign(&mut self, more: ExitCounts) {
        self.io_reads += more.io_reads;
        self.io_writes += more.io_writes;
        self.mmio_reads += more.mmio_reads;
        self.mmio_writes += more.mmio_writes;
        self.interrupted += more.interrupted;
        self.other += more.other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_counter() {
        let counters = Counters::default();
        let kinds = [Kind::IoRead, Kind::IoWrite, Kind::MmioRead, Kind::MmioWrite, Kind::Interrupted, Kind::Other];
        for (times, kind) in kinds.into_iter().enumerate() {
            (0..=times).for_each(|_| counters.count(kind));
        }
        let mut counts = counters.snapshot();
        let expected =
            ExitCounts { io_reads: 1, io_writes: 2, mmio_reads: 3, mmio_writes: 4, interrupted: 5, other: 6 };
        assert_eq!(counts, expected);
        counts += expected;
        assert_eq!(counts.total(), 42);
    }
}
