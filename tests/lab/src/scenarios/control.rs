//! The control socket of a running guest.

use anyhow::{Result, ensure};
use serde_json::json;

use super::steps::{self, NIC};
use crate::l1::{Guest, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("control-socket", control_socket), Scenario::new("control-socket-power", power)];

/// What is asked is answered, and a guest that stood still goes on with its devices.
fn control_socket(lab: &mut Lab) -> Result<()> {
    let guest = Guest::new().cpus(2).passes(NIC);
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
        guest.sh(lab.l1, &l2::ping(2))?;
        let pci = guest.qmp(lab.l1, "query-pci", json!({}))?;
        let behind = &pci[0]["devices"][1]["pci_bridge"]["devices"][0];
        ensure!(behind["id"]["device"] == 0x10d3, "the NIC is not behind the port: {pci}");
        let before = guest.resources(lab.l1)?;
        ensure!(before["host-devices"] == 1 && before["iova-mappings"].as_u64() > Some(0), "{before}");
        let refused = guest.qmp_fails(lab.l1, "device_del", json!({ "id": "nothing" }))?;
        ensure!(refused.contains("Device 'nothing' not found"), "{refused}");
        guest.qmp(lab.l1, "stop", json!({}))?;
        guest.event(lab.l1, "STOP")?;
        let status = guest.qmp(lab.l1, "query-status", json!({}))?;
        ensure!(status["status"] == "paused", "{status}");
        guest.qmp(lab.l1, "cont", json!({}))?;
        guest.event(lab.l1, "RESUME")?;
        guest.sh(lab.l1, &l2::ping(3))?;
        ensure!(guest.value("ping")? == "3", "pings were lost after the pause");
        guest.power_off(lab.l1)?.success()
    })?;
    ended.lacks("soft lockup")?.lacks("rcu_sched")?;
    Ok(())
}

/// A reset by command starts the guest again; `quit` ends it, and the socket's file is gone.
fn power(lab: &mut Lab) -> Result<()> {
    let mut guest = lab.l1.live(&Guest::new().reboots())?;
    guest.qmp(lab.l1, "system_reset", json!({}))?;
    let reset = guest.event(lab.l1, "RESET")?;
    ensure!(reset["reason"] == "host-qmp-system-reset", "{reset}");
    guest.shell().listens(lab.l1)?;
    guest.qmp(lab.l1, "quit", json!({}))?;
    let ended = lab.l1.ended(guest.shell().job())?.success()?;
    ensure!(ended.text.matches("L2 UP").count() == 2, "the guest came up another number of times");
    lab.l1.ok("[ -z \"$(ls /tmp/qmp* 2>/dev/null)\" ]")?;
    Ok(())
}
