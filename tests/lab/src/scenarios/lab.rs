//! The lab's own proof: its devices work when QEMU passes them through, and a stall leaves a record.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::steps::{self, DRIVE, NIC};
use crate::l0::{L1_CONSOLE, machines};
use crate::l1::{Guest, L1, Stalled, Vmm};
use crate::scenario::{Lab, Scenario};

/// The second of the two NICs that are alike, on the machine with systemd.
const TWIN: &str = "02:00.0";
/// How long L1 may take to go down in order.
const REBOOT_LIMIT: Duration = Duration::from_secs(120);

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("lab-self-check", self_check).without_passthru(),
    Scenario::new("lab-records-a-stall", records_a_stall).exclusive().without_passthru(),
    Scenario::new("lab-records-a-guest-that-stalls", guest_stalls).long(),
    Scenario::new("lab-keeps-its-root", keeps_its_root).on(&machines::SERVICE).exclusive().without_passthru().long(),
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

/// The PC with systemd is up with all its units, its drivers came by udev, and its root outlives a reboot and a power cut,
/// which ends what runs at once.
fn keeps_its_root(lab: &mut Lab) -> Result<()> {
    let l1 = &mut *lab.l1;
    let settled = |l1: &mut L1| -> Result<()> {
        steps::settled(l1)?;
        for bdf in [NIC, TWIN] {
            ensure!(steps::driver(l1, bdf)? == "e1000e", "udev has not loaded the driver of {bdf}");
        }
        Ok(())
    };
    settled(l1)?;
    l1.ok("cat /proc/sys/kernel/random/boot_id > /root/first; sync")?;
    l1.reboot(REBOOT_LIMIT)?;
    settled(l1)?;
    l1.ok("! cmp -s /root/first /proc/sys/kernel/random/boot_id && cat /proc/sys/kernel/random/boot_id > /root/second && sync")?;
    l1.start("sleep 1000")?;
    l1.power_cut()?;
    settled(l1)?;
    l1.ok("[ -s /root/first ] && [ -s /root/second ] && ! cmp -s /root/second /proc/sys/kernel/random/boot_id")?;
    l1.fails("pgrep sleep", 1)?;
    Ok(())
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
