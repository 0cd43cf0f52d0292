//! The lab's own proof: its devices work when QEMU passes them through.

use anyhow::{Result, ensure};

use crate::l1::l2_scripts as l2;
use crate::l1::{Guest, L1, Vmm};
use crate::scenario::{Bench, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("lab-self-check", self_check).without_passthru()];

/// Gives a device to vfio-pci with nothing but sysfs.
pub fn bind_by_hand(l1: &mut L1, bdf: &str) -> Result<()> {
    l1.ok(&format!(
        "cd /sys/bus/pci/devices/0000:{bdf} && echo vfio-pci > driver_override \
         && echo 0000:{bdf} > driver/unbind && echo 0000:{bdf} > /sys/bus/pci/drivers_probe"
    ))?;
    Ok(())
}

/// Gives it back to its own driver.
pub fn release_by_hand(l1: &mut L1, bdf: &str) -> Result<()> {
    l1.ok(&format!(
        "cd /sys/bus/pci/devices/0000:{bdf} && echo > driver_override \
         && echo 0000:{bdf} > driver/unbind && echo 0000:{bdf} > /sys/bus/pci/drivers_probe"
    ))?;
    Ok(())
}

fn self_check(b: &mut Bench) -> Result<()> {
    let before = b.l1.ok(
        "dd if=/dev/nvme0n1 bs=1M count=64 iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1",
    )?;
    for bdf in ["01:00.0", "02:00.0"] {
        bind_by_hand(b.l1, bdf)?;
    }
    let guest = Guest::new()
        .vmm(Vmm::Qemu)
        .passes("01:00.0")
        .passes("02:00.0")
        .script(&l2::nic_up("e1000e"))
        .script(&l2::ping(4))
        .script(&l2::fetch(b.server.port))
        .script(&l2::nvme_up())
        .script(&l2::nvme_read(64))
        .script(&l2::nvme_write());
    let ended = b.l1.guest(&guest)?.success()?.expect("L2 UP")?;
    for bdf in ["01:00.0", "02:00.0"] {
        release_by_hand(b.l1, bdf)?;
    }
    ensure!(ended.value("ping")? == "4", "pings were lost");
    ensure!(ended.value("tcp")? == b.server.sum, "wrong data over TCP");
    ensure!(
        ended.value("nvme_read")? == before.trim(),
        "wrong data read"
    );
    ensure!(ended.value("nvme_wrote")? == ended.value("nvme_reread")?);
    b.l1.ok("for i in $(seq 100); do [ -b /dev/nvme0n1 ] && exit 0; sleep 0.1; done; exit 1")?;
    let host = b.l1.ok(l2::HOST_SUM_OF_WRITTEN)?;
    ensure!(
        host.trim() == ended.value("nvme_wrote")?,
        "the host does not read what the guest wrote"
    );
    Ok(())
}
