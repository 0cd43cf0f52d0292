//! How long a card takes to leave a guest and to come back, by the control socket.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::l1::{Guest, L1, Vmm};
use crate::scenarios::steps::NIC;

/// How QEMU's guest is told; passthru has only the native way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As QEMU does it when nobody asks: by ACPI, where the guest neither waits nor looks at the slot.
    Default,
    /// By the slot's registers.
    Native,
}

/// Seconds of each round.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Plugged {
    /// From `device_del` to DEVICE_DELETED; natively Linux alone waits 5 s after the attention button.
    pub unplug: Vec<f64>,
    /// From `device_add` until the guest's driver has its interface.
    pub plug: Vec<f64>,
}

/// Unplugs the NIC and plugs it again, `rounds` times in one guest.
pub fn measure(l1: &mut L1, vmm: Vmm, way: Way, rounds: u32) -> Result<Plugged> {
    const DRIVEN: &str = "until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done";
    let mut guest = Guest::new()
        .vmm(vmm)
        .device("pcie-root-port,id=port1")
        .device(&format!("vfio-pci,host={NIC},bus=port1,id=nic"));
    if vmm == Vmm::Qemu && way == Way::Native {
        guest = guest.option("-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off");
    }
    let mut live = l1.live(&guest)?;
    live.sh(l1, &format!("modprobe e1000e; {DRIVEN}"))?;
    let mut plugged = Plugged::default();
    for _ in 0..rounds {
        let start = Instant::now();
        live.qmp(l1, "device_del", json!({ "id": "nic" }))?;
        let event = live.event(l1, "DEVICE_DELETED")?;
        plugged.unplug.push(start.elapsed().as_secs_f64());
        ensure!(event["device"] == "nic", "another device has left: {event}");
        let mut arguments = json!({ "driver": "vfio-pci", "host": NIC, "bus": "port1", "id": "nic" });
        if vmm == Vmm::Qemu {
            arguments["rombar"] = 0.into();
        }
        let start = Instant::now();
        live.qmp(l1, "device_add", arguments)?;
        live.sh(l1, DRIVEN)?;
        plugged.plug.push(start.elapsed().as_secs_f64());
    }
    live.power_off(l1)?.success()?;
    Ok(plugged)
}
