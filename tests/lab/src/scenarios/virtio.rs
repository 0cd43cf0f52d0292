//! Virtio devices, driven by the guest's own drivers, beside a NIC of the host.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::steps::{self, NIC};
use crate::l1::live::Live;
use crate::l1::{Guest, L1, l2_scripts as l2};
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("virtio-rng", rng).limit(600), Scenario::new("virtio-blk", blk).limit(900)];

/// What the random numbers are made of, so that the guest's can be checked.
const ENTROPY: &str = "/tmp/entropy";

/// Exits by writes to trapped memory so far.
fn mmio_writes(guest: &Live, l1: &mut L1) -> Result<u64> {
    let vm = guest.qmp(l1, "x-query-vm", json!({}))?;
    vm["exits"]["mmio-write"].as_u64().with_context(|| format!("no exits in {vm}"))
}

/// The guest gets what the host's file holds, by interrupts and doorbells that cost no exit; also after its reboot
/// and after the device was out.
fn rng(lab: &mut Lab) -> Result<()> {
    lab.l1.ok(&format!("yes passthru | tr -d '\\n' | head -c 8M > {ENTROPY}"))?;
    let guest = Guest::new()
        .fat()
        .reboots()
        .passes(NIC)
        .device("pcie-root-port,id=rp2")
        .device(&format!("virtio-rng-pci,id=rng0,bus=rp2,filename={ENTROPY}"));
    let up = "modprobe virtio_pci; modprobe virtio-rng; cat /sys/class/misc/hw_random/rng_current";
    // Only letters of the word, and as much as was asked for.
    let check = "dd if=/dev/hwrng of=/tmp/r bs=32 count=512 iflag=fullblock 2>/dev/null; \
                 echo LAB len=$(wc -c < /tmp/r) other=$(tr -d pashtru < /tmp/r | wc -c)";
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        for round in 0..3 {
            let current = guest.sh(lab.l1, up)?;
            ensure!(current.contains("virtio_rng"), "round {round}: the guest's source is {current}");
            let before = mmio_writes(&guest, lab.l1)?;
            guest.sh(lab.l1, check)?;
            let after = mmio_writes(&guest, lab.l1)?;
            ensure!(guest.value("len")? == "16384 other=0", "round {round}: {}", guest.value("len")?);
            ensure!(after - before < 32, "round {round}: 512 requests cost {} exits", after - before);
            match round {
                0 => guest.shell().reboot(lab.l1)?,
                1 => {
                    guest.device_del(lab.l1, "rng0")?;
                    let add = json!({ "driver": "virtio-rng-pci", "id": "rng0", "bus": "rp2", "filename": ENTROPY });
                    guest.device_add(lab.l1, add)?;
                }
                _ => {}
            }
        }
        guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
        guest.sh(lab.l1, &l2::ping(3))?;
        ensure!(guest.value("ping")? == "3", "pings were lost");
        guest.power_off(lab.l1)?.success()
    })?;
    ended.lacks("soft lockup")?.lacks("device error")?;
    Ok(())
}

/// A disk reads as the host's file, which holds afterwards what the guest has written; without an exit for each request.
fn blk(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("head -c 32M /dev/urandom > /tmp/disk.raw")?;
    let sum = lab.l1.ok("sha256sum < /tmp/disk.raw | cut -d ' ' -f 1")?;
    let guest = Guest::new()
        .fat()
        .cpus(2)
        .reboots()
        .passes(NIC)
        .device("pcie-root-port,id=rp2")
        .option("--blockdev file,node-name=d0,filename=/tmp/disk.raw")
        .device("virtio-blk-pci,id=disk0,drive=d0,bus=rp2,serial=LAB-0001,num-queues=2");
    let read = "modprobe virtio_pci; modprobe virtio_blk; i=0; \
                until [ -b /dev/vda ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done; \
                echo LAB serial=$(cat /sys/block/vda/serial); echo LAB queues=$(ls /sys/block/vda/mq | wc -l); \
                echo LAB read=$(dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)";
    let write = "head -c 8388608 /dev/urandom > /tmp/w; \
                 dd if=/tmp/w of=/dev/vda bs=4k seek=2048 oflag=direct conv=fsync 2>/dev/null; \
                 echo LAB wrote=$(sha256sum < /tmp/w | cut -d ' ' -f 1)";
    let ended = steps::with_bound(lab, &[NIC], |lab| {
        let mut guest = lab.l1.live(&guest)?;
        guest.sh(lab.l1, read)?;
        ensure!(guest.value("serial")? == "LAB-0001", "the serial number is {}", guest.value("serial")?);
        ensure!(guest.value("queues")? == "2", "the guest uses {} queues", guest.value("queues")?);
        ensure!(guest.value("read")? == sum.trim(), "the guest reads other bytes");
        let before = mmio_writes(&guest, lab.l1)?;
        guest.sh(lab.l1, write)?;
        let exits = mmio_writes(&guest, lab.l1)? - before;
        ensure!(exits < 64, "2048 writes cost {exits} exits");
        let part = "dd if=/tmp/disk.raw bs=1M skip=8 count=8 status=none | sha256sum | cut -d ' ' -f 1";
        ensure!(lab.l1.ok(part)?.trim() == guest.value("wrote")?, "the file holds other bytes");
        let sum = lab.l1.ok("sha256sum < /tmp/disk.raw | cut -d ' ' -f 1")?;
        guest.shell().reboot(lab.l1)?;
        guest.sh(lab.l1, read)?;
        ensure!(guest.value("read")? == sum.trim(), "the guest reads other bytes after its reboot");
        guest.device_del(lab.l1, "disk0")?;
        let add =
            json!({ "driver": "virtio-blk-pci", "id": "disk1", "bus": "rp2", "drive": "d0", "serial": "LAB-0001" });
        guest.device_add(lab.l1, add)?;
        guest.sh(lab.l1, read)?;
        ensure!(guest.value("read")? == sum.trim(), "the guest reads other bytes after it was out");
        guest.sh(lab.l1, &l2::nic_up("e1000e"))?;
        guest.sh(lab.l1, &l2::ping(3))?;
        ensure!(guest.value("ping")? == "3", "pings were lost");
        guest.power_off(lab.l1)?.success()
    })?;
    ended.lacks("soft lockup")?.lacks("I/O error")?;
    Ok(())
}
