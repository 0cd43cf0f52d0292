//! The device matrix: every device of every PC does its work in a guest, after the guest's reboot, after it was unplugged
//! and plugged again, and on the host that got it back. Each pair of device and step is one result.
//!
//! One guest has all devices of a PC, each behind a root port of its own. Only what is no device's own fault ends a PC's
//! run early.

#[cfg(test)]
mod page;
pub mod rows;
mod screenshot;
mod work;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use serde_json::json;

use super::iommufd::open_nodes;
use super::steps;
use crate::l0::machines;
use crate::l1::live::Live;
use crate::l1::{Guest, L1, Stalled};
use crate::scenario::{Lab, Scenario};
use work::{At, Device, Seen, Work};

pub static SCENARIOS: &[Scenario] = &[
    Scenario::new("matrix-nics", matrix).on(&machines::MATRIX_NICS).limit(LIMIT),
    Scenario::new("matrix-drives", matrix).on(&machines::MATRIX_DRIVES).limit(LIMIT),
    Scenario::new("matrix-others", matrix).on(&machines::MATRIX_OTHERS).limit(LIMIT),
    Scenario::new("matrix-amd-iommu", matrix).on(&machines::MATRIX_AMD).limit(LIMIT).long(),
    Scenario::new("matrix-iommufd", matrix).on(&machines::MATRIX_IOMMUFD).limit(LIMIT),
    Scenario::new("matrix-nics-iommufd", matrix).on(&machines::MATRIX_NICS_IOMMUFD).limit(LIMIT).long(),
    Scenario::new("matrix-drives-iommufd", matrix).on(&machines::MATRIX_DRIVES_IOMMUFD).limit(LIMIT).long(),
    Scenario::new("matrix-others-iommufd", matrix).on(&machines::MATRIX_OTHERS_IOMMUFD).limit(LIMIT).long(),
];

/// Real time for one PC, seconds.
const LIMIT: u64 = 900;
/// How long the guest may take to give all devices up.
const UNPLUG_LIMIT: Duration = Duration::from_secs(90);
/// First slot of the guest's root ports.
const FIRST_PORT: usize = 0x10;

/// What is asked of a device, in this order.
const WORKS: &str = "works";
const REBOOT: &str = "after reboot";
const REPLUG: &str = "after unplug and plug";
const HOST: &str = "on the host again";
#[cfg(test)]
const STEPS: &[&str] = &[WORKS, REBOOT, REPLUG, HOST];

/// A row in a run.
struct Tested {
    row: &'static rows::Row,
    /// Its id on L0.
    id: String,
    /// Address in L1 of what is passed.
    bdf: String,
    /// Slot of the guest's root port.
    port: usize,
    /// Driver that had it before.
    former: String,
    seen: Seen,
    fit: bool,
}

impl Tested {
    /// Its id in the guest's machine.
    fn guest_id(&self) -> String {
        format!("dev{:x}", self.port)
    }
}

fn matrix(lab: &mut Lab) -> Result<()> {
    let rows = lab.l1.machine().rows;
    work::provide(lab.l1)?;
    let mut tested = Vec::new();
    for (index, (row, address)) in rows.iter().zip(rows::addresses(rows)).enumerate() {
        match take(lab, row, &address) {
            Ok((bdf, former)) => {
                let (id, port) = (rows::id(index), FIRST_PORT + index);
                tested.push(Tested { row, id, bdf, port, former, seen: Seen::default(), fit: true });
            }
            Err(e) => lab.part(row.name, WORKS, Err(e))?,
        }
    }
    let result = in_guest(lab, &mut tested);
    if let Err(error) = &result {
        if error.is::<Stalled>() {
            return result;
        }
        // A guest that still runs would keep its devices.
        lab.l1.kill_all().with_context(|| format!("after: {error:#}"))?;
    }
    for device in &mut tested {
        let result = give_back(lab, device);
        lab.part(device.row.name, HOST, result)?;
    }
    for (row, address) in rows.iter().zip(rows::addresses(rows)).filter(|(row, _)| row.virtual_function.is_some()) {
        lab.l1.ok(&format!("echo 0 > /sys/bus/pci/devices/0000:{address}/sriov_numvfs")).context(row.name)?;
    }
    result
}

/// The e1000e at `bdf` pings and fetches on the host, with the host's driver.
pub fn nic_works_on_host(lab: &mut Lab, bdf: &str) -> Result<()> {
    work::provide(lab.l1)?;
    let sysfs = format!("/sys/bus/pci/devices/0000:{bdf}");
    let device = Device { row: &rows::NICS[0], id: "", sysfs: &sysfs };
    Work::Nic.check(lab, &device, At::Host, &mut Seen::default())
}

/// Makes the virtual function if it is to be one, and binds the device. Returns its address and its former driver.
fn take(lab: &mut Lab, row: &rows::Row, address: &str) -> Result<(String, String)> {
    let bdf = match row.virtual_function {
        None => address.to_owned(),
        Some(script) => {
            let pf = format!("/sys/bus/pci/devices/0000:{address}");
            let text = format!("pf={pf}; ( {script} ) >&2; basename $(readlink $pf/virtfn0)");
            lab.l1.ok(&text)?.trim().trim_start_matches("0000:").to_owned()
        }
    };
    if !row.driver.is_empty() {
        steps::eventually(lab.l1, &format!("[ -e /sys/bus/pci/devices/0000:{bdf}/driver ]"))?;
    }
    let former = steps::driver(lab.l1, &bdf)?;
    lab.l1.ok(&format!("passthru bind {bdf}"))?;
    Ok((bdf, former))
}

/// The part with the guest: first start, reboot, unplug and plug, power-off.
fn in_guest(lab: &mut Lab, tested: &mut [Tested]) -> Result<()> {
    let mut guest = Guest::new().fat().reboots().file(work::GUEST_TONE, &work::tone()).script(work::SCRIPT);
    if tested.iter().any(|device| device.row.work == Work::Edu) {
        guest = guest.file("bin/lab", &std::fs::read(std::env::current_exe()?)?);
    }
    for device in tested.iter() {
        let Tested { bdf, port, .. } = device;
        guest = guest
            .device(&format!("pcie-root-port,id=port{port:x},addr={port:x}"))
            .device(&format!("vfio-pci,host={bdf},bus=port{port:x},id={}", device.guest_id()));
    }
    let mut live = lab.l1.live(&guest)?;
    if lab.l1.machine().iommufd {
        let nodes = open_nodes(lab.l1)?;
        let by_node = nodes.lines().all(|node| node == "/dev/iommu" || node.starts_with("/dev/vfio/devices/"));
        ensure!(by_node && !nodes.is_empty(), "not all devices are on iommufd; open are:\n{nodes}");
    }
    works(lab, &mut live, tested, WORKS)?;
    live.shell().reboot(lab.l1)?;
    works(lab, &mut live, tested, REBOOT)?;
    for (name, error) in replug(lab.l1, &live, tested)? {
        lab.part(name, REPLUG, Err(error))?;
    }
    works(lab, &mut live, tested, REPLUG)?;
    live.power_off(lab.l1)?.success().map(drop)
}

/// All devices leave the guest and come back; those that do not are no longer fit, and returned with their errors.
///
/// All together: the guest waits 5 s after each press of an attention button.
fn replug(l1: &mut L1, live: &Live, tested: &mut [Tested]) -> Result<Vec<(&'static str, Error)>> {
    let mut failed = Vec::new();
    each_fit(tested, &mut failed, |device| live.qmp(l1, "device_del", json!({ "id": device.guest_id() })).map(drop))?;
    let mut gone = BTreeSet::new();
    let count = tested.iter().filter(|device| device.fit).count();
    let end = Instant::now() + UNPLUG_LIMIT;
    while gone.len() < count && Instant::now() < end {
        let left = end.saturating_duration_since(Instant::now());
        if let Some(event) = live.event_within(l1, "DEVICE_DELETED", left)?
            && let Some(id) = event["data"]["device"].as_str()
        {
            gone.insert(id.to_owned());
        }
    }
    each_fit(tested, &mut failed, |device| {
        ensure!(gone.contains(&device.guest_id()), "it did not leave the guest within {} s", UNPLUG_LIMIT.as_secs());
        let arguments = json!({
            "driver": "vfio-pci", "host": device.bdf, "id": device.guest_id(), "bus": format!("port{:x}", device.port)
        });
        live.qmp(l1, "device_add", arguments).map(drop)
    })?;
    Ok(failed)
}

/// Does `step` with every device that is still fit.
///
/// # Errors
/// A stall.
fn each_fit(
    tested: &mut [Tested],
    failed: &mut Vec<(&'static str, Error)>,
    mut step: impl FnMut(&Tested) -> Result<()>,
) -> Result<()> {
    for device in tested.iter_mut().filter(|device| device.fit) {
        match step(device) {
            Ok(()) => {}
            Err(e) if e.is::<Stalled>() => return Err(e),
            Err(e) => {
                device.fit = false;
                failed.push((device.row.name, e));
            }
        }
    }
    Ok(())
}

/// Every device works in the guest, one after the other.
fn works(lab: &mut Lab, live: &mut Live, tested: &mut [Tested], step: &'static str) -> Result<()> {
    for device in tested.iter_mut().filter(|device| device.fit) {
        let sysfs = format!("$(behind {:x})", device.port);
        let Tested { row, id, seen, .. } = device;
        let result = row.work.check(lab, &Device { row, id, sysfs: &sysfs }, At::Guest(live.shell()), seen);
        device.fit = result.is_ok();
        lab.part(device.row.name, step, result)?;
    }
    Ok(())
}

/// The device goes back to its former driver, which must work.
fn give_back(lab: &mut Lab, device: &mut Tested) -> Result<()> {
    lab.l1.ok(&format!("passthru release {}", device.bdf))?;
    let now = steps::driver(lab.l1, &device.bdf)?;
    ensure!(now == device.former, "it is on {now}, and was on {} before", device.former);
    let sysfs = format!("/sys/bus/pci/devices/0000:{}", device.bdf);
    let Tested { row, id, seen, .. } = device;
    row.work.check(lab, &Device { row, id, sysfs: &sysfs }, At::Host, seen)
}
