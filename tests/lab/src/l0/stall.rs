//! What can be found out about an L1 that does not answer any more: where its processors stand, and what its kernel shows
//! when a non-maskable interrupt ends it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::L0;
use super::qmp::Monitor;

/// Words of L1's command line: an NMI that nobody has asked for is a panic, and a panic shows all tasks (1), the timers
/// (4) and the stacks of all processors (0x40) on the console. With `nokaslr` its addresses are those of System.map.
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
    let symbols = Symbols::load(&l0.kernel)?;
    let mut monitor = l0.monitor()?;
    let mut log = String::new();
    let mut summary = String::new();
    for look in 1..=2 {
        let registers = monitor.human("info registers -a")?;
        for processor in processors(&registers) {
            let _ = writeln!(summary, "look {look}: {}", processor.describe(&symbols));
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
    fs::write(l0.folder().join(RECORD), format!("{summary}\n{log}"))?;
    last_words(l0, &mut monitor)?;
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
    halted: bool,
}

/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;

impl Processor {
    fn describe(&self, symbols: &Symbols) -> String {
        format!(
            "processor {} {} at {:#x} {}, interrupts {}",
            self.number,
            if self.halted { "halted" } else { "runs" },
            self.rip,
            symbols.name(self.rip),
            if self.flags & INTERRUPTS == 0 { "off" } else { "on" }
        )
    }
}

/// The processors in what `info registers -a` says.
fn processors(text: &str) -> Vec<Processor> {
    let mut found: Vec<Processor> = Vec::new();
    for line in text.lines() {
        if let Some(number) = line.trim().strip_prefix("CPU#").and_then(|number| number.parse().ok()) {
            found.push(Processor { number, rip: 0, flags: 0, halted: false });
        }
        let Some(last) = found.last_mut() else { continue };
        for word in line.split_whitespace() {
            match word.split_once('=') {
                Some(("RIP" | "EIP", value)) => last.rip = u64::from_str_radix(value, 16).unwrap_or(0),
                Some(("RFL" | "EFL", value)) => last.flags = u64::from_str_radix(value, 16).unwrap_or(0),
                Some(("HLT", value)) => last.halted = value == "1",
                _ => {}
            }
        }
    }
    found
}

/// Names of the kernel's addresses, in their order.
struct Symbols(Vec<(u64, String)>);

impl Symbols {
    /// Reads the System.map in `folder`.
    fn load(folder: &Path) -> Result<Self> {
        let maps = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
        let map = maps
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("System.map")))
            .max()
            .with_context(|| format!("no System.map in {}", folder.display()))?;
        Ok(Self::parse(&fs::read_to_string(map)?))
    }

    fn parse(map: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            // Code only.
            words.next().filter(|kind| matches!(*kind, "t" | "T" | "w" | "W"))?;
            Some((address, words.next()?.to_owned()))
        };
        let mut symbols: Vec<_> = map.lines().filter_map(line).collect();
        symbols.sort_unstable();
        Self(symbols)
    }

    /// The symbol before `address` and how far behind it that is.
    fn name(&self, address: u64) -> String {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        let next = self.0.get(after).map_or(u64::MAX, |(start, _)| *start);
        match after.checked_sub(1).and_then(|at| self.0.get(at)) {
            Some((start, name)) if next != u64::MAX => format!("({name}+{:#x})", address - start),
            // Modules, programs, and a guest that runs on it, lie elsewhere.
            _ => "(not in the kernel's image)".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_described_by_its_place_and_state() {
        let text = "\nCPU#0\nRAX=0000000000000000 RBX=0000000000000000\n\
                    RIP=ffffffff81000015 RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\n\
                    \nCPU#1\nRIP=ffffffffc0400000 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0\n";
        let symbols = Symbols::parse(
            "ffffffff81000010 T safe_halt\nffffffff81000020 t other\nffffffff81000018 d data\nffffffff82000000 T last\n",
        );
        let lines: Vec<_> = processors(text).iter().map(|processor| processor.describe(&symbols)).collect();
        assert_eq!(
            lines,
            [
                "processor 0 halted at 0xffffffff81000015 (safe_halt+0x5), interrupts on",
                "processor 1 runs at 0xffffffffc0400000 (not in the kernel's image), interrupts off",
            ]
        );
    }
}
