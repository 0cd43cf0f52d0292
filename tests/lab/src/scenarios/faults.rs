//! The host wants its devices back, and devices that fail.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::steps::{self, DRIVE, NIC};
use crate::l0::machines;
use crate::l1::{Guest, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("host-unbinds-a-device-in-use", unbound).exclusive().limit(600),
    Scenario::new("nic-pulled-while-in-use", pulled).exclusive().limit(600),
    Scenario::new("aer-pause-ignore-detach", |lab| aer(lab, &["pause", "ignore", "detach"]))
        .on(&machines::AER)
        .exclusive()
        .limit(900),
    Scenario::new("aer-reset", |lab| aer(lab, &["reset"])).on(&machines::AER).exclusive().limit(600),
    Scenario::new("aer-poweroff", |lab| aer(lab, &["poweroff"])).on(&machines::AER).exclusive().limit(600),
];

/// How long the kernel may take to unbind a device that the guest has given up.
const UNBIND_LIMIT: Duration = Duration::from_secs(30);

/// The host unbinds the device from vfio-pci: the guest gives it up, and goes on with the other one.
fn unbound(lab: &mut Lab) -> Result<()> {
    let read = steps::host_sum(lab.l1)?;
    steps::with_bound(lab, &[NIC, DRIVE], |lab| {
        let mut guest = lab.l1.live(&Guest::new().passes(NIC).passes(DRIVE))?;
        guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
        guest.sh(lab.l1, &l2::nvme_up())?;
        let unbind = lab.l1.start(&format!("echo 0000:{NIC} > /sys/bus/pci/drivers/vfio-pci/unbind"))?;
        let wanted = guest.event(lab.l1, "VFIO_DEVICE_REQUEST").or_else(|error| {
            let where_it_is = lab.l1.sh(&format!(
                "cat /proc/{}/stack; for t in /proc/{}/task/*; do echo \"$(cat $t/comm): $(tr '\\n' ' ' < $t/stack)\"; done; \
                 dmesg | tail -n 20",
                unbind.pid,
                guest.shell().job().pid
            ))?;
            Err(error.context(where_it_is.stdout))
        })?;
        ensure!(wanted["host"] == format!("0000:{NIC}"), "{wanted}");
        guest.event(lab.l1, "DEVICE_DELETED")?;
        // sysfs forgets the driver at once; the write returns when vfio-pci has let go of the device.
        let unbound = lab.l1.wait(&unbind, UNBIND_LIMIT)?;
        ensure!(unbound == Some(0), "the unbinding ended with {unbound:?}");
        guest.sh(lab.l1, &l2::nvme_read(l2::READ_MIB))?;
        ensure!(guest.value("nvme_read")? == read, "the drive reads differently");
        guest.power_off(lab.l1)?.success().map(drop)
    })
}

/// The card leaves its slot while the guest uses it: the guest lives on, and the host finishes the removal.
fn pulled(lab: &mut Lab) -> Result<()> {
    lab.l1.ok(&format!("passthru bind {NIC}"))?;
    let mut guest = lab.l1.live(&Guest::new().passes(NIC))?;
    guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
    let mut monitor = lab.l1.l0().monitor()?;
    monitor.run("device_del", json!({ "id": "nic1" }))?;
    guest.event(lab.l1, "DEVICE_DELETED")?;
    monitor.event("DEVICE_DELETED")?;
    steps::eventually(lab.l1, &format!("[ ! -e /sys/bus/pci/devices/0000:{NIC} ]"))?;
    guest.sh(lab.l1, "[ ! -e /sys/class/net/eth0 ]")?;
    guest.power_off(lab.l1)?.success().map(drop)
}

/// An injected uncorrectable error with each policy; the drive works on.
fn aer(lab: &mut Lab, policies: &[&str]) -> Result<()> {
    let read = steps::host_sum(lab.l1)?;
    steps::with_bound(lab, &[NIC, DRIVE], |lab| policies.iter().try_for_each(|policy| aer_policy(lab, policy, &read)))
}

fn aer_policy(lab: &mut Lab, policy: &str, read: &str) -> Result<()> {
    let guest = Guest::new()
        .fat()
        .reboots()
        .device("pcie-root-port,id=port1")
        .device(&format!("vfio-pci,id=nic0,host={NIC},bus=port1,on-error={policy}"))
        .device("pcie-root-port,id=port2")
        .device(&format!("vfio-pci,id=nvme0,host={DRIVE},bus=port2"));
    let mut guest = lab.l1.live(&guest)?;
    guest.sh(lab.l1, &l2::nic_up("virtio_net"))?;
    guest.sh(lab.l1, &l2::nvme_up())?;
    let injected = lab.l1.l0().monitor()?.human("pcie_aer_inject_error nic1 UNSUP")?;
    ensure!(injected.starts_with("OK"), "QEMU: {injected}");
    let failed = match guest.event(lab.l1, "VFIO_DEVICE_ERROR") {
        Err(error) => {
            let host = lab.l1.sh(&format!(
                "for d in 00:02.0 {NIC}; do od -A x -t x4 -v /sys/bus/pci/devices/0000:$d/config | head -n 24; done; \
                     dmesg | grep -i -e aer -e _OSC"
            ))?;
            return Err(error.context(host.stdout));
        }
        failed => failed?,
    };
    ensure!(failed["device"] == "nic0" && failed["policy"] == policy, "{failed}");
    ensure!(failed["registers"]["uncorrectable-mask"].is_u64(), "no registers: {failed}");
    match policy {
        "poweroff" => {
            let ended = lab.l1.ended(guest.shell().job())?;
            ensure!(ended.code == 4, "it ended with {}", ended.code);
            ensure!(ended.text.contains("PT037"), "the error has no code");
            return Ok(());
        }
        "pause" => {
            guest.event(lab.l1, "STOP")?;
            let status = guest.qmp(lab.l1, "query-status", json!({}))?;
            ensure!(status["status"] == "io-error", "{status}");
            guest.qmp(lab.l1, "cont", json!({}))?;
        }
        "reset" => {
            guest.event(lab.l1, "RESET")?;
            guest.shell().listens(lab.l1)?;
            guest.sh(lab.l1, &l2::nvme_up())?;
            guest.sh(lab.l1, &l2::nic_up("virtio_net"))?;
        }
        "detach" => drop(guest.event(lab.l1, "DEVICE_DELETED")?),
        _ => {
            let stopped = guest.event_within(lab.l1, "STOP", Duration::from_secs(1))?;
            ensure!(stopped.is_none(), "the guest was stopped");
        }
    }
    guest.sh(lab.l1, &l2::nvme_read(l2::READ_MIB))?;
    ensure!(guest.value("nvme_read")? == read, "{policy}: the drive reads differently");
    if policy == "detach" {
        // Linux' virtio driver waits for ever for the reset of a card that has gone, and the guest's shutdown for it.
        return guest.quit(lab.l1)?.success().map(drop);
    }
    guest.power_off(lab.l1)?.success().map(drop)
}
