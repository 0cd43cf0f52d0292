//! Runs scenarios: two L1s at a time where memory allows, each scenario on an L1 that
//! is as it was after its boot.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::l0::L1_CONSOLE;
use crate::l1::{L1, Programs, Stalled, State};
use crate::report;
use crate::scenario::{Lab, Part, Scenario, Skip};
use crate::server::{self, Server};
use crate::setup::Image;

/// L1s at a time, at most: each keeps two processors busy.
const MAX_AT_A_TIME: u64 = 2;
/// Memory that L0's QEMU takes beside its machine's, MiB.
const QEMU_MIB: u64 = 1024;
/// What L1's kernel says when its page tables, or its lists, hold what it never wrote.
const DAMAGE: [&str; 3] = ["BUG: Bad page map", "BUG: Bad page state", "BUG: unable to handle page fault"];
/// Times that a scenario is run at most, while it is the PC that is at fault.
const MOST_TRIES: usize = 3;
/// Scenarios of a run that may fail once and be run again although nothing shows that the PC was at fault.
const SECOND_TRIES: usize = 3;
/// Looks at an L1 that is not as before: what the kernel has started itself, such as modprobe, ends by itself.
const SETTLE_LOOKS: u32 = 10;
const SETTLE_PAUSE: Duration = Duration::from_millis(300);
/// Characters of an error where all failures are named in a line each.
const SHORT_TEXT: usize = 300;
/// Lines of each console that a failure shows.
const CONSOLE_LINES: usize = 25;

/// How many of a run passed, failed and were skipped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// What all workers share.
struct Run<'a> {
    image: &'a Image,
    programs: &'a Programs,
    folder: &'a Path,
    server: Server,
    /// Scenarios that nobody has taken yet; held only to take one.
    waiting: Mutex<Vec<&'static Scenario>>,
    /// Held only to add a result.
    tally: Mutex<Tally>,
    /// Results of scenarios that have several, for the table at the end; held only to add some.
    parts: Mutex<Vec<(&'static str, Vec<Part>)>>,
    /// What the end of the output says once more; held only to add a line.
    findings: Mutex<Findings>,
}

/// What must not be overlooked in a long output.
#[derive(Debug, Default)]
struct Findings {
    failed: Vec<String>,
    /// Scenarios whose PC was at fault: they came again.
    pc_at_fault: Vec<String>,
    /// Scenarios that failed, for no reason that is known, and came again; at most [`SECOND_TRIES`].
    second_tries: Vec<String>,
}

impl std::fmt::Display for Findings {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let lists = [
            ("Run once more, the PC was at fault", &self.pc_at_fault),
            ("Run once more, the first time failed", &self.second_tries),
            ("Failed", &self.failed),
        ];
        for (title, lines) in lists.iter().filter(|(_, lines)| !lines.is_empty()) {
            writeln!(f, "\n{title}:")?;
            for line in *lines {
                writeln!(f, "  {line}")?;
            }
        }
        Ok(())
    }
}

/// Runs all of `scenarios`.
pub fn run(image: &Image, programs: &Programs, folder: &Path, mut scenarios: Vec<&'static Scenario>) -> Result<Tally> {
    let largest = scenarios.iter().map(|s| s.machine.memory_mib).max();
    let workers = at_a_time(largest.unwrap_or(0)).min(scenarios.len());
    // Taken from the end: machines stay together, the first of the list comes first.
    scenarios.reverse();
    let run = Run {
        image,
        programs,
        folder,
        server: server::start()?,
        waiting: Mutex::new(scenarios),
        tally: Mutex::new(Tally::default()),
        parts: Mutex::new(Vec::new()),
        findings: Mutex::default(),
    };
    thread::scope(|scope| {
        for number in 1..=workers {
            let run = &run;
            scope.spawn(move || Worker::new(run, number).work());
        }
    });
    let tally = *run.tally.lock().unwrap_or_else(|e| e.into_inner());
    for (name, parts) in run.parts.into_inner().unwrap_or_else(|e| e.into_inner()) {
        print!("\n{name}\n{}", report::table(&parts));
    }
    print!("{}", run.findings.into_inner().unwrap_or_else(|e| e.into_inner()));
    Ok(tally)
}

/// `LAB_JOBS`, or as many L1s as memory holds.
fn at_a_time(machine_mib: u64) -> usize {
    let asked = std::env::var("LAB_JOBS").ok().and_then(|v| v.parse().ok());
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_mib(&text)).unwrap_or(0);
    let fitting = available / (machine_mib + QEMU_MIB);
    usize::try_from(asked.unwrap_or(fitting.min(MAX_AT_A_TIME)).max(1)).unwrap_or(1)
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024)
}

/// One thread with at most one L1.
struct Worker<'a> {
    run: &'a Run<'a>,
    number: usize,
    boots: u32,
    l1: Option<(L1, State)>,
}

impl<'a> Worker<'a> {
    fn new(run: &'a Run<'a>, number: usize) -> Self {
        Self { run, number, boots: 0, l1: None }
    }

    fn work(&mut self) {
        while let Some(scenario) = self.take() {
            let started = Instant::now();
            let mut parts = Vec::new();
            let mut result = self.attempt(scenario, &mut parts);
            for _ in 1..MOST_TRIES {
                if !self.comes_again(scenario, &result, &parts, started) {
                    break;
                }
                eprintln!("lab: {}: once more", scenario.name);
                self.l1 = None;
                parts.clear();
                result = self.attempt(scenario, &mut parts);
            }
            if scenario.exclusive {
                // Nobody comes after it, least of all after a failure.
                self.l1 = None;
            }
            self.note(scenario, result, parts, started.elapsed());
        }
    }

    /// The next scenario, of the machine that runs already if there is one.
    fn take(&self) -> Option<&'static Scenario> {
        let mut waiting = self.run.waiting.lock().unwrap_or_else(|e| e.into_inner());
        let here = self.l1.as_ref().map(|(l1, _)| l1.machine().name);
        let same = waiting.iter().rposition(|s| !s.exclusive && Some(s.machine.name) == here);
        match same {
            Some(at) => Some(waiting.remove(at)),
            None => waiting.pop(),
        }
    }

    fn attempt(&mut self, scenario: &'static Scenario, parts: &mut Vec<Part>) -> Result<()> {
        let fits =
            self.l1.as_ref().is_some_and(|(l1, _)| !scenario.exclusive && l1.machine().name == scenario.machine.name);
        if !fits {
            // The old one goes first: memory was counted for one L1.
            self.l1 = None;
            self.l1 = Some(self.boot(scenario)?);
        }
        let (l1, _) = self.l1.as_mut().context("no L1")?;
        l1.limit(Some(scenario.limit));
        let result = (scenario.run)(&mut Lab { l1, server: &self.run.server, parts });
        l1.limit(None);
        match &result {
            Ok(()) => {
                if let Err(e) = self.settle(scenario) {
                    self.l1 = None;
                    return Err(e);
                }
            }
            Err(_) if scenario.exclusive => {}
            // Nothing can be asked of it any more; it is looked at from outside.
            Err(e) if e.is::<Stalled>() => {}
            Err(_) => {
                // What it left is part of the evidence, but of no use to the next one.
                let settled = self.settle(scenario);
                if settled.is_err() {
                    self.l1 = None;
                }
            }
        }
        result
    }

    /// Whether a scenario shall be run again: where the PC was at fault, and, for a few in a run, where nobody knows.
    /// Shows what there is of the first time, because the second hides it.
    fn comes_again(&mut self, scenario: &Scenario, result: &Result<()>, parts: &[Part], started: Instant) -> bool {
        if result.as_ref().is_err_and(|error| error.is::<Skip>()) {
            return false;
        }
        let Some(first) = first_failure(result, parts) else {
            return false;
        };
        let fault = self.fault_of_the_pc(result);
        let mut findings = self.run.findings.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(why) = &fault {
            eprintln!("lab: {}: {why}", scenario.name);
            findings.pc_at_fault.push(format!("{}: {why}", scenario.name));
        } else if findings.second_tries.len() < SECOND_TRIES {
            println!("again {}: {first}", scenario.name);
            findings.second_tries.push(format!("{}: {}", scenario.name, shortened(&first)));
            print!("{}", report::consoles(&self.folder(), CONSOLE_LINES, SystemTime::now() - started.elapsed()));
        } else {
            return false;
        }
        drop(findings);
        if result.as_ref().is_err_and(|error| error.is::<Stalled>()) {
            self.keep_evidence();
        }
        true
    }

    /// Why a failed scenario says nothing about what it tests: L1 stalled, or L1's kernel found its own memory damaged.
    /// Where that is not the emulated PC's doing, it comes again.
    fn fault_of_the_pc(&self, result: &Result<()>) -> Option<String> {
        if let Some(error) = result.as_ref().err().filter(|error| error.is::<Stalled>()) {
            return Some(format!("{error:#}"));
        }
        let console = std::fs::read(self.folder().join(L1_CONSOLE)).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let line = console.lines().find(|line| DAMAGE.iter().any(|sign| line.contains(sign)))?;
        Some(format!("L1's memory is damaged: {}", line.trim()))
    }

    /// Says what can be found out about an L1 that has stalled, which ends it.
    fn keep_evidence(&mut self) {
        if let Some((l1, _)) = &mut self.l1 {
            eprint!("{}", l1.l0().stall());
            eprintln!("lab: more in {}", l1.folder().display());
        }
    }

    fn boot(&mut self, scenario: &Scenario) -> Result<(L1, State)> {
        let machine = scenario.machine;
        self.boots += 1;
        let folder = self.folder();
        let mut l1 = L1::boot(self.run.image, machine, self.run.programs, &folder)
            .with_context(|| format!("machine {}", machine.name))?;
        // Nobody comes after an exclusive one: how it leaves its L1 is its own matter. Asking costs a minute of a busy PC that boots.
        let state = if scenario.exclusive { State::default() } else { State::of(&mut l1)? };
        Ok((l1, state))
    }

    fn folder(&self) -> PathBuf {
        self.run.folder.join(format!("worker{}-boot{}", self.number, self.boots))
    }

    /// Ends what still runs; an L1 that is not as before is given up.
    fn settle(&mut self, scenario: &Scenario) -> Result<()> {
        let Some((l1, before)) = self.l1.as_mut() else {
            return Ok(());
        };
        if scenario.exclusive && l1.l0().ended().is_some() {
            // What it was for.
            return Ok(());
        }
        l1.kill_all()?;
        if scenario.exclusive {
            return Ok(());
        }
        let mut differences = before.differences(&State::of(l1)?);
        for _ in 0..SETTLE_LOOKS {
            if differences.is_empty() {
                break;
            }
            thread::sleep(SETTLE_PAUSE);
            differences = before.differences(&State::of(l1)?);
        }
        if !differences.is_empty() {
            self.l1 = None;
            bail!("the scenario left L1 changed:\n  {}", differences.join("\n  "));
        }
        Ok(())
    }

    /// Prints and counts what came of a scenario: its parts where it has any, and itself where it failed or has none.
    fn note(&self, scenario: &Scenario, result: Result<()>, parts: Vec<Part>, took: Duration) {
        let mut tally = self.run.tally.lock().unwrap_or_else(|e| e.into_inner());
        let (name, seconds) = (scenario.name, took.as_secs());
        let failed = result.is_err() || parts.iter().any(|part| part.result.is_err());
        for Part { subject, step, result } in &parts {
            match result {
                Ok(()) => tally.passed += 1,
                Err(e) => {
                    tally.failed += 1;
                    println!("FAIL  {name}: {subject}, {step}: {e:#}");
                }
            }
        }
        match &result {
            Ok(()) if parts.is_empty() => {
                tally.passed += 1;
                println!("pass  {name} ({seconds} s)");
            }
            Ok(()) => {
                let passed = parts.iter().filter(|part| part.result.is_ok()).count();
                println!("{}  {name} ({passed} of {}, {seconds} s)", if failed { "FAIL" } else { "pass" }, parts.len());
            }
            Err(e) if e.is::<Skip>() => {
                tally.skipped += 1;
                println!("skip  {name}: {e:#}");
                return;
            }
            Err(e) => {
                tally.failed += 1;
                println!("FAIL  {name} ({seconds} s): {e:#}");
            }
        }
        if failed {
            if let Some(why) = first_failure(&result, &parts) {
                let mut findings = self.run.findings.lock().unwrap_or_else(|e| e.into_inner());
                findings.failed.push(format!("{name}: {}", shortened(&why)));
            }
            print!("{}", report::consoles(&self.folder(), CONSOLE_LINES, SystemTime::now() - took));
        }
        drop(tally);
        if !parts.is_empty() {
            self.run.parts.lock().unwrap_or_else(|e| e.into_inner()).push((name, parts));
        }
    }
}

/// The first thing of a scenario that failed, in one short line.
fn first_failure(result: &Result<()>, parts: &[Part]) -> Option<String> {
    let text = match result {
        Err(error) => format!("{error:#}"),
        Ok(()) => parts.iter().find_map(|part| {
            let error = part.result.as_ref().err()?;
            Some(format!("{}, {}: {error:#}", part.subject, part.step))
        })?,
    };
    Some(text)
}

/// A long text where there is a line for it.
fn shortened(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().take(SHORT_TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mib() {
        let text = "MemTotal:       24684852 kB\nMemAvailable:   24372000 kB\n";
        assert_eq!(available_mib(text), Some(23800));
        assert_eq!(available_mib("nothing"), None);
    }

    #[test]
    fn what_failed_is_said_in_one_line() {
        let part = |subject, result| Part { subject, step: "works", result };
        let parts = [part("e1000e", Ok(())), part("igb", Err(anyhow::anyhow!("no carrier\nits console:")))];
        assert_eq!(first_failure(&Ok(()), &parts[..1]), None);
        assert_eq!(
            first_failure(&Ok(()), &parts).as_deref().map(shortened).as_deref(),
            Some("igb, works: no carrier its console:")
        );
        let error = anyhow::anyhow!("exit code 1").context("passthru bind");
        assert_eq!(first_failure(&Err(error), &parts).as_deref(), Some("passthru bind: exit code 1"));
    }

    #[test]
    fn findings_come_with_their_titles_only_where_there_are_some() {
        assert_eq!(Findings::default().to_string(), "");
        let findings = Findings { failed: vec!["x-vga: black".into()], ..Findings::default() };
        assert_eq!(findings.to_string(), "\nFailed:\n  x-vga: black\n");
    }

    #[test]
    fn the_last_line_is_what_ci_reads() {
        let mut tally = Tally { passed: 3, failed: 0, skipped: 1 };
        tally += Tally { failed: 2, ..Tally::default() };
        assert_eq!(tally.to_string(), "3 passed, 2 failed, 1 skipped");
    }
}
