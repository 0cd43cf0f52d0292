//! Histogram triggers of Linux's tracing (kernel document `trace/histogram`): one counter
//! for each value of an event's field.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const EVENTS: &str = "/sys/kernel/tracing/events";

/// Hits for each value of the key.
pub type Histogram = BTreeMap<u64, u64>;

/// Events and the field that each one is counted by.
const TRIGGERS: &[(&str, &str)] = &[
    ("kvm/kvm_userspace_exit", "reason:size=4096"),
    ("kvm/kvm_pio", "port:size=4096"),
    // Type 0 announces a read that user space will answer; type 1 follows it.
    ("kvm/kvm_mmio", "gpa:size=4096 if type!=0"),
    ("kvm/kvm_exit", "exit_reason:size=4096"),
    ("kvm/kvm_msr", "ecx:size=4096 if write!=0"),
    ("raw_syscalls/sys_enter", "common_pid:size=4096"),
];

/// All counters at one moment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Returns of KVM_RUN to user space, by KVM exit reason.
    pub to_user: Histogram,
    /// Port accesses that left the guest, by port.
    pub ports: Histogram,
    /// Memory accesses that left the guest, by guest physical address.
    pub mmio: Histogram,
    /// All VM exits, by the processor's exit code.
    pub exits: Histogram,
    /// Writes of model-specific registers that left the guest, by register.
    pub msrs: Histogram,
    /// System calls, by thread.
    pub calls: Histogram,
}

/// The local APIC's registers in x2APIC mode (Intel SDM volume 3, 12.12.1.2), and the deadline of its timer: who counts
/// time writes them for each tick.
const TICKS: [u64; 3] = [0x80b, 0x838, 0x6e0];
/// Host interrupt: follows wall time, not what the guest does (AMD APM, appendix C).
pub const EXIT_INTR: u64 = 0x60;
/// Nested page fault.
pub const EXIT_NPF: u64 = 0x400;
/// KVM exit reason of an access that a signal interrupted (`KVM_EXIT_INTR`).
pub const KVM_EXIT_INTR: u64 = 10;

impl Counts {
    /// Starts all counters at zero.
    pub fn start() -> Result<()> {
        Self::stop();
        for (event, key) in TRIGGERS {
            let file = format!("{EVENTS}/{event}/trigger");
            fs::write(&file, format!("hist:keys={key}")).with_context(|| format!("cannot count {event}"))?;
        }
        Ok(())
    }

    /// Takes the counters away.
    pub fn stop() {
        for (event, key) in TRIGGERS {
            let file = format!("{EVENTS}/{event}/trigger");
            // Fails when there is none, which is what is wanted.
            let _ = fs::write(file, format!("!hist:keys={key}"));
        }
    }

    /// Reads all counters.
    pub fn read() -> Result<Self> {
        let one = |event: &str| -> Result<Histogram> {
            let text = fs::read_to_string(format!("{EVENTS}/{event}/hist"))?;
            Ok(parse(&text))
        };
        Ok(Self {
            to_user: one("kvm/kvm_userspace_exit")?,
            ports: one("kvm/kvm_pio")?,
            mmio: one("kvm/kvm_mmio")?,
            exits: one("kvm/kvm_exit")?,
            msrs: one("kvm/kvm_msr")?,
            calls: one("raw_syscalls/sys_enter")?,
        })
    }

    /// Returns to user space that the guest caused, with their sum.
    pub fn user_exits(&self) -> u64 {
        let own = self.to_user.iter().filter(|(k, _)| **k != KVM_EXIT_INTR);
        own.map(|(_, n)| n).sum()
    }

    /// VM exits without those for host interrupts.
    pub fn guest_exits(&self) -> u64 {
        let own = self.exits.iter().filter(|(k, _)| **k != EXIT_INTR);
        own.map(|(_, n)| n).sum()
    }

    /// VM exits for the guest's timer, which follow wall time too: its registers, and the end of interrupts.
    pub fn ticks(&self) -> u64 {
        TICKS.iter().filter_map(|register| self.msrs.get(register)).sum()
    }

    /// System calls of these threads.
    pub fn calls_of(&self, threads: &BTreeSet<u64>) -> u64 {
        threads.iter().filter_map(|thread| self.calls.get(thread)).sum()
    }

    /// Nested page faults.
    pub fn page_faults(&self) -> u64 {
        self.exits.get(&EXIT_NPF).copied().unwrap_or(0)
    }

    /// Accesses to the IOAPIC, each of which is a nested page fault on AMD.
    pub fn ioapic(&self) -> u64 {
        self.mmio.range(0xfec0_0000..0xfec0_1000).map(|(_, n)| n).sum()
    }

    /// Accesses to the first serial port.
    pub fn console(&self) -> u64 {
        self.ports.range(0x3f8..=0x3ff).map(|(_, n)| n).sum()
    }
}

/// Reads lines like `{ port:       3324 } hitcount:         12`.
fn parse(text: &str) -> Histogram {
    text.lines()
        .filter_map(|line| {
            let (key, rest) = line.strip_prefix("{ ")?.split_once('}')?;
            let value = number(key.split_once(':')?.1.trim())?;
            let hits = rest.split_once("hitcount:")?.1;
            Some((value, hits.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

/// Decimal, also negative as two's complement, or hexadecimal with 0x.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok().or_else(|| text.parse::<i64>().ok().map(i64::cast_unsigned)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# event histogram\n#\n# trigger info: hist:keys=port:vals=hitcount:sort=hitcount:size=4096 [active]\n#\n\n\
        { port:         64 } hitcount:          1\n\
        { port:       1016 } hitcount:        160\n\
        { gpa: 0xfee00300 } hitcount:  7\n\
        { reason:         -1 } hitcount:  2\n\n\
        Totals:\n    Hits: 161\n    Entries: 2\n    Dropped: 0\n";

    #[test]
    fn lines_become_counters() {
        let counts = parse(TEXT);
        assert_eq!(counts, BTreeMap::from([(64, 1), (1016, 160), (0xfee0_0300, 7), (u64::MAX, 2)]));
        assert!(parse("").is_empty());
    }

    #[test]
    fn sums_leave_out_what_the_guest_did_not_cause() {
        let counts = Counts {
            to_user: BTreeMap::from([(2, 10), (6, 5), (KVM_EXIT_INTR, 3)]),
            ports: BTreeMap::from([(0x3f8, 4), (0x3fd, 2), (0xcf8, 9)]),
            mmio: BTreeMap::new(),
            exits: BTreeMap::from([(EXIT_INTR, 100), (EXIT_NPF, 7), (0x7b, 1)]),
            msrs: BTreeMap::from([(0x6e0, 4), (0x80b, 3), (0x10, 9)]),
            calls: BTreeMap::from([(100, 5), (101, 6), (200, 7)]),
        };
        assert_eq!(counts.user_exits(), 15);
        assert_eq!(counts.guest_exits(), 8);
        assert_eq!(counts.page_faults(), 7);
        assert_eq!(counts.ticks(), 7);
        assert_eq!(counts.calls_of(&BTreeSet::from([100, 101, 102])), 11);
        assert_eq!(counts.console(), 6);
    }
}
