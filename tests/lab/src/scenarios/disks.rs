//! Images under a guest's disk, and memory that it shares with its host.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::l1::Guest;
use crate::scenario::{Lab, Scenario};

pub static SCENARIOS: &[Scenario] =
    &[Scenario::new("disk-images", images).limit(600), Scenario::new("shared-memory", shared_memory)];

/// The guest's disk is an overlay that passthru has made, of an image that qemu-img has. A snapshot and its commit while the
/// guest runs lose nothing, and qemu-img finds the image whole afterwards. Nodes come and go.
fn images(lab: &mut Lab) -> Result<()> {
    lab.l1.ok(
        "cd /tmp && head -c 16M /dev/urandom > base.raw && qemu-img convert -f raw -O qcow2 base.raw base.qcow2 \
         && passthru img create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 && qemu-img check top.qcow2",
    )?;
    let base = lab.l1.ok("sha256sum < /tmp/base.raw | cut -d ' ' -f 1")?.trim().to_owned();
    let guest = Guest::new()
        .fat()
        .device("pcie-root-port,id=rp1")
        .device("pcie-root-port,id=rp2")
        .option("--blockdev qcow2,node-name=d0,file.driver=file,file.filename=/tmp/top.qcow2")
        .device("virtio-blk-pci,id=disk0,drive=d0,bus=rp1");
    let wait = |disk: &str| format!("i=0; until [ -b /dev/{disk} ] || [ $i -ge 200 ]; do sleep 0.1; i=$((i+1)); done");
    let read = |disk: &str, key: &str| {
        format!("echo LAB {key}=$(dd if=/dev/{disk} bs=64k iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)")
    };
    let write = |at: u32, mib: u32| {
        format!(
            "dd if=/dev/urandom of=/dev/vda bs=64k seek={} count={} oflag=direct conv=fsync 2>/dev/null",
            at * 16,
            mib * 16
        )
    };
    let mut guest = lab.l1.live(&guest)?;
    guest
        .sh(lab.l1, &format!("modprobe virtio_pci; modprobe virtio_blk; {}; {}", wait("vda"), read("vda", "first")))?;
    ensure!(guest.value("first")? == base, "the guest reads other bytes than the base has");
    guest.sh(lab.l1, &write(2, 4))?;
    guest.qmp(lab.l1, "blockdev-snapshot-sync", json!({ "node-name": "d0", "snapshot-file": "/tmp/snap.qcow2" }))?;
    let top = lab.l1.ok("sha256sum < /tmp/top.qcow2")?;
    guest.sh(lab.l1, &write(4, 4))?;
    ensure!(lab.l1.ok("sha256sum < /tmp/top.qcow2")? == top, "the snapshot was written to");
    guest.qmp(lab.l1, "block-commit", json!({ "device": "d0", "job-id": "job0" }))?;
    guest.sh(lab.l1, &write(7, 2))?;
    let done = guest.event(lab.l1, "BLOCK_JOB_COMPLETED")?;
    ensure!(done["data"]["error"].is_null(), "the commit failed: {done}");
    guest.sh(lab.l1, &write(10, 1))?;
    guest.sh(lab.l1, &read("vda", "all"))?;

    let raw = json!({ "driver": "raw", "node-name": "d1", "read-only": true,
        "file": { "driver": "file", "filename": "/tmp/base.raw", "read-only": true } });
    guest.qmp(lab.l1, "blockdev-add", raw)?;
    guest.device_add(lab.l1, json!({ "driver": "virtio-blk-pci", "id": "disk1", "bus": "rp2", "drive": "d1" }))?;
    guest.sh(lab.l1, &format!("{}; {}; echo LAB ro=$(cat /sys/block/vdb/ro)", wait("vdb"), read("vdb", "second")))?;
    ensure!(guest.value("second")? == base, "the second disk has other bytes");
    ensure!(guest.value("ro")? == "1", "the second disk can be written");
    let refused = guest.qmp_fails(lab.l1, "blockdev-del", json!({ "node-name": "d1" }))?;
    ensure!(refused.contains("disk1"), "a node in use was refused with: {refused}");
    guest.device_del(lab.l1, "disk1")?;
    guest.qmp(lab.l1, "blockdev-del", json!({ "node-name": "d1" }))?;

    let all = guest.value("all")?;
    guest.power_off(lab.l1)?.success()?.lacks("I/O error")?;
    let after = lab.l1.ok(
        "cd /tmp && qemu-img check -q top.qcow2 && qemu-img check -q base.qcow2 && passthru img check top.qcow2 > /dev/null \
         && qemu-img convert -f qcow2 -O raw top.qcow2 theirs.raw && passthru img convert -f qcow2 -O raw top.qcow2 ours.raw \
         && qemu-img compare -f raw -F raw theirs.raw ours.raw > /dev/null && sha256sum < ours.raw | cut -d ' ' -f 1",
    )?;
    ensure!(after.trim() == all, "the image holds other bytes than the guest has read");
    Ok(())
}

/// What a program of the host writes into a file, the guest reads in a BAR, and the other way round.
fn shared_memory(lab: &mut Lab) -> Result<()> {
    lab.l1.ok("rm -f /dev/shm/lab")?;
    let guest = Guest::new()
        .fat()
        .option("--object memory-backend-file,id=shm,mem-path=/dev/shm/lab,size=1M,share=on")
        .device("ivshmem-plain,id=ivshmem,memdev=shm");
    let mut guest = lab.l1.live(&guest)?;
    lab.l1.ok("printf LABS | dd of=/dev/shm/lab bs=1 seek=4096 conv=notrunc status=none")?;
    let look = "for D in /sys/bus/pci/devices/*; do if [ $(cat $D/device) = 0x1110 ]; then break; fi; done; \
                echo 1 > $D/enable; AT=$(sed -n 3p $D/resource | cut -d ' ' -f 1); \
                echo LAB size=$(($(sed -n 3p $D/resource | cut -d ' ' -f 2) - AT + 1)); \
                echo LAB word=$(devmem $((AT + 4096)) 32); devmem $((AT + 8192)) 32 0x44434241";
    guest.sh(lab.l1, look)?;
    ensure!(guest.value("size")? == "1048576", "BAR 2 has {} bytes", guest.value("size")?);
    ensure!(guest.value("word")? == "0x5342414C", "the guest reads {}", guest.value("word")?);
    let word = lab.l1.ok("dd if=/dev/shm/lab bs=1 skip=8192 count=4 status=none")?;
    ensure!(word == "ABCD", "the host reads {word:?}");
    guest.power_off(lab.l1)?.success()?;
    lab.l1.ok("rm /dev/shm/lab").map(drop)
}
