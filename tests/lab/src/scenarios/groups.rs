//! Groups, several devices, virtual functions.

use anyhow::{Result, ensure};

use super::steps;
use crate::l0::machines;
use crate::l1::{Guest, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("group-of-two-devices", shared_group).on(&machines::SHARED_GROUP),
    Scenario::new("sriov-virtual-function", virtual_function).on(&machines::SRIOV),
];

/// Two devices of one group in one guest: registers by I/O BAR and by memory BAR work.
///
/// Their DMA cannot be shown here: behind the emulated PCIe-to-PCI bridge it carries the bridge's
/// requester id, for which L0's QEMU finds no translation. QEMU as the VMM in L1 fails alike.
fn shared_group(lab: &mut Lab) -> Result<()> {
    let devices = ["02:01.0", "02:02.0"];
    let guest = Guest::new()
        .fat()
        .device("vfio-pci,host=02:01.0")
        .device("vfio-pci,host=02:02.0")
        .script("modprobe 8139cp; sleep 1; echo LAB mac=$(cat /sys/class/net/eth0/address)")
        .script("echo LAB found=$(lspci -n | grep -c -e 10ec:8139 -e 8086:293e)");
    let ended = steps::with_bound(lab, &devices, |lab| lab.l1.guest(&guest)?.success())?;
    ensure!(ended.value("mac")? == "52:54:00:00:00:01", "the NIC's registers read wrong");
    ensure!(ended.value("found")? == "2", "the guest does not see both devices");
    Ok(())
}

/// The function belongs to the guest, the card stays with the host.
fn virtual_function(lab: &mut Lab) -> Result<()> {
    let numvfs = "/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs";
    lab.l1.ok(&format!("modprobe igbvf; ip link set eth0 up; echo 1 > {numvfs}"))?;
    let vf = lab.l1.ok("basename $(readlink /sys/bus/pci/devices/0000:01:00.0/virtfn0)")?;
    let vf = vf.trim().trim_start_matches("0000:").to_owned();
    let guest = Guest::new().fat().passes(&vf).script(&l2::nic_up("igbvf")).script(&l2::ping(4));
    let result = steps::with_bound(lab, &[&vf], |lab| lab.l1.guest(&guest)?.success());
    lab.l1.ok(&format!("echo 0 > {numvfs}; ip link set eth0 down; modprobe -r igbvf"))?;
    ensure!(result?.value("ping")? == "4", "pings were lost");
    Ok(())
}
