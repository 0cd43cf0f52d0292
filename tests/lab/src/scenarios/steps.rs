//! Steps that several scenarios share.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::l1::live::Live;
use crate::l1::{Ended, Guest, L1, State, l2_scripts as l2};
use crate::package;
use crate::scenario::Lab;

/// Addresses on the default machine.
pub const NIC: &str = "01:00.0";
pub const DRIVE: &str = "02:00.0";

/// Name of the driver that holds a device, or `none`.
pub fn driver(l1: &mut L1, bdf: &str) -> Result<String> {
    let found = State::of(l1)?.driver(bdf).map(str::to_owned);
    found.with_context(|| format!("there is no device {bdf} in L1"))
}

/// Binds the devices, does `work`, releases the devices whatever came of it, and checks
/// that each one is back on the driver that it had.
pub fn with_bound<T>(lab: &mut Lab, devices: &[&str], work: impl FnOnce(&mut Lab) -> Result<T>) -> Result<T> {
    let mut before = Vec::new();
    for bdf in devices {
        before.push(driver(lab.l1, bdf)?);
        lab.l1.ok(&format!("passthru bind {bdf}"))?;
        ensure!(driver(lab.l1, bdf)? == "vfio-pci", "{bdf} is not on vfio-pci after passthru bind");
    }
    let result = work(lab);
    if result.is_err() {
        // A guest that still runs would keep its devices.
        lab.l1.kill_all()?;
    }
    for (bdf, former) in devices.iter().zip(&before) {
        let released = lab.l1.ok(&format!("passthru release {bdf}"));
        if result.is_ok() {
            released?;
            let now = driver(lab.l1, bdf)?;
            ensure!(now == *former, "{bdf} is on {now} after passthru release, it was on {former}");
        }
    }
    result
}

/// Waits until the systemd of a machine that has one has done all that it had to do, and checks that nothing failed.
pub fn settled(l1: &mut L1) -> Result<()> {
    // Asked too early, before there is a bus to ask on, systemctl does not wait.
    let ask = "udevadm settle; for i in $(seq 100); do state=$(systemctl is-system-running --wait); \
               case $state in running|degraded) break;; esac; sleep 1; done; echo $state";
    let state = l1.sh_within(ask, Duration::from_secs(200))?;
    let failed = "systemctl --failed --plain -q --no-pager; journalctl -b -u 'passthru*' -o cat --no-pager | tail -n 15; \
                  systemctl list-jobs --no-pager; journalctl -b -p err --no-pager";
    ensure!(state.stdout.trim() == "running", "systemd is {state:?}:\n{}", l1.sh(failed)?.stdout);
    Ok(())
}

/// Puts the Debian package into L1 as `/share/passthru.deb`.
pub fn provide_package(l1: &L1) -> Result<()> {
    std::fs::copy(package::debian_for_scenarios()?, l1.folder().join("share/passthru.deb"))?;
    Ok(())
}

/// Calls the package manager, which has systemd and udev do what takes them long on a busy machine.
pub fn dpkg(l1: &mut L1, words: &str) -> Result<()> {
    let output = l1.sh_within(&format!("cd / && dpkg {words}"), Duration::from_secs(240))?;
    ensure!(output.code == 0, "dpkg {words}: {}{}", output.stdout, output.stderr);
    Ok(())
}

/// Waits until the host's own NVMe driver shows the drive again.
pub fn wait_for_drive(l1: &mut L1) -> Result<()> {
    l1.ok("for i in $(seq 100); do [ -b /dev/nvme0n1 ] && exit 0; sleep 0.1; done; exit 1")?;
    Ok(())
}

/// SHA-256 of the drive's first [`l2::READ_MIB`], read by the host.
pub fn host_sum(l1: &mut L1) -> Result<String> {
    wait_for_drive(l1)?;
    let sum = l1.ok(&l2::sum_of_drive(l2::READ_MIB))?;
    Ok(sum.trim().to_owned())
}

/// A guest that uses the NIC and the drive in every way the main job names.
pub fn working_guest(guest: Guest, port: u16) -> Guest {
    guest
        .script(&l2::nic_up("e1000e"))
        .script(&l2::ping(4))
        .script(&l2::fetch(port))
        .script(&l2::nvme_up())
        .script(&l2::nvme_read(l2::READ_MIB))
        .script(&l2::nvme_write())
}

/// What [`working_guest`] must have reported; `read` is the drive's sum seen by the host.
pub fn check_work(ended: &Ended, server_sum: &str, read: &str) -> Result<()> {
    ensure!(ended.value("ping")? == "4", "pings were lost");
    ensure!(ended.value("tcp")? == server_sum, "wrong data over TCP");
    ensure!(ended.value("nvme_read")? == read, "the guest reads other data from the drive than the host");
    ensure!(ended.value("nvme_wrote")? == ended.value("nvme_reread")?, "the guest does not read back what it wrote");
    Ok(())
}

/// The host, with its own driver, must read what the guest wrote.
pub fn check_written(l1: &mut L1, ended: &Ended) -> Result<()> {
    wait_for_drive(l1)?;
    let host = l1.ok(l2::HOST_SUM_OF_WRITTEN)?;
    ensure!(host.trim() == ended.value("nvme_wrote")?, "the host does not read what the guest wrote");
    Ok(())
}

/// Waits for a condition in L1's shell, a few seconds at most.
pub fn eventually(l1: &mut L1, condition: &str) -> Result<()> {
    let text = format!("for i in $(seq 100); do {condition} && exit 0; sleep 0.1; done; exit 1");
    let output = l1.sh_within(&text, Duration::from_secs(30))?;
    ensure!(output.code == 0, "this did not become true: {condition}");
    Ok(())
}

/// The e1000e that a guest owns comes up and answers three pings.
pub fn nic_works_in_guest(guest: &mut Live, l1: &mut L1) -> Result<()> {
    guest.sh(l1, &l2::nic_up("e1000e"))?;
    guest.sh(l1, &l2::ping(3))?;
    ensure!(guest.value("ping")? == "3", "pings were lost");
    Ok(())
}
