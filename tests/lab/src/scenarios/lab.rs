//! The lab's own proof: its devices work when QEMU passes them through.

use anyhow::Result;

use super::steps::{self, DRIVE, NIC};
use crate::l1::{Guest, L1, Vmm};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("lab-self-check", self_check).without_passthru()];

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
