//! `cargo lab bench`: passthru beside QEMU, in turns, in one L1 (issue "The main job",
//! section 6). Counts are exact in the lab; times are compared as ratios of medians only.

mod devices;
mod hist;
mod map_time;
pub mod measure;
mod plug;
mod smaps;
mod strace;
mod table;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::l0::machines::{self, Machine};
use crate::l1::{Guest, L1, Programs, Vmm, l2_scripts as l2};
use crate::report;
use crate::scenarios::lab::bind_by_hand;
use crate::scenarios::steps::{DRIVE, NIC};
use crate::setup::{Image, progress};
use measure::Run;
use plug::Way;
use strace::Ioctls;

/// Limit of one run of a VMM, L1's time.
const RUN_LIMIT: Duration = Duration::from_secs(150);
/// Runs in which everything is counted.
const COUNTING_ROUNDS: u32 = 3;
/// Memory of the guests whose start is compared: how much does pinning delay it?
pub const START_MEMORY: [&str; 2] = ["256M", "2G"];
/// Rounds of that: times differ by less than 1 % where instructions are counted.
const START_ROUNDS: u32 = 2;
/// Unplugs and plugs of one card.
const PLUG_ROUNDS: u32 = 3;
/// L1s that may stall before the benchmark is given up.
const MAX_BOOTS: u32 = 4;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Plan {
    pub rounds: u32,
    pub memory: String,
    pub vmms: Vec<Vmm>,
    pub part: Part,
}

/// What of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    All,
    /// Passed-through devices: exits, memory and time of a start; unplug and plug
    Passthrough,
    /// How much more memory delays the start, on a PC with one processor whose time is its instructions
    Starts,
    /// Emulated devices: rates, exits and system calls of their work
    Devices,
}

impl Part {
    fn has(self, part: Part) -> bool {
        self == Part::All || self == part
    }
}

/// All figures of one VMM.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figures {
    pub vmm: Vmm,
    pub timed: Vec<Run>,
    pub counted: Vec<Run>,
    /// Plain starts, for each of [`START_MEMORY`].
    pub starts: [Vec<Run>; 2],
    /// Unplugs and plugs, in the VMM's own way.
    pub plugged: Option<plug::Plugged>,
    /// Unplugs and plugs by the slot's registers.
    pub natively: Option<plug::Plugged>,
    pub ioctls: Option<Ioctls>,
    /// Work with emulated devices.
    pub devices: devices::Devices,
    /// Size of its stripped binary, bytes.
    pub binary: Option<u64>,
}

impl Figures {
    /// Nothing measured yet.
    fn of(vmm: Vmm) -> Self {
        Self {
            vmm,
            timed: Vec::new(),
            counted: Vec::new(),
            starts: Default::default(),
            plugged: None,
            natively: None,
            ioctls: None,
            devices: devices::Devices::default(),
            binary: None,
        }
    }
}

/// Runs the benchmark and prints its table; `passthru_size` is that of the release build.
pub fn run(
    image: &Image,
    programs: &Programs,
    plan: &Plan,
    passthru_size: Option<u64>,
    json: Option<&Path>,
) -> Result<()> {
    let folder = report::run_folder(&crate::build::target())?;
    let mut bench = Bench { image, programs, plan, folder, boots: 0, machine: &machines::DEFAULT, l1: None };
    let mut all: Vec<Figures> = plan.vmms.iter().copied().map(Figures::of).collect();
    if plan.part.has(Part::Passthrough) {
        for figures in &mut all {
            figures.binary = passthru_size.filter(|_| figures.vmm == Vmm::Passthru);
        }
        bench.counts_and_times(&mut all)?;
        bench.plugs(&mut all)?;
    }
    if plan.part.has(Part::Devices) {
        bench.devices(&mut all)?;
    }
    if plan.part.has(Part::Starts) {
        bench.starts(&mut all)?;
    }
    if plan.part != Part::Devices {
        print!("{}", table::render(&all, &plan.memory));
    }
    let mut failures = Vec::new();
    if let (true, [qemu, ours]) = (plan.part.has(Part::Devices), all.as_slice()) {
        let (table, found) = devices::render(&qemu.devices, &ours.devices);
        print!("{table}");
        failures = found;
    }
    if let Some(file) = json {
        std::fs::write(file, serde_json::to_string_pretty(&all)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    ensure!(failures.is_empty(), "behind QEMU: {}", failures.join("; "));
    Ok(())
}

/// The benchmark with its L1, which is booted anew after a stall.
struct Bench<'a> {
    image: &'a Image,
    programs: &'a Programs,
    plan: &'a Plan,
    folder: PathBuf,
    boots: u32,
    /// What is measured on.
    machine: &'static Machine,
    l1: Option<L1>,
}

impl Bench<'_> {
    fn counts_and_times(&mut self, all: &mut [Figures]) -> Result<()> {
        for figures in &mut *all {
            figures.ioctls = Some(self.ioctls(figures.vmm)?);
        }
        for round in 1..=self.plan.rounds.min(COUNTING_ROUNDS) {
            for figures in &mut *all {
                figures.counted.push(self.measured(figures.vmm, true, round)?);
            }
        }
        for round in 1..=self.plan.rounds {
            for figures in &mut *all {
                figures.timed.push(self.measured(figures.vmm, false, round)?);
            }
        }
        Ok(())
    }

    fn plugs(&mut self, all: &mut [Figures]) -> Result<()> {
        for figures in all {
            let (vmm, rounds) = (figures.vmm, self.plan.rounds.min(PLUG_ROUNDS));
            let mut measure = |way| self.robust(|bench| plug::measure(bench.l1()?, vmm, way, rounds));
            let natively = measure(Way::Native)?;
            figures.plugged = Some(if vmm == Vmm::Qemu { measure(Way::Default)? } else { natively.clone() });
            figures.natively = Some(natively);
            progress(&format!("{vmm:?}: {rounds} unplugs and plugs"));
        }
        Ok(())
    }

    /// Counting rounds and timed rounds of the guest that works with emulated devices.
    fn devices(&mut self, all: &mut [Figures]) -> Result<()> {
        let counting = (1..=self.plan.rounds.min(devices::COUNTING_ROUNDS)).map(|round| (round, true));
        for (round, counting) in counting.chain((1..=self.plan.rounds).map(|round| (round, false))) {
            for figures in &mut *all {
                let vmm = figures.vmm;
                let run = self.robust(|bench| {
                    devices::prepare(bench.l1()?)?;
                    bench.run(&devices::guest(vmm, counting), counting, devices::LIMIT)
                })?;
                let runs = if counting { &mut figures.devices.counted } else { &mut figures.devices.timed };
                runs.push(run);
                progress(&format!("{vmm:?}: emulated devices, round {round}"));
            }
        }
        Ok(())
    }

    /// On a PC of its own, where a start takes the same time in every run.
    fn starts(&mut self, all: &mut [Figures]) -> Result<()> {
        self.machine = &machines::ONE_PROCESSOR;
        self.l1 = None;
        for round in 1..=self.plan.rounds.min(START_ROUNDS) {
            for (at, memory) in START_MEMORY.into_iter().enumerate() {
                for figures in &mut *all {
                    let run = self.start(figures.vmm, memory, round)?;
                    if let Some(runs) = figures.starts.get_mut(at) {
                        runs.push(run);
                    }
                }
            }
        }
        Ok(())
    }

    /// L1 with both devices bound and QEMU's files in memory.
    fn l1(&mut self) -> Result<&mut L1> {
        if self.l1.is_none() {
            self.boots += 1;
            ensure!(self.boots <= MAX_BOOTS, "L1 stalled {MAX_BOOTS} times");
            let folder = self.folder.join(format!("boot{}", self.boots));
            progress("booting L1");
            let mut l1 = L1::boot(self.image, self.machine, self.programs, &folder)?;
            for bdf in [NIC, DRIVE] {
                bind_by_hand(&mut l1, bdf)?;
            }
            if self.plan.vmms.contains(&Vmm::Qemu) {
                progress("copying QEMU to L1's memory");
                l1.sh_within(QEMU_TO_MEMORY, Duration::from_secs(180))?;
                l1.ok("qemu-system-x86_64 --version")?;
            }
            self.l1 = Some(l1);
        }
        self.l1.as_mut().context("no L1")
    }

    fn guest(&self, vmm: Vmm) -> Guest {
        Guest::new().whole_start().vmm(vmm).memory(&self.plan.memory).passes(NIC).passes(DRIVE)
    }

    /// Does `work`, and does it again on a new L1 if this one stalls, or a guest in it does, which L0's emulation lets
    /// happen now and then.
    fn robust<T>(&mut self, work: impl Fn(&mut Self) -> Result<T>) -> Result<T> {
        loop {
            match work(self) {
                Err(e) if self.boots < MAX_BOOTS => {
                    progress(&format!("{:#}; once more on a new L1", e.root_cause()));
                    self.l1 = None;
                }
                result => return result,
            }
        }
    }

    fn measured(&mut self, vmm: Vmm, counting: bool, round: u32) -> Result<Run> {
        let what = if counting { "counted" } else { "timed" };
        let run = self.robust(|bench| bench.measure(bench.guest(vmm), counting))?;
        let up = run.mark("up").context("no init")?;
        progress(&format!(
            "{vmm:?}, {what} run {round}: init after {:.1} s, of it {:.1} s in MAP_DMA",
            up.ms / 1000.0,
            run.map_ms / 1000.0
        ));
        Ok(run)
    }

    /// A start with so much memory.
    fn start(&mut self, vmm: Vmm, memory: &str, round: u32) -> Result<Run> {
        let run = self.robust(|bench| bench.measure(bench.guest(vmm).memory(memory), false))?;
        let up = run.mark("up").context("no init")?;
        progress(&format!(
            "{vmm:?}, start {round} with {memory}: init after {:.1} s, {:.1} s in MAP_DMA before it, {:.1} s beside it",
            up.ms / 1000.0,
            run.map_ms / 1000.0,
            run.beside_ms / 1000.0
        ));
        Ok(run)
    }

    fn measure(&mut self, mut guest: Guest, counting: bool) -> Result<Run> {
        if counting {
            guest = guest
                .script(&l2::nic_up("e1000e"))
                .script(&l2::nvme_up())
                // The first use of a device and of a program differs from the later ones.
                .script(&l2::ping(1))
                .script(&l2::nvme_read(1))
                .script(&marked("nvme", "dd if=/dev/nvme0n1 of=/dev/null bs=1M count=64 iflag=direct 2>/dev/null"))
                .script(&marked("ping", PINGS))
                // The same card with INTx, by its driver's option; no figure if it does not come to that.
                .script("rmmod e1000e; modprobe e1000e IntMode=0")
                .script(&l2::nic_up("e1000e"))
                .script(&l2::ping(1))
                .script(&format!("grep eth0 /proc/interrupts | grep -q IO-APIC && {{ {}; }}", marked("intx", PINGS)));
        }
        self.run(&guest, counting, RUN_LIMIT)
    }

    /// Runs a guest to its end, for `limit` at most.
    fn run(&mut self, guest: &Guest, counting: bool, limit: Duration) -> Result<Run> {
        let vmm = guest.vmm;
        let seconds = limit.as_secs();
        let l1 = self.l1()?;
        let command = l1.prepare(guest)?;
        let option = if counting { "--counting" } else { "" };
        let text = format!(
            // Both VMMs come from a file system on the host, as QEMU does: pages of a program in a tmpfs, where the lab
            // otherwise keeps passthru, count as dirty, though nobody wrote to them.
            "cat > /tmp/vmm-command <<'END'\nPATH=/share/bin:$PATH\n{command}\nEND\nlab measure {option} --limit {seconds} /tmp/vmm-command"
        );
        let output = l1.sh_within(&text, limit + Duration::from_secs(30))?;
        let Ok(run) = serde_json::from_str::<Run>(&output.stdout) else {
            bail!("{vmm:?} {}", crate::l1::describe(&output));
        };
        ensure!(
            run.mark("up").is_some() && run.success,
            "{vmm:?} did not run its guest to the end:\n{}\n{}",
            run.tail,
            output.stderr
        );
        Ok(run)
    }

    /// ioctls before the first KVM_RUN. strace slows KVM_RUN down a lot: the guest is
    /// killed as soon as it runs.
    fn ioctls(&mut self, vmm: Vmm) -> Result<Ioctls> {
        let guest = self.guest(vmm);
        let text = self.robust(|bench| {
            let l1 = bench.l1()?;
            let command = l1.prepare(&guest)?;
            let job = l1.start(&format!(
                "echo '{}' > /tmp/vmm-command; exec strace -f -e trace=ioctl -o /tmp/strace sh /tmp/vmm-command",
                command.replace('\'', "'\\''")
            ))?;
            let seen = l1.sh_within(
                "for i in $(seq 600); do grep -q KVM_RUN /tmp/strace 2>/dev/null && break; sleep 0.2; done",
                RUN_LIMIT,
            );
            l1.kill(&job, nix::sys::signal::Signal::SIGKILL)?;
            l1.kill_all()?;
            seen?;
            l1.ok("cat /tmp/strace; rm -f /tmp/strace")
        })?;
        let found = strace::parse(&text);
        progress(&format!("{vmm:?}: ioctls counted"));
        found.with_context(|| format!("{vmm:?} never came to KVM_RUN:\n{}", report::tail(&text, 20)))
    }
}

/// What is counted of the NIC.
const PINGS: &str = "ping -q -c 100 -i 0.05 10.0.2.2 > /dev/null";

/// Between two markers, with rests in which L1 reads the counters.
fn marked(name: &str, work: &str) -> String {
    format!("echo LAB mark={name}-start; sleep 2; {work}; sleep 2; echo LAB mark={name}-end; sleep 1")
}

/// Copies QEMU and its libraries to memory: over 9p its first start takes many seconds.
const QEMU_TO_MEMORY: &str = r#"
mkdir -p /run/qemu/lib
b=/usr/bin/qemu-system-x86_64
cp "$b" /run/qemu/
ldd "$b" | sed -n 's/.* => \(\/[^ ]*\).*/\1/p' | while read -r l; do cp -L "$l" /run/qemu/lib/; done
cat > /usr/local/bin/qemu-system-x86_64 <<'END'
#!/bin/sh
LD_LIBRARY_PATH=/run/qemu/lib exec /run/qemu/qemu-system-x86_64 "$@"
END
chmod 755 /usr/local/bin/qemu-system-x86_64
"#;
