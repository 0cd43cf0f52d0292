//! `passthru run --boot-trace FILE`: what the start of a guest spends its time on, as JSON.
//!
//! ```json
//! {
//!   "version": 1,
//!   "unit": "microseconds since the start of the process",
//!   "phases": [
//!     { "name": "options", "start": 812, "end": 2300 },
//!     { "name": "dma-map", "start": 9120, "end": 120034, "bytes": 1073741824, "what": "0x0-0x3fffffff" }
//!   ]
//! }
//! ```
//!
//! The phases up to `entry` follow one another on the main thread ([`lap`]); the others overlap them and each other
//! ([`phase`]), and some end long after the guest runs. The file is written when the vCPUs have started and again at the
//! end of every later phase, so it is complete when the guest is up. There is one trace, because there is one start of a
//! process; without the option nothing is kept.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;
use serde::Serialize;

use crate::error::{Code, Error, Result, explain_io};

/// Version of the file's form.
const VERSION: u32 = 1;
const UNIT: &str = "microseconds since the start of the process";
/// Phases that are kept; a guest decides how many there are late.
const MAX_PHASES: usize = 4096;

/// The part of the start that the main thread goes through, in this order.
pub mod phases {
    /// The kernel loads the program, and the linker its libraries: processor time before `main`.
    pub const EXEC: &str = "exec";
    /// The command line is read.
    pub const OPTIONS: &str = "options";
    /// Options, kernel file, memory, limits and /dev/kvm are checked.
    pub const CHECKS: &str = "checks";
    /// Host devices are opened and reset, emulated ones made.
    pub const DEVICES: &str = "devices";
    /// The guest's memory is reserved, and with `dma-map=sync` pinned.
    pub const MEMORY: &str = "memory";
    /// The VM descriptor with its memory slots and interrupt chips.
    pub const KVM: &str = "kvm";
    /// Addresses, tables and kernel are put in place.
    pub const LOAD: &str = "load";
    /// The vCPUs are made and run.
    pub const ENTRY: &str = "entry";
    /// The guest's first byte on the serial port; of no length.
    pub const CONSOLE: &str = "console";
    /// Threads take memory from the host.
    pub const PREFAULT: &str = "prefault";
    /// The IOMMU maps and pins a piece of memory.
    pub const DMA_MAP: &str = "dma-map";
    /// A device's first bus mastering waits for the last piece.
    pub const BUS_MASTER: &str = "bus-master-wait";
}

/// Whether anything is kept: looked at before the lock is taken.
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// Innermost: only the file is written with it.
static TRACE: Mutex<Option<Trace>> = Mutex::new(None);

struct Trace {
    origin: Instant,
    /// When the main thread's last phase ended.
    last: Instant,
    phases: Vec<Phase>,
    file: Option<File>,
    /// The vCPUs run.
    started: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Phase {
    name: &'static str,
    start: u64,
    end: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    what: Option<String>,
}

/// The process begins: everything from here on is kept until [`to_file`] or [`off`] says what for.
pub fn begin() {
    let now = Instant::now();
    let used = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default();
    let origin = now.checked_sub(used).unwrap_or(now);
    let mut trace = Trace { origin, last: now, phases: Vec::new(), file: None, started: false };
    trace.push(phases::EXEC, origin, now, None, None);
    *TRACE.lock() = Some(trace);
    ACTIVE.store(true, Ordering::Release);
}

/// The trace goes to this file, which is made.
///
/// # Errors
/// [`Code::FileUnusable`] if it cannot be written.
pub fn to_file(path: &Path) -> Result<()> {
    let file = File::create(path).map_err(|error| {
        Error::new(Code::FileUnusable, format!("{} cannot be written", path.display())).evidence(explain_io(&error))
    })?;
    if let Some(trace) = &mut *TRACE.lock() {
        trace.file = Some(file);
    }
    Ok(())
}

/// Nobody wants it.
pub fn off() {
    ACTIVE.store(false, Ordering::Release);
    *TRACE.lock() = None;
}

/// The main thread's phase that began where the one before ended ends now. Only the first start of the guest counts.
pub fn lap(name: &'static str) {
    with(|trace| {
        if !trace.started {
            let (from, now) = (trace.last, Instant::now());
            trace.push(name, from, now, None, None);
            trace.last = now;
        }
    });
}

/// The vCPUs run: the file is written.
pub fn started() {
    with(|trace| {
        if !trace.started {
            trace.started = true;
            trace.write();
        }
    });
}

/// A phase that begins now and ends when this is dropped.
#[must_use]
pub fn phase(name: &'static str) -> Span {
    let start = ACTIVE.load(Ordering::Acquire).then(Instant::now);
    Span { name, start, bytes: None, what: None, once: false }
}

/// Something that happened at this moment; only the first time.
pub fn moment(name: &'static str) {
    drop(phase(name).once());
}

/// A phase that is going on.
pub struct Span {
    name: &'static str,
    /// `None`: nothing is kept.
    start: Option<Instant>,
    bytes: Option<u64>,
    what: Option<String>,
    once: bool,
}

impl Span {
    /// How much memory it is about.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> Span {
        self.bytes = Some(bytes);
        self
    }

    /// What it is about.
    #[must_use]
    pub fn what(mut self, what: impl FnOnce() -> String) -> Span {
        self.what = self.start.map(|_| what());
        self
    }

    /// Only the first of this name about this is kept.
    #[must_use]
    pub fn once(mut self) -> Span {
        self.once = true;
        self
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(start) = self.start else { return };
        let (name, bytes, what, once) = (self.name, self.bytes, self.what.take(), self.once);
        with(|trace| {
            if once && trace.phases.iter().any(|phase| phase.name == name && phase.what == what) {
                return;
            }
            trace.push(name, start, Instant::now(), bytes, what);
            if trace.started {
                trace.write();
            }
        });
    }
}

fn with(f: impl FnOnce(&mut Trace)) {
    if ACTIVE.load(Ordering::Acquire)
        && let Some(trace) = &mut *TRACE.lock()
    {
        f(trace);
    }
}

impl Trace {
    fn push(&mut self, name: &'static str, start: Instant, end: Instant, bytes: Option<u64>, what: Option<String>) {
        if self.phases.len() < MAX_PHASES {
            let since = |at: Instant| u64::try_from(at.duration_since(self.origin).as_micros()).unwrap_or(u64::MAX);
            self.phases.push(Phase { name, start: since(start), end: since(end), bytes, what });
        }
    }

    fn json(&self) -> String {
        let mut phases = self.phases.clone();
        phases.sort_by_key(|phase| (phase.start, phase.end));
        let all = serde_json::json!({ "version": VERSION, "unit": UNIT, "phases": phases });
        // What was made of numbers and strings can always be written.
        serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"
    }

    /// Writes over what is there: a trace only grows.
    fn write(&mut self) {
        let Some(file) = &self.file else { return };
        if let Err(error) = file.write_all_at(self.json().as_bytes(), 0) {
            crate::log::warn(format_args!("the boot trace cannot be written: {}", explain_io(&error)));
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_sorted_and_only_their_facts_are_written() {
        let origin = Instant::now();
        let at = |us| origin + Duration::from_micros(us);
        let mut trace = Trace { origin, last: origin, phases: Vec::new(), file: None, started: false };
        trace.push(phases::DMA_MAP, at(50), at(90), Some(4096), Some("0x0-0xfff".into()));
        trace.push(phases::EXEC, at(0), at(7), None, None);
        let json: serde_json::Value = serde_json::from_str(&trace.json()).unwrap();
        assert_eq!(json["version"], 1);
        assert_eq!(json["phases"][0], serde_json::json!({ "name": "exec", "start": 0, "end": 7 }));
        let map = serde_json::json!({ "name": "dma-map", "start": 50, "end": 90, "bytes": 4096, "what": "0x0-0xfff" });
        assert_eq!(json["phases"][1], map);
    }

    /// The only test that uses the process's trace.
    #[test]
    fn the_file_is_complete_after_every_late_phase() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.json");
        let names = || {
            let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            // Other tests run in this process, and have phases.
            let ours = |name: &String| ["exec", "a", "b", "late", "m", "the guest's second start"].contains(&&**name);
            let names =
                json["phases"].as_array().unwrap().iter().map(|phase| phase["name"].as_str().unwrap().to_owned());
            names.filter(ours).collect::<Vec<_>>()
        };
        begin();
        lap("a");
        to_file(&path).unwrap();
        let late = phase("late").bytes(1).what(|| "x".into()).once();
        lap("b");
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        started();
        assert_eq!(names(), ["exec", "a", "b"]);
        lap("the guest's second start");
        drop(late);
        drop(phase("late").what(|| "x".into()).once());
        moment("m");
        moment("m");
        assert_eq!(names().len(), 5);
        for _ in 0..2 * MAX_PHASES {
            with(|trace| trace.push("many", trace.origin, trace.origin, None, None));
        }
        with(|trace| assert_eq!(trace.phases.len(), MAX_PHASES));
        off();
        drop(phase("nobody"));
        lap("nobody");
        assert!(to_file(dir.path()).is_err());
    }
}
