//! What can be found out about an L1 that does not answer any more: where its processors stand, and what its kernel shows
//! when a non-maskable interrupt ends it.

use std::fmt::Write as _;
use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::qmp::Monitor;
use super::{L0, L1_CONSOLE};

/// Words of L1's command line: an NMI that nobody has asked for is a panic, and a panic shows all tasks (1), the timers
/// (4) and the stacks of all processors (0x40) on the console.
pub const KERNEL_OPTIONS: &str = "unknown_nmi_panic panic_print=0x45";

/// The record in the run's folder.
const RECORD: &str = "l0-stall.log";
/// Between two looks at the registers: a processor that is at work stands elsewhere then.
const PAUSE: Duration = Duration::from_secs(2);
/// How long L1's kernel may take for its last words: a hundred stacks on a serial port.
const LAST_WORDS: Duration = Duration::from_secs(60);

/// Writes the record, lets L1's kernel end, and says in a line for each processor where it stood.
///
/// # Errors
/// QEMU does not answer either. What was found until then is in the record.
pub fn record(l0: &mut L0) -> Result<String> {
    let mut monitor = l0.monitor()?;
    let mut log = String::new();
    let mut summary = String::new();
    for look in 1..=2 {
        let registers = monitor.human("info registers -a")?;
        for processor in processors(&registers) {
            let _ = writeln!(summary, "look {look}: {}", processor.describe());
        }
        log += &registers;
        if look == 1 {
            thread::sleep(PAUSE);
        }
    }
    for question in ["info lapic 0", "info lapic 1", "info pic", "info irq", "info jit"] {
        let answer = monitor.human(question)?;
        let _ = writeln!(log, "{question}\n{answer}");
    }
    // Kept before the NMI: QEMU ends with L1.
    fs::write(l0.folder().join(RECORD), format!("{summary}\n{log}"))?;
    last_words(l0, &mut monitor)?;
    let console = fs::read(l0.folder().join(L1_CONSOLE))?;
    for line in said(&String::from_utf8_lossy(&console)) {
        let _ = writeln!(summary, "{line}");
    }
    Ok(summary)
}

/// Sends the NMI. The panic ends L1, and QEMU with it, for it does not reboot.
fn last_words(l0: &mut L0, monitor: &mut Monitor) -> Result<()> {
    monitor.run("inject-nmi", json!({}))?;
    l0.ended_within(LAST_WORDS);
    Ok(())
}

/// One processor, as `info registers` shows it.
#[derive(Debug, PartialEq, Eq)]
struct Processor {
    number: u32,
    rip: u64,
    flags: u64,
    privilege: u8,
    halted: bool,
}

/// Lines of a panic that say where processors stand.
const SAID: [&str; 3] = ["Kernel panic - ", "NMI backtrace for cpu", "RIP: 0010:"];
/// How many of them are looked at: two processors, and who panics.
const SAID_LINES: usize = 10;

/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;

impl Processor {
    fn describe(&self) -> String {
        format!(
            "processor {} {} at {:#x}, privilege {}, interrupts {}",
            self.number,
            if self.halted { "halted" } else { "runs" },
            self.rip,
            self.privilege,
            if self.flags & INTERRUPTS == 0 { "off" } else { "on" }
        )
    }
}

/// The processors in what `info registers -a` says.
fn processors(text: &str) -> Vec<Processor> {
    let mut found: Vec<Processor> = Vec::new();
    for line in text.lines() {
        if let Some(number) = line.trim().strip_prefix("CPU#").and_then(|number| number.parse().ok()) {
            found.push(Processor { number, rip: 0, flags: 0, privilege: 0, halted: false });
        }
        let Some(last) = found.last_mut() else { continue };
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some(("RIP" | "EIP", value)) => last.rip = u64::from_str_radix(value, 16).unwrap_or(0),
                Some(("RFL" | "EFL", value)) => last.flags = u64::from_str_radix(value, 16).unwrap_or(0),
                Some(("CPL", value)) => last.privilege = value.parse().unwrap_or(0),
                Some(("HLT", value)) => last.halted = value == "1",
                _ => {}
            }
        }
    }
    found
}

/// What the panic says of the processors, without the rest of it.
fn said(console: &str) -> Vec<&str> {
    let wanted = |line: &&str| SAID.iter().any(|words| line.contains(words));
    let mut lines: Vec<&str> = console.lines().filter(wanted).map(str::trim_end).take(SAID_LINES).collect();
    lines.dedup_by_key(|line| line.split_once(']').map_or(*line, |(_, text)| text));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_described_by_its_place_and_state() {
        let text = "\nCPU#0\nRAX=0000000000000000 RBX=0000000000000000\n\
                    RIP=ffffffff81000015 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\n\
                    \nCPU#1\nRIP=ffffffffc0400000 RFL=00000046 [---Z-P-] CPL=3 II=0 A20=1 SMM=0 HLT=0\n";
        let lines: Vec<_> = processors(text).iter().map(Processor::describe).collect();
        assert_eq!(
            lines,
            [
                "processor 0 halted at 0xffffffff81000015, privilege 0, interrupts on",
                "processor 1 runs at 0xffffffffc0400000, privilege 3, interrupts off",
            ]
        );
    }

    #[test]
    fn the_places_of_processors_are_taken_out_of_a_panic() {
        let console = "[   1.0] noise\n[   2.0] Kernel panic - not syncing: NMI: Not continuing\n[   2.1] Call Trace:\n\
            [   2.2] RIP: 0010:pv_native_safe_halt+0xf/0x20\n[   2.3] NMI backtrace for cpu 0\n\
            [   2.4] RIP: 0010:pv_native_safe_halt+0xf/0x20\n[   2.5] RIP: 0010:pv_native_safe_halt+0xf/0x20\n";
        assert_eq!(
            said(console),
            [
                "[   2.0] Kernel panic - not syncing: NMI: Not continuing",
                "[   2.2] RIP: 0010:pv_native_safe_halt+0xf/0x20",
                "[   2.3] NMI backtrace for cpu 0",
                "[   2.4] RIP: 0010:pv_native_safe_halt+0xf/0x20",
            ]
        );
    }
}
