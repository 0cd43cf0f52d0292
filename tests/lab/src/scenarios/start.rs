//! The start of a guest: memory is pinned while it boots, and no device masters the bus before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::steps::{self, DRIVE, NIC};
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};
use crate::setup::progress;

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("pinning-beside-the-boot", beside),
    Scenario::new("pinning-before-the-start", before),
    Scenario::new("sigterm-while-pinning", sigterm),
    Scenario::new("error-control-group-memory", control_group),
];

const TRACE: &str = "/tmp/boot-trace.json";

/// What `--boot-trace` writes.
#[derive(Deserialize)]
struct Trace {
    phases: Vec<Phase>,
}

#[derive(Deserialize)]
struct Phase {
    name: String,
    start: u64,
    end: u64,
    #[serde(default)]
    bytes: u64,
    what: Option<String>,
}

impl Trace {
    fn read(l1: &mut L1) -> Result<Trace> {
        let text = l1.ok(&format!("cat {TRACE}; rm {TRACE}"))?;
        let trace: Trace = serde_json::from_str(&text).with_context(|| format!("this is no boot trace: {text}"))?;
        for Phase { name, start, end, bytes, what } in &trace.phases {
            let what = what.as_deref().unwrap_or_default();
            progress(&format!("  {start:>9} .. {end:>9} us  {name} {what} {bytes}"));
        }
        Ok(trace)
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &Phase> {
        self.phases.iter().filter(move |phase| phase.name == name)
    }

    fn one(&self, name: &str) -> Result<&Phase> {
        self.all(name).next().with_context(|| format!("no phase `{name}`"))
    }

    /// When the last piece of RAM was mapped, how many pieces there were, and their bytes.
    fn mapped(&self, below: u64) -> Result<(u64, usize, u64)> {
        // BARs are mapped for the other device too, and are smaller.
        let pieces: Vec<_> = self.all("dma-map").filter(|phase| phase.bytes >= below).collect();
        let end = pieces.iter().map(|phase| phase.end).max().context("nothing was mapped")?;
        Ok((end, pieces.len(), pieces.iter().map(|phase| phase.bytes).sum()))
    }
}

/// The vCPUs run before the memory is mapped, the devices' drivers wait for it, and all data are right.
fn beside(lab: &mut Lab) -> Result<()> {
    let read = steps::host_sum(lab.l1)?;
    let guest = Guest::new().memory("2G").option(&format!("--boot-trace {TRACE}")).passes(NIC).passes(DRIVE);
    let guest = steps::working_guest(guest, lab.server.port);
    let ended = steps::with_bound(lab, &[NIC, DRIVE], |lab| lab.l1.guest(&guest)?.success())?;
    steps::check_work(&ended, &lab.server.sum, &read)?;
    steps::check_written(lab.l1, &ended)?;
    let trace = Trace::read(lab.l1)?;
    let (end, pieces, bytes) = trace.mapped(512 << 20)?;
    ensure!((pieces, bytes) == (2, 2 << 30), "2 GiB were mapped as {pieces} pieces of {bytes} bytes together");
    ensure!(trace.one("entry")?.end < end, "the guest waited for its memory");
    ensure!(trace.one("console")?.start > 0);
    let waits: Vec<_> = trace.all("bus-master-wait").collect();
    ensure!(waits.len() == 2, "{} devices mastered the bus", waits.len());
    ensure!(waits.iter().all(|wait| wait.end >= end), "a device mastered the bus before all memory was mapped");
    Ok(())
}

/// `dma-map=sync`: everything is mapped before the vCPUs run.
fn before(lab: &mut Lab) -> Result<()> {
    let options = format!("-M q35,dma-map=sync --boot-trace {TRACE}");
    let guest = Guest::new().option(&options).passes(NIC).script(&l2::nic_up("e1000e")).script(&l2::ping(4));
    let ended = steps::with_bound(lab, &[NIC], |lab| lab.l1.guest(&guest)?.success())?;
    ensure!(ended.value("ping")? == "4", "pings were lost");
    let trace = Trace::read(lab.l1)?;
    let (end, pieces, bytes) = trace.mapped(64 << 20)?;
    ensure!((pieces, bytes) == (1, 256 << 20), "256 MiB were mapped as {pieces} pieces of {bytes} bytes together");
    ensure!(end <= trace.one("memory")?.end, "the guest's memory was there before it was mapped");
    Ok(())
}

/// The user ends a guest while its memory is being pinned, and while a driver waits for that.
fn sigterm(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new()
        .memory("2G")
        .option(&format!("--boot-trace {TRACE}"))
        .passes(NIC)
        .passes(DRIVE)
        .script("modprobe e1000e & modprobe nvme; sleep 1000");
    steps::with_bound(lab, &[NIC, DRIVE], |lab| {
        for at in ["[ -s /tmp/boot-trace.json ]", "grep -q console /tmp/boot-trace.json"] {
            lab.l1.ok(&format!("rm -f {TRACE}"))?;
            let job = lab.l1.start_guest(&guest)?;
            let reached = format!("for i in $(seq 300); do {at} && exit 0; sleep 0.1; done; exit 1");
            lab.l1.sh_within(&reached, Duration::from_secs(120))?;
            lab.l1.kill(&job, Signal::SIGTERM)?;
            let code = lab.l1.wait(&job, Duration::from_secs(60))?;
            ensure!(code.is_some_and(|code| code < 128), "SIGTERM does not end passthru while it pins: {code:?}");
        }
        Ok(())
    })?;
    // Nothing holds the groups, and the drivers found their devices.
    steps::wait_for_drive(lab.l1)
}

/// A control group with too little memory: refused before anything is allocated, with both numbers.
fn control_group(lab: &mut Lab) -> Result<()> {
    let command = lab.l1.prepare(&Guest::new().memory("512M"))?;
    let text = format!(
        "mount -t cgroup2 none /sys/fs/cgroup\n\
         echo +memory > /sys/fs/cgroup/cgroup.subtree_control\n\
         mkdir -p /sys/fs/cgroup/small && echo 256M > /sys/fs/cgroup/small/memory.max\n\
         (echo 0 > /sys/fs/cgroup/small/cgroup.procs; {command}) 2>&1; echo code=$?\n\
         rmdir /sys/fs/cgroup/small; umount /sys/fs/cgroup"
    );
    let said = lab.l1.ok(&text)?;
    for word in ["PT010", "512 MiB", "small/memory.max: 268435456 bytes", "code=3"] {
        ensure!(said.contains(word), "the refusal does not say `{word}`:\n{said}");
    }
    Ok(())
}
