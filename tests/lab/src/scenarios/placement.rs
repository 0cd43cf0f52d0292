//! Where a guest's threads, interrupts and memory go on the host, and that the host is as before afterwards.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::steps::{self, NIC};
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("cpu-placement", as_planned), Scenario::new("cpu-placement-kill-9-then-recover", killed)];

const POOL: &str = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages";
/// 256 MiB.
const PAGES: u64 = 128;

fn guest() -> Guest {
    Guest::new().option("--cpu-placement auto").memory("256M,hugepages=2M,grow-pool=on").passes(NIC)
}

/// The PC has two processors: the guest's gets the second, all else the first.
fn as_planned(lab: &mut Lab) -> Result<()> {
    ensure!(planned(lab.l1)? == [1], "CPU 0 is not left to the host");
    let before = pool(lab.l1)?;
    steps::with_bound(lab, &[NIC], |lab| {
        let mut live = lab.l1.live(&guest())?;
        live.sh(lab.l1, &l2::nic_up("e1000e"))?;
        live.sh(lab.l1, &l2::ping(4))?;
        ensure!(live.value("ping")? == "4", "pings were lost");
        let threads = threads(lab.l1)?;
        let is_on = |name: &str, cpus: &str| threads.iter().any(|(thread, runs)| thread == name && runs == cpus);
        ensure!(is_on("vcpu0", "1") && is_on("passthru", "0"), "the threads run on {threads:?}");
        let interrupts = interrupts(lab.l1)?;
        ensure!(interrupts.len() > 1 && interrupts.iter().all(|cpus| cpus == "0"), "interrupts go to {interrupts:?}");
        ensure!(pool(lab.l1)? == before + PAGES, "the pool has {} pages", pool(lab.l1)?);
        ensure!(planned(lab.l1)? == [0], "a second guest would get the CPU of the first");
        live.power_off(lab.l1)?.success()?;
        is_as_before(lab.l1, before)
    })
}

/// What a killed passthru has left, `recover` gives back.
fn killed(lab: &mut Lab) -> Result<()> {
    let before = pool(lab.l1)?;
    lab.l1.ok(&format!("passthru bind {NIC}"))?;
    let busy =
        guest().script(&l2::nic_up("e1000e")).script("echo LAB busy=1; while :; do ping -c 9 10.0.2.2 > /tmp/p; done");
    let job = lab.l1.start_guest(&busy)?;
    lab.l1.expect(&job, "LAB busy=1", Duration::from_secs(180))?;
    ensure!(pool(lab.l1)? == before + PAGES, "the pool has {} pages", pool(lab.l1)?);
    lab.l1.kill(&job, Signal::SIGKILL)?;
    lab.l1.wait(&job, Duration::from_secs(60))?;
    ensure!(pool(lab.l1)? == before + PAGES, "somebody took the pages away before recover did");
    let told = lab.l1.ok("passthru recover")?;
    ensure!(told.contains(&format!("node 0: {PAGES} huge pages of 2 MiB are ordinary memory again")), "{told}");
    is_as_before(lab.l1, before)?;
    let now = steps::driver(lab.l1, NIC)?;
    ensure!(now == "e1000e", "{NIC} is on {now} after passthru recover");
    ensure!(lab.l1.ok("passthru recover")?.contains("nothing to recover"));
    Ok(())
}

/// The CPUs that a guest with one virtual CPU would get now.
fn planned(l1: &mut L1) -> Result<Vec<u64>> {
    let plan: Value = serde_json::from_str(&l1.ok(&format!("passthru plan --json --device vfio-pci,host={NIC}"))?)?;
    let vcpus = plan["vcpus"].as_array().context("a plan has vcpus")?;
    Ok(vcpus.iter().filter_map(Value::as_u64).collect())
}

fn pool(l1: &mut L1) -> Result<u64> {
    Ok(l1.ok(&format!("cat {POOL}"))?.trim().parse()?)
}

/// The threads of passthru: name, and CPUs that it may run on.
fn threads(l1: &mut L1) -> Result<Vec<(String, String)>> {
    let text = l1.ok("for t in /proc/$(pidof passthru)/task/*; do \
         echo \"$(cat $t/comm) $(grep ^Cpus_allowed_list $t/status | cut -f 2)\"; done")?;
    Ok(text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
}

/// Where each of VFIO's interrupts goes.
fn interrupts(l1: &mut L1) -> Result<Vec<String>> {
    let text = l1.ok("for d in /proc/irq/*/vfio-*; do cat \"${d%/*}/smp_affinity_list\"; done")?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn is_as_before(l1: &mut L1, pages: u64) -> Result<()> {
    ensure!(pool(l1)? == pages, "the pool has {} pages, before {pages}", pool(l1)?);
    let left = l1.ok("ls -A /run/passthru/leases")?;
    ensure!(left.is_empty(), "this is left: {left}");
    Ok(())
}
