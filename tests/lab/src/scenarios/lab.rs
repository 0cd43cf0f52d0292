//! The lab's own proof: its devices work when QEMU passes them through, and a stall leaves a record.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::steps::{self, DRIVE, NIC};
use crate::l0::L1_CONSOLE;
use crate::l1::{Guest, L1, Stalled, Vmm};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("lab-self-check", self_check).without_passthru(),
    Scenario::new("lab-records-a-stall", records_a_stall).exclusive().without_passthru(),
    Scenario::new("lab-records-a-guest-that-stalls", guest_stalls),
];

/// Gives a device to vfio-pci with nothing but sysfs.
pub fn bind_by_hand(l1: &mut L1, bdf: &str) -> Result<()> {
    rebind(l1, bdf, "vfio-pci")
}

/// Gives it back to its own driver.
pub fn release_by_hand(l1: &mut L1, bdf: &str) -> Result<()> {
    rebind(l1, bdf, "")
}

fn rebind(l1: &mut L1, bdf: &str, driver: &str) -> Result<()> {
    l1.ok(&format!(
        "cd /sys/bus/pci/devices/0000:{bdf} && echo {driver} > driver_override \
         && echo 0000:{bdf} > driver/unbind && echo 0000:{bdf} > /sys/bus/pci/drivers_probe"
    ))?;
    Ok(())
}

fn self_check(lab: &mut Lab) -> Result<()> {
    let read = steps::host_sum(lab.l1)?;
    for bdf in [NIC, DRIVE] {
        bind_by_hand(lab.l1, bdf)?;
    }
    let guest = Guest::new().vmm(Vmm::Qemu).passes(NIC).passes(DRIVE);
    let guest = steps::working_guest(guest, lab.server.port);
    let ended = lab.l1.guest(&guest)?.success()?.expect("L2 UP")?;
    for bdf in [NIC, DRIVE] {
        release_by_hand(lab.l1, bdf)?;
    }
    steps::check_work(&ended, &lab.server.sum, &read)?;
    steps::check_written(lab.l1, &ended)
}

/// The record names both processors, and the kernel's last words have every task's stack: that of one that sleeps too.
fn records_a_stall(lab: &mut Lab) -> Result<()> {
    lab.l1.start("exec -a sleeper sleep 1000")?;
    let console = lab.l1.folder().join(L1_CONSOLE);
    let summary = lab.l1.l0().stall();
    ensure!(["processor 0 ", "processor 1 "].iter().all(|name| summary.contains(name)), "no processors in:\n{summary}");
    let console = std::fs::read_to_string(console)?;
    for words in ["Kernel panic", "NMI backtrace for cpu", "task:sleep", "clock_nanosleep", "Timer List"] {
        ensure!(console.contains(words), "`{words}` does not stand on L1's console, which has {} bytes", console.len());
    }
    Ok(())
}

/// A guest whose vCPUs stand still counts as stalled, with its VMM's threads; one in which a command hangs does not.
fn guest_stalls(lab: &mut Lab) -> Result<()> {
    const SOON: Duration = Duration::from_secs(5);
    let mut guest = lab.l1.live(&Guest::new())?;
    let error = guest.shell().ok(lab.l1, "sleep 1000", SOON).err().context("a sleep of 1000 s has ended")?;
    ensure!(!error.is::<Stalled>(), "a command that hangs is taken for a stall: {error:#}");
    guest.qmp(lab.l1, "stop", json!({}))?;
    let error = guest.shell().ok(lab.l1, "true", SOON).err().context("a guest that is paused answers")?;
    let text = format!("{error:#}");
    ensure!(error.is::<Stalled>() && text.contains("vcpu0: ") && text.contains("exits="), "no stall is told: {text}");
    guest.qmp(lab.l1, "cont", json!({}))?;
    guest.shell().ok(lab.l1, "true", 4 * SOON)?;
    guest.power_off(lab.l1)?.success()?;
    Ok(())
}
