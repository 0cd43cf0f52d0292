//! Devices that come and go while the guest runs.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::steps::{self, DRIVE, NIC};
use crate::l0::machines;
use crate::l1::live::Live;
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};
use crate::setup::progress;

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("hotplug-nic-and-nvme", nic_and_nvme).limit(900),
    Scenario::new("hotplug-without-msi", without_msi).limit(600),
    Scenario::new("hotplug-all-functions", all_functions).on(&machines::MULTI_FUNCTION).limit(900),
    Scenario::new("hotplug-maps-beside-the-guest", maps_beside).limit(600),
    Scenario::new("hotplug-refusals", refusals),
    Scenario::new("hotplug-guest-never-answers", never_answers).limit(600),
    Scenario::new("hotplug-10-cycles", |lab| cycles(lab, 10)).limit(1200),
    Scenario::new("hotplug-200-cycles", |lab| cycles(lab, 200)).limit(9000).long(),
];

fn ports() -> Guest {
    Guest::new().device("pcie-root-port,id=port1").device("pcie-root-port,id=port2")
}

/// Devices that come are used with checked data, go, and come again.
fn nic_and_nvme(lab: &mut Lab) -> Result<()> {
    let read = steps::host_sum(lab.l1)?;
    steps::with_bound(lab, &[NIC, DRIVE], |lab| {
        let mut guest = lab.l1.live(&ports())?;
        for round in 0..2 {
            guest.plug(lab.l1, "nic0", NIC, "port1")?;
            guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
            guest.sh(lab.l1, &l2::ping(3))?;
            ensure!(guest.value("ping")? == "3", "round {round}: pings were lost");
            guest.sh(lab.l1, &l2::fetch(lab.server.port))?;
            ensure!(guest.value("tcp")? == lab.server.sum, "round {round}: wrong data over TCP");
            guest.plug(lab.l1, "nvme0", DRIVE, "port2")?;
            guest.sh(lab.l1, &l2::nvme_up())?;
            guest.sh(lab.l1, &l2::nvme_read(l2::READ_MIB))?;
            ensure!(guest.value("nvme_read")? == read, "round {round}: the drive reads differently");
            guest.sh(lab.l1, &l2::nvme_write())?;
            ensure!(guest.value("nvme_wrote")? == guest.value("nvme_reread")?, "round {round}: not what was written");
            guest.device_del(lab.l1, "nvme0")?;
            guest.device_del(lab.l1, "nic0")?;
            let left = guest.sh(lab.l1, "ls /sys/class/net /dev/nvme* 2>/dev/null; true")?;
            ensure!(!left.contains("eth0") && !left.contains("nvme0n1"), "something is left in the guest: {left}");
        }
        guest.power_off(lab.l1)?.success().map(drop)
    })
}

/// A guest without MSI hears of the button by the port's pin.
fn without_msi(lab: &mut Lab) -> Result<()> {
    steps::with_bound(lab, &[NIC], |lab| {
        // Without MSI Linux does not ask the firmware for hot-plug, and has to be told that it may have it.
        let mut guest = lab.l1.live(&ports().append("pci=nomsi pcie_ports=native"))?;
        for round in 0..2 {
            guest.plug(lab.l1, "nic0", NIC, "port1")?;
            guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
            guest.sh(lab.l1, &l2::ping(3))?;
            ensure!(guest.value("ping")? == "3", "round {round}: pings were lost");
            let lines = guest.sh(lab.l1, "grep -e pciehp -e eth0 /proc/interrupts")?;
            ensure!(lines.contains("pciehp") && lines.contains("eth0"), "{lines}");
            // On one line Linux' own removal would wait for itself.
            ensure!(lines.lines().all(|line| line.contains("IO-APIC") && !line.contains("pciehp, eth0")), "{lines}");
            guest.device_del(lab.l1, "nic0")?;
        }
        guest.power_off(lab.l1)?.success().map(drop)
    })
}

/// A card with two functions comes by one line, and goes as a whole; and by a line for each, function 0 last, as the guest
/// looks only then. The second function can only be reset with the first, and is before the guest has it.
fn all_functions(lab: &mut Lab) -> Result<()> {
    let second = "/sys/bus/pci/devices/0000:01:00.1";
    // What the host leaves in the second function's registers.
    lab.l1.ok(&format!("ip link set $(ls {second}/net) address 52:54:00:aa:bb:cc"))?;
    steps::with_bound(lab, &["01:00.0", "01:00.1"], |lab| {
        let mut guest = lab.l1.live(&Guest::new().fat().device("pcie-root-port,id=port1"))?;
        let before = guest.resources(lab.l1)?;
        let found = |guest: &mut Live, l1: &mut L1| -> Result<String> {
            let count = guest.sh(l1, "lspci -n | grep -c -e 8086:10d3 -e 10ec:8139; true")?;
            Ok(count.trim().to_owned())
        };
        let works = |guest: &mut Live, l1: &mut L1| -> Result<()> {
            steps::nic_works_in_guest(guest, l1)?;
            let mac = guest.sh(l1, "modprobe 8139cp; sleep 2; cat /sys/class/net/eth1/address; rmmod 8139cp")?;
            ensure!(mac.trim() == "52:54:00:00:00:02", "the second function's registers read wrong: {mac}");
            Ok(())
        };
        let card = |host: &str, id: &str, addr: &str| json!({"driver": "vfio-pci", "host": host, "bus": "port1", "id": id, "addr": addr});

        guest.device_add(lab.l1, json!({"driver": "vfio-pci", "host": "01:00", "bus": "port1", "id": "card"}))?;
        guest.sh(lab.l1, &wait_for(&format!("[ -e {second}/enable ]")))?;
        let register = guest.sh(
            lab.l1,
            &format!(
                "echo 1 > {second}/enable; devmem $(sed -n '2s/ .*//p' {second}/resource) 32; echo 0 > {second}/enable"
            ),
        )?;
        ensure!(register.trim() == "0x00005452", "the second function was not reset: {register}");
        works(&mut guest, lab.l1)?;
        guest.qmp(lab.l1, "device_del", json!({"id": "card.1"}))?;
        for _ in 0..2 {
            guest.event(lab.l1, "DEVICE_DELETED")?;
        }
        ensure!(found(&mut guest, lab.l1)? == "0", "something is left in the guest");

        // One that waits for function 0: the guest does not see it, and it goes without being asked for.
        guest.device_add(lab.l1, card("01:00.1", "second", "0.1"))?;
        guest.sh(lab.l1, "echo 1 > /sys/bus/pci/rescan")?;
        ensure!(found(&mut guest, lab.l1)? == "0", "the guest sees a function without function 0");
        let taken =
            guest.qmp_fails(lab.l1, "device_add", json!({"driver": "vfio-pci", "host": "01:00", "bus": "port1"}))?;
        ensure!(taken.contains("no slot of bus port1 is free"), "{taken}");
        guest.device_del(lab.l1, "second")?;
        let after = guest.resources(lab.l1)?;
        ensure!(after["host-devices"] == before["host-devices"], "before: {before}, after: {after}");

        guest.device_add(lab.l1, card("01:00.1", "second", "0.1"))?;
        guest.device_add(lab.l1, card("01:00.0", "first", "0.0"))?;
        guest.sh(lab.l1, &wait_for(&format!("[ -e {second}/enable ]")))?;
        works(&mut guest, lab.l1)?;
        let late = guest.qmp_fails(lab.l1, "device_add", card("01:00.1", "third", "0.2"))?;
        ensure!(late.contains("function 0 already occupied by first"), "{late}");
        guest.qmp(lab.l1, "device_del", json!({"id": "first"}))?;
        for _ in 0..2 {
            guest.event(lab.l1, "DEVICE_DELETED")?;
        }
        guest.power_off(lab.l1)?.success().map(drop)
    })
}

fn wait_for(condition: &str) -> String {
    format!("i=0; until {condition} || [ $i -ge 300 ]; do sleep 0.1; i=$((i+1)); done; {condition}")
}

/// The first device of a guest that had none: while its memory is mapped the guest goes on without it, and the control
/// socket serves who asks for something else; what cannot be mapped is refused, and the guest lives on.
fn maps_beside(lab: &mut Lab) -> Result<()> {
    const LIMIT: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
    steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&ports().memory("2G"))?;
        let before = guest.resources(lab.l1)?;
        let arguments = json!({ "driver": "vfio-pci", "id": "nic0", "host": NIC, "bus": "port1" });
        let limit = lab.l1.ok(&format!("cat {LIMIT}; echo 1 > {LIMIT}"))?;
        let refused = guest.qmp_fails(lab.l1, "device_add", arguments.clone());
        lab.l1.ok(&format!("echo {} > {LIMIT}", limit.trim()))?;
        ensure!(refused?.contains("PT020"), "one mapping suffices for 2 GiB");
        let mut after = guest.resources(lab.l1)?;
        // KVM's VFIO device comes with the first device and stays: a machine has one.
        after["descriptors"] = (after["descriptors"].as_u64().unwrap_or_default() - 1).into();
        ensure!(before == after, "something stayed behind; before: {before}, after less one descriptor: {after}");

        let number = guest.qmp_begin(lab.l1, "device_add", arguments)?;
        let status = guest.qmp(lab.l1, "query-status", json!({}))?;
        ensure!(status["running"] == true, "{status}");
        let meanwhile = guest.resources(lab.l1)?;
        ensure!(
            meanwhile["host-devices"] == 1 && meanwhile["functions"] == before["functions"],
            "the guest has it before its memory is mapped, or all was mapped at once: {meanwhile}"
        );
        let there = guest.sh(lab.l1, "ls /sys/bus/pci/devices | wc -l")?;
        progress(&format!("  meanwhile the guest has {} functions", there.trim()));
        guest.qmp_end(lab.l1, number)?;
        ensure!(guest.resources(lab.l1)?["iova-mappings"] == 2, "2 GiB are two pieces");
        steps::nic_works_in_guest(&mut guest, lab.l1)?;
        // It goes and comes while its memory is mapped: what was begun is taken back.
        guest.device_del(lab.l1, "nic0")?;
        let again = json!({ "driver": "vfio-pci", "id": "nic0", "host": NIC, "bus": "port1" });
        guest.qmp_begin(lab.l1, "device_add", again)?;
        guest.quit(lab.l1)?.success().map(drop)
    })
}

/// What cannot be is refused, and nothing of it is left.
fn refusals(lab: &mut Lab) -> Result<()> {
    steps::with_bound(lab, &[NIC], |lab| {
        let guest = lab.l1.live(&ports().device("pcie-root-port,id=fixed,hotplug=off"))?;
        let before = guest.resources(lab.l1)?;
        for (arguments, text) in [
            (json!({"driver": "vfio-pci", "host": NIC}), "Bus 'pcie.0' does not support hotplugging"),
            (json!({"driver": "vfio-pci", "host": NIC, "bus": "fixed"}), "Bus 'fixed' does not support hotplugging"),
            (json!({"driver": "vfio-pci", "host": NIC, "bus": "no"}), "there is no bus `no`"),
            (json!({"driver": "pcie-root-port", "bus": "port1"}), "does not support hotplugging"),
            (json!({"driver": "vfio-pci", "host": NIC, "bus": "port1", "id": "port2"}), "is used twice"),
            (json!({"driver": "vfio-pci", "host": "0f:00.0", "bus": "port1"}), "PT004"),
            (json!({"driver": "vfio-pci", "host": DRIVE, "bus": "port1"}), "PT005"),
            (json!({"driver": "vfoi-pci", "bus": "port1"}), "there is no device type"),
        ] {
            let refused = guest.qmp_fails(lab.l1, "device_add", arguments.clone())?;
            ensure!(refused.contains(text), "{arguments}: {refused}");
        }
        let after = guest.resources(lab.l1)?;
        ensure!(before == after, "something stayed behind; before: {before}, after: {after}");
        guest.plug(lab.l1, "nic0", NIC, "port1")?;
        let before = guest.resources(lab.l1)?;
        let twice =
            guest.qmp_fails(lab.l1, "device_add", json!({"driver": "vfio-pci", "host": NIC, "bus": "port1"}))?;
        ensure!(twice.contains("taken") || twice.contains("free"), "{twice}");
        let after = guest.resources(lab.l1)?;
        ensure!(before == after, "something stayed behind; before: {before}, after: {after}");
        // At once: the guest is still at taking it in.
        guest.device_del(lab.l1, "nic0")?;
        let kept = guest.event_within(lab.l1, "DEVICE_UNPLUG_GUEST_ERROR", Duration::ZERO)?;
        ensure!(kept.is_none(), "{kept:?}");
        guest.power_off(lab.l1)?.success().map(drop)
    })
}

/// A guest without a driver for hot-plug finds a device when it looks, keeps it when asked, and loses it by force.
fn never_answers(lab: &mut Lab) -> Result<()> {
    steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&ports().append("pcie_ports=compat"))?;
        guest.plug(lab.l1, "nic0", NIC, "port1")?;
        guest.sh(lab.l1, "echo 1 > /sys/bus/pci/rescan")?;
        guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
        guest.sh(lab.l1, &l2::ping(2))?;
        ensure!(guest.value("ping")? == "2", "pings were lost");
        guest.qmp(lab.l1, "device_del", json!({"id": "nic0", "timeout": 1000}))?;
        let busy = guest.qmp_fails(lab.l1, "device_del", json!({"id": "nic0"}));
        let told = guest.event(lab.l1, "DEVICE_UNPLUG_GUEST_ERROR")?;
        ensure!(told["device"] == "nic0", "{told}");
        ensure!(busy.is_err() || busy?.contains("already in the process of unplug"), "a second request was taken");
        guest.qmp(lab.l1, "device_del", json!({"id": "nic0", "timeout": 1000, "force": true}))?;
        guest.event(lab.l1, "DEVICE_DELETED")?;
        let vendor = guest.sh(lab.l1, "echo LAB alive=1; cat /sys/class/net/eth0/carrier 2>/dev/null; true")?;
        ensure!(vendor.contains("alive"), "the guest is not alive: {vendor}");
        let resources = guest.resources(lab.l1)?;
        ensure!(resources["host-devices"] == 0, "{resources}");
        guest.quit(lab.l1)?.success().map(drop)
    })
}

/// Coming and going leaks nothing: every count is the same after each round.
fn cycles(lab: &mut Lab, count: u32) -> Result<()> {
    steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&ports())?;
        // KVM's VFIO device comes with the first device and stays: a machine has one.
        let mut before = None;
        for round in 0..count {
            guest.plug(lab.l1, "nic0", NIC, "port1")?;
            guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
            guest.device_del(lab.l1, "nic0")?;
            let after = guest.resources(lab.l1)?;
            let before = before.get_or_insert_with(|| after.clone());
            ensure!(*before == after, "round {round}; before: {before}, after: {after}");
        }
        guest.power_off(lab.l1)?.success().map(drop)
    })
}
