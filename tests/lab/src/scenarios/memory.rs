//! Memory that comes and goes while the guest runs (virtio-mem), with passed-through devices that do DMA into it.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::steps::{self, DRIVE, NIC};
use crate::l1::live::Live;
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] = &[Scenario::new("virtio-mem", virtio_mem).limit(600)];

/// What the guest gets besides its own memory.
const MORE: u64 = 256 << 20;
const BASE: u64 = 256 << 20;
/// MiB of a buffer that only fits with what was plugged: the guest's own memory has not so much that is free.
const BUFFER: u32 = 192;

/// Bytes that each IOMMU address space maps.
fn mapped(guest: &Live, l1: &mut L1) -> Result<Vec<u64>> {
    let vm = guest.qmp(l1, "x-query-vm", json!({}))?;
    let spaces = vm["dma"].as_array().context("x-query-vm has no dma")?;
    Ok(spaces.iter().filter_map(|space| space["bytes"].as_u64()).collect())
}

/// Asks for so much, and waits until the guest has it.
fn request(guest: &mut Live, l1: &mut L1, bytes: u64) -> Result<()> {
    guest.qmp(l1, "qom-set", json!({ "path": "vm0", "property": "requested-size", "value": bytes }))?;
    loop {
        let change = guest.event(l1, "MEMORY_DEVICE_SIZE_CHANGE")?;
        ensure!(change["id"] == "vm0", "{change}");
        if change["size"] == bytes {
            return Ok(());
        }
    }
}

/// `MemTotal` of the guest, in bytes.
fn total(guest: &mut Live, l1: &mut L1) -> Result<u64> {
    let said = guest.sh(l1, "awk '/^MemTotal/ { print $2 * 1024 }' /proc/meminfo")?;
    said.trim().parse().with_context(|| format!("MemTotal is {said}"))
}

/// NIC and drive work; the drive writes to a buffer that lies in plugged memory for the most part.
fn work(guest: &mut Live, l1: &mut L1, sum: &str) -> Result<()> {
    guest.sh(l1, &l2::ping(3))?;
    ensure!(guest.value("ping")? == "3", "pings were lost");
    let read = format!(
        "dd if=/dev/nvme0n1 bs={BUFFER}M count=1 iflag=direct 2>/dev/null | head -c {} | sha256sum",
        l2::READ_MIB << 20
    );
    let read = guest.sh(l1, &read)?;
    ensure!(read.starts_with(sum), "the guest reads {read}, not {sum}");
    Ok(())
}

fn virtio_mem(lab: &mut Lab) -> Result<()> {
    let sum = steps::host_sum(lab.l1)?;
    let guest = Guest::new()
        .fat()
        .reboots()
        .memory("256M,maxmem=1G")
        .passes(NIC)
        .passes(DRIVE)
        .option("--object memory-backend-ram,id=m0,size=512M")
        .device("virtio-mem-pci,id=vm0,memdev=m0")
        // What programs use comes from plugged memory first, and can be moved when that goes.
        .append("memhp_default_state=online_movable");
    let faults = "dmesg | grep -c 'DMAR: .DMA' || true";
    let before = lab.l1.ok(faults)?;
    steps::with_bound(lab, &[NIC, DRIVE], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        let l1 = &mut *lab.l1;
        guest.sh(l1, &format!("{}; {}; modprobe virtio_mem", l2::nic_up("e1000e"), l2::nvme_up()))?;
        let (own, small) = (mapped(&guest, l1)?, total(&mut guest, l1)?);
        ensure!(!own.is_empty() && own.iter().all(|bytes| *bytes >= BASE), "{own:?} bytes are mapped at first");

        request(&mut guest, l1, MORE)?;
        let grown: Vec<u64> = own.iter().map(|bytes| bytes + MORE).collect();
        let now = mapped(&guest, l1)?;
        ensure!(now == grown, "{now:?} bytes are mapped, not {grown:?}");
        let large = total(&mut guest, l1)?;
        ensure!(large == small + MORE, "the guest has {large} bytes, and had {small}");
        work(&mut guest, l1, &sum)?;

        let refused = json!({ "path": "vm0", "property": "requested-size", "value": 2 * MORE + (1 << 20) });
        let refused = guest.qmp_fails(l1, "qom-set", refused)?;
        ensure!(refused.contains("cannot have"), "{refused}");
        request(&mut guest, l1, 0)?;
        ensure!(mapped(&guest, l1)? == own && total(&mut guest, l1)? == small, "memory stays behind");
        guest.sh(l1, &l2::ping(3))?;
        ensure!(guest.value("ping")? == "3", "pings were lost when the memory had gone");

        // A machine that begins anew has its own memory alone.
        request(&mut guest, l1, MORE)?;
        guest.qmp(l1, "system_reset", json!({}))?;
        guest.event(l1, "RESET")?;
        let summary = guest.qmp(l1, "query-memory-size-summary", json!({}))?;
        ensure!(summary == json!({ "base-memory": BASE, "plugged-memory": 0 }), "{summary}");
        // BARs that the guest has not placed yet are not mapped either.
        let now = mapped(&guest, l1)?;
        ensure!(now.iter().zip(&own).all(|(now, own)| now <= own), "{now:?} bytes are mapped after the reset");
        let wanted: Value = guest.qmp(l1, "qom-get", json!({ "path": "vm0", "property": "requested-size" }))?;
        ensure!(wanted == MORE, "{wanted} bytes are wanted");
        guest.quit(l1)?.success().map(drop)
    })?;
    let after = lab.l1.ok(faults)?;
    ensure!(after == before, "{} faults of the IOMMU, {} before", after.trim(), before.trim());
    Ok(())
}
